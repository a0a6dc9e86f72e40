"""How long the rest of a swarm will take: the speed measured so far, and the order in which runs are handed out."""

from __future__ import annotations

import heapq
from collections.abc import Sequence


class Forecast:
    """Measures seconds of a worker per unit of work, and lays the rest out on the workers."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._work = 0.0

    def measured(self, seconds: float, work: float) -> None:
        """Take in work that was done.

        Args:
            seconds: of one worker.
            work: trained tokens, or whatever unit the caller counts in.
        """
        self._seconds += seconds
        self._work += work

    def seconds_left(
        self,
        waiting: Sequence[float],
        under_way: Sequence[float],
        workers: int,
        *,
        seconds_now: float = 0.0,
        work_now: float = 0.0,
    ) -> float | None:
        """Estimate the time until all is done.

        The waiting runs go one after another to the worker that is free first, which is what the scheduler does.

        Args:
            waiting: work of the runs to come, in the order in which they are handed out.
            under_way: work left of the runs that workers are at.
            workers: side by side, at least 1.
            seconds_now: spent on the runs under way, so that they count as measured.
            work_now: work done in that time.

        Returns:
            float: seconds; None before anything was measured.
        """
        work = self._work + work_now
        if work <= 0:
            return None
        free = sorted([*under_way, *[0.0] * max(0, workers - len(under_way))])
        heapq.heapify(free)
        for run in waiting:
            heapq.heappush(free, heapq.heappop(free) + run)
        return max(free) * (self._seconds + seconds_now) / work
