"""What to predict with, decided by cross-validation inside the fitted runs.

Legend: R runs, D domains, J capabilities, K folds, C forms, P parameters.

Every run is predicted by each form (`forms.py`) from the other folds. A capability is then predicted by the convex
combination of forms that misses those runs least (stacking), pulled to the combination that serves all capabilities
best, and that one to equal shares: few runs cannot tell the forms apart, and a mean of them is safer than one.
"""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

import numpy as np
from scipy.special import expit
from scipy.stats import norm

from ideal_proxy.response.forms import HeldOut, HeldOutLaw
from ideal_proxy.response.law import Array, evaluate
from ideal_proxy.response.law_fit import LawData, LawFit, prior_for, solve_law

FOLDS = 5
LEAVE_ONE_OUT = 15
"""Up to this many runs each is a fold of its own."""
LEAST_RUNS = 6
"""Below this many runs nothing is held out: the law is used as it is."""
POOL_RUNS = 40.0
"""How many runs the pooled combination counts as."""
EQUAL_RUNS = 8.0
"""How many runs equal shares of the forms count as."""
OPTIMISM = 6.0
"""Held-out errors also chose what predicts and are too small: intervals grow by 1 + 6/R (set on training runs)."""
LEAST_SHARE = 0.15
"""A smaller share is none: a form that predicts poorly does harm at the extremes, where optima are sought."""
SLOPE_SPREAD = 0.3
"""How far the slope of runs left out on their predictions lies from 1, where a capability is predicted at all."""
UNKNOWN = 0.5
"""Below this part of its predicted changes a capability is named as not known."""
LIKELY_KNOWN = 3.0
"""Odds, before a run is seen, that a capability answers to the volumes."""
FAR = 5.0
"""An error counts as at most this many times the median one."""


def fold_of_runs(runs: int, rng: np.random.Generator) -> np.ndarray:
    """Deal the runs into folds."""
    folds = runs if runs <= LEAVE_ONE_OUT else FOLDS
    return rng.permutation(np.arange(runs) % folds)


def held_out_law(data: LawData, fit: LawFit, fold_R: np.ndarray, *, harm: bool) -> HeldOutLaw:
    """Predict every run by the law of the other folds."""
    J, R = data.y_JR.shape
    K = int(fold_R.max()) + 1
    prior = prior_for(data, harm, fit.theta_JP)
    if harm:
        helps = fit.theta_JP[:, 4 : 4 + data.v_RD.shape[1]].argmax(axis=1)
        prior.fixed_BP[np.arange(J), 4 + data.v_RD.shape[1] + helps] = True
    member = np.tile(np.arange(J), K)
    out_KR = fold_R[None] == np.arange(K)[:, None]
    weight = data.weight_JR[member] * ~np.repeat(out_KR, J, axis=0)
    solution = solve_law(
        data, prior, member, weight, fit.theta_JP[member], fit.noise_J[member], fit.seed_effect_JS[:, data.seed_R], 25
    )
    mean, variance, every = np.zeros((J, R)), np.zeros((J, R)), np.zeros((K, J, R))
    u_RD = data.volumes.effective(data.v_RD)[0]
    for k in range(K):
        out = out_KR[k]
        stack = slice(k * J, (k + 1) * J)
        covariance = np.linalg.inv(solution.hessian_BPP[stack])
        theta = solution.theta_BP[stack]
        every[k] = evaluate(theta, data.bounds_J2, data.volumes, u_RD).loss_JR
        mean[:, out] = every[k][:, out]
        by = evaluate(theta, data.bounds_J2, data.volumes, u_RD[out]).by_theta()
        variance[:, out] = np.einsum("jrp,jrp->jr", np.matmul(by, covariance), by)
    return HeldOutLaw(mean, variance, every)


def combine(y_JR: Array, weight_JR: Array, predicted: HeldOut) -> Array:
    """Choose the shares of the forms for each capability, (J, C)."""
    error_CJR = predicted.mean_CJR - y_JR
    size_CJR = np.abs(error_CJR)
    most = FAR * np.median(size_CJR, axis=(0, 2), keepdims=True)
    error_CJR = np.clip(error_CJR, -most, most)
    products_JCC = np.einsum("jr,cjr,djr->jcd", weight_JR, error_CJR, error_CJR) / weight_JR.sum(axis=1)[:, None, None]
    products_JCC /= np.einsum("jcc->jc", products_JCC).min(axis=1)[:, None, None] + 1e-300
    C = len(error_CJR)
    runs_J = (weight_JR > 0).sum(axis=1)
    pooled_CC = products_JCC.mean(axis=0)
    equal = np.full(C, 1.0 / C)
    pooled = _least(runs_J.mean() * pooled_CC + EQUAL_RUNS * np.eye(C), EQUAL_RUNS * equal)
    shares_JC = np.array([
        _least(n * own + POOL_RUNS * np.eye(C), POOL_RUNS * pooled) for n, own in zip(runs_J, products_JCC, strict=True)
    ])
    shares_JC[shares_JC < LEAST_SHARE] = 0.0
    return np.asarray(shares_JC / shares_JC.sum(axis=1, keepdims=True))


