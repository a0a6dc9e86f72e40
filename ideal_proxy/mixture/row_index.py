"""Where the rows of a source stand, and their keys: read once, kept on disk, checked with every block that is used.

An index is a folder: `keys.bin` (8 bytes a row), `places.bin` (start in its block and length, 4 + 4 bytes), `turns.bin`
(which of several equal rows it is; only where there are equal ones) and `index.json`, written last: the files with
size and time of change, and every block with the checksum of its bytes (`line_keys.block_checksum`). It is used again
only where size and time of change agree, and even then every block that is read is summed up and compared, so a source
that was changed behind its time of change is refused all the same. What is held in memory does not grow with the rows.

Sources without lines of their own (parquet, .gz, JSON lists, demo, hub) are written out as lines first, and never kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import xxhash

from ideal_proxy.data import SourceReader, is_line_file, log
from ideal_proxy.errors import UserError
from ideal_proxy.mixture.block_reader import BlockReader
from ideal_proxy.mixture.line_keys import BlockRows, BrokenLineError, block_checksum
from ideal_proxy.store import atomic_write_json, read_json

FORMAT = "ideal-proxy/rows-index/2"
INDEX = "index.json"
BLOCK_BYTES = 1 << 23
KEYS_AT_ONCE = 1 << 20
BOM = b"\xef\xbb\xbf"

Seen = Callable[[int], None]


class StaleIndexError(Exception):
    """A source's bytes are not those that its index was made from, though size and time of change are."""


@dataclass(frozen=True, slots=True)
class Block:
    """Some whole lines of a file.

    Attributes:
        file: its number.
        begin: first byte.
        end: byte after the last.
        first: number of its first row in the source.
        rows: rows with an answer.
        checksum: of its bytes, as `block_checksum` gives it.
    """

    file: int
    begin: int
    end: int
    first: int
    rows: int
    checksum: str


@dataclass(frozen=True, slots=True)
class RowIndex:
    """The rows of a source: their keys and places, on disk.

    Attributes:
        folder: where it lies.
        files: the files with the lines.
        states: size and time of change of each in nanoseconds, before it was read.
        format: alpaca, chat or prompt.
        rows: N, rows with an answer.
        without_answer: rows left out.
        fingerprint: SHA-256 over the keys, as `rows.source_fingerprint` gives it.
        repeated: there are equal rows.
        blocks: in the order of the source.
    """

    folder: Path
    files: tuple[Path, ...]
    states: tuple[tuple[int, int], ...]
    format: str
    rows: int
    without_answer: int
    fingerprint: str
    repeated: bool
    blocks: tuple[Block, ...]

    @property
    def bytes_a_row(self) -> float:
        """Mean length of the blocks a row."""
        return sum(block.end - block.begin for block in self.blocks) / max(self.rows, 1)

    def keys(self, first: int, count: int) -> npt.NDArray[np.uint64]:
        """Read the keys of some rows.

        Args:
            first: number of the first.
            count: how many.

        Returns:
            array (count,) uint64.
        """
        return _read(self.folder / "keys.bin", "<u8", first, count)

    def turns(self, first: int, count: int) -> npt.NDArray[np.uint64]:
        """Read which of several equal rows each is, in the order of the source.

        Args:
            first: number of the first row.
            count: how many.

        Returns:
            array (count,) uint64: 0 where it is the first or the only one.
        """
        if not self.repeated:
            return np.zeros(count, dtype=np.uint64)
        return _read(self.folder / "turns.bin", "<u4", first, count).astype(np.uint64)

    def places(self, block: Block) -> npt.NDArray[np.int64]:
        """Read where the rows of a block stand in it.

        Args:
            block: which.

        Returns:
            array (rows, 2) int64: start and end in the block, the line end included.
        """
        found = _read(self.folder / "places.bin", "<u4", 2 * block.first, 2 * block.rows).reshape(-1, 2)
        places = found.astype(np.int64)
        places[:, 1] += places[:, 0]
        return places

    def lengths(self, block: Block) -> npt.NDArray[np.int64]:
        """Read how long the rows of a block are.

        Args:
            block: which.

        Returns:
            array (rows,) int64: bytes, the line end included.
        """
        return _read(self.folder / "places.bin", "<u4", 2 * block.first, 2 * block.rows)[1::2].astype(np.int64)

    def parts(self) -> Iterator[tuple[int, int]]:
        """Cut the rows into parts that are handled at once.

        Yields:
            tuple: number of the first row, and how many.
        """
        for first in range(0, self.rows, KEYS_AT_ONCE):
            yield first, min(KEYS_AT_ONCE, self.rows - first)

    def read(self, block: Block) -> bytes:
        """Read a block's bytes and check them.

        Args:
            block: which.

        Returns:
            bytes: whole lines, each with a line end.

        Raises:
            StaleIndexError: they are not those that the index was made from.
        """
        with open(self.files[block.file], "rb") as file:
            file.seek(block.begin)
            content = file.read(block.end - block.begin)
        if block_checksum(content) != block.checksum:
            raise StaleIndexError
        return content if content.endswith(b"\n") else content + b"\n"

    def changed(self) -> bool:
        """Tell whether a file was changed since it was read.

        Returns:
            bool: by size and time of change.
        """
        try:
            return _states(self.files) != self.states
        except OSError:
            return True


