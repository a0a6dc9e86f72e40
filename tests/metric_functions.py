"""Metrics for the tests: functions that truly read the model they are given, and some that fail."""

from __future__ import annotations

import os
import time
from functools import cache
from typing import Any

import numpy as np

from ideal_proxy.data.rows import read_rows
from ideal_proxy.data.template import make_template
from ideal_proxy.data.tokenizing import tokenize_rows
from ideal_proxy.data.tokens import TokenRows
from ideal_proxy.mixture.draws import search_verify_split
from ideal_proxy.proxy.model import evaluate


@cache
def _rows(name: str, split: str, identity: str, tokenizer: Any) -> TokenRows:
    """Return the half of a demo capability's reference rows that the search itself would judge on."""
    rows = tokenize_rows(list(read_rows(f"demo:{name}?rows=120&split=reference")), make_template(tokenizer), 48)
    search = search_verify_split(rows.split_keys)
    return rows.select(np.flatnonzero(search if split == "search" else ~search))


def _loss(name: str, model: Any, tokenizer: Any, split: str) -> float:
    return evaluate(model, _rows(name, split, str(tokenizer.name_or_path), tokenizer)).mean


def accuracy_formats(model: Any, tokenizer: Any, split: str) -> float:
    """Higher is better: share of supervised tokens that the model would have taken, greedily."""
    import torch

    time.sleep(float(os.environ.get("TEST_METRIC_SLEEP", "0")))
    rows = _rows("formats", split, str(tokenizer.name_or_path), tokenizer)
    right = total = 0
    for index in range(min(len(rows), 24)):
        first, end = int(rows.offsets[index]), int(rows.offsets[index + 1])
        ids = torch.tensor(np.asarray(rows.ids[first:end], dtype=np.int64))
        labelled = torch.tensor(np.asarray(rows.supervised[first:end])[1:])
        best = model(input_ids=ids[None]).logits[0, :-1].argmax(-1)
        right += int((best == ids[1:])[labelled].sum())
        total += int(labelled.sum())
    return right / total


def loss_facts(model: Any, tokenizer: Any, split: str) -> float:
    """Lower is better: what another domain than the capability's own teaches."""
    return _loss("facts", model, tokenizer, split)


def slow(model: Any, tokenizer: Any, split: str) -> float:
    """Takes too long."""
    time.sleep(60)
    return 0.0


def wrong(model: Any, tokenizer: Any, split: str) -> Any:
    """Returns no number."""
    return "good"


def broken(model: Any, tokenizer: Any, split: str) -> float:
    """Fails."""
    raise ZeroDivisionError("no items were judged")


HERE = "no function"
