"""The response law fitted to tables of runs, also of several fidelities, and what it predicts of other mixtures.

Legend: R runs, D domains, J metrics.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ideal_proxy.errors import UserError, some
from ideal_proxy.response import SHARE_TOLERANCE, Array, ResponseModel
from ideal_proxy.tables.reading import Joined, Table, read_available, same_domains

log = logging.getLogger(__name__)

LEAST_RUNS = 4
SLOPE_SPREAD = 0.25
"""How far from 1 the slope between two fidelities is expected to be."""


def fit_tables(
    runs: Joined,
    *,
    unit: str | None = None,
    available: str | Path | None = None,
    maximize: bool = False,
    add_runs: Sequence[Joined] = (),
    random_state: int = 0,
    own: Sequence[str] = (),
) -> ResponseModel:
    """Fit the response model to tables; `own` holds METRIC=DOMAIN where a metric's own domain has another name."""
    # Runs of another fidelity (another model size, say) are brought to the fidelity of the first table by one offset
    # and one slope a metric, both fitted, the slope about 1: metric = offset + slope · prediction. Their weight is the
    # squared ratio of the noises, so a fidelity that the law explains badly counts little. `fidelity_` keeps the maps.
    path = runs.path
    runs = _concatenate([runs, *add_runs])
    v, losses = runs.ratios, runs.metrics
    unit = _unit(v, unit, path)
    _check_enough(v, losses, path)
    rows = None if available is None else read_available(available, list(v.columns))
    if rows is not None and unit == "share":
        raise UserError("Available rows mean nothing for shares: give the volumes in rows, or leave --available out.")
    model = ResponseModel(unit=unit, kind="score" if maximize else "loss", available=rows, random_state=random_state)
    fidelity = runs.fidelity if runs.fidelity is not None else pd.Series("", index=v.index)
    main = fidelity.iloc[0]
    same = (fidelity == main).to_numpy()
    seed = None if runs.seed is None else runs.seed.to_numpy()
    given = own_domains(own, list(map(str, v.columns)), list(map(str, losses.columns)))
    model.fit(v[same], losses[same], seed_id=None if seed is None else seed[same], own=given)
    names = [str(f) for f in dict.fromkeys(fidelity[~same])]
    if not names:
        return model
    maps: dict[str, dict[str, list[float]]] = {}
    for _ in range(2):  # the maps, the model with every run, the maps once more
        mapped, weight, maps = losses.copy(), np.ones(len(v)), {}
        predicted = np.asarray(model.predict(v)).reshape(losses.shape)
        for name in names:
            of = (fidelity.astype(str) == name).to_numpy()
            offset, slope, noise = _affine(predicted[of], losses[of].to_numpy(), model.residual_scale_)
            maps[name] = {"offset": offset.tolist(), "slope": slope.tolist()}
            mapped.loc[of] = (losses[of].to_numpy() - offset) / slope
            weight[of] = np.clip(np.median((model.residual_scale_ * np.abs(slope) / noise) ** 2), 0.05, 1.0)
        model.fit(v, mapped, seed_id=seed, sample_weight=weight, own=given)
    model.fidelity_ = maps
    log.info("Fidelity %s: %d runs; others mapped to it: %s.", main, int(same.sum()), ", ".join(names))
    return model


def own_domains(given: Sequence[str], domains: list[str], metrics: list[str]) -> list[int]:
    """Number of each metric's own domain, -1 for none: as given as METRIC=DOMAIN, else the domain of its very name."""
    own = {name: domains.index(name) if name in domains else -1 for name in metrics}
    for text in given:
        splits = [text.split("=", n)[-1] for n in range(1, text.count("=") + 1)]  # a name may hold an equals sign
        found = [(text.removesuffix(f"={last}"), last) for last in splits]
        named = [(metric, domain) for metric, domain in found if metric in own and domain in domains]
        if len(named) != 1:
            raise UserError(
                f"--own {text!r} must be METRIC=DOMAIN, a metric of {some(metrics)} and a domain of {some(domains)}"
            )
        own[named[0][0]] = domains.index(named[0][1])
    return list(own.values())


