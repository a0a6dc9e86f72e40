"""Many domains, few noisy runs: what a free and a protected optimum promise, and what they truly gain.

    OMP_NUM_THREADS=1 nice -n 5 python benchmarks/verdict/many_domains.py --repeats 6

Surfaces of `surfaces.py` with 18 domains and 18 capabilities, 42 runs each, as the search on SmolLM2-135M had
(`proof/on_target.md`). One table of runs a surface; all proposals are made from it: ours free, with no loss above 2 %
(the default), with the upper bound at 90 % as objective, and RegMix's and Olmix's. Promised and true gain in per cent.
A row a surface goes to `many_domains.jsonl`; what stands there is not done again.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
import warnings
from itertools import product
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
for place in (ROOT, ROOT / "benchmarks"):
    sys.path.insert(0, str(place))
HERE = Path(__file__)
DOMAINS, RUNS = 18, 42
FAMILIES, NOISES = ("law", "interactions"), (0.01, 0.03)
WAYS = ("free", "protected", "upper bound", "RegMix", "Olmix, KL 0.05")


def one_surface(family: str, noise: float, seed: int) -> dict:
    from peers import olmix, ours, regmix
    from peers.task import Runs, Task
    from surfaces import SPREAD, Surface

    from ideal_proxy.optimizer import Objective
    from ideal_proxy.response import compare

    started = time.monotonic()
    surface = Surface(family, seed, DOMAINS, DOMAINS)
    base = surface.base
    task = Task(base, 100 * base, base * np.exp(-SPREAD), base * np.exp(SPREAD))
    volumes, seeds = ours.design(task, RUNS, seed)
    losses = surface.observe(volumes, noise, np.random.default_rng([seed, round(1e4 * noise), 3]))
    table = Runs(volumes, losses, seeds)
    model = ours.fit(task, table, 0, own=np.arange(DOMAINS), baseline_loss=surface.Z)
    found = {
        "free": ours.Ours().best(model, task, table),
        "protected": ours.Ours(protect=0.02).best(model, task, table),
        "upper bound": ours.Ours().best(model, task, table, Objective(upper_confidence=0.9)),
        "RegMix": regmix.propose(task, table, 0),
        "Olmix, KL 0.05": olmix.propose(task, table, 0, 0.05),
    }
    told = {"family": family, "noise": noise, "seed": seed, "reachable": round(100 * surface.best.predicted_gain, 3)}
    for name, mixture in found.items():
        ratio = surface.losses(mixture[None])[0] / surface.losses(base[None])[0]
        gain = compare(model, mixture, base, pairs=10**6, chosen=name in WAYS[:3]).gain
        told[name] = {
            "promised": [round(100 * v, 3) for v in (gain.value, gain.lower, gain.upper)],
            "true": round(100 * float(1 - ratio.mean()), 3), "worst": round(100 * float(ratio.max() - 1), 2),
        }  # fmt: skip
    return told | {"seconds": round(time.monotonic() - started, 1)}


def main() -> None:
    import jsonl

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--show", action="store_true", help="only write the page of what was recorded")
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    kept = HERE.with_suffix(".jsonl")
    rows = jsonl.read(kept)
    done = {(row["family"], row["noise"], row["seed"]) for row in rows}
    cases = product(range(0 if given.show else given.repeats), FAMILIES, NOISES)
    for family, noise, seed in [(f, n, s) for s, f, n in cases if (f, n, s) not in done]:
        rows.append(one_surface(family, noise, seed))
        jsonl.add(kept, rows[-1])
    lines = []
    for family, noise in product(FAMILIES, NOISES):
        of = [row for row in rows if (row["family"], row["noise"]) == (family, noise)]
        for way in WAYS if of else ():
            promised = np.array([row[way]["promised"] for row in of])
            true, worst = (np.array([row[way][key] for row in of]) for key in ("true", "worst"))
            off = promised[:, 0] - true
            error = f" ± {off.std(ddof=1) / np.sqrt(len(of)):.2f}" if len(of) > 1 else ""
            inside = int(((promised[:, 1] <= true) & (true <= promised[:, 2])).sum())
            lines.append(
                f"| {family}, {noise:.0%} | {way} | {len(of)} | {promised[:, 0].mean():+.2f} | {true.mean():+.2f} "
                f"| {off.mean():+.2f}{error} | {inside} of {len(of)} | {worst.mean():+.1f} |"
            )
    page = [
        "# Many domains, few noisy runs", "",
        "`OMP_NUM_THREADS=1 nice -n 5 python benchmarks/verdict/many_domains.py`.", "",
        f"{DOMAINS} domains, {DOMAINS} capabilities, {RUNS} runs; gains in per cent of the mean loss, means over n",
        "surfaces; promised by our fit with its 90 % interval (ours corrected for being chosen), and true.", "",
        "| surface, noise of a run | way | n | promised | true | promised − true | inside | worst capability, % |",
        "|---|---|---:|---:|---:|---|---|---:|", *lines, "",
    ]  # fmt: skip
    HERE.with_suffix(".md").write_text("\n".join(page), encoding="utf-8")


if __name__ == "__main__":
    main()