def open_index(source: str, format: str, *, keep: Path | None, scratch: Path, seen: Seen | None = None) -> RowIndex:
    """Take a source's index from where indexes are kept, or make it.

    Args:
        source: file, glob, folder, `hf:ID` or `demo:NAME?seed=S&rows=N`.
        format: alpaca, chat, prompt, or auto to look.
        keep: folder to keep indexes in; None: keep none.
        scratch: folder, new or not there, for an index that is not kept and for lines that had to be written out.
        seen: told how many rows were read, now and then.

    Returns:
        RowIndex: of the source as it is now.
    """
    reader = SourceReader(source, format=format)
    plain = _has_lines(reader)
    if keep is None or not plain:
        return _build(reader, scratch, plain, seen)
    place = _kept_at(keep, source, format)
    index = _load(place, reader, format)
    if index is not None:
        return index
    fresh = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        made = _build(reader, fresh, plain, seen, asked=format)
        shutil.rmtree(place, ignore_errors=True)
        os.rename(fresh, place)
        return RowIndex(**{**{name: getattr(made, name) for name in RowIndex.__slots__}, "folder": place})
    except OSError:  # no room, or not ours to write: do without keeping it
        return _build(reader, scratch, plain, seen)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def keep_index(source: str, format: str, keep: Path) -> str:
    """Make a source's index for later, where its rows are lines that can be copied.

    Args:
        source: file, glob, folder, `hf:ID` or `demo:NAME?seed=S&rows=N`.
        format: alpaca, chat, prompt, or auto to look.
        keep: folder to keep indexes in.

    Returns:
        str: the format of its rows.
    """
    reader = SourceReader(source, format=format)
    if _has_lines(reader):
        scratch = keep / f".scratch-{os.getpid()}"
        try:
            return open_index(source, format, keep=keep, scratch=scratch).format
        except OSError as error:
            log.warning("%s: its index could not be kept (%s)", source, error.strerror or error)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return format if format != "auto" else _found_format(reader)


def forget(keep: Path | None, source: str, format: str) -> None:
    """Throw away the index that is kept of a source.

    Args:
        keep: folder of all indexes; None: there are none.
        source: as the mixture file has it.
        format: alpaca, chat, prompt or auto.
    """
    if keep is not None:
        shutil.rmtree(_kept_at(keep, source, format), ignore_errors=True)


def _kept_at(keep: Path, source: str, format: str) -> Path:
    """Name the folder in which a source's index is kept: the same for the same source, seen from the same place."""
    text = json.dumps([os.path.abspath(source), format])
    return keep / hashlib.sha256(text.encode()).hexdigest()[:16]


def _has_lines(reader: SourceReader) -> bool:
    """Tell whether all rows of a source are lines of plain files."""
    try:
        return bool(reader.files) and all(is_line_file(file) for file in reader.files)
    except OSError:  # the reader will say what cannot be read
        return False


