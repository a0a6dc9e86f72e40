"""What to predict with, decided by cross-validation inside the fitted runs.

Legend: R runs, D domains, J capabilities, K folds, C candidates, P parameters.

Candidates: the law; the law and a Gaussian process on what it leaves; a Gaussian process alone.  Every run is
predicted by each of them from the other folds.  A capability is then predicted by a convex combination, fitted to
those predictions and shrunk to the combination that serves all capabilities best.  The law alone is kept unless the
combination beats it by more than half a standard error, pooled over the capabilities: with a whole one, noisy tables
that a process predicts better would keep the law.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ideal_proxy.response.law import Array, evaluate
from ideal_proxy.response.law_fit import LawData, LawFit, prior_for, solve_law
from ideal_proxy.response.process import fit_processes

LAW, LAW_PROCESS, PROCESS = 0, 1, 2
"""Places of the candidates in a combination."""
FOLDS = 5
LEAVE_ONE_OUT = 15
"""Up to this many runs each is a fold of its own."""
LEAST_RUNS = 6
"""Below this many runs nothing is held out: the law is used as it is."""
POOL_RUNS = 40.0
"""How many runs the pooled combination counts as."""
OPTIMISM = 6.0
"""Held-out errors also chose what predicts and are too small: intervals grow by 1 + 6/R (set on training runs)."""
SIMPLEX = np.array([(a, b, 10 - a - b) for a in range(11) for b in range(11 - a)])[::-1] / 10.0


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Predictions of runs by fits that did not see them (standardised units).

    Attributes:
        mean_CJR: (C, J, R) predictions of each candidate.
        variance_CJR: (C, J, R) variance of the mean.
        noise_CJ: (C, J) noise standard deviation.
    """

    mean_CJR: Array
    variance_CJR: Array
    noise_CJ: Array


def fold_of_runs(runs: int, rng: np.random.Generator) -> np.ndarray:
    """Deal the runs into folds."""
    folds = runs if runs <= LEAVE_ONE_OUT else FOLDS
    return rng.permutation(np.arange(runs) % folds)


def held_out_law(data: LawData, fit: LawFit, fold_R: np.ndarray, *, harm: bool) -> tuple[Array, Array]:
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
    mean, variance = np.zeros((J, R)), np.zeros((J, R))
    u_RD = data.volumes.effective(data.v_RD)[0]
    for k in range(K):
        out = out_KR[k]
        stack = slice(k * J, (k + 1) * J)
        covariance = np.linalg.inv(solution.hessian_BPP[stack])
        e = evaluate(solution.theta_BP[stack], data.bounds_J2, data.volumes, u_RD[out], by_theta=True)
        assert e.by_theta_JRP is not None
        mean[:, out] = e.loss_JR
        variance[:, out] = np.einsum("jrp,jrp->jr", np.matmul(e.by_theta_JRP, covariance), e.by_theta_JRP)
    return mean, variance


def held_out(data: LawData, fit: LawFit, law: tuple[Array, Array], fold_R: np.ndarray) -> HeldOut:
    """Predict every run by every candidate from the other folds."""
    J, R = data.y_JR.shape
    u_RD = data.volumes.effective(data.v_RD)[0]
    x_RD = u_RD / data.volumes.scale
    y = data.y_JR - fit.seed_effect_JS[:, data.seed_R]
    mean, variance = np.zeros((3, J, R)), np.zeros((3, J, R))
    mean[LAW], variance[LAW] = law
    noise = np.zeros((3, J))
    noise[LAW] = fit.noise_J
    in_sample = evaluate(fit.theta_JP, data.bounds_J2, data.volumes, u_RD).loss_JR
    K = int(fold_R.max()) + 1
    for k in range(K):
        out = fold_R == k
        weight = data.weight_JR * ~out
        centre = (weight * y).sum(axis=1) / np.maximum(weight.sum(axis=1), 1e-12)
        # what the law leaves over is measured out of sample for the fold and in sample elsewhere
        rest = fit_processes(x_RD, y - in_sample, weight, raw=False)
        alone = fit_processes(x_RD, y - centre[:, None], weight, raw=True)
        for j in range(J):
            mean[LAW_PROCESS, j, out] = law[0][j, out] + rest[j].mean(x_RD[out])
            variance[LAW_PROCESS, j, out] = law[1][j, out] + rest[j].spread(x_RD[out])
            mean[PROCESS, j, out] = centre[j] + alone[j].mean(x_RD[out])
            variance[PROCESS, j, out] = alone[j].spread(x_RD[out])
            noise[LAW_PROCESS, j] += np.sqrt(rest[j].variance * rest[j].noise_ratio) / K
            noise[PROCESS, j] += np.sqrt(alone[j].variance * alone[j].noise_ratio) / K
    return HeldOut(mean, variance, noise)


def combine(y_JR: Array, weight_JR: Array, predicted: HeldOut, *, caution: float = 0.5) -> Array:
    """Choose the combination of candidates for each capability."""
    J = len(y_JR)
    alone = np.zeros((J, 3))
    alone[:, LAW] = 1.0
    error_CJR = predicted.mean_CJR - y_JR
    blended_WJR = np.einsum("wc,cjr->wjr", SIMPLEX, error_CJR)
    squared = weight_JR * np.minimum(blended_WJR**2, 25.0 * np.median(blended_WJR**2, axis=2, keepdims=True))
    cost_WJ = squared.sum(axis=2) / weight_JR.sum(axis=1)
    cost_WJ = cost_WJ / cost_WJ.min(axis=0)
    runs = (weight_JR > 0).sum(axis=1)
    pooled = cost_WJ.mean(axis=1)
    chosen = SIMPLEX[(runs * cost_WJ + POOL_RUNS * pooled[:, None]).argmin(axis=0)]
    law = weight_JR * error_CJR[LAW] ** 2
    best = weight_JR * np.einsum("jc,cjr->jr", chosen, error_CJR) ** 2
    level = np.maximum(best.sum(axis=1) / weight_JR.sum(axis=1), 1e-12)
    gain_R = ((law - best) / level[:, None]).mean(axis=0)
    error = gain_R.std(ddof=1) / np.sqrt(len(gain_R))
    return chosen if gain_R.mean() > caution * error else alone


def harm_pays(y_JR: Array, weight_JR: Array, plain_JR: Array, harm_JR: Array) -> tuple[Array, Array]:
    """Measure what the harm term gains in held-out squared error."""
    gain = weight_JR * ((plain_JR - y_JR) ** 2 - (harm_JR - y_JR) ** 2)
    count = np.maximum((weight_JR > 0).sum(axis=1), 2)
    mean = gain.sum(axis=1) / count
    spread = np.where(weight_JR > 0, gain - mean[:, None], 0.0)
    return mean, np.sqrt((spread**2).sum(axis=1) / (count - 1) / count)


def widening(z_JR: Array, weight_JR: Array) -> Array:
    """Find by how much intervals must be widened to hold 90 % of held-out runs; they are never narrowed.

    Held-out fits see fewer runs and so claim less; taking their caution as licence to narrow the whole fit's intervals
    left 56 % of new runs inside on a smooth synthetic table, and 81 % to 89 % on RegMix at 32 runs.

    Args:
        z_JR: (J, R) held-out errors over their predicted standard deviation.
        weight_JR: (J, R) weights, zero where missing.

    Returns:
        (J,) factors, shrunk to the pooled one.
    """
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
