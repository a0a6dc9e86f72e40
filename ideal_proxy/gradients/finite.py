"""Responses by re-runs: the truth that the other estimators are judged by. Legend: J capabilities, D domains."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from ideal_proxy.errors import UserError
from ideal_proxy.gradients.records import Cost, Floats, ResponseMatrix, names_of, shares

Runner = Callable[[Sequence[tuple[Floats, int]]], npt.NDArray[np.float64]]


def finite_responses(
    run: Runner,
    domains: Sequence[str],
    capabilities: Sequence[str],
    volumes: npt.ArrayLike,
    *,
    seeds: Sequence[int] = (0,),
    step: float = 0.25,
    supervised_tokens: npt.ArrayLike | None = None,
    tokens_per_run: int = 0,
) -> ResponseMatrix:
    """Responses by symmetric re-runs with common random numbers: R with rows added, M at a fixed total."""
    # Each derivative is (L(+h) − L(−h)) / 2h in log volume, h the step, error O(h²); its standard error is over seeds.
    # M, R and τ are measured independently of each other, so that R = M + τ qᵀ is a check. Cost: 4D + 2 trainings a
    # seed. `run` trains a proxy for each (volumes (D,) rows, seed), in any order, and gives reference losses (runs, J).
    started = time.monotonic()
    if not step > 0 or not len(seeds):
        raise UserError(f"the step is {step} with {len(seeds)} seeds; give a positive step and at least one seed")
    base = np.asarray(volumes, dtype=np.float64)
    D = len(base)
    q_D, w_D = shares(base, base if supervised_tokens is None else supervised_tokens)
    moved: list[Floats] = []
    for i in range(D):
        for sign in (1, -1):
            added = base.copy()
            added[i] *= np.exp(sign * step)
            moved += [added, added * (base.sum() / added.sum())]
    moved += [base * np.exp(step), base * np.exp(-step)]
    losses = np.asarray(run([(each, seed) for seed in seeds for each in moved]), dtype=np.float64)
    losses = losses.reshape(len(seeds), len(moved), len(capabilities))
    pairs = losses[:, :-2].reshape(len(seeds), D, 2, 2, len(capabilities))  # seed, domain, sign, R or M, capability
    slopes = (pairs[:, :, 0] - pairs[:, :, 1]) / (2 * step)
    tau_XJ = (losses[:, -2] - losses[:, -1]) / (2 * step)

    def over_seeds(values: Floats) -> tuple[Floats, Floats]:
        spread = values.std(0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.full(values.shape[1:], np.nan)
        return values.mean(0), np.asarray(spread)

    R, se_R = over_seeds(slopes[:, :, 0].transpose(0, 2, 1))
    M, se = over_seeds(slopes[:, :, 1].transpose(0, 2, 1))
    cost = Cost(tokens_per_run * len(moved) * len(seeds), time.monotonic() - started)
    return ResponseMatrix(
        "finite", names_of(domains), names_of(capabilities), M, se, q_D, w_D, cost, R, tau_XJ.mean(0), se_R
    )
