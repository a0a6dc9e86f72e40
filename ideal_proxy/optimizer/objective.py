"""What a mixture is judged by: losses relative to base, their mean, weighted mean or worst, and their upper bounds.

Legend: D domains, J capabilities, S posterior draws.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from ideal_proxy.amounts import check_name, parse_fraction
from ideal_proxy.domains import FloatArray
from ideal_proxy.errors import UsageError, UserError
from ideal_proxy.optimizer.constraints import Constraints, Problem, ScalarFunction, VectorFunction
from ideal_proxy.response import Yardstick, directions

SD_ROUNDING = 1e-5
"""ε of sqrt(variance + ε²) − ε: makes the standard deviation smooth at base, where all draws of a ratio are 1."""


class ResponseSurface(Protocol):
    """What the optimiser needs of a fitted response model."""

    @property
    def is_convex_(self) -> NDArray[np.bool_]:
        """Whether each loss (or minus each score) is convex in the volumes (J,)."""

    @property
    def residual_scale_(self) -> FloatArray:
        """Standard deviation of one run's noise (J,)."""

    def value_and_gradient(self, v: FloatArray, /) -> tuple[FloatArray, FloatArray]:
        """Predict losses (J,) and their derivatives by volume (J, D) at v (D,)."""

    def draws_value_and_gradient(self, v: FloatArray, /) -> tuple[FloatArray, FloatArray]:
        """Predict posterior draws of the mean losses (S, J) and their derivatives (S, J, D)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """What is minimised.

    Attributes:
        kind: `mean`, `weighted` or `worst` of L_j(v)/L_j(v⁰); for scores of (base score − score)/scale, plus 1 where
            losses stand beside them.
        weights: of the capabilities, for `weighted`; those not named weigh nothing.
        upper_confidence: minimise the one-sided upper bound at this level, such as 0.9; None for the prediction.
        kl_penalty: added: this many times the Kullback–Leibler divergence of the shares from base (nats).
        scale: for scores, what one unit of difference is; default the noise of one run.
    """

    kind: Literal["mean", "weighted", "worst"] = "mean"
    weights: Mapping[str, float] | None = None
    upper_confidence: float | None = None
    kl_penalty: float = 0.0
    scale: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        if self.kind not in {"mean", "weighted", "worst"}:
            raise UsageError(f'The objective is "{self.kind}"; it must be mean, weighted or worst.')
        if (self.kind == "weighted") != (self.weights is not None):
            raise UsageError("Weights belong to the objective `weighted`, and it needs them; give both or neither.")
        if self.weights is not None and (
            any(not (np.isfinite(w) and w >= 0) for w in self.weights.values()) or not any(self.weights.values())
        ):
            raise UsageError("The weights of the objective must be finite, not negative, and not all zero.")
        if self.upper_confidence is not None and not 0.5 <= self.upper_confidence < 1:
            raise UsageError(f"upper_confidence is {self.upper_confidence}; it must be at least 0.5 and below 1.")
        if not (np.isfinite(self.kl_penalty) and self.kl_penalty >= 0):
            raise UsageError(f"kl_penalty is {self.kl_penalty}; it must be finite and not negative.")

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Objective:
        """Read the objective from command-line options or a YAML mapping."""
        known = [f.name for f in fields(cls)]
        values: dict[str, Any] = {}
        for key, value in options.items():
            check_name(key, known, what="objective option", where="the objective")
            if value is None:
                continue
            if key in {"weights", "scale"}:
                values[key] = _numbers(value, key)
            elif key == "kind":
                values[key] = str(value)
            else:
                values[key] = parse_fraction(value, where=key)
        return cls(**values)

    def weight_vector(self, problem: Problem) -> FloatArray:
        """Write the weights in the order of the capabilities."""
        names = problem.capabilities
        if self.weights is None:
            return np.full(len(names), 1.0 / len(names))
        for name in self.weights:
            check_name(name, names, what="capability", where="the weights of the objective")
        weights = np.array([self.weights.get(name, 0.0) for name in names])
        return np.asarray(weights / weights.sum(), dtype=np.float64)


class RelativeLosses:
    """Losses relative to base as functions of the volumes, with exact derivatives; lower is better.

    For losses L_j(v)/L_j(v⁰); for scores (S_j(v⁰) − S_j(v))/scale_j, where higher is better, and with the other sign
    where lower is; plus 1 where there are losses too, so that base is the same for all. Draws are paired: each is
    relative to its own value at base, so what all draws share cancels.
    """

    def __init__(self, model: ResponseSurface, problem: Problem, scale: Mapping[str, float] | None = None) -> None:
        self._model = model
        base, jacobian = model.value_and_gradient(problem.domains.base)
        shape = len(problem.capabilities), len(problem.domains)
        if jacobian.shape != shape:
            raise ValueError(f"the model has {jacobian.shape} capabilities and domains; the problem has {shape}")
        self.base_losses_J = np.asarray(base, dtype=np.float64)
        if not np.all(np.isfinite(base)) or not np.all(np.isfinite(jacobian)):
            raise UserError("The fit predicts no finite value at the base mixture; fit it again near the base.")
        lossy = [kind == "loss" for kind in problem.kinds]
        if bad := [c for c, x, loss in zip(problem.capabilities, base, lossy, strict=True) if loss and x <= 0]:
            raise UserError(
                f"The predicted base loss of {', '.join(bad)} is not positive, so nothing can be relative to "
                "it; fit with --maximize if these are scores."
            )
        scales = np.full(len(lossy), np.nan) if all(lossy) else self._score_scale(problem, scale)
        self._stick = Yardstick(problem.kinds, np.where(lossy, np.nan, scales))
        self._shift = 0.0 if any(lossy) else 1.0  # scores alone are told from 0, as tables of scores are
        self._divisor_J = self._stick.divisor(self.base_losses_J)
        self._factor_J = directions(problem.kinds) / self._divisor_J
        self._problem = problem
        self._memo: dict[tuple[bool, bytes], tuple[FloatArray, FloatArray]] = {}

    def _score_scale(self, problem: Problem, scale: Mapping[str, float] | None) -> FloatArray:
        result = np.array(self._model.residual_scale_, dtype=np.float64)
        for name, value in (scale or {}).items():
            check_name(name, problem.capabilities, what="capability", where="the scale of the objective")
            result[problem.capabilities.index(name)] = value
        scores = np.array([kind != "loss" for kind in problem.kinds])
        if not np.all(np.isfinite(result[scores]) & (result[scores] > 0)):
            raise UserError("A score has no positive scale (its replicates do not differ); give `scale` for it.")
        return result

    @property
    def base_value(self) -> float:
        """The relative loss of base."""
        return 1.0 - self._shift

    def allowance(self, tolerance: float, j: int) -> float:
        """Give the largest relative loss that a protected capability may have."""
        return self._stick.allowance(tolerance, self.base_losses_J, j) - self._shift

    def absolute(self, relative_J: FloatArray) -> FloatArray:
        """Turn relative losses back into losses (nats) or scores."""
        return self._stick.absolute(relative_J + self._shift, self.base_losses_J)

    def point(self, v: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Predict the relative losses."""
        value, jacobian = self._remember(False, v)
        return self._relative(value, self.base_losses_J), jacobian * self._factor_J[:, None]

    def _relative(self, values: FloatArray, base: FloatArray) -> FloatArray:
        return self._stick.relative(values, base) - self._shift

    def draws(self, v: FloatArray) -> FloatArray:
        """Draw the relative losses, each draw against its own base (S, J)."""
        return self._relative(self._remember(True, v)[0], self._base_draws_SJ)

    @functools.cached_property
    def _base_draws_SJ(self) -> FloatArray:
        return np.asarray(self._model.draws_value_and_gradient(self._problem.domains.base)[0])

    @functools.cached_property
    def _base_factors_SJ(self) -> FloatArray:
        return directions(self._stick.kinds) / self._stick.divisor(self._base_draws_SJ)

    def upper(self, v: FloatArray, confidence: float, weights_KJ: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Bound weighted means of the relative losses from above: prediction + z · sd over paired draws."""
        z = float(ndtri(confidence))
        value, jacobian = self.point(v)
        bound, gradient = weights_KJ @ value, weights_KJ @ jacobian
        if z <= 0:
            return bound, gradient
        relative_SJ, draws_jacobian = self.draws(v), self._remember(True, v)[1]
        combined_SK = relative_SJ @ weights_KJ.T
        deviation_SK = combined_SK - combined_SK.mean(axis=0)
        degrees = max(len(relative_SJ) - 1, 1)
        smooth = np.sqrt((deviation_SK**2).sum(axis=0) / degrees + SD_ROUNDING**2)
        share_KSJ = (deviation_SK / (degrees * smooth)).T[:, :, None] * self._base_factors_SJ * weights_KJ[:, None]
        gradient += z * np.tensordot(share_KSJ, draws_jacobian, 2)
        return bound + z * (smooth - SD_ROUNDING), gradient

    def _remember(self, draws: bool, v: FloatArray) -> tuple[FloatArray, FloatArray]:
        key = draws, v.tobytes()
        if key not in self._memo:
            for old in [k for k in self._memo if k[0] == draws]:
                del self._memo[old]
            ask = self._model.draws_value_and_gradient if draws else self._model.value_and_gradient
            self._memo[key] = ask(v)
        return self._memo[key]


def weighted_function(losses: RelativeLosses, weights_J: FloatArray, confidence: float | None) -> ScalarFunction:
    """Make a weighted mean of relative losses, or its upper bound, a function of the volumes."""

    def function(v: FloatArray) -> tuple[float, FloatArray]:
        value, gradient = losses.upper(v, confidence or 0.5, weights_J[None])
        return float(value[0]), gradient[0]

    return function


def each_function(losses: RelativeLosses, indices: list[int], confidence: float | None) -> VectorFunction:
    """Make some relative losses, or their upper bounds, a function of the volumes."""
    weights_KJ = np.eye(len(losses.base_losses_J))[indices]
    return lambda v: losses.upper(v, confidence or 0.5, weights_KJ)


def kl_from_base(constraints: Constraints) -> ScalarFunction:
    """Make the Kullback–Leibler divergence of the shares from base, in the budget's unit, a function of the volumes."""
    # With η added to every volume, so that a base volume of zero is allowed.
    per_row, base_share = _smoothed(constraints)

    def function(v: FloatArray) -> tuple[float, FloatArray]:
        q = per_row * (v + constraints.eta)
        log_ratio = np.log(q / q.sum() / base_share)
        kl = float(q @ log_ratio / q.sum())
        return kl, per_row * (log_ratio - kl) / q.sum()

    return function


def kl_excess(constraints: Constraints, cap: float) -> ScalarFunction:
    """Make `KL − cap <= 0` a convex function of the volumes by multiplying it with the total (a perspective)."""
    per_row, base_share = _smoothed(constraints)
    base_total = float(per_row @ (constraints.domains.base + constraints.eta))

    def function(v: FloatArray) -> tuple[float, FloatArray]:
        q = per_row * (v + constraints.eta)
        log_ratio = np.log(q / q.sum() / base_share)
        return float(q @ (log_ratio - cap)) / base_total, per_row * (log_ratio - cap) / base_total

    return function


def _smoothed(constraints: Constraints) -> tuple[FloatArray, FloatArray]:
    per_row = constraints.unit_weights()
    base = per_row * (constraints.domains.base + constraints.eta)
    return per_row, np.asarray(base / base.sum(), dtype=np.float64)


def _numbers(value: Any, where: str) -> dict[str, float]:
    items = value.items() if isinstance(value, Mapping) else (str(x).rpartition("=")[::2] for x in value)
    try:
        return {str(name).strip(): float(number) for name, number in items}
    except (TypeError, ValueError):
        raise UsageError(f"{where}: cannot read {value!r}; write name=number, like coding=2.") from None
