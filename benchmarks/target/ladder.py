"""A ladder against one size at equal cost, on surfaces of known truth.

    OMP_NUM_THREADS=1 nice -n 5 python benchmarks/target/ladder.py --repeats 12

The large size's surface is one of `surfaces.py`. The small size shows 0.75 of every log change, and a smooth error of
its own, a quarter of the changes (a third in the large size's terms). A run of it costs a sixth. Regret: points of
the objective lost to the best mixture. Inside: share of 60 true ratios (12 mixtures, 5 capabilities) in their 90 %
intervals. Gain inside: whether the interval of the promised gain holds the true one. `shuffled`: the small size's
losses are mixed up among its runs. A row a surface and arm is appended to `ladder.jsonl`; what stands there is not
done again.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
OUT = Path(__file__).with_suffix(".jsonl")
NOISE, SHOWN, ERROR = 0.012, 0.75, 0.25
ARMS = {"18": (0, 18), "36 + 12": (36, 12), "72 + 6": (72, 6), "36 + 12 shuffled": (36, 12), "12": (0, 12)}
NAMES, TARGETS = [f"d{i}" for i in range(5)], [f"c{i}" for i in range(5)]


def small_losses(surface, v: np.ndarray, seed: int) -> np.ndarray:
    """What the small size would lose without noise."""
    rng = np.random.default_rng([seed, 77])
    linear, bend = rng.normal(size=(5, 5)), 0.4 * rng.normal(size=(5, 5))
    at_base = surface.losses(surface.base[None])

    def error(mixtures: np.ndarray) -> np.ndarray:
        h = np.log(mixtures / surface.base)
        return h @ linear.T + np.tanh(h) ** 2 @ bend.T

    usual, _ = surface.design(64)
    scale = np.log(surface.losses(usual) / at_base).std(axis=0) / error(usual).std(axis=0)
    return 1.5 * at_base * np.exp(SHOWN * np.log(surface.losses(v) / at_base) + ERROR * scale * error(v))


def search(family: str, seed: int, arm: str, *, propose: bool = True) -> dict:
    from surfaces import Surface

    from ideal_proxy.optimizer import Objective, nearest_base, optimize
    from ideal_proxy.response import SMALLER_SIZE, ResponseModel, compare, fit_kinds

    surface, rng = Surface(family, seed), np.random.default_rng([seed, 5])
    small, large = ARMS[arm]
    v, seeds = surface.design(large)
    losses, kinds = surface.observe(v, NOISE, rng), [""] * large
    if small:
        more, their_seeds = surface.design(small)
        shown = small_losses(surface, more, seed) * np.exp(NOISE * rng.standard_normal((small, 5)))
        shown = shown[rng.permutation(small)] if "shuffled" in arm else shown
        v, losses, seeds = np.vstack([more, v]), np.vstack([shown, losses]), np.append(their_seeds, seeds)
        kinds = ["small"] * small + kinds
    model = ResponseModel(available=100 * surface.base, base=surface.base, random_state=0)
    V, L = pd.DataFrame(v, columns=NAMES), pd.DataFrame(losses, columns=TARGETS)
    options = {"baseline_loss": surface.Z, "seed_id": seeds, "own": list(range(5)), "run_id": np.arange(len(v))}
    trusts = fit_kinds(
        model, V, L, kinds, {"small": SMALLER_SIZE} if small else {}, {"small": 1.5 * surface.Z}, **options
    )
    if propose:
        found = optimize(model, Objective(), surface.constraints(), random_state=0)
        best = nearest_base(model, Objective(), surface.constraints(), found).volumes
    mixtures = surface.base * np.exp(np.random.default_rng([seed, 9]).uniform(-1.2, 1.2, (12, 5)))
    mixtures *= surface.base.sum() / mixtures.sum(axis=1, keepdims=True)
    inside = []
    for mixture in mixtures:
        truth = surface.losses(mixture[None])[0] / surface.losses(surface.base[None])[0]
        bounds = compare(model, mixture, surface.base, pairs=10**6).ratios
        inside += [bound.lower <= t <= bound.upper for bound, t in zip(bounds, truth, strict=True)]
    if not propose:
        return {"family": family, "seed": seed, "arm": arm, "inside": float(np.mean(inside))}
    promised, gain = compare(model, best, surface.base, pairs=10**6, chosen=True).gain, 1 - surface.objective(best)
    told = trusts.get("small")
    return {
        "family": family, "seed": seed, "arm": arm, "regret": round(surface.regret(best), 4),
        "inside": round(float(np.mean(inside)), 4), "gain_inside": bool(promised.lower <= gain <= promised.upper),
        "weight": None if told is None else round(told.weight, 4),
        "factor": None if told is None else round(told.factor, 3),
    }  # fmt: skip


def summary(lines: list[dict]) -> None:
    print("| surface | runs (small + large) | n | regret | inside | gain inside | weight of a small run | s |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for family in dict.fromkeys(line["family"] for line in lines):
        for arm in ARMS:
            of = [line for line in lines if (line["family"], line["arm"]) == (family, arm)]
            if not of:
                continue
            regret = np.array([line["regret"] for line in of])
            error = f" ± {regret.std(ddof=1) / np.sqrt(len(of)):.2f}" if len(of) > 1 else ""
            mean = {key: np.mean([line[key] for line in of]) for key in ("inside", "gain_inside")}
            worth = [
                f"{np.mean([line[key] for line in of]):.2f}" if ARMS[arm][0] else "-" for key in ("weight", "factor")
            ]
            print(
                f"| {family} | {arm} | {len(of)} | {regret.mean():.2f}{error} | "
                f"{mean['inside']:.0%} | {mean['gain_inside']:.0%} | {worth[0]} | {worth[1]} |"
            )


def main() -> None:
    import jsonl

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--show", action="store_true", help="only print what was recorded")
    parser.add_argument("--intervals", type=int, default=0, help="surfaces; only the share of true ratios inside")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    for family in ("law", "interactions") if options.intervals else ():
        for arm in ARMS:
            every = [search(family, seed, arm, propose=False)["inside"] for seed in range(options.intervals)]
            error = np.std(every, ddof=1) / np.sqrt(len(every))
            print(f"{family}, {arm}: inside {np.mean(every):.1%} ± {error:.1%} (n {len(every)})", flush=True)
    if options.intervals:
        return
    lines = jsonl.read(OUT)
    done = {(line["family"], line["seed"], line["arm"]) for line in lines}
    for seed in range(0 if options.show else options.repeats):
        for family in ("law", "interactions"):
            for arm in ARMS:
                if (family, seed, arm) not in done:
                    lines.append(search(family, seed, arm))
                    jsonl.add(OUT, lines[-1])
    summary(lines)


if __name__ == "__main__":
    main()
