"""What the limit to the explored region costs: one fit, its optimum within 1, 1.25, 1.5 times that region, and without.

    OMP_NUM_THREADS=1 nice -n 5 python benchmarks/proof/explored.py --repeats 12

The optimiser keeps every volume within the least and largest log ratio to base that a run had. Sixteen runs of one
total touch the bounds of few domains. Same surfaces and runs as `efficiency.py`'s "ours" of one round. A row a fit
goes to `explored.jsonl`; what stands there is not done again.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
for place in (ROOT, ROOT / "benchmarks", ROOT / "benchmarks" / "proof"):
    sys.path.insert(0, str(place))
HERE = Path(__file__)
FACTORS = (1.0, 1.25, 1.5, None)


def one_fit(family: str, noise: float, seed: int, runs: int) -> dict[str, float]:
    from efficiency import FAMILIES, task_of
    from peers import ours
    from peers.task import trained
    from surfaces import Surface

    from ideal_proxy.optimizer import Objective, explored_region, nearest_base, optimize

    surface = Surface(family, seed)
    task = task_of(surface)
    rng = np.random.default_rng([seed, runs, round(1e4 * noise), FAMILIES.index(family), 29])
    table = trained(*ours.design(task, runs, seed), lambda v, _: surface.observe(v, noise, rng))
    model, limits, told = ours.fit(task, table, seed), ours.constraints(task, surface.capabilities, None), {}
    region = explored_region(table.volumes, limits.domains)
    for factor in FACTORS:
        wide = limits if factor is None else replace(
            limits, trust_region={name: (factor * down, factor * up) for name, (down, up) in region.items()}
        )  # fmt: skip
        found = nearest_base(model, Objective(), wide, optimize(model, Objective(), wide, random_state=0))
        told["none" if factor is None else f"{factor:g}"] = surface.regret(found.volumes)
    return told


def main() -> None:
    import jsonl
    from efficiency import FAMILIES, NOISES, interval, text

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--runs", type=int, nargs="+", default=[16])
    parser.add_argument("--show", action="store_true")
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    raw = HERE.with_suffix(".jsonl")
    rows = jsonl.read(raw)
    done = {(r["family"], r["noise"], r["seed"], r["runs"]) for r in rows}
    for seed, runs, family, noise in product(range(given.repeats), given.runs, FAMILIES, NOISES[::-1]):
        if given.show or (family, noise, seed, runs) in done:
            continue
        found = {key: round(value, 4) for key, value in one_fit(family, noise, seed, runs).items()}
        rows.append({"family": family, "noise": noise, "seed": seed, "runs": runs, **found})
        jsonl.add(raw, rows[-1])
    names = ["1", "1.25", "1.5", "none"]
    lines = ["# What the limit to the explored region costs", "",
             "`OMP_NUM_THREADS=1 nice -n 5 python benchmarks/proof/explored.py`. Mean regret in points within the",
             "explored region times a factor; paired difference of none to 1 [95 % t-interval].", "",
             "| surface | runs | n | " + " | ".join(names) + " | none − 1 |", "|---" * 8 + "|"]  # fmt: skip
    for family, noise, runs in product(FAMILIES, NOISES, sorted({r["runs"] for r in rows})):
        here = [r for r in rows if (r["family"], r["noise"], r["runs"]) == (family, noise, runs)]
        if here:
            means = " | ".join(f"{np.mean([r[name] for r in here]):.2f}" for name in names)
            gap = text(interval([r["none"] - r["1"] for r in here]), "+")
            lines.append(f"| {family}, {100 * noise:g} % | {runs} | {len(here)} | {means} | {gap} |")
    if rows:
        lines += [
            "",
            "All together, a surface counted once (the mean of its noises), difference to the region as it is:",
            "",
        ]
        for name in names[1:]:
            by: dict[tuple, list[float]] = {}
            for r in rows:
                by.setdefault((r["family"], r["seed"], r["runs"]), []).append(r[name] - r["1"])
            lines.append(f"* {name}: {text(interval([np.mean(v) for v in by.values()]), '+')}, {len(by)} surfaces")
    HERE.with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
