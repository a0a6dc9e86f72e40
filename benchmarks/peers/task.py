"""What every contender gets and gives: a task and a table of runs in, one mixture out.

Volumes are tokens (or rows, where rows are alike): a mixture keeps the task's total, and every volume its bounds. The
objective is the mean over capabilities of the loss relative to base. A contender that trains a swarm lays out its
runs, gets their losses, and proposes; `search` does that for as many runs as it is given.

Legend: N mixtures, R runs, D domains, J capabilities.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Train = Callable[[Array, Array], Array]  # volumes (R, D) and seeds (R,) to losses (R, J)


@dataclass(frozen=True, slots=True)
class Task:
    """The mixture that a user would have taken, what there is, and how far volumes may go."""

    base: Array
    available: Array
    lower: Array
    upper: Array

    @property
    def total(self) -> float:
        return float(self.base.sum())

    @property
    def prior(self) -> Array:
        return self.base / self.total

    def within(self, weights: Array) -> Array:
        """Scale weights (N, D) or (D,) to the total and hold them within the bounds, by one factor each."""
        some = np.maximum(np.atleast_2d(weights), 1e-12 * self.total)
        low, high = np.full(len(some), -60.0), np.full(len(some), 60.0)
        for _ in range(100):
            factor = 0.5 * (low + high)
            short = np.clip(some * np.exp(factor)[:, None], self.lower, self.upper).sum(axis=1) < self.total
            low, high = np.where(short, factor, low), np.where(short, high, factor)
        mixtures = np.clip(some * np.exp(high)[:, None], self.lower, self.upper)
        return mixtures if np.ndim(weights) == 2 else mixtures[0]


@dataclass(frozen=True, slots=True)
class Runs:
    """A table of finished runs."""

    volumes: Array
    losses: Array
    seeds: Array

    def __add__(self, other: Runs) -> Runs:
        joined = (np.concatenate(pair) for pair in zip(self.parts(), other.parts(), strict=True))
        return Runs(*joined)

    def parts(self) -> tuple[Array, Array, Array]:
        return self.volumes, self.losses, self.seeds

    def relative(self) -> Array:
        """The objective of every run (R,), up to a factor: each loss over its mean in the table."""
        return (self.losses / self.losses.mean(axis=0)).mean(axis=1)


def trained(volumes: Array, seeds: Array, train: Train) -> Runs:
    return Runs(volumes, train(volumes, seeds), seeds)


@dataclass(frozen=True, slots=True)
class OneSwarm:
    """A contender that lays out all runs at once."""

    name: str
    design: Callable[[Task, int, int], Array]  # task, runs, seed to mixtures
    propose: Callable[[Task, Runs, int], Array]  # task, table, seed to one mixture

    def search(self, task: Task, train: Train, runs: int, seed: int) -> Array:
        volumes = self.design(task, runs, seed)
        return self.propose(task, trained(volumes, np.arange(len(volumes)) % 2, train), seed)


def dirichlet(task: Task, count: int, seed: int) -> Array:
    """RegMix's mixtures: Dirichlet about base, its strength from 0.1 to 5 by equal steps of the logarithm."""
    rng = np.random.default_rng([seed, 11])
    strength = np.exp(rng.uniform(np.log(0.1), np.log(5.0), count)) * len(task.base)
    drawn = rng.standard_gamma(np.maximum(strength[:, None] * task.prior, 1e-3)) + 1e-9
    return task.within(drawn / drawn.sum(axis=1, keepdims=True))


def in_the_box(task: Task, count: int, seed: int) -> Array:
    """Mixtures drawn evenly in the logarithms between the bounds."""
    rng = np.random.default_rng([seed, 13])
    low, high = np.log(np.maximum(task.lower, 1e-3 * task.base)), np.log(task.upper)
    return task.within(np.exp(rng.uniform(low, high, (count, len(low)))))
