"""The response law across proxy sizes and budgets: how its parameters move, and what they become at full size.

Every parameter of the law is a line in the logarithm of the scales: θ(z) = θ_0 + Σ_k z_k · θ_k with z = log(scale /
reference). All runs of all sizes are fitted at once, because a single size's parameters are known only jointly (floor,
exponent and worth trade off against each other) and lines through separate fits would magnify that.

Legend: R runs, D domains, J capabilities, K scales (size, budget), P = 4 + D parameters, S posterior draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import least_squares

from ideal_proxy.errors import UserError
from ideal_proxy.response import ALPHA, FIRST_A, FLOOR, GAMMA, SPAN, Array, Volumes, evaluate

REPEAT_DECAY = (
    5.0  # ρ: further passes worth having, of the order that Muennighoff et al. (2023) report; not fitted here
)
STARTS = 4
DRAWS = 64
ROUNDS = 3  # of estimating the noise and fitting again
# Prior standard deviations of what a parameter changes by when a scale grows e-fold: levels move, shapes hardly do.
LEVEL_MOVES, SHAPE_MOVES = 0.5, 0.15


@dataclass(frozen=True, slots=True)
class SizeSurface:
    """The law at one full-size scale, as the optimiser takes it."""

    theta: Array  # (J, P) parameters there
    theta_draws: Array  # (S, J, P) posterior draws of them
    bounds: Array  # (J, 2) of the floor
    volumes: Volumes  # scale, available rows and repeats
    residual_scale_: Array  # (J,) noise of one run, nats

    @property
    def is_convex_(self) -> NDArray[np.bool_]:
        """Whether each loss is convex in the volumes (J,): there is no harm term here."""
        return np.ones(len(self.theta), dtype=bool)

    def value_and_gradient(self, v: Array, /) -> tuple[Array, Array]:
        """Predict losses and their derivatives."""
        return self._at(self.theta, self.bounds, v)

    def draws_value_and_gradient(self, v: Array, /) -> tuple[Array, Array]:
        """Predict posterior draws of the mean losses and their derivatives."""
        draws, capabilities, parameters = self.theta_draws.shape
        loss, slope = self._at(
            self.theta_draws.reshape(draws * capabilities, parameters), np.tile(self.bounds, (draws, 1)), v
        )
        return loss.reshape(draws, capabilities), slope.reshape(draws, capabilities, -1)

    def _at(self, theta: Array, bounds: Array, v: Array) -> tuple[Array, Array]:
        u, du_dv, _ = self.volumes.effective(np.asarray(v, dtype=float)[None])
        found = evaluate(theta, bounds, self.volumes, u)
        return found.loss_JR[:, 0], found.by_u()[:, 0] * du_dv


class SizeLaw:
    """Fits the law to runs at several proxy sizes or budgets."""

    def __init__(self, *, available: Array, base: Array, random_state: int = 0) -> None:
        self.available = np.asarray(available, dtype=float)
        self.base = np.asarray(base, dtype=float)
        self.random_state = random_state

    def fit(self, V: Array, L: Array, scales: Array) -> SizeLaw:
        """Fit how the parameters move."""
        V, L = np.asarray(V, dtype=float), np.asarray(L, dtype=float)
        scales = np.asarray(scales, dtype=float).reshape(len(V), -1)
        if not (scales > 0).all() or not np.isfinite(L).all():
            raise UserError("sizes and budgets must be positive and losses finite; leave failed runs out")
        distinct, counts = np.unique(scales, axis=0, return_counts=True)
        if len(distinct) < 2:
            raise UserError("all runs have one size and budget; extrapolation needs swarms at two or more")
        if counts.min() < 4:
            raise UserError(f"one size has only {counts.min()} runs; give every size at least 4")
        self.reference_ = np.exp(np.log(scales).mean(axis=0))
        z_RK = np.log(scales / self.reference_)
        self.volumes_ = Volumes(
            float(self.base[self.base > 0].mean()), 0.0, self.available, np.full(V.shape[1], REPEAT_DECAY)
        )
        u_RD = self.volumes_.effective(V)[0]
        self.bounds_ = np.column_stack([np.zeros(L.shape[1]), 1.5 * L.max(axis=0)])
        rng = np.random.default_rng(self.random_state)
        fitted = [self._fit_one(u_RD, L[:, j], z_RK, self.bounds_[j : j + 1], rng) for j in range(L.shape[1])]
        self.theta_ = np.stack([theta for theta, _, _ in fitted])
        self.covariance_ = np.stack([covariance for _, covariance, _ in fitted])
        self.noise_ = np.array([noise for _, _, noise in fitted])
        return self

    def at(self, scale: Sequence[float] | float, *, available: Array | None = None) -> SizeSurface:
        """Give the law at a size and budget."""
        z = np.log(np.atleast_1d(np.asarray(scale, dtype=float)) / self.reference_)
        weights = np.concatenate([[1.0], z])
        parts = len(weights)
        rng = np.random.default_rng(self.random_state + 1)
        draws = np.stack(
            [
                rng.multivariate_normal(theta, covariance, size=DRAWS, method="eigh")
                for theta, covariance in zip(self.theta_, self.covariance_, strict=True)
            ],
            axis=1,
        )
        volumes = self.volumes_
        if available is not None:
            volumes = Volumes(volumes.scale, volumes.kappa, np.asarray(available, dtype=float), volumes.rho)
        return SizeSurface(
            theta=np.einsum("k,jkp->jp", weights, self.theta_.reshape(len(self.theta_), parts, -1)),
            theta_draws=np.einsum("k,sjkp->sjp", weights, draws.reshape(*draws.shape[:2], parts, -1)),
            bounds=self.bounds_,
            volumes=volumes,
            residual_scale_=self.noise_,
        )

    def _fit_one(
        self, u_RD: Array, loss_R: Array, z_RK: Array, bounds: Array, rng: np.random.Generator
    ) -> tuple[Array, Array, float]:
        """Fit one capability; the noise is estimated from the residuals and the fit repeated."""
        D, K = u_RD.shape[1], z_RK.shape[1]
        P = FIRST_A + D
        weight_RK1 = np.column_stack([np.ones(len(z_RK)), z_RK])
        centre, width = self._prior(loss_R, bounds[0], D, K)
        noise = 0.02 * float(loss_R.mean())

        def predict(theta: Array) -> tuple[Array, Array]:
            theta_RP = weight_RK1 @ theta.reshape(1 + K, P)
            # One stacked "capability" a run, each at its own mixture: the diagonal of what evaluate gives.
            loss = np.empty(len(u_RD))
            slope = np.empty((len(u_RD), P))
            for scale, rows in groups:
                found = evaluate(theta_RP[scale : scale + 1], bounds, self.volumes_, u_RD[rows])
                loss[rows], slope[rows] = found.loss_JR[0], found.by_theta()[0]
            return loss, slope

        _, inverse = np.unique(z_RK, axis=0, return_inverse=True)
        inverse = inverse.reshape(-1)
        groups = [
            (int(np.flatnonzero(inverse == g)[0]), np.flatnonzero(inverse == g)) for g in range(inverse.max() + 1)
        ]

        def residuals(theta: Array) -> Array:
            return np.concatenate([(predict(theta)[0] - loss_R) / noise, (theta - centre) / width])

        def jacobian(theta: Array) -> Array:
            slope = predict(theta)[1]
            by_theta = (weight_RK1[:, :, None] * slope[:, None, :]).reshape(len(u_RD), -1)
            return np.concatenate([by_theta / noise, np.diag(1 / width)])

        best: Any = None
        starts = [centre, *(centre + 0.5 * width * rng.standard_normal(len(centre)) for _ in range(STARTS - 1))]
        for turn in range(ROUNDS):
            for start in starts if turn == 0 else [best.x]:
                found = least_squares(residuals, start, jac=jacobian, method="trf", max_nfev=400)
                if turn > 0 or best is None or found.cost < best.cost:
                    best = found
            error = predict(best.x)[0] - loss_R
            informed = np.linalg.solve(best.jac.T @ best.jac, best.jac[: len(u_RD)].T @ best.jac[: len(u_RD)])
            free = max(2.0, len(u_RD) - float(np.trace(informed)))
            noise = max(float(np.sqrt(error @ error / free)), 1e-6 * float(loss_R.mean()))
        best = least_squares(residuals, best.x, jac=jacobian, method="trf", max_nfev=400)
        covariance = np.linalg.inv(best.jac.T @ best.jac)
        return best.x, 0.5 * (covariance + covariance.T), noise

    @staticmethod
    def _prior(loss_R: Array, bounds: Array, D: int, K: int) -> tuple[Array, Array]:
        """Weak priors: the floor at about two thirds of the least loss, the law's shape near its usual values."""
        P = FIRST_A + D
        share = 0.65 * float(loss_R.min()) / float(bounds[1])
        centre, width = np.zeros((1 + K, P)), np.empty((1 + K, P))
        centre[0, FLOOR], width[0, FLOOR] = np.log(share / (1 - share)), 0.8
        centre[0, SPAN], width[0, SPAN] = np.log(float(loss_R.max())), 1.0
        centre[0, ALPHA], width[0, ALPHA] = np.log(0.5), 0.7
        centre[0, GAMMA], width[0, GAMMA] = 0.0, 0.7
        centre[0, FIRST_A:], width[0, FIRST_A:] = 0.0, 2.5
        width[1:] = SHAPE_MOVES
        width[1:, [FLOOR, SPAN]] = LEVEL_MOVES
        return centre.ravel(), width.ravel()


