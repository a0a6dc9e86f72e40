"""Scores that carry signal where accuracy does not, on a capability's own reference rows.

    choice       probability of the right answer among the row's `choices`, p(right) / sum of p(choice)
    loss         nats per token of what is marked in the answers, or of the rows that a column says were a success
    exact_match  share of the greedy answers that are the row's, white space aside
    pass@K       chance that one of K sampled answers is right, unbiased: 1 - C(n - c, K) / C(n, K) (Chen et al. 2021)

Each gives a score an item.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from math import comb
from typing import Any

import numpy as np

from ideal_proxy.data import ChatTemplate, Row, TokenRows, make_template, read_rows, row_keys, tokenize_rows
from ideal_proxy.errors import UserError
from ideal_proxy.hooks import load_entry_point
from ideal_proxy.proxy.generation import ends_of, generate, prompts_of
from ideal_proxy.proxy.items import Items
from ideal_proxy.proxy.model import evaluate

CHOICES, SUCCESS = "choices", "success"


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltIn:
    """A built-in score, as the run file asks for it."""

    score: str  # choice, loss, exact_match or pass@K
    path: str  # of the reference rows
    format: str = "auto"  # of them
    limit: int | None = None  # most items
    cluster: str | None = None  # column that items of one origin share
    marks: str | None = None  # loss: column with the part, or the parts, of the answer that count
    where: str | None = None  # only rows in which this column is true, or a number above 0
    extract: str | None = None  # exact_match, pass@K: what counts of an answer, the pattern's first group
    check: str | None = None  # pass@K: package.module:function, called (answer, row), says whether it is right
    samples: int = 8  # pass@K: answers a prompt
    temperature: float = 0.8  # pass@K
    max_new_tokens: int = 256  # of an answer

    @classmethod
    def read(cls, text: str) -> BuiltIn:
        """Read what a metric's specification holds."""
        return cls(**json.loads(text))


def score_items(
    built_in: BuiltIn, model: Any, tokenizer: Any, keys: Collection[int], *, seed: int, told: str, folder: str
) -> Items:
    """Score the reference rows whose keys are given."""
    template = make_template(tokenizer)
    rows = _rows(built_in, keys, told)
    if built_in.score == "choice":
        values = _choice(rows, model, template, told)
    elif built_in.score == "loss":
        values = _loss(built_in, rows, model, template, told)
    else:
        values = _generated(built_in, rows, model, template, seed=seed, told=told, folder=folder)
    names = [f"{row.key:016x}" for row, _ in values]
    clusters = [_cluster(built_in, row, name, told) for (row, _), name in zip(values, names, strict=True)]
    return Items(tuple(names), np.array([value for _, value in values], dtype=np.float64), tuple(clusters))


def _rows(built_in: BuiltIn, keys: Collection[int], told: str) -> list[Row]:
    """Read the items: rows of one half, each once, those that the run file wants."""
    wanted, seen, rows = set(keys), set[int](), []
    every = list(read_rows(built_in.path, format=built_in.format, max_bad=-1))
    for row, key in zip(every, row_keys(every).tolist(), strict=True):
        if key in wanted and key not in seen and (built_in.where is None or _is_true(row, built_in.where, told)):
            seen.add(key)
            rows.append(row)
    if not rows:
        only = f" in which {built_in.where} is true" if built_in.where else ""
        raise UserError(f"{told} has no row to judge on{only}; correct metric.where or give more reference rows")
    rows.sort(key=lambda row: row.key)  # a limit takes the same items, whatever the file's order
    return rows[: built_in.limit]


def _is_true(row: Row, column: str, told: str) -> bool:
    value = _column(row, column, told)
    return value is True or (isinstance(value, (int, float)) and value > 0) or str(value).lower() in {"true", "yes"}


def _column(row: Row, name: str, told: str) -> Any:
    if name not in row.raw:
        raise UserError(f"{told} needs the column {name!r}, and {row.where} has none")
    return row.raw[name]


def _cluster(built_in: BuiltIn, row: Row, name: str, told: str) -> str:
    return name if built_in.cluster is None else str(_column(row, built_in.cluster, told))


def _with_answer(row: Row, text: str) -> Row:
    last = max(n for n, turn in enumerate(row.messages) if turn.role == "assistant")
    return replace(row, messages=(*row.messages[:last], replace(row.messages[last], content=text)))


