"""What a fitted model says of mixtures: predictions, intervals, draws and derivatives.

Legend: N mixtures, R runs, D domains, J capabilities, S posterior draws, P parameters.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple, Self

import numpy as np
from scipy.stats import norm
from sklearn.metrics import r2_score
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from ideal_proxy.response.bends import Bends, added, added_by_draws
from ideal_proxy.response.forms import FORMS, LAW, ON_LAW
from ideal_proxy.response.inputs import BadInput, check_volumes
from ideal_proxy.response.law import Array, Volumes, evaluate, unpack
from ideal_proxy.response.process import Process
from ideal_proxy.response.relative import Kind
from ideal_proxy.response.stacked import Stack


class _Used(NamedTuple):
    """Processes put together, Q of them."""

    stack: Stack
    form_Q: np.ndarray
    j_Q: np.ndarray  # their capabilities
    of_QJ: Array  # the same as rows of an identity matrix
    beta_Q1R: Array  # their means
    drawn_QSR: Array  # their draws


class FittedResponse:
    """A fitted response, however it was fitted; :class:`ResponseModel` fits one."""

    unit: str
    n_draws: int
    random_state: int | None
    theta_: Array  # (J, P)
    bounds_: Array  # (J, 2)
    covariance_: Array  # (J, P, P)
    volumes_: Volumes
    weights_: Array  # (J, C) shares of the forms
    processes_: dict[int, dict[int, Process]]  # by form and capability
    centre_: Array  # (J,) mean of the runs, to which what is not known is pulled
    known_: Array  # (J,) part of a predicted change that counts
    bends_: Bends | None
    theta_draws_: Array  # (S, J, P)
    weight_draws_: Array  # (S, J, C)
    known_draws_: Array  # (S, J)
    process_draws_: dict[tuple[int, int], Array]  # by form and capability, (S, R)
    process_seed_: int
    harm_: np.ndarray  # (J,) bool
    is_convex_: np.ndarray  # (J,) bool
    widening_: Array  # (J,)
    noise_: Array  # (J,)
    seed_sd_: Array  # (J,)
    sign_: Array  # (J,)
    location_: Array  # (J,)
    scale_: Array  # (J,)
    kinds_: tuple[Kind, ...]
    domain_names_: list[str]
    n_features_in_: int
    repeat_identified_: Any  # (D,) bool
    log_rho_error_: Array  # (D,)
    _one_dimensional_: bool
    _stacked: tuple[tuple[Any, ...], list[_Used]] | None = None

    def _draw_processes(self) -> None:
        rng = np.random.default_rng(self.process_seed_)
        self.process_draws_ = {(c, j): process.draws(self.n_draws, rng) for c, j, process in self._used()}
        # each draw is of one form, in the shares of the blend: where forms disagree, the draws do
        place_S = (rng.permutation(self.n_draws) + 0.5) / self.n_draws
        form_SJ = (place_S[:, None, None] > np.cumsum(self.weights_, axis=1)[None] + 1e-9).sum(axis=2)
        self.weight_draws_ = np.eye(len(FORMS))[np.minimum(form_SJ, len(FORMS) - 1)]

    def _used(self) -> Iterator[tuple[int, int, Process]]:
        """Processes that share in a prediction, by form and capability."""
        for c, processes in self.processes_.items():
            for j in np.flatnonzero(self.weights_[:, c]):
                yield c, int(j), processes[int(j)]

    def _stacks(self) -> list[_Used]:
        """Give the processes that share in a prediction, put together anew where forms, weights or draws changed."""
        made_of = self.processes_, self.process_draws_, self.weights_
        if self._stacked is None or any(a is not b for a, b in zip(self._stacked[0], made_of, strict=True)):
            found: dict[bool, list[tuple[int, int, Process]]] = {}
            for c, j, process in self._used():
                found.setdefault(process.kernel.shape == "matern", []).append((c, j, process))
            stacks = []
            for used in found.values():
                form_Q, j_Q, processes = zip(*used, strict=True)
                stack = Stack.of(processes)
                stacks.append(_Used(
                    stack, np.array(form_Q), np.array(j_Q), np.eye(len(self.weights_))[list(j_Q)],
                    stack.weights([process.beta_R[None] for process in processes]),
                    stack.weights([self.process_draws_[c, j] for c, j, _ in used]),
                ))  # fmt: skip
            self._stacked = made_of, stacks
        return self._stacked[1]

    def alone(self, form: str) -> Self:
        """The same fit, predicting by one form of the response alone."""
        model = copy.copy(self)
        model.weights_ = np.zeros_like(self.weights_)
        model.weights_[:, FORMS.index(form)] = 1.0
        model.known_, model.known_draws_ = np.ones_like(self.known_), np.ones_like(self.known_draws_)
        model.bends_ = None
        model._set_convexity()
        model._draw_processes()
        return model

    def draw(self, number: int) -> Self:
        """One posterior draw of the mean response, as a model that predicts it."""
        model, one = copy.copy(self), slice(number, number + 1)
        model.theta_, model.weights_, model.known_ = (
            draws[number] for draws in (self.theta_draws_, self.weight_draws_, self.known_draws_)
        )
        model.n_draws, model.theta_draws_, model.weight_draws_, model.known_draws_ = (
            1, self.theta_draws_[one], self.weight_draws_[one], self.known_draws_[one],
        )  # fmt: skip
        model.bends_ = self.bends_ and self.bends_.draw(number)
        model.process_draws_ = {at: beta_SR[one] for at, beta_SR in self.process_draws_.items()}
        model.processes_ = {}
        for (c, j), beta_SR in model.process_draws_.items():
            model.processes_.setdefault(c, {})[j] = replace(self.processes_[c][j], beta_R=beta_SR[0])
        model._set_convexity()
        return model

    def _set_convexity(self) -> None:
        self.is_convex_ = (self.weights_[:, LAW] == 1.0) & ~self.harm_

    def _with_retired(self, v_ND: Array) -> Array:
        """Give mixtures the domains that were retired, with no row."""
        retired = len(self.volumes_.rho) - self.n_features_in_
        return np.pad(v_ND, ((0, 0), (0, retired))) if retired else v_ND

    # -------------------------------------------------------------- predict

    def _volumes(self, V: Any) -> tuple[Array, Array]:
        check_is_fitted(self, "theta_")
        v = check_volumes(validate_data(self, V, dtype=np.float64, reset=False), self.unit)
        return v, self.volumes_.effective(self._with_retired(v))[0]

    def _blend(self, law_JN: Array, x_ND: Array, draw: int | None = None) -> Array:
        weights, known = self.weights_, self.known_
        if draw is not None:
            weights, known = self.weight_draws_[draw], self.known_draws_[draw]
        y = (weights @ ON_LAW)[:, None] * law_JN
        for c, j, process in self._used():
            beta = None if draw is None else self.process_draws_[c, j][draw]
            y[j] += weights[j, c] * process.mean(x_ND, beta)
        y = self.centre_[:, None] + known[:, None] * (y - self.centre_[:, None])
        return np.asarray(y + added(self.bends_, x_ND, draw)[0])

    def _original(self, y_JN: Array) -> Array:
        return np.asarray(self.sign_[:, None] * (self.location_[:, None] + self.scale_[:, None] * y_JN)).T

    def predict(self, V: Any, return_interval: bool | float = False) -> Any:
        """Predict losses or scores.

        Args:
            V: (N, D) volumes.
            return_interval: True or a level such as 0.9: also the interval of one new run's observed value.

        Returns:
            (N, J) means ((N,) where L was one column); with an interval also lower and upper, the same shape.

        Raises:
            BadInput: a level that is not between 0 and 1.
        """
        _, u = self._volumes(V)
        level = 0.9 if return_interval is True else float(return_interval)
        evaluation = evaluate(self.theta_, self.bounds_, self.volumes_, u)
        x = u / self.volumes_.scale
        mean = self._original(self._blend(evaluation.loss_JR, x))
        if level <= 0:
            return mean[:, 0] if self._one_dimensional_ else mean
        if not 0.0 < level < 1.0:
            raise BadInput(f"return_interval is {return_interval!r}: give a level between 0 and 1, such as 0.9.")
        by = evaluation.by_theta()
        law = np.einsum("jrp,jrp->jr", np.matmul(by, self.covariance_), by)
        variance = (self.weights_ @ ON_LAW)[:, None] * law
        for c, j, process in self._used():
            variance[j] += self.weights_[j, c] * process.spread(x)
        variance *= self.known_[:, None] ** 2
        total = self.widening_[:, None] ** 2 * (variance + self.noise_[:, None] ** 2) + self.seed_sd_[:, None] ** 2
        half = (norm.ppf(0.5 + level / 2.0) * self.scale_[:, None] * np.sqrt(total)).T
        bounds = (mean, mean - half, mean + half)
        return tuple(b[:, 0] for b in bounds) if self._one_dimensional_ else bounds

    def sample(self, V: Any, n: int, *, noise: bool = True) -> Array:
        """Draw from the predictive distribution."""
        _, u = self._volumes(V)
        x = u / self.volumes_.scale
        rng = np.random.default_rng(self.random_state)
        J, N = len(self.theta_), len(u)
        out = np.empty((n, N, J))
        for i in range(n):
            s = i % self.n_draws
            y = self._blend(evaluate(self.theta_draws_[s], self.bounds_, self.volumes_, u).loss_JR, x, s)
            if noise:
                run = (self.widening_ * self.noise_)[:, None] * rng.standard_normal((J, N))
                y = y + run + self.seed_sd_[:, None] * rng.standard_normal((J, N))
            out[i] = self._original(y)
        return out

    def gradient(self, V: Any) -> Array:
        """Differentiate the prediction by log volume: the response R.

        Args:
            V: (N, D) volumes.

        Returns:
            (N, J, D) ∂L/∂log v in the unit of L.
        """
        v, _ = self._volumes(V)
        return np.stack([self.value_and_gradient(row)[1] * row for row in v])

    def value_and_gradient(self, v: Array) -> tuple[Array, Array]:
        """Predict at one mixture, with the exact derivative by volume (not log volume).

        Args:
            v: (D,) volumes, any non-negative numbers (shares are not normalised here).

        Returns:
            (J,) predictions and (J, D) ∂L/∂v.
        """
        values, by = self._at(np.asarray(v, dtype=float), self.theta_[None], drawn=False)
        return values[0], by[0]

    def values_and_gradients(self, v_ND: Array) -> tuple[Array, Array]:
        """Predict at many mixtures at once, (N, J), with the derivatives by volume, (N, J, D)."""
        u, du_dv, _ = self.volumes_.effective(self._with_retired(v_ND))
        e = evaluate(self.theta_, self.bounds_, self.volumes_, u)
        law, x = self.weights_ @ ON_LAW, u / self.volumes_.scale
        y, by = law[:, None] * e.loss_JR, law[:, None, None] * e.by_u()
        for c, j, process in self._used():
            value, by_x = process.many(x)
            y[j] += self.weights_[j, c] * value
            by[j] += self.weights_[j, c] * by_x / self.volumes_.scale
        bent, bent_by = added(self.bends_, x)
        y = self.centre_[:, None] + self.known_[:, None] * (y - self.centre_[:, None]) + bent
        by = self.known_[:, None, None] * by + bent_by / self.volumes_.scale
        by = (self.sign_ * self.scale_)[:, None, None] * by * du_dv
        return self._original(y), by.transpose(1, 0, 2)[..., : v_ND.shape[1]]

    def draws_value_and_gradient(self, v: Array) -> tuple[Array, Array]:
        """Evaluate every posterior draw of the mean response at one mixture.

        Args:
            v: (D,) volumes.

        Returns:
            (S, J) values and (S, J, D) ∂L/∂v.
        """
        return self._at(np.asarray(v, dtype=float), self.theta_draws_, drawn=True)

    def _at(self, v: Array, theta_SJP: Array, *, drawn: bool) -> tuple[Array, Array]:
        count = len(v)
        u, du_dv, _ = self.volumes_.effective(self._with_retired(v[None]))
        S, J, P = theta_SJP.shape
        e = evaluate(theta_SJP.reshape(S * J, P), np.tile(self.bounds_, (S, 1)), self.volumes_, u)
        weights_SJC, known_SJ = (
            (self.weight_draws_, self.known_draws_) if drawn else (self.weights_[None], self.known_[None])
        )
        law_SJ = weights_SJC @ ON_LAW
        y = law_SJ * e.loss_JR.reshape(S, J)
        by = law_SJ[:, :, None] * e.by_u().reshape(S, J, -1)
        x = u[0] / self.volumes_.scale
        for used in self._stacks():
            value_QS, by_QSD = used.stack.at(x, used.drawn_QSR if drawn else used.beta_Q1R)
            weight_QS = weights_SJC[:, used.j_Q, used.form_Q].T
            y += (weight_QS * value_QS).T @ used.of_QJ
            by += np.tensordot(weight_QS[:, :, None] * by_QSD, used.of_QJ, (0, 0)).transpose(0, 2, 1) / (
                self.volumes_.scale
            )
        bent, bent_by = added_by_draws(self.bends_, x, drawn=drawn)
        y = self.centre_ + known_SJ * (y - self.centre_) + bent
        by = known_SJ[:, :, None] * by + bent_by / self.volumes_.scale
        value = self.sign_ * (self.location_ + self.scale_ * y)
        return value, ((self.sign_ * self.scale_)[:, None] * by * du_dv)[..., :count]

    # ---------------------------------------------------------- diagnostics

    def floors(self) -> Array:
        """Give what no prediction falls below, (J,): a loss's floor by the law at its lowest, 0 without the law."""
        check_is_fitted(self, "theta_")
        parts = [unpack(theta_JP, self.bounds_, len(self.volumes_.rho))["E"] for theta_JP in self.theta_draws_]
        lowest = np.maximum(self.location_ + self.scale_ * np.min(parts, axis=0), 0.0)
        lowest[self.weights_ @ ON_LAW == 0] = 0.0
        plain = (self.location_ == 0) & [kind == "loss" for kind in self.kinds_]  # else some values were negative
        return np.where(plain, lowest, -np.inf)

    def repeat_decay(self) -> dict[str, tuple[float, float] | str]:
        """Tell how many further passes over each domain are worth having."""
        check_is_fitted(self, "theta_")
        return {
            name: (float(self.volumes_.rho[i]), float(self.log_rho_error_[i]))
            if self.repeat_identified_[i]
            else "not identified"
            for i, name in enumerate(self.domain_names_)
        }

    def score(self, V: Any, y: Any, sample_weight: Any = None) -> float:
        """Give the coefficient of determination, the mean over capabilities, missing values left out.

        Args:
            V: (N, D) volumes.
            y: (N, J) or (N,) observed.
            sample_weight: (N,) weights, or None.

        Returns:
            R², at most 1.
        """
        observed = check_array(y, dtype=np.float64, ensure_2d=False, ensure_all_finite="allow-nan")
        observed = observed.reshape(len(observed), -1)
        predicted = np.asarray(self.predict(V)).reshape(observed.shape)
        weight = np.ones(len(observed)) if sample_weight is None else np.asarray(sample_weight, dtype=float)
        scores = []
        for truth, p in zip(observed.T, predicted.T, strict=True):
            seen = np.isfinite(truth)
            scores.append(r2_score(truth[seen], p[seen], sample_weight=weight[seen]))
        return float(np.mean(scores))
