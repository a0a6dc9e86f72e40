"""From finished runs to proposed volumes: fit the response law, optimise, and say how sure both are.

Legend: R runs, D domains, J capabilities, S posterior draws.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from ideal_proxy.config import SearchConfig
from ideal_proxy.conflicts import check_linear
from ideal_proxy.constraints import Constraints, Problem, explored_region
from ideal_proxy.errors import UserError
from ideal_proxy.fit import ResponseModel, Responses
from ideal_proxy.objective import Objective
from ideal_proxy.optimize import Optimum, optimize
from ideal_proxy.prepare import Prepared
from ideal_proxy.rounding import round_volumes
from ideal_proxy.verdict import Bound, combine

Array = NDArray[np.float64]

BOOTSTRAP = 16  # refits with Bayesian-bootstrap weights
LEVEL = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class RunTable:
    """Finished runs in numbers.

    Attributes:
        ids: R run ids.
        volumes: rows in full-size terms, shape (R, D).
        losses: reference losses on the search rows, nats per supervised token, shape (R, J).
        seeds: seed of each run, shape (R,).
    """

    ids: tuple[str, ...]
    volumes: Array
    losses: Array
    seeds: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """Proposed volumes with what is expected of them.

    Attributes:
        rows: full-size rows of each domain, shape (D,).
        active: constraints that bind, in words.
        scope: `global optimum` or `best of k starts`, with the optimality residual.
        ratios: predicted L_j(proposal) / L_j(base) with the 90 % interval for the mean of the first pairs.
        base_losses: predicted losses at base, shape (J,).
        predicted_gain: relative gain in the objective, same interval.
        run_noise: standard deviation of one run's loss, relative, mean over capabilities.
        seed_noise: the same of a seed's common shift.
        notes: what the fit wants the user to know.
        model: the fitted response model.
        optimum: the optimiser's own result.
        table: the runs that were fitted.
        constraints: as used.
        responses: measured by gradients and given to the fit, which may have left them out; None where there are none.
    """

    rows: NDArray[np.int64]
    active: tuple[str, ...]
    scope: str
    ratios: tuple[Bound, ...]
    base_losses: Array
    predicted_gain: Bound
    run_noise: float
    seed_noise: float
    notes: tuple[str, ...]
    model: ResponseModel
    optimum: Optimum
    table: RunTable
    constraints: Constraints
    responses: tuple[Responses, ...] | None = None


def fit_and_propose(
    config: SearchConfig,
    prepared: Prepared,
    table: RunTable,
    baseline_loss: Array,
    *,
    seed: int,
    pairs: int = 3,
    responses: Sequence[Responses] | None = None,
) -> Proposal:
    """Fit the law to the runs and optimise the volumes.

    Args:
        config: the run file.
        prepared: the problem in numbers.
        table: the runs to fit.
        baseline_loss: Z_j, losses with no SFT row, shape (J,).
        seed: seed of starts and bootstrap.
        pairs: pairs that the prediction's interval is meant for.
        responses: measured by gradients; the fit decides how far it trusts them.

    Returns:
        Proposal: volumes in whole rows.

    Raises:
        UserError: the constraints contradict each other, or the fit is impossible.
    """
    model, notes = _fit(table, prepared, baseline_loss, seed, responses)
    problem = make_problem(prepared)
    constraints = make_constraints(config, prepared, problem, table.volumes)
    objective = make_objective(config)
    optimum = optimize(model, objective, constraints, random_state=seed)
    rows = round_volumes(optimum.volumes, constraints)
    base = prepared.column("base")
    ratios, gain = _predict(model, config, base, rows.astype(float), pairs)
    noise = np.asarray(model.residual_scale_, dtype=float)
    shift = np.asarray(model.seed_scale_, dtype=float)
    base_losses = model.value_and_gradient(base)[0]
    return Proposal(
        rows=rows,
        active=tuple(optimum.active),
        scope=f"{optimum.scope}, optimality residual {optimum.kkt_residual:.0e}",
        ratios=ratios,
        base_losses=base_losses,
        predicted_gain=gain,
        run_noise=float(np.mean(noise / base_losses)),
        seed_noise=float(np.mean(shift / base_losses)),
        notes=notes,
        model=model,
        optimum=optimum,
        table=table,
        constraints=constraints,
        responses=None if responses is None else tuple(responses),
    )


def gradient_note(model: ResponseModel, method: str) -> str:
    """Say what measured responses did to a fit, and why.

    Args:
        model: fitted with them.
        method: how they were estimated.

    Returns:
        str: a sentence without its full stop.
    """
    without = [error for trust, error in model.trust_errors_.items() if np.isfinite(trust)]
    if not np.isfinite(model.trust_):
        best = f" (error of runs left out {np.sqrt(min(without)):.2f} times that of losses alone at best)"
        return (
            f"Gradients ({method}) were left out of the fit: runs left out were not predicted better with them by more "
            f"than a standard error{best if without else ''}"
        )
    if not without:
        return (
            f"Gradients ({method}) entered the fit unchecked, for want of runs; each is allowed to miss by "
            f"{model.trust_:g} times their size"
        )
    return (
        f"Gradients ({method}) entered the fit: error of runs left out "
        f"{np.sqrt(model.trust_errors_[model.trust_]):.2f} times that of losses alone; each may miss by "
        f"{model.trust_:g} times their size"
    )


def make_problem(prepared: Prepared) -> Problem:
    """State the problem to the optimiser in full-size rows.

    Args:
        prepared: the problem in numbers.

    Returns:
        Problem: names, base, available rows, tokens a row.
    """
    return Problem(
        domains=tuple(prepared.domain_names),
        capabilities=tuple(prepared.capability_names),
        base=prepared.column("base"),
        available=prepared.column("available"),
        tokens_per_row=prepared.column("tokens_per_row"),
    )


def check_constraints(config: SearchConfig, prepared: Prepared) -> None:
    """Refuse, before anything is trained, limits that no mixture can meet.

    Args:
        config: the run file.
        prepared: bounds in rows.

    Raises:
        UserError: the limits contradict each other; an irreducible set of them is named.
    """
    constraints = make_constraints(config, prepared, make_problem(prepared), None)
    check_linear(constraints.atoms(), np.maximum(prepared.column("base"), 1.0))


def make_constraints(config: SearchConfig, prepared: Prepared, problem: Problem, explored: Array | None) -> Constraints:
    """Turn the run file's limits into the optimiser's.

    Args:
        config: the run file.
        prepared: bounds in rows.
        problem: names and base.
        explored: volumes that the swarm ran, shape (R, D): the default trust region; None for none.

    Returns:
        Constraints: all of them.
    """
    unit = config.budget.unit
    kind = {"keep": "keep", "at_most": "at most", "free": "free"}[config.budget.mode]
    budget = kind
    if config.budget.mode != "free" and config.budget.total is not None:
        budget = f"{'at most' if config.budget.mode == 'at_most' else 'exactly'} {config.budget.total} {unit}"
    trust = config.constraints.trust_region
    options: dict[str, Any] = {
        "budget": budget,
        "budget_unit": unit,
        "lower": {d.name: f"{d.lower} rows" for d in prepared.domains if d.lower > 0},
        "upper": {d.name: f"{d.upper} rows" for d in prepared.domains},
        "pinned": [entry.name for entry in config.domains if entry.pinned] or None,
        "repeat_cap": config.constraints.max_repeat,
        "groups": list(config.constraints.groups) or None,
        "must_not_drop": {c.name: c.must_not_drop for c in config.capabilities if c.must_not_drop is not None} or None,
        "trust_region": trust,
    }
    if trust is None and explored is not None:
        options["trust_region"] = explored_region(explored, problem)
    return Constraints.from_options(options, problem)


def make_objective(config: SearchConfig) -> Objective:
    """Turn the run file's objective into the optimiser's.

    Args:
        config: the run file.

    Returns:
        Objective: what to minimise.
    """
    weights = {c.name: c.weight for c in config.capabilities} if config.objective.kind == "weighted" else None
    return Objective(
        kind=config.objective.kind,
        weights=weights,
        upper_confidence=config.objective.upper_confidence,
        kl_penalty=config.constraints.kl,
    )


def _fit(
    table: RunTable, prepared: Prepared, baseline_loss: Array, seed: int, responses: Sequence[Responses] | None
) -> tuple[ResponseModel, tuple[str, ...]]:
    """Fit the response model; what it logs becomes notes."""
    model = ResponseModel(
        unit="rows", available=prepared.column("available"), base=prepared.column("base"), random_state=seed
    )
    with _notes() as notes:
        _fit_rows(model, table, prepared, baseline_loss, responses=responses)
    return model, tuple(dict.fromkeys(notes))


def _fit_rows(
    model: ResponseModel,
    table: RunTable,
    prepared: Prepared,
    baseline_loss: Array,
    weights: Array | None = None,
    responses: Sequence[Responses] | None = None,
) -> ResponseModel:
    """Fit a model to the runs under the names that users know."""
    return model.fit(
        pd.DataFrame(table.volumes, columns=prepared.domain_names),
        pd.DataFrame(table.losses, columns=prepared.capability_names),
        run_id=np.asarray(table.ids), seed_id=table.seeds, baseline_loss=baseline_loss, sample_weight=weights,
        responses=None if responses is None else list(responses),
    )  # fmt: skip


@contextlib.contextmanager
def _notes() -> Iterator[list[str]]:
    """Collect what the fit logs instead of printing it."""
    collected: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: collected.append(record.getMessage().rstrip("."))  # type: ignore[method-assign]
    logger = logging.getLogger("ideal_proxy")
    before = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield collected
    finally:
        logger.removeHandler(handler)
        logger.propagate = before


def _objective_value(config: SearchConfig, ratios: Array) -> Array:
    """Reduce ratios over the last axis as the run file's objective does."""
    return combine(ratios, config.objective.kind, [c.weight for c in config.capabilities])


