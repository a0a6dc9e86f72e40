"""The response of a full-size model around the mixture it was trained on: the proxies' law, corrected by what was seen.

    log L_j(v)/L_j(v_t) = c_j · log L^law_j(v)/L^law_j(v_t) + Σ_i d_ji · log((v_i + η)/(v_t,i + η))

c_j says how much of the law's response is left at this size, d_j what the law has wrong. Both are Gaussian, and
everything observed is linear in them: the full-size runs' losses, and the model's own implicit responses (IDEAL,
arXiv 2505.12762) once their unknown scale is set by the law, or, without one, by the runs. No number here tells whether
the law or the gradients are to blame where they differ, so the difference is shared out evenly.

Legend: D domains, J capabilities, S draws, A other full-size mixtures; relative responses are ∂log L/∂log v.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ideal_proxy.errors import UserError
from ideal_proxy.gradients import ResponseMatrix
from ideal_proxy.optimizer import ETA_FRACTION, ResponseSurface

Array = NDArray[np.float64]
DRAWS = 64
# Prior: the gains that 0.8M proxies promised were about halved at 10M (docs/log.md), so the law's factor is 1 ± 0.5.
FACTOR_SPREAD = 0.5
SCALE_SPREAD = 0.5  # of log s_j around the pooled scale
LEAST_DOUBT = 0.1  # law and gradients are never trusted closer than this part of a response
FAR_DOUBT = 0.25  # part of a loss change over a long way that the two-term form may miss
WEAK = 2.0  # without a law: prior spread of a response, in its own size by gradients


@dataclass(frozen=True, slots=True)
class Observed:
    """What a full-size run on another mixture showed."""

    volumes: Array  # (D,) its rows
    log_ratio: Array  # (J,) log L_j there over L_j at the centre, mean over seeds, on the search rows
    noise: Array  # (J,) standard error of that


@dataclass(frozen=True, slots=True, kw_only=True)
class FullSizeSurface:
    """Losses of the full-size model near the mixture it was trained on, as the optimiser takes them."""

    law: ResponseSurface | None  # the proxies' law; None where there is none
    centre: Array  # (D,) v_t, rows
    level: Array  # (J,) losses seen there, nats
    eta: float  # η, rows
    mean: Array  # (J, 1 + D) of (c_j, d_j)
    spread: Array  # (J, 1 + D, 1 + D) their covariance
    draws: Array  # (S, J, 1 + D)
    residual_scale_: Array  # (J,) noise of one run, nats
    scale: Array | None  # (J,) factor on the gradients; None where they were left out
    agreement: float  # correlation of gradients and law over all capabilities and domains; NaN where there is no law
    why: str  # what became of the gradients, in words

    @property
    def is_convex_(self) -> NDArray[np.bool_]:
        """No loss is certified convex (J,): the correction is linear in logarithms."""
        return np.zeros(len(self.level), dtype=bool)

    def value_and_gradient(self, v: Array, /) -> tuple[Array, Array]:
        """Predict losses and their derivatives."""
        values, by = self._at(v, self.mean[None])
        return values[0], by[0]

    def draws_value_and_gradient(self, v: Array, /) -> tuple[Array, Array]:
        """Predict posterior draws of the mean losses and their derivatives."""
        return self._at(v, self.draws)

    def _at(self, v: Array, state_SJP: Array) -> tuple[Array, Array]:
        v = np.asarray(v, dtype=float)
        change_J, slope_JD = _law_change(self.law, self.centre, v, len(self.level))
        factor, tilt = state_SJP[..., 0], state_SJP[..., 1:]
        value = self.level * np.exp(factor * change_J + tilt @ log_change(self.centre, v, self.eta))
        by = factor[..., None] * slope_JD + tilt / (v + self.eta)
        return value, value[..., None] * by


def log_change(centre: Array, v: Array, eta: float) -> Array:
    """Give how far volumes lie from the centre in logarithms."""
    return np.asarray(np.log((v + eta) / (centre + eta)), dtype=float)


def _law_change(law: ResponseSurface | None, centre: Array, v: Array, count: int) -> tuple[Array, Array]:
    """log L^law(v)/L^law(centre) (J,) and its derivative by volume (J, D); zeros without a law."""
    if law is None:
        return np.zeros(count), np.zeros((count, len(v)))
    here, slope = law.value_and_gradient(v)
    return np.log(here / law.value_and_gradient(centre)[0]), slope / here[:, None]


def fit_surface(
    law: ResponseSurface | None,
    *,
    centre: Array,
    level: Array,
    base: Array,
    noise: Array,
    observed: Sequence[Observed] = (),
    responses: ResponseMatrix | None = None,
    random_state: int = 0,
) -> FullSizeSurface:
    """Combine the law, the full-size runs and the model's own responses."""
    J, D = len(level), len(centre)
    eta = ETA_FRACTION * float(base.mean() if base.sum() > 0 else centre.mean())
    reach = np.divide(centre, centre + eta)  # how a log change of the volume moves log(v + η)
    told_JD = centre * _law_change(law, centre, centre, J)[1]  # ∂log L/∂log v by the law
    doubt_JDD = _law_doubt(law, centre, J)
    q = centre / centre.sum()
    centring = np.eye(D) - np.outer(q, np.ones(D))  # rows enter at a fixed total
    seen_JD = None if responses is None else (responses.M / level[:, None]) @ centring.T
    scale, agreement, why = _scale(told_JD @ centring.T, law is not None, seen_JD, centre, eta, observed)
    prior_mean = np.zeros((J, 1 + D))
    prior_mean[:, 0] = 1.0 if law is not None else 0.0
    mean, spread = np.empty((J, 1 + D)), np.empty((J, 1 + D, 1 + D))
    for j in range(J):
        size = _rms(told_JD[j] @ centring.T) if law is not None else 0.0
        gap = LEAST_DOUBT * size
        if scale is not None and seen_JD is not None:
            if law is None:
                size = WEAK * scale[j] * _rms(seen_JD[j])
                gap = size
            else:
                gap = max(gap, _rms(scale[j] * seen_JD[j] - told_JD[j] @ centring.T) / np.sqrt(2))
        covariance = np.zeros((1 + D, 1 + D))
        covariance[0, 0] = FACTOR_SPREAD**2 if law is not None else 0.0
        covariance[1:, 1:] = doubt_JDD[j] + max(gap, 1e-6) ** 2 * np.eye(D)
        rows, values, variances = [], [], []
        for other in observed:
            far = _law_change(law, centre, other.volumes, J)[0][j]
            rows.append(np.concatenate([[far], log_change(centre, other.volumes, eta)]))
            values.append(other.log_ratio[j])
            variances.append(other.noise[j] ** 2 + (FAR_DOUBT * other.log_ratio[j]) ** 2)
        if scale is not None and seen_JD is not None and responses is not None:
            error = scale[j] * responses.se[j] / level[j]
            own = np.sqrt(gap**2 + np.where(np.isfinite(error), error, 0.0) ** 2)
            own = own if law is not None else own / WEAK
            for i in range(D):
                rows.append(np.concatenate([[(centring @ told_JD[j])[i]], centring[i] * reach]))
                values.append(scale[j] * seen_JD[j, i])
                variances.append(max(own[i], 1e-9) ** 2)
        mean[j], spread[j] = _update(prior_mean[j], covariance, rows, values, variances)
    rng = np.random.default_rng(random_state)
    draws = np.stack(
        [rng.multivariate_normal(m, c, size=DRAWS, method="eigh") for m, c in zip(mean, spread, strict=True)], axis=1
    )
    return FullSizeSurface(
        law=law, centre=centre, level=level, eta=eta, mean=mean, spread=spread, draws=draws, residual_scale_=noise,
        scale=scale, agreement=agreement, why=why,
    )  # fmt: skip


