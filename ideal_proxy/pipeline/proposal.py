"""From finished runs to proposed volumes: fit the response law, optimise, and say how sure both are.

Legend: R runs, D domains, J capabilities, S posterior draws.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ideal_proxy.amounts import Amount, Comparison
from ideal_proxy.config import SearchConfig
from ideal_proxy.errors import UserError
from ideal_proxy.limits import TrustRegion
from ideal_proxy.optimizer import (
    Constraints,
    Leeway,
    Objective,
    Optimum,
    Problem,
    check_linear,
    explored_region,
    leeway,
    nearest_base,
    optimize,
    round_volumes,
)
from ideal_proxy.pipeline.evidence import Evidence
from ideal_proxy.pipeline.prepare import Prepared
from ideal_proxy.pipeline.verdict import Known
from ideal_proxy.response import Prediction, ResponseModel, Yardstick, combine, compare, spread_of_mean

Array = NDArray[np.float64]

SAME = 0.01  # volumes so near are one answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Free:
    """The optimum of the same fit without protection: it is not checked."""

    rows: NDArray[np.int64]  # whole rows of each domain, shape (D,)
    predicted: Prediction  # against base


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """What a round learned and proposes: it binds the evidence, the fits, the optimum and the predictions."""

    evidence: Evidence  # what was fitted
    model: ResponseModel  # the fitted response of what each capability is judged by
    loss_model: ResponseModel  # the fitted response of the reference losses; the same where no metric judges
    yardstick: Yardstick  # what scores are measured in
    constraints: Constraints  # as used
    optimum: Optimum  # the volumes, with their whole rows
    predicted: Prediction  # the optimum against base, intervals for the mean of the first pairs
    predicted_losses: Prediction  # the same of the reference losses, also where a metric judges
    free: Free | None  # what protection forbids; None where it forbids nothing
    known: Known  # how much a pair of runs scatters, by the swarm's replicates
    notes: tuple[str, ...]  # what the fit wants the user to know

    @property
    def rows(self) -> NDArray[np.int64]:
        """Full-size rows of each domain, shape (D,)."""
        assert self.optimum.rows is not None
        return self.optimum.rows

    @property
    def noise(self) -> tuple[float, float]:
        """Standard deviations of one run and of a seed's common shift, relative, mean over capabilities."""
        unit = self.yardstick.divisor(self.predicted.other)
        run, seed = (np.asarray(x, dtype=float) for x in (self.model.residual_scale_, self.model.seed_scale_))
        return float(np.mean(run / unit)), float(np.mean(seed / unit))


def fit_and_propose(
    config: SearchConfig,
    prepared: Prepared,
    evidence: Evidence,
    *,
    seed: int,
    pairs: int = 3,
    yardstick: Yardstick | None = None,
) -> Proposal:
    """Fit the law to the runs and optimise the volumes."""
    loss_model, notes = fit_response(evidence, prepared, seed)
    base = prepared.domains.base
    model = loss_model
    if config.has_metrics:
        model, notes = fit_response(replace(evidence, gradients=()), prepared, seed, config.kinds)
    stick = yardstick or make_yardstick(config, model, loss_model, base)
    constraints = make_constraints(config, prepared, evidence.volumes)
    objective = make_objective(config, stick)
    optimum, free_optimum, notes_of_protection = _optima(model, objective, constraints, seed)
    if config.constraints.round > 1:
        optimum, note = _in_round_numbers(config, model, objective, constraints, stick, optimum, pairs)
        notes_of_protection += note
    rows = np.asarray(optimum.rows, dtype=float)
    weights = [c.weight for c in config.capabilities]
    options: dict[str, Any] = {"pairs": pairs, "kind": config.objective.kind, "weights": weights}
    free = None
    if free_optimum is not None and (free_rows := free_optimum.rows) is not None:
        predicted = compare(model, free_rows.astype(float), base, yardstick=stick, chosen=True, **options)
        free = Free(rows=free_rows, predicted=predicted)
    at_base = model.value_and_gradient(base)[0]
    return Proposal(
        evidence=evidence, model=model, loss_model=loss_model, yardstick=stick, constraints=constraints,
        optimum=optimum, free=free, notes=notes + notes_of_protection,
        known=evidence.scatter(stick, at_base, config.objective.kind, weights),
        predicted=compare(model, rows, base, yardstick=stick, chosen=True, **options),
        predicted_losses=compare(loss_model, rows, base, **options),
    )  # fmt: skip


