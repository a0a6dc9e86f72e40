"""Reference rows that stand in a domain almost as they are: MinHash by `rensa`, and each candidate compared in full.

A text is the set of its windows of eight bytes. Two texts are near-duplicates where they share at least 0.8 of the
windows of both, which for a row of 300 letters is up to three changed words. What many reference rows share, such as
one instruction for all of them, says nothing and is left out of the comparison.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIMILAR = 0.8  # shared windows over all windows of two texts (Jaccard)
WINDOW = 8  # bytes, so that a window is one 64-bit number
LEAST_WINDOWS = 16  # of its own that a reference row must have to be compared
COMMON_ROWS, COMMON_SHARE = (
    20,
    0.05,
)  # a window in as many reference rows of a set, and in that share of them, is common
COUNTED_ROWS = 2_000  # reference rows of a set by which common windows are told
PERMUTATIONS, BANDS, SEED = 128, 16, 1  # finds 95 % of the pairs at 0.8, over 99.9 % from 0.9 on
BATCH_BYTES = 1 << 20
MOST_CANDIDATES = 8  # reference rows that one row is compared with in full, those most alike by MinHash first
TO_INSTALL = "pip install 'ideal-proxy[near-duplicates]'"

Windows = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class NearRow:
    """The row of a domain that is most like a reference row, and how like it is (Jaccard)."""

    where: str
    similarity: float


def can_look() -> bool:
    """Whether the library that finds near-duplicates is installed."""
    return importlib.util.find_spec("rensa") is not None


class NearDuplicateFinder:
    """Takes the texts of domains one by one and keeps the reference rows that are like one of them."""

    def __init__(self, references: Mapping[str, Sequence[str]]) -> None:
        import rensa

        self.found: dict[tuple[str, int, str], NearRow] = {}  # by reference set, number of its row, and domain
        self._rensa: Any = rensa
        self._texts = [text for texts in references.values() for text in texts]
        self._owner = [(name, n) for name, texts in references.items() for n in range(len(texts))]
        self._common = {name: _common(texts) for name, texts in references.items()}
        self._own = functools.lru_cache(maxsize=10_000)(self._windows_of_reference)
        self._index: Any = rensa.RMinHashLSH(SIMILAR, PERMUTATIONS, BANDS)
        self._bands: dict[tuple[int, bytes], list[int]] = {}
        self._digests = np.zeros((0, PERMUTATIONS), dtype=np.uint32)
        self._waiting: list[tuple[str, str, bytes]] = []
        self._bytes = 0
        parts = []
        for first, last in _batches([len(text) for text in self._texts]):
            matrix = self._matrix(*windows([text.encode() for text in self._texts[first:last]]))
            # Twice, since the library tells rows of which two keys are found.
            self._index.insert_matrix(matrix, 2 * first)
            self._index.insert_matrix(matrix, 2 * first + (last - first))
            parts.append(np.array(matrix.to_rows(), dtype=np.uint32))
        if parts:
            self._digests = np.concatenate(parts)
        for n, digest in enumerate(self._digests):
            for band in _bands(digest):
                self._bands.setdefault(band, []).append(n)

    def add(self, domain: str, where: str, text: str) -> None:
        """Look at one row of a domain."""
        said = text.encode()
        self._waiting.append((domain, where, said))
        self._bytes += len(said)
        if self._bytes >= BATCH_BYTES:
            self.finish()

    def finish(self) -> None:
        """Compare the rows that wait."""
        if not self._waiting or not self._texts:
            return
        window_T, offsets = windows([said for _, _, said in self._waiting])
        flags = np.flatnonzero(self._index.query_duplicate_flags_matrix(self._matrix(window_T, offsets)))
        if len(flags):
            parts = [window_T[offsets[n] : offsets[n + 1]] for n in flags.tolist()]
            ends = np.concatenate([[0], np.cumsum([len(part) for part in parts])])
            digests = np.array(self._matrix(np.concatenate(parts), ends).to_rows(), dtype=np.uint32)
            for n, part, digest in zip(flags.tolist(), parts, digests, strict=True):
                self._compare(*self._waiting[n][:2], np.unique(part), digest)
        self._waiting, self._bytes = [], 0

    def _compare(self, domain: str, where: str, row: Windows, digest: NDArray[np.uint32]) -> None:
        """Compare a row with the reference rows that share a band of its digest."""
        candidates = sorted({n for band in _bands(digest) for n in self._bands.get(band, ())})
        if len(candidates) > MOST_CANDIDATES:
            alike = (self._digests[candidates] == digest).mean(axis=1)
            candidates = [candidates[k] for k in np.argsort(-alike, kind="stable")[:MOST_CANDIDATES]]
        for n in candidates:
            name, number = self._owner[n]
            own = self._own(n)
            if len(own) < LEAST_WINDOWS:
                continue
            rest = np.setdiff1d(row, self._common[name], assume_unique=True)
            shared = len(np.intersect1d(own, rest, assume_unique=True))
            similarity = shared / (len(own) + len(rest) - shared)
            best = self.found.get((name, number, domain))
            if similarity >= SIMILAR and (best is None or similarity > best.similarity):
                self.found[name, number, domain] = NearRow(where, similarity)

    def _windows_of_reference(self, n: int) -> Windows:
        own = np.unique(windows([self._texts[n].encode()])[0])
        return np.setdiff1d(own, self._common[self._owner[n][0]], assume_unique=True)

    def _matrix(self, window_T: Windows, offsets: NDArray[np.int64]) -> Any:
        digests = self._rensa.RMinHash.digest_matrix_from_flat_token_hashes
        return digests(window_T, offsets.astype(np.uint64), PERMUTATIONS, SEED)


def windows(texts: Sequence[bytes]) -> tuple[Windows, NDArray[np.int64]]:
    """Cut texts into windows of eight bytes; those of text n are [offsets[n]:offsets[n + 1]], some of them twice."""
    texts = [text if len(text) >= WINDOW else text.ljust(WINDOW) for text in texts]
    lengths = np.array([len(text) for text in texts], dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    whole = b"".join(texts) + bytes(2 * WINDOW)
    window_T = np.empty(len(whole) // WINDOW * WINDOW - WINDOW, dtype="<u8")
    for shift in range(WINDOW):
        window_T[shift::WINDOW] = np.frombuffer(whole, dtype="<u8", offset=shift, count=len(window_T) // WINDOW)
    # The last windows of a text reach into the next one: a text that says its first window twice is the same set.
    last = offsets[1:, None] - np.arange(1, WINDOW)
    window_T[last] = window_T[offsets[:-1], None]
    return window_T[: offsets[-1]], offsets


def _common(texts: Sequence[str]) -> Windows:
    """Find the windows that many texts share."""
    step = max(len(texts) // COUNTED_ROWS, 1)
    some = [np.unique(windows([text.encode()])[0]) for text in texts[::step]]
    if not some:
        return np.zeros(0, dtype=np.uint64)
    found, counts = np.unique(np.concatenate(some), return_counts=True)
    return found[counts >= max(COMMON_ROWS, COMMON_SHARE * len(some))]


def _bands(digest: NDArray[np.uint32]) -> list[tuple[int, bytes]]:
    rows = PERMUTATIONS // BANDS
    return [(band, digest[band * rows : (band + 1) * rows].tobytes()) for band in range(BANDS)]


def _batches(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Divide texts into stretches of about equal size in memory."""
    ends, size = [0], 0
    for n, length in enumerate(lengths):
        size += length
        if size >= BATCH_BYTES:
            ends.append(n + 1)
            size = 0
    if ends[-1] < len(lengths):
        ends.append(len(lengths))
    return list(itertools.pairwise(ends))
