"""What the panel on a terminal says of a search under way: time left, evidence so far, the best so far."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ideal_proxy.config import SearchConfig
from ideal_proxy.errors import UserError
from ideal_proxy.pipeline.stage import LOWER
from ideal_proxy.pipeline.status import finished_runs, whole_seconds_left
from ideal_proxy.pipeline.status_record import StatusRecord
from ideal_proxy.response import Array, combine
from ideal_proxy.swarm import Run
from ideal_proxy.terminal import Reporter, count_text, duration, signed

BEST, EVIDENCE, TIME = "best so far", "evidence", "time"


class Watcher:
    """Tells a reporter's panel what finished runs say; where there is no panel it reads nothing."""

    def __init__(self, config: SearchConfig, folder: Path, reporter: Reporter, record: StatusRecord) -> None:
        self._reporter, self._record = reporter, record
        self._folder = folder.parents[1] if folder.parent.name == LOWER else folder  # of the whole search
        self._kind = config.objective.kind
        self._weights = [capability.weight for capability in config.capabilities]
        self._by_loss = not config.has_metrics
        self._fitted = False
        self._runs: dict[str, tuple[tuple[int, ...], Array]] = {}

    @property
    def on(self) -> bool:
        """Whether anything is shown."""
        return self._reporter.moves

    def time(self) -> None:
        """Say what was spent and what is left at most."""
        text = f"{duration(self._record.spent_seconds)} so far"
        with contextlib.suppress(KeyError, OSError, UserError):  # an estimate must not end a search
            left = whole_seconds_left(self._folder, self._record.state, finished_runs(self._folder))
            text += f", at most {duration(left)} left"
        self._reporter.fact(TIME, text)

    def best(self, text: str) -> None:
        """Say what a fit or the check found; from then on the luckiest single run is not told."""
        self._fitted = True
        self._reporter.fact(BEST, text)

    def evidence(self, runs: Sequence[tuple[Run, Array]], base: tuple[int, ...]) -> None:
        """Count what the fit may learn from, and name the best single run; `base` is what a proxy draws of base."""
        self._runs |= {run.spec.id: (run.spec.rows, losses) for run, losses in runs}
        mixtures = len({rows for rows, _ in self._runs.values()})
        text = f"{count_text(len(self._runs), 'run')} of {count_text(mixtures, 'mixture')}"
        self._reporter.fact(EVIDENCE, text)
        at_base = [losses for rows, losses in self._runs.values() if rows == base]
        if not at_base or not self._by_loss or mixtures < 2 or self._fitted:
            return
        mean = np.mean(at_base, axis=0)
        kind, weights = self._kind, self._weights
        gains = [1 - float(combine(losses / mean, kind, weights)) for rows, losses in self._runs.values()]
        others = [gain for gain, (rows, _) in zip(gains, self._runs.values(), strict=True) if rows != base]
        self._reporter.fact(BEST, f"{signed(max(others), '.1%')} against base, one run alone: noise included")
