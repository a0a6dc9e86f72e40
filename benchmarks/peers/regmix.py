"""RegMix's recipe (Liu et al., arXiv 2407.01492): LightGBM on mixtures, the mean of the best of many simulated ones.

Its settings: 1,000 trees at a rate of 0.01; mixtures from Dirichlet distributions about base; 128 of 100,000 simulated
mixtures are averaged. Here 13 of 10,000 are, the same share, because a prediction of 100,000 takes seven seconds. A
leaf holds at least min(20, runs / 12) rows, so that few runs can be split at all. One model of the objective, as the
paper has one of its target.
"""

from __future__ import annotations

import numpy as np
from packages import needed
from peers.task import Array, OneSwarm, Runs, Task, dirichlet, in_the_box

SIMULATED, AVERAGED = 10_000, 13
SETTINGS = {"n_estimators": 1000, "learning_rate": 1e-2, "random_state": 42, "verbosity": -1, "n_jobs": 1}


def best_simulated(task: Task, runs: Runs, candidates: Array) -> Array:
    lightgbm = needed("lightgbm", "lightgbm")
    least = min(20, max(2, len(runs.volumes) // 12))
    model = lightgbm.LGBMRegressor(**SETTINGS, min_child_samples=least)
    model.fit(runs.volumes / task.total, runs.relative())
    order = np.argsort(model.booster_.predict(candidates / task.total, num_threads=1), kind="stable")
    return candidates[order[:AVERAGED]].mean(axis=0)


def propose(task: Task, runs: Runs, seed: int) -> Array:
    return best_simulated(task, runs, dirichlet(task, SIMULATED, seed + 1_000_000))


def propose_in_the_box(task: Task, runs: Runs, seed: int) -> Array:
    """The same with mixtures that fill the bounds evenly: kinder than its own, where bounds are narrow."""
    return best_simulated(task, runs, in_the_box(task, SIMULATED, seed + 1_000_000))


CONTENDERS = (
    OneSwarm("RegMix", dirichlet, propose),
    OneSwarm("RegMix, mixtures in the box", in_the_box, propose_in_the_box),
)
