"""Which constraints contradict each other: an irreducible set, found by a deletion filter.

Legend: D domains, C nonlinear constraints.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from scipy.optimize import linprog

from ideal_proxy.domains import FloatArray
from ideal_proxy.errors import UserError
from ideal_proxy.optimizer.constraints import Atom, Limit, ScalarFunction, show
from ideal_proxy.optimizer.program import Program, project, solve

Member = TypeVar("Member")
FEASIBLE = 1e-7
"""A set is called feasible where its least violation (unit rows in v / scale; relative losses) is below this."""


class InfeasibleError(UserError):
    """No mixture satisfies the constraints."""

    def __init__(self, message: str, conflict: Sequence[str]) -> None:
        super().__init__(message)
        self.conflict = tuple(conflict)


@dataclass(frozen=True, slots=True, eq=False)
class NonlinearAtom:
    """One nonlinear constraint `function(v) <= 0` under the name that the user knows."""

    kind: Limit  # of limit
    label: str  # what the user sees
    function: ScalarFunction  # value and gradient (D,)
    convex: bool  # whether it is certified convex


def box(atoms: Sequence[Atom], size: int) -> tuple[FloatArray, FloatArray]:
    """Merge bounds on single volumes."""
    lower, upper = np.zeros(size), np.full(size, np.inf)
    for atom in atoms:
        if atom.index is not None:
            lower[atom.index] = max(lower[atom.index], atom.lower)
            upper[atom.index] = min(upper[atom.index], atom.upper)
    return lower, upper


def check_linear(atoms: Sequence[Atom], scale: FloatArray) -> None:
    """Make sure that some mixture satisfies the linear constraints."""
    matrix, bound, _, _ = _one_sided(atoms, scale)
    if np.all(matrix.sum(axis=1) <= bound):  # base itself, as a rule: no program needs to be solved
        return
    violation, _, support = _least_violation(atoms, scale)
    if violation <= FEASIBLE:
        return
    # The constraints with a multiplier contradict each other already (Farkas); the filter works within them.
    candidates = [atoms[k] for k in support]
    if _least_violation(candidates, scale)[0] <= FEASIBLE:
        candidates = list(atoms)
    kept = deletion_filter(candidates, lambda some: _least_violation(some, scale)[0] <= FEASIBLE)
    parts = []
    for atom in kept:
        miss = _miss(atom, [a for a in kept if a is not atom], scale)
        parts.append(f'"{atom.label}"' + (f" (misses by {show(miss, atom.unit)})" if miss > 0 else ""))
    raise InfeasibleError(_sentence("No mixture can satisfy", parts), [atom.label for atom in kept])


def check_nonlinear(
    program: Program, atoms: Sequence[Atom], nonlinear: Sequence[NonlinearAtom], starts: Sequence[FloatArray]
) -> FloatArray:
    """Find a mixture that satisfies the nonlinear constraints too, or say which constraints contradict."""
    violation, point = _search(program, atoms, nonlinear, starts)
    if violation <= FEASIBLE:
        return point
    tight = [a for a in atoms if _slack(a, point, program.scale) <= 1e-5]
    members: list[Atom | NonlinearAtom] = [*nonlinear, *tight]

    def feasible(some: Sequence[Atom | NonlinearAtom]) -> bool:
        linear = [a for a in some if isinstance(a, Atom)]
        rest = [a for a in some if isinstance(a, NonlinearAtom)]
        return not rest or _search(program, linear, rest, [*starts, point])[0] <= FEASIBLE

    if feasible(members):
        members = [*nonlinear, *atoms]
    kept = deletion_filter(members, feasible)
    proven = all(a.convex for a in kept if isinstance(a, NonlinearAtom))
    opening = "No mixture can satisfy" if proven else f"In {len(starts)} starts no mixture was found that satisfies"
    labels = [a.label for a in kept]
    raise InfeasibleError(_sentence(opening, [f'"{label}"' for label in labels]), labels)


def deletion_filter(members: Sequence[Member], feasible: Callable[[Sequence[Member]], bool]) -> list[Member]:
    """Reduce an infeasible set until every member is needed (Chinneck and Dravnieks 1991)."""
    kept = list(members)
    for member in members:
        without = [m for m in kept if m is not member]
        if not feasible(without):
            kept = without
    return kept


def _sentence(opening: str, parts: Sequence[str]) -> str:
    if len(parts) == 1:
        return f"{opening} {parts[0]}, whatever else is asked; drop or loosen it."
    return f"{opening} {', '.join(parts[:-1])} and {parts[-1]} together; drop or loosen any one of them."


def _one_sided(atoms: Sequence[Atom], scale: FloatArray) -> tuple[FloatArray, FloatArray, list[int], FloatArray]:
    """Write constraints as A x <= b with unit rows; also whose row each is, and its norm."""
    rows, bounds, owner, norms = [np.zeros((0, len(scale)))], [], [], []
    for k, atom in enumerate(atoms):
        row = atom.weights * scale
        norm = max(float(np.linalg.norm(row)), 1e-300)
        for sign, bound in ((1.0, atom.upper), (-1.0, -atom.lower)):
            if np.isfinite(bound):
                rows.append(sign * row[None] / norm)
                bounds.append(bound / norm)
                owner.append(k)
                norms.append(norm)
    return np.vstack(rows), np.array(bounds), owner, np.array(norms)


def _least_violation(atoms: Sequence[Atom], scale: FloatArray) -> tuple[float, FloatArray, list[int]]:
    """Minimise the summed violation; return it, the mixture, and which constraints carry multipliers."""
    matrix, bound, owner, _ = _one_sided(atoms, scale)
    count, size = matrix.shape
    if not count:
        return 0.0, np.zeros(size), []
    cost = np.concatenate([np.zeros(size), np.ones(count)])
    result = linprog(cost, A_ub=np.hstack([matrix, -np.eye(count)]), b_ub=bound, bounds=(0, None), method="highs")
    if result.status != 0:
        raise RuntimeError(f"the linear program of the constraints ended with: {result.message}")
    support = sorted({owner[k] for k in np.flatnonzero(np.abs(result.ineqlin.marginals) > 1e-9)})
    return float(result.fun), np.asarray(result.x[:size] * scale), support


def _miss(atom: Atom, others: Sequence[Atom], scale: FloatArray) -> float:
    """By how much one constraint must give way, in its own unit, for the others to hold."""
    own, own_bound, _, norms = _one_sided([atom], scale)
    matrix, bound, _, _ = _one_sided(others, scale)
    rows = np.vstack([np.hstack([matrix, np.zeros((len(matrix), 1))]), np.hstack([own, -np.ones((len(own), 1))])])
    cost = np.append(np.zeros(len(scale)), 1.0)
    result = linprog(cost, A_ub=rows, b_ub=np.concatenate([bound, own_bound]), bounds=(0, None), method="highs")
    return float(result.fun * norms[0]) if result.status == 0 else 0.0


def _slack(atom: Atom, point: FloatArray, scale: FloatArray) -> float:
    norm = max(float(np.linalg.norm(atom.weights * scale)), 1e-300)
    value = float(atom.weights @ point)
    return min(atom.upper - value, value - atom.lower) / norm


def _search(
    program: Program, atoms: Sequence[Atom], nonlinear: Sequence[NonlinearAtom], starts: Sequence[FloatArray]
) -> tuple[float, FloatArray]:
    """Minimise the largest nonlinear violation under the linear constraints; stop at the first feasible point."""
    size = len(program.scale)
    lower, upper = box(atoms, size)
    general = [a for a in atoms if a.index is None]

    def pieces(v: FloatArray) -> tuple[FloatArray, FloatArray]:
        values, gradients = zip(*(a.function(v) for a in nonlinear), strict=True)
        return np.array(values), np.array(gradients)

    search = Program(
        scale=program.scale,
        lower=np.minimum(lower, upper),
        # Far beyond any mixture: only reached where the filter has taken budget and caps away.
        upper=np.minimum(upper, np.maximum(lower, 1e3 * program.scale.max())),
        rows=np.array([a.weights for a in general]).reshape(-1, size),
        row_lower=np.array([a.lower for a in general]),
        row_upper=np.array([a.upper for a in general]),
        pieces=pieces,
    )
    best = np.inf, starts[0]
    for start in starts:
        begin = project(search, start)
        found = solve(search, begin)
        if found.certificate.violation <= FEASIBLE and found.objective < best[0]:
            best = found.objective, found.volumes
        if best[0] <= FEASIBLE:
            break
    return best
