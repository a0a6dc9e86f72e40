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
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ideal_proxy.response.law import Array

MOST_CORES = 8  # each holds a part's Jacobian
LARGE = 100_000
"""Above so many residuals × parameters steps are found with a Hessian of single precision."""
HUBER = 2.0
"""Residuals beyond this many noise standard deviations count linearly."""


Jacobian: TypeAlias = Callable[[NDArray[np.intp] | slice, Array], Array]
"""Gives the Jacobian (B, R, P) of some of the problems that a model was asked about, its rows times a factor (B, R)."""


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
    model: Callable[[Array, NDArray[np.intp]], tuple[Array, Jacobian]],
    target_BR: Array,
    weight_BR: Array,
    prior: Prior,
    start_BP: Array,
    *,
    iterations: int = 60,
    tolerance: float = 1e-6,
    exact: bool = True,
    chunk: int = 2_000_000,
) -> Solution:
    """Minimise Σ_r w_r huber(f_r(θ) − t_r) + ½ (θ − μ)ᵀ Λ (θ − μ) for every problem."""
    B, P = start_BP.shape
    together = max(1, chunk // (target_BR.shape[1] * P))
    if together < B:

        def part(first: int) -> Solution:
            k = slice(first, min(first + together, B))
            own = Prior(prior.mean_BP[k], prior.precision_BPP[k], prior.nonnegative_P, prior.fixed_BP[k])

            def shifted(theta: Array, which: NDArray[np.intp]) -> tuple[Array, Jacobian]:
                return model(theta, which + first)

            return solve(
                shifted, target_BR[k], weight_BR[k], own, start_BP[k], iterations=iterations, tolerance=tolerance,
                chunk=chunk, exact=exact,
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
    rough = target_BR.shape[1] * P > LARGE

    def move(values: Array, which: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Take the values that lower the cost, and find the derivatives there."""
        fitted, jacobian = model(values, which)
        r = np.where(weight_BR[which] > 0, fitted - target_BR[which], 0.0)
        loss, w = huber(r, weight_BR[which])
        away = values - prior.mean_BP[which]
        pulled = np.matmul(prior.precision_BPP[which], away[:, :, None])[:, :, 0]
        total = loss.sum(axis=1) + 0.5 * (away * pulled).sum(axis=1)
        total = np.where(np.isfinite(total), total, np.inf)
        better = total < cost[which]
        part: NDArray[np.intp] | slice = slice(None) if better.all() else np.flatnonzero(better)
        if better.any():
            took, root = which[part], np.sqrt(w[part])
            J = jacobian(part, root)
            gradient[took] = np.matmul((root * r[part])[:, None], J)[:, 0] + pulled[part]
            if rough:
                J = J.astype(np.float32)
            hessian[took] = np.matmul(J.transpose(0, 2, 1), J) + prior.precision_BPP[took]
            theta[took], cost[took], residual[took] = values[part], total[part], r[part]
        return np.asarray(better)

    move(theta, active)
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
        curved = np.matmul(hessian[active], moved[:, :, None])[:, :, 0]
        promised = -((gradient[active] + 0.5 * curved) * moved).sum(axis=1)
        before = cost[active]
        better = move(trial, active)
        took = active[better]
        gained = (before - cost[active])[better]
        damping[took] = np.maximum(damping[took] * 0.2, 1e-9)
        damping[active[~better]] *= 6.0
        small = promised < tolerance * (1.0 + cost[active])
        small[better] &= gained < tolerance * (1.0 + cost[took])
        finished = small | (damping[active] > 1e9)
        done[active[finished]] = True
        active = active[~finished]
    if rough and exact:
        for b in np.arange(B):  # one at a time: what is returned is exact
            J = model(theta[b : b + 1], np.array([b]))[1](
                slice(None), np.sqrt(huber(residual[b : b + 1], weight_BR[b : b + 1])[1])
            )[0]
            hessian[b] = J.T @ J + prior.precision_BPP[b]
    held = prior.fixed_BP | (prior.nonnegative_P[None, :] & (theta <= 0.0) & (gradient > 0.0))
    free = ~held
    hessian = hessian * (free[:, :, None] & free[:, None, :]) + eye * held[:, :, None]
    return Solution(theta, cost, hessian, done, residual)
