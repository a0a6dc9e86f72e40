"""One smooth program with bounds and linear rows: solve it, and certify the solution.

    minimise    smooth(v) + max_k pieces_k(v)
    subject to  lower <= v <= upper,  row_lower <= rows · v <= row_upper,  inequalities(v) <= 0

scipy's SLSQP solves it in v / scale. The certificate is computed apart from it: it needs only derivatives at the point.

Legend: D domains, M linear rows, K pieces, C nonlinear inequalities, G generators of the normal cone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize, nnls

from ideal_proxy.domains import FloatArray
from ideal_proxy.optimizer.constraints import ScalarFunction, VectorFunction

ACTIVE_SLACK = 1e-6
"""A constraint with less slack than this, in units of `scale`, may carry a multiplier."""
KKT_TOLERANCE = 1e-6
"""A point with a smaller optimality residual is called solved."""
_SHARP = 1e-9
_TOLERANCE, _SHARP_TOLERANCE = 1e-13, 1e-15  # of the objective
_RESTARTS = 4


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """A program over volumes (module docstring)."""

    scale: FloatArray  # typical size of each volume (D,), positive; residuals are measured in v / scale
    lower: FloatArray  # (D,), finite
    upper: FloatArray  # (D,), finite
    rows: FloatArray  # linear constraints (M, D)
    row_lower: FloatArray  # (M,), -inf where there is none
    row_upper: FloatArray  # (M,), inf where there is none
    smooth: ScalarFunction | None = None  # value and gradient (D,), or None for zero
    pieces: VectorFunction | None = None  # values (K,) and gradients (K, D), or None for no maximum
    inequalities: VectorFunction | None = None  # values (C,) and gradients (C, D), or None for none

    def evaluate(self, volumes: FloatArray) -> Evaluation:
        """Evaluate every function once, in scaled volumes x = v / scale."""
        size = len(self.scale)
        none = np.zeros(0), np.zeros((0, size))
        f, df = self.smooth(volumes) if self.smooth else (0.0, np.zeros(size))
        r, dr = self.pieces(volumes) if self.pieces else none
        g, dg = self.inequalities(volumes) if self.inequalities else none
        return Evaluation(f, df * self.scale, r, dr * self.scale, g, dg * self.scale)

    def scaled_rows(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Write the linear rows for x = v / scale with unit norm."""
        rows = self.rows * self.scale
        norm = np.maximum(np.linalg.norm(rows, axis=1), np.finfo(float).tiny)
        return rows / norm[:, None], self.row_lower / norm, self.row_upper / norm


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """Values and gradients of a program at one point, gradients with respect to v / scale."""

    f: float  # smooth part
    df: FloatArray  # (D,)
    r: FloatArray  # pieces (K,)
    dr: FloatArray  # (K, D)
    g: FloatArray  # inequalities (C,)
    dg: FloatArray  # (C, D)

    @property
    def objective(self) -> float:
        """The smooth part plus the largest piece."""
        return self.f + (float(self.r.max()) if self.r.size else 0.0)


@dataclass(frozen=True, slots=True, eq=False)
class Certificate:
    """How far a point is from optimal, from its derivatives alone."""

    residual: float  # largest of stationarity, complementarity and violation, in objective units per unit of v / scale
    violation: float  # largest violation: of bounds and rows in v / scale, of inequalities in their own unit
    gap: float  # for a convex program, objective minus this is a lower bound on the optimum (weak duality)
    reduced: FloatArray  # gradient of the Lagrangian without the bounds' multipliers (D,), per v / scale
    row_multipliers: FloatArray  # (M,), positive where the upper side pushes
    piece_multipliers: FloatArray  # (K,), not negative, sum one
    inequality_multipliers: FloatArray  # (C,), not negative


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """A local solution."""

    volumes: FloatArray  # (D,)
    objective: float  # the value there
    certificate: Certificate  # its proof


