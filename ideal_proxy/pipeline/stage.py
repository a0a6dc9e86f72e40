"""The stages of a search, by one name in its plan, its progress and its status."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any


class Stage(StrEnum):
    """What a search does, in this order; from SWARM to FIT once a round."""

    PREPARING = "preparing"
    LOWER_SIZES = "lower sizes"  # of a ladder: everything but the last
    WARM_START = "warm start"
    ZERO_ROWS = "zero rows"
    LEARNING_RATE = "learning rate"
    JUDGING = "earlier runs judged"  # of a search that reuses another
    SWARM = "swarm"
    IMITATION = "imitation"  # of the first round of mode: target
    GRADIENTS = "gradients"
    FIT = "fit"
    MORE_ROUNDS = "more rounds"  # of a plan: all rounds after the first
    CHECK = "check"
    RESULT = "result"

    @property
    def trains(self) -> bool:
        """Whether its runs are trainings, and not looks at models that were trained before."""
        return self not in (Stage.JUDGING, Stage.IMITATION, Stage.GRADIENTS)

    @property
    def alone(self) -> bool:
        """Whether it is one run, which one worker does."""
        return self in (Stage.WARM_START, Stage.ZERO_ROWS)


ORDER = tuple(Stage)
STAGE_OF_ROLE = {  # in which stage a run of a role is trained
    "warm": Stage.WARM_START,
    "zero": Stage.ZERO_ROWS,
    "sweep": Stage.LEARNING_RATE,
    "design": Stage.SWARM,
    "judged": Stage.JUDGING,
    "imitated": Stage.IMITATION,
    "gradients": Stage.GRADIENTS,
    "verify": Stage.CHECK,
}
LOWER = "lower"  # in the run directory: a folder for each lower size of a ladder


def runs_by_stage(roles: Iterable[str]) -> dict[str, int]:
    """Count runs by the stage in which they were trained or judged, in the stages' order."""
    found = [str(STAGE_OF_ROLE.get(role, role)) for role in roles]
    known = [str(stage) for stage in STAGE_OF_ROLE.values()]
    return {name: found.count(name) for name in [*known, *sorted(set(found) - set(known))] if name in found}


def trained_runs(stages: Iterable[tuple[str, int]]) -> int:
    """Add up runs of stages that were trained: what plan, status and page call the runs of a search."""
    return sum(runs for name, runs in stages if name not in list(Stage) or Stage(name).trains)


def stage_text(stage: Stage, number: int | None = None) -> str:
    """Call a stage, with its round counted from 1: `round 1: swarm`."""
    return str(stage) if number is None else f"round {number}: {stage}"


def stage_at(record: Mapping[str, Any]) -> tuple[Stage | None, int | None]:
    """Read stage and round from a status file."""
    try:
        return Stage(record["stage"]), record["round"]
    except ValueError:  # a stage of another version: shown as it stands
        return None, None


def seconds_left(record: Mapping[str, Any], costs: Mapping[str, float], lower_done: float) -> float:
    """Estimate seconds from here at most, from each stage's seconds at full and the share of the lower sizes done."""
    stage, number = stage_at(record)
    here = float(record["seconds_left"] or 0.0)
    if stage is Stage.RESULT:
        return 0.0
    if stage is Stage.LOWER_SIZES:  # several rounds of runs
        here = max(here, (1 - lower_done) * costs.get(stage, 0.0))
    passed = ORDER.index(stage) if stage is not None else 0
    begun = (number or 1) - 1  # of the further rounds, which are alike
    if passed < ORDER.index(Stage.CHECK):
        if not begun:
            here += sum(costs.get(s, 0.0) for s in ORDER[passed + 1 : ORDER.index(Stage.MORE_ROUNDS)])
        rounds = next((entry["rounds"] for entry in record["plan"] if entry["name"] == Stage.MORE_ROUNDS), None)
        if rounds is not None:
            here += max(0.0, 1.0 - begun / rounds) * costs[Stage.MORE_ROUNDS]
        here += costs.get(Stage.CHECK, 0.0)
    return here