def _choice(rows: Sequence[Row], model: Any, template: ChatTemplate, told: str) -> list[tuple[Row, float]]:
    """Probability of each row's answer among its choices; earlier answers are common to them and cancel."""
    variants: list[Row] = []
    places: list[tuple[int, int]] = []
    for row in rows:
        choices = _column(row, CHOICES, told)
        choices = choices.get("text") if isinstance(choices, dict) else choices  # as ARC has them
        if not isinstance(choices, (list, tuple)) or row.answer not in choices or len(choices) < 2:
            raise UserError(f"{told}: {row.where}: `{CHOICES}` must be a list of texts with the row's answer in it")
        places.append((len(variants), len(choices)))
        variants += [_with_answer(row, str(choice)) for choice in choices]
    tokens = tokenize_rows(variants, template)
    if len(tokens) < len(variants):
        raise UserError(f"{told}: the chat template refuses some of the choices, or they are empty")
    losses = evaluate(model, tokens).loss_sum
    found = []
    for row, (first, count) in zip(rows, places, strict=True):
        logp = -losses[first : first + count]
        right = [str(choice) for choice in _texts(row)].index(row.answer)
        p = np.exp(logp - logp.max())
        found.append((row, float(p[right] / p.sum())))
    return found


def _texts(row: Row) -> Sequence[Any]:
    choices = row.raw[CHOICES]
    return list(choices["text"] if isinstance(choices, dict) else choices)


def _loss(
    built_in: BuiltIn, rows: Sequence[Row], model: Any, template: ChatTemplate, told: str
) -> list[tuple[Row, float]]:
    """Mean loss of each row's marked tokens, or of its answer."""
    if built_in.marks is None:
        tokens = tokenize_rows(list(rows), template)
    else:
        written = []
        for row in rows:
            marked = _column(row, built_in.marks, told)
            parts = [marked] if isinstance(marked, str) else list(marked)
            rendered = template.render_row(row)
            spans = [
                (at.start(), at.end()) for part in parts if part for at in re.finditer(re.escape(part), rendered.text)
                if any(first <= at.start() and at.end() <= end for first, end in rendered.spans)
            ]  # fmt: skip
            if not spans:
                raise UserError(f"{told}: {row.where}: nothing of {built_in.marks!r} stands in the answer")
            written.append((rendered.text, spans))
        tokens = _token_rows(template.tokens_of(written), rows)
    losses = evaluate(model, tokens)
    each = losses.loss_sum / np.maximum(losses.tokens, 1)
    return [(rows[int(n)], float(value)) for n, value in zip(tokens.source_index, each, strict=True)]


def _token_rows(found: Sequence[tuple[list[int], list[bool]]], rows: Sequence[Row]) -> TokenRows:
    lengths = [len(ids) for ids, _ in found]
    supervised = np.concatenate([np.array(marks, dtype=np.bool_) for _, marks in found])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    supervised[offsets[:-1]] = False  # nothing predicts a first token
    return TokenRows(
        ids=np.concatenate([np.array(ids, dtype=np.int32) for ids, _ in found]), supervised=supervised,
        offsets=offsets, keys=row_keys(rows), source_index=np.arange(len(rows), dtype=np.int64),
    )  # fmt: skip


def _generated(
    built_in: BuiltIn, rows: Sequence[Row], model: Any, template: ChatTemplate, *, seed: int, told: str, folder: str
) -> list[tuple[Row, float]]:
    """Share of right answers: the greedy one, or by sampled ones."""
    tokens = tokenize_rows(list(rows), template)
    kept = [rows[int(n)] for n in tokens.source_index]
    prompts, answers = prompts_of(tokens)
    ends, tokenizer = ends_of(answers, template.tokenizer), template.tokenizer
    _, _, number = built_in.score.partition("@")
    k = int(number) if number else 0
    n = max(k, built_in.samples) if k else 1
    right = _judge(built_in, told, folder)
    written = generate(
        model, prompts, ends, most=built_in.max_new_tokens, samples=n, seed=seed,
        temperature=built_in.temperature if k else 0.0,
    )  # fmt: skip
    found = []
    for row, samples in zip(kept, written, strict=True):
        texts = [tokenizer.decode([t for t in answer if t not in ends], skip_special_tokens=True) for answer in samples]
        count = sum(right(text, row) for text in texts)
        found.append((row, float(count) if not k else 1.0 - comb(n - count, k) / comb(n, k)))
    return found


def _judge(built_in: BuiltIn, told: str, folder: str) -> Callable[[str, Row], bool]:
    """Say whether an answer is right: by the user's function, or where it equals the row's own."""
    if built_in.check is not None:
        function = load_entry_point(built_in.check, told=told, folder=folder, takes="give package.module:function")
        return lambda text, row: bool(function(text, row.raw))
    pattern = None if built_in.extract is None else re.compile(built_in.extract, re.DOTALL)

    def what_counts(text: str) -> str | None:
        if pattern is not None:
            at = pattern.search(text)
            if at is None:
                return None
            text = at[1] if pattern.groups else at[0]
        return " ".join(text.split())

    def equal(text: str, row: Row) -> bool:
        wanted = what_counts(row.answer)
        return wanted is not None and what_counts(text) == wanted

    return equal
