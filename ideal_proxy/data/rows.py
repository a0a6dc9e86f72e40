"""Reading the rows of a source: one pass that yields every row to train on, and counts by reason what it leaves out.

A source is a file, a glob, a folder, `hf:NAME` (see `hub`) or `demo:NAME?seed=S&rows=N`. How rows may be written is in
`dialects`, what files may be made of in `files`.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ideal_proxy.data.dialects import (
    ANSWER_OF,
    BESIDE,
    FORMATS,
    KTO_LABELS,
    MAPPED,
    MARKS,
    ROW_WEIGHTS,
    SYSTEMS,
    TOOLS,
    find_format,
    known_format,
    mapping_of,
    named_columns,
    own_format,
    read_turns,
    refuse_left_out,
    split_format,
    suggest_columns,
    to_messages,
    used_keys,
)
from ideal_proxy.data.files import find_files, is_virtual
from ideal_proxy.data.hub import HUB, hub_records
from ideal_proxy.data.messages import Message, Row, has_answer, row_key, row_keys, source_fingerprint
from ideal_proxy.data.records import BadRow, Record, kind_of, read_records
from ideal_proxy.data.tally import LISTED, Tally, bad_row, between_weights, rows, turn_keys
from ideal_proxy.data.turns import THOUGHTS, TURN_KEYS, WEIGHTS, LeftOut, blank, filled, number_of
from ideal_proxy.errors import UserError

__all__ = [
    "BadRow", "Message", "OnBadRows", "Row", "SourceInfo", "SourceReader", "Tally", "format_of", "read_rows", "row_key",
    "row_keys", "scan", "source_fingerprint", "to_messages",
]  # fmt: skip

log = logging.getLogger(__name__)

OnBadRows = Literal["drop", "refuse"]
FEW_BAD = 10  # rows that cannot be read and yet stop nothing, in a domain of any size
BAD_SHARE = 0.01  # of a larger domain
ROW_WEIGHT = "a weight of the row that is not 1, read as 1"
Told = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class SourceInfo:
    """What looking through a source found."""

    source: str  # as the user wrote it
    format: str  # alpaca, chat, prompt, or the columns that the user named
    files: tuple[str, ...]  # files read, in order; empty for procedural sources
    rows: int  # rows with an answer
    without_answer: int  # rows left out because they have none
    fingerprint: str  # SHA-256 over the keys of the rows, in order
    tally: Tally  # what was used and what was left out


def read_rows(
    source: str | Path, *, format: str = "auto", on_bad_rows: OnBadRows = "drop", max_bad: int | None = None
) -> Iterator[Row]:
    """Read the rows of a source that have an answer, in a fixed order; files are streamed."""
    # `max_bad` is the most rows that may be dropped: None is the larger of 10 rows and 1 %, below 0 there is no limit.
    for _, row in SourceReader(source, format=format, on_bad_rows=on_bad_rows, max_bad=max_bad):
        yield row


def scan(source: str | Path, *, format: str = "auto", max_bad: int | None = None) -> SourceInfo:
    """Look through a source once."""
    reader = SourceReader(source, format=format, max_bad=max_bad, quiet=True)
    keys = np.fromiter((row.key for _, row in reader), dtype=np.uint64)
    return SourceInfo(
        source=str(source),
        format=reader.format,
        files=tuple(str(file) for file in reader.files),
        rows=len(keys),
        without_answer=reader.without_answer,
        fingerprint=source_fingerprint(keys),
        tally=reader.tally,
    )


def look_through(source: str | Path) -> SourceInfo:
    """Look through a source once; where its layout is unknown and its columns suggest one, read it by that."""
    try:
        return scan(source)
    except NothingToTrainOnError:
        raise
    except UserError:
        guess = _guessed(source)
        if guess is None:
            raise
        return scan(source, format=guess)


GUESSED_ROWS = 1_000  # that are looked at for columns


def _guessed(source: str | Path) -> str | None:
    """Suggest a format by the columns of a source's first row in no known layout."""
    if is_virtual(source):
        return None
    with contextlib.suppress(UserError):
        records = (record.value for file in find_files(source) for record in read_records(file))
        for value in islice(records, GUESSED_ROWS):
            if isinstance(value, dict) and known_format(filled(value)) is None:
                guess = suggest_columns(value)
                if guess is not None:
                    return MAPPED + json.dumps(guess, sort_keys=True)
    return None


def likely_format(source: str) -> str:
    """Tell the format of a source's rows as `init` would: by its first row, or by what its columns suggest."""
    try:
        return format_of(source)
    except BadRow:
        guess = _guessed(source)
        if guess is None:
            raise
        return guess


def format_of(source: str, format: str = "auto") -> str:
    """Tell the format of a source's rows by its first row, where it is not given."""
    reader = SourceReader(source, format=format)
    if reader.format == "auto":
        next(iter(reader))
    return reader.format


class NothingToTrainOnError(UserError):
    """A source without rows, or whose rows are all of kinds that are left out by name."""


