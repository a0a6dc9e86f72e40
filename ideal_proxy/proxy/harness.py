"""Scores by lm-eval: a task of the harness, or of a folder of the user's, judged item by item.

An item's half (search or verify) is told by a hash of its document, or of its cluster, so that the check judges on
items that the search never saw.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np

from ideal_proxy.errors import UserError
from ideal_proxy.proxy.items import Items


@dataclass(frozen=True, slots=True, kw_only=True)
class HarnessTask:
    """A task of lm-eval, as the run file asks for it."""

    lm_eval: str  # the task's name
    shots: int | None = None  # examples before each item; None is the task's own
    limit: int | None = None  # most items of a half
    tasks: str | None = None  # folder of task files
    value: str | None = None  # which of the task's numbers; default its only one
    cluster: str | None = None  # key of a document that items of one origin share
    higher_is_better: bool = True

    @classmethod
    def read(cls, text: str) -> HarnessTask:
        """Read what a metric's specification holds."""
        return cls(**json.loads(text))


def harness_items(wanted: HarnessTask, model: Any, tokenizer: Any, split: str, *, seed: int, told: str) -> Items:
    """Score a loaded model on one half of a task's items."""
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UserError(f"{told} needs lm-eval; pip install 'ideal-proxy[lm-eval]'") from error
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = TaskManager(include_path=wanted.tasks, include_defaults=wanted.tasks is None)
    try:
        loaded = manager.load(wanted.lm_eval)["tasks"]
    except Exception as error:
        raise UserError(f"{told}: lm-eval cannot load the task ({_first_line(error)})") from error
    if list(loaded) != [wanted.lm_eval]:
        raise UserError(f"{told}: {wanted.lm_eval} is a group; name one of its tasks: {', '.join(list(loaded)[:8])}")
    task = loaded[wanted.lm_eval]
    documents = list(task.eval_docs)
    chosen = _half(wanted, documents, split, told)
    device = str(next(model.parameters()).device)
    with mock.patch.dict(os.environ, {"TQDM_DISABLE": "1"}):
        harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8, device=device)
        found = lm_eval.simple_evaluate(
            model=harness, tasks=[wanted.lm_eval], num_fewshot=wanted.shots, samples={wanted.lm_eval: chosen},
            task_manager=manager, log_samples=True, bootstrap_iters=0, random_seed=seed, numpy_random_seed=seed,
            torch_random_seed=seed, fewshot_random_seed=1234,
        )  # fmt: skip
    assert found is not None
    name = _value(wanted, found, told)
    metric, _, chain = name.partition(",")
    samples = [s for s in found["samples"][wanted.lm_eval] if s.get("filter", "none") == (chain or "none")]
    scores = []
    for sample in samples:
        score = sample[metric]
        if isinstance(score, bool) or not isinstance(score, (int, float, np.number)):
            raise UserError(f"{told}: lm-eval's {name} has no number an item; name another with metric.value")
        scores.append(float(score))
    ids = [f"{int(sample['doc_id']):08d}" for sample in samples]
    clusters = [_cluster(wanted, sample["doc"], at, told) for sample, at in zip(samples, ids, strict=True)]
    return Items(tuple(ids), np.array(scores, dtype=np.float64), tuple(clusters))


def _half(wanted: HarnessTask, documents: list[Any], split: str, told: str) -> list[int]:
    """Choose the items of a half, by a hash, and of them the first by that hash."""
    hashed = []
    for number, document in enumerate(documents):
        own = json.dumps(document, sort_keys=True, default=str)
        side = _cluster(wanted, document, own, told)
        first = hashlib.sha256(side.encode()).digest()[0] % 2
        if ("search", "verify")[first] == split:
            hashed.append((hashlib.sha256(own.encode()).hexdigest(), number))
    if len(hashed) < 2:
        raise UserError(f"{told}: the task has {len(documents)} items, and the {split} half {len(hashed)}; give more")
    return sorted(number for _, number in sorted(hashed)[: wanted.limit])


def _cluster(wanted: HarnessTask, document: Any, own: str, told: str) -> str:
    if wanted.cluster is None:
        return own
    try:
        return str(document[wanted.cluster])
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{told}: the task's items have no key {wanted.cluster!r}, which metric.cluster names"
        ) from error


def _value(wanted: HarnessTask, found: dict[str, Any], told: str) -> str:
    """Choose the number that is the score: the one named, or the only one."""
    names = [n for n in found["results"][wanted.lm_eval] if "," in n and "_stderr" not in n]
    fits = [n for n in names if wanted.value in {n, n.partition(",")[0]}] if wanted.value else names
    if len(fits) != 1:
        raise UserError(f"{told}: name one of the task's numbers with metric.value: {', '.join(map(repr, names))}")
    higher = found.get("higher_is_better", {}).get(wanted.lm_eval, {}).get(fits[0].partition(",")[0])
    if higher is not None and higher != wanted.higher_is_better:
        raise UserError(f"{told}: of {fits[0]} lm-eval says higher_is_better: {str(higher).lower()}; say the same")
    return str(fits[0])


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
