"""Regret over compute: what each contender's mixture loses beside the best one, for as many runs as it was given.

    OMP_NUM_THREADS=1 nice -n 5 python benchmarks/proof/efficiency.py --repeats 20

Surfaces of known truth (`benchmarks/surfaces.py`), four families at two noises of a run, one surface a repeat; every
contender (`benchmarks/peers/`) spends the same number of runs on the same task, lays them out as its paper has it, and
its one mixture is judged by the truth. Regret is in points: per cent of base's objective. RegMix's tables (512 real
runs of 1M models): a contender gets a random subset of the training runs and chooses among the 256 held-out real
mixtures; regret is of each of 13 losses by itself, in per cent of the best. A row a search is appended to
`efficiency.jsonl`; what stands there is not done again. `--show` writes table, JSON and picture alone.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import sys
import time
import warnings
from importlib.metadata import version
from itertools import product
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "benchmarks"))
HERE = Path(__file__)
DATA = ROOT.parent / "shared" / "data" / "regmix"
FAMILIES, NOISES = ("law", "interactions", "harm", "peak"), (0.006, 0.03)
BUDGETS = {
    "ours": (8, 16, 32, 64),
    "ours, one round": (32, 64),
    "ours, region 1.5 times as wide": (16, 32),
    "GP with expected improvement": (16, 32, 64),
    "Olmix, KL 0.05": (32,),
    "Olmix, KL 0.005": (16, 32, 64, 128),
    "Olmix, KL 0.005, mixtures in the box": (8, 16, 32, 64, 128),
    "RegMix": (16, 32, 128, 256, 512),
    "RegMix, mixtures in the box": (16, 32, 64, 128, 256, 512),
    "best of random": (16, 32, 64, 128, 256, 512),
    "base": (0,),
}
TABLES = "RegMix's tables"
TABLE_BUDGETS = {"ours": (8, 16, 32, 64, 128), "LightGBM": (16, 32, 64, 128, 256, 512), "exp-linear": (32, 64, 128),
                 "GP of log shares": (16, 32, 64, 128), "best of random": (16, 64, 256)}  # fmt: skip
WITHIN = 0.1  # points that count as the same regret
RIVALS = ("RegMix", "RegMix, mixtures in the box")
COLOURS = {"ours": "C0", "ours, one round": "C9", "GP with expected improvement": "C2", "Olmix, KL 0.005": "C1",
           "Olmix, KL 0.05": "C5", "Olmix, KL 0.005, mixtures in the box": "C8", "RegMix": "C3",
           "RegMix, mixtures in the box": "C6", "best of random": "C7"}  # fmt: skip


def contenders() -> dict:
    from peers import admire, fixed, olmix, ours, regmix

    groups = (fixed, regmix, olmix, admire, ours)
    return {peer.name: peer for group in groups for peer in group.CONTENDERS}


def task_of(surface):
    from peers.task import Task
    from surfaces import SPREAD

    base = surface.base
    return Task(base, 100.0 * base, base * np.exp(-SPREAD), base * np.exp(SPREAD))


def one_search(family: str, noise: float, seed: int, name: str, runs: int) -> dict:
    from surfaces import Surface

    surface = Surface(family, seed)
    if name == "base":
        return {"regret": surface.regret(surface.base), "best": 100.0 * surface.best.predicted_gain, "seconds": 0.0}
    rng = np.random.default_rng([seed, runs, round(1e4 * noise), FAMILIES.index(family), 29])
    start = time.process_time()
    found = contenders()[name].search(task_of(surface), lambda v, _: surface.observe(v, noise, rng), runs, seed)
    return {
        "regret": surface.regret(found), "best": 100.0 * surface.best.predicted_gain,
        "seconds": time.process_time() - start,
    }  # fmt: skip


def one_table(name: str, runs: int, seed: int) -> dict:
    """Regret on RegMix's tables, of each loss by itself: the mean over 13 losses, per cent of the best loss."""
    sys.path.insert(0, str(ROOT / "benchmarks" / "response"))
    from published_tables import METHODS, read

    V, L, T, truth = (read(f"{part}_1m.csv")[0][:, 1:] for part in (
        "train_mixture", "train_pile_loss", "test_mixture", "test_pile_loss"))  # fmt: skip
    V, T = V / V.sum(axis=1, keepdims=True), T / T.sum(axis=1, keepdims=True)
    rng = np.random.default_rng([seed, 5])
    start = time.process_time()
    if name == "best of random":  # so many of the held-out mixtures are trained, the best is taken
        some = rng.permutation(len(T))[:runs]
        chosen = some[truth[some].argmin(axis=0)]
    else:
        some = rng.permutation(len(V))[:runs]
        chosen = METHODS[name](V[some], L[some], T)[0].argmin(axis=0)
    taken = truth[chosen, np.arange(truth.shape[1])]
    regret = float(100.0 * (taken / truth.min(axis=0) - 1.0).mean())
    return {"regret": regret, "best": 0.0, "seconds": time.process_time() - start}