def certify(program: Program, volumes: FloatArray) -> Certificate:
    """Find the multipliers that best explain a point and measure what is left unexplained."""
    # Non-negative least squares over the constraints that are active at the point: no solver output is used.
    x = volumes / program.scale
    e = program.evaluate(volumes)
    low, high = program.lower / program.scale, program.upper / program.scale
    rows, row_low, row_high = program.scaled_rows()
    size, value = len(x), rows @ x
    has_pieces = bool(e.r.size)

    # Columns of the normal cone: (gradient, t-part), slack, and where the multiplier belongs.
    slack = np.concatenate([x - low, high - x, value - row_low, row_high - value, -e.g])
    gradient = np.concatenate([-np.eye(size), np.eye(size), -rows, rows, e.dg])
    # Unit columns keep the least squares well posed when one constraint is far steeper than another.
    norm = np.maximum(np.linalg.norm(gradient, axis=1), 1e-12)
    used = np.flatnonzero(slack / norm <= ACTIVE_SLACK)
    target = -e.df
    columns = [(gradient[used] / norm[used, None]).T]
    if has_pieces:
        piece_slack = e.r.max() - e.r
        pieces = np.flatnonzero(piece_slack <= ACTIVE_SLACK)
        # Σ multipliers = 1 enters as one more equation, weighted so that it holds to rounding.
        weight = 1e3
        columns = [
            np.vstack([columns[0], np.zeros((1, used.size))]),
            np.vstack([e.dr[pieces].T, np.full((1, pieces.size), weight)]),
        ]
        target = np.append(target, weight)
    matrix = np.hstack(columns)
    multiplier = _nnls(matrix, target)

    full = np.zeros(slack.size)
    full[used] = multiplier[: used.size] / norm[used]
    piece = np.zeros(e.r.size)
    if has_pieces:
        piece[pieces] = multiplier[used.size :]
        piece /= max(piece.sum(), 1e-300)
    split = np.cumsum([size, size, len(rows), len(rows)])
    at_low, at_high, row_at_low, row_at_high, inequality = np.split(full, split)
    row_multiplier = row_at_high - row_at_low
    reduced = e.df + piece @ e.dr + rows.T @ row_multiplier + e.dg.T @ inequality
    stationarity = reduced - at_low + at_high

    violation = float(max(0.0, -slack.min())) if slack.size else 0.0
    slackness = float(np.abs(full[used] * slack[used]).max(initial=0.0))
    if has_pieces:
        slackness = max(slackness, float((piece * (e.r.max() - e.r)).max()))
    # Weak duality over the box: the Lagrangian is convex, so its linearisation bounds it from below.
    gap = float(np.sum(np.maximum(reduced * (x - low), reduced * (x - high))))
    gap -= float(inequality @ e.g)
    gap += float(e.r.max() - piece @ e.r) if has_pieces else 0.0
    finite_low, finite_high = np.where(np.isfinite(row_low), row_low, 0), np.where(np.isfinite(row_high), row_high, 0)
    gap += float(row_at_high @ (finite_high - value) + row_at_low @ (value - finite_low))
    return Certificate(
        residual=max(float(np.abs(stationarity).max()), slackness, violation),
        violation=violation,
        gap=max(gap, 0.0),
        reduced=reduced,
        row_multipliers=row_multiplier,
        piece_multipliers=piece,
        inequality_multipliers=inequality,
    )


def solve(program: Program, start: FloatArray, *, sharp: bool = True, max_iterations: int = 300) -> Solution:
    """Solve a program from one start (feasible or not); sharp: again from the answer until that gains nothing."""
    best: Solution | None = None
    volumes = start
    goal, tolerance = (_SHARP, _SHARP_TOLERANCE) if sharp else (KKT_TOLERANCE, _TOLERANCE)
    for _ in range(_RESTARTS):
        volumes = _snapped(program, _slsqp(program, volumes, max_iterations, tolerance))
        found = Solution(volumes, program.evaluate(volumes).objective, certify(program, volumes))
        if best is not None and _rank(found) >= _rank(best):
            break
        best = found
        if found.certificate.residual <= goal:
            break
    assert best is not None
    return best


def project(program: Program, target: FloatArray) -> FloatArray:
    """Find the mixture nearest to a target that satisfies bounds and linear rows."""
    rows, low, high = program.scaled_rows()
    goal = target / program.scale
    bounds = np.column_stack([program.lower, program.upper]) / program.scale[:, None]
    # With the identity as Hessian, which is SLSQP's first guess, its first quadratic program is the answer.
    result = _quiet_minimize(
        lambda x: (0.5 * float((x - goal) @ (x - goal)), x - goal),
        np.clip(goal, *bounds.T),
        bounds,
        _linear_constraints(rows, low, high),
        100,
        _TOLERANCE,
    )
    return np.clip(result * program.scale, program.lower, program.upper)


