"""How long the rest of a swarm will take, from the speed measured so far and the order in which runs are handed out."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Work:
    """What a run is to do, in trained tokens or what costs as much."""

    training: float  # in its steps
    judging: float = 0.0  # after the last step

    @property
    def whole(self) -> float:
        """All of it."""
        return self.training + self.judging

    def after(self, done: int, steps: int) -> float:
        """Return what is left after some steps."""
        return self.whole - (self.training * done / steps if steps else 0.0)


@dataclass(frozen=True, slots=True)
class UnderWay:
    """A run that a worker is at."""

    left: float  # work left, tokens
    done: float  # work done since its first step, tokens
    seconds: float  # since its first step; before it, since it was handed out
    stepping: bool  # whether there was a step


class Forecast:
    """Measures how fast a worker does its work and how long a run takes to begin, and lays the rest out.

    What a worker's first run needs to begin, imports and all, says nothing of the next and is not counted.
    """

    def __init__(self) -> None:
        self._seconds = 0.0
        self._work = 0.0
        self._beginnings: list[float] = []

    def measured(self, seconds: float, work: float, beginning: float | None = None) -> None:
        """Take in a finished run."""
        self._seconds += seconds
        self._work += work
        if beginning is not None:
            self._beginnings.append(beginning)

    def seconds_left(self, waiting: Sequence[float], under_way: Sequence[UnderWay], workers: int) -> float | None:
        """Estimate the seconds until all is done; each waiting run goes to the worker that is free first."""
        work = self._work + sum(run.done for run in under_way)
        if work <= 0:
            return None
        pace = (self._seconds + sum(run.seconds for run in under_way if run.done)) / work
        begin = median(self._beginnings) if self._beginnings else 0.0
        free = [run.left * pace + (0.0 if run.stepping else max(0.0, begin - run.seconds)) for run in under_way]
        free += [0.0] * max(0, workers - len(free))
        heapq.heapify(free)
        for run in waiting:
            heapq.heappush(free, heapq.heappop(free) + begin + run * pace)
        return max(free)
