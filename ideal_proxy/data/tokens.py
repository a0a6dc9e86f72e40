"""Token arrays with label masks, their cache on disk, and batches.

Shapes: N rows, T tokens of all rows laid end to end, B rows of a batch.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ideal_proxy.errors import UserError
from ideal_proxy.store import move

log = logging.getLogger(__name__)

Ints = npt.NDArray[np.int64]
CACHE_FORMAT = "tokens/1"
COUNTED_ROWS = 16_384
COUNTS: dict[str, Any] = {
    "truncated": 0, "dropped": 0, "answers_cut": 0, "refused": 0, "supervised_cut": 0, "told": {},
}  # fmt: skip
IGNORED = -100  # label of a position that carries no loss, as PyTorch's cross-entropy has it


@dataclass(frozen=True, slots=True)
class TokenRows:
    """Tokenised rows laid end to end, without padding."""

    ids: npt.NDArray[np.int32]  # (T,) int32 token ids
    # (T,) bool, True where the token carries loss; never a row's first token, which nothing predicts
    supervised: npt.NDArray[np.bool_]
    offsets: Ints  # (N+1,) int64; row n is ids[offsets[n]:offsets[n+1]]
    keys: npt.NDArray[np.uint64]  # (N,) uint64 row keys
    source_index: Ints  # (N,) int64 index of the row in its source
    truncated: int = 0  # rows that lost tokens because they did not fit
    dropped: int = 0  # rows left out because no token of theirs carries loss
    answers_cut: int = 0  # of the truncated, rows that lost tokens of an answer
    refused: int = 0  # rows left out because the chat template refuses them
    supervised_cut: int = 0  # tokens that carried loss and did not fit, those of dropped rows included
    # what the chat template made of rows, each to be read after "N rows:", with their number
    told: dict[str, int] = field(default_factory=dict)
    # (N,) uint64, equal for rows of equal prompt, which every split keeps together; None is the keys
    groups: npt.NDArray[np.uint64] | None = None

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.keys)

    @property
    def split_keys(self) -> npt.NDArray[np.uint64]:
        """What splits go by, (N,) uint64: rows of equal prompt fall on one side."""
        return self.keys if self.groups is None else self.groups

    @property
    def cut_share(self) -> float:
        """Share of the supervised tokens that did not fit."""
        return self.supervised_cut / max(int(self.supervised.sum()) + self.supervised_cut, 1)

    @property
    def lengths(self) -> Ints:
        """Tokens of every row, (N,) int64."""
        return np.diff(self.offsets)

    @property
    def supervised_tokens(self) -> Ints:
        """Supervised tokens of every row, (N,) int64."""
        counts = np.empty(len(self), dtype=np.int64)
        for first in range(0, len(self), COUNTED_ROWS):  # a sum over all tokens at once would take eight bytes of each
            at = self.offsets[first : first + COUNTED_ROWS + 1]
            total = np.concatenate([[0], np.cumsum(self.supervised[at[0] : at[-1]], dtype=np.int64)])
            counts[first : first + COUNTED_ROWS] = np.diff(total[at - at[0]])
        return counts

    def select(self, indices: npt.ArrayLike) -> TokenRows:
        """Take some rows by number, one perhaps twice, or by a mask (N,); counts of truncated and dropped rows stay."""
        chosen = np.asarray(indices)
        mask = chosen.dtype == np.bool_ and len(chosen) == len(self)
        chosen = np.flatnonzero(chosen) if mask else chosen.astype(np.int64)
        at, offsets = _gather(self.offsets, chosen)
        return replace(
            self,
            ids=np.asarray(self.ids[at]),
            supervised=np.asarray(self.supervised[at]),
            offsets=offsets,
            keys=np.asarray(self.keys[chosen]),
            source_index=np.asarray(self.source_index[chosen]),
            groups=None if self.groups is None else np.asarray(self.groups[chosen]),
        )

    def cut(self, context: int, bos: int | None) -> TokenRows:
        """Cut the rows that do not fit, and leave out those that keep no token with loss; `bos` is kept."""
        # A row loses prompt from the left (with an earlier answer that would lose its beginning); where the last answer
        # alone is too long it loses its end.
        long = np.flatnonzero(self.lengths > context)
        if not len(long):
            return self
        kept_T, mask_T, lengths = np.ones(len(self.ids), dtype=np.bool_), np.array(self.supervised), self.lengths
        dropped = answers_cut = 0
        for n in long:
            start, end = self.offsets[n], self.offsets[n + 1]
            before = self.supervised[start:end]
            at = kept_tokens(self.ids[start:end], before, context, bos)[0]
            mask_T[start + at[0]] = False  # nothing predicts a first token
            whole = mask_T[start + at].any()
            dropped += not whole
            answers_cut += bool(whole and mask_T[start + at].sum() < before.sum())
            kept_T[start:end] = False
            kept_T[start + at] = whole
            lengths[n] = len(at) * whole
        kept_N = lengths > 0
        supervised = mask_T[kept_T]
        return replace(
            self,
            ids=self.ids[kept_T],
            supervised=supervised,
            offsets=np.concatenate([[0], np.cumsum(lengths[kept_N])]).astype(np.int64),
            keys=self.keys[kept_N],
            source_index=self.source_index[kept_N],
            groups=None if self.groups is None else self.groups[kept_N],
            truncated=self.truncated + len(long) - dropped,
            dropped=self.dropped + dropped,
            answers_cut=self.answers_cut + answers_cut,
            supervised_cut=self.supervised_cut + int(self.supervised.sum() - supervised.sum()),
        )

    def save(self, path: str | Path) -> None:
        """Write the arrays as a folder of .npy files; whole or not at all, in the place of one that is there."""
        path = Path(path)
        part, old = (path.with_name(f".{path.name}.{os.getpid()}.{end}") for end in ("part", "old"))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            meta: dict[str, Any] = {"format": CACHE_FORMAT, "arrays": {}}
            for name, value in ((f.name, getattr(self, f.name)) for f in fields(self)):
                if isinstance(value, np.ndarray):
                    np.save(part / f"{name}.npy", value, allow_pickle=False)
                    meta["arrays"][name] = _digest(value)
                else:
                    meta[name] = value
            (part / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
            if path.exists() or path.is_symlink():
                os.rename(path, old)
            move(part, path)
        except OSError as error:
            if error.errno in {errno.ENOTEMPTY, errno.EEXIST} and path.is_dir():
                return  # another process has put the same content there first
            reason = error.strerror or error
            raise UserError(f"cannot write {path}: {reason}; make room or choose another folder") from error
        finally:
            for left in (part, old):
                shutil.rmtree(left, ignore_errors=True)
                with contextlib.suppress(OSError):
                    left.unlink()

    @staticmethod
    def load(path: str | Path, mmap: bool = True) -> TokenRows:
        """Read what `save` wrote, mapped or into memory, and refuse what does not hold what was written."""
        path = Path(path)
        try:
            meta = json.loads((path / "meta.json").read_text(encoding="utf-8"))
            digests, content = meta["arrays"], {name: meta.get(name, none) for name, none in COUNTS.items()}
            for name in digests:
                content[name] = np.load(path / f"{name}.npy", mmap_mode="r" if mmap else None, allow_pickle=False)
            found = TokenRows(**content)
            whole = meta["format"] == CACHE_FORMAT and all(_digest(content[n]) == digests[n] for n in digests)
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            raise UserError(f"the token rows in {path} cannot be read ({error}); delete that folder") from error
        if not whole:
            raise UserError(f"the token rows in {path} are not what was written; delete that folder")
        return found


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one step laid end to end; rows never see each other."""

    input_ids: Ints  # (T,) int64
    position_ids: Ints  # (T,) int64, from 0 again at every row
    labels: Ints  # (T,) int64: the id of the NEXT token of the same row where that token is supervised, else -100
    starts: Ints  # (B+1,) int64 row boundaries
    rows: Ints  # (B,) int64 indices into the TokenRows


