"""The drawn rows in the tokens of the model they are for, and what becomes of those that are too long for it.

Legend: N rows of a domain, R drawn rows of all domains.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ideal_proxy.data import IGNORED, ChatTemplate, TokenRows, make_template, row_keys, tokenize_rows
from ideal_proxy.errors import UsageError, UserError
from ideal_proxy.mixture import MixtureFile, domain_order, draw, read_domain, training_order

Ints = NDArray[np.int64]

# What a trainer does with a row that is too long. As the search: it loses prompt from the left before it loses answer.
Long = Literal["as the search", "cut at the start", "cut at the end", "left out"]


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

    def counts(self, long: Long) -> list[Count]:
        """Count what a target draws of every domain, by what it does with rows that are too long."""
        found = []
        for rows, places, times in zip(self.whole, self.places, self.times, strict=True):
            times_M = np.zeros(len(rows), dtype=np.int64)
            times_M[places[places >= 0]] = times[places >= 0]
            lengths, supervised = _fitted(rows, self.context, long, self.bos)
            kept = supervised > 0
            wanted = rows.supervised_tokens
            found.append(Count(
                rows=int(times_M[kept].sum()),
                dropped=int(times.sum() - times_M[kept].sum()),
                cut=int(times_M[kept & (lengths < rows.lengths)].sum()),
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
    whole, places, times, parts = [], [], [], []
    for domain in domains:
        rows = read_domain(domain, sources[domain.name], mixture.key_note)
        keys = row_keys(rows)
        indices, passes = draw(domain_order(mixture.seed, domain.name, keys), domain.rows)
        parts.append((keys, indices, passes))
        whole.append(tokenize_rows(rows, template))
        places.append(_places(whole[-1], len(rows)))
        times.append(np.bincount(indices, minlength=len(rows)).astype(np.int64))
    order = training_order(mixture.seed, [domain.name for domain in domains], parts)
    return Encoded(model, context, tuple(whole), tuple(places), tuple(times), order, template.tokenizer.bos_token_id)


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


def _fitted(rows: TokenRows, context: int, long: Long, bos: int | None) -> tuple[Ints, Ints]:
    """Tokens, and tokens with loss, that are left of every row."""
    lengths, supervised = rows.lengths.copy(), rows.supervised_tokens
    over = np.flatnonzero(lengths > context)
    if long == "left out":
        lengths[over] = supervised[over] = 0
    elif long != "as the search":
        for n in over:
            end = rows.offsets[n + 1] if long == "cut at the start" else rows.offsets[n] + context
            lengths[n] = context
            supervised[n] = rows.supervised[end - context : end].sum()
    else:
        cut = rows.select(over).cut(context, bos)
        lengths[over] = supervised[over] = 0
        kept = over[np.isin(rows.source_index[over], cut.source_index)]
        lengths[kept], supervised[kept] = cut.lengths, cut.supervised_tokens
    return lengths, supervised