def wanted(repeats: int):
    """All searches, the decisive ones first: ours at 16 runs, RegMix's recipe at 256, the others at 16."""
    everything = []
    for seed, family, noise in product(range(repeats), FAMILIES, NOISES):
        everything += [(family, noise, seed, name, runs) for name, some in BUDGETS.items() for runs in some]
    for seed in range(repeats if DATA.is_dir() else 0):
        for name, some in TABLE_BUDGETS.items():
            everything += [(TABLES, 0.0, seed, name, runs) for runs in some if runs < 512 or seed == 0]
    return sorted(everything, key=lambda search: (not is_decisive(*search), search[2]))


def is_decisive(family: str, noise: float, seed: int, name: str, runs: int) -> bool:  # noqa: ARG001
    return runs == (256 if name in {*RIVALS, "LightGBM"} else 0 if name == "base" else 16) and "0.05" not in name


def main() -> None:
    import jsonl

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--hours", type=float, default=24.0, help="then stop; the next call goes on")
    parser.add_argument("--show", action="store_true", help="write what was recorded, search nothing")
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    raw = HERE.with_suffix(".jsonl")
    rows = jsonl.read(raw)
    keys = ("family", "noise", "seed", "name", "runs")
    done, stop = {tuple(row[key] for key in keys) for row in rows}, time.monotonic() + 3600 * given.hours
    for values in () if given.show else wanted(given.repeats):
        if values in done or time.monotonic() > stop:
            continue
        family, _, seed, name, runs = values
        found = one_table(name, runs, seed) if family == TABLES else one_search(*values)
        rows.append(dict(zip(keys, values, strict=True)) | {k: round(v, 4) for k, v in found.items()})
        jsonl.add(raw, rows[-1])
    write(rows)


def gather(rows: list[dict]) -> dict[tuple, dict[int, float]]:
    """Regret by family, noise, contender and runs, then by seed."""
    told: dict[tuple, dict[int, float]] = {}
    for row in rows:
        told.setdefault((row["family"], row["noise"], row["name"], row["runs"]), {})[row["seed"]] = row["regret"]
    return told


def interval(values) -> tuple[float, float, float]:
    """Mean and its 95 % interval by Student's t; no interval of a single value."""
    from scipy.stats import t

    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, np.nan, np.nan
    half = float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return mean, mean - half, mean + half


def text(bound: tuple[float, float, float], sign: str = "") -> str:
    mean, low, high = bound
    return f"{mean:{sign}.2f}" + ("" if np.isnan(low) else f" [{low:{sign}.2f}, {high:{sign}.2f}]")


def against(told: dict, cell: tuple[str, float], runs: int, rivals, their_runs: int) -> dict | None:
    """Ours at some runs against the best of some rivals at so many runs, paired over repeats."""
    mine = told.get((*cell, "ours", runs))
    theirs = {name: told[*cell, name, their_runs] for name in rivals if (*cell, name, their_runs) in told}
    if not mine or not theirs:
        return None
    name = min(theirs, key=lambda key: np.mean(list(theirs[key].values())))
    seeds = sorted(set(mine) & set(theirs[name]))
    if not seeds:
        return None
    difference = interval([mine[s] - theirs[name][s] for s in seeds])
    ours, rival = (float(np.mean([part[s] for s in seeds])) for part in (mine, theirs[name]))
    return {
        "surface": title(cell), "runs": runs, "their_runs": their_runs, "ours": ours, "rival": name, "theirs": rival,
        "difference": difference, "n": len(seeds),
    }  # fmt: skip


