"""A table as text: any separator, decimal commas, runs named by ids that stay text, runs that did not finish."""

from __future__ import annotations

import codecs
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ideal_proxy.errors import UserError, some

RUN_COLUMNS = ("run", "runid", "index", "id", "sysid", "trialid", "experimentkey", "name", "runname")
"""Names of the run id, without case and signs; the first one found counts."""
NAMES = frozenset({"name", "runname"})  # an id only where every run has its own
MOST_BYTES, MOST_COLUMNS = 1 << 28, 20_000
BLANK = frozenset({"", "nan", "na", "n/a", "null", "none", "-", "<na>", "#n/a"})
UNFINISHED = frozenset({
    "crashed", "failed", "failure", "killed", "running", "pending", "queued", "scheduled", "preempted", "preempting",
    "error", "errored", "canceled", "cancelled", "aborted", "stopped", "terminated",
})  # fmt: skip
COMMA = re.compile(r"[+-]?[\d.]+,\d+(e[+-]?\d+)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Sheet:
    """One table: its cells as text, the same as numbers, and what its rows are called."""

    path: str  # where it came from, for messages
    cells: pd.DataFrame  # (R, columns) text indexed by run id; runs that did not finish are not in it
    numbers: pd.DataFrame  # (R, columns) the same as numbers; NaN where a cell is blank or text
    # (all R, ids) the columns that name runs, by plain name and the run id first, indexed by run id
    names: pd.DataFrame
    left_out: dict[str, str]  # reason by run id, of runs that did not finish

    def column(self, name: str) -> pd.Series | None:
        """Find a column by its plain name."""
        found = [c for c in self.cells.columns if plain(c) == name]
        return self.cells[found[0]] if found else None

    def numeric(self) -> list[str]:
        """Columns that hold numbers; with one typing error among them the error is named, not skipped."""
        filled = (self.cells != "").sum()
        return [c for c in self.numbers.columns if self.numbers[c].notna().sum() > 0.5 * max(1, filled[c])]


def read_sheet(path: str | Path) -> Sheet:
    """Read a table of runs; every row needs an id of its own."""
    frame = read_cells(path)
    plains = {plain(c): c for c in reversed(frame.columns)}
    found = [plains[name] for name in RUN_COLUMNS if name in plains]
    ids = [c for c in found if plain(c) not in NAMES or (frame[c].is_unique and (frame[c] != "").all())]
    if not ids:
        raise UserError(f"{path} has no run id: name its column run, run_id or index, so that tables can be joined.")
    named = pd.Index(frame[ids[0]], name="run")
    if "" in named:
        raise UserError(f"{path} has a row without a run id in column {ids[0]}: give every row its own.")
    if named.has_duplicates:
        repeated = list(dict.fromkeys(named[named.duplicated()]))
        raise UserError(
            f"{path}: {len(repeated)} run ids appear more than once ({some(repeated)}): "
            "give every run an id of its own."
        )
    frame.index = named
    names = frame[ids].set_axis([plain(c) for c in ids], axis=1)
    frame = frame.drop(columns=ids)
    state = next((plains[name] for name in ("state", "status", "runstate", "sysstate") if name in plains), None)
    left_out: dict[str, str] = {}
    if state is not None:
        words = frame[state].str.lower()
        left_out = {str(run): str(word) for run, word in words.items() if word in UNFINISHED}
        frame = frame.drop(index=list(left_out))
    return Sheet(str(path), frame, to_numbers(frame, str(path)), names, left_out)


def read_cells(path: str | Path) -> pd.DataFrame:
    """Read a table as text, blanks as "", columns as they are named."""
    try:
        with open(path, "rb") as file:
            raw = file.read(MOST_BYTES + 1)
        if len(raw) > MOST_BYTES:
            raise UserError(f"{path} has more than the {MOST_BYTES >> 20} MiB that a table may have: split it.")
        wide = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = raw.decode("utf-16" if wide else "utf-8-sig")
        said = re.match(r"sep=(.)\r?\n", text)  # Excel's own first line
        text = text[said.end() :] if said else text
        sep = said[1] if said else _separator(text)
        columns = max((line.count(sep) for line in text[:MOST_BYTES].split("\n", 1)[:1]), default=0) + 1
        if columns > MOST_COLUMNS or columns * text.count("\n") > 4 * len(text) + (1 << 20):
            raise UserError(f"{path} names {columns:,} columns and does not fill them: remove those that hold nothing.")
        frame = pd.read_csv(
            io.StringIO(text), sep=sep, header=None, dtype=str,
            keep_default_na=False, skipinitialspace=True,
        ).fillna("")  # fmt: skip
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: check the path of the table.") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, OSError) as error:
        why = " ".join(str(error).split())
        raise UserError(f"{path} cannot be read as CSV ({why}): save the table as comma-separated UTF-8.") from None
    frame = frame.apply(lambda column: column.str.strip())
    names = frame.iloc[0]
    frame = frame[1:].set_axis(pd.Index(names), axis=1)
    frame = frame.loc[:, [name != "" or (frame.iloc[:, i] != "").any() for i, name in enumerate(names)]]
    if frame.columns.has_duplicates:
        raise UserError(f"{path}: two columns are named {frame.columns[frame.columns.duplicated()][0]!r}: rename one.")
    frame = frame.mask(frame.apply(lambda column: column.str.lower().isin(BLANK)), "")
    frame = pd.DataFrame(frame[(frame != "").any(axis=1)])
    if frame.empty:
        raise UserError(f"{path} has no rows: give one row a run.")
    return frame


def to_numbers(frame: pd.DataFrame, path: str) -> pd.DataFrame:
    """Numbers of a table of text; a percent sign and decimal commas are read, NaN stands for blanks and words."""
    frame = frame.apply(lambda column: column.str.removesuffix("%").str.strip())
    cells = pd.Series(frame.to_numpy().ravel(), dtype=str)
    commas = cells[cells.str.fullmatch(COMMA)]
    if len(commas):
        thousands = commas.str.fullmatch(r"[+-]?[1-9]\d{0,2},\d{3}")
        if bool(thousands.all()):
            raise UserError(
                f"{path} holds {commas.iloc[0]}: it may be a decimal comma or a mark of thousands; write a point, "
                "and no marks of thousands."
            )
        frame = frame.apply(
            lambda c: c.where(
                ~c.str.fullmatch(COMMA), c.str.replace(".", "", regex=False).str.replace(",", ".", regex=False)
            )
        )
    values: pd.DataFrame = frame.apply(pd.to_numeric, errors="coerce").astype(float)
    return values


def without_formulas(frame: pd.DataFrame) -> pd.DataFrame:
    """Put a ' before texts and names that a spreadsheet would run as a formula, as it does itself; numbers stay."""

    def quoted(cell: Any) -> Any:
        acts = isinstance(cell, str) and re.match(r"[=+\-@\t\r]", cell) and not re.fullmatch(r"[+-]?[\d.,e+-]+%?", cell)
        return f"'{cell}" if acts else cell

    return frame.map(quoted).rename(columns=quoted)


def decimals(column: pd.Series) -> int:
    """The most digits behind the point, or the comma, that a cell of a column has; many where it has an exponent."""
    if bool(column.str.contains("e", case=False).any()):
        return 16
    digits = column.str.extract(r"[.,](\d+)\s*%?$")[0].str.len().max()
    return 0 if pd.isna(digits) else int(digits)


def plain(name: Any) -> str:
    """A column's name without case, spaces and signs."""
    return re.sub(r"[^a-z0-9]", "", str(name).lower())


def _separator(text: str) -> str:
    """The sign that every one of the first lines holds most often, outside quotes."""
    lines = [re.sub(r'"[^"]*"', "", line) for line in text.splitlines() if line.strip()][:5]
    counts = {sign: min((line.count(sign) for line in lines), default=0) for sign in ",;\t|"}
    return max(counts, key=lambda sign: counts[sign])
