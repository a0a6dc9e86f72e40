"""OP-Mix (Hu et al., arXiv 2605.15220): mixtures imitated by weights between two probes a domain, then Olmix's fit.

For every domain one probe trains on 10 % of it beside 90 % of the rest in base's proportions, another on 90 % beside
10 %, both held within the task's bounds. Weights between the two stand for the mixtures between them (nine points in
equal steps, as in the paper's continual stages); Olmix's regression of their losses and its pull to base of 0.05 give
the mixture. Its price is two trainings a domain and the judging of all points.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from peers import olmix
from peers.task import Array, Runs, Task

FEW, MUCH = 0.1, 0.9
POINTS = 9
KL = 0.05
Imitate = Callable[[Array, Array], Array]  # two probes' mixtures (2, D) and their weights (2,) to losses (J,)


def probes(task: Task) -> Iterator[Array]:
    """Two mixtures (2, D) for every domain."""
    for domain in range(len(task.base)):
        rest = np.where(np.arange(len(task.base)) == domain, 0.0, task.base)
        rest /= rest.sum()
        one = np.eye(len(task.base))[domain]
        yield task.within(np.array([share * one + (1.0 - share) * rest for share in (FEW, MUCH)]))


def search(task: Task, imitate: Imitate) -> Array:
    """Imitate all points and propose."""
    volumes, losses = [], []
    for pair in probes(task):
        for part in np.linspace(0.0, 1.0, POINTS):
            weights = np.array([1.0 - part, part])
            volumes.append(weights @ pair)
            losses.append(imitate(pair, weights))
    table = Runs(np.array(volumes), np.array(losses), np.zeros(len(volumes)))
    return olmix.propose(task, table, 0, KL)