class _Writer:
    """Writes an index, a block at a time."""

    def __init__(self, folder: Path, files: tuple[Path, ...], seen: Seen | None) -> None:
        folder.mkdir(parents=True)
        self.folder, self.files, self.states = folder, files, _states(files)
        self.digest, self.blocks, self.rows, self.without = hashlib.sha256(), list[Block](), 0, 0
        self.seen = seen

    def add(self, keys: BinaryIO, places: BinaryIO, span: tuple[int, int, int], rows: BlockRows, checksum: str) -> None:
        count = len(rows.keys)
        self.digest.update(rows.keys.astype(">u8").tobytes())
        keys.write(rows.keys.astype("<u8").tobytes())
        places.write(np.stack([rows.starts, rows.lengths], axis=1).astype("<u4").tobytes())
        self.blocks.append(Block(*span, self.rows, count, checksum))
        self.rows += count
        self.without += rows.without_answer
        if self.seen is not None:
            self.seen(self.rows)

    def finish(self, format: str, asked: str | None) -> RowIndex:
        index = RowIndex(
            folder=self.folder, files=self.files, states=self.states, format=format, rows=self.rows,
            without_answer=self.without, fingerprint=self.digest.hexdigest(), repeated=_write_turns(self),
            blocks=tuple(self.blocks),
        )  # fmt: skip
        if asked is not None:
            value = {
                "format": FORMAT, "asked": asked, "row_format": format, "rows": index.rows,
                "without_answer": index.without_answer, "fingerprint": index.fingerprint, "repeated": index.repeated,
                "files": [[os.path.abspath(f), *state] for f, state in zip(self.files, self.states, strict=True)],
                "checksums": {p.name: _checksum(p) for p in sorted(self.folder.glob("*.bin"))},
                "blocks": [[b.file, b.begin, b.end, b.rows, b.checksum] for b in index.blocks],
            }  # fmt: skip
            atomic_write_json(self.folder / INDEX, value)
        return index


def _load(place: Path, reader: SourceReader, asked: str) -> RowIndex | None:
    """Return the index kept there if it is whole and the files look as they did when it was made."""
    with contextlib.suppress(UserError, OSError, KeyError, TypeError, ValueError, AttributeError):
        value = read_json(place / INDEX)
        states = _states(reader.files)
        files = [[os.path.abspath(f), *state] for f, state in zip(reader.files, states, strict=True)]
        if (value["format"], value["asked"], value["files"]) != (FORMAT, asked, files):
            return None
        if any(_checksum(place / name) != checksum for name, checksum in value["checksums"].items()):
            return None
        blocks, first = [], 0
        for file, begin, end, rows, checksum in value["blocks"]:
            blocks.append(Block(file, begin, end, first, rows, checksum))
            first += rows
        if value["without_answer"]:
            _tell_left_out(reader.source, value["without_answer"])
        return RowIndex(
            folder=place, files=reader.files, states=states, format=value["row_format"], rows=value["rows"],
            without_answer=value["without_answer"], fingerprint=value["fingerprint"], repeated=value["repeated"],
            blocks=tuple(blocks),
        )  # fmt: skip
    return None


def _build(reader: SourceReader, folder: Path, plain: bool, seen: Seen | None, asked: str | None = None) -> RowIndex:
    shutil.rmtree(folder, ignore_errors=True)
    if not plain:
        return _from_reader(reader, folder, seen)
    format = reader.format if reader.format != "auto" else _found_format(reader)
    writer = _Writer(folder, reader.files, seen)
    spans = [(number, *span) for number, file in enumerate(reader.files) for span in _spans(file)]
    try:
        with (
            open(folder / "keys.bin", "wb") as keys,
            open(folder / "places.bin", "wb") as places,
            BlockReader(format, sum(size for size, _ in writer.states)) as blocks,
        ):
            found = blocks.read((reader.files[number], begin, end) for number, begin, end in spans)
            for span, (rows, checksum) in zip(spans, found, strict=True):
                writer.add(keys, places, span, rows, checksum)
    except BrokenLineError:
        writer.rows = 0
    if not writer.rows:  # let the reader say what is wrong, and where
        for _ in reader:
            pass
        raise UserError(f"the data of {reader.source} changed while it was read; run the same command again")
    if writer.without:
        _tell_left_out(reader.source, writer.without)
    return writer.finish(format, asked)


def _tell_left_out(source: str, rows: int) -> None:
    log.warning("%s: %d rows without an answer are left out", source, rows)


def _found_format(reader: SourceReader) -> str:
    """Look at the first row."""
    first = SourceReader(reader.source)
    next(iter(first))
    return first.format


