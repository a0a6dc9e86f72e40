"""Other ways to the optimum of an explicit law: a refined grid, and cvxpy. Slow, independent of our solver."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from explicit_law import DELTA, ExplicitLaw, FloatArray

from ideal_proxy.optimizer.constraints import Constraints
from ideal_proxy.optimizer.objective import Objective, RelativeLosses
from ideal_proxy.optimizer.optimum import nonlinear_atoms, prepare
from ideal_proxy.optimizer.program import certify

Score = Callable[[FloatArray, FloatArray], FloatArray]
"""Relative losses (R, J) and volumes (R, D) to the objective (R,)."""


def brute_force(
    law: ExplicitLaw, constraints: Constraints, score: Score, steps: int, rounds: int = 3, *, keep: float | None = None
) -> float:
    """The least objective on a grid over the budget's hyperplane, refined around the best point."""
    problem = constraints.problem
    per_row, total = constraints.unit_weights(), constraints.budget_total
    atoms = constraints.atoms()
    low, high = np.zeros(len(per_row)), total / per_row
    for atom in atoms:
        if atom.index is not None:
            low[atom.index] = max(low[atom.index], atom.lower)
            high[atom.index] = min(high[atom.index], atom.upper)
    first = low.copy(), high.copy()
    last = int(np.argmax(high - low))
    others = [i for i in range(len(per_row)) if i != last]
    best, point = np.inf, problem.domains.base
    relative = RelativeLosses(law, problem)
    for _ in range(rounds):
        axes = [np.linspace(low[i], high[i], steps if high[i] > low[i] else 1) for i in others]
        grid = np.array(list(itertools.product(*axes)))
        v = np.zeros((len(grid), len(per_row)))
        v[:, others] = grid
        v[:, last] = (total - grid @ per_row[others]) / per_row[last]
        allowed = np.all(v >= 0, axis=1)
        for atom in atoms:
            value = v @ atom.weights
            tolerance = 1e-9 * max(1, np.abs(atom.weights * problem.domains.base).sum())
            allowed &= (value >= atom.lower - tolerance) & (value <= atom.upper + tolerance)
        v = v[allowed]
        value = score(law.losses(v) / relative.base_losses_J, v)
        if value.min() < best:
            best, point = float(value.min()), v[np.argmin(value)]
        # A worst case has a valley with a kink, along which a grid must be allowed to wander: keep more of it.
        width = (high - low) * (2 / (steps - 1) if keep is None else keep)
        low, high = np.maximum(point - width, first[0]), np.minimum(point + width, first[1])
    return best


def cvxpy_optimum(law: ExplicitLaw, constraints: Constraints, worst: bool) -> float:
    """The optimum by disciplined convex programming (Clarabel); the law must have no harm."""
    import cvxpy as cp

    problem = constraints.problem
    size = len(problem.domains.base)
    share, more = cp.Variable(size, nonneg=True), cp.Variable(size, nonneg=True)
    x, rules = share, []
    if law.available_D is not None:
        cap = law.available_D / law.unit
        rules.append(share <= cap)
        u = share + cp.multiply(cap * law.rho, 1 - cp.exp(-cp.multiply(1 / (cap * law.rho), more)))
        x = share + more
    else:
        u = share
        rules.append(more == 0)
    for atom in constraints.atoms():
        value = (atom.weights * law.unit) @ x
        if np.isfinite(atom.upper):
            rules.append(value <= atom.upper)
        if np.isfinite(atom.lower):
            rules.append(value >= atom.lower)
    base = RelativeLosses(law, problem).base_losses_J
    ratios = []
    for j in range(len(base)):
        g = law.gamma_J[j]
        total = 1 + law.a_JD[j] @ (cp.power(u + DELTA, g) - DELTA**g)
        span = law.start_J[j] - law.floor_J[j]
        ratios.append((law.floor_J[j] + span * cp.power(total, -law.alpha_J[j])) / base[j])
    goal = cp.maximum(*ratios) if worst else sum(ratios) / len(ratios)
    return float(cp.Problem(cp.Minimize(goal), rules).solve(solver="CLARABEL"))


def kkt_residual(law: Any, objective: Objective, constraints: Constraints, volumes: FloatArray) -> float:
    """How far any mixture is from a stationary point of the problem."""
    return certify(prepare(law, objective, constraints).program, np.asarray(volumes, dtype=float)).residual


def violations(law: Any, constraints: Constraints, volumes: FloatArray) -> dict[str, float]:
    """The constraints that a mixture breaks, and by how much."""
    found = {"volumes are not negative": float(-volumes.min())}
    for atom in constraints.atoms():
        value = float(atom.weights @ volumes)
        found[atom.label] = max(atom.lower - value, value - atom.upper)
    for hard in nonlinear_atoms(law, RelativeLosses(law, constraints.problem), constraints):
        found[hard.label] = hard.function(volumes)[0]
    return {label: miss for label, miss in found.items() if miss > 0}
