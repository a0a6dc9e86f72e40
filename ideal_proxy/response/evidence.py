"""Evidence of several kinds in one fit, each with a trust of its own.

Runs of another kind (from before the data changed, of another proxy size) show the changes of loss that the target's
runs would show, times a factor s, with an error of their own:

    log[L_k(v) / L_k(v⁰)] = s_k · log[L(v) / L(v⁰)] + error_k

s is one for all capabilities and has a prior: 1 ± 0.1 across a change of data; of proxies smaller than the target
1.2 ± 0.4, for they show more of a change than it does, of larger ones 0.9 ± 0.35. Where runs of both kinds are there,
the side with more runs is fitted alone and foretells the other one: that gives s, and the odds that the kind tells
anything at all. A kind that tells nothing, also of its own runs left out, has no weight.

Mixtures imitated by interpolation between trained weights must prove themselves: only those that were trained as well,
with the same seed, say what s is and how far imitations scatter. Without three of those they have no weight.

Legend: N runs, D domains, J capabilities.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit
from scipy.stats import norm
from sklearn.base import clone

from ideal_proxy.response.bends import SHIFT, Bends
from ideal_proxy.response.choice import LEAST_RUNS
from ideal_proxy.response.kinds import EvidenceKind
from ideal_proxy.response.law import Array
from ideal_proxy.response.model import ResponseModel

LEAST_OVERLAP = 3
"""So many runs of the smaller side are needed to learn a trust; with fewer the prior stays."""
LIKELY_TRUE = 3.0
"""Odds, before a run is seen, that a kind shows what the target shows."""
LEAST_FORETOLD = 0.15
"""A kind that foretells less than this share of its own runs left out tells nothing, as if its losses were mixed up."""
EXPECTED = 8.0
"""So many values weighs the belief that runs of another kind scatter as is predicted of them."""
HALF = 0.5
"""Below these odds of telling anything a kind has no weight."""
WIDER = 1.4
"""Level and slope take up a part of a kind's own error before it is measured (set on surfaces of two families)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """What a kind turned out to be worth."""

    factor: float  # s
    spread: float  # what is left of not knowing it
    weight: float  # of one of its runs beside one of the target's, 0 to 1
    learned: bool  # whether runs of both kinds said so; else it is the prior
    runs: int  # of the kind
    explained: tuple[float, ...]  # share of the target's changes that the kind foretells, by capability
    error: float = 0.0  # share of the changes it shows that is its own alone
    same_level: bool = True  # as the kind's

    def sentence(self, name: str, target: str, capabilities: Sequence[str]) -> str:
        """Say it."""
        if not self.learned and not self.weight:
            return (
                f"{name} have no weight in the fit: fewer than {LEAST_OVERLAP} of their mixtures are among {target}, "
                "so nothing shows what they are worth"
            )
        if not self.learned:
            return (
                f"{name} count as they are expected to ({self.factor:.2f} ± {self.spread:.2f} of the changes that "
                f"{target} show), for too few runs of both kinds are there to learn it"
            )
        if not self.weight:
            return f"{name} do not show what {target} show and have no weight in the fit"
        told = ", ".join(f"{e:.2f} about {n}" for e, n in zip(self.explained, capabilities, strict=True))
        return f"{name} explain {told} of what {target} show; one of them counts as {self.weight:.2f} of a run"


