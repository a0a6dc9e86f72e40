"""What stopping hopeless runs early does to the fit, and to the verdict: synthetic surfaces whose truth is known.

    python benchmarks/response/early_stopping.py --surfaces 60 --nulls 4000

A surface is the response law with random coefficients, five domains, five capabilities; a run's loss scatters by 1 %
(half of it known already when 40 % of the run is done). The design is the search's own, 18 runs. Four ways to spend:

    all        18 whole runs
    halved     after 40 % of its steps the worse half is stopped by the objective so far (base kept), as successive
               halving does; the fit gets the runs that went to the end
    random     the same number of runs goes to the end, chosen by lot
    first      as many whole runs as `halved` costs, the first of the design

Judged on 200 mixtures of the explored region: error and signed error of the predicted objective (mean loss relative
to base; in the worse half of the mixtures apart), share of them inside the 90 % interval, and the mixture that the
fit would propose among them: how much worse than the best (regret), how much its gain is overstated (optimism).
Second part: the check's looks. Pairs without any true gain; how often they end in `improves`, with one level
over all looks (what the search does) and with the whole level at each.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ideal_proxy.pipeline.design import make_design
from ideal_proxy.pipeline.sequential import planned_looks
from ideal_proxy.pipeline.verdict import IMPROVES, PairedLosses, judge
from ideal_proxy.provenance import provenance
from ideal_proxy.response.model import ResponseModel
from ideal_proxy.store import atomic_write_json, atomic_write_text

RESULTS = Path(__file__).parent
DOMAINS = CAPABILITIES = 5
RUNS = 18
BASE = np.array([4000.0, 600.0, 4000.0, 1200.0, 2500.0])
NOISE = 0.01  # of the loss
PARTIAL = 0.4  # of the steps
ARMS = ("all", "halved", "random", "first")


class Surface:
    """A response law with random coefficients; its own domain helps a capability most.

    Args:
        rng: of the coefficients.
        harm: add the loss that the share of another domain does, which the fitted form does not know.
    """

    def __init__(self, rng: np.random.Generator, *, harm: bool) -> None:
        self.floor = rng.uniform(0.5, 1.5, CAPABILITIES)
        self.height = rng.uniform(1.5, 3.0, CAPABILITIES)
        self.power = rng.uniform(0.3, 0.8, CAPABILITIES)
        self.gain = rng.lognormal(-2.0, 1.0, (CAPABILITIES, DOMAINS)) + np.diag(rng.lognormal(1.2, 0.5, DOMAINS))
        self.harm = np.roll(np.diag(rng.uniform(0.2, 0.6, DOMAINS)), 1, axis=1) * harm

    def losses(self, volumes: np.ndarray) -> np.ndarray:
        """Return (R, J) losses without noise."""
        x = np.sqrt(volumes / BASE.mean())
        share = volumes / volumes.sum(axis=1, keepdims=True)
        return self.floor + self.height * (1 + x @ self.gain.T) ** -self.power + share @ self.harm.T


def objective(losses: np.ndarray, base: np.ndarray) -> np.ndarray:
    return np.asarray((losses / base).mean(axis=-1))


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt((values**2).mean()))


def one(seed: int, *, harm: bool) -> dict[str, dict[str, float]]:
    """Fit every arm on one surface."""
    rng = np.random.default_rng(seed)
    surface = Surface(rng, harm=harm)
    bounds: dict[str, Any] = {"lower": np.zeros(DOMAINS), "upper": 4 * np.maximum(BASE, 4000), "total": BASE.sum()}
    mixtures, seeds_R = make_design(BASE, spread=1.2, seeds=[0, 1], count=RUNS, random_state=seed, **bounds)
    where = make_design(BASE, spread=1.2, seeds=[0], count=201, random_state=seed + 10_000, **bounds)[0][1:]
    truth, base = surface.losses(where), surface.losses(BASE[None])[0]
    final = surface.losses(mixtures)
    shared, rest = rng.standard_normal((2, *final.shape)) * NOISE * np.sqrt(0.5)
    partial = surface.losses(PARTIAL * mixtures) * (1 + shared + rng.standard_normal(final.shape) * NOISE * 0.7)
    observed = final * (1 + shared + rest)
    bases = np.flatnonzero((mixtures == BASE).all(axis=1))
    others = np.setdiff1d(np.arange(RUNS), bases)
    score = objective(partial, partial[bases].mean(axis=0))
    keep = RUNS // 2 - len(bases)
    spent = RUNS // 2 + PARTIAL * (RUNS - RUNS // 2)
    chosen = {
        "all": np.arange(RUNS),
        "halved": np.concatenate([bases, others[np.argsort(score[others])[:keep]]]),
        "random": np.concatenate([bases, rng.permutation(others)[:keep]]),
        "first": np.arange(int(spent)),
    }
    worse = objective(truth, base) > np.median(objective(truth, base))
    found = {}
    for arm in ARMS:
        runs = np.sort(chosen[arm])
        model = ResponseModel(
            available=np.maximum(BASE, 4000), base=BASE, process="never", harm="never", n_starts=2, random_state=0
        )
        model.fit(mixtures[runs], observed[runs], seed_id=seeds_R[runs])
        predicted, low, high = model.predict(where, return_interval=0.9)
        told = objective(predicted, model.predict(BASE[None])[0])
        real = objective(truth, base)
        error = told - real
        proposal = int(told.argmin())
        # An interval is meant for a new run's loss, so that is what it is checked with.
        new = truth * (1 + NOISE * rng.standard_normal(truth.shape))
        found[arm] = {
            "cost": {"halved": spent, "random": spent}.get(arm, float(len(runs))),
            "error": _rms(error), "bias": float(error.mean()),
            "bias_worse_half": float(error[worse].mean()), "error_worse_half": _rms(error[worse]),
            "inside": float(((new >= low) & (new <= high)).mean()),
            "regret": float(real[proposal] - real.min()), "optimism": float(real[proposal] - told[proposal]),
        }  # fmt: skip
    return found


def false_alarms(nulls: int) -> dict[str, float]:
    """Count `improves` where base and proposal are the same, with one level for all looks and with one for each."""
    rng = np.random.default_rng(1)
    looks = planned_looks(3, 8)
    counts = {"together": 0, "each": 0}
    for _ in range(nulls):
        pairs = [rng.standard_normal((2, looks[-1], 1)) * 0.02 + 1.0 for _ in range(CAPABILITIES)]
        for name, planned in (("together", looks), ("each", None)):
            for look in looks:
                losses = [PairedLosses(b[:look], p[:look], np.ones(1)) for b, p in pairs]
                verdict = judge(losses, min_gain=0.005, looks=planned)
                if verdict.answer == IMPROVES or (planned and not verdict.go_on):
                    counts[name] += verdict.answer == IMPROVES
                    break
    return {name: count / nulls for name, count in counts.items()}


def section(title: str, results: list[dict[str, dict[str, float]]]) -> list[str]:
    """Lay out one kind of surface."""
    table = {arm: {key: np.array([r[arm][key] for r in results]) for key in results[0][arm]} for arm in ARMS}

    def cell(values: np.ndarray, sign: str = "") -> str:
        return f"{100 * values.mean():{sign}.2f} ± {100 * values.std(ddof=1) / np.sqrt(len(values)):.2f}"

    lines = [
        f"## {title}", "",
        "| runs that the fit sees | cost, runs | error | signed error | error, worse half | signed error, worse half |"
        " inside 90 % | regret | optimism |", "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]  # fmt: skip
    for arm in ARMS:
        t = table[arm]
        lines.append(
            f"| {arm} | {t['cost'].mean():.1f} | {cell(t['error'])} | {cell(t['bias'], '+')} | "
            f"{cell(t['error_worse_half'])} | {cell(t['bias_worse_half'], '+')} | {cell(t['inside'])} | "
            f"{cell(t['regret'])} | {cell(t['optimism'], '+')} |"
        )
    lines += [
        "",
        "| paired difference | error | signed error, worse half | inside 90 % | regret |",
        "|---|---:|---:|---:|---:|",
    ]
    for other in ("random", "first"):
        keys = ("error", "bias_worse_half", "inside", "regret")
        cells = (cell(table["halved"][key] - table[other][key], "+") for key in keys)
        lines.append(f"| halved less {other} | {' | '.join(cells)} |")
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--surfaces", type=int, default=60)
    parser.add_argument("--nulls", type=int, default=4000)
    parser.add_argument("--out", type=Path, default=RESULTS / "early_stopping.json")
    options = parser.parse_args()
    logging.getLogger("ideal_proxy").setLevel(logging.ERROR)
    alarms = false_alarms(options.nulls)
    results = {
        title: [one(seed, harm=harm) for seed in range(options.surfaces)]
        for title, harm in (("The law's own form", False), ("Surfaces that the law cannot follow", True))
    }
    lines = [
        "# Early stopping", "", f"`python benchmarks/response/early_stopping.py --surfaces {options.surfaces} --nulls "
        f"{options.nulls}`. Mean over {options.surfaces} surfaces ± standard error, in % of the objective at base.", "",
    ]  # fmt: skip
    for title, entries in results.items():
        lines += section(title, entries)
    se = 100 * np.sqrt(0.05 * 0.95 / options.nulls)
    lines += [
        "",
        f"Checks of {options.nulls} pairs of equal mixtures that end in `improves`: one level over all "
        f"looks {100 * alarms['together']:.1f} %, the whole level at each {100 * alarms['each']:.1f} % (± {se:.1f}).",
        "",
    ]
    print("\n".join(lines))
    atomic_write_json(options.out, {
        "results": results, "false_alarms": alarms, "provenance": provenance(),
        "arguments": {"surfaces": options.surfaces, "nulls": options.nulls},
    })  # fmt: skip
    atomic_write_text(options.out.with_suffix(".md"), "\n".join(lines))


if __name__ == "__main__":
    main()