def predict_table(
    model: ResponseModel, ratios: Table, *, level: float = 0.9, fidelity: str | None = None
) -> pd.DataFrame:
    """Predict every metric of every mixture, with the interval of one new run."""
    names = list(model.domain_names_)
    same_domains(names, list(map(str, ratios.values.columns)), "the fit", ratios.path)
    v = ratios.values[names]
    if model.unit == "share":
        _unit(v, "share", ratios.path)
    mean, lower, upper = (np.asarray(b).reshape(len(v), -1) for b in model.predict(v, return_interval=level))
    bounds = [mean, np.maximum(lower, np.minimum(model.floors(), mean)), upper]
    if fidelity is not None:
        if fidelity not in model.fidelity_:
            raise UserError(f"Fidelity {fidelity!r} was not fitted: choose one of {some(list(model.fidelity_))}.")
        offset, slope = (np.array(model.fidelity_[fidelity][key]) for key in ("offset", "slope"))
        bounds = [offset + slope * b for b in bounds]
    columns: dict[str, Any] = {"run": v.index}
    for j, name in enumerate(model.target_names_):
        for suffix, values in zip(("", "_lower", "_upper"), bounds, strict=True):
            columns[f"{name}{suffix}"] = values[:, j]
    return pd.DataFrame(columns)


def _concatenate(parts: Sequence[Joined]) -> Joined:
    first = parts[0]
    for part in parts[1:]:
        same_domains(list(first.ratios.columns), list(part.ratios.columns), "the ratios", "a table of added runs")
        repeated = list(part.ratios.index[part.ratios.index.isin(first.ratios.index)])
        if repeated:
            raise UserError(f"Run ids {some(repeated)} are in the tables already: give added runs ids of their own.")
    if len(parts) == 1:
        return first

    def column(name: str, default: str) -> pd.Series | None:
        values = [getattr(p, name) for p in parts]
        if all(v is None for v in values):
            return None
        filled = [pd.Series(default, p.ratios.index) if v is None else v for p, v in zip(parts, values, strict=True)]
        return pd.Series(pd.concat([f.astype(str) for f in filled]))

    own = first.fidelity.iloc[0] if first.fidelity is not None else "main"
    return Joined(
        first.path,
        pd.concat([p.ratios[first.ratios.columns] for p in parts]),
        pd.concat([p.metrics.reindex(columns=first.metrics.columns) for p in parts]),
        column("seed", "none"),
        column("fidelity", str(own)),
    )


def _unit(v: pd.DataFrame, unit: str | None, path: str) -> str:
    total = v.sum(axis=1)
    off = (total - 1.0).abs() > SHARE_TOLERANCE
    if unit is None:
        unit = "share" if off.mean() < 0.5 else "rows"
        log.info("%s: read as %s.", path, "shares" if unit == "share" else "rows")
    if unit not in {"share", "rows"}:
        raise UserError(f"The unit is {unit!r}: use share or rows.")
    if unit == "share" and off.any():
        wrong = list(v.index[off])
        raise UserError(
            f"{path}: the shares of {len(wrong)} runs do not sum to one ({some(wrong)}; run {wrong[0]} sums to "
            f"{total[wrong[0]]:.4g}): correct them, or use --unit rows if these are volumes."
        )
    return unit


def _check_enough(v: pd.DataFrame, losses: pd.DataFrame, path: str) -> None:
    if len(v) < LEAST_RUNS:
        raise UserError(
            f"{len(v)} runs are too few to fit: give at least {LEAST_RUNS}, better {3 * (v.shape[1] + 1)} "
            f"for {v.shape[1]} domains."
        )
    if len(v) < v.shape[1] + 1:
        log.warning(
            "%d runs for %d domains: expect wide intervals; %d runs are better.",
            len(v),
            v.shape[1],
            3 * (v.shape[1] + 1),
        )
    still = [str(c) for c in v.columns if np.ptp(v[c].to_numpy()) == 0]
    if still:
        raise UserError(
            f"{path}: domain {some(still)} is the same in every run, so nothing can be learnt about it: "
            "leave the column out, or add runs that vary it."
        )
    flat = [str(c) for c in losses.columns if losses[c].nunique() < 2]
    if flat:
        raise UserError(f"Metric {some(flat)} does not vary over the runs: leave the column out.")


def _affine(predicted_RJ: Array, observed_RJ: Array, noise_J: Array) -> tuple[Array, Array, Array]:
    """Fit observed = offset + slope · predicted a metric: offset free, slope near 1, and the noise about it."""
    J = predicted_RJ.shape[1]
    offset, slope, noise = np.zeros(J), np.ones(J), noise_J.copy()
    for j in range(J):
        seen = np.isfinite(observed_RJ[:, j])
        if not seen.any():
            continue
        p, y = predicted_RJ[seen, j], observed_RJ[seen, j]
        centred = p - p.mean()
        precision = (noise_J[j] / SLOPE_SPREAD) ** 2
        slope[j] = max((centred @ y + precision) / max(centred @ centred + precision, 1e-300), 0.05)
        offset[j] = y.mean() - slope[j] * p.mean()
        left = y - offset[j] - slope[j] * p
        noise[j] = np.sqrt((left @ left + 2.0 * noise_J[j] ** 2) / max(len(y) - 1, 1))
    return offset, slope, np.maximum(noise, 1e-12)