def _optima(
    model: ResponseModel, objective: Objective, constraints: Constraints, seed: int
) -> tuple[Optimum, Optimum | None, tuple[str, ...]]:
    """Optimise with protection and without it; whole rows. None where protection changes nothing."""

    def whole(limits: Constraints, **options: Any) -> Optimum:
        found = optimize(model, objective, limits, random_state=seed, **options)
        found = nearest_base(model, objective, limits, found)
        return replace(found, rows=round_volumes(found.volumes, limits))

    open_ = replace(constraints, limits=replace(constraints.limits, protect={}))
    if not constraints.limits.protect:
        return whole(constraints), None, ()
    free = whole(open_)
    try:
        held = whole(constraints)
        same = np.allclose(held.volumes, free.volumes, rtol=SAME, atol=1.0)
        return held, None if same else free, ()
    except UserError:
        lifted = (
            "no mixture inside the limits keeps every capability within its protection: the proposal is the free one"
        )
        return free, None, (lifted,)


def gradient_note(model: ResponseModel, method: str) -> str:
    """Say what measured responses did to a fit, and why."""
    without = [error for trust, error in model.trust_errors_.items() if np.isfinite(trust)]
    if not np.isfinite(model.trust_):
        why = "the changes of loss that they foretell are not those of the runs"
        if without:
            why = (
                "runs left out were predicted better without them by more than a standard error (with them the error "
                f"was {np.sqrt(min(without)):.2f} times as large at best)"
            )
        return f"Gradients ({method}) were left out of the fit: {why}"
    how = "; too few runs to leave one out and check"
    if without:
        error = np.sqrt(model.trust_errors_[model.trust_])
        how = f": error of runs left out {error:.2f} times that of losses alone"
    return f"Gradients ({method}) entered the fit{how}; each may miss by {model.trust_:g} times their size"


def make_yardstick(config: SearchConfig, model: ResponseModel, loss_model: ResponseModel, base: Array) -> Yardstick:
    """Say what a difference of each score is divided by, so that it may stand in a mean beside relative losses."""
    # By default the replicate noise decides: one run's noise of the score counts as much as that of the
    # capability's own reference loss. A metric that is minus the loss is then judged as the loss is.
    values, losses = (m.value_and_gradient(base)[0] for m in (model, loss_model))
    noise, loss_noise = (np.asarray(m.residual_scale_, dtype=float) for m in (model, loss_model))
    scale = np.full(len(values), np.nan)
    for j, capability in enumerate(config.capabilities):
        if capability.metric is None:
            continue
        given = capability.metric.scale
        if given == "noise":
            scale[j] = noise[j] / (loss_noise[j] / losses[j])
        elif given == "base":
            scale[j] = abs(values[j])
        else:
            scale[j] = float(given)
        if not (np.isfinite(scale[j]) and scale[j] > 0):
            raise UserError(
                f"the metric of {capability.name} has no scale by {given!r} (at base it is {values[j]:.3g}, its noise "
                f"{noise[j]:.3g}); give metric.scale a number: what counts as much as a loss doubled"
            )
    return Yardstick(config.kinds, scale)


def check_constraints(config: SearchConfig, prepared: Prepared, explored: Array | None = None) -> None:
    """Refuse, before anything is trained, limits that no mixture can meet."""
    free = [f.name for f in prepared.facts if f.upper > f.lower]
    kept = (config.limits.budget.kind in {"keep", "exactly"}) + (config.kept_beside is not None)
    if len(free) <= kept:
        moves = f"only {' and '.join(free)} can change, and the budget keeps " if free else "no domain can change"
        moves += ("", "the total", "tokens and rows both, for `steps: keep`")[kept if free else 0]
        raise UserError(f"there is nothing to search: {moves}; unpin a domain, or widen its min and max")
    constraints = make_constraints(config, prepared, explored)
    check_linear(constraints.atoms(), np.maximum(prepared.domains.base, 1.0))


