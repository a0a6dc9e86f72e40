"""Levenberg–Marquardt for many small robust least-squares problems at once.

Legend: B problems (capability × start × fold), R residuals, P parameters.

``scipy.optimize.least_squares`` solves one problem a call and spends most of its time outside linear algebra at
these sizes; the fits of a table are hundreds of problems of the same shape, so all of them step together.  The tests
compare the two.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ideal_proxy.response.law import Array

MOST_CORES = 8  # each holds a part's Jacobian
HUBER = 2.0
"""Residuals beyond this many noise standard deviations count linearly."""


@dataclass(frozen=True, slots=True)
class Prior:
    """A Gaussian prior on θ, and which parameters must stay non-negative or fixed."""

    mean_BP: Array  # (B, P)
    precision_BPP: Array  # (B, P, P)
    nonnegative_P: NDArray[np.bool_]  # (P,) bool
    fixed_BP: NDArray[np.bool_]  # (B, P) bool, held at the start value


@dataclass(frozen=True, slots=True)
class Solution:
    """Where the solver stopped."""

    theta_BP: Array  # (B, P)
    cost_B: Array  # (B,) half the robust sum of squares plus half the prior's quadratic form
    hessian_BPP: Array  # (B, P, P) Gauss–Newton Hessian of the cost; fixed parameters have a unit row
    converged_B: NDArray[np.bool_]  # (B,) bool
    residual_BR: Array  # (B, R) model minus target, in units of the noise; zero where the weight is zero


def huber(residual: Array, weight: Array) -> tuple[Array, Array]:
    """Give Huber's loss and its reweighting."""
    size = np.abs(residual)
    inside = size <= HUBER
    loss = weight * np.where(inside, 0.5 * residual**2, HUBER * (size - 0.5 * HUBER))
    return loss, weight * np.where(inside, 1.0, HUBER / np.maximum(size, HUBER))


def solve(
    model: Callable[[Array, NDArray[np.intp]], tuple[Array, Array]],
    target_BR: Array,
    weight_BR: Array,
    prior: Prior,
    start_BP: Array,
    *,
    iterations: int = 60,
    tolerance: float = 1e-6,
    chunk: int = 2_000_000,
) -> Solution:
    """Minimise Σ_r w_r huber(f_r(θ) − t_r) + ½ (θ − μ)ᵀ Λ (θ − μ) for every problem."""
    B, P = start_BP.shape
    together = max(1, chunk // (target_BR.shape[1] * P))
    if together < B:

        def part(first: int) -> Solution:
            k = slice(first, min(first + together, B))
            own = Prior(prior.mean_BP[k], prior.precision_BPP[k], prior.nonnegative_P, prior.fixed_BP[k])

            def shifted(theta: Array, which: NDArray[np.intp]) -> tuple[Array, Array]:
                return model(theta, which + first)

            return solve(
                shifted, target_BR[k], weight_BR[k], own, start_BP[k], iterations=iterations, tolerance=tolerance,
                chunk=chunk,
            )  # fmt: skip

        # Parts know nothing of each other, so their numbers are the same however many cores share them.
        with ThreadPoolExecutor(min(MOST_CORES, os.cpu_count() or 1)) as cores:
            parts = list(cores.map(part, range(0, B, together)))
        return Solution(
            np.concatenate([p.theta_BP for p in parts]),
            np.concatenate([p.cost_B for p in parts]),
            np.concatenate([p.hessian_BPP for p in parts]),
            np.concatenate([p.converged_B for p in parts]),
            np.concatenate([p.residual_BR for p in parts]),
        )
    theta = start_BP.copy()
    damping = np.full(B, 1e-2)
    active = np.arange(B)
    done = np.zeros(B, dtype=bool)
    cost = np.full(B, np.inf)
    hessian = np.zeros((B, P, P))
    gradient = np.zeros((B, P))
    residual = np.zeros(target_BR.shape)
    eye = np.eye(P)

    def state(values: Array, which: NDArray[np.intp]) -> tuple[Array, Array, Array, Array]:
        fitted, jacobian = model(values, which)
        r = np.where(weight_BR[which] > 0, fitted - target_BR[which], 0.0)
        loss, w = huber(r, weight_BR[which])
        away = values - prior.mean_BP[which]
        pulled = np.einsum("bpq,bq->bp", prior.precision_BPP[which], away)
        total = loss.sum(axis=1) + 0.5 * (away * pulled).sum(axis=1)
        weighted = jacobian * w[:, :, None]
        H = np.matmul(weighted.transpose(0, 2, 1), jacobian) + prior.precision_BPP[which]
        g = np.einsum("brp,br->bp", weighted, r) + pulled
        residual_ok = np.where(np.isfinite(total), total, np.inf)
        return residual_ok, H, g, r

    cost[:], hessian[:], gradient[:], residual[:] = state(theta, active)
    for _ in range(iterations):
        if not len(active):
            break
        held = prior.fixed_BP[active] | (
            prior.nonnegative_P[None, :] & (theta[active] <= 0.0) & (gradient[active] > 0.0)
        )
        free = ~held
        H = hessian[active] * (free[:, :, None] & free[:, None, :])
        scale = np.maximum(np.einsum("bpp->bp", H), 1e-8)
        H = H + eye * (damping[active, None] * scale + held)[:, :, None]
        step = -np.linalg.solve(H, (gradient[active] * free)[:, :, None])[:, :, 0]
        step = np.clip(step, -3.0, 3.0)
        trial = theta[active] + step
        trial = np.where(prior.nonnegative_P[None, :], np.maximum(trial, 0.0), trial)
        moved = trial - theta[active]
        promised = -(gradient[active] * moved).sum(axis=1) - 0.5 * np.einsum(
            "bp,bpq,bq->b", moved, hessian[active], moved
        )
        new_cost, new_H, new_g, new_r = state(trial, active)
        better = new_cost < cost[active]
        took = active[better]
        theta[took], cost_before = trial[better], cost[took]
        gained = cost_before - new_cost[better]
        cost[took], hessian[took], gradient[took], residual[took] = (
            new_cost[better],
            new_H[better],
            new_g[better],
            new_r[better],
        )
        damping[took] = np.maximum(damping[took] * 0.2, 1e-9)
        damping[active[~better]] *= 6.0
        small = promised < tolerance * (1.0 + cost[active])
        small[better] &= gained < tolerance * (1.0 + cost[took])
        finished = small | (damping[active] > 1e9)
        done[active[finished]] = True
        active = active[~finished]
    held = prior.fixed_BP | (prior.nonnegative_P[None, :] & (theta <= 0.0) & (gradient > 0.0))
    free = ~held
    hessian = hessian * (free[:, :, None] & free[:, None, :]) + eye * held[:, :, None]
    return Solution(theta, cost, hessian, done, residual)
