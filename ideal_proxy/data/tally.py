"""What one pass over a source used and what it left out."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from ideal_proxy.data.dialects import ASKED, CHATS, TOLD
from ideal_proxy.data.records import BadRow
from ideal_proxy.data.turns import WEIGHTS, chat_like, filled, listed, number_of, turn_record


@dataclass(slots=True)
class Tally:
    """What one pass over a source used and what it left out."""

    rows: int = 0  # rows with an answer
    without_answer: int = 0  # rows left out because they have none
    # rows that cannot be read, by reason: how many, and what is wrong with the first
    bad: dict[str, tuple[int, str]] = field(default_factory=dict)
    # rows of a kind that is not trained on, by its name: how many, and the place of the first
    left_out: dict[str, tuple[int, str]] = field(default_factory=dict)
    used: Counter[str] = field(default_factory=Counter)  # rows that hold something besides roles and texts, by its name
    unused: Counter[str] = field(default_factory=Counter)  # rows with a key that nothing reads, by key

    @property
    def bad_rows(self) -> int:
        """Rows that cannot be read."""
        return sum(count for count, _ in self.bad.values())

    @property
    def all_left_out(self) -> int:
        """Rows left out for whatever reason."""
        return self.bad_rows + self.without_answer + sum(count for count, _ in self.left_out.values())

    def lost_lines(self) -> list[str]:
        """Say what was left out, a sentence each."""
        said = [
            f"{rows(count)} cannot be read: {reason} (first: {first})" for reason, (count, first) in self.bad.items()
        ]
        said += [f"{rows(count)} left out: {name} (first: {first})" for name, (count, first) in self.left_out.items()]
        if self.without_answer:
            said.append(f"{rows(self.without_answer)} left out: no answer")
        return said

    def lines(self) -> list[str]:
        """Say what was left out and what was used, a sentence each."""
        said = self.lost_lines()
        said += [f"{rows(count)} hold {name}" for name, count in self.used.items()]
        if self.unused:
            named = {name or "a column without a name": count for name, count in self.unused.items()}
            said.append("not used: " + ", ".join(f"{name} ({rows(count)})" for name, count in named.items()))
        return said


def rows(count: int) -> str:
    """Write a number of rows."""
    return f"{count:,} row{'' if count == 1 else 's'}"


def bad_row(source: str, where: str, reason: str, message: str) -> str:
    """Write a line of `bad_rows.jsonl`."""
    return json.dumps({"source": source, "where": where, "reason": reason, "message": message}, ensure_ascii=False)


LISTED = (*CHATS, *ASKED, *TOLD)  # columns that may hold turns


def turn_keys(value: dict[str, Any], names: Collection[str] = LISTED) -> frozenset[str]:
    """Name the keys of a record's turns where they hold more than who speaks and what is said."""
    turns = [turn for name in names if name in value for turn in _turns_of(value[name], name) if len(turn) > 2]
    return frozenset().union(*map(filled, turns)) if turns else NO_KEYS


NO_KEYS: frozenset[str] = frozenset()


def _turns_of(cell: Any, name: str) -> list[dict[str, Any]]:
    """List the turns in a column of turns, in whatever way they are written."""
    if cell.__class__ is not list and cell and chat_like(cell):
        with contextlib.suppress(BadRow):
            cell = listed(cell, name, "")
    return [t for turn in cell if isinstance(t := turn_record(turn), dict)] if isinstance(cell, list) else []


def between_weights(value: dict[str, Any]) -> bool:
    """Tell whether a turn's weight is neither 0 nor 1, such as 0.5: a token has loss or has none."""
    turns = [turn for name in LISTED for turn in _turns_of(value.get(name), name)]
    cells = [number_of(turn.get(key)) for turn in turns for key in WEIGHTS]
    return any(cell is not None and cell not in (0, 1) for cell in cells)
