"""Put drawn rows in training order in memory that does not grow with them: spread over buckets, then sort each bucket.

The order is by a 64-bit hash, so a bucket is a range of hashes and all are about equally full. Sources are read once,
block by block; each block's lines are written to a spool, bucket by bucket. Then bucket after bucket is read,
sorted and handed on. Every byte is read and written twice, always in long stretches, and no file is read at random.
Where the output is one file of lines as they are, it is its own spool: the index tells how many bytes each bucket will
have, so a bucket's lines are put where they will stand, and put in order there. Half as many new pages and half the
room on the disk are what that saves. Else the spool is cut into files of neighbouring buckets, and each is emptied as
soon as it has been read.

The spool holds a row's order beside its line: hash, key, pass and occurrence, by which equal hashes are told apart
exactly as `mixture.training_order` does it.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as arrow
import pyarrow.compute as compute

from ideal_proxy.mixture.block_reader import in_order
from ideal_proxy.mixture.draws import order_hashes, training_hashes
from ideal_proxy.mixture.line_keys import chat_lines
from ideal_proxy.mixture.row_index import BLOCK_BYTES, Block, RowIndex, StaleIndexError

BUCKET_BYTES = 1 << 24
MOST_BUCKETS = 1024
MOST_FILES = 32  # of the spool
HALF = 1 << 16
ORDER = np.dtype([("hash", "<u8"), ("key", "<u8"), ("turn", "<u4"), ("occurrence", "<u4"), ("length", "<u4")])

Keys = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Part:
    """A domain's share of the mixture.

    Attributes:
        number: of the domain among those drawn.
        name: of the domain.
        index: its rows.
        rows: rows to draw, repeats included.
        last: (hash, key, occurrence) of the last row of the last, incomplete pass; None where there is none.
    """

    number: int
    name: str
    index: RowIndex
    rows: int
    last: tuple[int, int, int] | None

    def drawn(self, seed: int, first: int, count: int) -> Iterator[tuple[int, Ints, Keys, Keys, Keys]]:
        """Say which of some rows are drawn, pass by pass.

        Args:
            seed: the mixture's seed.
            first: number of the first row.
            count: how many rows.

        Yields:
            tuple: the pass; places among the rows (n,); their keys, occurrences and hashes of the training order (n,).
        """
        keys, occurrence = self.index.keys(first, count), self.index.turns(first, count)
        places = np.arange(count)
        whole = self.rows // self.index.rows
        for turn in range(whole + (self.last is not None)):
            if turn == whole and self.last is not None:
                places = np.flatnonzero(
                    _up_to(order_hashes(seed, self.name, keys, occurrence), keys, occurrence, self.last)
                )
                keys, occurrence = keys[places], occurrence[places]
            passes = np.full(len(keys), turn, dtype=np.uint64)
            yield turn, places, keys, occurrence, training_hashes(seed, self.name, keys, occurrence, passes)


def part_of(number: int, seed: int, name: str, index: RowIndex, rows: int) -> Part:
    """Find which rows a volume draws: every row as often as it goes round, and the first of the permutation once more.

    Args:
        number: of the domain among those drawn.
        seed: the mixture's seed.
        name: of the domain.
        index: its rows.
        rows: rows to draw.

    Returns:
        Part: what `mixture.draw` draws of `mixture.domain_order`, without holding either.
    """
    rest = rows % index.rows
    if not rest:
        return Part(number, name, index, rows, None)
    counts = np.zeros(HALF, dtype=np.int64)
    for first, count in index.parts():
        hashes = order_hashes(seed, name, index.keys(first, count), index.turns(first, count))
        counts += np.bincount((hashes >> np.uint64(48)).astype(np.int64), minlength=HALF)
    ranges = np.cumsum(counts)
    inside = int(np.searchsorted(ranges, rest))  # the range of hashes that the last row lies in
    before = int(ranges[inside - 1]) if inside else 0
    found = []
    for first, count in index.parts():
        keys, occurrence = index.keys(first, count), index.turns(first, count)
        hashes = order_hashes(seed, name, keys, occurrence)
        here = np.flatnonzero(hashes >> np.uint64(48) == np.uint64(inside))
        found.append(np.stack([hashes[here], keys[here], occurrence[here]]))
    hashes, keys, occurrence = np.concatenate(found, axis=1)
    last = np.lexsort((occurrence, keys, hashes))[rest - before - 1]
    return Part(number, name, index, rows, (int(hashes[last]), int(keys[last]), int(occurrence[last])))


class Sorted(NamedTuple):
    """Some rows in training order.

    Attributes:
        lines: their bytes, one after the other.
        ends: (n,) where each ends.
    """

    lines: memoryview
    ends: Ints


class Shuffle:
    """Rows on their way from the order of their sources to that of training.

    Args:
        folder: a folder for the spool; it must be there.
        parts: the domains' shares.
        seed: the mixture's seed.
        chat: rewrite every row as `messages`.
        threads: how many blocks are worked on side by side.
        target: the file that will hold all rows and nothing else, to spread them in; what is handed on is then to be
            written over it from its beginning. None: they are spread in a spool.
    """

    def __init__(
        self, folder: Path, parts: list[Part], seed: int, *, chat: bool, threads: int, target: Path | None = None
    ) -> None:
        self.parts, self.seed, self.chat, self.threads = parts, seed, chat, threads
        size = sum(part.rows * part.index.bytes_a_row for part in parts)
        self.buckets = int(min(max(size // BUCKET_BYTES, 1), MOST_BUCKETS))
        bounds = np.arange(self.buckets + 1) * HALF // self.buckets  # of the first 16 bits of a hash
        self._edges = bounds[1:-1].astype(np.uint64) << np.uint64(48)
        self._wanted = (0, self.buckets)
        self._lock = threading.Lock()
        # A stretch is what lies together, in the order of the blocks: a file of the spool, or a bucket in its place.
        stretches = min(self.buckets, MOST_FILES) if target is None else self.buckets
        self._stretch_of = np.arange(self.buckets) * stretches // self.buckets
        self._cuts = np.searchsorted(self._stretch_of, np.arange(stretches + 1))  # first bucket of each, and the end
        self._ends, self._order_end = np.zeros(stretches, dtype=np.int64), 0
        self._full: Ints | None = None  # what `_ends` will be, where that is known
        if target is not None:
            found = np.concatenate([[0], np.cumsum(self._bytes_by_hash())])[bounds]
            self._ends, self._full = found[:-1].copy(), found[1:]
        paths = [folder / f"rows-{n}.spool" for n in range(stretches)] if target is None else [target]
        self._rows = [open(path, "wb", buffering=0) for path in paths]  # noqa: SIM115 (closed by `close`)
        self._order = open(folder / "order.spool", "wb", buffering=0)  # noqa: SIM115
        self._chunks: list[_Chunk] = []

    @property
    def in_place(self) -> bool:
        """The rows wait in the file that they will be written to."""
        return self._full is not None

    def close(self) -> None:
        """Close the spool."""
        for file in (*self._rows, self._order):
            file.close()

    def _blocks(self) -> Iterator[tuple[Part, Block]]:
        """Go through the blocks that have rows, in the order of the sources."""
        return ((part, block) for part in self.parts for block in part.index.blocks if block.rows)

    def _bytes_by_hash(self) -> Ints:
        """Count the bytes of the drawn rows by the first 16 bits of their hash, without reading a line."""

        def count(item: tuple[Part, Block]) -> tuple[Keys, Ints]:
            part, block = item
            lengths = part.index.lengths(block)
            drawn = [(h >> np.uint64(48), lengths[p]) for _, p, *_, h in part.drawn(self.seed, block.first, block.rows)]
            return np.concatenate([at for at, _ in drawn]), np.concatenate([size for _, size in drawn])

        counts = np.zeros(HALF, dtype=np.int64)
        with ThreadPoolExecutor(self.threads) as pool:
            for at, sizes in in_order(pool, count, self._blocks(), 2 * self.threads):
                counts += np.bincount(at.astype(np.int64), weights=sizes, minlength=HALF).astype(np.int64)
        return counts

    def counts(self) -> Ints:
        """Count the drawn rows of every bucket, without reading a line.

        Returns:
            array (buckets,) int64.
        """
        counts = np.zeros(self.buckets, dtype=np.int64)
        for part in self.parts:
            for first, count in part.index.parts():
                for *_, hashes in part.drawn(self.seed, first, count):
                    bucket = np.searchsorted(self._edges, hashes, side="right")
                    counts += np.bincount(bucket, minlength=self.buckets)
        return counts

    def want(self, first: int, last: int) -> None:
        """Leave out all but some buckets.

        Args:
            first: the first wanted.
            last: the one after the last.
        """
        self._wanted = (first, last)

    def spread(self) -> Iterator[int]:
        """Read the sources and spread their drawn rows over the buckets.

        Yields:
            int: rows spread so far.

        Raises:
            StaleIndexError: lines were longer or shorter than the index says.
        """
        done = 0
        with ThreadPoolExecutor(self.threads) as pool:
            for rows in in_order(pool, lambda item: self._spread_block(*item), self._blocks(), 2 * self.threads):
                done += rows
                yield done
        if self._full is not None and (self._ends != self._full).any():
            raise StaleIndexError

    def buckets_in_order(self) -> Iterator[Sorted]:
        """Hand on the rows of the wanted buckets in training order.

        Yields:
            Sorted: a bucket's rows.
        """
        with ThreadPoolExecutor(self.threads) as pool:
            buckets = range(*self._wanted)
            for bucket, rows in zip(buckets, in_order(pool, self._sort_bucket, buckets, self.threads), strict=True):
                stretch = int(self._stretch_of[bucket])
                if not self.in_place and bucket + 1 == self._cuts[stretch + 1]:
                    self._rows[stretch].truncate(0)
                yield rows

    def _spread_block(self, part: Part, block: Block) -> int:
        total = 0
        whole = part.rows // part.index.rows
        at_once = max(1, BLOCK_BYTES // max(block.end - block.begin, 1))  # passes over a small block
        waiting: list[tuple[Ints, Any]] = []
        lines: arrow.LargeBinaryArray | None = None
        lengths = np.zeros(0, dtype=np.int64)
        low, high = self._wanted
        for turn, places, keys, occurrence, hashes in part.drawn(self.seed, block.first, block.rows):
            if (low, high) != (0, self.buckets):
                bucket = np.searchsorted(self._edges, hashes, side="right")
                chosen = np.flatnonzero((bucket >= low) & (bucket < high))
                places, keys, occurrence, hashes = places[chosen], keys[chosen], occurrence[chosen], hashes[chosen]
            if len(places):
                if lines is None:
                    lines, lengths = self._lines(part, block)
                order = np.empty(len(places), dtype=ORDER)
                order["hash"], order["key"], order["turn"], order["occurrence"] = hashes, keys, turn, occurrence
                order["length"] = lengths[places]
                waiting.append((places, order))
                total += len(places)
            if waiting and (len(waiting) == at_once or turn >= whole - (part.last is None)):
                self._write(
                    part, lines, np.concatenate([w[0] for w in waiting]), np.concatenate([w[1] for w in waiting])
                )
                waiting = []
        return total

    def _lines(self, part: Part, block: Block) -> tuple[arrow.LargeBinaryArray, Ints]:
        """Read a block's rows as an array of lines, and their lengths."""
        content, places = part.index.read(block), part.index.places(block)
        if self.chat:
            offsets = np.zeros(block.rows + 1, dtype=np.int64)
            made = chat_lines(content, part.index.format)
            np.cumsum([len(line) for line in made], out=offsets[1:])
            content = b"".join(made)
            array = arrow.LargeBinaryArray.from_buffers(
                arrow.large_binary(), block.rows, [None, arrow.py_buffer(offsets), arrow.py_buffer(content)]
            )
            return array, np.diff(offsets)
        lines = arrow.LargeBinaryArray.from_buffers(  # every second element is what lies between two rows
            arrow.large_binary(), 2 * block.rows - 1,
            [None, arrow.py_buffer(places.reshape(-1)), arrow.py_buffer(content)],
        )  # fmt: skip
        return lines, places[:, 1] - places[:, 0]

    def _write(self, part: Part, lines: Any, places: Ints, order: Any) -> None:
        """Write drawn rows of one block to the spool, by hash."""
        by_hash = np.argsort(order["hash"])
        order = order[by_hash]
        content = _taken(lines, places[by_hash] * (1 if self.chat else 2))
        rows_at = np.zeros(self.buckets + 1, dtype=np.int64)
        rows_at[1:-1] = np.searchsorted(order["hash"], self._edges)
        rows_at[-1] = len(order)
        bytes_at = np.concatenate([[0], np.cumsum(order["length"], dtype=np.int64)])[rows_at]
        with self._lock:
            begins, order_begin = self._ends.copy(), self._order_end
            self._ends += np.diff(bytes_at[self._cuts])
            self._order_end += order.nbytes
            shifts = begins - bytes_at[self._cuts[:-1]]
            self._chunks.append(_Chunk(part.number, order_begin, shifts, rows_at, bytes_at))
        cuts = bytes_at[self._cuts].tolist()
        for stretch, (begin, first, last) in enumerate(zip(begins.tolist(), cuts[:-1], cuts[1:], strict=True)):
            if first < last:
                _write_at(self._file(stretch).fileno(), content[first:last], begin)
        _write_at(self._order.fileno(), memoryview(order).cast("B"), order_begin)

    def _file(self, stretch: int) -> io.FileIO:
        return self._rows[0 if self.in_place else stretch]

    def _sort_bucket(self, bucket: int) -> Sorted:
        rows = np.array([c.rows_at[bucket + 1] - c.rows_at[bucket] for c in self._chunks], dtype=np.int64)
        sizes = np.array([c.bytes_at[bucket + 1] - c.bytes_at[bucket] for c in self._chunks], dtype=np.int64)
        order = np.empty(rows.sum(), dtype=ORDER)
        content = np.empty(sizes.sum(), dtype=np.uint8)
        order_view, content_view = order.view(np.uint8).data, content.data
        order_at = content_at = 0
        stretch = int(self._stretch_of[bucket])
        with io.FileIO(self._file(stretch).name) as rows_file, io.FileIO(self._order.name) as order_file:
            for chunk, count, size in zip(self._chunks, rows.tolist(), sizes.tolist(), strict=True):
                if count:
                    begin = chunk.order_begin + int(chunk.rows_at[bucket]) * ORDER.itemsize
                    _read_at(order_file, order_view[order_at : order_at + count * ORDER.itemsize], begin)
                    _read_at(
                        rows_file,
                        content_view[content_at : content_at + size],
                        int(chunk.shifts[stretch] + chunk.bytes_at[bucket]),
                    )
                    order_at += count * ORDER.itemsize
                    content_at += size
        hashes = np.ascontiguousarray(order["hash"])
        sequence = np.argsort(hashes)
        ordered = hashes[sequence]
        if (ordered[1:] == ordered[:-1]).any():
            domain = np.repeat([chunk.domain for chunk in self._chunks], rows)
            sequence = np.lexsort((domain, order["occurrence"], order["turn"], order["key"], hashes))
        offsets = np.concatenate([[0], np.cumsum(order["length"], dtype=np.int64)])
        lines = arrow.LargeBinaryArray.from_buffers(
            arrow.large_binary(), len(order), [None, arrow.py_buffer(offsets), arrow.py_buffer(content)]
        )
        return Sorted(_taken(lines, sequence), np.cumsum(order["length"][sequence], dtype=np.int64))


