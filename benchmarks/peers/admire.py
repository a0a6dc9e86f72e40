"""A Gaussian process with expected improvement (as ADMIRE-BayesOpt, arXiv 2508.11551), at one fidelity.

Matérn 5/2 with a length for each domain, on log shares, and a noise of its own. First 2(D + 1) runs that fill the
bounds, then one at a time where a candidate's expected improvement over the best mean at a run is largest. The answer
is the candidate of the lowest mean.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from peers.task import Array, Runs, Task, Train, in_the_box, trained
from scipy.stats import norm

CANDIDATES = 2_000


def fit(task: Task, runs: Runs):
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    kernel = ConstantKernel(1.0, (1e-2, 1e2)) * Matern(np.full(len(task.base), 2.0), (0.1, 100.0), nu=2.5)
    model = GaussianProcessRegressor(kernel + WhiteKernel(0.1, (1e-5, 1e1)), normalize_y=True, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(features(task, runs.volumes), runs.relative())


def features(task: Task, volumes: Array) -> Array:
    return np.log(volumes / task.total + 1e-4)


def expected_improvement(mean: Array, deviation: Array, best: float) -> Array:
    """E max(best − Y, 0) of Y ~ N(mean, deviation²)."""
    z = (best - mean) / np.maximum(deviation, 1e-12)
    return (best - mean) * norm.cdf(z) + deviation * norm.pdf(z)


def candidates(task: Task, runs: Runs, seed: int) -> Array:
    """Mixtures that fill the bounds, and others about the best run."""
    rng = np.random.default_rng([seed, len(runs.volumes), 7])
    best = runs.volumes[int(runs.relative().argmin())]
    near = task.within(best * np.exp(0.3 * rng.standard_normal((CANDIDATES // 4, len(best)))))
    return np.vstack([in_the_box(task, CANDIDATES, seed + len(runs.volumes)), near])


def next_run(task: Task, runs: Runs, seed: int) -> Array:
    model, some = fit(task, runs), candidates(task, runs, seed)
    noise = model.kernel_.k2.noise_level * float(np.std(runs.relative())) ** 2
    mean, deviation = model.predict(features(task, some), return_std=True)
    best = float(model.predict(features(task, runs.volumes)).min())
    return some[int(expected_improvement(mean, np.sqrt(np.maximum(deviation**2 - noise, 0.0)), best).argmax())]


def propose(task: Task, runs: Runs, seed: int) -> Array:
    model = fit(task, runs)
    some = np.vstack([candidates(task, runs, seed), candidates(task, runs, seed + 17)])
    return some[int(model.predict(features(task, some)).argmin())]


@dataclass(frozen=True, slots=True)
class ExpectedImprovement:
    name: str = "GP with expected improvement"

    def search(self, task: Task, train: Train, runs: int, seed: int) -> Array:
        first = in_the_box(task, min(runs, 2 * (len(task.base) + 1)), seed)
        table = trained(first, np.arange(len(first)) % 2, train)
        while len(table.volumes) < runs:
            volumes = next_run(task, table, seed)[None]
            table += trained(volumes, np.array([len(table.volumes) % 2]), train)
        return propose(task, table, seed)


CONTENDERS = (ExpectedImprovement(),)
