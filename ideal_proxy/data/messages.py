"""A row: its turns and tool schemas, the form that chat templates take, and the key that tells it from other rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

# Rises when rows of the same content get another key: 2 added thoughts, tools and untrained turns, 3 settings,
# 4 joins a call in a turn of its own to the answer before it.
KEY_VERSION = 4
SETTINGS = "chat_template_kwargs"  # the column, as TRL and ms-swift name it


@dataclass(frozen=True, slots=True)
class Message:
    """One turn."""

    role: str  # system, user, assistant or tool
    content: str = ""  # what is said
    thoughts: str = ""  # what the assistant thinks before it says it
    # functions that the assistant calls, each `{"name", "arguments"}` with an `id` where it has one
    tool_calls: tuple[dict[str, Any], ...] = field(default=(), hash=False)
    trained: bool = True  # false where the row says that this turn carries no loss
    name: str = ""  # of the tool that answers
    call_id: str = ""  # the call that a tool answers

    @property
    def plain(self) -> bool:
        """Whether role and content are all there is to it."""
        return not (
            self.thoughts or self.tool_calls or self.name or self.call_id or not self.trained or self.role == "tool"
        )

    @property
    def says(self) -> bool:
        """Whether there is anything to train on: words, thoughts or a call."""
        return bool(self.tool_calls or self.content.strip() or self.thoughts.strip())

    def as_chat(self, thoughts: str = "reasoning_content") -> dict[str, Any]:
        """Write the turn as `apply_chat_template` takes it, its thoughts under the key that the template reads."""
        value: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.thoughts:
            value[thoughts] = self.thoughts
        if self.tool_calls:
            value["tool_calls"] = [
                {"type": "function", **({"id": call["id"]} if "id" in call else {}),
                 "function": {"name": call["name"], "arguments": call["arguments"]}}
                for call in self.tool_calls
            ]  # fmt: skip
        if self.name:
            value["name"] = self.name
        if self.call_id:
            value["tool_call_id"] = self.call_id
        return value

    def flat(self) -> str:
        """Write thoughts and calls into the text, for a template that has no place of its own for them."""
        text = f"<think>\n{self.thoughts}\n</think>\n\n{self.content}" if self.thoughts else self.content
        calls = [f"<tool_call>\n{json.dumps(c, ensure_ascii=False)}\n</tool_call>" for c in self.tool_calls]
        return "\n".join([*([text] if text else []), *calls])


Said = Message | tuple[str, str]


def messages_of(said: Iterable[Said]) -> tuple[Message, ...]:
    """Take turns, or (role, content) pairs, as turns."""
    return tuple(turn if isinstance(turn, Message) else Message(*turn) for turn in said)


@dataclass(frozen=True, slots=True)
class Row:
    """One training or reference row."""

    messages: tuple[Message, ...]  # the turns in order
    raw: dict[str, Any]  # the record as it was read
    where: str  # file and line, for messages to the user
    tools: tuple[dict[str, Any], ...] = field(default=(), hash=False)
    # what else the chat template is given (`chat_template_kwargs`), of the row or its domain
    settings: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def key(self) -> int:
        """Fingerprint of the content as an unsigned 64-bit number, the same on any machine."""
        return row_key(self.messages, self.tools, self.settings)

    @property
    def prompt(self) -> str:
        """Text of everything before the last answer."""
        return "\n".join(turn.content for turn in self.messages[: self._last_answer()])

    @property
    def answer(self) -> str:
        """Text of the last assistant message."""
        return self.messages[self._last_answer()].content

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Role and content of every turn."""
        return tuple((turn.role, turn.content) for turn in self.messages)

    def as_chat(self) -> list[dict[str, Any]]:
        """Write the turns as `apply_chat_template` of transformers takes them; `tools` goes beside them."""
        return [turn.as_chat() for turn in self.messages]

    def _last_answer(self) -> int:
        said = (n for n, turn in enumerate(self.messages) if turn.role == "assistant")
        return max(said, default=len(self.messages) - 1)


def chat_record(
    messages: Sequence[Message], tools: Sequence[dict[str, Any]] = (), settings: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Write a row as a record in chat format that reads back as the same row."""
    record: dict[str, Any] = {
        "messages": [turn.as_chat() | ({} if turn.trained else {"weight": 0}) for turn in messages]
    }
    if tools:
        record["tools"] = list(tools)
    if settings:
        record[SETTINGS] = dict(settings)
    return record


def row_key(
    messages: Iterable[Said], tools: Sequence[dict[str, Any]] = (), settings: Mapping[str, Any] | None = None
) -> int:
    """Fingerprint of a conversation."""
    return int.from_bytes(hashlib.sha256(compact_text(messages, tools, settings).encode("ascii")).digest()[:8], "big")


def compact_text(
    messages: Iterable[Said], tools: Sequence[dict[str, Any]] = (), settings: Mapping[str, Any] | None = None
) -> str:
    """Write a conversation as what its key is the hash of: compact ASCII JSON."""
    # Roles and contents alone are a list of pairs, as before version 2 of the key; anything more makes it an object.
    turns = messages_of(messages)
    if not tools and not settings and all(turn.plain for turn in turns):
        quoted = json.encoder.encode_basestring_ascii  # without making an encoder for every row
        return "[" + ",".join([f"[{quoted(turn.role)},{quoted(turn.content)}]" for turn in turns]) + "]"
    value = chat_record(turns, tools, settings)
    return json.dumps(value, ensure_ascii=True, separators=(",", ":"), sort_keys=True)


def has_answer(messages: Iterable[Said]) -> bool:
    """Tell whether an assistant says, thinks or calls anything in a conversation."""
    return any(turn.role == "assistant" and turn.says for turn in messages_of(messages))


def row_keys(rows: Iterable[Row]) -> npt.NDArray[np.uint64]:
    """Fingerprints of many rows."""
    return np.fromiter((row.key for row in rows), dtype=np.uint64)


def source_fingerprint(keys: npt.ArrayLike) -> str:
    """Fingerprint of a source: changes when a row changes, moves, comes or goes."""
    return hashlib.sha256(np.asarray(keys, dtype=np.uint64).astype(">u8").tobytes()).hexdigest()


def prompt_groups(rows: Sequence[Row], keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Give each row the smallest key of the rows with its prompt, (N,) uint64; a row without a prompt keeps its own."""
    places: dict[str, int] = {}
    group = np.fromiter(
        (places.setdefault(text, n) if (text := row.prompt.strip()) else n for n, row in enumerate(rows)),
        dtype=np.int64, count=len(rows),
    )  # fmt: skip
    smallest = np.asarray(keys, dtype=np.uint64).copy()
    np.minimum.at(smallest, group, keys)
    return smallest[group]
