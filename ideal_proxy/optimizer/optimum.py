"""Volumes under constraints: the best mixture by the fitted response, with a proof of how good it is.

Legend: D domains, J capabilities. Volumes are full-size rows (or shares).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from ideal_proxy.domains import FloatArray
from ideal_proxy.errors import UsageError, UserError
from ideal_proxy.optimizer.conflicts import NonlinearAtom, box, check_linear, check_nonlinear
from ideal_proxy.optimizer.constraints import Atom, Constraints, Limit, ScalarFunction, VectorFunction, show
from ideal_proxy.optimizer.objective import (
    Objective,
    RelativeLosses,
    ResponseSurface,
    each_function,
    kl_excess,
    kl_from_base,
    weighted_function,
)
from ideal_proxy.optimizer.program import KKT_TOLERANCE, Certificate, Program, Solution, certify, project, solve
from ideal_proxy.optimizer.result import REPORT_CONFIDENCE, Message, Optimum

_GAP = 1e-6
_TIGHT = 1e-6
_NO_GAIN = 1e-6
_AGREE = 1e-8


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """A problem made ready for the solver."""

    constraints: Constraints  # as given
    losses: RelativeLosses  # relative losses
    program: Program  # bounds, rows and functions
    atoms: list[Atom]  # the linear constraints by name
    nonlinear: list[NonlinearAtom]  # the nonlinear constraints by name
    convex: bool  # whether the problem is certified convex
    enough: int  # starts that must agree before the rest are spared


def optimize(
    model: ResponseSurface,
    objective: Objective,
    constraints: Constraints,
    *,
    random_state: int | np.random.Generator = 0,
    n_starts: int = 8,
    starts: Iterable[FloatArray] = (),
) -> Optimum:
    """Find the volumes that minimise the objective under the constraints.

    Where the fitted problem is convex it stops at the first start that is proven optimal, else when enough starts
    agree: three where every loss is convex and only an upper bound is not, four where a loss is not.

    Args:
        model: the fitted response.
        objective: what to minimise.
        constraints: what must hold.
        random_state: of the starts.
        n_starts: most starts to try where the problem is not convex.
        starts: further starts (D,), tried first.

    Returns:
        The best mixture found.

    Raises:
        UserError: the constraints contradict each other (`InfeasibleError` names them) or leave a volume unbounded.
    """
    return run(prepare(model, objective, constraints), random_state, n_starts, starts)


def prepare(
    model: ResponseSurface,
    objective: Objective,
    constraints: Constraints,
    extra: Sequence[NonlinearAtom] = (),
    losses: RelativeLosses | None = None,
) -> Task:
    """Make a problem ready for the solver; `losses` are those that the extra atoms ask, for they keep an answer."""
    problem = constraints.problem
    losses = losses or RelativeLosses(model, problem, objective.scale)
    atoms = constraints.atoms()
    scale = np.maximum(problem.domains.base, 0.1 * problem.domains.base.mean())
    check_linear(atoms, scale)
    lower, upper = _finite_box(constraints, atoms)
    general = [a for a in atoms if a.index is None]
    nonlinear = [*nonlinear_atoms(model, losses, constraints), *extra]

    weights, level = objective.weight_vector(problem), objective.upper_confidence
    worst = objective.kind == "worst"
    smooth = None if worst else weighted_function(losses, weights, level)
    pieces = each_function(losses, list(range(len(weights))), level) if worst else None
    if objective.kl_penalty:
        smooth = _plus_kl(smooth, kl_from_base(constraints), objective.kl_penalty)

    def inequalities(v: FloatArray) -> tuple[FloatArray, FloatArray]:
        values, gradients = zip(*(a.function(v) for a in nonlinear), strict=True)
        return np.array(values), np.array(gradients)

    program = Program(
        scale=scale,
        lower=lower,
        upper=upper,
        rows=np.array([a.weights for a in general]).reshape(-1, len(scale)),
        row_lower=np.array([a.lower for a in general]),
        row_upper=np.array([a.upper for a in general]),
        smooth=smooth,
        pieces=pieces,
        inequalities=inequalities if nonlinear else None,
    )
    used = np.asarray(model.is_convex_, dtype=bool)[weights > 0]
    convex = (
        bool(used.all())
        and (level or 0.5) <= 0.5
        and (not objective.kl_penalty or constraints.total_is_fixed)
        and all(a.convex for a in nonlinear)
    )
    enough = 3 if np.asarray(model.is_convex_, dtype=bool).all() else 4
    return Task(constraints, losses, program, atoms, nonlinear, convex, enough)


def _plus_kl(smooth: ScalarFunction | None, kl: ScalarFunction, penalty: float) -> ScalarFunction:
    def function(v: FloatArray) -> tuple[float, FloatArray]:
        value, gradient = kl(v)
        if smooth is None:
            return penalty * value, penalty * gradient
        own, own_gradient = smooth(v)
        return own + penalty * value, own_gradient + penalty * gradient

    return function


def nonlinear_atoms(model: ResponseSurface, losses: RelativeLosses, constraints: Constraints) -> list[NonlinearAtom]:
    """List the protected capabilities and the divergence from base, one by one."""
    atoms = []
    level = constraints.confidence
    bounds = _once(each_function(losses, list(range(len(losses.base_losses_J))), level))
    for name, (what, tolerance, allowed) in _tolerances(losses, constraints).items():
        j = constraints.problem.capabilities.index(name)
        label = f"{what}: {name} (tolerance {100 * tolerance:g} %, {100 * level:g} % upper bound)"
        function = at_most(_one_of(bounds, j), allowed)
        # An upper bound adds a standard deviation, which is not convex in general.
        atoms.append(NonlinearAtom(Limit.PROTECTION, label, function, bool(model.is_convex_[j]) and level <= 0.5))
    if (cap := constraints.kl_cap) is not None:
        atoms.append(
            NonlinearAtom(Limit.DIVERGENCE, f"KL from base <= {cap:g} nats", kl_excess(constraints, cap), True)
        )
    return atoms


def _once(function: VectorFunction) -> VectorFunction:
    """Keep the answer at the last point: every protected capability asks for it there."""
    kept: dict[bytes, tuple[FloatArray, FloatArray]] = {}

    def remembered(v: FloatArray) -> tuple[FloatArray, FloatArray]:
        key = v.tobytes()
        if key not in kept:
            kept.clear()
            kept[key] = function(v)
        return kept[key]

    return remembered


def _one_of(function: VectorFunction, j: int) -> ScalarFunction:
    def one(v: FloatArray) -> tuple[float, FloatArray]:
        values, gradients = function(v)
        return float(values[j]), gradients[j]

    return one


def _tolerances(losses: RelativeLosses, constraints: Constraints) -> dict[str, tuple[str, float, float]]:
    """Give each protected capability's strictest limit: its kind, its tolerance, the largest relative loss."""
    found: dict[str, tuple[str, float, float]] = {}
    for name, tolerance in constraints.limits.must_not_drop.items():
        allowed = losses.allowance(tolerance, constraints.problem.capabilities.index(name))
        found[name] = "must not drop", tolerance, allowed
    for name, tolerance in constraints.limits.protect.items():
        if name not in found or losses.base_value + tolerance < found[name][2]:
            found[name] = "protect", tolerance, losses.base_value + tolerance
    return found