class _Chunk(NamedTuple):
    """Rows of one block, bucket after bucket, where they wait to be put in order.

    Attributes:
        domain: its number.
        order_begin: where their order begins.
        shifts: for each stretch, what is added to a place among the block's bytes for its place in the file.
        rows_at: rows before each bucket.
        bytes_at: bytes before each bucket.
    """

    domain: int
    order_begin: int
    shifts: Ints
    rows_at: Ints
    bytes_at: Ints


def _taken(lines: Any, places: Ints) -> memoryview:
    """Lay chosen lines end to end."""
    # Not `arrow.array`, which imports pandas.
    indices = arrow.Array.from_buffers(arrow.int64(), len(places), [None, arrow.py_buffer(places)])
    taken = compute.take(lines, indices)
    _, offsets, content = taken.buffers()
    if content is None:
        return memoryview(b"")
    ends = np.frombuffer(offsets, dtype=np.int64)[taken.offset : taken.offset + len(taken) + 1]
    return memoryview(content)[int(ends[0]) : int(ends[-1])]


def _up_to(hashes: Keys, keys: Keys, occurrence: Keys, last: tuple[int, int, int]) -> npt.NDArray[np.bool_]:
    """Mark the rows that come no later than one row in the order of (hash, key, occurrence)."""
    last_hash, last_key, last_occurrence = (np.uint64(part) for part in last)
    mark: npt.NDArray[np.bool_] = hashes <= last_hash
    equal = np.flatnonzero(hashes == last_hash)
    key, which = keys[equal], occurrence[equal]
    mark[equal] = (key < last_key) | ((key == last_key) & (which <= last_occurrence))
    return mark


def _write_at(file: int, content: Any, begin: int) -> None:
    view = memoryview(content)
    while view:
        written = os.pwrite(file, view, begin)
        view, begin = view[written:], begin + written


def _read_at(file: io.FileIO, into: memoryview, begin: int) -> None:
    file.seek(begin)
    while into:
        count = file.readinto(into)
        if not count:
            raise OSError("the spool was cut off")
        into = into[count:]
