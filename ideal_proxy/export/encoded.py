"""The drawn rows in the tokens of the model they are for, and what becomes of those that are too long for it.

Legend: N rows of a domain, R drawn rows of all domains.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ideal_proxy.data import IGNORED, ChatTemplate, TokenRows, make_template, row_keys, tokenize_rows
from ideal_proxy.errors import UsageError, UserError
from ideal_proxy.mixture import MixtureFile, domain_order, draw, read_domain, training_order

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

# What a trainer does with a row that is too long. As the search: it loses prompt from the left before it loses answer.
Long = Literal["as the search", "cut at the start", "cut at the end", "cut turn by turn", "left out"]


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
    # for every domain, (N,) the number of a row of the source among them, -1 where it is not there
    places: tuple[Ints, ...]
    times: tuple[Ints, ...]  # for every domain, (N,) how often a row of the source is drawn
    order: tuple[Ints, Ints]  # domain and row of the source of every drawn row in training order, (R,) each
    bos: int | None  # token that opens a row and is kept when it is cut
    blank: frozenset[int]  # tokens of white space alone, such as the line break after an answer's end mark
    tail: int  # how many of them end a row, after its last answer; not among `whole`
    # for every domain, (N,) tokens of the empty question that some trainers need before an answer that opens a row
    asked: tuple[Ints, ...]

    def counts(self, long: Long, *, breaks: bool = False, asks: bool = False) -> list[Count]:
        """Count what a target draws: with `breaks` it has loss on white space after answers, and `asks` before them."""
        found = []
        for rows, places, times, asked in zip(self.whole, self.places, self.times, self.asked, strict=True):
            times_M = np.zeros(len(rows), dtype=np.int64)
            times_M[places[places >= 0]] = times[places >= 0]
            whole, wanted = rows.lengths, rows.supervised_tokens
            if long == "as the search":
                lengths, supervised = _as_the_search(rows, self.context, self.bos)
            else:
                mask = _with_breaks(rows, self.blank) if breaks else rows.supervised.astype(bool)
                tail = np.full(self.tail, breaks)
                more = asked[rows.source_index] * asks
                spans = zip(itertools.pairwise(rows.offsets), more, strict=True)
                parts = [np.r_[np.zeros(n, dtype=bool), mask[i:j], tail] for (i, j), n in spans]
                whole, wanted = whole + more + self.tail, np.array([part.sum() for part in parts], dtype=np.int64)
                parts = [_fitted(part, self.context, long) for part in parts]
                lengths = np.array([len(part) for part in parts], dtype=np.int64)
                supervised = np.array([part.sum() for part in parts], dtype=np.int64)
            kept = supervised > 0
            found.append(Count(
                rows=int(times_M[kept].sum()),
                dropped=int(times.sum() - times_M[kept].sum()),
                cut=int(times_M[kept & (lengths < whole)].sum()),
                tokens=int((times_M * lengths * kept).sum()),
                supervised_tokens=int((times_M * supervised).sum()),
                supervised_lost=int((times_M * (wanted - supervised)).sum()),
            ))  # fmt: skip
        return found

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
    whole, places, times, parts, asked = [], [], [], [], []
    tail, question = _ends(template.tokenizer)
    for domain in domains:
        rows = read_domain(domain, sources[domain.name], mixture.key_note)
        keys = row_keys(rows)
        indices, passes = draw(domain_order(mixture.seed, domain.name, keys), domain.rows)
        parts.append((keys, indices, passes))
        whole.append(tokenize_rows(rows, template))
        places.append(_places(whole[-1], len(rows)))
        first = (next((t.role for t in row.messages if t.role != "system"), "") for row in rows)
        asked.append(np.array([question if role == "assistant" else 0 for role in first], dtype=np.int64))
        times.append(np.bincount(indices, minlength=len(rows)).astype(np.int64))
    order = training_order(mixture.seed, [domain.name for domain in domains], parts)
    tokenizer = template.tokenizer
    seen = np.unique(np.concatenate([np.unique(rows.ids) for rows in whole])) if whole else np.array([], dtype=int)
    blank = frozenset(int(i) for i in seen if not tokenizer.decode([int(i)]).strip())
    return Encoded(
        model,
        context,
        tuple(whole),
        tuple(places),
        tuple(times),
        order,
        tokenizer.bos_token_id,
        blank,
        tail,
        tuple(asked),
    )


def _ends(tokenizer: Any) -> tuple[int, int]:
    """Tokens of white space that the template writes after a last answer's end mark; tokens of an empty question."""
    asks, says = {"role": "user", "content": ""}, {"role": "assistant", "content": "b"}

    def ids(*turns: dict[str, str]) -> list[int]:
        text = tokenizer.apply_chat_template(list(turns), tokenize=False)
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    one = ids(asks, says)
    tail = next((n for n, i in enumerate(reversed(one)) if tokenizer.decode([i]).strip()), 0)
    return tail, len(ids(asks, says, asks)) - len(one)


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
    if long == "cut at the start":
        return np.concatenate([
            [False],
            row[len(row) - context + 1 :],
        ])  # nothing stands before its first token to tell it from
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


def _with_breaks(rows: TokenRows, blank: frozenset[int]) -> Bools:
    """Where a target puts loss that trains on the white space after an answer too."""
    mask = rows.supervised.astype(bool)
    after = np.flatnonzero(mask[:-1] & ~mask[1:]) + 1
    after = after[np.isin(rows.ids[after], list(blank)) & ~np.isin(after, rows.offsets)]
    mask[after] = True
    return mask
