"""Rows as they will be trained: their text after cutting, and which characters of it carry loss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from ideal_proxy.data.messages import Row
from ideal_proxy.data.plain import Span
from ideal_proxy.data.rows import SourceReader
from ideal_proxy.data.template import ChatTemplate
from ideal_proxy.data.tokens import kept_tokens
from ideal_proxy.data.writing import RefusedRowError


@dataclass(frozen=True, slots=True)
class Preview:
    """One row as it will be trained."""

    domain: str  # name of its domain
    row: int  # its number in the source, from 0
    text: str = ""  # what is left of it after cutting
    supervised: tuple[Span, ...] = ()  # parts of the text that carry loss, as (start, end) in characters
    left_out: str | None = None  # why the row is not trained on; None where it is
    prompt_cut: int = 0  # tokens without loss that did not fit
    answer_cut: int = 0  # tokens with loss that did not fit

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values, without the counts of what was cut."""
        return {
            "domain": self.domain, "row": self.row, "text": self.text,
            "supervised": [list(span) for span in self.supervised], "left_out": self.left_out,
        }  # fmt: skip


def preview_rows(
    domain: str, reader: SourceReader, template: ChatTemplate, context: int, rows: int
) -> Iterator[Preview]:
    """Show the first rows of a source, those that are left out among them."""
    for number, row in islice(reader.every(), rows):
        if isinstance(row, str):
            yield Preview(domain, number, left_out=row)
        else:
            yield _preview(domain, number, row, template, context)


def _preview(domain: str, number: int, row: Row, template: ChatTemplate, context: int) -> Preview:
    try:
        written = template.render_row(row)
    except RefusedRowError as error:
        return Preview(domain, number, left_out=str(error))
    text = written.text
    ((ids, marks, places),) = template.tokens_with_places([(text, written.spans)])
    mask = np.asarray(marks, dtype=np.bool_)
    mask[:1] = False
    if not mask.any():
        return Preview(domain, number, text, left_out="no token of it carries loss")
    bos = template.tokenizer.bos_token_id
    kept, cut = kept_tokens(np.asarray(ids, dtype=np.int32), mask, context, bos)
    wanted, length = int(mask.sum()), int(np.flatnonzero(mask)[-1]) + 1
    mask = mask[kept]
    mask[:1] = False
    head = text[slice(*places[kept[0]])] if len(kept) > 1 and kept[1] != kept[0] + 1 else ""
    first = int(kept[1] if head else kept[0])
    begin = places[first][0] if cut and first else 0
    shift = len(head) - begin
    supervised: list[Span] = []
    for n in np.flatnonzero(mask):
        start, end = (place + shift for place in places[kept[n]])
        if supervised and mask[n - 1]:  # with the white space that a tokenizer leaves out of both
            supervised[-1] = (supervised[-1][0], max(end, supervised[-1][1]))
        else:
            supervised.append((start, end))
    answer_cut = wanted - int(mask.sum())
    return Preview(
        domain, number, head + text[begin : places[kept[-1]][1]], tuple(supervised),
        left_out=None if supervised else f"no token of it that carries loss fits the context of {context} tokens",
        prompt_cut=length - len(kept) - answer_cut, answer_cut=answer_cut,
    )  # fmt: skip