def fit_kinds(
    model: ResponseModel,
    V: pd.DataFrame,
    L: pd.DataFrame,
    kind_of: Sequence[str],
    kinds: Mapping[str, EvidenceKind],
    before: Mapping[str, Any] | None = None,
    **options: Any,
) -> dict[str, Trust]:
    """Fit a model to runs of several kinds: "" is the target's own."""
    place = np.array(kind_of, dtype=object)
    own = place == ""
    found = {}
    for name, kind in kinds.items():
        if kind.most:
            found[name] = _prove(model, V, L, own, place == name, kind, options)
        else:
            level = options if kind.same_level else options | {"baseline_loss": (before or {}).get(name)}
            found[name] = _learn(model, V, L, own, place == name, kind, (level, options))
    losses, weights = L.to_numpy(dtype=float, copy=True), np.ones(len(L))
    given = options.pop("sample_weight", None)
    for name in kinds:
        of, trust = place == name, found[name][0]
        here, there = found[name][1:]
        losses[of] = _from_logs(model, there + (_to_logs(model, losses[of]) - here) / trust.factor)
        weights[of] = trust.weight
    seen = weights > 0
    weights = weights if given is None else weights * np.asarray(given)
    part = _cut(options, seen)
    model.fit(V[seen], pd.DataFrame(losses[seen], columns=L.columns), sample_weight=weights[seen], **part)
    _keep_doubt(model, [found[name][0] for name in kinds], own.sum(), V[seen])
    trusts = {name: entry[0] for name, entry in found.items()}
    model.fidelity_ = {name: _plain(trust) for name, trust in trusts.items()}
    return trusts


def _learn(
    model: ResponseModel,
    V: pd.DataFrame,
    L: pd.DataFrame,
    own: Any,
    of: Any,
    kind: EvidenceKind,
    options_of: tuple[dict[str, Any], dict[str, Any]],
) -> tuple[Trust, Array, Array]:
    """Let the larger side foretell the smaller one; also the levels at base, the kind's and the target's, log nats."""
    nothing = tuple(np.full(L.shape[1], np.nan))
    prior = Trust(
        factor=kind.factor, spread=kind.spread, weight=1.0, learned=False, runs=int(of.sum()), explained=nothing,
        error=kind.error, same_level=kind.same_level,
    )  # fmt: skip
    larger, smaller = (of, own) if of.sum() >= own.sum() else (own, of)
    told = L[larger].notna().any(axis=0).to_numpy()
    logs = np.log(L.to_numpy(dtype=float))
    options = options_of[larger is own]  # the kind's own and the target's differ in the losses before any row
    level = _means(logs[of])
    if larger.sum() < LEAST_RUNS or not told.any():
        same = kind.same_level or not own.any()
        return prior, level, level if same else _means(logs[own])
    alone = clone(model).set_params(n_starts=1, n_draws=8)
    part = _cut(options, larger)
    for name in ("baseline_loss", "own"):
        if part.get(name) is not None:
            part[name] = [value for value, seen in zip(part[name], told, strict=True) if seen]
    alone.fit(V[larger], L.loc[larger, told], **(part | {"responses": None}))
    retired = int(options.get("retired") or 0)
    names = list(V.columns[: V.shape[1] - retired])
    base = np.asarray(model.base, dtype=float)[: len(names)]
    level[told] = np.log(alone.value_and_gradient(base)[0])
    if larger is of and own.sum() >= LEAST_RUNS and _foretold(alone, L.loc[larger, told]) < LEAST_FORETOLD:
        return replace(prior, weight=0.0, learned=True), level, level
    if not smaller.any():
        return prior, level, level
    at = V.loc[smaller, names]
    if retired and (V.loc[smaller].iloc[:, len(names) :].to_numpy() > 0).any():
        return prior, level, level  # the larger side is the target's, and never saw what was retired
    middle, low, high = (np.asarray(b).reshape(len(at), -1) for b in alone.predict(at, return_interval=0.9))
    x = np.log(middle) - level[told]
    y = logs[smaller][:, told] - level[told]
    precision = np.where(np.isfinite(y), (np.log(high / np.maximum(low, 1e-9)) / (2 * norm.ppf(0.95))) ** -2.0, 0.0)
    y = np.nan_to_num(y)
    total = np.maximum(precision.sum(axis=0), 1e-300)
    mean_x, mean_y = ((precision * values).sum(axis=0) / total for values in (x, y))
    expected, spread = kind.factor, kind.spread
    if larger is of:  # the kind foretells the target: the slope is 1 / s
        expected, spread = 1.0 / kind.factor, kind.spread / kind.factor**2

    def levels(slope: float) -> tuple[Array, Array]:
        """Levels at base, the kind's and the target's: the smaller side's is what its runs show on average."""
        if kind.same_level:
            return level, level
        other = level.copy()
        other[told] += np.where(precision.any(axis=0), mean_y - slope * mean_x, 0.0)
        return (level, other) if larger is of else (other, level)

    noise = float(np.mean((np.asarray(alone.residual_scale_, dtype=float) / np.exp(level[told])) ** 2))
    changes = float(np.mean(np.nanvar(logs[of][:, told], axis=0)))

    def most(slope: float, squares: float = 0.0, values: int = 0) -> tuple[float, float]:
        """What a run counts at most, and the kind's own share: more runs do not lessen what bends the whole surface."""
        if not kind.error:
            return 1.0, 0.0
        unit = changes * (slope**2 if larger is of else 1.0)
        share = _own_share(kind.error, unit, noise, squares, values)
        return min(1.0, (len(names) + 1) * noise / (share**2 * unit) / int(of.sum())), share

    if smaller.sum() < LEAST_OVERLAP:
        return replace(prior, weight=most(expected)[0]), *levels(expected)
    if not kind.same_level:
        x, y = x - mean_x, y - mean_y
    slope, doubt, chance, excess = _believe(x, y, precision, expected, spread)
    apart = (y - slope * x) ** 2
    left = (precision * apart).sum(axis=0)
    explained = np.full(L.shape[1], np.nan)
    explained[told] = 1.0 - left / np.maximum((precision * y**2).sum(axis=0), 1e-300)
    factor = slope
    if larger is of:
        factor, doubt = 1.0 / slope, doubt / slope**2
    weight = 0.0 if chance < HALF or slope <= 0 else chance / excess
    values = max(int(((precision > 0).sum(axis=0) - 1).clip(0).sum()) - 1, 1)  # means and slope were taken off
    limit, own_share = most(slope, float(apart[precision > 0].sum()), values)
    trust = Trust(
        factor=float(factor), spread=float(doubt), weight=min(weight, limit), learned=True,
        runs=int(of.sum()), explained=tuple(float(e) for e in explained), error=own_share, same_level=kind.same_level,
    )  # fmt: skip
    return trust, *levels(slope)


