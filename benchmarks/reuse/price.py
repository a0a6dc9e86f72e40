"""Is a set's price before training right? Every source of sft5 left out of base, priced, and then put back.

    OMP_NUM_THREADS=1 nice -n 5 python benchmarks/reuse/sources.py --train     # the runs; a stopped call goes on
    OMP_NUM_THREADS=1 nice -n 5 python benchmarks/reuse/price.py               # the prices

A source is priced as `ideal-proxy price` does, from gradients of the proxy that was trained on base without it; scale
and error are learned from the 17 others. The truth is what base with it loses against base without it, log loss, mean
over two seeds. Beside it: what the response fitted to the pool says (it saw mixtures with the source), and what one
pair of runs says of the other seed's. Rank correlations over the 18 sources, intervals by bootstrap over sources.

Legend: D sources, J capabilities, R runs.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm, spearmanr

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
from sources import BASE, OUT, without  # noqa: E402

REPEATS, LITTLE, ROWS = 400, 0.01, 32


def gradients(place: Path, found: dict[str, Any], seed: int) -> np.ndarray:
    """Change of log loss by one row of each source and of the one left out, (D, 2, J, D + 1): values and errors."""
    import functools

    from ideal_proxy import gradients as room
    from ideal_proxy.pipeline import price
    from ideal_proxy.swarm import load_context, load_result
    from ideal_proxy.terminal import Reporter

    # A smaller sample than the product's (400 rows of a set, 512 for the curvature): a proxy saw 48 rows of a set.
    price.SCALE_ROWS = ROWS
    room.InfluenceSettings = functools.partial(room.InfluenceSettings, factor_rows=6 * ROWS, shards=4)
    context = load_context(place / "run" / "swarm")
    run: Any = SimpleNamespace(
        folder=place / "run", domains=found["domains"], capabilities=found["capabilities"],
        plan={"fraction": found["fraction"]},
    )  # fmt: skip
    volumes, told = np.array(found["volumes"]), []
    for d, name in enumerate(found["domains"]):
        path = place / "gradients" / f"{name}-{seed}.npy"
        if not path.exists():
            at = [r for r in np.flatnonzero(volumes[:, d] == 0) if found["seeds"][r] == seed]
            rows = context.domain_rows()[d]
            proxy = load_result(run.folder, found["ids"][at[0]])
            both = price._by_gradients(run, proxy, rows.select(np.arange(min(len(rows), 60))), Reporter(quiet=True), d)
            path.parent.mkdir(exist_ok=True)
            np.save(path, np.array(both))
            print(name, flush=True)
        told.append(np.load(path))
    return np.array(told)


def fitted(found: dict[str, Any], keep: np.ndarray):
    from ideal_proxy.response import ResponseModel

    model = ResponseModel(available=np.array(found["available"]), base=np.array(found["base"]), random_state=0)
    V = pd.DataFrame(np.array(found["volumes"])[keep], columns=found["domains"])
    L = pd.DataFrame(np.array(found["losses"])[keep], columns=found["capabilities"])
    own = [-1] * len(found["capabilities"])
    return model.fit(V, L, seed_id=np.array(found["seeds"])[keep], baseline_loss=found["before"], own=own)


def ranked(truth: np.ndarray, told: np.ndarray) -> str:
    """Mean over capabilities of the rank correlation over sources, and of all pairs of both, with 90 % intervals."""
    rng = np.random.default_rng(0)

    def both(places: np.ndarray) -> list[float]:
        t, p = truth[places], told[places]
        each = [spearmanr(t[:, j], p[:, j]).statistic for j in range(t.shape[1])]
        return [float(np.mean(each)), float(spearmanr(t.ravel(), p.ravel()).statistic)]

    every = np.arange(len(truth))
    drawn = np.array([both(rng.choice(every, len(every))) for _ in range(REPEATS)])
    low, high = np.nanquantile(drawn, [0.05, 0.95], axis=0)
    value = both(every)
    each = ", ".join(f"{spearmanr(truth[:, j], told[:, j]).statistic:.2f}" for j in range(truth.shape[1]))
    return (
        f"mean over capabilities {value[0]:.2f} [{low[0]:.2f}, {high[0]:.2f}], all pairs {value[1]:.2f} "
        f"[{low[1]:.2f}, {high[1]:.2f}] ({each})"
    )


def main() -> None:
    from ideal_proxy.pipeline.price import LEVEL, calibrated
    from ideal_proxy.response import compare

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/reuse_sources"))
    parser.add_argument("--no-gradients", action="store_true")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    found = json.loads(OUT.read_text())
    told = None if options.no_gradients else gradients(options.out, found, min(found["seeds"]))
    base, lengths = np.array(found["base"]), np.array(found["lengths"])
    volumes, seeds, logs = np.array(found["volumes"]), np.array(found["seeds"]), np.log(np.array(found["losses"]))
    D = len(base)
    lacks = (volumes == 0).any(axis=1)
    at_base = np.isclose(volumes, base, atol=3 / found["fraction"]).all(axis=1)
    effects = np.array([
        [
            (logs[at_base & (seeds == s)] - logs[(volumes[:, d] == 0) & (seeds == s)][0]).mean(axis=0)
            for s in np.unique(seeds)
        ]
        for d in range(D)
    ])  # fmt: skip
    truth = effects.mean(axis=1)
    print(f"{(~lacks).sum()} runs of the pool, {lacks.sum()} without a source")
    print("one pair of runs tells the other seed's:", ranked(effects[:, 1], effects[:, 0]))
    if (~lacks).sum() > D // 2:
        model = fitted(found, ~lacks)
        said, inside = np.zeros_like(truth), np.zeros(truth.shape, dtype=bool)
        for d in range(D):
            ratios = compare(model, base, without(base, lengths, d), pairs=2).ratios
            said[d] = np.log([r.value for r in ratios])
            inside[d] = [np.log(r.lower) <= t <= np.log(r.upper) for r, t in zip(ratios, truth[d], strict=True)]
        print("the fit to the pool:", ranked(truth, said), f"inside {inside.mean():.0%}")
    if told is None:
        return
    new = BASE * told[:, 0, :, -1]
    print("gradients:", ranked(truth, new))
    for way in ("little", "whole"):
        value, half = np.zeros_like(truth), np.zeros_like(truth)
        for d in range(D):
            others = [k for k in range(D) if k != d]
            start = without(base, lengths, d)
            known = np.array([_fit_says(model, start, lengths, k, way) for k in others]).T
            scale, left = calibrated(BASE * told[d, 0][:, others], known)
            value[d] = scale * new[d]
            half[d] = norm.ppf(0.5 + LEVEL / 2) * np.hypot(left, scale * BASE * told[d, 1][:, -1])
        inside = np.abs(truth - value) <= half
        print(
            f"gradients, scale from {way}:", ranked(truth, value), f"inside {inside.mean():.0%}",
            f"slope of the truth {float((value * truth).sum() / (value**2).sum()):.2f}",
            f"half-width {np.median(half):.2%}, error {np.sqrt(((truth - value) ** 2).mean()):.2%}",
        )  # fmt: skip


def _fit_says(model, start: np.ndarray, lengths: np.ndarray, source: int, way: str) -> np.ndarray:
    """What the fit says of BASE rows of a source that is there: from a little more, or from all that base has."""
    from ideal_proxy.pipeline.price import in_place_of_base

    if way == "little":
        rows = LITTLE * float(start.sum())
        pair = in_place_of_base(start, lengths, source, rows), start
        return np.subtract(*(np.log(model.value_and_gradient(v)[0]) for v in pair)) * BASE / rows
    pair = start, without(start, lengths, source)
    return np.subtract(*(np.log(model.value_and_gradient(v)[0]) for v in pair)) * BASE / start[source]


if __name__ == "__main__":
    main()
