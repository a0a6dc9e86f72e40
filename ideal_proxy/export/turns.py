"""The drawn rows as turns that a trainer does not drop."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Turn = dict[str, Any]
Record = dict[str, Any]


@dataclass(slots=True)
class Told:
    """What was done to the drawn rows, and what is in them that not every trainer reads."""

    ended: int = 0  # rows whose end was left out, as it follows the last answer and teaches nothing
    opened: int = 0  # rows that open with the assistant, before which an empty turn of the user was put
    joined: int = 0  # rows in which neighbouring turns of one role were joined
    unsaid: int = 0  # turns that say something beside a call of a tool, which is left out
    untrained: int = 0  # rows with a turn of the assistant that carries no loss
    several: int = 0  # rows with more answers than one

    def notes(self) -> tuple[str, ...]:
        """Say it, a note each."""
        said = (
            (self.ended, "rows go on after their last answer: what follows it is left out, as it teaches nothing"),
            (self.opened, "rows open with the assistant: an empty turn of the user stands before it"),
            (self.joined, "rows have neighbouring turns of one role: they are joined by a blank line"),
            (self.unsaid, "turns say something beside a tool call: the words are left out, its layout has no place"),
        )
        return tuple(f"{count:,} {what}" for count, what in said if count)


Change = Callable[[Record, Told], Record]


def records(path: Path, told: Told, change: Change | None = None) -> Iterator[Record]:
    """Read drawn rows, leave out what follows the last answer, and change them as a trainer wants them."""
    with open(path, "rb") as lines:
        for line in lines:
            record = json.loads(line)
            turns = record["messages"]
            answers = [n for n, turn in enumerate(turns) if turn["role"] == "assistant" and _says(turn)]
            told.ended += answers[-1] + 1 < len(turns)
            told.several += len(answers) > 1
            told.untrained += any(turns[n].get("weight") == 0 for n in answers)
            record["messages"] = turns[: answers[-1] + 1]
            yield record if change is None else change(record, told)


def _says(turn: Turn) -> bool:
    return bool(
        turn.get("tool_calls") or (turn.get("content") or "").strip() or (turn.get("reasoning_content") or "").strip()
    )


def prompt_and_completion(record: Record, told: Told) -> Record:
    """Part the last answer from what comes before it."""
    del told
    turns = record.pop("messages")
    return {"prompt": turns[:-1], "completion": turns[-1:], **record}


def with_loss_keys(record: Record, told: Told) -> Record:
    """Say by `loss`, as ms-swift reads it, which turns carry none."""
    del told
    for turn in record["messages"]:
        if turn.pop("weight", 1) == 0:
            turn["loss"] = False
    return record


def opening_question(record: Record, told: Told) -> Record:
    """Let a question, an empty one, stand before an answer that opens a row."""
    _open_with_a_question(record["messages"], told)
    return record


def _open_with_a_question(turns: list[Turn], told: Told) -> None:
    first = next((n for n, turn in enumerate(turns) if turn["role"] != "system"), 0)
    if turns[first]["role"] in {"assistant", "function_call"}:
        told.opened += 1
        like = {key: None for key in turns[first] if key not in {"role", "content", "weight"}}  # one schema in the file
        turns.insert(first, {"role": "user", "content": "", **like})


def sharegpt(record: Record, told: Told) -> Record:
    """Write turns in the roles that LLaMA-Factory knows, of which user and assistant alternate."""
    turns: list[dict[str, str]] = []
    joined = False
    for turn in record["messages"]:
        role, content = turn["role"], turn.get("content") or ""
        thoughts = turn.get("reasoning_content")
        if calls := turn.get("tool_calls"):
            told.unsaid += bool(content.strip())
            role, content = "function_call", json.dumps([call["function"] for call in calls], ensure_ascii=False)
        role = "observation" if role == "tool" else role
        if thoughts:
            content = f"<think>\n{thoughts}\n</think>\n\n{content}"
        if turns and turns[-1]["role"] == role and role != "function_call":
            joined = joined or role != "observation"  # answers to calls made at once are one turn there
            turns[-1]["content"] += ("\n" if role == "observation" else "\n\n") + content
            continue
        turns.append({"role": role, "content": content})
    _open_with_a_question(turns, told)
    told.joined += joined
    tools = record.get("tools") or ""
    return {"messages": turns, "tools": tools if isinstance(tools, str) else json.dumps(tools, ensure_ascii=False)}
