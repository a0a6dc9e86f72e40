"""Tables from elsewhere: ratios and metrics as CSV, joined on the run id.

RegMix's layout (``index``, ``train_<domain>``; ``index``, ``metric/<name>``), Olmix's (``run, name, index``, then
domains or metrics), exports of wandb and mlflow, and plain tables are read as they are.
Legend: R runs, D domains, J metrics.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from ideal_proxy.errors import UserError, some
from ideal_proxy.response import SHARE_TOLERANCE, Array
from ideal_proxy.tables.columns import domain_columns, is_tracker, metric_columns, without_prefix
from ideal_proxy.tables.sheet import Sheet, plain, read_cells, read_sheet, to_numbers

log = logging.getLogger(__name__)
MOST_TOLD = 30  # columns that are not used
HUGE = 1e100  # its square is a number still


@dataclass(frozen=True, slots=True)
class Table:
    """One table, its rows named by run id."""

    path: str  # where it came from, for messages
    values: pd.DataFrame  # (R, columns) numbers indexed by run id, prefixes stripped
    seed: pd.Series | None  # (R,) the ``seed`` column, or None
    fidelity: pd.Series | None  # (R,) the ``fidelity`` column, or None
    # reason by id, of runs that did not finish or have no numbers
    left_out: Mapping[str, str] = field(default_factory=dict)
    # columns that name the runs, by plain name and the run id first
    names: pd.DataFrame = field(default_factory=pd.DataFrame)


@dataclass(frozen=True, slots=True)
class Joined:
    """Runs with their mixture and their metrics."""

    path: str  # where the mixtures came from, for messages
    ratios: pd.DataFrame  # (R, D) indexed by run id
    metrics: pd.DataFrame  # (R, J) with the same index
    seed: pd.Series | None  # (R,) seeds, or None
    fidelity: pd.Series | None  # (R,) fidelities, or None


def read_ratios(path: str | Path, domains: Sequence[str] = (), *, unit: str | None = None) -> Table:
    """Read a table of mixtures as shares or volumes: one row a run, one column a domain."""
    # Where domains are not given: the columns that sum to 1 or 100 in every run, in a table of volumes all that no
    # tracker writes. `unit` is "rows" where sums say nothing.
    sheet = read_sheet(path)
    columns, total = domain_columns(sheet, domains, unit)
    table = _table(sheet, columns, "domain", "train_")
    values = table.values
    if total:
        values = values / total
        sums = values.sum(axis=1)
        filled = values.isna().any(axis=1) & ((sums - 1.0).abs() < SHARE_TOLERANCE)
        if filled.any():
            log.info("%s: blank shares of %d runs are 0: the others sum to %g.", path, int(filled.sum()), total)
            values.loc[filled] = values.loc[filled].fillna(0.0)
    empty = values.isna()
    if bool(empty.to_numpy().any()):
        run = values.index[empty.any(axis=1)][0]
        column = values.columns[empty.loc[run]][0]
        raise UserError(f"{path}: run {run} has no number for domain {column}: write 0 where a domain is not used.")
    wrong = (values < 0) | np.isinf(values)
    if bool(wrong.to_numpy().any()):
        run = values.index[wrong.any(axis=1)][0]
        raise UserError(f"{path}: run {run} has a negative or infinite volume: correct the table.")
    return replace(table, values=values)


def read_metrics(path: str | Path, metrics: Sequence[str] = ()) -> Table:
    """Read a table of losses or scores: one row a run, one column a metric; empty cells are allowed."""
    sheet = read_sheet(path)
    columns = metric_columns(sheet)
    if metrics:
        own = {name: c for c in sheet.numeric() for name in (c, without_prefix(c, "metric/"))}
        missing = [m for m in metrics if m not in own]
        if missing:
            raise UserError(f"{path} lacks metric {some(missing)}: its columns of numbers are {some(sheet.numeric())}.")
        columns = [own[m] for m in metrics]
    table = _table(sheet, columns, "metric", "metric/")
    huge = table.values.abs().replace(np.inf, np.nan).max() > HUGE  # runs with an infinite metric are left out by name
    if huge.any():
        raise UserError(
            f"{path}: metric {some(list(huge.index[huge]))} has values above {HUGE:g}: leave those runs out."
        )
    return table


def read_available(path: str | Path, domains: Sequence[str]) -> Array:
    """Read how many rows each domain has: a line a domain (name, rows), or one line with a column a domain."""
    cells = read_cells(path)
    numbers = to_numbers(cells, str(path))
    if cells.shape[1] == 2 and numbers.iloc[:, 0].isna().all():
        values = dict(zip(cells.iloc[:, 0], numbers.iloc[:, 1], strict=True))
    else:
        values = {str(name): numbers[name].iloc[0] for name in cells.columns}
    values = {without_prefix(name, "train_"): value for name, value in values.items()}
    same_domains(domains, [n for n in values if n in domains or not is_tracker(n)], "the ratios", str(path))
    rows = np.array([values[d] for d in domains], dtype=float)
    if not (np.isfinite(rows) & (rows > 0)).all():
        wrong = [d for d, r in zip(domains, rows, strict=True) if not (np.isfinite(r) and r > 0)]
        raise UserError(f"{path}: {some(wrong)} has no positive number of available rows: write how many there are.")
    return rows


def read_runs(path: str | Path, domains: Sequence[str], metrics: Sequence[str]) -> Joined:
    """Read further runs from one table that holds both mixtures and metrics, for ``fit --add-runs``."""
    sheet = read_sheet(path)
    columns = {
        name: c
        for c in sheet.numbers.columns
        for name in (c, without_prefix(c, "train_"), without_prefix(c, "metric/"))
    }
    missing, known = [d for d in domains if d not in columns], [m for m in metrics if m in columns]
    if missing or not known:
        lacks = f"domain {some(missing)}" if missing else "every metric"
        raise UserError(f"{path} lacks {lacks}: further runs need the columns of the ratios and of the metrics.")
    ratios = read_ratios(path, domains)
    table = _table(sheet, [columns[m] for m in known], "metric", "metric/", [columns[d] for d in domains])
    return join_tables(ratios, table)


def join_tables(ratios: Table, metrics: Table, *, partial: bool = False) -> Joined:
    """Join mixtures and metrics on the run id, as text, in the order of the ratios; `partial` takes shared runs."""
    common = [str(name) for name in ratios.names if name in metrics.names]
    if common and ratios.names.columns[0] != metrics.names.columns[0]:
        ratios, metrics = (_named_by(table, common[0]) for table in (ratios, metrics))
    Y = _varying_metrics(ratios.values, metrics)
    gone = dict(ratios.left_out) | dict(metrics.left_out)
    gone |= dict.fromkeys(Y.index[Y.isna().all(axis=1)], "no metric")
    gone |= dict.fromkeys(Y.index[np.isinf(Y.to_numpy()).any(axis=1)], "an infinite metric")
    if gone:
        log.warning("%d runs left out: %s.", len(gone), some([f"{run} ({reason})" for run, reason in gone.items()]))
    V, Y = (values.drop(index=[run for run in gone if run in values.index]) for values in (ratios.values, Y))
    left, right = V.index, Y.index
    both = left[left.isin(right)]
    only_left, only_right = len(left) - len(both), len(right) - len(both)
    if (only_left or only_right) and not (partial and len(both)):
        examples = [*left[~left.isin(right)][:3], *right[~right.isin(left)][:3]]
        bare = [{run.lstrip("0") for run in map(str, ids)} for ids in (left, right)]
        hint = " (ids are compared as text: 001 is not 1)" if len(bare[0] & bare[1]) > len(both) else ""
        raise UserError(
            f"{only_left} run ids are only in {ratios.path} and {only_right} only in {metrics.path} "
            f"({', '.join(map(str, examples))}){hint}: remove those rows or add their partners."
        )
    if only_left or only_right:
        log.warning("Left out: %d runs only in %s, %d only in %s.", only_left, ratios.path, only_right, metrics.path)
    V, Y = V.loc[both], Y.loc[both]

    def column(name: str) -> pd.Series | None:
        found = [getattr(t, name) for t in (ratios, metrics) if getattr(t, name) is not None]
        return None if not found else pd.Series(found[0].loc[both])

    return Joined(ratios.path, V, Y, column("seed"), column("fidelity"))


def _varying_metrics(ratios: pd.DataFrame, metrics: Table) -> pd.DataFrame:
    """Leave out metrics that hold the shares of a domain, or one number in every run; they are named."""
    Y = metrics.values
    seen = [*ratios.reindex(Y.index).to_numpy().T]
    shares = [c for c in Y.columns if any(np.allclose(Y[c], v * k, equal_nan=True) for v in seen for k in (1, 100))]
    still = [c for c in Y.columns if Y[c].nunique() < 2]
    for columns, why in ((shares, "they hold shares of domains"), (still, "they are the same in every run")):
        dropped = [c for c in columns if c in Y.columns]
        if dropped and len(dropped) < Y.shape[1]:
            log.info("%s: not used: %s (%s).", metrics.path, some(dropped, MOST_TOLD), why)
            Y = Y.drop(columns=dropped)
    return Y


def _table(sheet: Sheet, columns: list[str], what: str, prefix: str, used: Sequence[str] = ()) -> Table:
    """Take columns of a sheet as numbers; the rest, and runs without any number, are named."""
    if not columns:
        raise UserError(f"{sheet.path} has no column of numbers that is a {what}: give one column a {what}.")
    values = sheet.numbers[columns]
    text = (sheet.cells[columns] != "") & values.isna()
    if bool(text.to_numpy().any()):
        run = text.index[text.any(axis=1)][0]
        column = text.columns[text.loc[run]][0]
        raise UserError(
            f"{sheet.path}: column {column} of run {run} is not a number: correct it or leave the cell empty."
        )
    own = {"seed", "fidelity"}  # have a meaning of their own
    unused = [c for c in sheet.cells.columns if c not in {*columns, *used} and plain(c) not in own]
    if unused:
        log.info("%s: not used: %s.", sheet.path, some(unused, MOST_TOLD))
    left_out = dict(sheet.left_out)
    if what == "domain":
        left_out |= dict.fromkeys(map(str, values.index[values.isna().all(axis=1)]), "no shares")
    kept = values.index[~values.index.isin(list(left_out))]
    values = values.loc[kept].set_axis([without_prefix(c, prefix) for c in columns], axis=1)
    if values.columns.has_duplicates:
        twice = values.columns[values.columns.duplicated()][0]
        raise UserError(f"{sheet.path}: two columns are named {twice}: rename one.")
    seed, fidelity = (
        None if (found := sheet.column(name)) is None else found.loc[kept] for name in ("seed", "fidelity")
    )
    return Table(sheet.path, values, seed, fidelity, left_out, sheet.names)


def _named_by(table: Table, name: str) -> Table:
    """Call a table's runs by another of its columns that names them."""
    own = {str(run): str(other) for run, other in table.names[name].items()}
    seed, fidelity = (None if s is None else s.rename(index=own) for s in (table.seed, table.fidelity))
    left_out = {own[run]: reason for run, reason in table.left_out.items()}
    return replace(table, values=table.values.rename(index=own), seed=seed, fidelity=fidelity, left_out=left_out)


def same_domains(expected: Sequence[str], got: Sequence[str], where: str, path: str) -> None:
    """Refuse other domains than those expected."""
    missing, unknown = [d for d in expected if d not in got], [d for d in got if d not in expected]
    if missing or unknown:
        parts = [f"lacks {some(missing)}"] * bool(missing) + [f"has {some(unknown)} besides"] * bool(unknown)
        raise UserError(f"{path} {' and '.join(parts)}, unlike {where}: name the domains the same in both.")
