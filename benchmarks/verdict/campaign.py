"""Synthetic searches on surfaces of known truth: what the fit promises before the check, beside what is there.

    OMP_NUM_THREADS=1 nice -n 15 python benchmarks/verdict/campaign.py --searches 200

A search without training: a surface (`benchmarks/surfaces.py`), runs laid out as a search does, fit, optimum, and its
prediction against base; further rounds as a search takes them, each of n + 1 runs for n domains. At most one round (24
runs; 39 where domains are poisoned) and at most six (the first of 3(n + 1) runs: what a user gets). Noise of a run:
0.6 % and 3 %. A row a search is appended to `campaign.jsonl`; what stands there is not done again.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "benchmarks"))
NOISES = (0.006, 0.03)
PAIRS = 3
ROUNDS = (1, 6)
FIRST = 24  # runs of a search of one round


def look_for(surface: Any, observe: Callable[..., np.ndarray], seed: int, rounds: int) -> tuple[Any, ...]:
    """Take the rounds of a search; runs are what `observe` says of mixtures and seeds."""
    from surfaces import SPREAD

    from ideal_proxy.optimizer import Objective, explored_region, nearest_base, optimize
    from ideal_proxy.pipeline.design import make_later_design
    from ideal_proxy.pipeline.rounds import look_ahead, why_again
    from ideal_proxy.response import Yardstick, compare
    from ideal_proxy.response.model import ResponseModel

    base, limits, objective = surface.base, surface.constraints(), Objective()
    first, promised = 3 * (surface.domains + 1), [-np.inf]
    v, seeds = surface.design(first if rounds > 1 or surface.family == "poisoned" else FIRST, 4 if rounds > 1 else 1)
    losses = observe(v, seeds)
    for number in range(1, rounds + 1):
        model = ResponseModel(available=100.0 * base, base=base, random_state=seed).fit(v, losses, seed_id=seeds)
        constraints = replace(limits, trust_region=explored_region(v, limits.domains))
        best = nearest_base(model, objective, constraints, optimize(model, objective, constraints, random_state=0))
        if number == rounds:
            break
        outlook = look_ahead(model, objective, constraints, Yardstick.of_losses(surface.capabilities), best.volumes)
        promised.append(compare(model, best.volumes, base, pairs=PAIRS, chosen=True).gain.value)
        if why_again(best, outlook, promised[-1] - promised[-2]) is None:
            break
        new, fresh = make_later_design(
            best.volumes, base, outlook.points, seeds=[2 * number, 2 * number + 1], count=surface.domains + 1,
            spread=2.0 * 0.5**number, lower=base * np.exp(-SPREAD), upper=base * np.exp(SPREAD), existing=v,
            total=float(base.sum()), random_state=seed + 1000 * number,
        )  # fmt: skip
        v, seeds = np.vstack([v, new]), np.append(seeds, fresh)
        losses = np.vstack([losses, observe(new, fresh)])
    return model, best.volumes, v, seeds, losses, number


def search(family: str, noise: float, seed: int, rounds: int) -> dict[str, float]:
    """One search; gains in per cent of base."""
    from surfaces import FAMILIES, Surface

    from ideal_proxy.response import compare

    surface = Surface(family, seed, *((12, 10) if family == "poisoned" else ()))
    base = surface.base
    rng = np.random.default_rng([seed, round(1e4 * noise), FAMILIES.index(family)])
    start = time.process_time()
    found = look_for(surface, lambda v, _seeds: surface.observe(v, noise, rng), seed, rounds)
    model, mixture, v, *_, number = found
    seconds = time.process_time() - start
    truth, seen = (compare(model, mixture, base, pairs=pairs, chosen=True).gain for pairs in (10**9, PAIRS))
    true = 100.0 * (1.0 - surface.objective(mixture))
    pairs = [surface.observe(np.stack([mixture, base]), noise, rng) for _ in range(PAIRS)]
    observed = 100.0 * (1.0 - np.mean([(pair[0] / pair[1]).mean() for pair in pairs]))
    return {
        "predicted": 100.0 * truth.value, "true": true, "best": 100.0 * surface.best.predicted_gain,
        "observed": observed, "holds": float(100.0 * truth.lower <= true <= 100.0 * truth.upper),
        "holds_seen": float(100.0 * seen.lower <= observed <= 100.0 * seen.upper), "took": number, "runs": len(v),
        "width": 100.0 * (truth.upper - truth.lower),
        "last_domain": 100.0 * (mixture[-1] / base[-1] - 1.0), "seconds": seconds,
    }  # fmt: skip


def main() -> None:
    import jsonl
    from surfaces import FAMILIES

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--searches", type=int, default=200, help="of each family and noise")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--families", nargs="+", default=list(FAMILIES))
    parser.add_argument("--rounds", type=int, nargs="+", default=list(ROUNDS), help="most rounds of a search")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".jsonl"))
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    rows = jsonl.read(given.out)
    keys = ("family", "noise", "seed", "rounds")
    done = {tuple(r[key] for key in keys) for r in rows}
    for seed in range(given.first, given.first + given.searches):
        for values in product(given.families, NOISES, [seed], given.rounds):
            if values in done:
                continue
            row = dict(zip(keys, values, strict=True)) | search(*values)
            rows.append({k: round(x, 4) if isinstance(x, float) else x for k, x in row.items()})
            jsonl.add(given.out, rows[-1])
    print(table(rows))


def table(rows: list[dict]) -> str:
    """Bias, coverage and share of the reachable gain, by most rounds, family and noise."""
    lines = [
        "| rounds | family | noise | n | predicted − true | interval holds the true gain | holds the gain seen | width "
        "| true gain | share of the best | last domain | rounds taken | s |",
        "|---" * 13 + "|",
    ]
    for rounds, family, noise in product(ROUNDS, dict.fromkeys(r["family"] for r in rows), NOISES):
        here = [r for r in rows if (r["rounds"], r["family"], r["noise"]) == (rounds, family, noise)]
        if not here:
            continue
        column = {key: np.array([r[key] for r in here]) for key in here[0] if key != "family"}
        bias, n = column["predicted"] - column["true"], len(here)
        best = column["best"].mean()
        lines.append(
            f"| {rounds} | {family} | {100 * noise:g} % | {n} | {bias.mean():+.2f} ± {bias.std() / n**0.5:.2f} "
            f"| {_share(column['holds'])} | {_share(column['holds_seen'])} | {column['width'].mean():.2f} "
            f"| {column['true'].mean():+.2f} | {column['true'].mean() / best if best > 0.01 else np.nan:.2f} "
            f"| {column['last_domain'].mean():+.0f} % | {column['took'].mean():.1f} "
            f"| {np.median(column['seconds']):.1f} |"
        )
    return "\n".join(lines)


def _share(hits: np.ndarray) -> str:
    test = binomtest(int(hits.sum()), len(hits), 0.9)
    low, high = test.proportion_ci(method="wilson")
    return f"{100 * hits.mean():.0f} % [{100 * low:.0f}, {100 * high:.0f}]"


if __name__ == "__main__":
    main()
