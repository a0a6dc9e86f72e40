"""How far the fit trusts responses measured by gradients (DESIGN §6).

Legend: R runs, D domains, J capabilities, P parameters.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ideal_proxy.fit_choice import held_out_law
from ideal_proxy.fit_law import LawData, LawFit, fit_law
from ideal_proxy.law import Array, evaluate, slopes

TRUST = (0.1, 0.3, 1.0, 3.0)
"""σ_g tried for gradient rows, besides infinity."""
LEAST_CHECKED = 3
"""From so many runs on the losses choose σ_g."""
UNCHECKED = 1.0
"""σ_g with fewer runs: responses as likely wrong by their whole size as not."""


@dataclass(frozen=True, slots=True)
class Trusted:
    """A fit with as much of the gradient rows as they earn.

    Attributes:
        data: the runs, with the σ_g chosen.
        fit: the fit.
        law: held-out predictions of that fit, None below six runs.
        errors: mean squared held-out error for every σ_g tried, relative to the fit without gradients; empty where
            nothing was tried.
    """

    data: LawData
    fit: LawFit
    law: tuple[Array, Array] | None
    errors: dict[float, float]


def choose_trust(
    data: LawData,
    fit: LawFit,
    law: tuple[Array, Array] | None,
    fold_R: np.ndarray,
    rng: np.random.Generator,
    *,
    fixed: float | None = None,
) -> Trusted:
    """Choose how far gradient rows are trusted, by held-out losses.

    From six runs on one standard error towards not at all. With three to five runs such an error says little: every
    run is predicted by whole fits to the others, and the least error wins; that takes most of the harm of random rows
    and leaves most of the good of true ones (`benchmarks/gradient_trust.py`).

    Args:
        data: the runs, with gradient rows.
        fit: the fit without them.
        law: held-out predictions of that fit, None below six runs.
        fold_R: (R,) folds.
        rng: the stream.
        fixed: a σ_g to take without a choice.

    Returns:
        The data with its trust, the fit, its held-out predictions, and what was found on the way.
    """

    def again(trust: float) -> tuple[LawData, LawFit]:
        trusted = replace(data, trust=trust)
        return trusted, fit_law(trusted, harm=False, starts=1, rng=rng, warm=fit, rounds=6)

    if fixed is not None and np.isinf(fixed):
        return Trusted(data, fit, law, {})
    runs = len(fold_R)
    few = law is None and runs >= LEAST_CHECKED
    if fixed is None and few:
        fixed, found = _least_error(data, fold_R, rng)
        if np.isinf(fixed):
            return Trusted(data, fit, None, found)
        return Trusted(*again(fixed), None, found)
    if law is None or fixed is not None:
        trusted, refit = again(UNCHECKED if fixed is None else fixed)
        held = None if law is None else held_out_law(trusted, refit, fold_R, harm=False)
        return Trusted(trusted, refit, held, {})
    y = data.y_JR - fit.seed_effect_JS[:, data.seed_R]
    level = np.maximum((data.weight_JR * (law[0] - y) ** 2).sum(axis=1) / data.weight_JR.sum(axis=1), 1e-12)

    def errors(predicted_JR: Array) -> Array:
        return np.asarray((data.weight_JR * (predicted_JR - y) ** 2 / level[:, None]).mean(axis=0))

    tried = [(data, fit, law, errors(law[0]))]
    for trust in TRUST:
        trusted, refit = again(trust)
        held = held_out_law(trusted, refit, fold_R, harm=False)
        tried.append((trusted, refit, held, errors(held[0])))
    found = {each[0].trust: float(each[3].mean()) for each in tried}
    best = min(tried, key=lambda t: float(t[3].mean()))
    for candidate in sorted(tried, key=lambda t: -t[0].trust):
        gap = candidate[3] - best[3]
        if gap.mean() <= gap.std(ddof=1) / np.sqrt(len(gap)):
            return Trusted(*candidate[:3], found)
    return Trusted(*best[:3], found)


def _least_error(data: LawData, fold_R: np.ndarray, rng: np.random.Generator) -> tuple[float, dict[float, float]]:
    """Predict every run by fits to the others, for every σ_g; return the best and the relative squared errors."""
    found: dict[float, Array] = {}
    u_RD = data.volumes.effective(data.v_RD)[0]
    for trust in (np.inf, *TRUST):
        squared = np.zeros_like(data.y_JR)
        for k in range(int(fold_R.max()) + 1):
            out = fold_R == k
            rest = replace(data, weight_JR=data.weight_JR * ~out)
            fit = fit_law(rest, harm=False, starts=1, rng=rng)
            if np.isfinite(trust):
                fit = fit_law(replace(rest, trust=trust), harm=False, starts=1, rng=rng, warm=fit, rounds=6)
            predicted = evaluate(fit.theta_JP, data.bounds_J2, fit.volumes, u_RD[out]).loss_JR
            squared[:, out] = (predicted - data.y_JR[:, out]) ** 2
        found[trust] = (data.weight_JR * squared).sum(axis=1) / data.weight_JR.sum(axis=1)
    level = np.maximum(found[np.inf], 1e-12)
    relative = {trust: float((value / level).mean()) for trust, value in found.items()}
    return min(relative, key=relative.__getitem__), relative


def response_harms(data: LawData, fit: LawFit) -> np.ndarray:
    """Find capabilities that a gradient row says are harmed by a domain, by more than two standard errors.

    Args:
        data: the runs.
        fit: the fit.

    Returns:
        (J,) bool.
    """
    harmed = np.zeros(len(data.y_JR), dtype=bool)
    if not np.isfinite(data.trust):
        return harmed
    scale = np.exp(fit.log_scale_J)[:, None]
    for rows in data.gradients:
        h, _ = slopes(fit.theta_JP, data.bounds_J2, data.volumes, rows.u_D)
        total = (h * rows.by_log_D).sum(axis=1, keepdims=True)
        response = scale * rows.value_JD + rows.share_D * total
        harmed |= (response > 2.0 * scale * rows.error_JD).any(axis=1)
    return harmed
