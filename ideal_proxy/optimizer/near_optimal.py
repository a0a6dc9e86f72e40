"""Volumes that are as good as the optimum, for all that the fit knows: the one nearest base, and how far each may move.

Legend: D domains, S posterior draws.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ideal_proxy.domains import FloatArray
from ideal_proxy.optimizer.constraints import Constraints, ScalarFunction, VectorFunction
from ideal_proxy.optimizer.objective import Objective, ResponseSurface, kl_from_base
from ideal_proxy.optimizer.optimum import optimize, prepare
from ideal_proxy.optimizer.program import KKT_TOLERANCE, Program, solve
from ideal_proxy.optimizer.result import Optimum

NEAR = 1e-6
"""Nats from base below which a mixture is base."""
MOVED = 0.05
"""A volume has moved where its logarithm has by more than this."""
PULLS = (0.05, 0.2, 0.8)
"""Pulls to base that are tried, in units of the predicted gain over the divergence of the optimum from base."""
DOUBT = 0.25
"""A pull may cost this part of the standard deviation of what it costs over the posterior draws."""
COST = 0.05
"""and this part of the predicted gain."""
FREE = 0.8
"""A volume does not matter where it may move through this part of what its limits allow, in logarithms."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Leeway:
    """How far single volumes may move, the others moving with them as is best, before the objective tells."""

    lower: FloatArray  # (D,) smallest volumes
    upper: FloatArray  # (D,) largest volumes
    slack: float  # what the objective may lose by it
    open: tuple[str, ...]  # domains whose volume does not matter within the limits
    unsettled: tuple[str, ...]  # domains that the proposal moves although their volume at base is as good


def nearest_base(model: ResponseSurface, objective: Objective, constraints: Constraints, best: Optimum) -> Optimum:
    """Among mixtures that the draws cannot tell from the optimum take the one nearest base."""
    task = prepare(model, objective, constraints)
    kl = kl_from_base(constraints)
    gain, far = best.predicted_gain, kl(best.volumes)[0]
    if gain <= 0 or far < NEAR or objective.kind == "worst" or objective.upper_confidence is not None:
        return best
    weights = objective.weight_vector(constraints.problem)
    best_S = task.losses.draws(best.volumes) @ weights
    chosen, start = best, best.volumes
    for pull in PULLS:
        pulled = replace(objective, kl_penalty=objective.kl_penalty + pull * gain / far)
        found = optimize(model, pulled, constraints, starts=[start], n_starts=1)
        start = found.volumes
        value = task.program.evaluate(start).objective
        doubt = float((task.losses.draws(start) @ weights - best_S).std())
        if value - best.objective > min(DOUBT * doubt, COST * gain):
            break
        chosen = replace(found, objective=value, starts=best.starts)
    return chosen


def leeway(
    model: ResponseSurface, objective: Objective, constraints: Constraints, volumes: FloatArray, slack: float
) -> Leeway:
    """Move each volume as far as the limits and a loss of `slack` in the objective allow."""
    program = prepare(model, objective, constraints).program
    allowed = program.evaluate(volumes).objective + slack
    domains, eta = constraints.domains, constraints.eta
    ends = np.tile(volumes, (2, 1))
    for i, scale in enumerate(program.scale):
        unit = np.eye(len(volumes))[i] / scale
        for side, sign in enumerate((1.0, -1.0)):
            moved = replace(program, pieces=None, smooth=_linear(sign * unit), inequalities=_bounded(program, allowed))
            found = solve(moved, volumes, sharp=False)
            if found.certificate.violation <= KKT_TOLERANCE:
                ends[side, i] = found.volumes[i]
    lower, upper = np.minimum(ends[0], volumes), np.maximum(ends[1], volumes)
    width, room = (np.log((high + eta) / (low + eta)) for low, high in ((lower, upper), (program.lower, program.upper)))
    free = (room > 0) & (width >= FREE * room)
    moves = np.abs(np.log((volumes + eta) / (domains.base + eta))) > MOVED
    unsettled = moves & ~free & (lower <= domains.base) & (domains.base <= upper)
    names = np.array(domains.names, dtype=object)
    return Leeway(lower=lower, upper=upper, slack=slack, open=tuple(names[free]), unsettled=tuple(names[unsettled]))


def _linear(weights: FloatArray) -> ScalarFunction:
    return lambda v: (float(weights @ v), weights)


def _bounded(program: Program, allowed: float) -> VectorFunction:
    """The program's inequalities, and its objective as one more (of pieces: one each)."""

    def function(v: FloatArray) -> tuple[FloatArray, FloatArray]:
        parts = [] if program.inequalities is None else [program.inequalities(v)]
        smooth, by = program.smooth(v) if program.smooth else (0.0, np.zeros(len(v)))
        pieces, by_pieces = program.pieces(v) if program.pieces else (np.zeros(1), np.zeros((1, len(v))))
        parts.append(((smooth + pieces - allowed), by + by_pieces))
        return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])

    return function
