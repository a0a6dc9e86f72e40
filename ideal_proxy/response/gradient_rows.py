"""What responses measured by gradients tell a fit of the law: the pattern of a, and a size.

Legend: R runs, D domains, J capabilities, P parameters, G centres.

Gradients know which domains move a capability, not by how much: one factor s_j is unknown. It comes from the losses
themselves, regressed on the changes that the responses foretell, shrunk to the pooled s̄.  With it, domain i's part of
the total response τ_j at the centre is p_i = q_i − (s_j / |τ_j|) m_i, and the law makes that part proportional to
a_i · ∂(x_i^γ)/∂log v_i, which gives a mean for log a_i; its spread follows from the errors of m, of s_j and the trust.
One residual more asks that the law's response along m be s_j (`scale_spread`).

Entered as residuals of s · m instead, with a spread proportional to s, responses made the fit shrink all slopes: a
small s matches any pattern (`benchmarks/gradients/worth_sources.md`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from ideal_proxy.response.law import DELTA, FIRST_A, GAMMA, Array, Volumes, sigmoid, slopes

SCALE_SPREAD = 0.5
"""Spread of log s_j about the pooled log s̄."""
PATTERN_SPREAD = 0.2
"""Least spread of log a about what responses say: the law is not exact either."""
LEAST_PART = 0.05
"""Least part of τ that a domain is taken to have, relative to its share: no response can be above zero."""
FAR = 2.0
"""Changes of log volume beyond this count as this in the regression for s̄."""
LEVEL, LEVEL_FEW = 0.05, 0.3
"""Responses whose s̄ is not above zero at this level are left out: they contradict the losses or say nothing. Below six
runs a test of right responses often fails, so the second is used."""


@dataclass(frozen=True, slots=True)
class Responses:
    """Mixing responses at one mixture, measured by gradients."""

    volumes: Array  # (D,) the centre, in the unit of V
    matrix: Array  # (J, D) ∂L_j/∂log w_i in nats up to one scale a capability; NaN where there is none
    error: Array  # (J, D) standard errors (jackknife)
    share: Array  # (D,) q_i, each domain's share of the batch unit


@dataclass(frozen=True, slots=True)
class GradientRows:
    """Responses measured by gradients at one mixture, centred."""

    u_D: Array  # (D,) effective volumes of the centre
    by_log_D: Array  # (D,) ∂u/∂log v at the centre
    share_D: Array  # (D,) q, each domain's share of the batch unit; sums to one
    value_JD: Array  # (J, D) measured mixing response, standardised like the losses, NaN where there is none
    error_JD: Array  # (J, D) its standard error

    @property
    def present_JD(self) -> np.ndarray:
        """(J, D) bool: measured, of a domain that the centre has rows of."""
        return np.asarray(np.isfinite(self.value_JD) & (self.by_log_D > 0))

    @property
    def measured_JD(self) -> Array:
        """(J, D) the mixing response, zero where there is none."""
        return np.where(self.present_JD, self.value_JD, 0.0)


@dataclass(frozen=True, slots=True)
class Scale:
    """The factor between gradients and losses."""

    value: float  # s̄, pooled over the capabilities
    error: float  # its standard error; infinite where the losses say nothing about it
    own_J: Array  # (J,) each capability's s, shrunk to s̄ within SCALE_SPREAD
    own_error_J: Array  # (J,) their standard errors
    p: float  # chance that responses which say nothing would fit the losses as well; NaN where it cannot be told

    @classmethod
    def of_all(cls, value: float, error: float, capabilities: int, p: float) -> Scale:
        """One factor for all capabilities."""
        return cls(value, error, np.full(capabilities, value), np.full(capabilities, error), p)


def regressed_scale(y_JR: Array, weight_JR: Array, u_RD: Array, gradients: tuple[GradientRows, ...]) -> Scale | None:
    """Regress losses on the changes that responses foretell, all capabilities and centres together."""
    # A change of the total is taken out with the mean, for mixing responses say nothing about it.
    foretold_JR = np.mean([_foretold(rows, u_RD) for rows in gradients], axis=0)
    total_R = np.log(np.maximum(u_RD.sum(axis=1), 1e-12))
    nuisance = np.column_stack([np.ones_like(total_R), total_R] if total_R.std() > 0.02 else [np.ones_like(total_R)])
    J = len(y_JR)
    xx_J, xz_J, zz_J, freedom = np.zeros(J), np.zeros(J), np.zeros(J), -1
    for j in range(J):
        root = np.sqrt(weight_JR[j])[:, None]
        N, both = root * nuisance, root * np.column_stack([foretold_JR[j], y_JR[j]])
        coefficients, _, rank, _ = np.linalg.lstsq(N, both, rcond=None)
        x, z = (both - N @ coefficients).T
        free = int((weight_JR[j] > 0).sum()) - int(rank)
        if free >= 1 and x @ x >= 1e-12:
            xx_J[j], xz_J[j], zz_J[j], freedom = x @ x, x @ z, z @ z, freedom + free
    if freedom < 1 or not xx_J.any():
        return None
    value = float(xz_J.sum() / xx_J.sum())
    left = float((zz_J - 2.0 * value * xz_J + value**2 * xx_J).sum())
    noise = max(left, 1e-12) / freedom
    error = float(np.sqrt(noise / xx_J.sum()))
    around = (SCALE_SPREAD * value) ** 2 + error**2
    precision_J = 1.0 / around + xx_J / noise
    own_J = np.maximum((value / around + xz_J / noise) / precision_J, 0.2 * value)
    return Scale(value, error, own_J, precision_J**-0.5, float(student.sf(value / error, freedom)))


def _foretold(rows: GradientRows, u_RD: Array) -> Array:
    """(J, R) changes of the losses that the responses foretell from the centre's, up to s."""
    tiny = 1e-3 * float(rows.u_D.mean())
    changes_RD = np.clip(np.log((u_RD + tiny) / (rows.u_D + tiny)), -FAR, FAR)
    return np.asarray(rows.measured_JD @ changes_RD.T)


