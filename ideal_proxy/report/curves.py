"""Numbers behind the figures: slices through the response, and responses with errors.

Legend: K points of a slice, R runs, D domains, J capabilities, S posterior draws.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ideal_proxy.response import ResponseModel

Array = NDArray[np.float64]

LEVEL = 0.9
ETA_FRACTION = 0.01
POINTS = 41


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Slice:
    """One domain's volume varied through a mixture."""

    domain: str  # which
    volumes: Array  # its volume, (K,)
    mixtures: Array  # all volumes, (K, D)
    mean: Array  # predictions, (K, J)
    lower: Array  # lower end of one new run's interval, (K, J)
    upper: Array  # upper end, (K, J)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ResponseMatrix:
    """Responses at one mixture: what one e-fold of each domain does to each capability."""

    values: Array  # ∂L_j/∂log v_i, (J, D), nats (scores: their unit)
    errors: Array  # standard deviation over posterior draws, (J, D)
    lower: Array  # 5 % quantile over posterior draws, (J, D)
    upper: Array  # 95 % quantile, (J, D)

    @property
    def within_noise(self) -> NDArray[np.bool_]:
        """Whether the 90 % interval holds zero, (J, D)."""
        return np.asarray((self.lower <= 0) & (self.upper >= 0))

    def part(self, capabilities: list[int], domains: list[int]) -> ResponseMatrix:
        """Give those of some capabilities to some domains."""
        place = np.ix_(capabilities, domains)
        return ResponseMatrix(
            values=self.values[place], errors=self.errors[place], lower=self.lower[place], upper=self.upper[place]
        )


def predict(model: ResponseModel, mixtures: Array, level: float = LEVEL) -> tuple[Array, Array, Array]:
    """Predict mixtures (K, D) with intervals for one new run: means, lower and upper ends, (K, J) each."""
    named = hasattr(model, "feature_names_in_")
    v = pd.DataFrame(mixtures, columns=model.domain_names_) if named else np.asarray(mixtures)
    found = model.predict(v, return_interval=level)
    mean, lower, upper = (np.asarray(x, dtype=float) for x in (found if level else (found,) * 3))
    return tuple(x.reshape(len(mixtures), -1) for x in (mean, lower, upper))  # type: ignore[return-value]


def eta(model: ResponseModel) -> float:
    """Give the volume that zero counts as in logarithms: 1 % of the mean base volume."""
    return ETA_FRACTION * float(model.volumes_.scale) if model.unit == "rows" else 1e-3


def move(model: ResponseModel, mixture: Array, domain: int, volumes: Array, *, keep: Array | None = None) -> Array:
    """Set one domain to each of several volumes."""
    weights = np.ones(len(mixture)) if model.unit == "share" else keep
    out = np.tile(np.asarray(mixture, dtype=float), (len(volumes), 1))
    out[:, domain] = volumes
    if weights is None:
        return out
    total = float(weights @ mixture)
    others = total - float(weights[domain] * mixture[domain])
    room = total - weights[domain] * np.asarray(volumes, dtype=float)
    fits = room >= 0
    out = out[fits]
    factor = room[fits] / others if others > 0 else np.zeros(int(fits.sum()))
    rest = np.arange(len(mixture)) != domain
    out[:, rest] *= factor[:, None]
    return np.asarray(out)


def slice_through(
    model: ResponseModel,
    mixture: Array,
    domain: str,
    *,
    low: float | None = None,
    high: float | None = None,
    keep: Array | None = None,
    points: int = POINTS,
    band: bool = True,
) -> Slice:
    """Predict along one domain's volume."""
    index = list(model.domain_names_).index(domain)
    here, small = float(mixture[index]), eta(model)
    low = here / 4 if low is None else low
    high = max(4 * here, 100 * small) if high is None else high
    if model.unit == "share":
        high = min(high, 0.999)
    grid = np.exp(np.linspace(np.log(low + small), np.log(high + small), points)) - small
    mixtures = move(model, mixture, index, np.maximum(grid, 0.0), keep=keep)
    mean, lower, upper = predict(model, mixtures, LEVEL if band else 0.0)
    return Slice(domain=domain, volumes=mixtures[:, index], mixtures=mixtures, mean=mean, lower=lower, upper=upper)


def partial_losses(
    model: ResponseModel, mixture: Array, domain: str, volumes: Array, losses: Array, *, keep: Array | None = None
) -> tuple[Array, Array]:
    """Move observed runs onto a slice along the fit: the slice's value there plus what the run missed its own by."""
    index = list(model.domain_names_).index(domain)
    moved = move(model, mixture, index, volumes[:, index], keep=keep)
    if len(moved) < len(volumes):  # some volumes leave the others nothing
        weights = np.ones(len(mixture)) if keep is None else keep
        fits = weights[index] * volumes[:, index] <= float(weights @ mixture)
        volumes, losses = volumes[fits], losses[fits]
    return volumes[:, index], predict(model, moved, 0.0)[0] + losses - predict(model, volumes, 0.0)[0]


def response_matrix(model: ResponseModel, mixture: Array, *, share: Array | None = None) -> ResponseMatrix:
    """Differentiate the response at a mixture; with shares q of a step, at a fixed number of steps: R − q · Σ_k R_k."""
    draws_SJD = model.draws_value_and_gradient(mixture)[1] * mixture
    values_JD = model.value_and_gradient(mixture)[1] * mixture
    if share is not None:
        draws_SJD = draws_SJD - share * draws_SJD.sum(axis=-1, keepdims=True)
        values_JD = values_JD - share * values_JD.sum(axis=-1, keepdims=True)
    # The draws say how far the value may be off; they are centred on it, for the mean of draws differs a little.
    centred = draws_SJD - np.median(draws_SJD, axis=0) + values_JD
    lower, upper = np.quantile(centred, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return ResponseMatrix(values=values_JD, errors=draws_SJD.std(axis=0, ddof=1), lower=lower, upper=upper)
