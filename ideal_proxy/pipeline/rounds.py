"""Whether another round is worth its runs, and which mixtures it should try.

The posterior draws of the fit do not agree on the best mixture. What they lose on average by the proposal, each
measured against the mixture that it would choose itself, is the expected regret: the most that more runs could gain.
The mixtures that draws would choose instead are where runs decide something.

Legend: D domains, J capabilities, S draws, P points.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ideal_proxy.errors import UserError
from ideal_proxy.optimizer import Constraints, Limit, Objective, Optimum, optimize
from ideal_proxy.response import Combination, ResponseModel, Yardstick, combine

Array = NDArray[np.float64]

DRAWS = 12  # that choose for themselves
LEARNED = 0.5  # what a round is taken to gain of the expected regret
ON_EDGE = "the proposal sits on the edge of what the swarm explored"
LEAST = 0.001  # of the objective: a round that promises less is not run


@dataclass(frozen=True, slots=True)
class Outlook:
    """What more runs promise."""

    regret: float  # expected loss of the objective by not knowing the response exactly, relative; 0 or more
    points: Array  # mixtures that some draw prefers to the proposal, those that matter most first, shape (P, D)

    @property
    def hoped(self) -> float:
        """What a round is taken to gain."""
        return LEARNED * self.regret


def look_ahead(
    model: ResponseModel, objective: Objective, constraints: Constraints, stick: Yardstick, here: Array
) -> Outlook:
    """Let some draws choose a mixture each: as if they were the truth, so that no margin for error holds them back."""
    base, weights = constraints.domains.base, objective.weight_vector(constraints.problem)
    kind: Combination = "worst" if objective.kind == "worst" else "weighted"
    count = min(DRAWS, model.n_draws)
    lost, chosen = np.zeros(count), np.tile(here, (count, 1))
    for number in range(count):
        surface = model.draw(number)
        with contextlib.suppress(UserError):  # a draw whose limits cannot be met has nothing to gain
            chosen[number] = optimize(surface, objective, constraints, starts=[here], n_starts=1).volumes
        values = [surface.value_and_gradient(v)[0] for v in (here, chosen[number], base)]
        losses = [combine(stick.relative(v, values[2]), kind, weights) for v in values[:2]]
        lost[number] = max(0.0, float(losses[0] - losses[1]))
    order = np.argsort(-lost, kind="stable")
    return Outlook(float(lost.mean()), chosen[order[lost[order] > 0]])


def why_again(optimum: Optimum, outlook: Outlook, gained: float = np.inf) -> str | None:
    """Say why another round is worth it, None where it is not; `gained`: what the last one added to the promise."""
    if Limit.TRUST_REGION in optimum.binding and gained >= LEAST:
        return ON_EDGE
    if outlook.hoped >= LEAST:
        return f"knowing the response better may gain {outlook.hoped:.1%} more"
    return None


def next_opening(
    results: Sequence[dict[str, Any]], rows: NDArray[np.int64], looks: Sequence[int], rounds: int
) -> tuple[int, int]:
    """Say how often verify rows were opened before this check, and of which opening its seeds are."""
    if not results:
        return 0, 0
    before = results[-1]
    opening, seeds = int(before["check"]["opening"]), int(before["check"]["seeds_of"])
    same = [int(entry["proposal_rows"]) for entry in before["domains"]] == [int(x) for x in rows]
    if not same or len(before["rounds"]) != rounds:  # the fit has seen the runs of the check before
        return opening + 1, opening + 1
    return (opening, seeds) if list(before["check"]["looks"]) == list(looks) else (opening + 1, seeds)
