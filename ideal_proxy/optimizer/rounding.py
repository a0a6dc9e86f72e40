"""Whole rows from an optimum, with the totals kept.

Legend: D domains.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp

from ideal_proxy.domains import FloatArray
from ideal_proxy.optimizer.constraints import Atom, Constraints, Limit

IntArray = NDArray[np.int64]
_ROUNDING = 1e-6


def round_volumes(volumes: FloatArray, constraints: Constraints, step: int = 1) -> IntArray:
    """Round an optimum to whole rows that satisfy the linear constraints."""
    # A total in rows is kept exactly. A total in tokens is never exceeded, and is missed by less than one row's tokens
    # where some domain still has room. Bounds and caps hold. Groups hold where whole rows allow it, else to within one
    # row. What a row more or less does to `must_not_drop` and KL is below the fit's resolution and not checked again.
    if constraints.domains.unit == "share":
        raise ValueError("shares have no rows to round to; multiply them with a number of rows first")
    v = np.asarray(volumes, dtype=np.float64)
    atoms = constraints.atoms()
    lower, upper = _whole_box(v, atoms)
    if step > 1:
        low, high = -(-lower // step), upper // step
        step_D = np.where(low <= high, step, 1)
        low, high = np.where(low <= high, low, np.rint(v)), np.where(low <= high, high, np.rint(v))
        return _tokens_to_total(v / step_D, low.astype(np.int64), high.astype(np.int64), constraints, step_D) * step_D
    in_rows = constraints.budget_unit == "rows"
    rows = _rows_to_total(v, lower, upper, constraints) if in_rows else _tokens_to_total(v, lower, upper, constraints)
    # The budget is the greedy pass's own business; what may break is a constraint on several volumes.
    groups = [a for a in atoms if a.index is None and a.kind is not Limit.BUDGET]
    if all(_holds(a, rows) for a in groups):
        return rows
    for slack in (0.0, 1.0):
        repaired = _repair(v, lower, upper, groups, rows, constraints, slack)
        if repaired is not None:
            return repaired
    return rows


def _whole_box(v: FloatArray, atoms: Sequence[Atom]) -> tuple[IntArray, IntArray]:
    low, high = np.zeros(len(v)), np.full(len(v), np.inf)
    for atom in atoms:
        if atom.index is not None:
            low[atom.index] = max(low[atom.index], atom.lower)
            high[atom.index] = min(high[atom.index], atom.upper)
    lower = np.ceil(low - _ROUNDING)
    upper = np.minimum(np.floor(high + _ROUNDING), np.floor(v) + 1e9)
    # No whole number lies between: the nearest one stands for the volume (a pin at 10.5 rows).
    empty = lower > upper
    lower[empty] = upper[empty] = np.floor(v[empty])
    return lower.astype(np.int64), upper.astype(np.int64)


def _rows_to_total(v: FloatArray, lower: IntArray, upper: IntArray, constraints: Constraints) -> IntArray:
    cap = constraints.budget_total
    total = round(float(v.sum()))
    if cap is not None:
        total = round(cap) if constraints.total_is_fixed else min(total, int(np.floor(cap + _ROUNDING)))
    rows = np.clip(np.floor(v + _ROUNDING).astype(np.int64), lower, upper)
    while (missing := total - int(rows.sum())) != 0:
        step = 1 if missing > 0 else -1
        room = rows < upper if step > 0 else rows > lower
        if not room.any():
            break
        # Largest remainder first; ties go to the earlier domain.
        order = [i for i in np.argsort(-step * (v - rows), kind="stable") if room[i]]
        rows[order[: abs(missing)]] += step
    return rows


def _tokens_to_total(
    v: FloatArray, lower: IntArray, upper: IntArray, constraints: Constraints, step_D: IntArray | int = 1
) -> IntArray:
    per_row = constraints.unit_weights() * step_D
    cap = constraints.budget_total
    wanted = float(per_row @ v)
    if cap is not None:
        wanted = cap if constraints.total_is_fixed else min(wanted, cap)
    wanted *= 1 + 1e-12
    rows = np.clip(np.floor(v + _ROUNDING).astype(np.int64), lower, upper)
    while per_row @ rows > wanted and (rows > lower).any():
        # Only where a bound pushed a floor up: take back what is furthest above its volume.
        excess = np.where(rows > lower, rows - v, -np.inf)
        rows[int(np.argmax(excess))] -= 1
    while True:
        fits = (rows < upper) & (per_row <= wanted - per_row @ rows)
        if not fits.any():
            return rows
        rows[int(np.argmax(np.where(fits, v - rows, -np.inf)))] += 1


def _holds(atom: Atom, rows: IntArray) -> bool:
    value = float(atom.weights @ rows)
    tolerance = _ROUNDING * max(1.0, float(np.abs(atom.weights).max()))
    return atom.lower - tolerance <= value <= atom.upper + tolerance


def _repair(
    v: FloatArray,
    lower: IntArray,
    upper: IntArray,
    groups: Sequence[Atom],
    rows: IntArray,
    constraints: Constraints,
    slack: float,
) -> IntArray | None:
    """Find the whole rows nearest to the volumes that satisfy groups and budget, by integer programming."""
    size = len(v)
    per_row = constraints.unit_weights()
    low = np.maximum(lower, np.floor(v) - 3)
    high = np.minimum(upper, np.ceil(v) + 3)
    eye = np.eye(size)
    # Variables: rows, then distances e >= |rows − v|.
    matrices = [np.hstack([eye, -eye]), np.hstack([eye, eye])]
    limits = [(np.full(size, -np.inf), v), (v, np.full(size, np.inf))]
    for atom in groups:
        give = slack * float(np.abs(atom.weights).max())
        matrices.append(np.append(atom.weights, np.zeros(size))[None])
        limits.append((np.array([atom.lower - give]), np.array([atom.upper + give])))
    if constraints.budget_total is not None:
        total = float(per_row @ rows)
        # Rows: the total that the greedy pass reached. Tokens: at most the budget, short by less than one row.
        exact = constraints.budget_unit == "rows"
        cap = total if exact else constraints.budget_total
        floor = total if exact else min(total, cap) - float(per_row.max())
        if not constraints.total_is_fixed:
            floor = -np.inf
        matrices.append(np.append(per_row, np.zeros(size))[None])
        limits.append((np.array([floor]), np.array([cap])))
    result = milp(
        np.append(np.zeros(size), np.ones(size)),
        integrality=np.append(np.ones(size), np.zeros(size)),
        bounds=Bounds(np.append(low, np.zeros(size)), np.append(high, np.full(size, 10.0))),
        constraints=LinearConstraint(
            np.vstack(matrices), np.concatenate([x[0] for x in limits]), np.concatenate([x[1] for x in limits])
        ),
        options={"mip_rel_gap": 0.01, "node_limit": 20000},
    )
    if result.x is None:
        return None
    found = np.rint(result.x[:size]).astype(np.int64)
    return np.asarray(np.clip(found, lower, upper), dtype=np.int64)