def _least(quadratic_CC: Array, linear_C: Array) -> Array:
    """Minimise ½ wᵀQw − lᵀw over shares: every set of forms is tried, for there are few."""
    C = len(linear_C)
    best, found = np.inf, linear_C
    for count in range(1, C + 1):
        for chosen in map(list, combinations(range(C), count)):
            Q, one = quadratic_CC[np.ix_(chosen, chosen)], np.ones(count)
            free, level = np.linalg.solve(Q, np.column_stack([linear_C[chosen], one])).T
            w = free + level * (1.0 - free.sum()) / level.sum()
            value = 0.5 * w @ Q @ w - linear_C[chosen] @ w
            if (w >= 0).all() and value < best:
                best, found = value, np.zeros(C)
                found[chosen] = w
    return found


class Known(NamedTuple):
    """How much of predicted changes is believed, (J,): the chance that anything is known, and a factor."""

    chance_J: Array
    factor_J: Array
    error_J: Array

    @property
    def mean_J(self) -> Array:
        """The factor to predict with."""
        return self.chance_J * self.factor_J

    def draws(self, count: int, rng: np.random.Generator) -> Array:
        """Draw factors, (S, J): nothing is known, or about the factor."""
        drawn = self.factor_J + self.error_J * rng.standard_normal((count, len(self.factor_J)))
        return np.asarray(np.clip(drawn, 0.0, 1.5) * (rng.random(drawn.shape) < self.chance_J))


def known(y_JR: Array, weight_JR: Array, mean_JR: Array, fold_R: np.ndarray) -> Known:
    """Regress runs on what was predicted of them by fits that did not see them, each less the mean of the runs seen."""
    # Either nothing is known and the slope is 0, or it is near 1: the losses say which is likelier.
    out_KR = fold_R[None] == np.arange(int(fold_R.max()) + 1)[:, None]
    rest_KJR = weight_JR * ~out_KR[:, None]
    centre_KJ = (rest_KJR * y_JR).sum(axis=2) / np.maximum(rest_KJR.sum(axis=2), 1e-12)
    centre_JR = centre_KJ[fold_R].T
    x, z = mean_JR - centre_JR, y_JR - centre_JR
    xx = np.maximum((weight_JR * x * x).sum(axis=1), 1e-12)
    slope = (weight_JR * x * z).sum(axis=1) / xx
    count = np.maximum((weight_JR > 0).sum(axis=1), 2)
    noise = (weight_JR * (z - np.clip(slope, 0.0, 1.0)[:, None] * x) ** 2).sum(axis=1) / (count - 1)
    error = np.sqrt(np.maximum(noise, 1e-12) / xx)
    spread = np.hypot(error, SLOPE_SPREAD)
    log_odds = norm.logpdf(slope, 1.0, spread) - norm.logpdf(slope, 0.0, error) + np.log(LIKELY_KNOWN)
    precision = error**-2.0 + SLOPE_SPREAD**-2.0
    factor = (slope * error**-2.0 + SLOPE_SPREAD**-2.0) / precision
    return Known(expit(np.clip(log_odds, -30.0, 30.0)), np.clip(factor, 0.0, 1.0), precision**-0.5)


def slope_of_mean(y_JR: Array, weight_JR: Array, mean_JR: Array, unit_J: Array) -> float:
    """How much of the predicted changes of the mean over capabilities runs left out showed, pulled to 1."""
    seen_R = (weight_JR > 0).all(axis=0)
    if seen_R.sum() < LEAST_RUNS:
        return 1.0
    z, x = ((unit_J[:, None] * values[:, seen_R]).mean(axis=0) for values in (y_JR, mean_JR))
    z, x = z - z.mean(), x - x.mean()
    xx = float(x @ x)
    if xx <= 0:
        return 1.0
    slope = float(x @ z) / xx
    left = z - np.clip(slope, 0.0, 1.0) * x
    precision = xx / max(float(left @ left) / (len(x) - 1), 1e-300)
    return float(np.clip((slope * precision + SLOPE_SPREAD**-2.0) / (precision + SLOPE_SPREAD**-2.0), 0.0, 1.0))


def harm_pays(y_JR: Array, weight_JR: Array, plain_JR: Array, harm_JR: Array) -> tuple[Array, Array]:
    """Measure what the harm term gains in held-out squared error."""
    gain = weight_JR * ((plain_JR - y_JR) ** 2 - (harm_JR - y_JR) ** 2)
    count = np.maximum((weight_JR > 0).sum(axis=1), 2)
    mean = gain.sum(axis=1) / count
    spread = np.where(weight_JR > 0, gain - mean[:, None], 0.0)
    return mean, np.sqrt((spread**2).sum(axis=1) / (count - 1) / count)


def widening(z_JR: Array, weight_JR: Array) -> Array:
    """Find by how much intervals must be widened to hold 90 % of held-out runs; they are never narrowed."""
    # Held-out fits see fewer runs and so claim less; taking their caution as licence to narrow the whole fit's
    # intervals left 56 % of new runs inside on a smooth synthetic table, and 81 % to 89 % on RegMix at 32 runs.
    seen = weight_JR > 0
    normal = 1.6448536
    pooled = float(np.quantile(np.abs(z_JR[seen]), 0.9)) / normal
    runs = z_JR.shape[1]
    factors = np.empty(len(z_JR))
    for j, row in enumerate(z_JR):
        z = np.abs(row[seen[j]])
        n = len(z)
        own = float(np.quantile(z, min(1.0, 0.9 * (n + 1) / n))) / normal
        factors[j] = (n * own + POOL_RUNS * pooled) / (n + POOL_RUNS)
    return np.asarray(np.maximum(factors * (1.0 + OPTIMISM / runs), 1.0), dtype=np.float64)
