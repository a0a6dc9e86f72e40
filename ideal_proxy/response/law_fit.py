"""Fits of the response law: priors, starts, noise, seeds, repeats.

Legend: R runs, D domains, J capabilities, B problems (capability × start or fold), P parameters.

Everything here is in standardised units: a loss divided by its spread over the runs; a score also centred and turned
so that lower is better.  The prior constants were set on RegMix's training runs that a fit did not see, never on a
test table; halving or doubling any of them moves the rank correlation at 32 runs by less than 0.2 points.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ideal_proxy.response.gradient_rows import GradientRows, Scale, along, pattern, scale_spread
from ideal_proxy.response.law import ALPHA, FIRST_A, FLOOR, GAMMA, SPAN, Array, Volumes, evaluate
from ideal_proxy.response.solver import LARGE, Jacobian, Prior, Solution, huber, solve

ALPHA_PRIOR = 0.25, 0.7
"""Median of α and the spread of log α."""
FLOOR_SPREAD = 1.0
GAMMA_SPREAD = 0.5
"""Spread of logit γ around γ = ½: a few runs leave γ there, many move it."""
SPAN_SPREAD = 0.2
"""Spread of log(Z − E) where Z was not measured."""
BASELINE_NATS = 0.1
"""How far the law may miss a measured Z (nats; for scores, standard deviations of the score)."""
DOMAIN_MEDIAN, DOMAIN_LEVEL, DOMAIN_SPREAD = 1.0, 2.0, 1.5
"""log a: median where base counts one in all, spread of the level all domains share, spread of a domain about it."""
PART_SPREAD = 1.0
"""log a: spread of the parts of one domain (maths/easy, maths/hard) about their mean; apart they would have 1.5."""
HARM_SPREAD = 0.5
"""Spread of b, in standard deviations of the loss."""
NOISE_GUESS, NOISE_WEIGHT = 0.15, 4.0
"""The noise expected before seeing residuals (share of the loss's spread), and how many runs that is worth."""
RHO_PRIOR = 5.0, 0.7
"""Median of ρ (Muennighoff et al. 2023 find a half-life of about 15 epochs in pretraining, SFT overfits sooner)."""
DRAW_STEPS = 12
"""Steps from the fit to a posterior draw."""
LARGE_STEPS, LARGE_ROUNDS = 10, 2
"""Most steps of a solution where runs × parameters pass `LARGE`, and rounds more: the noise, not known before, decides
where the optimum lies, and steps at a wrong one are lost."""
CHUNK = 2_000_000
"""Entries of a Jacobian held at once."""


@dataclass(frozen=True, slots=True)
class LawData:
    """What the law is fitted to."""

    y_JR: Array  # (J, R) standardised losses, 0 where missing
    weight_JR: Array  # (J, R) weights with mean one over the runs present, 0 where missing
    v_RD: Array  # (R, D) volumes
    volumes: Volumes  # units, repeats
    bounds_J2: Array  # (J, 2) the least and greatest E
    spread_J: Array  # (J,) the spread that losses were divided by, 0.1 nats are 0.1 / spread
    baseline_J: Array  # (J,) standardised Z, NaN where not measured
    seed_R: np.ndarray  # (R,) index of each run's seed
    base_total: float = 1.0  # base's volumes in the unit of x, summed
    gradients: tuple[GradientRows, ...] = ()  # rows measured by gradients
    scale: Scale | None = None  # the factor between them and the losses; None leaves them out of the fit
    trust: float = np.inf  # σ_g, the relative misfit allowed to gradient rows; infinite where they are left out
    parent_D: np.ndarray | None = None  # (D,) the number of the domain that each is a part of; None: none was split


@dataclass(frozen=True, slots=True)
class LawFit:
    """A fitted law."""

    theta_JP: Array  # (J, P) parameters
    covariance_JPP: Array  # (J, P, P) their posterior covariance (Laplace)
    noise_J: Array  # (J,) standard deviation of one run about the law
    seed_J: Array  # (J,) standard deviation of the seed effect
    seed_effect_JS: Array  # (J, S) the seed effects
    freedom_J: Array  # (J,) effective number of parameters
    volumes: Volumes  # with the fitted ρ
    log_rho_error_D: Array  # (D,) standard error of log ρ
    log_scale_J: Array  # (J,) log s of gradient rows that the fit has, zero without them


def prior_for(data: LawData, harm: bool, theta_JP: Array | None = None) -> Prior:
    """Give the weak prior that keeps every parameter identified, and what gradients say about the domains."""
    J, D = len(data.y_JR), data.v_RD.shape[1]
    P = FIRST_A + D * (2 if harm else 1)
    mean = np.zeros((J, P))
    diagonal = np.zeros(P)
    top = np.where(data.weight_JR > 0, data.y_JR, -np.inf).max(axis=1)
    low, high = data.bounds_J2.T
    span = top - high
    mean[:, SPAN] = np.log(top + 0.3 * span - 0.5 * (low + high))
    mean[:, ALPHA] = np.log(ALPHA_PRIOR[0])
    mean[:, FIRST_A : FIRST_A + D] = DOMAIN_MEDIAN - np.log(data.base_total)
    measured = np.isfinite(data.baseline_J)
    mean[measured, SPAN] = np.log(np.maximum(data.baseline_J - 0.5 * (low + high), 0.1 * span)[measured])
    diagonal[[FLOOR, SPAN, ALPHA, GAMMA]] = (FLOOR_SPREAD, SPAN_SPREAD, ALPHA_PRIOR[1], GAMMA_SPREAD)
    diagonal[FIRST_A + D :] = HARM_SPREAD
    precision = np.zeros((J, P, P))
    used = diagonal > 0
    precision[:, used, used] = diagonal[used] ** -2.0
    precision[measured, SPAN, SPAN] = 1.0
    block = slice(FIRST_A, FIRST_A + D)
    precision[:, block, block] = domain_precision(np.arange(D) if data.parent_D is None else data.parent_D)
    if theta_JP is not None and data.scale is not None:
        known, pull = pattern(theta_JP, data.bounds_J2, data.volumes, data.gradients, data.scale, data.trust)
        plain = precision[:, block, block].copy()
        precision[:, block, block] += known
        pull += np.einsum("jde,je->jd", plain, mean[:, block])
        mean[:, block] = np.linalg.solve(precision[:, block, block], pull[:, :, None])[:, :, 0]
    nonnegative = np.zeros(P, dtype=bool)
    nonnegative[FIRST_A + D : FIRST_A + 2 * D] = harm
    return Prior(mean, precision, nonnegative, np.zeros((J, P), dtype=bool))


def domain_precision(parent_D: np.ndarray) -> Array:
    """Precision of log a (D, D): one level for all, domains about it, the parts of a domain about their own mean."""
    D = len(parent_D)
    level, one = np.full((D, D), 1.0 / D), np.eye(D)
    apart = (one - level) / DOMAIN_SPREAD**2
    if len(np.unique(parent_D)) < D:
        siblings = parent_D[:, None] == parent_D
        spread = PART_SPREAD**2 * one + (DOMAIN_SPREAD**2 - PART_SPREAD**2) * siblings
        apart = (one - level) @ np.linalg.inv(spread) @ (one - level)
    return np.asarray(apart + level / DOMAIN_LEVEL**2)


def solve_law(
    data: LawData,
    prior: Prior,
    member_B: np.ndarray,
    weight_BR: Array,
    start_BP: Array,
    noise_B: Array,
    offset_JR: Array,
    iterations: int,
    rng: np.random.Generator | None = None,
    *,
    exact: bool = True,
) -> Solution:
    """Solve a stack of law fits over the same runs."""
    u_RD = data.volumes.effective(data.v_RD)[0]
    u_RD = np.vstack([u_RD, np.zeros((1, u_RD.shape[1]))])  # the last row is Z
    measured = np.isfinite(data.baseline_J)
    baseline_error = BASELINE_NATS / data.spread_J
    z = np.where(measured, data.baseline_J, 0.0)
    target = np.column_stack([(data.y_JR - offset_JR)[member_B], z[member_B]])
    sd = np.column_stack([np.broadcast_to(noise_B[:, None], weight_BR.shape), baseline_error[member_B]])
    weight = np.column_stack([weight_BR, measured[member_B].astype(float)])
    target = target / sd
    spread_B1 = np.ones((len(target), 1))
    if data.scale is not None:  # one row a centre: the law's response along the measured one
        spread_B1 = scale_spread(data.scale, data.trust)[member_B, None]
        wanted = data.scale.own_J[member_B, None] / spread_B1
        target = np.column_stack([target, np.repeat(wanted, len(data.gradients), axis=1)])
        measured = np.column_stack([rows.measured_JD.any(axis=1) for rows in data.gradients])
        weight = np.column_stack([weight, measured[member_B] / len(data.gradients)])

    def model(theta: Array, which: NDArray[np.intp]) -> tuple[Array, Jacobian]:
        bounds = data.bounds_J2[member_B[which]]
        e = evaluate(theta, bounds, data.volumes, u_RD)
        values = e.loss_JR / sd[which]
        if data.scale is not None:
            size, size_by = along(theta, bounds, data.volumes, data.gradients, member_B[which])
            values = np.concatenate([values, size / spread_B1[which]], axis=1)

        def jacobian(part: NDArray[np.intp] | slice, factor: Array) -> Array:
            runs = sd.shape[1]
            by_theta = e.by_theta(part, factor[:, :runs] / sd[which[part]])
            if data.scale is None:
                return by_theta
            size_factor = factor[:, runs:] / spread_B1[which[part]]
            return np.concatenate([by_theta, size_by[part] * size_factor[:, :, None]], axis=1)

        return values, jacobian

    mean = prior.mean_BP[member_B]
    if rng is not None:
        target = target + rng.standard_normal(target.shape) / np.sqrt(np.where(weight > 0, weight, 1.0))
        root = np.linalg.inv(np.linalg.cholesky(prior.precision_BPP)).transpose(0, 2, 1)[member_B]
        mean = mean + np.matmul(root, rng.standard_normal((*mean.shape, 1)))[:, :, 0] * ~prior.nonnegative_P
    stacked = Prior(mean, prior.precision_BPP[member_B], prior.nonnegative_P, prior.fixed_BP[member_B])
    if target.shape[1] * start_BP.shape[1] > LARGE:
        iterations = min(iterations, LARGE_STEPS)
    return solve(
        model, target, weight, stacked, start_BP, iterations=iterations, tolerance=1e-5, chunk=CHUNK, exact=exact
    )


def fit_law(
    data: LawData, *, harm: bool, starts: int, rng: np.random.Generator, warm: LawFit | None = None, rounds: int = 3
) -> LawFit:
    """Fit the law to every capability: several starts, then noise, seed effects and ρ in turn."""
    J, R = data.y_JR.shape
    D = data.v_RD.shape[1]
    prior = prior_for(data, harm, None if warm is None else warm.theta_JP)
    P = prior.mean_BP.shape[1]
    noise = np.full(J, NOISE_GUESS) if warm is None else warm.noise_J
    seeds = int(data.seed_R.max()) + 1
    effect = np.zeros((J, seeds)) if warm is None else warm.seed_effect_JS
    seed_sd = np.zeros(J)
    rounds += LARGE_ROUNDS * (R * P > LARGE)
    if warm is None:
        start = np.repeat(prior.mean_BP[:, None], starts, axis=1)
        start[:, 1:] += rng.normal(0.0, 0.7, (J, starts - 1, P))
        start[:, :, FIRST_A + D : FIRST_A + 2 * D] = np.abs(start[:, :, FIRST_A + D : FIRST_A + 2 * D])
        member = np.repeat(np.arange(J), starts)
        solution = solve_law(
            data, prior, member, data.weight_JR[member], start.reshape(-1, P), noise[member], effect[:, data.seed_R],
            60, exact=False,
        )  # fmt: skip
        best = solution.cost_B.reshape(J, starts).argmin(axis=1)
        theta = solution.theta_BP.reshape(J, starts, P)[np.arange(J), best]
    else:
        theta = prior.mean_BP.copy()
        columns = FIRST_A + D
        theta[:, :columns] = warm.theta_JP[:, :columns]
        theta[:, columns : columns + D * harm] = 0.05
        if harm:  # min_i b = 0: the domain that helps most does no harm
            helps = warm.theta_JP[:, FIRST_A:columns].argmax(axis=1)
            prior.fixed_BP[np.arange(J), columns + helps] = True
            theta[np.arange(J), columns + helps] = 0.0
    rho_error = np.full(D, RHO_PRIOR[1])
    everyone = np.arange(J)
    for _ in range(rounds):
        solution = solve_law(data, prior, everyone, data.weight_JR, theta, noise, effect[:, data.seed_R], 25)
        theta = solution.theta_BP
        covariance = np.linalg.inv(solution.hessian_BPP)
        freedom = P - np.einsum("bpq,bqp->b", covariance, prior.precision_BPP)
        freedom = np.clip(freedom, 1.0, None)
        residual = -solution.residual_BR[:, :R] * noise[:, None]
        _, weight = huber(solution.residual_BR[:, :R], data.weight_JR)
        count = (data.weight_JR > 0).sum(axis=1)
        total = (weight * residual**2).sum(axis=1) + NOISE_WEIGHT * NOISE_GUESS**2
        left = np.maximum(count - freedom, 0.2 * count) + NOISE_WEIGHT
        solved, noise = noise, np.maximum(np.sqrt(total / left), 1e-4)
        if seeds > 1:
            effect, seed_sd = _seed_effects(residual + effect[:, data.seed_R], data, noise, seeds)
        if data.volumes.available is not None and bool((data.v_RD > data.volumes.available).any()):
            rho, rho_error = _update_rho(data, solution, solved)
            data = replace(data, volumes=replace(data.volumes, rho=rho))
        if data.scale is not None:  # the responses are read with the law as it is now
            prior = replace(prior_for(data, harm, theta), fixed_BP=prior.fixed_BP)
    covariance = np.where(np.eye(P)[None] * _held(solution)[:, :, None] > 0, 0.0, covariance)
    log_scale_J = np.zeros(J)
    if data.scale is not None:
        size = along(theta, data.bounds_J2, data.volumes, data.gradients, everyone)[0].mean(axis=1)
        log_scale_J = np.log(np.maximum(size, 0.01 * data.scale.own_J))
    return LawFit(
        theta,
        np.asarray(covariance, dtype=float),
        noise,
        seed_sd,
        effect,
        freedom,
        data.volumes,
        rho_error,
        log_scale_J,
    )


def _held(solution: Solution) -> Array:
    """Find the parameters that the solver held: their Hessian row is a unit row."""
    H = solution.hessian_BPP
    off = np.abs(H).sum(axis=2) - np.abs(np.einsum("bpp->bp", H))
    return np.asarray((off == 0.0) & (np.einsum("bpp->bp", H) == 1.0), dtype=float)


def _seed_effects(residual_JR: Array, data: LawData, noise_J: Array, seeds: int) -> tuple[Array, Array]:
    """Estimate the effect of each seed, shrunk, and their spread (method of moments)."""
    onehot = np.eye(seeds)[data.seed_R]
    weight = data.weight_JR @ onehot
    mean = np.divide((residual_JR * data.weight_JR) @ onehot, weight, out=np.zeros_like(weight), where=weight > 0)
    error = np.divide(noise_J[:, None] ** 2, weight, out=np.zeros_like(weight), where=weight > 0)
    full = np.maximum(data.weight_JR.max(axis=1, keepdims=True), 1e-12)
    # A seed whose runs hardly count tells hardly how far seeds are apart: a square's own variance goes as 1 / weight².
    present = np.minimum(weight / full, 1.0) ** 2
    count = np.maximum(present.sum(axis=1), 2)
    centre = (mean * present).sum(axis=1, keepdims=True) / count[:, None]
    excess = (((mean - centre) ** 2 - error) * present).sum(axis=1) / (count - 1)
    spread = np.maximum(excess, 0.0)
    shrink = spread[:, None] / np.maximum(spread[:, None] + error, 1e-12)
    return np.asarray(shrink * (mean - centre) * (weight > 0)), np.sqrt(spread)


def _update_rho(data: LawData, solution: Solution, noise_J: Array) -> tuple[Array, Array]:
    """Take one Gauss–Newton step in log ρ with every capability's θ eliminated (a Schur complement)."""
    u, _, u_by_rho = data.volumes.effective(data.v_RD)
    (R, D), (J, P) = u.shape, solution.theta_BP.shape
    held, weight = _held(solution), huber(solution.residual_BR[:, :R], data.weight_JR)[1]
    root, residual = np.sqrt(weight) / noise_J[:, None], solution.residual_BR[:, :R] * np.sqrt(weight)
    away = np.log(data.volumes.rho / RHO_PRIOR[0])
    hessian, gradient = np.eye(D) / RHO_PRIOR[1] ** 2, away / RHO_PRIOR[1] ** 2
    together = max(1, CHUNK // (R * P))
    for j in (slice(first, first + together) for first in range(0, J, together)):
        e = evaluate(solution.theta_BP[j], data.bounds_J2[j], data.volumes, u)
        by_rho = e.by_u() * u_by_rho * root[j, :, None]
        across = by_rho.transpose(0, 2, 1)
        cross = np.matmul(across, e.by_theta(factor_JR=root[j])) * (1.0 - held[j, None])
        eliminated = np.linalg.solve(solution.hessian_BPP[j], cross.transpose(0, 2, 1))
        hessian = hessian + (np.matmul(across, by_rho) - np.matmul(cross, eliminated)).sum(axis=0)
        gradient = gradient + np.matmul(residual[j, None], by_rho).sum(axis=(0, 1))
    step = np.clip(-np.linalg.solve(hessian, gradient), -1.0, 1.0)
    return np.asarray(data.volumes.rho * np.exp(step)), np.sqrt(np.diag(np.linalg.inv(hessian)))


def posterior_draws(
    data: LawData, fit: LawFit, harm_J: NDArray[np.bool_], count: int, rng: np.random.Generator
) -> Array:
    """Draw parameters from the posterior: each a fit to perturbed losses and a perturbed prior."""
    # Draws from the Laplace approximation follow the straight tangent of a curved valley (E, Z, α and a trade off) and
    # were 2 to 10 times too wide in the prediction on RegMix.
    J, D = len(fit.theta_JP), data.v_RD.shape[1]
    harm = bool(harm_J.any())
    prior = prior_for(data, harm, fit.theta_JP)
    first = FIRST_A + D
    if harm:
        prior.fixed_BP[~harm_J, first : first + D] = True
        helps = fit.theta_JP[:, FIRST_A:first].argmax(axis=1)
        still = fit.theta_JP[np.arange(J), first + helps] == 0.0
        prior.fixed_BP[np.flatnonzero(still), first + helps[still]] = True
    together = max(
        1, 4 * CHUNK // (J * fit.theta_JP.shape[1] ** 2)
    )  # the Hessians of a group of draws are held at once
    groups = []
    for begin in range(0, count, together):
        member = np.tile(np.arange(J), min(together, count - begin))
        solution = solve_law(
            data,
            prior,
            member,
            data.weight_JR[member],
            fit.theta_JP[member],
            fit.noise_J[member],
            fit.seed_effect_JS[:, data.seed_R],
            DRAW_STEPS,
            rng,
            exact=False,
        )
        groups.append(solution.theta_BP.reshape(-1, *fit.theta_JP.shape))
    return np.concatenate(groups)