def make_constraints(config: SearchConfig, prepared: Prepared, explored: Array | None) -> Constraints:
    """State the problem to the optimiser in full-size rows, under the run file's limits."""
    problem = Problem(domains=prepared.domains, capabilities=tuple(prepared.capability_names), kinds=config.kinds)
    trust: TrustRegion | None = config.constraints.trust_region
    if trust is None and explored is not None:
        trust = explored_region(explored, prepared.domains)
    limits = replace(
        config.limits,
        groups=(*config.limits.groups, *_same_steps(config, prepared)),
        lower={d.name: Amount(float(d.lower), "rows") for d in prepared.facts if d.lower > 0},
        upper={d.name: Amount(float(d.upper), "rows") for d in prepared.facts},
    )
    return Constraints(problem=problem, limits=limits, trust_region=trust)


def _same_steps(config: SearchConfig, prepared: Prepared) -> Iterator[Comparison]:
    """Keep the base's total of what a step counts beside a budget in the other unit: then the steps are kept too."""
    if (unit := config.kept_beside) is not None:
        domains = prepared.domains
        total = float((domains.lengths if unit == "tokens" else np.ones(len(domains))) @ domains.base)
        text = f"steps: keep the base's {total:,.0f} {unit}"
        yield Comparison(text, "==", dict.fromkeys(domains.names, 1.0), total, unit)


def make_objective(config: SearchConfig, yardstick: Yardstick | None = None) -> Objective:
    """Turn the run file's objective into the optimiser's."""
    asked, scales = config.objective, zip(config.capabilities, yardstick.scale if yardstick else (), strict=False)
    return Objective(
        kind=asked.kind, upper_confidence=asked.upper_confidence, kl_penalty=config.constraints.kl,
        weights={c.name: c.weight for c in config.capabilities} if asked.kind == "weighted" else None,
        scale={c.name: float(x) for c, x in scales if np.isfinite(x)} or None,
    )  # fmt: skip


def fit_response(
    evidence: Evidence, prepared: Prepared, seed: int, kinds: Sequence[str] | None = None
) -> tuple[ResponseModel, tuple[str, ...]]:
    """Fit the response model of the losses, or with kinds of what judges; what it warns of becomes notes."""
    model = ResponseModel(
        unit="rows", available=prepared.domains.available, base=prepared.domains.base, random_state=seed,
        kind="loss" if kinds is None else list(kinds),
    )  # fmt: skip
    logger = logging.getLogger("ideal_proxy.response")  # a fit's warnings are said in the search's own words
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        evidence.fit(model, prepared)
    finally:
        logger.setLevel(before)
    warnings = (diagnosis.warning for diagnosis in model.diagnostics_)
    return model, tuple(dict.fromkeys(text.rstrip(".") for text in warnings if text))


def _noise_of_check(
    model: ResponseModel, objective: Objective, constraints: Constraints, stick: Yardstick, pairs: int
) -> float:
    """Standard deviation of the gain that the check sees, over its pairs."""
    unit = stick.divisor(model.value_and_gradient(constraints.domains.base)[0])
    run_J = np.asarray(model.residual_scale_, dtype=float) / np.abs(unit)
    share_J = objective.weight_vector(constraints.problem)
    return spread_of_mean(share_J * run_J * np.sqrt(2.0 / pairs), model.correlation_)


def leeway_of(config: SearchConfig, proposal: Proposal, pairs: int) -> Leeway:
    """How far single volumes may move before the check would see it: by less than its own noise."""
    objective = make_objective(config, proposal.yardstick)
    slack = _noise_of_check(proposal.model, objective, proposal.constraints, proposal.yardstick, pairs)
    return leeway(proposal.model, objective, proposal.constraints, proposal.optimum.volumes, slack)


def _in_round_numbers(
    config: SearchConfig, model: ResponseModel, objective: Objective, constraints: Constraints, stick: Yardstick,
    optimum: Optimum, pairs: int,
) -> tuple[Optimum, tuple[str, ...]]:  # fmt: skip
    """Multiples of so many rows, if they cost less than the check could see."""
    rows = round_volumes(optimum.volumes, constraints, config.constraints.round)
    ratios = (
        stick.relative(*(model.value_and_gradient(v)[0] for v in (mixture, constraints.domains.base)))
        for mixture in (rows.astype(float), optimum.volumes)
    )
    weights = [c.weight for c in config.capabilities]
    cost = float(np.subtract(*(combine(ratio, config.objective.kind, weights) for ratio in ratios)))
    if cost <= _noise_of_check(model, objective, constraints, stick, pairs):
        return replace(optimum, rows=rows), ()
    step = config.constraints.round
    return optimum, (
        f"multiples of {step:,} rows would cost {cost:.2%}, which the check would see: they are not taken",
    )