def at_most(function: ScalarFunction, limit: float) -> ScalarFunction:
    """Turn `function(v) <= limit` into `<= 0`."""

    def excess(v: FloatArray) -> tuple[float, FloatArray]:
        value, gradient = function(v)
        return value - limit, gradient

    return excess


def _finite_box(constraints: Constraints, atoms: Sequence[Atom]) -> tuple[FloatArray, FloatArray]:
    lower, upper = box(atoms, len(constraints.domains))
    if (total := constraints.budget_total) is not None:
        upper = np.minimum(upper, total / constraints.unit_weights())
    if not np.all(np.isfinite(upper)):
        names = [d for d, x in zip(constraints.domains.names, upper, strict=True) if not np.isfinite(x)]
        raise UserError(
            f"Nothing limits the volume of {', '.join(names)}: the budget is free and there is no cap; give a "
            "budget, an upper bound, a trust region, or available rows with a repeat cap."
        )
    # Feasible bounds may still cross by rounding.
    return np.minimum(lower, upper), upper


def _starts(task: Task, rng: np.random.Generator, count: int) -> Iterable[FloatArray]:
    """Base first, then the middle of the box, then mixtures spread log-normally about the base."""
    program, base = task.program, task.constraints.domains.base
    yield project(program, base)
    if count > 1:
        yield project(program, (program.lower + program.upper) / 2)
    spread = np.maximum(base, program.scale)
    for _ in range(count - 2):
        yield project(program, spread * np.exp(rng.normal(0.0, 1.0, len(base))))