def together(told: dict, runs: int, rivals, their_runs: int) -> dict | None:
    """All surfaces together: a surface counts once, as the mean of its differences at both noises."""
    surfaces: dict[tuple, list[tuple[float, float]]] = {}
    for family, noise in product(FAMILIES, NOISES):
        cell = (family, noise)
        mine = told.get((*cell, "ours", runs), {})
        for seed, regret in mine.items():
            found = [told.get((*cell, name, their_runs), {}).get(seed) for name in rivals]
            if rivals and None not in found:
                surfaces.setdefault((family, seed), []).append((regret, found))
    if not surfaces:
        return None
    pairs = [(np.mean([a for a, _ in v]), np.mean([b for _, b in v], axis=0)) for v in surfaces.values()]
    best = int(np.argmin(np.mean([b for _, b in pairs], axis=0)))
    ours, rival = np.array([a for a, _ in pairs]), np.array([b[best] for _, b in pairs])
    return {
        "surface": "all together", "runs": runs, "their_runs": their_runs, "ours": float(ours.mean()),
        "rival": rivals[best], "theirs": float(rival.mean()), "difference": interval(ours - rival), "n": len(pairs),
    }  # fmt: skip


def title(cell: tuple[str, float]) -> str:
    return cell[0] if cell[0] == TABLES else f"{cell[0]}, {100 * cell[1]:g} %"


def comparison(found: list[dict], verdict) -> list[str]:
    """A table of comparisons with what each says."""
    return [
        f"| {f['surface']} | {f['runs']} | {f['their_runs']} | {f['ours']:.2f} | {f['theirs']:.2f} ({f['rival']}) "
        f"| {text(f['difference'], '+')} | {f['n']} | {verdict(f)} |"
        for f in found
    ]  # fmt: skip


def held(found: dict) -> str:
    _, low, high = found["difference"]
    return "open" if np.isnan(low) else "yes" if high <= WITHIN else "no" if low > WITHIN else "open"


def first(found: dict) -> str:
    _, low, high = found["difference"]
    return (
        "too few repeats" if np.isnan(low) else "ours" if high < 0 else f"**{found['rival']}**" if low > 0 else "tied"
    )


def write(rows: list[dict]) -> None:
    told = gather(rows)
    cells = [*product(FAMILIES, NOISES), (TABLES, 0.0)]
    lines = [
        "# Regret over compute", "",
        "`OMP_NUM_THREADS=1 nice -n 5 python benchmarks/proof/efficiency.py`, raw rows in `efficiency.jsonl`.",
        f"{platform.machine()}, one of {os.cpu_count()} cores, all shared, Python {platform.python_version()}, "
        + ", ".join(f"{p} {version(p)}" for p in ("numpy", "scipy", "scikit-learn", "lightgbm")) + ".", "",
        "Mean regret in points [95 % t-interval of the repeats]; a run costs the same for everybody. Every",
        "contender is one of `benchmarks/peers/`; \"in the box\" gives a rival mixtures that fill the bounds evenly in",
        "place of its own Dirichlet ones, so that it is not judged by a design that the bounds cut.", "",
        "## The same regret as RegMix's recipe at a sixteenth of its compute?", "",
        "Ours at R runs against the better of RegMix's two variants at 16 R, paired over repeats; below 0 is better.",
        f"Held where the interval's upper end is at most {WITHIN} points.", "",
        "| surface | ours' runs | RegMix's | ours | RegMix | difference | n | held |",
        "|---|---:|---:|---|---|---|---:|---|",
    ]  # fmt: skip
    rivals = {cell: ("LightGBM",) if cell[0] == TABLES else RIVALS for cell in cells}
    claims = [f for cell, r in product(cells, (8, 16, 32)) if (f := against(told, cell, r, rivals[cell], 16 * r))]
    claims += [f for r in (8, 16, 32) if (f := together(told, r, RIVALS, 16 * r))]
    names = sorted({key[2] for key in told if not key[2].startswith("ours")})
    firsts = [f for cell, r in product(cells, (16, 32, 64)) if (f := against(told, cell, r, names, r))]
    others = tuple(name for name in BUDGETS if not name.startswith("ours") and name != "base")
    firsts += [
        f for r in (16, 32, 64) if (f := together(told, r, tuple(name for name in others if r in BUDGETS[name]), r))
    ]
    lines += [*comparison(claims, held), "", "## Who is first at equal compute?", "",
              "The best other contender at the same number of runs, chosen after seeing all (which flatters it).", "",
              "| surface | ours' runs | its | ours | best other | difference | n | first |",
              "|---|---:|---:|---|---|---|---:|---|", *comparison(firsts, first), ""]  # fmt: skip
    summary = []
    for cell in cells:
        here = {key[2:]: list(value.values()) for key, value in told.items() if key[:2] == cell}
        if not here:
            continue
        budgets = sorted({runs for _, runs in here if runs})
        best = np.mean([row["best"] for row in rows if (row["family"], row["noise"]) == cell])
        about = "" if cell[0] == TABLES else f"; base's regret, the most there is to gain, is {best:.2f}"
        count = max(map(len, here.values()))
        head = "| contender | " + " | ".join(map(str, budgets)) + " |"
        lines += [
            f"## {title(cell)}",
            "",
            f"Up to {count} repeats{about}.",
            "",
            head,
            "|---" * (len(budgets) + 1) + "|",
        ]
        for name in dict.fromkeys(name for name, runs in here if runs):
            bounds = {runs: interval(here[name, runs]) for runs in budgets if (name, runs) in here}
            cellsof = [text(bounds[runs]) if runs in bounds else "" for runs in budgets]
            lines.append(f"| {name} | " + " | ".join(cellsof) + " |")
            summary += [
                {"surface": title(cell), "contender": name, "runs": runs, "n": len(here[name, runs]), "regret": bound}
                for runs, bound in bounds.items()
            ]
        lines.append("")
    HERE.with_suffix(".md").write_text("\n".join(lines))
    told_json = {"rows": len(rows), "claim": claims, "first": firsts, "summary": summary}
    HERE.with_suffix(".json").write_text(json.dumps(told_json, indent=1).replace("NaN", "null") + "\n")
    plot(told)


