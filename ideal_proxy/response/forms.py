"""The forms of the response, each good somewhere and none everywhere, and what they make of held-out runs.

Legend: R runs, D domains, J capabilities, K folds, C forms.

| form | made of |
|---|---|
| law | the response law |
| law with interactions | the law, and a process of products of two domains on what it leaves |
| law with a process | the law, and a smooth process on what it leaves |
| exponential-linear | floor + exp(linear in the volumes), as in Data Mixing Laws, with a Gaussian prior on the slopes |
| process | a smooth or quadratic process alone |
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ideal_proxy.response.law import Array, evaluate
from ideal_proxy.response.law_fit import LawData, LawFit
from ideal_proxy.response.process import Family, Process, Spectra, fit_processes

FORMS = ("law", "law with interactions", "law with a process", "exponential-linear", "process")
LAW = 0
FAMILIES = (
    None,
    Family(("product",), ("root", "log")),
    Family(("matern",), ("root", "log")),
    Family(("linear",), ("x", "root"), centred=True, exponential=True),
    Family(("matern", "product"), ("x", "root", "log"), centred=True),
)
ON_LAW = np.array([1.0, 1.0, 1.0, 0.0, 0.0])
"""Which forms begin with the law."""
MOST_RUNS = 1000
"""Above this many runs the law alone is used: a process costs the cube of the runs."""


class HeldOutLaw(NamedTuple):
    """What laws say of runs they did not see, (J, R), its variance, and each fold's law at every run, (K, J, R)."""

    mean: Array
    variance: Array
    folds: Array


class HeldOut(NamedTuple):
    """Predictions of runs by fits that did not see them, in standardised units."""

    mean_CJR: Array
    variance_CJR: Array
    noise_CJ: Array


def seen(data: LawData, fit: LawFit) -> tuple[Array, Array, Array]:
    """Scaled effective volumes (R, D), losses without seed effects (J, R), and the law's (J, R)."""
    u_RD = data.volumes.effective(data.v_RD)[0]
    law_JR = evaluate(fit.theta_JP, data.bounds_J2, data.volumes, u_RD).loss_JR
    return u_RD / data.volumes.scale, data.y_JR - fit.seed_effect_JS[:, data.seed_R], law_JR


def fit_forms(x_RD: Array, y_JR: Array, law_JR: Array, weight_JR: Array) -> dict[int, dict[int, Process]]:
    """Fit what each form adds to the law or has instead of it, by the place of the form."""
    known: Spectra = {}
    return {
        c: dict(enumerate(fit_processes(x_RD, y_JR - law_JR if ON_LAW[c] else y_JR, weight_JR, family, known)))
        for c, family in enumerate(FAMILIES)
        if family is not None
    }


def held_out(data: LawData, fit: LawFit, law: HeldOutLaw, fold_R: np.ndarray) -> HeldOut:
    """Predict every run by every form from the other folds."""
    x_RD, y_JR, _ = seen(data, fit)
    C, (J, R) = len(FORMS), y_JR.shape
    mean, variance, noise = np.zeros((C, J, R)), np.zeros((C, J, R)), np.zeros((C, J))
    mean[LAW], variance[LAW], noise[LAW] = law.mean, law.variance, fit.noise_J
    for k in range(int(fold_R.max()) + 1):
        out = fold_R == k
        for c, processes in fit_forms(x_RD, y_JR, law.folds[k], data.weight_JR * ~out).items():
            for j, process in processes.items():
                mean[c, j, out] = ON_LAW[c] * law.mean[j, out] + process.mean(x_RD[out])
                variance[c, j, out] = ON_LAW[c] * law.variance[j, out] + process.spread(x_RD[out])
                noise[c, j] += process.noise / len(law.folds)
    return HeldOut(mean, variance, noise)