def _own_share(expected: float, unit: float, noise: float, squares: float, values: int) -> float:
    """Root mean square share of a kind's changes that is its own: as expected within a factor of 2, and as is seen."""
    share = np.geomspace(0.02, 1.5, 60)
    variance = noise + share**2 * unit
    log_chance = -0.5 * (np.log(share / expected) / np.log(2.0)) ** 2 - 0.5 * (
        values * np.log(variance) + squares / variance
    )
    chance = np.exp(log_chance - log_chance.max())
    return float(np.sqrt((chance * share**2).sum() / chance.sum()))


def _means(logs: Array) -> Array:
    """Means over runs, of what is told; 0 where nothing is."""
    told = np.isfinite(logs)
    return np.asarray(np.where(told, logs, 0.0).sum(axis=0) / np.maximum(told.sum(axis=0), 1))


def _prove(
    model: ResponseModel,
    V: pd.DataFrame,
    L: pd.DataFrame,
    own: Any,
    of: Any,
    kind: EvidenceKind,
    options: dict[str, Any],
) -> tuple[Trust, Array, Array]:
    """Let the target's runs at a kind's own mixtures and seeds say what it is worth; also the levels, as `_learn`."""
    count = int(of.sum())
    unproved = Trust(
        factor=kind.factor, spread=kind.spread, weight=0.0, learned=False, runs=count,
        explained=(np.nan,) * L.shape[1],
    )  # fmt: skip
    alone = clone(model).set_params(n_starts=1, n_draws=8)
    alone.fit(V[own], L[own], **(_cut(options, own) | {"responses": None}))
    values, volumes = _to_logs(model, L.to_numpy(dtype=float)), V.to_numpy(dtype=float)
    at_base = alone.value_and_gradient(np.asarray(model.base, dtype=float))[0]
    level, noise = _to_logs(model, at_base[None])[0], np.asarray(alone.residual_scale_, dtype=float)
    noise = np.maximum(np.where(_is_loss(model, len(noise)), noise / np.abs(at_base), noise), 1e-9)
    seeds = options.get("seed_id")
    twins = [
        (r, s)
        for r in np.flatnonzero(of)
        for s in np.flatnonzero(own)
        if np.allclose(volumes[r], volumes[s]) and (seeds is None or seeds[r] == seeds[s])
    ]
    if len({r for r, _ in twins}) < LEAST_OVERLAP:
        return unproved, level, level
    x, y = (values[[pair[side] for pair in twins]] - level for side in (0, 1))
    seen = values[of] - level
    told = _to_logs(model, np.asarray(alone.predict(V[of])).reshape(count, -1)) - level
    off, spread = (
        float((((part - part.mean(axis=0)) / noise) ** 2).sum()) for part in (seen - told, seen)
    )  # fmt: skip
    if own.sum() >= LEAST_RUNS and off > (1.0 - LEAST_FORETOLD) * spread:
        return replace(unproved, learned=True), level, level  # as a kind whose losses were mixed up
    precision = np.broadcast_to(0.5 * noise**-2.0, y.shape)
    centred = [part - part.mean(axis=0) for part in (x, y)]
    slope, doubt, chance, excess = _believe(centred[0], centred[1], precision, 1.0 / kind.factor, kind.spread)
    # Averaging moves all imitations of a capability by about as much: they tell of differences, not of levels.
    shift = (told - slope * seen).mean(axis=0)
    left = ((centred[1] - slope * centred[0]) ** 2).sum(axis=0)
    explained = 1.0 - left / np.maximum((centred[1] ** 2).sum(axis=0), 1e-300)
    # y - slope x holds the noise of the trained run as well as the imitation's own error.
    weight = chance / (2.0 * excess - 1.0) if chance >= HALF and slope > 0 else 0.0
    trust = Trust(
        factor=1.0 / slope if slope > 0 else kind.factor, spread=doubt / max(slope, 1e-9) ** 2,
        weight=min(weight, kind.most / count), learned=True, runs=count, explained=tuple(map(float, explained)),
    )  # fmt: skip
    return trust, level, level + shift


