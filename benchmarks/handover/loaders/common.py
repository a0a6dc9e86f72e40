"""Count what a trainer's own data pipeline gives: run inside the trainer's environment, without ideal_proxy."""

from __future__ import annotations

import collections
import importlib.machinery
import importlib.util
import json
import re
import sys
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any


class StandIn(types.ModuleType):
    """A module that is imported and never used."""

    __path__ = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__init__": lambda *_, **__: None})


def stand_in(*names: str) -> None:
    """Stand in for modules that have no build for this machine's CPU, such as torchvision; text needs none of them."""
    for name in names:
        if importlib.util.find_spec(name.split(".")[0]) is None or name.split(".")[0] in sys.modules:
            sys.modules[name] = StandIn(name)
            sys.modules[name].__spec__ = importlib.machinery.ModuleSpec(name, None)


TAG = re.compile(r"\[(\w+)-(\d+)\]")


def count(rows: Iterable[tuple[Any, Any]], tokenizer: Any, shifted: bool = False) -> dict[str, Any]:
    """Count sequences of one row each, (input_ids, labels or mask of loss): rows by tag, tokens with loss by domain.

    Labels of -100 carry no loss; `shifted` says that labels are the next tokens already.
    """
    times: dict[str, int] = collections.Counter()
    supervised: dict[str, int] = collections.Counter()
    tokens: dict[str, int] = collections.Counter()
    for ids, labels in rows:
        ids, labels = [int(i) for i in ids], [int(i) for i in labels]
        text = tokenizer.decode(ids)
        found = {match[0] for match in TAG.finditer(text)}
        if len(found) != 1:
            found = {"[none-0]" if not found else "[mixed-0]"}
        (tag,) = found
        domain = TAG.match(tag)[1]
        times[tag] += 1
        supervised[domain] += sum(label != -100 for label in (labels if shifted else labels[1:]))
        tokens[domain] += len(ids)
    return {"times": times, "supervised": supervised, "tokens": tokens}


def count_turns(rows: Iterable[list[dict[str, str]]]) -> dict[str, Any]:
    """Count rows that are turns still: rows by tag, and no tokens."""
    times = collections.Counter(TAG.search(turns[0]["content"])[0] for turns in rows)
    return {"times": times, "supervised": {}, "tokens": {}}


def tell(result: dict[str, Any], **versions: str) -> None:
    """Print the count as the last line."""
    print("RESULT " + json.dumps({**result, "versions": versions}))


def arguments() -> tuple[Path, str]:
    """The export's folder and the model's."""
    return Path(sys.argv[1]), sys.argv[2]


def unpadded(ids: Any, labels: Any, attention: Any) -> tuple[list[int], list[int]]:
    """Leave out the padding of a batch's row."""
    keep = [bool(a) for a in attention]
    return [int(i) for i, k in zip(ids, keep, strict=True) if k], [
        int(i) for i, k in zip(labels, keep, strict=True) if k
    ]