def plot(told: dict) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 4, figsize=(15, 7), sharex=True, constrained_layout=True)
    for (column, family), (row, noise) in product(enumerate(FAMILIES), enumerate(NOISES)):
        axis = axes[row, column]
        for name, colour in COLOURS.items():
            runs = sorted(key[3] for key in told if key[:3] == (family, noise, name))
            if not runs or name in {"ours, one round", "Olmix, KL 0.05"}:
                continue
            stats = np.array([interval(list(told[family, noise, name, r].values())) for r in runs])
            ours = name == "ours"
            axis.plot(
                runs, stats[:, 0], color=colour, lw=2.8 if ours else 1.4, marker="o", ms=5 if ours else 3, label=name
            )
            axis.fill_between(runs, stats[:, 1], stats[:, 2], color=colour, alpha=0.18 if ours else 0.08, lw=0)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks([8, 16, 32, 64, 128, 256, 512, 1024], [8, 16, 32, 64, 128, 256, 512, 1024], fontsize=8)
        axis.set_title(f"{family}, {100 * noise:g} % noise of a run", fontsize=10)
        axis.grid(alpha=0.3, which="both")
    axes[0, 0].set_ylabel("regret, points of base's objective")
    axes[1, 0].set_ylabel("regret, points of base's objective")
    for axis in axes[1]:
        axis.set_xlabel("proxy runs spent")
    axes[0, 0].legend(fontsize=7)
    figure.savefig(HERE.with_suffix(".png"), dpi=100)
    plt.close(figure)
    figure, axis = plt.subplots(figsize=(7.2, 3.6), constrained_layout=True)
    for name in ("ours", "GP with expected improvement", "Olmix, KL 0.005, mixtures in the box",
                 "RegMix, mixtures in the box", "best of random"):  # fmt: skip
        runs, stats = missed(told, name)
        ours, colour = name == "ours", COLOURS[name]
        axis.plot(runs, stats[:, 0], color=colour, lw=2.8 if ours else 1.4, marker="o", ms=5 if ours else 3,
                  label=name.replace(", mixtures in the box", ""))  # fmt: skip
        axis.fill_between(runs, stats[:, 1], stats[:, 2], color=colour, alpha=0.2 if ours else 0.08, lw=0)
    axis.set_xscale("log", base=2)
    axis.set_xticks([8, 16, 32, 64, 128, 256, 512], [8, 16, 32, 64, 128, 256, 512])
    axis.set_ylim(0, 100)
    axis.set_xlabel("proxy runs spent")
    axis.set_ylabel("of the reachable gain missed, %")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.savefig(HERE.with_name("efficiency_curve.png"), dpi=110)
    plt.close(figure)


def missed(told: dict, name: str) -> tuple[list[int], np.ndarray]:
    """Regret as a share of base's, mean over the eight surfaces a repeat, by runs; repeats that have all of them."""
    found, cells = {}, list(product(FAMILIES, NOISES))
    for runs in BUDGETS[name]:
        parts = [(told.get((*cell, name, runs), {}), told.get((*cell, "base", 0), {})) for cell in cells]
        seeds = set.intersection(*(set(mine) & set(base) for mine, base in parts))
        if seeds:
            shares = [100 * np.mean([mine[s] / base[s] for mine, base in parts]) for s in sorted(seeds)]
            found[runs] = interval(shares)
    return list(found), np.array(list(found.values())).reshape(-1, 3)


if __name__ == "__main__":
    main()