def kept_tokens(
    ids: npt.NDArray[np.int32], mask: npt.NDArray[np.bool_], context: int, bos: int | None
) -> tuple[Ints, bool]:
    """Return the positions of a row that fit, and whether others do not: cut is from the left, then the last answer."""
    last = int(np.flatnonzero(mask)[-1]) + 1 if mask.any() else len(mask)  # what follows teaches nothing
    if last <= context:
        return np.arange(last), False
    mask = mask[:last]
    keep_bos = bos is not None and bool(ids[0] == bos)
    room = context - int(keep_bos)
    final = int(np.flatnonzero(~mask)[-1]) + 1 if (~mask).any() else 0  # the last answer's first token
    start = min(last - room, max(final - (not keep_bos), 0))
    if mask[start] and start < final:  # inside an earlier answer: let all of it go
        start += int(np.flatnonzero(~mask[start:])[0])
    at = np.arange(start, min(start + room, last))
    return (np.concatenate([[0], at]) if keep_bos else at), True


def _gather(offsets: Ints, rows: Ints) -> tuple[Ints, Ints]:
    """Return the token positions of the rows, end to end, and the new offsets."""
    lengths = offsets[rows + 1] - offsets[rows]
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return np.arange(starts[-1], dtype=np.int64) + np.repeat(offsets[rows] - starts[:-1], lengths), starts


def _digest(array: npt.NDArray[Any]) -> str:
    digest = hashlib.blake2b(f"{array.dtype.str}{array.shape}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(array).data)  # without a copy: the array may be a mapped file larger than memory
    return digest.hexdigest()