def _predict(
    model: ResponseModel, config: SearchConfig, base: Array, rows: Array, pairs: int
) -> tuple[tuple[Bound, ...], Bound]:
    """Predict the ratios to base, with the interval in which the mean of the first pairs should fall."""
    here, there = (model.value_and_gradient(v)[0] for v in (rows, base))
    ratio_J = here / there
    draws_SJ = model.draws_value_and_gradient(rows)[0] / model.draws_value_and_gradient(base)[0]
    run_J = np.asarray(model.residual_scale_) / there * np.sqrt(2 / pairs)
    z = float(stats.norm.ppf(0.5 + LEVEL / 2))
    half_J = z * np.hypot(draws_SJ.std(axis=0), run_J)
    gain = 1 - float(_objective_value(config, ratio_J))
    gain_sd = np.hypot(_objective_value(config, draws_SJ).std(), float(np.sqrt((run_J**2).mean() / len(run_J))))
    bounds = tuple(Bound(float(r), float(r - h), float(r + h)) for r, h in zip(ratio_J, half_J, strict=True))
    return bounds, Bound(gain, gain - z * float(gain_sd), gain + z * float(gain_sd))


def bootstrap_volumes(
    config: SearchConfig, prepared: Prepared, proposal: Proposal, baseline_loss: Array, *, seed: int
) -> Array:
    """Refit with Bayesian-bootstrap weights, optimise again, and see how far the volumes move.

    Args:
        config: the run file.
        prepared: the problem in numbers.
        proposal: whose volumes are questioned.
        baseline_loss: Z_j, shape (J,).
        seed: of the weights.

    Returns:
        array: 5 % and 95 % quantile of every volume in full-size rows, shape (D, 2).
    """
    table, constraints, objective = proposal.table, proposal.constraints, make_objective(config)
    trust = proposal.model.trust_
    responses = proposal.responses if np.isfinite(trust) else None
    rng = np.random.default_rng(seed + 1)
    moved = []
    for draw in range(BOOTSTRAP):
        weights = rng.dirichlet(np.ones(len(table.ids))) * len(table.ids)
        # The law as it was chosen: choices by cross-validation among re-weighted runs would measure the choice.
        model = ResponseModel(
            unit="rows", available=prepared.column("available"), base=prepared.column("base"),
            process="never", harm=proposal.model.harm_, trust=float(trust), n_starts=1, n_draws=8,
            random_state=seed + draw,
        )  # fmt: skip
        try:
            with _notes():
                _fit_rows(model, table, prepared, baseline_loss, weights, responses)
            moved.append(optimize(model, objective, constraints, starts=[proposal.optimum.volumes], n_starts=2).volumes)
        except UserError:  # must-not-drop cannot be met under this draw: the volumes stay at base
            moved.append(prepared.column("base"))
    return np.quantile(np.array(moved), [0.05, 0.95], axis=0).T
