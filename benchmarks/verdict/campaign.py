"""Synthetic searches on surfaces of known truth: what the fit promises before the check, beside what is there.

    OMP_NUM_THREADS=1 nice -n 10 python benchmarks/verdict/campaign.py --searches 40

A search is one round without training: a surface (`benchmarks/surfaces.py`), 24 runs laid out as a search does (39
where domains are poisoned), the fit, the optimum, and its prediction against base. Noise of a run: 0.6 % and 3 %.
A row a search is appended to `campaign.jsonl`; what stands there is not done again.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
import warnings
from pathlib import Path

import numpy as np
from scipy.stats import binomtest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "benchmarks"))
NOISES = (0.006, 0.03)
PAIRS = 3


def search(family: str, noise: float, seed: int) -> dict[str, float]:
    """One search; gains in per cent of base."""
    from surfaces import Surface

    from ideal_proxy.response.model import ResponseModel

    poisoned = family == "poisoned"
    surface = Surface(family, seed, *((12, 10) if poisoned else ()))
    v, seeds = surface.design(39 if poisoned else 24)
    rng = np.random.default_rng([seed, round(1e4 * noise)])
    start = time.process_time()
    model = ResponseModel(available=100.0 * surface.base, base=surface.base, random_state=seed)
    model.fit(v, surface.observe(v, noise, rng), seed_id=seeds)
    mixture, truth, seen = propose(model, surface)
    seconds = time.process_time() - start
    true = 100.0 * (1.0 - surface.objective(mixture))
    runs = [surface.observe(np.stack([mixture, surface.base]), noise, rng) for _ in range(PAIRS)]
    observed = 100.0 * (1.0 - np.mean([(pair[0] / pair[1]).mean() for pair in runs]))
    return {
        "predicted": 100.0 * truth.value, "true": true, "best": 100.0 * surface.best.predicted_gain,
        "observed": observed, "holds": float(100.0 * truth.lower <= true <= 100.0 * truth.upper),
        "holds_seen": float(100.0 * seen.lower <= observed <= 100.0 * seen.upper),
        "slope": model.gain_slope_,
        "width": 100.0 * (truth.upper - truth.lower),
        "last_domain": 100.0 * (mixture[-1] / surface.base[-1] - 1.0), "seconds": seconds,
    }  # fmt: skip


def propose(model, surface):
    """The mixture, with what is predicted of its gain: the true one, and the one seen over some pairs."""
    from ideal_proxy.optimizer import Objective, nearest_base, optimize
    from ideal_proxy.response import compare

    objective, constraints = Objective(), surface.constraints()
    best = optimize(model, objective, constraints, random_state=0)
    found = nearest_base(model, objective, constraints, best).volumes
    return found, *(compare(model, found, surface.base, pairs=pairs, chosen=True).gain for pairs in (10**9, PAIRS))


def main() -> None:
    from surfaces import FAMILIES

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--searches", type=int, default=200, help="of each family and noise")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--families", nargs="+", default=list(FAMILIES))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".jsonl"))
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    rows = [json.loads(line) for line in given.out.read_text().splitlines()] if given.out.exists() else []
    done = {(r["family"], r["noise"], r["seed"]) for r in rows}
    for seed in range(given.first, given.first + given.searches):
        for family in given.families:
            for noise in NOISES:
                if (family, noise, seed) in done:
                    continue
                row = {"family": family, "noise": noise, "seed": seed, **search(family, noise, seed)}
                rows.append({k: round(x, 4) if isinstance(x, float) else x for k, x in row.items()})
                with given.out.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    print(table(rows))


def table(rows: list[dict]) -> str:
    """Bias, coverage and share of the reachable gain, by family and noise."""
    lines = [
        "| family | noise | n | predicted − true | interval holds the true gain | holds the gain seen | width "
        "| true gain | share of the best | last domain | s |",
        "|---" * 11 + "|",
    ]
    for family in dict.fromkeys(r["family"] for r in rows):
        for noise in NOISES:
            here = [r for r in rows if (r["family"], r["noise"]) == (family, noise)]
            if not here:
                continue
            column = {key: np.array([r[key] for r in here]) for key in here[0] if key != "family"}
            bias, n = column["predicted"] - column["true"], len(here)
            best = column["best"].mean()
            lines.append(
                f"| {family} | {100 * noise:g} % | {n} | {bias.mean():+.2f} ± {bias.std() / n**0.5:.2f} "
                f"| {_share(column['holds'])} | {_share(column['holds_seen'])} | {column['width'].mean():.2f} "
                f"| {column['true'].mean():+.2f} | {column['true'].mean() / best if best > 0.01 else np.nan:.2f} "
                f"| {column['last_domain'].mean():+.0f} % | {np.median(column['seconds']):.2f} |"
            )
    return "\n".join(lines)


def _share(hits: np.ndarray) -> str:
    test = binomtest(int(hits.sum()), len(hits), 0.9)
    low, high = test.proportion_ci(method="wilson")
    return f"{100 * hits.mean():.0f} % [{100 * low:.0f}, {100 * high:.0f}]"


if __name__ == "__main__":
    main()