def _law_doubt(law: ResponseSurface | None, centre: Array, count: int) -> Array:
    """Covariance of the law's relative responses over its posterior draws, (J, D, D)."""
    if law is None:
        return np.zeros((count, len(centre), len(centre)))
    value, slope = law.draws_value_and_gradient(centre)
    relative_SJD = centre * slope / value[..., None]
    off = relative_SJD - relative_SJD.mean(axis=0)
    return np.asarray(np.einsum("sjd,sje->jde", off, off) / max(1, len(off) - 1))


def _rms(values: Array) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def _update(
    mean: Array, covariance: Array, rows: Sequence[Array], values: Sequence[float], variances: Sequence[float]
) -> tuple[Array, Array]:
    """Condition a Gaussian on linear observations."""
    if not rows:
        return mean, covariance
    H, y, R = np.array(rows), np.array(values), np.diag(variances)
    gain = np.linalg.solve(H @ covariance @ H.T + R, H @ covariance).T
    left = np.eye(len(mean)) - gain @ H
    after = left @ covariance @ left.T + gain @ R @ gain.T  # Joseph's form stays positive
    return mean + gain @ (y - H @ mean), 0.5 * (after + after.T)


def _scale(
    told_JD: Array, law: bool, seen_JD: Array | None, centre: Array, eta: float, observed: Sequence[Observed]
) -> tuple[Array | None, float, str]:
    """Find the factor on each capability's gradients: pooled, then its own within `SCALE_SPREAD`."""
    if seen_JD is None:
        return None, float("nan"), "no gradients were taken"
    if law:
        left, right = seen_JD, told_JD
    else:
        if not observed:
            raise UserError(
                "gradients have no scale of their own, and there is neither a law in the mixture file nor a second "
                "full-size run to set it; add --baseline, or start from a search"
            )
        # One number a capability and mixture: the change that the gradients foretell, against the change seen.
        moves = np.array([log_change(centre, other.volumes, eta) for other in observed])
        left, right = seen_JD @ moves.T, np.array([other.log_ratio for other in observed]).T
    weight = 1.0 / np.maximum(np.mean(right**2, axis=1, keepdims=True), 1e-18)  # every capability counts alike
    agreement = float(
        (weight * left * right).sum() / np.sqrt((weight * left**2).sum() * (weight * right**2).sum() + 1e-300)
    )
    pooled = float((weight * left * right).sum() / max((weight * left**2).sum(), 1e-300))
    what = "the law" if law else "the full-size runs"
    if not pooled > 0 or not np.isfinite(pooled):
        return None, agreement, f"the gradients contradict {what} (correlation {agreement:.2f}), so they were left out"
    grid = np.exp(np.linspace(-2, 2, 401) * SCALE_SPREAD * 2)
    doubt = np.maximum(np.mean((pooled * left - right) ** 2, axis=1), 1e-18)
    cost = ((grid[:, None, None] * pooled * left - right) ** 2).sum(axis=2) / doubt / 2
    cost += (np.log(grid) ** 2 / (2 * SCALE_SPREAD**2))[:, None]
    scale = pooled * grid[cost.argmin(axis=0)]
    return scale, agreement, f"the gradients agree with {what} at a correlation of {agreement:.2f}"
