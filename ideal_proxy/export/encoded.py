"""The drawn rows in the tokens of the model they are for, and what becomes of those that are too long for it.

Legend: N rows of a domain, R drawn rows of all domains.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ideal_proxy.data import (
    IGNORED,
    ChatTemplate,
    Message,
    RefusedRowError,
    Row,
    TokenRows,
    TooManyRefusedError,
    make_template,
    merged_neighbours,
    row_keys,
    tokenize_rows,
)
from ideal_proxy.errors import UsageError, UserError
from ideal_proxy.mixture import MixtureFile, domain_order, draw, read_domain, training_order

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

# What a trainer does with a row that is too long. As the search: it loses prompt from the left before it loses answer.
Long = Literal["as the search", "cut at the start", "cut at the end", "cut turn by turn", "left out"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How a target reads turns, where that is not how the search does."""

    breaks: bool = False  # it has loss on what the template writes after an answer's end mark too
    asks: bool = False  # it is given an empty question before an answer that opens a row
    joins: bool = False  # it is given neighbouring turns of one role as one
    weights: bool = False  # it leaves out the loss of answers that carry none

    def given(self, turns: tuple[Message, ...]) -> tuple[Message, ...]:
        """Change a row's turns as they are changed for the target."""
        if not self.weights and not all(turn.trained for turn in turns):
            turns = tuple(replace(turn, trained=True) for turn in turns)
        if self.joins:
            turns = merged_neighbours(turns)
        first = next((n for n, turn in enumerate(turns) if turn.role != "system"), len(turns))
        if self.asks and turns[first:] and turns[first].role == "assistant":
            turns = (*turns[:first], Message("user"), *turns[first:])
        return turns


AS_THE_SEARCH: Reading = Reading(weights=True)
ANY_CHANGE: Reading = Reading(asks=True, joins=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """What a target draws of one domain, repeats included."""

    rows: int  # rows that it trains on
    dropped: int  # rows that it leaves out, or that keep no token with loss
    cut: int  # rows that lose tokens, of those it trains on
    tokens: int  # of the rows it trains on
    supervised_tokens: int  # those that carry loss
    supervised_lost: int  # tokens with loss that are dropped or cut


@dataclass(frozen=True, slots=True)
class Encoded:
    """The drawn rows as tokens."""

    model: str  # folder or hub id of the model whose tokenizer made them
    context: int  # most tokens of a row
    whole: tuple[TokenRows, ...]  # for every domain its rows, uncut
    times: tuple[Ints, ...]  # for every domain, (N,) how often a row of the source is drawn
    order: tuple[Ints, Ints]  # domain and row of the source of every drawn row in training order, (R,) each
    bos: int | None  # token that opens a row and is kept when it is cut
    blank: frozenset[int]  # tokens of white space alone, such as the line break after an answer's end mark
    tail: int  # tokens that the template writes after a row's last answer; not among `whole`
    template: ChatTemplate  # what wrote them
    changed: tuple[dict[int, Row], ...]  # for every domain the rows of the source that some targets are given otherwise

    def counts(self, long: Long, reads: Reading = AS_THE_SEARCH) -> list[Count]:
        """Count what a target draws that treats long rows so, and reads turns so."""
        found = []
        for rows, changed, times in zip(self.whole, self.changed, self.times, strict=True):
            if long == "as the search":
                at, whole, wanted = rows.source_index, rows.lengths, rows.supervised_tokens
                lengths, supervised = _as_the_search(rows, self.context, self.bos)
            else:
                masks = self._masks(rows, changed, reads)
                at, whole, wanted = np.array(list(masks), dtype=np.int64), *_sizes(masks.values())
                lengths, supervised = _sizes(_fitted(mask, self.context, long) for mask in masks.values())
            times_M, kept = times[at], supervised > 0
            found.append(Count(
                rows=int(times_M[kept].sum()),
                dropped=int(times.sum() - times_M[kept].sum()),
                cut=int(times_M[kept & (lengths < whole)].sum()),
                tokens=int((times_M * lengths * kept).sum()),
                supervised_tokens=int((times_M * supervised).sum()),
                supervised_lost=int((times_M * (wanted - supervised)).sum()),
            ))  # fmt: skip
        return found

    def _masks(self, rows: TokenRows, changed: Mapping[int, Row], reads: Reading) -> dict[int, Bools]:
        """Where loss lies in every row of a source that a target is given, uncut."""

        def mask_of(ids: Any, on: Any, tail: int) -> Bools:
            mask = np.concatenate([np.asarray(on, dtype=np.bool_), np.full(tail, reads.breaks)])
            for end in np.flatnonzero(mask[: len(ids) - 1] & ~mask[1 : len(ids)]) + 1 if reads.breaks else ():
                while end < len(ids) and int(ids[end]) in self.blank:
                    mask[end] = True
                    end += 1
            return mask

        parts = zip(rows.source_index.tolist(), rows.offsets[:-1], rows.offsets[1:], strict=True)
        masks = {n: mask_of(rows.ids[i:j], rows.supervised[i:j], self.tail) for n, i, j in parts}
        for n, row in changed.items():
            turns = reads.given(row.messages)
            if turns == row.messages and all(turn.trained for turn in turns):
                continue
            masks.pop(n, None)
            with suppress(RefusedRowError):
                made = self.template.render_row(replace(row, messages=turns))
                masks[n] = mask_of(*self.template.tokens_of([(made.text, made.spans)])[0], 0)
        return masks

    def records(self) -> Iterator[dict[str, Any]]:
        """Give every drawn row that teaches anything, cut as the search cuts, as `input_ids` and `labels`."""
        cut = [rows.cut(self.context, self.bos) for rows in self.whole]
        places = [_places(rows, len(times)) for rows, times in zip(cut, self.times, strict=True)]
        for domain, row in zip(*self.order, strict=True):
            place = places[domain][row]
            if place < 0:
                continue
            rows = cut[domain]
            part = slice(rows.offsets[place], rows.offsets[place + 1])
            ids = np.asarray(rows.ids[part], dtype=np.int64)
            yield {"input_ids": ids, "labels": np.where(rows.supervised[part], ids, IGNORED)}


def encode(mixture: MixtureFile, sources: Mapping[str, str], model: str, context: int | None) -> Encoded:
    """Read the drawn rows and turn them into tokens of a model's own tokenizer and template."""
    template = _template(model)
    if context is None:
        raise UsageError("the mixture file names no context; add --context, the most tokens of a row")
    domains = [domain for domain in mixture.domains if domain.rows]
    whole, times, parts, changed = [], [], [], []
    for domain in domains:
        rows = read_domain(domain, sources[domain.name], mixture.key_note)
        keys = row_keys(rows)
        indices, passes = draw(domain_order(mixture.seed, domain.name, keys), domain.rows)
        parts.append((keys, indices, passes))
        try:
            whole.append(tokenize_rows(rows, template))
        except TooManyRefusedError as error:
            raise UserError(f"{error}; without --model the rows are handed over as turns, uncounted") from error
        changed.append({n: row for n, row in enumerate(rows) if ANY_CHANGE.given(row.messages) != row.messages})
        times.append(np.bincount(indices, minlength=len(rows)).astype(np.int64))
    order = training_order(mixture.seed, [domain.name for domain in domains], parts)
    tokenizer = template.tokenizer
    seen = np.unique(np.concatenate([np.unique(rows.ids) for rows in whole])) if whole else np.array([], dtype=int)
    blank = frozenset(int(i) for i in seen if not tokenizer.decode([int(i)]).strip())
    _, on = template.encode([("user", "a"), ("assistant", "b")])
    return Encoded(
        model, context, tuple(whole), tuple(times), order, tokenizer.bos_token_id, blank, on[::-1].index(True),
        template, tuple(changed),
    )  # fmt: skip


def _sizes(masks: Iterable[Bools]) -> tuple[Ints, Ints]:
    """Tokens, and tokens with loss, of every row, (N,) each."""
    sizes = np.array([(len(mask), mask.sum()) for mask in masks], dtype=np.int64).reshape(-1, 2)
    return sizes[:, 0], sizes[:, 1]


def _template(model: str) -> ChatTemplate:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"--model {model}: its tokenizer cannot be read ({reason})") from error
    return make_template(tokenizer)


