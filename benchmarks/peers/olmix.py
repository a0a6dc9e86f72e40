"""Exponential-linear regression with a pull to the prior (Olmix; the form is Data Mixing Laws', arXiv 2403.16952).

Each capability: L_j(w) = c_j + exp(k_j + t_j·w) over shares w, by damped least squares with Huber's loss from three
starts. Then the mean of predicted relative losses + λ KL(w ‖ prior) is minimised exactly: it is convex. λ = 0.05 is
Olmix's own; 0.005 was tried beside it, because gains here are of a few per cent.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from peers.task import Array, OneSwarm, Runs, Task, dirichlet, in_the_box
from scipy.optimize import least_squares, minimize


def fit(shares_RD: Array, loss_R: Array) -> Array:
    """Parameters (c, k, t_1 … t_D)."""
    ones = np.column_stack([np.ones(len(loss_R)), shares_RD])
    best = None
    for part in (0.2, 0.5, 0.9):
        floor = loss_R.min() * part
        start = np.concatenate([[floor], np.linalg.lstsq(ones, np.log(loss_R - floor), rcond=1e-3)[0]])

        def error(p: Array) -> Array:
            return p[0] + np.exp(np.clip(ones @ p[1:], -50, 50)) - loss_R

        def slope(p: Array) -> Array:
            return np.column_stack([np.ones(len(loss_R)), np.exp(np.clip(ones @ p[1:], -50, 50))[:, None] * ones])

        found = least_squares(error, start, slope, loss="huber", f_scale=0.02, max_nfev=200, x_scale="jac")
        best = found if best is None or found.cost < best.cost else best
    return np.asarray(best.x)


def minimise(task: Task, laws_JP: Array, weights_J: Array, kl: float) -> Array:
    """The volumes that minimise Σ weight_j L_j(w) + λ KL(w ‖ prior) within the task's bounds."""
    prior = task.prior

    def value(w: Array) -> tuple[float, Array]:
        w = np.maximum(w, 1e-12)
        grown = weights_J * np.exp(np.clip(laws_JP[:, 1] + laws_JP[:, 2:] @ w, -50, 50))
        log = np.log(w / prior)
        return float(grown.sum() + kl * (w @ log)), grown @ laws_JP[:, 2:] + kl * (log + 1.0)

    bounds = list(zip(task.lower / task.total, task.upper / task.total, strict=True))
    one = {"type": "eq", "fun": lambda w: w.sum() - 1.0, "jac": lambda w: np.ones_like(w)}
    found = minimize(
        value,
        prior,
        jac=True,
        method="SLSQP",
        bounds=bounds,
        constraints=[one],
        options={"maxiter": 500, "ftol": 1e-12},
    )
    return task.within(np.clip(found.x, 0.0, None))


def propose(task: Task, runs: Runs, seed: int, kl: float) -> Array:  # noqa: ARG001
    shares = runs.volumes / task.total
    laws = np.array([fit(shares, loss) for loss in runs.losses.T])
    return minimise(task, laws, 1.0 / runs.losses.mean(axis=0) / runs.losses.shape[1], kl)


CONTENDERS = (
    OneSwarm("Olmix, KL 0.05", dirichlet, partial(propose, kl=0.05)),
    OneSwarm("Olmix, KL 0.005", dirichlet, partial(propose, kl=0.005)),
    OneSwarm("Olmix, KL 0.005, mixtures in the box", in_the_box, partial(propose, kl=0.005)),
)