def _is_loss(model: ResponseModel, count: int) -> Any:
    """Tell which of the J capabilities are losses."""
    kinds = [model.kind] * count if isinstance(model.kind, str) else list(model.kind)
    return np.array([kind == "loss" for kind in kinds])


def _to_logs(model: ResponseModel, values: Array) -> Array:
    """Take the logarithm of losses, and scores as they are."""
    plain = _is_loss(model, values.shape[1])
    return np.where(plain, np.log(np.where(plain, values, 1.0)), values)


def _from_logs(model: ResponseModel, values: Array) -> Array:
    """Undo `_to_logs`."""
    plain = _is_loss(model, values.shape[1])
    return np.where(plain, np.exp(np.where(plain, values, 0.0)), values)


def _foretold(model: ResponseModel, L: pd.DataFrame) -> float:
    """Say which share of the variance of runs left out is foretold by fits that did not see them."""
    held_RJ = model.held_out_.T
    y_RJ = (model.sign_ * L.to_numpy(dtype=float) - model.location_) / model.scale_
    seen = np.isfinite(held_RJ) & np.isfinite(y_RJ)
    error, spread = (
        np.where(seen, values, 0.0) ** 2 for values in (y_RJ - held_RJ, y_RJ - np.nanmean(y_RJ, axis=0))
    )  # fmt: skip
    return 1.0 - float(error.sum()) / max(float(spread.sum()), 1e-300)


def _slope(x: Array, y: Array, precision: Array) -> tuple[float, float, float]:
    """Regress y on x through the origin: slope, its error, and how much more y scatters than was said, at least 1."""
    xx = max(float((precision * x * x).sum()), 1e-12)
    slope = float((precision * x * y).sum()) / xx
    freedom = max(int((precision > 0).sum()) - 1, 1)
    left = float((precision * (y - slope * x) ** 2).sum())
    excess = max(1.0, (EXPECTED + left) / (EXPECTED + freedom))
    return slope, float(np.sqrt(excess / xx)), excess


