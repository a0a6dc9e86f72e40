"""What a small size shows of a larger one on real runs: RegMix's tables at 1M and 60M parameters.

    OMP_NUM_THREADS=1 python benchmarks/target/sizes.py

First s of every loss, from the 256 mixtures that were trained at both sizes: log changes at 1M over those at 60M,
through the origin. Then ladders: small runs from the training table and large ones from the test table in one fit,
and the share of true changes of 40 other mixtures at 60M in their 90 % intervals, against the large runs alone.
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
sys.path.insert(0, str(ROOT))
REGMIX = ROOT.parent / "shared" / "data" / "regmix"
ARMS = ((0, 18), (36, 12), (60, 18), (120, 18))


def table(name: str) -> pd.DataFrame:
    return pd.read_csv(REGMIX / f"{name}.csv", index_col=0)


def slopes(small: np.ndarray, large: np.ndarray) -> np.ndarray:
    """s of every loss, (J,)."""
    x, y = (np.log(losses) - np.log(losses).mean(axis=0) for losses in (large, small))
    return (x * y).sum(axis=0) / (x * x).sum(axis=0)


def ladder(seed: int, small: int, large: int) -> tuple[float, float, float]:
    """Share inside, error and half-width's standard deviation of 40 mixtures' changes."""
    from ideal_proxy.response import SMALLER_SIZE, ResponseModel, fit_kinds

    mixtures, losses, at_60, told = (
        table(name) for name in ("train_mixture_1m", "train_pile_loss_1m", "test_mixture_60m", "test_pile_loss_60m")
    )
    told = told[list(losses.columns)] if set(losses.columns) <= set(told.columns) else told
    losses = losses[list(told.columns)]
    rng = np.random.default_rng([seed, 3])
    theirs, order = rng.permutation(len(mixtures))[:small], rng.permutation(len(at_60))
    own, held = order[:large], order[large : large + 40]
    v = np.vstack([mixtures.to_numpy()[theirs], at_60.to_numpy()[own]])
    v /= v.sum(axis=1, keepdims=True)
    base = mixtures.to_numpy().mean(axis=0)
    names = [f"d{i}" for i in range(v.shape[1])]
    L = pd.DataFrame(np.vstack([losses.to_numpy()[theirs], told.to_numpy()[own]]), columns=list(told.columns))
    model = ResponseModel(unit="share", base=base / base.sum(), random_state=0)
    nothing = np.full(L.shape[1], np.nan)
    fit_kinds(
        model, pd.DataFrame(v, columns=names), L, ["small"] * small + [""] * large,
        {"small": SMALLER_SIZE} if small else {}, {"small": nothing}, run_id=np.arange(len(v)), own=[-1] * L.shape[1],
    )  # fmt: skip
    x = at_60.to_numpy()[held]
    x /= x.sum(axis=1, keepdims=True)
    true, point = np.log(told.to_numpy()[held]), np.log(model.predict(pd.DataFrame(x, columns=names)))
    draws = np.stack([np.log(model.draws_value_and_gradient(mixture)[0]) for mixture in x])
    error = (point - point.mean(axis=0)) - (true - true.mean(axis=0))
    width = (draws - draws.mean(axis=0)).std(axis=1)
    return float((np.abs(error) <= 1.645 * width).mean()), *(float(np.sqrt((a**2).mean())) for a in (error, width))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    if not REGMIX.exists():
        parser.error(f"{REGMIX} is missing")
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    small, large = table("test_pile_loss_1m"), table("test_pile_loss_60m")
    for name, s in zip(large.columns, slopes(small[list(large.columns)].to_numpy(), large.to_numpy()), strict=True):
        print(f"{name}: s = {s:.2f}")
    for few, many in ARMS:
        found = np.mean([ladder(seed, few, many) for seed in range(options.repeats)], axis=0)
        print(f"{few} at 1M + {many} at 60M: inside {found[0]:.0%}, error {found[1]:.4f}, width {found[2]:.4f}")


if __name__ == "__main__":
    main()
