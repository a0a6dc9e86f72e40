"""What a metric gave item by item, so that pairs can be tested by item and not by run alone.

Legend: N items.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ideal_proxy.errors import UserError

ITEMS = "a list of objects with `id`, `score` and, where items belong together, `cluster`"


@dataclass(frozen=True, slots=True)
class Items:
    """Scores of items."""

    ids: tuple[str, ...]  # N, distinct
    scores: NDArray[np.float64]  # (N,)
    clusters: tuple[str, ...]  # N, equal for items that belong together, as those made from one template

    @classmethod
    def read(cls, value: Any, told: str) -> Items:
        """Read what a command or a function gave."""
        if not isinstance(value, list) or not value:
            raise UserError(f"{told} gave items that are no list; `items` must be {ITEMS}")
        ids, scores, clusters = [], [], []
        for entry in value:
            score = entry.get("score") if isinstance(entry, Mapping) else None
            if not isinstance(entry, Mapping) or "id" not in entry or not _is_number(score):
                raise UserError(f"{told} gave the item {str(entry)[:60]!r}; `items` must be {ITEMS}")
            ids.append(str(entry["id"]))
            scores.append(float(score))  # type: ignore[arg-type]
            clusters.append(str(entry.get("cluster", entry["id"])))
        if len(set(ids)) < len(ids):
            twice = next(name for name in ids if ids.count(name) > 1)
            raise UserError(f"{told} gave two items with the id {twice!r}; ids must differ")
        return cls(tuple(ids), np.array(scores, dtype=np.float64), tuple(clusters))

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Items:
        """Read what `to_json` gave."""
        return cls(tuple(value["ids"]), np.array(value["scores"], dtype=np.float64), tuple(value["clusters"]))

    def to_json(self) -> dict[str, Any]:
        """Return the items for a file."""
        return {"ids": list(self.ids), "scores": self.scores.tolist(), "clusters": list(self.clusters)}

    @property
    def mean(self) -> float:
        """The mean score."""
        return float(self.scores.mean())


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
