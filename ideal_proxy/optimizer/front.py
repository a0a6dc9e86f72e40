"""What one capability costs another: the Pareto front between two capabilities or groups of them.

Legend: K points of the front.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ideal_proxy.amounts import check_name
from ideal_proxy.domains import FloatArray
from ideal_proxy.errors import UsageError
from ideal_proxy.optimizer.conflicts import NonlinearAtom
from ideal_proxy.optimizer.constraints import Constraints, Limit
from ideal_proxy.optimizer.objective import Objective, RelativeLosses, ResponseSurface, weighted_function
from ideal_proxy.optimizer.optimum import at_most, prepare, run
from ideal_proxy.optimizer.result import Optimum

_SAME = 1e-7
_TIE = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ParetoFront:
    """Mixtures of which none is better than another in both groups."""

    first: tuple[str, ...]  # capabilities of the first group
    second: tuple[str, ...]  # capabilities of the second group
    # mean relative loss of both groups (K, 2), the first rising, the second falling; base is 1 (scores: 0)
    values: FloatArray
    optima: tuple[Optimum, ...]  # the K mixtures


def pareto(
    model: ResponseSurface,
    constraints: Constraints,
    first: str | Sequence[str],
    second: str | Sequence[str],
    *,
    points: int = 11,
    upper_confidence: float | None = None,
    random_state: int = 0,
    n_starts: int = 4,
    scale: Mapping[str, float] | None = None,
) -> ParetoFront:
    """Trace the front by minimising one group's mean relative loss at most ε in the other's (epsilon constraint).

    Args:
        model: the fitted response.
        constraints: what must hold.
        first: a capability, or a group of them.
        second: the other.
        points: how many values of ε, ends included; dominated points are left out of the result.
        upper_confidence: use upper bounds at this level; None for the predictions.
        random_state: of the starts.
        n_starts: most starts a point.
        scale: of scores, as `Objective` takes it.

    Returns:
        The front.

    Raises:
        UsageError: an unknown capability, the same one in both groups, or fewer than two points.
    """
    groups = [(g,) if isinstance(g, str) else tuple(g) for g in (first, second)]
    known = constraints.problem.capabilities
    for name in (*groups[0], *groups[1]):
        check_name(name, known, what="capability", where="the Pareto front")
    if not groups[0] or not groups[1] or set(groups[0]) & set(groups[1]):
        raise UsageError("A Pareto front needs two groups of capabilities that share none; change one of them.")
    if points < 2:
        raise UsageError(f"A Pareto front needs at least 2 points; got {points}.")
    losses = RelativeLosses(model, constraints.problem, scale)
    # A trace of the other group breaks ties, so that the ends of the front are not dominated.
    tied = [
        Objective(
            kind="weighted",
            weights={**dict.fromkeys(a, 1.0 / len(a)), **dict.fromkeys(b, _TIE / len(b))},
            upper_confidence=upper_confidence,
            scale=scale,
        )
        for a, b in (groups, groups[::-1])
    ]
    mean = [
        weighted_function(losses, Objective(kind="weighted", weights=dict.fromkeys(g, 1.0)).weight_vector(
            constraints.problem), upper_confidence)
        for g in groups
    ]  # fmt: skip

    def solve(objective: Objective, extra: Sequence[NonlinearAtom], near: Sequence[FloatArray]) -> Optimum:
        return run(prepare(model, objective, constraints, extra, losses), random_state, n_starts, near)

    ends = [solve(objective, [], []) for objective in tied]
    best_second, worst_second = (mean[1](end.volumes)[0] for end in reversed(ends))
    is_convex = np.asarray(model.is_convex_, dtype=bool)
    convex = upper_confidence is None and all(is_convex[known.index(name)] for name in groups[1])
    optima = [ends[0]]
    for limit in np.linspace(worst_second, best_second, points)[1:-1]:
        label = f"{' and '.join(groups[1])} at most {limit:.6g}"
        atom = NonlinearAtom(Limit.OTHER, label, at_most(mean[1], float(limit)), convex)
        # The neighbour and the far end bracket the answer.
        optima.append(solve(tied[0], [atom], [optima[-1].volumes, ends[1].volumes]))
    optima.append(ends[1])
    values = np.array([[f(o.volumes)[0] for f in mean] for o in optima])
    order = [int(k) for k in np.lexsort((values[:, 1], values[:, 0])) if not _dominated(values, int(k))]
    return ParetoFront(first=groups[0], second=groups[1], values=values[order], optima=tuple(optima[k] for k in order))


def _dominated(values: FloatArray, k: int) -> bool:
    """Whether another point is better in one group and not worse in the other, or the same and earlier."""
    no_worse = np.all(values <= values[k] + _SAME, axis=1)
    better = np.any(values < values[k] - _SAME, axis=1)
    same = no_worse & ~better
    return bool(np.any(no_worse & better) or np.any(np.flatnonzero(same) < k))
