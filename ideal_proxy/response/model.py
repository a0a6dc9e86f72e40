"""``ResponseModel``: how every capability answers to the volumes, fitted to proxy runs.

Legend: N mixtures, R runs, D domains, J capabilities, S posterior draws, P parameters.
"""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.covariance import ledoit_wolf
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from ideal_proxy.errors import shortened
from ideal_proxy.response import choice, forms, json_form, trust
from ideal_proxy.response.bends import Bends
from ideal_proxy.response.diagnosis import diagnose
from ideal_proxy.response.forms import FORMS, LAW, HeldOutLaw
from ideal_proxy.response.gradient_rows import Responses
from ideal_proxy.response.inputs import BadInput, check_kind, check_volumes, distinct_runs, kinds_of
from ideal_proxy.response.law import FIRST_A, Array
from ideal_proxy.response.law_fit import LawData, LawFit, fit_law, posterior_draws
from ideal_proxy.response.process import Process
from ideal_proxy.response.standardise import own_domains, standardise
from ideal_proxy.response.surface import FittedResponse

log = logging.getLogger(__name__)


class ResponseModel(FittedResponse, RegressorMixin, MultiOutputMixin, BaseEstimator):
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

    def _draw(self, data: LawData, fit: LawFit, rng: np.random.Generator) -> None:
        self.theta_draws_ = posterior_draws(data, fit, self.harm_, self.n_draws, rng)
        self.process_seed_ = int(rng.integers(2**31))
        self._draw_processes()

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
        try:
            model = cls(**values["options"])
            json_form.load(model, values)
            with np.errstate(all="ignore"):  # an edited fit may hold any number
                model._draw_processes()
                model._check_predictions()
        except BadInput:
            raise
        except (IndexError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            told = shortened(" ".join(str(error).split()), 120)
            raise BadInput(f"This fit is damaged ({told}): let what wrote it write it again.") from error
        return model

    def _check_predictions(self) -> None:
        """Refuse a fit that was edited so that it predicts nothing."""
        names = (*self.domain_names_, *self.target_names_)
        somewhere = np.full(len(self.domain_names_), 1.0 / len(self.domain_names_))
        slopes = np.asarray(self.value_and_gradient(somewhere)[1])
        self.draws_value_and_gradient(somewhere)
        if self.available is not None:  # of domains that were retired too
            np.asarray(self.available, dtype=float)
        if slopes.shape != (len(self.target_names_), len(somewhere)) or not np.isfinite(slopes).all():
            raise BadInput("This fit predicts no numbers: fit again.")
        if not all(isinstance(name, str) for name in names):
            raise BadInput("This fit has names that are no texts: fit again.")
        columns = getattr(self, "feature_names_in_", None)
        self.predict(pd.DataFrame([somewhere], columns=columns) if columns is not None else somewhere[None], 0.9)


def _numbered(word: str, count: int) -> list[str]:
    return [f"{word} {i}" for i in range(count)]