def _from_reader(reader: SourceReader, folder: Path, seen: Seen | None) -> RowIndex:
    """Write the rows of any source out as lines, with their index."""
    folder.mkdir(parents=True)
    lines = folder / "lines.jsonl"
    lines.touch()
    writer = _Writer(folder / "index", (lines,), seen)
    at = 0
    with (
        open(lines, "wb") as file,
        open(writer.folder / "keys.bin", "wb") as keys,
        open(writer.folder / "places.bin", "wb") as places,
    ):
        for group in _groups(reader):
            block = b"".join(line for line, _ in group)
            lengths = np.array([len(line) for line, _ in group], dtype=np.uint32)
            rows = BlockRows(
                np.array([key for _, key in group], dtype=np.uint64),
                (np.cumsum(lengths, dtype=np.int64) - lengths).astype(np.uint32), lengths, 0,
            )  # fmt: skip
            file.write(block)
            writer.add(keys, places, (0, at, at + len(block)), rows, block_checksum(block))
            at += len(block)
    writer.states = _states((lines,))
    return writer.finish(reader.format, None)


def _groups(reader: SourceReader) -> Iterator[list[tuple[bytes, int]]]:
    group: list[tuple[bytes, int]] = []
    size = 0
    for record, row in reader:
        line = record.line or json.dumps(record.value, ensure_ascii=False, default=str).encode()
        line = line if line.endswith(b"\n") else line + b"\n"
        group.append((line, row.key))
        size += len(line)
        if size >= BLOCK_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _spans(file: Path) -> Iterator[tuple[int, int]]:
    """Cut a file into blocks of whole lines."""
    with open(file, "rb") as handle:
        size = os.fstat(handle.fileno()).st_size
        begin = len(BOM) if handle.read(len(BOM)) == BOM else 0
        while begin < size:
            handle.seek(min(begin + BLOCK_BYTES, size))
            while (piece := handle.readline(1 << 20)) and not piece.endswith(b"\n"):
                pass
            end = handle.tell()
            yield begin, end
            begin = end


def _read(path: Path, dtype: str, first: int, count: int) -> npt.NDArray[Any]:
    found = np.fromfile(path, dtype=dtype, count=count, offset=first * np.dtype(dtype).itemsize)
    if len(found) != count:
        raise StaleIndexError
    return found


def _write_turns(writer: _Writer) -> bool:
    """Number equal rows in the order of the source, a range of keys at a time; tell whether there are any."""
    ranges = -(-writer.rows // (2 * KEYS_AT_ONCE))
    edges = [n * 2**64 // ranges for n in range(ranges + 1)] if ranges else []
    repeated = False
    path = writer.folder / "turns.bin"
    for low, high in itertools.pairwise(edges):
        keys_parts, place_parts = [], []
        for first in range(0, writer.rows, KEYS_AT_ONCE):
            keys = _read(writer.folder / "keys.bin", "<u8", first, min(KEYS_AT_ONCE, writer.rows - first))
            inside = np.flatnonzero((keys >= np.uint64(low)) & (keys <= np.uint64(high - 1)))
            keys_parts.append(keys[inside])
            place_parts.append(inside + first)
        keys = np.concatenate(keys_parts)
        ordered = np.sort(keys)
        if not (ordered[1:] == ordered[:-1]).any():
            continue
        places = np.concatenate(place_parts)
        order = np.argsort(keys, kind="stable")
        fresh = np.append(True, ordered[1:] != ordered[:-1])
        at = np.arange(len(keys))
        turn = (at - np.maximum.accumulate(np.where(fresh, at, 0))).astype("<u4")
        again = turn > 0
        if not repeated:
            repeated = True
            with open(path, "wb") as file:
                file.truncate(4 * writer.rows)
        found = np.zeros(len(keys), dtype="<u4")
        found[order[again]] = turn[again]
        changed = np.flatnonzero(found)
        _put(path, writer.rows, places[changed], found[changed])
    return repeated


def _put(path: Path, rows: int, places: npt.NDArray[np.int64], values: npt.NDArray[Any]) -> None:
    """Set single values of a file, at places that rise, a window at a time."""
    with open(path, "r+b") as file:
        for first in range(0, rows, KEYS_AT_ONCE):
            low, high = np.searchsorted(places, [first, first + KEYS_AT_ONCE])
            if low == high:
                continue
            window = _read(path, "<u4", first, min(KEYS_AT_ONCE, rows - first))
            window[places[low:high] - first] = values[low:high]
            file.seek(4 * first)
            file.write(window.tobytes())
            file.flush()


def _checksum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()


def _states(files: tuple[Path, ...]) -> tuple[tuple[int, int], ...]:
    """Return size and time of change of every file."""
    found = [os.stat(file) for file in files]
    return tuple((state.st_size, state.st_mtime_ns) for state in found)