def _rank(solution: Solution) -> tuple[bool, float, float]:
    certificate = solution.certificate
    return certificate.violation > KKT_TOLERANCE, round(solution.objective, 12), certificate.residual


def _snapped(program: Program, volumes: FloatArray) -> FloatArray:
    """Put volumes that are all but at a bound on it."""
    slack = 1e-8 * program.scale
    volumes = np.where(volumes - program.lower <= slack, program.lower, volumes)
    return np.where(program.upper - volumes <= slack, program.upper, volumes)


def _slsqp(program: Program, start: FloatArray, max_iterations: int, tolerance: float) -> FloatArray:
    scale = program.scale
    low, high = program.lower / scale, program.upper / scale
    if not (high > low).any():
        return program.lower.copy()
    has_t = program.pieces is not None  # the largest piece is one more variable
    size = len(scale)
    memo: dict[bytes, Evaluation] = {}

    def at(y: FloatArray) -> Evaluation:
        v = scale * y[:size]
        key = v.tobytes()
        if key not in memo:
            memo.clear()
            memo[key] = program.evaluate(v)
        return memo[key]

    def objective(y: FloatArray) -> tuple[float, FloatArray]:
        e = at(y)
        return (e.f + y[-1], np.append(e.df, 1.0)) if has_t else (e.f, e.df)

    def with_t(jacobian: FloatArray, t_part: float) -> FloatArray:
        return np.hstack([jacobian, np.full((len(jacobian), 1), t_part)]) if has_t else jacobian

    constraints = [
        {"type": c["type"], "fun": lambda y, c=c: c["fun"](y[:size]), "jac": lambda y, c=c: with_t(c["jac"](y), 0.0)}
        for c in _linear_constraints(*program.scaled_rows())
    ]
    if program.inequalities is not None:
        constraints.append({"type": "ineq", "fun": lambda y: -at(y).g, "jac": lambda y: with_t(-at(y).dg, 0.0)})
    if has_t:
        constraints.append({"type": "ineq", "fun": lambda y: y[-1] - at(y).r, "jac": lambda y: with_t(-at(y).dr, 1.0)})
    y = np.clip(start / scale, low, high)
    bounds = np.column_stack([low, high])
    if has_t:
        y = np.append(y, program.evaluate(y * scale).r.max())
        bounds = np.vstack([bounds, [-np.inf, np.inf]])
    best = _quiet_minimize(objective, y, bounds, constraints, max_iterations, tolerance)
    return np.clip(best[:size] * scale, program.lower, program.upper)


def _linear_constraints(rows: FloatArray, low: FloatArray, high: FloatArray) -> list[dict[str, Any]]:
    equal = high - low <= 1e-12
    below, above = np.isfinite(high) & ~equal, np.isfinite(low) & ~equal
    matrix = np.vstack([-rows[below], rows[above]])
    offset = np.concatenate([-high[below], low[above]])
    both: list[dict[str, Any]] = []
    if equal.any():
        both.append({"type": "eq", "fun": lambda x: rows[equal] @ x - low[equal], "jac": lambda _x: rows[equal]})
    if len(matrix):
        both.append({"type": "ineq", "fun": lambda x: matrix @ x - offset, "jac": lambda _x: matrix})
    return both


def _quiet_minimize(
    function: Callable[[FloatArray], tuple[float, FloatArray]],
    start: FloatArray,
    bounds: FloatArray,
    constraints: list[dict[str, Any]],
    max_iterations: int,
    tolerance: float,
) -> FloatArray:
    with warnings.catch_warnings():
        # SLSQP clips a trial point to the bounds and says so; every point is certified afterwards.
        warnings.filterwarnings("ignore", message="Values in x were outside bounds", category=RuntimeWarning)
        result = minimize(
            function,
            start,
            jac=True,
            bounds=bounds,
            constraints=constraints,
            method="SLSQP",
            options={"maxiter": max_iterations, "ftol": tolerance},
        )
    return np.asarray(result.x, dtype=np.float64)


def _nnls(matrix: FloatArray, target: FloatArray) -> FloatArray:
    if not matrix.shape[1]:
        return np.zeros(0)
    try:
        return np.asarray(nnls(matrix, target, maxiter=50 * matrix.shape[1])[0], dtype=np.float64)
    except RuntimeError:  # no convergence within maxiter: zero multipliers make the residual honest, not small
        return np.zeros(matrix.shape[1])
