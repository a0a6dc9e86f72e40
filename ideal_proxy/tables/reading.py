"""Tables from elsewhere: ratios and metrics as CSV, joined on the run id, fitted and predicted.

RegMix's layout (``index``, ``train_<domain>``; ``index``, ``metric/<name>``), Olmix's (``run, name, index``, then
domains or metrics) and plain tables are read as they are.  Legend: R runs, D domains, J metrics.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ideal_proxy.errors import UserError
from ideal_proxy.response import SHARE_TOLERANCE, Array, ResponseModel

log = logging.getLogger(__name__)

RUN_COLUMNS = ("run", "run_id", "index")
"""Names of the run id, the first one found counts."""
METADATA = frozenset({*RUN_COLUMNS, "id", "name", "group", "seed", "seed_id", "fidelity", "step", "date", "timestamp"})
LEAST_RUNS = 4
SLOPE_SPREAD = 0.25
"""How far from 1 the slope between two fidelities is expected to be."""


@dataclass(frozen=True, slots=True)
class Table:
    """One table, its rows named by run id.

    Attributes:
        path: where it came from, for messages.
        values: (R, columns) numbers indexed by run id, prefixes stripped.
        seed: (R,) the ``seed`` column, or None.
        fidelity: (R,) the ``fidelity`` column, or None.
    """

    path: str
    values: pd.DataFrame
    seed: pd.Series | None
    fidelity: pd.Series | None


@dataclass(frozen=True, slots=True)
class Joined:
    """Runs with their mixture and their metrics.

    Attributes:
        ratios: (R, D) indexed by run id.
        metrics: (R, J) with the same index.
        seed: (R,) seeds, or None.
        fidelity: (R,) fidelities, or None.
    """

    ratios: pd.DataFrame
    metrics: pd.DataFrame
    seed: pd.Series | None
    fidelity: pd.Series | None


def read_ratios(path: str | Path) -> Table:
    """Read a table of mixtures: one row a run, one column a domain.

    Args:
        path: a CSV file.

    Returns:
        The table; the prefix ``train_`` is stripped.

    Raises:
        UserError: not a table of mixtures.
    """
    table = _read(path, "train_", "domain")
    empty = table.values.isna()
    if bool(empty.to_numpy().any()):
        run = table.values.index[empty.any(axis=1)][0]
        column = table.values.columns[empty.loc[run]][0]
        raise UserError(f"{path}: run {run} has no number for domain {column}: write 0 where a domain is not used.")
    if bool((table.values < 0).to_numpy().any()):
        run = table.values.index[(table.values < 0).any(axis=1)][0]
        raise UserError(f"{path}: run {run} has a negative volume: correct the table, volumes are zero or more.")
    return table


def read_metrics(path: str | Path) -> Table:
    """Read a table of losses or scores: one row a run, one column a metric; empty cells are allowed.

    Args:
        path: a CSV file.

    Returns:
        The table; the prefix ``metric/`` is stripped.

    Raises:
        UserError: not a table of metrics.
    """
    table = _read(path, "metric/", "metric")
    infinite = np.isinf(table.values.to_numpy())
    if infinite.any():
        row, column = np.argwhere(infinite)[0]
        raise UserError(
            f"{path}: metric {table.values.columns[column]} is infinite in run {table.values.index[row]} "
            f"({int(infinite.sum())} such values): leave the cell empty where a run has no value."
        )
    return table


def read_available(path: str | Path, domains: Sequence[str]) -> Array:
    """Read how many rows each domain has: a line a domain (name, rows), or one line with a column a domain."""
    frame = _csv(path)
    if frame.shape[1] == 2 and not pd.api.types.is_numeric_dtype(frame.iloc[:, 0]):
        values = dict(zip(frame.iloc[:, 0].astype(str), frame.iloc[:, 1], strict=True))
    else:
        values = {str(name): frame[name].iloc[0] for name in frame.columns}
    values = {name.strip().removeprefix("train_"): value for name, value in values.items()}
    _same_domains(domains, [n for n in values if n.lower() not in METADATA], "the ratios", str(path))
    rows = pd.to_numeric(pd.Series([values[d] for d in domains]), errors="coerce").to_numpy(dtype=float)
    if not (np.isfinite(rows) & (rows > 0)).all():
        wrong = [d for d, r in zip(domains, rows, strict=True) if not (np.isfinite(r) and r > 0)]
        raise UserError(f"{path}: {_some(wrong)} has no positive number of available rows: write how many there are.")
    return rows


def read_runs(path: str | Path, domains: Sequence[str], metrics: Sequence[str]) -> Joined:
    """Read further runs from one table that holds both mixtures and metrics, for ``fit --add-runs``."""
    table = _read(path, None, "domain or metric")
    columns = [str(c).removeprefix("train_").removeprefix("metric/") for c in table.values.columns]
    values = table.values.set_axis(columns, axis=1)
    missing = [d for d in domains if d not in columns]
    known = [m for m in metrics if m in columns]
    if missing or not known:
        lacks = f"domain {_some(missing)}" if missing else "every metric"
        raise UserError(f"{path} lacks {lacks}: further runs need the columns of the ratios and of the metrics.")
    ignored = [c for c in columns if c not in {*domains, *metrics}]
    if ignored:
        log.info("%s: columns ignored as metadata: %s", path, ", ".join(ignored))
    return Joined(values[list(domains)], values.reindex(columns=list(metrics)), table.seed, table.fidelity)


def join_tables(ratios: Table, metrics: Table, *, partial: bool = False) -> Joined:
    """Join mixtures and metrics on the run id, never on the order of rows.

    Args:
        ratios: the mixtures.
        metrics: the metrics.
        partial: go on with the runs that are in both tables.

    Returns:
        The runs, in the order of the ratios.

    Raises:
        UserError: runs that are in one table only.
    """
    left, right = ratios.values.index, metrics.values.index
    both = left[left.isin(right)]
    only_left, only_right = len(left) - len(both), len(right) - len(both)
    if (only_left or only_right) and not (partial and len(both)):
        examples = [*left[~left.isin(right)][:3], *right[~right.isin(left)][:3]]
        raise UserError(
            f"{only_left} run ids are only in {ratios.path} and {only_right} only in {metrics.path} "
            f"({', '.join(map(str, examples))}): remove those rows or add their partners."
        )
    if only_left or only_right:
        log.warning("Left out: %d runs only in %s, %d only in %s.", only_left, ratios.path, only_right, metrics.path)

    def column(name: str) -> pd.Series | None:
        found = [getattr(t, name) for t in (ratios, metrics) if getattr(t, name) is not None]
        return None if not found else pd.Series(found[0].loc[both])

    return Joined(ratios.values.loc[both], metrics.values.loc[both], column("seed"), column("fidelity"))


def fit_tables(
    ratios: Table,
    metrics: Table,
    *,
    unit: str | None = None,
    available: str | Path | None = None,
    maximize: bool = False,
    add_runs: Sequence[Joined] = (),
    partial: bool = False,
    random_state: int = 0,
    own: Sequence[str] = (),
) -> ResponseModel:
    """Fit the response model to tables.

    Runs of another fidelity (another model size, say) are brought to the fidelity of the first table by one offset and
    one slope a metric, both fitted, the slope about 1: metric = offset + slope · prediction.  Their weight is the
    squared ratio of the noises, so a fidelity that the law explains badly counts little.

    Args:
        ratios: the mixtures.
        metrics: the losses, or scores.
        unit: "rows" or "share"; None: shares where every row sums to one.
        available: a CSV of the rows each domain has, for volumes in rows.
        maximize: the metrics are scores, higher is better.
        add_runs: further runs, with a fidelity each; without one they are of the same fidelity.
        partial: go on with the runs that are in both tables.
        random_state: seed.
        own: METRIC=DOMAIN for metrics whose own domain has another name.

    Returns:
        The fitted model; ``fidelity_`` holds the offsets and slopes.

    Raises:
        UserError: tables that cannot be fitted, with the cure.
    """
    runs = _concatenate([join_tables(ratios, metrics, partial=partial), *add_runs])
    v, losses = runs.ratios, runs.metrics
    unit = _unit(v, unit, ratios.path)
    _check_enough(v, losses, ratios.path, metrics.path)
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
                f"--own {text!r} must be METRIC=DOMAIN, a metric of {_some(metrics)} and a domain of {_some(domains)}"
            )
        own[named[0][0]] = domains.index(named[0][1])
    return list(own.values())


def predict_table(
    model: ResponseModel, ratios: Table, *, level: float = 0.9, fidelity: str | None = None
) -> pd.DataFrame:
    """Predict every metric of every mixture, with the interval of one new run."""
    names = list(model.domain_names_)
    _same_domains(names, list(map(str, ratios.values.columns)), "the fit", ratios.path)
    v = ratios.values[names]
    if model.unit == "share":
        _unit(v, "share", ratios.path)
    bounds = [np.asarray(b).reshape(len(v), -1) for b in model.predict(v, return_interval=level)]
    if fidelity is not None:
        if fidelity not in model.fidelity_:
            raise UserError(f"Fidelity {fidelity!r} was not fitted: choose one of {_some(list(model.fidelity_))}.")
        offset, slope = (np.array(model.fidelity_[fidelity][key]) for key in ("offset", "slope"))
        bounds = [offset + slope * b for b in bounds]
    columns: dict[str, Any] = {"run": v.index}
    for j, name in enumerate(model.target_names_):
        for suffix, values in zip(("", "_lower", "_upper"), bounds, strict=True):
            columns[f"{name}{suffix}"] = values[:, j]
    return pd.DataFrame(columns)


# ---------------------------------------------------------------------- parts


def _csv(path: str | Path) -> pd.DataFrame:
    try:
        frame = pd.read_csv(path, skipinitialspace=True)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: check the path of the table.") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path} cannot be read as CSV ({error}): save the table as comma-separated text.") from None
    if frame.empty:
        raise UserError(f"{path} has no rows: give one row a run.")
    return frame


def _read(path: str | Path, prefix: str | None, what: str) -> Table:
    frame = _csv(path)
    frame.columns = pd.Index([str(c).strip() for c in frame.columns])
    lower = {c.lower(): c for c in reversed(frame.columns)}
    id_column = next((lower[name] for name in RUN_COLUMNS if name in lower), None)
    if id_column is None:
        raise UserError(f"{path} has no run id: name its column run, run_id or index, so that tables can be joined.")
    ids = pd.Index(frame[id_column].map(_text), name="run")
    if ids.isna().any() or "" in ids:
        raise UserError(f"{path} has a row without a run id in column {id_column}: give every row its own.")
    if ids.has_duplicates:
        repeated = list(dict.fromkeys(ids[ids.duplicated()]))
        raise UserError(
            f"{path}: {len(repeated)} run ids appear more than once ({_some(repeated)}): "
            "give every run an id of its own."
        )
    frame.index = ids
    prefixed = [c for c in frame.columns if prefix and c.startswith(prefix)]
    numeric = [
        c for c in frame.columns if c.lower() not in METADATA and not c.startswith("Unnamed") and _numeric(frame[c])
    ]
    columns = prefixed or numeric
    if not columns:
        raise UserError(f"{path} has no numeric column besides its run id: give one column a {what}.")
    ignored = [c for c in frame.columns if c not in columns and c != id_column]
    if ignored:
        log.info("%s: columns ignored as metadata: %s", path, ", ".join(ignored))
    values = frame[columns].apply(pd.to_numeric, errors="coerce").astype(float)
    text = frame[columns].notna() & values.isna()
    if bool(text.to_numpy().any()):
        run = text.index[text.any(axis=1)][0]
        column = text.columns[text.loc[run]][0]
        raise UserError(f"{path}: column {column} of run {run} is not a number: correct it or leave the cell empty.")
    if prefix:
        values.columns = pd.Index([c.removeprefix(prefix) for c in columns])
    if values.columns.has_duplicates:
        raise UserError(f"{path}: two columns are named {values.columns[values.columns.duplicated()][0]}: rename one.")
    seed = frame[lower["seed"]] if "seed" in lower else None
    fidelity = frame[lower["fidelity"]].map(_text) if "fidelity" in lower else None
    return Table(str(path), values, seed, fidelity)


def _text(value: Any) -> str:
    """Name a run the same whether its column was read as integers or, with a gap, as floats."""
    if isinstance(value, float):
        return "" if np.isnan(value) else str(int(value)) if value.is_integer() else str(value)
    return str(value).strip()


def _numeric(column: pd.Series) -> bool:
    if pd.api.types.is_bool_dtype(column):
        return False
    converted = pd.to_numeric(column, errors="coerce")
    # a number column with one typing error is still a number column: the error is named, not skipped
    return bool(converted.notna().sum() > 0.5 * max(1, column.notna().sum()))


def _some(names: Sequence[Any]) -> str:
    return ", ".join(map(str, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _same_domains(expected: Sequence[str], got: Sequence[str], where: str, path: str) -> None:
    missing, unknown = [d for d in expected if d not in got], [d for d in got if d not in expected]
    if missing or unknown:
        parts = [f"lacks {_some(missing)}"] * bool(missing) + [f"has {_some(unknown)} besides"] * bool(unknown)
        raise UserError(f"{path} {' and '.join(parts)}, unlike {where}: name the domains the same in both.")


def _concatenate(parts: Sequence[Joined]) -> Joined:
    first = parts[0]
    for part in parts[1:]:
        _same_domains(list(first.ratios.columns), list(part.ratios.columns), "the ratios", "a table of added runs")
        repeated = list(part.ratios.index[part.ratios.index.isin(first.ratios.index)])
        if repeated:
            raise UserError(f"Run ids {_some(repeated)} are in the tables already: give added runs ids of their own.")
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
            f"{path}: the shares of {len(wrong)} runs do not sum to one ({_some(wrong)}; run {wrong[0]} sums to "
            f"{total[wrong[0]]:.4g}): correct them, or use --unit rows if these are volumes."
        )
    return unit


def _check_enough(v: pd.DataFrame, losses: pd.DataFrame, ratios: str, metrics: str) -> None:
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
            f"{ratios}: domain {_some(still)} is the same in every run, so nothing can be learnt about it: "
            "leave the column out, or add runs that vary it."
        )
    flat = [str(c) for c in losses.columns if losses[c].nunique() < 2]
    if flat:
        raise UserError(f"{metrics}: metric {_some(flat)} does not vary over the runs: leave the column out.")


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