def law_scale(theta_JP: Array, bounds_J2: Array, volumes: Volumes, gradients: tuple[GradientRows, ...]) -> Scale:
    """Guess s̄ where losses cannot tell: the size of the law's centred responses over the gradients' (median)."""
    ratios = []
    for rows in gradients:
        response = law_response(theta_JP, bounds_J2, volumes, rows)[0]
        centred = response - rows.share_D * response.sum(axis=1, keepdims=True)
        size = np.sqrt((rows.measured_JD**2).sum(axis=1))
        known = size > 0
        ratios += list(np.log(np.sqrt((centred[known] ** 2).sum(axis=1)) / size[known]))
    value = float(np.exp(np.median(ratios))) if ratios else 1.0
    return Scale.of_all(value, SCALE_SPREAD * value, len(theta_JP), float("nan"))


def law_response(theta_JP: Array, bounds_J2: Array, volumes: Volumes, rows: GradientRows) -> tuple[Array, Array]:
    """Give the law's response at a centre."""
    h, by = slopes(theta_JP, bounds_J2, volumes, rows.u_D)
    return h * rows.by_log_D, by * rows.by_log_D[None, :, None]


def pattern(
    theta_JP: Array, bounds_J2: Array, volumes: Volumes, gradients: tuple[GradientRows, ...], scale: Scale, trust: float
) -> tuple[Array, Array]:
    """Give what responses say about log a, up to a level: a Gaussian, the mean over the centres."""
    J, D = len(theta_JP), len(gradients[0].u_D)
    law = theta_JP[:, : FIRST_A + D]
    precision, pull = np.zeros((J, D, D)), np.zeros((J, D))
    gamma = sigmoid(law[:, GAMMA])[:, None]
    for rows in gradients:
        total = law_response(law, bounds_J2, volumes, rows)[0].sum(axis=1, keepdims=True)
        factor = scale.own_J[:, None] / np.maximum(np.abs(total), 1e-9)
        present, m = rows.present_JD, rows.measured_JD
        share = np.maximum(rows.share_D, 1e-12)
        part = share - factor * m
        kept = np.maximum(part, LEAST_PART * share)
        rms = np.sqrt((m * m).sum(axis=1, keepdims=True) / np.maximum(present.sum(axis=1, keepdims=True), 1))
        miss = (
            np.where(present, rows.error_JD, 0.0) ** 2
            + (trust * rms) ** 2
            + (m * (scale.own_error_J / scale.own_J)[:, None]) ** 2
        )
        # where s is small the parts are near q whatever m is: the spread is that of what they may be
        spread = np.sqrt(miss * (factor / kept) ** 2 + PATTERN_SPREAD**2)
        weight = np.where(present, spread**-2.0, 0.0)
        x = rows.u_D / volumes.scale + DELTA
        by_log = np.where(rows.by_log_D > 0, rows.by_log_D, 1.0) / volumes.scale
        mean = np.log(kept) - (gamma - 1.0) * np.log(x) - np.log(by_log)
        each = np.maximum(weight.sum(axis=1), 1e-12)
        free = weight[:, :, None] * np.eye(D) - weight[:, :, None] * weight[:, None, :] / each[:, None, None]
        precision += free / len(gradients)  # what is wrong with one is wrong with the next: a mean, not more evidence
        pull += np.einsum("jde,je->jd", free, mean) / len(gradients)
    return precision, pull


def along(
    theta_BP: Array, bounds_B2: Array, volumes: Volumes, gradients: tuple[GradientRows, ...], member_B: np.ndarray
) -> tuple[Array, Array]:
    """Project the law's centred response on the measured one: the s that a law has."""
    values, by = [], []
    for rows in gradients:
        response, response_by = law_response(theta_BP, bounds_B2, volumes, rows)
        m = rows.measured_JD[member_B]
        unit = m / np.maximum((m * m).sum(axis=1, keepdims=True), 1e-12)
        # m · (r − q Σ r) = r · (m − m·q)
        unit = unit - (unit @ rows.share_D)[:, None]
        values.append((unit * response).sum(axis=1))
        by.append(np.einsum("bd,bdp->bp", unit, response_by))
    return np.stack(values, axis=1), np.stack(by, axis=1)


def scale_spread(scale: Scale, trust: float) -> Array:
    """Give the spread of the law's s about what the losses say: of s itself, and of what is not trusted."""
    doubt = np.minimum(scale.own_error_J / scale.own_J, 10.0)
    return np.asarray(scale.own_J * np.sqrt(doubt**2 + PATTERN_SPREAD**2 + trust**2))