def run(
    task: Task, random_state: int | np.random.Generator, n_starts: int, first: Iterable[FloatArray] = ()
) -> Optimum:
    """Solve a problem from several starts."""
    if n_starts < 1:
        raise UsageError(f"n_starts is {n_starts}; at least one start is needed.")
    rng = np.random.default_rng(random_state)
    program = task.program
    begun = [project(program, np.asarray(x, dtype=np.float64)) for x in first]
    best: Solution | None = None
    tried = 0
    objectives: list[float] = []
    for start in chain(list(begun), _starts(task, rng, n_starts)):
        found = solve(program, start, sharp=False)
        tried += 1
        begun.append(start)
        if best is None or _rank(found) < _rank(best):
            best = found
        objectives.append(found.objective if _proven(found) else np.inf)
        agree = sum(abs(x - best.objective) <= _AGREE for x in objectives)
        if (task.convex and _proven(found)) or agree >= task.enough:
            break
    assert best is not None
    if best.certificate.violation > KKT_TOLERANCE:
        point = check_nonlinear(program, task.atoms, task.nonlinear, begun)
        allowed = Solution(point, program.evaluate(point).objective, certify(program, point))
        best = min((best, allowed, solve(program, point)), key=_rank)
        tried += 1
    else:
        sharp = solve(program, best.volumes)
        best = sharp if sharp.objective <= best.objective + _AGREE else best
    return _report(task, _prefer_base(task, best), tried)


def _rank(solution: Solution) -> tuple[bool, float]:
    """Allowed before not allowed; then the lower objective, or the smaller violation."""
    broken = solution.certificate.violation > KKT_TOLERANCE
    return broken, solution.certificate.violation if broken else solution.objective


def _proven(solution: Solution) -> bool:
    c = solution.certificate
    return c.violation <= KKT_TOLERANCE and (c.gap <= _GAP or c.residual <= KKT_TOLERANCE)


def _prefer_base(task: Task, best: Solution) -> Solution:
    """Keep the base mixture where it is allowed and nothing found is better."""
    base = task.constraints.domains.base
    certificate = _certificate(task, base)
    objective = task.program.evaluate(base).objective
    if certificate.violation > 1e-9 or objective > best.objective:
        return best
    return Solution(base.copy(), objective, certificate)


def _certificate(task: Task, volumes: FloatArray) -> Certificate:
    return certify(task.program, np.asarray(volumes, dtype=np.float64))


def _report(task: Task, solution: Solution, starts: int) -> Optimum:
    problem, losses, v = task.constraints.problem, task.losses, solution.volumes
    certificate = _certificate(task, v)
    if certificate.violation > KKT_TOLERANCE:
        raise UserError(
            f"No mixture was found in {starts} starts that satisfies every constraint to {KKT_TOLERANCE:g}; "
            "loosen a tolerance or try more starts."
        )
    objective = task.program.evaluate(v).objective
    base_objective = task.program.evaluate(problem.domains.base).objective
    relative = losses.point(v)[0]
    upper = each_function(losses, list(range(len(relative))), REPORT_CONFIDENCE)(v)[0]
    solved = certificate.residual <= KKT_TOLERANCE or (task.convex and certificate.gap <= _GAP)
    no_gain = base_objective - objective <= _NO_GAIN and np.allclose(v, problem.domains.base, rtol=1e-3)
    if not solved:
        message = Message.NOT_SOLVED
    elif task.convex:
        message = Message.GLOBAL_BASE if no_gain else Message.GLOBAL
    else:
        message = Message.LOCAL_BASE if no_gain else Message.LOCAL
    active = list(_active(task, v))
    return Optimum(
        problem=problem,
        volumes=v,
        objective=objective,
        base_objective=base_objective,
        losses=losses.absolute(relative),
        base_losses=losses.base_losses_J,
        relative=relative,
        relative_upper=upper,
        active=tuple(label for _, label in active),
        binding=frozenset(kind for kind, _ in active),
        kkt_residual=certificate.residual,
        gap=certificate.gap if task.convex else None,
        convex=task.convex,
        starts=starts,
        message=message,
    )


def _active(task: Task, v: FloatArray) -> Iterable[tuple[Limit, str]]:
    problem, scale = task.constraints.problem, task.program.scale
    for atom in task.atoms:
        norm = float(np.linalg.norm(atom.weights * scale))
        value = float(atom.weights @ v)
        if min(atom.upper - value, value - atom.lower) <= _TIGHT * norm:
            yield atom.kind, atom.label
    for hard in task.nonlinear:
        if hard.function(v)[0] >= -_TIGHT:
            yield hard.kind, hard.label
    for i in np.flatnonzero(v <= _TIGHT * scale):
        yield Limit.UNUSED, f"not used: {problem.domains.names[i]} = {show(0.0, problem.domains.unit)}"
