"""What the rows of sources look like, so that one file gets one schema: the same keys with the same types in every row.

`datasets.load_dataset` takes the columns of a file from its first rows; a key that comes later, or changes its type,
ends the reading.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ideal_proxy.data import SETTINGS, Message, Row, chat_record
from ideal_proxy.store import json_bytes

MOST_LINES = 4  # shapes of lines that are told apart
MOST_PATHS = 2_000  # within the arguments of calls; beyond, arguments are written as text


@dataclass(slots=True)
class Shape:
    """What is in the rows of a source."""

    # the shapes of its lines: one where all have the same keys with values of the same types
    lines: set[str] = field(default_factory=set)
    turn_keys: set[str] = field(default_factory=set)  # keys that some turns have beside role and content
    call_keys: set[str] = field(default_factory=set)  # keys that some calls have beside type and function
    tools: bool = False  # whether some rows have schemas
    settings: set[str] = field(default_factory=set)  # keys of `chat_template_kwargs` that some rows have
    # for every place in the arguments of calls, the types that stand there
    arguments: dict[str, set[str]] = field(default_factory=dict)

    def add(self, value: Any, row: Row) -> None:
        """Take a row and its record into account."""
        messages, tools = row.messages, row.tools
        self.settings.update(row.settings)
        if row.settings and SETTINGS not in value:
            self.lines.add(SETTINGS)  # its domain's, which its line does not say
        if len(self.lines) < MOST_LINES:
            self.lines.add(_shape(value))
        self.tools = self.tools or bool(tools)
        if all(turn.plain for turn in messages):
            return
        for turn in chat_record(messages)["messages"]:
            self.turn_keys.update(turn.keys() - {"role", "content"})
            for call in turn.get("tool_calls", ()):
                self.call_keys.update(call.keys() - {"type", "function"})
                if len(self.arguments) < MOST_PATHS:
                    _places(call["function"]["arguments"], "", self.arguments)

    def to_json(self) -> dict[str, Any]:
        """Return it for a file."""
        return {
            "lines": sorted(self.lines), "turn_keys": sorted(self.turn_keys), "call_keys": sorted(self.call_keys),
            "tools": self.tools, "settings": sorted(self.settings),
            "arguments": {place: sorted(kinds) for place, kinds in self.arguments.items()},
        }  # fmt: skip

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Shape:
        """Read what `to_json` wrote; a ValueError where it is something else."""
        shape = cls(
            set(value["lines"]), set(value["turn_keys"]), set(value["call_keys"]), bool(value["tools"]),
            set(value["settings"]), {place: set(kinds) for place, kinds in value["arguments"].items()},
        )  # fmt: skip
        if shape.to_json() != value:
            raise ValueError("this is no shape of rows")
        return shape


@dataclass(frozen=True, slots=True)
class ChatLayout:
    """How a row is written as `messages`, so that all rows of a file have the same keys."""

    turn_keys: tuple[str, ...] = ()  # keys that every turn gets beside role and content
    call_keys: tuple[str, ...] = ()  # keys that every call gets beside type and function
    tools: bool = False  # whether every row gets its schemas, as JSON text
    settings: tuple[str, ...] = ()  # keys of `chat_template_kwargs` that every row gets
    arguments_as_text: bool = False  # write the arguments of calls as JSON text, since their types differ

    def line(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]], settings: Mapping[str, Any]) -> bytes:
        """Write a row as a line without its end."""
        record = chat_record(messages)
        if self.turn_keys:
            record["messages"] = [self._turn(turn) for turn in record["messages"]]
        if self.tools:
            record["tools"] = json.dumps(list(tools), ensure_ascii=False)
        if self.settings:
            record[SETTINGS] = {key: settings.get(key) for key in self.settings}
        return json_bytes(record)

    def _turn(self, turn: dict[str, Any]) -> dict[str, Any]:
        filled = turn | {key: 1 if key == "weight" else None for key in self.turn_keys if key not in turn}
        calls = [self._call(call) for call in turn.get("tool_calls", ())]
        return filled | ({"tool_calls": calls} if calls else {})

    def _call(self, call: dict[str, Any]) -> dict[str, Any]:
        function = call["function"]
        if self.arguments_as_text:
            function = function | {"arguments": json.dumps(function["arguments"], ensure_ascii=False)}
        return call | {"function": function} | {key: None for key in self.call_keys if key not in call}


def one_schema(shapes: Iterable[Shape]) -> bool:
    """Whether the lines of all sources have the same keys and types as they stand."""
    return len(set().union(*(shape.lines for shape in shapes))) == 1


def chat_layout(shapes: Iterable[Shape]) -> ChatLayout:
    """The one layout of `messages` that the rows of all sources fit into."""
    shapes = list(shapes)
    kinds: dict[str, set[str]] = {}
    for shape in shapes:
        for place, found in shape.arguments.items():
            kinds.setdefault(place, set()).update(found)
    mixed = len(kinds) >= MOST_PATHS or any(len(found - {"null"}) > 1 for found in kinds.values())
    keys = [sorted(set().union(*names)) for names in ([s.turn_keys for s in shapes], [s.call_keys for s in shapes])]
    # an object without keys has no place in a column of parquet
    settings = tuple(sorted(set().union(*(s.settings for s in shapes))))
    return ChatLayout(
        tuple(keys[0]), tuple(keys[1]), any(s.tools for s in shapes), settings, mixed or "{}" in kinds.get("", ())
    )


def _shape(value: Any) -> str:
    """A value's type as text; of objects and lists also what is in them."""
    if isinstance(value, dict):
        return "{" + ",".join(sorted([f"{json.dumps(key)}:{_shape(inner)}" for key, inner in value.items()])) + "}"
    if isinstance(value, list | tuple):
        return "[" + "|".join(sorted({_shape(inner) for inner in value})) + "]"
    return _kind(value)


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def _places(value: Any, place: str, found: dict[str, set[str]]) -> None:
    """Note the type at every place of a value."""
    if isinstance(value, dict):
        found.setdefault(place, set()).add("object" if value else "{}")
        for key, inner in value.items():
            _places(inner, f"{place}.{key}", found)
    elif isinstance(value, list):
        found.setdefault(place, set()).add("list")
        for inner in value:
            _places(inner, f"{place}[]", found)
    else:
        found.setdefault(place, set()).add(_kind(value))
