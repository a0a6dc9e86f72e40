"""The one place that compares two mixtures: what a fitted response predicts of one against another, with intervals.

One rule for every interval: the posterior draws of the ratio, and beside them the noise of the runs that would show it,
for the mean over some pairs of runs that share a seed. A run that is good at one thing is often good at others: what
capabilities miss together (`correlation_`) counts in the objective. The gain of a mixture that was chosen by the
prediction is less than predicted: it is multiplied by what runs left out showed of predicted changes, put right by what
base's own runs show, and shrunk to none by how well it is known (`benchmarks/verdict/campaign.py`). Ratios of single
capabilities are the fit's own.

Legend: D domains, J capabilities, S posterior draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from scipy.special import expit
from scipy.stats import norm

from ideal_proxy.response.relative import Array, Yardstick

LEVEL = 0.9
NOISES = 64  # draws of the runs' noise beside each posterior draw, where the objective is not linear

ODDS = 0.5
"""That a fit misses base by about the gain that it predicts, before base's runs are seen."""

Combination = Literal["mean", "weighted", "worst"]


class Surface(Protocol):
    """What can be asked for losses at a mixture: a fitted `ResponseModel`, or its form at full size."""

    def value_and_gradient(self, v: Any) -> tuple[Array, Array]:
        """Give losses (J,) and their derivatives (J, D)."""

    def draws_value_and_gradient(self, v: Any) -> tuple[Array, Array]:
        """Give the same for every posterior draw, (S, J) and (S, J, D)."""

    @property
    def residual_scale_(self) -> Any:
        """Standard deviation of one run, (J,)."""


@dataclass(frozen=True, slots=True)
class Bound:
    """An estimate with its interval."""

    value: float
    lower: float
    upper: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One mixture against another."""

    ratios: tuple[Bound, ...]  # L_j(mixture)/L_j(other) of the J capabilities; of scores relative as `relative` says
    gain: Bound  # relative gain in the objective, 1 − its value
    other: Array  # predicted losses at the other mixture, (J,) nats (scores: their unit)


def combine(ratios: Array, kind: Combination = "mean", weights: Sequence[float] | Array | None = None) -> Array:
    """Reduce losses relative to base to the objective: capabilities (J,) on the last axis, 1 at base."""
    if kind == "worst":
        return np.asarray(ratios.max(axis=-1))
    return np.asarray(ratios @ _share(ratios.shape[-1], kind, weights))


def compare(
    surface: Surface,
    mixture: Array,
    other: Array,
    *,
    pairs: int,
    kind: Combination = "mean",
    weights: Sequence[float] | Array | None = None,
    yardstick: Yardstick | None = None,
    level: float = LEVEL,
    chosen: bool = False,
) -> Prediction:
    """Predict a mixture against another; the gain of one that was chosen by the prediction is corrected for that."""
    here_J, there_J = (surface.value_and_gradient(v)[0] for v in (mixture, other))
    stick = yardstick or Yardstick.of_losses(len(here_J))
    ratio_J = stick.relative(here_J, there_J)
    draws_SJ = stick.relative(*(surface.draws_value_and_gradient(v)[0] for v in (mixture, other)))
    run_J = np.asarray(surface.residual_scale_, dtype=float) / np.abs(stick.divisor(there_J)) * np.sqrt(2 / pairs)
    together_JJ = np.asarray(getattr(surface, "correlation_", np.eye(len(here_J))))
    if np.array_equal(mixture, other):  # a run and itself share all noise
        run_J = np.zeros_like(run_J)
    z = float(norm.ppf(0.5 + level / 2))
    half_J = z * np.hypot(draws_SJ.std(axis=0), run_J)
    if kind == "worst":
        noise_KJ = worst_noise(together_JJ) * run_J
        noise, known = 0.0, float(combine(draws_SJ[:, None, :] + noise_KJ, kind).std())
    else:
        share_J = _share(len(ratio_J), kind, weights)
        noise = spread_of_mean(share_J * run_J, together_JJ)
        known = float((draws_SJ @ share_J).std()) * _inflation(share_J * draws_SJ.std(axis=0), together_JJ)
    gain = 1 - float(combine(ratio_J, kind, weights))
    if chosen and gain > 0:
        at_base, missed, doubt = getattr(surface, "at_base_", None), 0.0, 0.0
        if at_base is not None and kind != "worst":
            seen = float(combine(stick.relative(np.array(at_base["values"]), there_J), kind, weights)) - 1.0
            missed, doubt = _missed(seen, noise * float(np.sqrt(pairs / 2 / at_base["runs"])), gain)
        known = float(np.hypot(known, doubt))
        gain = _shrunk(float(getattr(surface, "gain_slope_", 1.0)) * (gain + missed), known)
    half = z * float(np.hypot(known, noise))
    return Prediction(
        ratios=tuple(Bound(float(r), float(r - h), float(r + h)) for r, h in zip(ratio_J, half_J, strict=True)),
        gain=Bound(gain, gain - half, gain + half),
        other=there_J,
    )


def spread_of_mean(spread_J: Array, together_JJ: Array) -> float:
    """Standard deviation of a sum whose terms have these, and this correlation."""
    return float(np.sqrt(np.maximum(spread_J @ together_JJ @ spread_J, 0.0)))


def worst_noise(together_JJ: Array) -> Array:
    """Noise of runs of unit deviation with this correlation, (NOISES, J)."""
    values, vectors = np.linalg.eigh(together_JJ)
    root_JJ = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    drawn_KJ: Array = np.random.default_rng(0).standard_normal((NOISES, len(together_JJ)))
    return np.asarray(drawn_KJ @ root_JJ)


def _inflation(spread_J: Array, together_JJ: Array) -> float:
    """How much farther a sum spreads than by draws that take every capability alone: they answer to the same runs."""
    alone = float(np.linalg.norm(spread_J))
    return spread_of_mean(spread_J, together_JJ) / alone if alone > 0 else 1.0


def _shrunk(gain: float, known: float) -> float:
    """Take the winner's curse off: of mixtures with no gain the best looks like one as great as its error."""
    return gain * (gain / float(np.hypot(gain, known))) ** 2 if gain > 0 else gain


def _missed(seen: float, error: float, size: float) -> tuple[float, float]:
    """How far a fit misses base, where its runs lie `seen` ± `error` off: either not at all or by about `size`."""
    if error <= 0:
        return seen, 0.0
    log_odds = np.log(ODDS) + norm.logpdf(seen, 0.0, np.hypot(size, error)) - norm.logpdf(seen, 0.0, error)
    chance, share = float(expit(log_odds)), size**2 / (size**2 + error**2)
    variance = chance * size**2 * (1 - share) + chance * (1 - chance) * (share * seen) ** 2
    return chance * share * seen, float(np.sqrt(variance))


def _share(count: int, kind: Combination, weights: Sequence[float] | Array | None) -> Array:
    """Weights of a linear objective, summing to one."""
    if kind == "weighted" and weights is not None:
        given = np.asarray(weights, dtype=float)
        return np.asarray(given / given.sum())
    return np.full(count, 1 / count)