class SourceReader:
    """One pass over a source that yields each row beside its record and counts what it leaves out."""

    def __init__(
        self, source: str | Path, *, format: str = "auto", on_bad_rows: OnBadRows = "drop", max_bad: int | None = None,
        told: Told | None = None, quiet: bool = False, seen: Callable[[Path, bytes], None] | None = None,
    ) -> None:  # fmt: skip
        alone, _ = split_format(format)
        if alone not in (*FORMATS, "auto") and not alone.startswith(MAPPED):
            raise UserError(f"format is {format!r}; it must be auto, {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
        self.source = str(source)
        self.format = "auto" if alone == "auto" else format
        self._with_settings = format.removeprefix(alone)
        self.files: tuple[Path, ...] = () if is_virtual(self.source) else find_files(self.source)
        self.tally = Tally()
        self._refuse = on_bad_rows == "refuse"
        self._max_bad = max_bad
        self._told = told
        self._quiet = quiet
        self._seen = seen
        self._first_bad: BadRow | None = None
        self._marks_good_and_bad: dict[str, bool] = {}  # columns such as `label`, where they hold 0 and 1

    @property
    def _alone(self) -> str:
        """The format without the settings of the chat template."""
        return split_format(self.format)[0]

    @property
    def without_answer(self) -> int:
        """Rows left out so far because they have no answer."""
        return self.tally.without_answer

    def __iter__(self) -> Iterator[tuple[Record, Row]]:
        """Yield (record, row) for every row with an answer."""
        tally = self.tally = Tally()
        shapes: Counter[tuple[str, tuple[str, ...]]] = Counter()
        turn_shapes: Counter[frozenset[str]] = Counter()
        for record in self._records():
            try:
                row = self._row(record)
            except LeftOut as reason:
                count, first = tally.left_out.get(str(reason), (0, record.where))
                tally.left_out[str(reason)] = (count + 1, first)
                continue
            except BadRow as error:
                self._drop(error, record.where)
                continue
            if not has_answer(row.messages):
                tally.without_answer += 1
                continue
            tally.rows += 1
            own = own_format(record.value, self._alone)
            shapes[own, tuple(filled(record.value))] += 1
            self._note(row, record.value, own, turn_shapes)
            yield record, row
        self._count_unused(shapes, turn_shapes)
        self._finish()

    def every(self) -> Iterator[tuple[int, Row | str]]:
        """Yield every record's number in the source, from 0, with its row or the reason why it is left out."""
        for number, record in enumerate(self._records()):
            try:
                row = self._row(record)
                yield number, row if has_answer(row.messages) else "it has no answer"
            except (LeftOut, BadRow) as reason:
                yield number, str(reason)

    def _row(self, record: Record) -> Row:
        """Read one record."""
        value = record.value
        if isinstance(value, BadRow):
            raise value
        if not isinstance(value, dict):
            raise BadRow(
                f"{record.where} holds {kind_of(value)}, not a JSON object; write one object a line", "not an object"
            )
        if self.format == "auto":
            present = filled(value)
            refuse_left_out(present)
            try:
                self.format = find_format(present, record.where)
            except BadRow:
                self.format = find_format(value, record.where)
            log.info("%s: rows are in %s format", self.source, self.format)
            self.format += self._with_settings
        messages, tools, settings = read_turns(value, self.format, record.where)
        if not MARKS.isdisjoint(value):
            for name in KTO_LABELS:
                if name in value and number_of(value[name]) == 0 and self._is_mark(name):
                    raise LeftOut(f"preference rows ({name} is 0)")
        return Row(messages, value, record.where, tools, settings)

    def _is_mark(self, name: str) -> bool:
        """Whether a column holds nothing but 0 and 1, as marks of bad and good answers, not numbers of classes."""
        if name not in self._marks_good_and_bad:
            with contextlib.suppress(UserError):
                values = (r.value for r in islice(self._records(look=True), GUESSED_ROWS) if isinstance(r.value, dict))
                cells = {number_of(value[name]) for value in values if not blank(value.get(name))}
                self._marks_good_and_bad[name] = cells <= {0.0, 1.0}
        return self._marks_good_and_bad.get(name, False)

    def _drop(self, error: BadRow, where: str) -> None:
        """Count a row that cannot be read; refuse it where the user wants that, or where there are too many."""
        if self._refuse:
            raise error
        self._first_bad = self._first_bad or error
        count, first = self.tally.bad.get(error.reason, (0, str(error)))
        self.tally.bad[error.reason] = (count + 1, first)
        if self._told is not None:
            self._told(bad_row(self.source, where, error.reason, str(error)))
        if not self.tally.rows and self.tally.bad_rows > FEW_BAD and self._max_bad is None:
            raise self._first_bad

    def _note(self, row: Row, value: dict[str, Any], own: str, turn_shapes: Counter[frozenset[str]]) -> None:
        """Count what a row holds besides roles and texts."""
        tally, mapping = self.tally, mapping_of(own)
        keys = turn_keys(value, LISTED if mapping is None else (*LISTED, str(mapping.get("messages"))))
        if not all(turn.plain for turn in row.messages):
            named = next((key for key in (*THOUGHTS, "channel") if key in keys or key in value), "in the content")
            tally.used[f"thoughts ({named})"] += any(turn.thoughts for turn in row.messages)
            tally.used["tool calls (tool_calls)"] += any(turn.tool_calls for turn in row.messages)
            tally.used["turns of the role tool"] += any(turn.role == "tool" for turn in row.messages)
            tally.used["turns without loss (weight 0)"] += any(not turn.trained for turn in row.messages)
        if any("<think>" in turn.content for turn in row.messages):
            tally.used["thoughts (<think> in an answer)"] += 1
        if row.tools:
            tally.used[f"schemas of tools ({next((name for name in TOOLS if value.get(name)), 'tools')})"] += 1
        if not BESIDE.isdisjoint(value):
            for system in SYSTEMS:
                if value.get(system):
                    tally.used[f"a system column ({system})"] += 1
        if not MARKS.isdisjoint(value):
            for name in KTO_LABELS:
                if name in value and number_of(value[name]) == 1 and self._is_mark(name):
                    tally.used[f"a mark as good ({name}), of preference rows"] += 1
            for name in ROW_WEIGHTS:
                weight = number_of(value.get(name))
                if weight is None and not blank(value.get(name)):
                    tally.unused[name] += 1
                elif weight not in (None, 1):
                    tally.used[f"{ROW_WEIGHT} ({name})"] += 1
        if row.settings:
            tally.used[f"settings of the chat template ({', '.join(sorted(row.settings))})"] += 1
        if value.get("history") and own in {"alpaca", "prompt"}:
            tally.used["earlier turns (history)"] += 1
        if not keys.isdisjoint(WEIGHTS) and between_weights(value):
            tally.used["weights between 0 and 1 or above (read as 1: full loss)"] += 1
        if keys:
            turn_shapes[keys] += 1

    def _count_unused(self, shapes: Counter[tuple[str, tuple[str, ...]]], turn_shapes: Counter[frozenset[str]]) -> None:
        """Count the keys that nothing reads."""
        tally = self.tally
        tally.used = Counter({name: count for name, count in tally.used.items() if count})
        if self.format == "auto":
            return
        named = {*ROW_WEIGHTS, *(name for name in KTO_LABELS if any(f" ({name})" in said for said in tally.used))}
        for (own, shape), count in shapes.items():
            used = used_keys(own)
            if own != self._alone:
                tally.used[f"columns of another dialect ({own.partition(':')[0]})"] += count
            for key in shape:
                if key not in used and key not in named:
                    tally.unused[str(key)] += count
        mapping = mapping_of(self.format)
        known = TURN_KEYS | ({str(mapping.get("role")), str(mapping.get("content"))} if mapping else set())
        for keys, count in turn_shapes.items():
            for key in sorted(keys):
                if key not in known:
                    tally.unused[f"{key} of a turn"] += count

    def _finish(self) -> None:
        """Say what was left out, and refuse a source with too many bad rows or none that are good."""
        tally = self.tally
        lost = len(tally.lost_lines())
        for n, line in enumerate(tally.lines()):
            log.log(logging.WARNING if n < lost and not self._quiet else logging.INFO, "%s: %s", self.source, line)
        if not tally.rows:
            if self._first_bad is not None:
                raise self._first_bad
            if tally.left_out:
                name, (count, _) = next(iter(tally.left_out.items()))
                raise NothingToTrainOnError(
                    f"{self.source} holds no row to train on: {rows(count)} left out, {name}; "
                    "take the source out, or give rows with an answer each"
                )
            if tally.without_answer:
                raise UserError(
                    f"none of the {tally.without_answer} rows of {self.source} has an answer; "
                    f"fill the {ANSWER_OF.get(split_format(self.format)[0], 'answers')} of its rows"
                )
            raise NothingToTrainOnError(f"{self.source} has no rows; take it out or put rows in it")
        limit = max(FEW_BAD, int(BAD_SHARE * (tally.rows + tally.bad_rows))) if self._max_bad is None else self._max_bad
        if 0 <= limit < tally.bad_rows:
            raise UserError(
                f"{self.source}: {rows(tally.bad_rows)} of {tally.rows + tally.bad_rows:,} cannot be read, allowed are "
                f"{limit:,} (the first: {self._first_bad}); repair them, or raise max_bad in the run file"
            )

    def _records(self, *, look: bool = False) -> Iterator[Record]:
        if self.source.startswith("demo:"):
            from ideal_proxy.data.demo import demo_rows

            for n, value in enumerate(demo_rows(self.source)):
                yield Record(value, f"{self.source} row {n + 1}")
        elif self.source.startswith(HUB):
            yield from hub_records(self.source)
        mapping = mapping_of(self._alone) if self._alone != "auto" else None
        for file in self.files:
            seen = None if self._seen is None or look else partial(self._seen, file)
            yield from read_records(file, named_columns(mapping) if mapping else (), seen)
