"""``ResponseModel``: how every capability answers to the volumes, fitted to proxy runs.

Legend: N mixtures, R runs, D domains, J capabilities, S posterior draws, P parameters.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.covariance import ledoit_wolf
from sklearn.metrics import r2_score
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from ideal_proxy.response import choice, forms, json_form, trust
from ideal_proxy.response.bends import SHIFT, Bends
from ideal_proxy.response.diagnosis import diagnose
from ideal_proxy.response.forms import FORMS, LAW, ON_LAW, HeldOutLaw
from ideal_proxy.response.gradient_rows import Responses
from ideal_proxy.response.inputs import BadInput, check_kind, check_volumes, distinct_runs, kinds_of
from ideal_proxy.response.law import FIRST_A, Array, evaluate, unpack
from ideal_proxy.response.law_fit import LawData, LawFit, fit_law, posterior_draws
from ideal_proxy.response.process import Process
from ideal_proxy.response.standardise import own_domains, standardise

log = logging.getLogger(__name__)


class ResponseModel(RegressorMixin, MultiOutputMixin, BaseEstimator):
    """The response law as a scikit-learn regressor: volumes in, losses or scores out.

    Args:
        unit: "rows", or "share" where every mixture sums to one.
        kind: "loss" (lower is better, never below zero), "score" (higher is better, any affine scale) or "cost" (lower
            is better, any affine scale), or one of them for each capability.
        available: (D,) rows each domain has, so that repeats saturate; None: nothing is repeated.
        base: (D,) base volumes, which set the scale; default ``available``, else the mean of V.
        process: "auto" lets cross-validation mix in Gaussian processes, "never" keeps the law alone.
        harm: "auto" (where held-out runs ask for it), "never", "always", or (J,) booleans: which capabilities have it.
        trust: σ_g, how far responses may miss relative to their size; "auto" lets the losses choose, inf leaves them
            out.
        n_starts: starts of the optimiser.
        n_draws: posterior draws kept.
        random_state: seed of starts, folds and draws.
    """

    def __init__(
        self,
        *,
        unit: str = "rows",
        kind: Any = "loss",
        available: Any = None,
        base: Any = None,
        process: str = "auto",
        harm: Any = "auto",
        trust: str | float = "auto",
        n_starts: int = 3,
        n_draws: int = 64,
        random_state: int | None = 0,
    ) -> None:
        self.unit = unit
        self.kind = kind
        self.available = available
        self.base = base
        self.process = process
        self.harm = harm
        self.trust = trust
        self.n_starts = n_starts
        self.n_draws = n_draws
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.positive_only = True
        tags.target_tags.required = True
        return tags

    # ------------------------------------------------------------------ fit

    def fit(
        self,
        V: Any,
        L: Any,
        run_id: Any = None,
        seed_id: Any = None,
        sample_weight: Any = None,
        baseline_loss: Any = None,
        responses: Responses | list[Responses] | None = None,
        own: Any = None,
        retired: int = 0,
    ) -> ResponseModel:
        """Fit the law, decide by cross-validation what to add, and measure the intervals.

        Args:
            V: (N, D) volumes, in rows or shares.
            L: (N, J) or (N,) losses in nats per supervised token, or scores; NaN where a run has none.
            run_id: (N,) ids; rows of one run are averaged, only distinct runs are replicates.
            seed_id: (N,) seeds; runs of one seed share a seed effect.
            sample_weight: (N,) weights on the mean response.
            baseline_loss: (J,) Z, the loss with no row, NaN where not measured.
            responses: mixing responses measured by gradients.
            own: (J,) number of each capability's own domain, -1 where it has none; default: the domain of exactly its
                name, and where no name says anything every capability counts as having one.
            retired: the last so many columns of V are domains that runs had and no mixture can have any more: the fit
                knows them, predictions take the other D columns alone.

        Returns:
            self.

        Raises:
            BadInput: input that cannot be fitted, with the cure.
        """
        self._check_options()
        self.fidelity_: dict[str, dict[str, Any]] = {}
        self.bends_: Bends | None = None  # `evidence.fit_kinds` gives draws some
        names = list(map(str, L.columns)) if isinstance(L, pd.DataFrame) else None
        V = validate_data(self, V, dtype=np.float64)
        if L is None:
            raise BadInput("requires y to be passed, but the target y is None: give the losses of every run.")
        L = check_array(L, dtype=np.float64, ensure_2d=False, ensure_all_finite=False, input_name="y")
        if L.ndim > 2 or len(L) != len(V):
            raise BadInput(f"V has {len(V)} rows and L shape {L.shape}: give one row of losses a row of volumes.")
        self._one_dimensional_ = L.ndim == 1
        L = L.reshape(len(V), -1)
        if np.isinf(L).any() or (self._one_dimensional_ and np.isnan(L).any()):
            raise BadInput("Input y contains infinity or, in a single column, NaN: leave those runs out.")
        self.domain_names_ = list(map(str, getattr(self, "feature_names_in_", _numbered("domain", V.shape[1]))))
        self.target_names_ = names or _numbered("capability", L.shape[1])
        self.own_: list[int] = own_domains(own, self.target_names_, self.domain_names_).tolist()
        runs = distinct_runs(check_volumes(V, self.unit), L, run_id, seed_id, sample_weight, self.target_names_)
        if len(runs.v_RD) < 2:
            raise BadInput("Only 1 sample (one distinct run) was given and a fit needs at least 2: add runs.")
        rng = np.random.default_rng(self.random_state)
        self.kinds_ = kinds_of(self.kind, len(runs.weight_JR))
        told = standardise(
            runs, self.kinds_, share=self.unit == "share", available=self.available, base=self.base,
            baseline_loss=baseline_loss, responses=responses,
        )  # fmt: skip
        parents = [name.rpartition("/")[0] or name for name in self.domain_names_]  # maths/hard is a part of maths
        data = replace(told.data, parent_D=np.unique(parents, return_inverse=True)[1])
        self.location_, self.scale_, self.sign_ = told.location_J, told.scale_J, told.sign_J
        fold_R = choice.fold_of_runs(len(runs.v_RD), rng)
        enough = len(runs.v_RD) >= choice.LEAST_RUNS
        fit = fit_law(data, harm=False, starts=self.n_starts, rng=rng)
        data = replace(data, volumes=fit.volumes)
        law = choice.held_out_law(data, fit, fold_R, harm=False) if enough else None
        self.trust_errors_: dict[float, float] = {}
        if data.gradients:
            chosen = trust.choose_trust(
                data, fit, law, fold_R, rng, fixed=None if self.trust == "auto" else float(self.trust)
            )
            data, fit, law, self.trust_errors_ = chosen.data, chosen.fit, chosen.law, chosen.errors
        self.trust_ = data.trust
        self.response_scale_ = np.exp(fit.log_scale_J)
        self.harm_ = np.zeros(len(data.y_JR), dtype=bool)
        asked = self._harm_asked(len(data.y_JR))
        if asked.any() if asked is not None else enough:
            fit, law = self._try_harm(data, fit, law, fold_R, rng, asked)
        self._keep(data, fit)
        self._choose(data, fit, law, fold_R)
        self._draw(data, fit, rng)
        self.at_base_ = self._seen_at_base(data, fit)
        self.correlation_ = self._missed_together(data, fit)
        self.diagnostics_ = diagnose(self, data, fit)
        if retired:
            self.n_features_in_ -= retired
            self.domain_names_ = self.domain_names_[:-retired]
            if hasattr(self, "feature_names_in_"):
                self.feature_names_in_: Any = np.array(self.domain_names_, dtype=object)
        return self

    def _with_retired(self, v_ND: Array) -> Array:
        """Give mixtures the domains that were retired, with no row."""
        retired = len(self.volumes_.rho) - self.n_features_in_
        return np.pad(v_ND, ((0, 0), (0, retired))) if retired else v_ND

    def _check_options(self) -> None:
        for name, allowed in (
            ("unit", ("rows", "share")),
            ("process", ("auto", "never")),
        ):
            if getattr(self, name) not in allowed:
                raise BadInput(f"{name} is {getattr(self, name)!r} and must be one of {', '.join(allowed)}.")
        check_kind(self.kind)
        if self.trust != "auto" and not (isinstance(self.trust, (int, float)) and self.trust > 0):
            raise BadInput(f'trust is {self.trust!r} and must be "auto" or a number above 0; inf leaves responses out.')

    def _harm_asked(self, J: int) -> np.ndarray | None:
        """Which capabilities the user gives the harm term; None where cross-validation decides."""
        if isinstance(self.harm, str):
            if self.harm not in {"auto", "never", "always"}:
                raise BadInput(f"harm is {self.harm!r} and must be auto, never, always or {J} booleans.")
            return None if self.harm == "auto" else np.full(J, self.harm == "always")
        asked = np.asarray(self.harm)
        if asked.shape != (J,) or asked.dtype != bool:
            raise BadInput(f"harm must be auto, never, always or {J} booleans, one a capability; got {self.harm!r}.")
        return asked

    def _try_harm(
        self,
        data: LawData,
        fit: LawFit,
        law: HeldOutLaw | None,
        fold_R: np.ndarray,
        rng: np.random.Generator,
        asked: np.ndarray | None,
    ) -> tuple[LawFit, HeldOutLaw | None]:
        with_harm = fit_law(data, harm=True, starts=1, rng=rng, warm=fit, rounds=2)
        keep = np.zeros(len(data.y_JR), dtype=bool) if asked is None else asked.copy()
        law_harm = None
        if law is not None:
            law_harm = choice.held_out_law(data, with_harm, fold_R, harm=True)
        if law is not None and law_harm is not None and asked is None:
            y = data.y_JR - fit.seed_effect_JS[:, data.seed_R]
            gain, error = choice.harm_pays(y, data.weight_JR, law[0], law_harm[0])
            own = np.array(self.own_) >= 0
            has_own = own if own.any() else ~own
            keep |= np.where(has_own, gain > error, gain > -error)
            keep |= trust.response_harms(data, fit)
        if not keep.any():
            return fit, law
        self.harm_ = keep
        D = data.v_RD.shape[1]
        theta = np.concatenate([fit.theta_JP, np.zeros((len(keep), D))], axis=1)
        covariance = np.zeros((len(keep), theta.shape[1], theta.shape[1]))
        covariance[:, : FIRST_A + D, : FIRST_A + D] = fit.covariance_JPP
        theta[keep], covariance[keep] = with_harm.theta_JP[keep], with_harm.covariance_JPP[keep]
        fit = replace(
            fit,
            theta_JP=theta,
            covariance_JPP=covariance,
            noise_J=np.where(keep, with_harm.noise_J, fit.noise_J),
            seed_J=np.where(keep, with_harm.seed_J, fit.seed_J),
            seed_effect_JS=np.where(keep[:, None], with_harm.seed_effect_JS, fit.seed_effect_JS),
        )
        if law is not None and law_harm is not None:
            pairs = zip(law_harm, law, strict=True)
            law = HeldOutLaw(*(np.where(keep[:, None], with_it, plain) for with_it, plain in pairs))
        return fit, law

    def _keep(self, data: LawData, fit: LawFit) -> None:
        self.theta_, self.bounds_, self.volumes_ = fit.theta_JP, data.bounds_J2, data.volumes
        self.covariance_ = fit.covariance_JPP
        self.repeat_identified_: Any = (
            np.zeros(data.v_RD.shape[1], dtype=bool)
            if data.volumes.available is None
            else (data.v_RD > 1.5 * data.volumes.available).any(axis=0)
        )
        self.log_rho_error_ = fit.log_rho_error_D

    def _choose(self, data: LawData, fit: LawFit, law: HeldOutLaw | None, fold_R: np.ndarray) -> None:
        J, R = data.y_JR.shape
        self.weights_ = np.zeros((J, len(FORMS)))
        self.weights_[:, LAW] = 1.0
        self.processes_: dict[int, dict[int, Process]] = {}
        noise = fit.noise_J
        self.widening_ = np.full(J, 1.2 + 2.0 / R)
        self.centre_ = (data.weight_JR * (data.y_JR - fit.seed_effect_JS[:, data.seed_R])).sum(axis=1)
        self.centre_ /= data.weight_JR.sum(axis=1)
        known = choice.Known(np.ones(J), np.ones(J), np.zeros(J))
        self.held_out_ = np.full((J, R), np.nan)
        if law is not None:
            mean, variance = law.mean, law.variance
            x, y, in_sample = forms.seen(data, fit)
            if self.process == "auto" and R <= forms.MOST_RUNS:
                predicted = forms.held_out(data, fit, law, fold_R)
                self.weights_ = choice.combine(y, data.weight_JR, predicted)
                self.processes_ = forms.fit_forms(x, y, in_sample, data.weight_JR)
                mean = np.einsum("jc,cjr->jr", self.weights_, predicted.mean_CJR)
                variance = np.einsum("jc,cjr->jr", self.weights_, predicted.variance_CJR)
                noise = (self.weights_ * predicted.noise_CJ.T).sum(axis=1)
                known = choice.known(y, data.weight_JR, mean, fold_R)
                mean = self.centre_[:, None] + known.mean_J[:, None] * (mean - self.centre_[:, None])
                variance = known.mean_J[:, None] ** 2 * variance
            total = np.sqrt(variance + noise[:, None] ** 2)
            self.widening_ = choice.widening((y - mean) / total, data.weight_JR)
            self.held_out_ = np.where(data.weight_JR > 0, mean, np.nan)
        self.gain_slope_ = 1.0
        if law is not None and self.process == "auto":
            level = np.abs(self.location_ + self.scale_ * self.centre_)
            plain = np.array([kind == "loss" for kind in self.kinds_])
            unit_J = np.where(plain, self.scale_ / np.maximum(level, 1e-12), 1.0)
            self.gain_slope_ = choice.slope_of_mean(y, data.weight_JR, mean, unit_J)
        self.known_, self.known_draws_ = known.mean_J, known.draws(self.n_draws, np.random.default_rng(R))
        self.noise_, self.seed_sd_ = noise, fit.seed_J
        self.residual_scale_ = noise * self.scale_
        self.seed_scale_ = fit.seed_J * self.scale_
        self._set_convexity()

    def _seen_at_base(self, data: LawData, fit: LawFit) -> dict[str, Any] | None:
        """What the runs of base itself measured, without seed effects, and how many there were; None without them."""
        if self.base is None:
            return None
        base = np.zeros(data.v_RD.shape[1])  # of retired domains base has no row
        base[: len(self.base)] = self.base
        here_JR = data.weight_JR * np.isclose(data.v_RD, base).all(axis=1)
        if not (here_JR > 0).any(axis=1).all():
            return None
        seen_J = (here_JR * (data.y_JR - fit.seed_effect_JS[:, data.seed_R])).sum(axis=1) / here_JR.sum(axis=1)
        runs = int((here_JR > 0).sum(axis=1).min())
        return {"runs": runs, "values": (self.sign_ * (self.location_ + self.scale_ * seen_J)).tolist()}

    def _missed_together(self, data: LawData, fit: LawFit) -> Array:
        """Correlation over runs of what the fit leaves, (J, J), shrunk by Ledoit and Wolf."""
        x, y, law = forms.seen(data, fit)
        left_JR = np.where(data.weight_JR > 0, y - self._blend(law, x), 0.0)
        size_J = np.sqrt((left_JR**2).mean(axis=1))
        if left_JR.shape[1] < choice.LEAST_RUNS or len(size_J) == 1 or not (size_J > 0).all():
            return np.eye(len(size_J))
        shrunk_JJ = ledoit_wolf((left_JR / size_J[:, None]).T, assume_centered=True)[0]
        own_J = np.sqrt(np.diag(shrunk_JJ))
        return np.asarray(shrunk_JJ / np.outer(own_J, own_J))

    def _set_convexity(self) -> None:
        self.is_convex_ = (self.weights_[:, LAW] == 1.0) & ~self.harm_

    def _draw(self, data: LawData, fit: LawFit, rng: np.random.Generator) -> None:
        self.theta_draws_ = posterior_draws(data, fit, self.harm_, self.n_draws, rng)
        self.process_seed_ = int(rng.integers(2**31))
        self._draw_processes()

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

    def alone(self, form: str) -> ResponseModel:
        """The same fit, predicting by one form of the response alone."""
        model = copy.copy(self)
        model.weights_ = np.zeros_like(self.weights_)
        model.weights_[:, FORMS.index(form)] = 1.0
        model.known_, model.known_draws_ = np.ones_like(self.known_), np.ones_like(self.known_draws_)
        model.bends_ = None
        model._set_convexity()
        model._draw_processes()
        return model

    def draw(self, number: int) -> ResponseModel:
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
        bent = 0.0 if self.bends_ is None else self.bends_.many(x_ND, draw)
        return np.asarray(self.centre_[:, None] + known[:, None] * (y - self.centre_[:, None]) + bent)

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
        law = self.weights_ @ ON_LAW
        y, by = law[:, None] * e.loss_JR, law[:, None, None] * e.by_u()
        for c, j, process in self._used():
            value, by_x = process.many(u / self.volumes_.scale)
            y[j] += self.weights_[j, c] * value
            by[j] += self.weights_[j, c] * by_x / self.volumes_.scale
        y = self.centre_[:, None] + self.known_[:, None] * (y - self.centre_[:, None])
        by = self.known_[:, None, None] * by
        if self.bends_ is not None and self.bends_.single:
            x = u / self.volumes_.scale
            y = y + self.bends_.many(x)
            by = by + (self.bends_.slopes_SJD[0][:, None, :] / (x + SHIFT)) / self.volumes_.scale
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
        check_is_fitted(self, "theta_")
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
        for c, j, process in self._used():
            value, by_x = process.at(x, self.process_draws_[c, j] if drawn else process.beta_R[None])
            y[:, j] += weights_SJC[:, j, c] * value
            by[:, j] += weights_SJC[:, j, c, None] * by_x / self.volumes_.scale
        y, by = self.centre_ + known_SJ * (y - self.centre_), known_SJ[:, :, None] * by
        if self.bends_ is not None:
            bent, bent_by = self.bends_.at(x, drawn=drawn)
            y, by = y + bent, by + bent_by / self.volumes_.scale
        value = self.sign_ * (self.location_ + self.scale_ * y)
        return value, ((self.sign_ * self.scale_)[:, None] * by * du_dv)[..., :count]

    # ---------------------------------------------------------- diagnostics

    def floors(self) -> Array:
        """Give what no prediction falls below, (J,): a loss's floor by the law at its lowest, 0 without the law."""
        check_is_fitted(self, "theta_")
        parts = [unpack(theta_JP, self.bounds_, len(self.volumes_.rho))["E"] for theta_JP in self.theta_draws_]
        lowest = np.maximum(self.location_ + self.scale_ * np.min(parts, axis=0), 0.0)
        lowest[self.weights_ @ ON_LAW == 0] = 0.0
        return np.where(np.array([kind == "loss" for kind in self.kinds_]), lowest, -np.inf)

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

    def to_json(self) -> dict[str, Any]:
        """Give everything a prediction needs, as JSON values.

        Returns:
            Nested dicts, lists and numbers; ``json.dumps`` takes them.
        """
        check_is_fitted(self, "theta_")
        return json_form.dump(self)

    @classmethod
    def from_json(cls, document: dict[str, Any] | str) -> ResponseModel:
        """Restore a fitted model.

        Args:
            document: what :meth:`to_json` gave, or its text.

        Returns:
            A model whose predictions, intervals and draws equal the original's.

        Raises:
            BadInput: the document is not a fit.
        """
        values = json.loads(document) if isinstance(document, str) else document
        if not isinstance(values, dict) or not isinstance(values.get("options"), dict):
            raise BadInput("This is not a fit: give the file that `ideal-proxy fit` wrote.")
        model = cls(**values["options"])
        json_form.load(model, values)
        model._draw_processes()
        return model


def _numbered(word: str, count: int) -> list[str]:
    return [f"{word} {i}" for i in range(count)]
