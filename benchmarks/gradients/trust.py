"""How far a fit may trust gradients it cannot check: held-out error with perfect, fair and random responses.

    python benchmarks/gradients/trust.py

50 surfaces of the law's family (6 domains, 3 capabilities, noise of one run 0.005 nats, base first, the other runs over
±1 in log volume), responses at base: perfect (the truth times 7, stated error 5 %), fair (the truth times 7 with an
error of half its size, stated honestly) and random (normal numbers, stated error 10 %). Judged on 60 mixtures without
noise: RMSE over the standard deviation, mean over capabilities. Costs are relative to the same runs without responses.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ideal_proxy.provenance import provenance
from ideal_proxy.response.gradient_rows import Responses
from ideal_proxy.response.law import DELTA
from ideal_proxy.response.model import ResponseModel
from ideal_proxy.store import atomic_write_json

Array = NDArray[np.float64]
DOMAINS, CAPABILITIES, NOISE, SCALE = 6, 3, 0.005, 7.0
SIZES = {"3": 3, "n+1": DOMAINS + 1, "2(n+1)": 2 * (DOMAINS + 1), "3(n+1)": 3 * (DOMAINS + 1)}


def surface(rng: np.random.Generator, v: Array) -> tuple[Array, Array]:
    """Losses of a law with known parameters, and ∂L/∂log v."""
    x = v / 1000.0
    a = np.exp(rng.normal(0.5, 1.2, (CAPABILITIES, DOMAINS)))
    root = np.sqrt(x + DELTA)
    s = 1.0 + (root - np.sqrt(DELTA)) @ a.T
    return 1.0 + 3.0 * s**-0.6, (3.0 * -0.6 * s**-1.6)[:, :, None] * (0.5 * x / root)[:, None, :] * a


def errors(seed: int) -> dict[str, dict[str, float]]:
    """Held-out error of each arm at each number of runs, on one surface."""
    rng = np.random.default_rng(seed)
    v = 1000.0 * np.exp(rng.uniform(-1.0, 1.0, (90, DOMAINS)))
    v[0] = 1000.0
    loss, response = surface(rng, v)
    y = loss + rng.normal(0.0, NOISE, loss.shape)
    share = np.full(DOMAINS, 1.0 / DOMAINS)

    def centred(matrix: Array) -> Array:
        return matrix - share * matrix.sum(axis=1, keepdims=True)

    truth = SCALE * centred(response[0])
    blur = 0.5 * np.sqrt((truth**2).mean(axis=1, keepdims=True)) * np.ones_like(truth)
    arms: dict[str, Responses | None] = {
        "none": None,
        "perfect": Responses(v[0], truth, 0.05 * np.abs(truth), share),
        "fair": Responses(v[0], centred(truth + rng.normal(0.0, 1.0, truth.shape) * blur), blur, share),
        "random": Responses(v[0], centred(rng.normal(0.0, 1.0, truth.shape)), np.full(truth.shape, 0.1), share),
    }
    found: dict[str, dict[str, float]] = {}
    for size, runs in SIZES.items():
        for name, given in arms.items():
            model = ResponseModel(base=v[0], process="never", harm="never", n_starts=1, n_draws=2)
            model.fit(v[:runs], y[:runs], baseline_loss=[4.0] * CAPABILITIES, responses=given)
            off = np.sqrt(((model.predict(v[30:]) - loss[30:]) ** 2).mean(axis=0)) / loss[30:].std(axis=0)
            found.setdefault(size, {})[name] = float(off.mean())
            if given is not None:
                found[size][f"{name} left out"] = float(not np.isfinite(model.trust_))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--surfaces", type=int, default=50)
    parser.add_argument("--first", type=int, default=0, help="number of the first surface")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    found = [errors(seed) for seed in range(arguments.first, arguments.first + arguments.surfaces)]
    report: dict[str, Any] = {"surfaces": arguments.surfaces, "first": arguments.first, "sizes": SIZES, "by_runs": {}}
    for size in SIZES:
        none = np.array([each[size]["none"] for each in found])
        row: dict[str, Any] = {"none": {"error": float(none.mean())}}
        for name in ("perfect", "fair", "random"):
            values = np.array([each[size][name] for each in found])
            change = values - none
            row[name] = {
                "error": float(values.mean()), "cost": float(change.mean() / none.mean()),
                "standard_error": float(change.std(ddof=1) / np.sqrt(len(change)) / none.mean()),
                "left_out": float(np.mean([each[size][f"{name} left out"] for each in found])),
            }  # fmt: skip
        report["by_runs"][size] = row
        print(size, f"none {none.mean():.3f}", {
            k: f"{v['error']:.3f} ({v['cost']:+.0%} ± {v['standard_error']:.0%}, left out {v['left_out']:.0%})"
            for k, v in row.items() if k != "none"
        })  # fmt: skip
    atomic_write_json(arguments.out, report)
    atomic_write_json(arguments.out.with_suffix(".environment.json"), provenance())


if __name__ == "__main__":
    main()
