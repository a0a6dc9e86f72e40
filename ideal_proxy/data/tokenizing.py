"""Rows become tokens: rendered by the template, cut to the context, kept in a cache."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ideal_proxy.data.messages import Row, prompt_groups, row_keys, source_fingerprint
from ideal_proxy.data.template import ChatTemplate, Rendered
from ideal_proxy.data.tokens import CACHE_FORMAT, TokenRows
from ideal_proxy.data.writing import RefusedRowError
from ideal_proxy.errors import UserError

log = logging.getLogger(__name__)

CHUNK = 512
REFUSED_SHARE = 0.1  # of the rows, by the template; more is no accident


def tokenize_rows(
    rows: Iterable[Row], template: ChatTemplate, context: int | None = None, cache_dir: str | Path | None = None
) -> TokenRows:
    """Tokenise rows, cut what does not fit (see `TokenRows.cut`), and keep the result where a folder is given."""
    if context is not None and context < 2:
        raise UserError(f"the context is {context} tokens; it must be at least 2")
    rows = list(rows)
    keys = row_keys(rows)
    folder = None
    if cache_dir is not None:
        length = "whole" if context is None else str(int(context))
        text = "\0".join([CACHE_FORMAT, template.identity, length, source_fingerprint(keys)])
        folder = Path(cache_dir) / hashlib.sha256(text.encode()).hexdigest()[:32]
        if folder.exists():
            with contextlib.suppress(UserError):
                return TokenRows.load(folder)
            log.warning("the token cache entry %s is damaged and is made anew", folder)
    result = _tokenize(rows, keys, template)
    if context is not None:
        result = result.cut(int(context), template.tokenizer.bos_token_id)
    if folder is not None:
        result.save(folder)
    return result


class Refused(NamedTuple):
    """A row that the template refuses: its place, the reason that it is counted under, and what is wrong."""

    where: str
    reason: str
    message: str


class TooManyRefusedError(UserError):
    """A source of which the template refuses more than a tenth; `rows` are all that it refuses."""

    def __init__(self, message: str, rows: Sequence[Refused]) -> None:
        super().__init__(message)
        self.rows = rows


def _tokenize(rows: Sequence[Row], keys: npt.NDArray[np.uint64], template: ChatTemplate) -> TokenRows:
    """Tokenise rows up to their last token with loss: what follows teaches nothing."""
    ids: list[npt.NDArray[np.int32]] = []
    masks: list[npt.NDArray[np.bool_]] = []
    kept: list[int] = []
    refused: list[Refused] = []
    told: Counter[str] = Counter()
    dropped = 0
    for start in range(0, len(rows), CHUNK):
        chunk = rows[start : start + CHUNK]
        for n, made in enumerate(_encode(chunk, template, refused, told), start=start):
            if made is None:
                continue
            mask = np.asarray(made[1], dtype=np.bool_)
            mask[:1] = False
            if not mask.any():
                dropped += 1
                continue
            last = int(np.flatnonzero(mask)[-1]) + 1
            ids.append(np.asarray(made[0][:last], dtype=np.int32))
            masks.append(mask[:last])
            kept.append(n)
    if dropped:
        told["left out, no token of it carries loss"] = dropped
    for reason, count in Counter(row.reason for row in refused).items():
        first = next(row.message for row in refused if row.reason == reason)
        told[f"left out, {reason} (first: {first})"] = count
    for line in told_lines(told):
        log.info(line)
    _refuse_too_many(refused, len(rows))
    index = np.asarray(kept, dtype=np.int64)
    return TokenRows(
        ids=np.concatenate(ids) if ids else np.zeros(0, dtype=np.int32),
        supervised=np.concatenate(masks) if masks else np.zeros(0, dtype=np.bool_),
        offsets=np.concatenate([[0], np.cumsum([len(one) for one in ids], dtype=np.int64)]).astype(np.int64),
        keys=keys[index],
        source_index=index,
        dropped=dropped,
        refused=len(refused),
        told=dict(told),
        groups=prompt_groups(rows, keys)[index],
    )


def _encode(
    chunk: Sequence[Row], template: ChatTemplate, refused: list[Refused], told: Counter[str]
) -> list[tuple[list[int], list[bool]] | None]:
    """Tokenise some rows; None where the template refuses one, which is noted with the reason."""
    rendered: list[Rendered | None] = []
    for row in chunk:
        try:
            made = template.render_row(row)
        except RefusedRowError as error:
            refused.append(Refused(row.where, error.reason, f"{row.where}: {error}"))
            rendered.append(None)
            continue
        rendered.append(made)
        told.update(made.told)
    encoded = iter(template.tokens_of([(one.text, one.spans) for one in rendered if one is not None]))
    return [None if one is None else next(encoded) for one in rendered]


def told_lines(told: Mapping[str, int]) -> list[str]:
    """Say what a template made of rows, a sentence each."""
    return [f"{count:,} row{'' if count == 1 else 's'}: {what}" for what, count in told.items()]


def _refuse_too_many(refused: Sequence[Refused], rows: int) -> None:
    """Refuse a source of which the template refuses more than a tenth."""
    if refused and (len(refused) > max(1, REFUSED_SHARE * rows) or len(refused) == rows):
        raise TooManyRefusedError(
            f"the chat template refuses {len(refused):,} of {rows:,} rows, more than {REFUSED_SHARE:.0%} "
            f"(the first: {refused[0].message})",
            refused,
        )
