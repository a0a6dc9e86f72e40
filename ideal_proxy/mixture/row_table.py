"""The rows of a source as a table: a key for every row, made once and kept, and its line, read again when it is needed.

A kept table is a folder: `rows.parquet` (key, number of the file, number of the line in it) and `table.json`, written
last: the files with size, time of change and checksum. It is used again only where size and time of change agree, and
every reading of the lines is summed up and compared, so a source that was changed behind its time of change is refused
all the same.

Sources without lines of their own (parquet, .gz, JSON lists, demo, hub) are written out as lines first, and never kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import xxhash

from ideal_proxy.data import SourceReader, is_line_file, log, read_turns, source_fingerprint
from ideal_proxy.errors import UserError
from ideal_proxy.mixture.file import DomainVolume
from ideal_proxy.mixture.row_shape import ChatLayout, Shape
from ideal_proxy.store import atomic_write_json, json_bytes, read_json

FORMAT = "ideal-proxy/row-table/3"
TABLE, ROWS, LINES = "table.json", "rows.parquet", "lines.jsonl"
READ_BYTES = 1 << 23
BATCH_ROWS = 1 << 16
BOM = b"\xef\xbb\xbf"

Seen = Callable[[int], None]


class StaleTableError(Exception):
    """A source's bytes are not those that its table was made from, though size and time of change are."""


@dataclass(frozen=True, slots=True)
class RowTable:
    """The rows of a source, on disk."""

    folder: Path  # where it lies
    files: tuple[Path, ...]  # the files with the lines
    states: tuple[tuple[int, int], ...]  # size and time of change of each in nanoseconds, before it was read
    checksums: tuple[str, ...]  # XXH3 of 128 bits of each
    format: str  # alpaca, chat or prompt
    rows: int  # N, rows with an answer
    left_out: tuple[str, ...]  # what rows are not among them, a sentence each
    fingerprint: str  # SHA-256 over the keys, as `source_fingerprint` gives it
    shape: Shape  # what is in the rows

    @property
    def path(self) -> Path:
        """The parquet file of (key, file, line)."""
        return self.folder / ROWS

    def batches(self, chat: ChatLayout | None = None) -> Iterator[arrow.RecordBatch]:
        """Read the rows in the order of the source, as (row, text): lines without their end, or rows as `messages`."""
        table = parquet.read_table(self.path, columns=["file", "line"])
        file_N, line_N = table["file"].to_numpy(), table["line"].to_numpy()
        at = 0  # number of the next row
        for number, file in enumerate(self.files):
            end, first = int(np.searchsorted(file_N, number, side="right")), 0  # first: number of the next line
            for lines, checksum in _blocks(file):
                last = first + len(lines)
                until = at + int(np.searchsorted(line_N[at:end], last))
                texts = [lines[n] for n in (line_N[at:until] - first).tolist()]
                if chat is not None:
                    texts = [chat.line(*read_turns(json.loads(text), self.format, "a row")) for text in texts]
                if texts:
                    yield arrow.record_batch([arrow.array(np.arange(at, until)), arrow.array(texts)], schema=SCHEMA)
                first, at = last, until
                if checksum is not None and checksum != self.checksums[number]:
                    raise StaleTableError

    def without(self, keys: Sequence[str], folder: Path) -> RowTable:
        """Leave out rows by their keys in hex; what is left is written to `folder`."""
        if not keys:
            return self
        table = parquet.read_table(self.path)
        kept_N = ~np.isin(table["key"].to_numpy(), np.array([int(key, 16) for key in keys], dtype=np.uint64))
        folder.mkdir(parents=True, exist_ok=True)
        parquet.write_table(table.filter(arrow.array(kept_N)), folder / ROWS)
        return replace(self, folder=folder, rows=int(kept_N.sum()))

    def changed(self) -> bool:
        """Tell by size and time of change whether a file was changed since it was read."""
        try:
            return _states(self.files) != self.states
        except OSError:
            return True


SCHEMA = arrow.schema([("row", arrow.int64()), ("text", arrow.binary())])
KEPT = arrow.schema([("key", arrow.uint64()), ("file", arrow.int64()), ("line", arrow.int64())])


def open_table(source: str, format: str, *, keep: Path | None, scratch: Path, seen: Seen | None = None) -> RowTable:
    """Take a source's table from the folder `keep`, or make it in `scratch`; `seen` is told how many rows were read."""
    digests: defaultdict[Path, xxhash.xxh3_128] = defaultdict(xxhash.xxh3_128)
    reader = SourceReader(
        source, format=format, max_bad=-1,  # the search has held them to its limit
        seen=lambda file, line: digests[file].update(line),
    )  # fmt: skip
    plain = _has_lines(reader)
    if keep is not None and plain:
        table = _load(_kept_at(keep, source, format), reader, format)
        if table is not None:
            return table
    return _kept(_build(reader, digests, scratch, plain, seen), keep if plain else None, source, format)


def forget(keep: Path | None, source: str, format: str) -> None:
    """Throw away the table that is kept of a source."""
    if keep is not None:
        shutil.rmtree(_kept_at(keep, source, format), ignore_errors=True)


def refuse_changed(domain: DomainVolume, source: str, table: RowTable, note: str = "") -> None:
    """Refuse a source that is not the one that the mixture was made for: a row changed, moved, came or went."""
    had = domain.available + len(domain.left_out)
    if table.fingerprint == domain.fingerprint and table.rows == had:
        return
    change = f"it had {had} rows, now {table.rows}"
    if table.rows == had:
        change = "the number of rows is the same, their content or order is not"
    raise UserError(
        f"the data of domain {domain.name!r} changed since the search: {source} ({change}){note}; "
        "bring back the old data or search again"
    )


