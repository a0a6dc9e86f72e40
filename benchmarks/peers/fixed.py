"""Contenders that train nothing: all rows once, equal rows, temperature sampling; and the best of random mixtures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from peers.task import Array, OneSwarm, Runs, Task, Train, dirichlet


def rows_once(task: Task) -> Array:
    """Every domain in proportion to what it has: all rows once, where the budget is that large."""
    return task.within(task.available)


def equal_rows(task: Task) -> Array:
    return task.within(np.ones_like(task.base))


def temperature(task: Task, power: float = 0.5) -> Array:
    """Shares in proportion to what a domain has, to a power below 1 (mT5, arXiv 2010.11934)."""
    return task.within(task.available**power)


@dataclass(frozen=True, slots=True)
class Fixed:
    """A rule that needs no run, as a contender."""

    name: str
    rule: object

    def search(self, task: Task, train: Train, runs: int, seed: int) -> Array:  # noqa: ARG002
        return self.rule(task)  # type: ignore[operator]


def best_seen(task: Task, runs: Runs, seed: int) -> Array:  # noqa: ARG001
    return runs.volumes[int(runs.relative().argmin())]


CONTENDERS = (
    Fixed("all rows once", rows_once),
    Fixed("equal rows", equal_rows),
    Fixed("temperature 2", temperature),
    OneSwarm("best of random", dirichlet, best_seen),
)