@dataclass(frozen=True, slots=True)
class RankAgreement:
    """Whether two scales rank mixtures alike."""

    scales: tuple[float, float]  # the two
    mixtures: int  # number of mixtures compared
    correlation: Array  # (J,) Spearman correlation of the losses
    by_laws: bool = False  # the losses are those of each size's own fitted law, for want of mixtures that both trained

    @property
    def agrees(self) -> bool:
        """Whether no capability's ranking differs much (below 0.8)."""
        return bool((self.correlation >= 0.8).all())

    def sentence(self, capabilities: Sequence[str]) -> str:
        """Say it."""
        shown = ", ".join(f"{name} {value:.2f}" for name, value in zip(capabilities, self.correlation, strict=True))
        head = "rank mixtures alike" if self.agrees else "DISAGREE on the ranking of mixtures"
        low, high = self.scales
        how = ", by their fitted laws" if self.by_laws else ""
        return f"sizes {low:g} and {high:g} {head} (Spearman over {self.mixtures} mixtures{how}: {shown})"


def rank_agreement(V: Array, L: Array, sizes: Array, *, by_laws: bool = False) -> list[RankAgreement]:
    """Compare the ranking of equal mixtures between neighbouring sizes."""
    V, L, sizes = (np.asarray(part, dtype=float) for part in (V, L, sizes))
    found = []
    by_size = pd.DataFrame(L).groupby([sizes, *np.round(V, 6).T]).mean()  # runs of one mixture as their mean
    for low, high in pairwise(np.unique(sizes)):
        left, right = by_size.loc[low], by_size.loc[high]
        common = left.index.intersection(right.index)
        if len(common) < 4:
            continue
        correlation = left.loc[common].corrwith(right.loc[common], method="spearman").to_numpy()
        found.append(RankAgreement((float(low), float(high)), len(common), correlation, by_laws))
    return found
