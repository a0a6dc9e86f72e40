"""What changed between an earlier search and a new one, told by the content of rows and never by names.

Legend: O old domains, D new domains, R runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ideal_proxy.pipeline.earlier_runs import Package
from ideal_proxy.pipeline.row_record import Keys, RowRecord

Array = NDArray[np.float64]

FEW = 0.02  # of a domain's rows: so few make no relation between two domains, and have no effect of their own
Kind = Literal["same", "renamed", "grown", "filtered", "refilled", "split", "merged", "added", "removed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What became of some domains."""

    kind: Kind  # `refilled` is grown and filtered at once
    old: tuple[str, ...] = ()  # their names before
    new: tuple[str, ...] = ()  # their names now
    kept: int = 0  # rows that both have
    gained: int = 0  # rows that are new
    lost: int = 0  # rows that are gone

    def __str__(self) -> str:
        old, new = " and ".join(self.old), " and ".join(self.new)
        more = [f"{self.gained:,} rows came"] * (self.gained > 0) + [f"{self.lost:,} went"] * (self.lost > 0)
        rows = f"{self.kept:,} rows stayed" + "".join(f", {text}" for text in more)
        if self.kind == "same":
            return f"{new}: the same rows"
        if self.kind == "renamed":
            return f"{new}: the rows of {old} under another name" + (f" ({rows})" if more else "")
        if self.kind in {"grown", "filtered", "refilled"}:
            return f"{new}{f' (was {old})' * (old != new)}: {self.kind}, {rows}"
        if self.kind == "split":
            return f"{old} was split into {new}: {rows}"
        if self.kind == "merged":
            return f"{old} were merged into {new}: {rows}"
        return f"{new}: added, {self.gained:,} rows" if self.kind == "added" else f"{old}: removed, {self.lost:,} rows"


def compare_domains(record: RowRecord, names: Sequence[str], keys: Sequence[Keys]) -> list[Change]:
    """Relate the domains of an earlier search to new ones: D names and the keys of their rows."""
    old = [np.unique(record.whole(i)) for i in range(len(record.domains))]
    new = [np.unique(k) for k in keys]
    shared = np.array([[len(np.intersect1d(a, b, assume_unique=True)) for b in new] for a in old])
    size_O, size_D = (np.array([max(len(k), 1) for k in part]) for part in (old, new))
    related = (shared > FEW * size_O[:, None]) | (shared > FEW * size_D)
    changes: list[Change] = []
    done: set[int] = set()
    for d, name in enumerate(names):
        if d in done:
            continue
        parents = np.flatnonzero(related[:, d])
        if not len(parents):
            changes.append(Change(kind="added", new=(name,), gained=int(size_D[d])))
            continue
        children = np.flatnonzero(related[parents].any(axis=0))
        kept = int(shared[np.ix_(parents, children)].sum())
        lost, gained = int(size_O[parents].sum()) - kept, int(size_D[children].sum()) - kept
        whole = {"kept": kept, "lost": max(lost, 0), "gained": max(gained, 0)}
        before = tuple(record.domains[i] for i in parents)
        if len(children) > 1:
            done |= set(children.tolist())
            changes.append(Change(kind="split", old=before, new=tuple(names[c] for c in children.tolist()), **whole))
        elif len(parents) > 1:
            changes.append(Change(kind="merged", old=before, new=(name,), **whole))
        else:
            grown, gone = gained > FEW * size_O[parents[0]], lost > FEW * size_O[parents[0]]
            kind: Kind = "refilled" if grown and gone else "grown" if grown else "filtered" if gone else "same"
            if kind == "same" and before != (name,):
                kind = "renamed"
            changes.append(Change(kind=kind, old=before, new=(name,), **whole))
    for i in np.flatnonzero(~related.any(axis=1)):
        changes.append(Change(kind="removed", old=(record.domains[i],), lost=int(size_O[i])))
    return changes


def data_changed(changes: Sequence[Change]) -> bool:
    """Whether an earlier run's volumes mean something else now."""
    return any(change.kind not in {"same", "renamed"} for change in changes)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Moved:
    """Earlier runs in the volumes of a new search."""

    volumes: Array  # full-size rows of the new domains, shape (R, D)
    retired: tuple[str, ...]  # names of domains that rows of those runs belonged to and that are no more
    retired_volumes: Array  # rows of these, shape (R, K)
    retired_available: Array  # rows that they had, shape (K,)
    kept: float  # share of all drawn rows that belong to a new domain


def move_runs(package: Package, keys: Sequence[Keys]) -> Moved:
    """Count the rows that earlier runs drew by the new domain that each belongs to."""
    record, runs = package.record, package.runs
    new = [np.unique(k) for k in keys]
    D = len(new)
    volumes, names, gone, available = np.zeros((len(runs), D)), [], [], []
    for i, name in enumerate(record.domains):
        whole = _places(record.whole(i), new)
        place = whole[: len(record.pools[i])]  # of the rows that mixtures draw from
        if 0 < (left := int((whole < 0).sum())) <= FEW * len(whole) and (whole >= 0).any():
            place = np.where(place < 0, np.bincount(whole[whole >= 0], minlength=D).argmax(), place)
            left = 0
        drawn = np.zeros((len(runs), D + 1))
        for r, run in enumerate(runs):
            if len(np.unique(place)) == 1:  # the whole domain went one way: no row need be looked at
                drawn[r, place[0]] = run.rows[i]
            else:
                times = record.times_drawn(run.seed, i, run.rows[i])
                drawn[r] = np.bincount(np.where(place < 0, D, place), weights=times, minlength=D + 1)
        volumes += drawn[:, :D]
        if left:
            names.append(name)
            gone.append(drawn[:, D])
            available.append(left)
    total = volumes.sum() + np.sum(gone)
    return Moved(
        volumes=volumes / record.fraction, retired=tuple(names),
        retired_volumes=np.array(gone).reshape(len(names), len(runs)).T / record.fraction,
        retired_available=np.array(available, dtype=float), kept=float(volumes.sum() / total) if total else 0.0,
    )  # fmt: skip


def _places(keys: Keys, new: Sequence[Keys]) -> NDArray[np.int64]:
    """Number the new domain of each row, -1 for none; of several the one that has most rows of this old domain."""
    inside = np.array([np.isin(keys, k) for k in new])
    order = np.argsort(-inside.sum(axis=1), kind="stable")
    first = inside[order].argmax(axis=0)
    return np.where(inside.any(axis=0), order[first], -1)