def _places(rows: TokenRows, count: int) -> Ints:
    """Number of every row of a source among its token rows, (N,), -1 where it is not there."""
    places = np.full(count, -1, dtype=np.int64)
    places[rows.source_index] = np.arange(len(rows))
    return places


def _as_the_search(rows: TokenRows, context: int, bos: int | None) -> tuple[Ints, Ints]:
    """Tokens, and tokens with loss, that are left of every row, (N,) each."""
    lengths, supervised = rows.lengths.copy(), rows.supervised_tokens
    over = np.flatnonzero(lengths > context)
    cut = rows.select(over).cut(context, bos)
    lengths[over] = supervised[over] = 0
    kept = over[np.isin(rows.source_index[over], cut.source_index)]
    lengths[kept], supervised[kept] = cut.lengths, cut.supervised_tokens
    return lengths, supervised


def _fitted(row: Bools, context: int, long: Long) -> Bools:
    """What a target leaves of a row, which tokens of it carry loss."""
    if len(row) <= context:
        return row
    if long == "cut turn by turn":
        return _cut_by_turn(row, context)
    if long == "cut at the start":  # no loss on the first token: nothing stands before it to tell it from
        return np.concatenate([[False], row[len(row) - context + 1 :]])
    return row[: 0 if long == "left out" else context]


def _cut_by_turn(row: Bools, context: int) -> Bools:
    """Cut as LLaMA-Factory 0.9.5 does (its `infer_seqlen`): turn by turn, in shares of what is left of the context."""
    kept: list[Bools] = []
    edges = np.flatnonzero(np.diff(row, prepend=False, append=False))  # answers begin and end there in turn
    begin = 0
    for answer, end in zip(edges[::2], edges[1::2], strict=True):
        asked, said = answer - begin, end - answer
        most = context if 2 * said < context else context - asked if 2 * asked < context else 0
        said = min(said, most or int(context * said / (asked + said)))
        asked = min(asked, max(context - said, 0))
        kept.append(np.arange(asked + said) >= asked)
        context -= int(asked + said)
        begin = end
        if context <= 0:
            break
    return np.concatenate(kept) if kept else row[:0]