def _believe(x: Array, y: Array, precision: Array, expected: float, spread: float) -> tuple[float, float, float, float]:
    """Join prior and data of a slope: it, its spread, the chance that it is no accident, and `_slope`'s excess."""
    slope, error, excess = _slope(x, y, precision)
    odds = norm.logpdf(slope, expected, np.hypot(error, spread)) - norm.logpdf(slope, 0.0, error)
    chance = float(expit(np.clip(odds + np.log(LIKELY_TRUE), -30.0, 30.0)))
    sharpness = error**-2.0 + spread**-2.0
    slope = float((slope * error**-2.0 + expected * spread**-2.0) / sharpness)
    return slope, float(sharpness**-0.5), chance, excess


def _keep_doubt(model: ResponseModel, trusts: Sequence[Trust], own: int, V: pd.DataFrame) -> None:
    """Carry what is not known of factors and what kinds are wrong by into the draws, in their share of the evidence."""
    told = own**2 / (own + len(model.domain_names_) + 1)  # no more runs than unknowns leave most of them open
    total = max(told + sum(trust.weight * trust.runs for trust in trusts), 1e-12)
    shares = [trust.weight * trust.runs / total for trust in trusts]
    of_factor = sum(share * trust.spread / trust.factor for share, trust in zip(shares, trusts, strict=True))
    of_kind = float(np.hypot.reduce([share * trust.error for share, trust in zip(shares, trusts, strict=True)]))
    rng = np.random.default_rng(model.random_state)
    if of_factor or of_kind:
        common = of_factor * rng.standard_normal((len(model.known_draws_), 1))
        model.known_draws_ = model.known_draws_ * np.clip(1.0 + common, 0.0, 2.0)
    if of_kind:
        model.bends_ = _bends(model, WIDER * of_kind, V, rng)


def _bends(model: ResponseModel, share: float, V: pd.DataFrame, rng: np.random.Generator) -> Bends:
    """Draw slopes that over the mixtures that were run have this share of each capability's predicted changes."""
    D, v_RD = model.n_features_in_, V.to_numpy(dtype=float)
    spread_J = np.asarray(model.predict(V.iloc[:, :D])).reshape(len(v_RD), -1).std(axis=0) / model.scale_
    log_RD = np.log(model.volumes_.effective(v_RD)[0] / model.volumes_.scale + SHIFT)
    log_RD[:, D:] = 0.0  # retired domains: no mixture moves them
    size_D = log_RD.std(axis=0)
    unit_D = np.where(size_D > 0, share / np.maximum(size_D, 1e-9) / np.sqrt(max((size_D > 0).sum(), 1)), 0.0)
    slopes = rng.standard_normal((*model.known_draws_.shape, len(unit_D))) * spread_J[:, None] * unit_D
    base = v_RD.mean(axis=0) if model.base is None else np.asarray(model.base, dtype=float)
    centre = model.volumes_.effective(np.resize(base, (1, len(unit_D))))[0][0] / model.volumes_.scale
    return Bends(slopes, np.log(centre + SHIFT))


def _cut(options: Mapping[str, Any], seen: Any) -> dict[str, Any]:
    """Cut what belongs to runs to those that are seen."""
    of_runs = ("run_id", "seed_id")
    return {
        name: np.asarray(value)[seen] if name in of_runs and value is not None else value
        for name, value in options.items()
        if name != "sample_weight"
    }


def _plain(trust: Trust) -> dict[str, Any]:
    return asdict(trust) | {"explained": [None if np.isnan(e) else e for e in trust.explained]}


def told_trusts(fidelity: Mapping[str, Mapping[str, Any]], target: str, capabilities: Sequence[str]) -> list[str]:
    """Say what each kind in a fit was worth, from the fit's `fidelity_`."""
    return [
        Trust(**{**told, "explained": tuple(np.nan if e is None else e for e in told["explained"])}).sentence(
            name, target, capabilities
        )
        for name, told in fidelity.items()
        if "weight" in told
    ]
