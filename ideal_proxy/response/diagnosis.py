"""How well each capability is predicted: held-out rank and error, noise, parameters, a warning where it is poor.

Legend: R runs, D domains, J capabilities.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from ideal_proxy.response import choice, forms
from ideal_proxy.response.law import ALPHA, FIRST_A, FLOOR, GAMMA, SPAN, sigmoid, unpack
from ideal_proxy.response.law_fit import LawData, LawFit

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """How well one capability is understood."""

    name: str  # the capability
    rank_correlation: float  # spearman's, held-out predictions against observed; NaN with too few runs
    error: float  # root mean square held-out error, in the unit of L; NaN with too few runs
    noise: float  # standard deviation of one run about the fit, in the unit of L
    spread: float  # standard deviation of L over the runs
    # share of each form of the response in the prediction, the law alone first (`forms.FORMS`)
    weights: tuple[float, ...]
    harm: bool  # whether the harm term is in the law
    parameters: dict[str, tuple[float, float]]  # name → (value, standard error), natural units
    warning: str | None  # a sentence where the fit should not be trusted, else None
    known: float = 1.0  # the part of its predicted changes that counts, 0 where runs left out are not predicted at all


def diagnose(model: Any, data: LawData, fit: LawFit) -> list[Diagnosis]:
    """Judge every capability of a fitted model, and log what should not be trusted."""
    y_JR = data.y_JR - fit.seed_effect_JS[:, data.seed_R]
    out = []
    for j, name in enumerate(model.target_names_):
        seen = data.weight_JR[j] > 0
        held = model.held_out_[j]
        rank, error, warning = np.nan, np.nan, None
        spread = float(y_JR[j, seen].std())
        checked = seen & np.isfinite(held)
        if not checked.any():
            warning = f"{name}: fewer than {choice.LEAST_RUNS} runs, so the fit could not be checked: add runs."
        else:
            error = float(np.sqrt(((held - y_JR[j])[checked] ** 2).mean()))
            if np.ptp(y_JR[j, checked]) > 0 and np.ptp(held[checked]) > 0:
                rank = float(spearmanr(held[checked], y_JR[j, checked]).statistic)
            if model.known_[j] < choice.UNKNOWN:
                warning = (
                    f"{name}: runs left out are not predicted (rank correlation {rank:.2f}), so only "
                    f"{model.known_[j]:.0%} of its predicted changes count: "
                    "add runs, widen the volumes tried, or use more reference rows."
                )
            elif error > 0.95 * spread:
                warning = (
                    f"{name}: the fit predicts runs it did not see no better than their mean: "
                    "add runs, widen the volumes tried, or use more reference rows."
                )
            elif model.weights_[j, forms.ON_LAW == 0].sum() >= 0.8:
                warning = f"{name}: the law does not fit: other forms of the response predict better and are used."
        if warning:
            log.warning(warning)
        scale = float(model.scale_[j])
        out.append(
            Diagnosis(
                name,
                rank,
                error * scale,
                float(model.residual_scale_[j]),
                spread * scale,
                tuple(map(float, model.weights_[j])),
                bool(model.harm_[j]),
                _parameters(model, j),
                warning,
                float(model.known_[j]),
            )
        )
    return out


def _parameters(model: Any, j: int) -> dict[str, tuple[float, float]]:
    """Give natural parameters of one capability with standard errors by the delta method."""
    D = model.n_features_in_
    p = {name: values[j] for name, values in unpack(model.theta_, model.bounds_, D).items()}
    sd = np.sqrt(np.maximum(np.diag(model.covariance_[j]), 0.0))
    scale, location, sign = model.scale_[j], model.location_[j], model.sign_[j]
    f = float(sigmoid(model.theta_[j, FLOOR]))
    floor_error = float((model.bounds_[j, 1] - model.bounds_[j, 0]) * f * (1.0 - f) * sd[FLOOR] * scale)
    gamma_error = p["gamma"] * (1.0 - p["gamma"]) * sd[GAMMA]
    out = {
        "E": (float(sign * (location + scale * p["E"])), floor_error),
        "Z": (
            float(sign * (location + scale * p["Z"])),
            float(np.hypot(floor_error, (p["Z"] - p["E"]) * sd[SPAN] * scale)),
        ),
        "alpha": (float(p["alpha"]), float(p["alpha"] * sd[ALPHA])),
        "gamma": (float(p["gamma"]), float(gamma_error)),
    }
    for i, domain in enumerate(model.domain_names_):
        out[f"a[{domain}]"] = (float(p["a"][i]), float(p["a"][i] * sd[FIRST_A + i]))
        if model.harm_[j]:
            out[f"b[{domain}]"] = (float(p["b"][i] * scale), float(sd[FIRST_A + D + i] * scale))
    return out
