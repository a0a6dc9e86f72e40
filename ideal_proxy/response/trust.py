"""How far the fit trusts responses measured by gradients.

Legend: R runs, D domains, J capabilities, P parameters.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ideal_proxy.response.choice import held_out_law
from ideal_proxy.response.forms import HeldOutLaw
from ideal_proxy.response.gradient_rows import LEVEL, LEVEL_FEW, Scale, law_response, law_scale, regressed_scale
from ideal_proxy.response.law import Array
from ideal_proxy.response.law_fit import LawData, LawFit, fit_law, prior_for

TRUST = (0.1, 0.3, 1.0, 3.0)
"""σ_g tried for gradient rows, besides infinity."""
USUAL = 0.3
"""σ_g where the regression for s̄ says that responses foretell the losses."""
UNCHECKED = 1.0
"""σ_g where nothing can be said: responses as likely wrong by their whole size as not."""


@dataclass(frozen=True, slots=True)
class Trusted:
    """A fit with as much of the gradient rows as they earn."""

    data: LawData  # the runs, with the σ_g chosen
    fit: LawFit  # the fit
    law: HeldOutLaw | None  # held-out predictions of that fit, None below six runs
    errors: dict[float, float]  # mean squared held-out error for every σ_g tried, relative to the fit without gradients


def choose_trust(
    data: LawData,
    fit: LawFit,
    law: HeldOutLaw | None,
    fold_R: np.ndarray,
    rng: np.random.Generator,
    *,
    fixed: float | None = None,
) -> Trusted:
    """Choose how far gradient rows are trusted."""
    # First of all they must foretell the losses: where the factor between them, regressed on the runs, may as well be
    # zero (`LEVEL`, below six runs `LEVEL_FEW`), they are left out. Else σ_g is `USUAL`, unless from six runs on
    # another, or leaving them out, predicts runs left out better by more than a standard error. Where too few runs
    # leave nothing to regress, s̄ is the law's and σ_g `UNCHECKED` (`benchmarks/gradients/trust.py`).
    if fixed is not None and np.isinf(fixed):
        return Trusted(data, fit, law, {})
    scale = _scale(data, fit)
    level = LEVEL if law is not None else LEVEL_FEW
    if fixed is None and scale.p > level:
        return Trusted(data, fit, law, {})
    if scale.value <= 0:  # the user insists
        scale = Scale.of_all(scale.error, scale.error, len(scale.own_J), scale.p)

    def again(trust: float) -> tuple[LawData, LawFit]:
        trusted = replace(data, trust=trust, scale=scale)
        return trusted, fit_law(trusted, harm=False, starts=1, rng=rng, warm=fit, rounds=6)

    if law is None or fixed is not None:
        told = USUAL if scale.p <= level else UNCHECKED
        trusted, refit = again(told if fixed is None else fixed)
        held = None if law is None else held_out_law(trusted, refit, fold_R, harm=False)
        return Trusted(trusted, refit, held, {})
    y = data.y_JR - fit.seed_effect_JS[:, data.seed_R]
    size = np.maximum((data.weight_JR * (law[0] - y) ** 2).sum(axis=1) / data.weight_JR.sum(axis=1), 1e-12)

    def errors(predicted_JR: Array) -> Array:
        return np.asarray((data.weight_JR * (predicted_JR - y) ** 2 / size[:, None]).mean(axis=0))

    tried = [(data, fit, law, errors(law[0]))]
    for trust in TRUST:
        trusted, refit = again(trust)
        held = held_out_law(trusted, refit, fold_R, harm=False)
        tried.append((trusted, refit, held, errors(held[0])))
    found = {each[0].trust: float(each[3].mean()) for each in tried}
    usual = next(each for each in tried if each[0].trust == USUAL)
    best = min(tried, key=lambda t: float(t[3].mean()))
    gap = usual[3] - best[3]
    chosen = usual if gap.mean() <= gap.std(ddof=1) / np.sqrt(len(gap)) else best
    return Trusted(*chosen[:3], found)


def _scale(data: LawData, fit: LawFit) -> Scale:
    """Regress the scale on the losses, or take it from the prior's law where they are too few."""
    u_RD = data.volumes.effective(data.v_RD)[0]
    y_JR = data.y_JR - fit.seed_effect_JS[:, data.seed_R]
    found = regressed_scale(y_JR, data.weight_JR, u_RD, data.gradients)
    return found or law_scale(prior_for(data, False).mean_BP, data.bounds_J2, fit.volumes, data.gradients)


def response_harms(data: LawData, fit: LawFit) -> np.ndarray:
    """Find capabilities that a gradient row says are harmed by a domain, by more than two standard errors."""
    harmed = np.zeros(len(data.y_JR), dtype=bool)
    if not np.isfinite(data.trust):
        return harmed
    scale = np.exp(fit.log_scale_J)[:, None]
    for rows in data.gradients:
        total = law_response(fit.theta_JP, data.bounds_J2, data.volumes, rows)[0].sum(axis=1, keepdims=True)
        response = scale * rows.value_JD + rows.share_D * total
        harmed |= (response > 2.0 * scale * rows.error_JD).any(axis=1)
    return harmed