def _kept_at(keep: Path, source: str, format: str) -> Path:
    """Name the folder in which a source's table is kept: the same for the same source, seen from the same place."""
    text = json.dumps([os.path.abspath(source), format])
    return keep / hashlib.sha256(text.encode()).hexdigest()[:16]


def _kept(table: RowTable, keep: Path | None, source: str, asked: str) -> RowTable:
    """Move a table to where tables are kept; where that cannot be written it stays where it is."""
    if keep is None:
        return table
    place = _kept_at(keep, source, asked)
    value = {
        "format": FORMAT, "asked": asked, "row_format": table.format, "rows": table.rows,
        "left_out": table.left_out, "fingerprint": table.fingerprint,
        "shape": table.shape.to_json(),
        "files": [[os.path.abspath(f), *state] for f, state in zip(table.files, table.states, strict=True)],
        "checksums": table.checksums, "keys": _checksum(table.path),
    }  # fmt: skip
    fresh = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        keep.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.copytree(table.folder, fresh)
        atomic_write_json(fresh / TABLE, value)
        shutil.rmtree(place, ignore_errors=True)
        os.rename(fresh, place)
    except OSError:  # no room, or not ours to write: do without keeping it
        return table
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return replace(table, folder=place)


def _load(place: Path, reader: SourceReader, asked: str) -> RowTable | None:
    """Return the table kept there if it is whole and the files look as they did when it was made."""
    with contextlib.suppress(UserError, OSError, KeyError, TypeError, ValueError, AttributeError):
        value = read_json(place / TABLE)
        states = _states(reader.files)
        files = [[os.path.abspath(f), *state] for f, state in zip(reader.files, states, strict=True)]
        known = (value["format"], value["asked"], value["files"]) == (FORMAT, asked, files)
        if known and _checksum(place / ROWS) == value["keys"]:
            for line in value["left_out"]:
                log.warning("%s: %s", reader.source, line)
            kept = parquet.ParquetFile(place / ROWS)
            if len(value["checksums"]) != len(files) or (kept.schema_arrow, kept.metadata.num_rows) != (
                KEPT,
                value["rows"],
            ):
                return None
            return RowTable(
                place, reader.files, states, tuple(value["checksums"]), value["row_format"], value["rows"],
                tuple(value["left_out"]), value["fingerprint"], Shape.from_json(value["shape"]),
            )  # fmt: skip
    return None


def _build(
    reader: SourceReader, digests: Mapping[Path, xxhash.xxh3_128], folder: Path, plain: bool, seen: Seen | None
) -> RowTable:
    """Read every row of a source and write its table; of a source without lines, its lines too."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    files = reader.files if plain else (folder / LINES,)
    number_of: dict[Path | None, int] = {file: number for number, file in enumerate(reader.files)}
    keys: list[int] = []
    places: list[tuple[int, int]] = []
    shape, spooled = Shape(), xxhash.xxh3_128()
    with contextlib.ExitStack() as stack:
        states = _states(files) if plain else ()
        spool = None if plain else stack.enter_context(open(folder / LINES, "wb"))
        for record, row in reader:
            if spool is None:
                places.append((number_of[record.path], record.number))
            else:
                line = json_bytes(record.value, default=str) if record.line is None else record.line
                line = line.removesuffix(b"\n") + b"\n"
                spool.write(line)
                spooled.update(line)
                places.append((0, len(keys)))
            keys.append(row.key)
            shape.add(record.value, row)
            if seen is not None and len(keys) % BATCH_ROWS == 0:
                seen(len(keys))
    key_N = np.array(keys, dtype=np.uint64)
    place_N2 = np.array(places, dtype=np.int64).reshape(-1, 2)
    parquet.write_table(arrow.table({"key": key_N, "file": place_N2[:, 0], "line": place_N2[:, 1]}), folder / ROWS)
    if seen is not None:
        seen(len(keys))
    checksums = tuple(digests[file].hexdigest() for file in files) if plain else (spooled.hexdigest(),)
    return RowTable(
        folder, files, states or _states(files), checksums, reader.format, len(keys),
        tuple(reader.tally.lost_lines()), source_fingerprint(key_N), shape,
    )  # fmt: skip


def _blocks(file: Path) -> Iterator[tuple[list[bytes], str | None]]:
    """Read a file's lines without their ends, some at a time; with the last come the checksum of all bytes."""
    digest, rest, first = xxhash.xxh3_128(), b"", True
    with open(file, "rb") as handle:
        while block := handle.read(READ_BYTES):
            digest.update(block)
            lines = (rest + (block.removeprefix(BOM) if first else block)).split(b"\n")
            rest, first = lines.pop(), False
            yield lines, None
    yield [rest] if rest else [], digest.hexdigest()


def _checksum(file: Path) -> str:
    digest = xxhash.xxh3_128()
    with open(file, "rb") as handle:
        while block := handle.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _states(files: tuple[Path, ...]) -> tuple[tuple[int, int], ...]:
    return tuple((state.st_size, state.st_mtime_ns) for state in (file.stat() for file in files))


def _has_lines(reader: SourceReader) -> bool:
    """Tell whether all rows of a source are lines of plain files."""
    try:
        return bool(reader.files) and all(is_line_file(file) for file in reader.files)
    except OSError:  # the reader will say what cannot be read
        return False
