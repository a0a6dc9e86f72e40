"""Which rows a search has, by content: the keys of every domain's and reference set's rows, in one small file.

With it a run's seed and volumes say exactly which rows it trained on and how often, long after the token arrays are
gone and the domains have other names.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ideal_proxy.data import KEY_VERSION, TokenRows
from ideal_proxy.errors import UserError
from ideal_proxy.mixture import domain_order
from ideal_proxy.store import NO_ARRAYS, atomic_write_bytes

Keys = NDArray[np.uint64]

RECORD = "rows.npz"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RowRecord:
    """The rows of a search by content; one entry a domain or a reference set, in the search's order."""

    domains: tuple[str, ...]  # names
    pools: tuple[Keys, ...]  # keys of the rows that mixtures draw from, in their order
    reserved: tuple[Keys, ...]  # keys of the rows kept for the warm start
    available: tuple[int, ...]  # how many rows of each pool a proxy sees, the first of its permutation
    fraction: float  # φ, the share of the full-size volumes that a proxy draws
    references: tuple[str, ...]  # names of the reference sets, `search-0`, …, `verify-0`, …
    reference_keys: tuple[Keys, ...]  # keys of their rows, in their order
    reference_groups: tuple[Keys, ...]  # what the rows were split by; rows of equal prompt have the same
    key_version: int = KEY_VERSION  # of the row keys

    def whole(self, domain: int) -> Keys:
        """All rows of a domain, reserved ones too."""
        return np.concatenate([self.pools[domain], self.reserved[domain]])

    def half(self, name: str) -> Keys:
        """The distinct split groups of one half, `search` or `verify`, over all capabilities."""
        parts = [g for r, g in zip(self.references, self.reference_groups, strict=True) if r.startswith(f"{name}-")]
        return np.unique(np.concatenate(parts)) if parts else np.zeros(0, dtype=np.uint64)

    def times_drawn(self, seed: int, domain: int, rows: int) -> NDArray[np.int64]:
        """Say how often a run of so many rows drew each row of a domain's pool."""
        order = domain_order(seed, self.domains[domain], self.pools[domain])[: self.available[domain]]
        times = np.zeros(len(self.pools[domain]), dtype=np.int64)
        passes, rest = divmod(rows, max(len(order), 1))
        times[order] = passes
        times[order[:rest]] += 1
        return times


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Heritage:
    """What the preparation of a search takes from earlier ones."""

    folder: Path  # where it lies: `tokenizer/` and, for scratch proxies, `warm.safetensors`
    warm: str  # SHA-256 of these weights; "" where there are none
    reserved: Keys  # keys of the rows that they were trained on, which no mixture may draw
    search: Keys  # split groups of reference rows that a search has seen
    verify: Keys  # split groups of those that only a check saw
    size: str  # of the scratch proxies that the warm start is of; "" for pretrained ones

    def warm_of(self, size: str) -> str:
        """The warm start that proxies of a size take over; "" where they make one of their own."""
        return self.warm if self.size == size else ""

    def search_rows(self, groups: Keys, drawn: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Mark the search half of some reference rows: rows that were split before stay where they were."""
        seen = np.isin(groups, self.search)
        return seen | (drawn & ~np.isin(groups, self.verify))


def record_of(
    domains: Sequence[str], pools: Sequence[TokenRows], reserved: Sequence[TokenRows], available: Sequence[int],
    fraction: float, references: Sequence[str], reference_rows: Sequence[TokenRows],
) -> RowRecord:  # fmt: skip
    """Take the keys of a search's rows."""
    kept = reserved or [rows.select([]) for rows in pools]
    return RowRecord(
        domains=tuple(domains), pools=_keys(pools), reserved=_keys(kept), available=tuple(available),
        fraction=fraction, references=tuple(references), reference_keys=_keys(reference_rows),
        reference_groups=tuple(np.array(rows.split_keys, dtype=np.uint64) for rows in reference_rows),
    )  # fmt: skip


def _keys(sets: Sequence[TokenRows]) -> tuple[Keys, ...]:
    return tuple(np.array(rows.keys, dtype=np.uint64) for rows in sets)


def save_record(path: Path, record: RowRecord) -> None:
    """Write a record, whole or not at all; one that stands as it should stays."""
    arrays: dict[str, Any] = {
        "domains": np.array(record.domains), "available": np.array(record.available, dtype=np.int64),
        "fraction": np.array(record.fraction), "references": np.array(record.references),
        "key_version": np.array(record.key_version),
    }  # fmt: skip
    for name in ("pools", "reserved", "reference_keys", "reference_groups"):
        arrays |= {f"{name}_{i}": keys for i, keys in enumerate(getattr(record, name))}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    with contextlib.suppress(OSError):
        if path.read_bytes() == buffer.getvalue():
            return
    atomic_write_bytes(path, buffer.getvalue())


def load_record(path: Path) -> RowRecord:
    """Read a record."""
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as found:
            sets = {
                name: tuple(found[f"{name}_{i}"] for i in range(len(found[of])))
                for name, of in (("pools", "domains"), ("reserved", "domains"), ("reference_keys", "references"),
                                 ("reference_groups", "references"))
            }  # fmt: skip
            return RowRecord(
                domains=tuple(map(str, found["domains"])), available=tuple(map(int, found["available"])),
                fraction=float(found["fraction"]), references=tuple(map(str, found["references"])),
                key_version=int(found["key_version"]), **sets,
            )  # fmt: skip
    except NO_ARRAYS as error:
        raise UserError(f"{path} cannot be read ({error}); restore it, or search anew") from error
