"""Turns: one list of them out of every way in which they are written, and the cells that they are made of."""

from __future__ import annotations

import ast
import contextlib
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ideal_proxy.data.messages import Message
from ideal_proxy.data.records import BadRow, kind_of

ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "chatgpt": "assistant", "bot": "assistant",
    "function_call": "assistant", "tool_call": "assistant",
    "tool": "tool", "observation": "tool", "function": "tool", "function_response": "tool", "tool_response": "tool",
    "ipython": "tool",
}  # fmt: skip
CALLING_ROLES = ("function_call", "tool_call")
THOUGHTS = ("reasoning_content", "reasoning", "thinking", "thoughts", "thought")
SAYS = {"tool_calls", "function_call", *THOUGHTS}
WEIGHTS = ("weight", "train", "trainable", "training", "loss", "loss_scale")
TURN_KEYS = {
    "role", "from", "content", "value", *THOUGHTS, *WEIGHTS, "tool_calls", "function_call", "name", "tool_call_id",
    "channel",
}  # fmt: skip
SEEN_MEDIA = {
    "image": "images", "images": "images", "image_url": "images", "input_image": "images", "image_path": "images",
    "audio": "audio", "audios": "audio", "input_audio": "audio", "audio_path": "audio",
    "video": "videos", "videos": "videos", "video_path": "videos",
}  # fmt: skip


class LeftOut(Exception):
    """A row that is left out by the name of what it holds."""


def blank(value: Any) -> bool:
    """Whether a cell holds nothing: null, NaN, an empty text or list."""
    return (
        value is None or value == "" or value == [] or value == {} or (isinstance(value, float) and math.isnan(value))
    )


def filled(value: dict[str, Any]) -> dict[str, Any]:
    """Return a record without its nulls and NaNs, which tables pad missing keys with."""
    if all(v is not None and v.__class__ is not float for v in value.values()):
        return value
    return {k: v for k, v in value.items() if not (v is None or (isinstance(v, float) and math.isnan(v)))}


def number_of(value: Any) -> float | None:
    """Return a cell as a number where it is one, also as text: true and false are 1 and 0."""
    if isinstance(value, bool | int | float):
        with contextlib.suppress(OverflowError):
            return None if value != value else float(value)
        return None
    said = value.strip().lower() if isinstance(value, str) else ""
    if said in {"true", "false"}:
        return float(said == "true")
    with contextlib.suppress(ValueError):
        return float(said) if said else None
    return None


def chat_like(value: Any) -> bool:
    """Whether a cell holds a list of turns, in one of the ways in which they are written."""
    if isinstance(value, str):
        return value.lstrip()[:1] in {"[", "{"}
    return isinstance(value, list) or (isinstance(value, dict) and any(isinstance(v, list) for v in value.values()))


def listed(value: Any, column: str, where: str) -> list[Any]:
    """Read a list that may stand as JSON text or as a struct of lists."""
    if isinstance(value, str) and chat_like(value):
        value = json_of(value, column, where)
    if isinstance(value, dict) and value and all(v is None or isinstance(v, list) for v in value.values()):
        columns = {key: cells for key, cells in value.items() if cells is not None}
        if len({len(cells) for cells in columns.values()}) > 1:
            raise BadRow(f"{where}: the lists in {column!r} differ in length", "lists that differ in length")
        value = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
    if not isinstance(value, list):
        raise BadRow(
            f"{where}: {column!r} holds {kind_of(value)}; it must be a list of messages", "not a list of turns"
        )
    return value


def json_of(text: str, column: str, where: str) -> Any:
    """Read a cell that holds JSON, or a list or an object as Python prints it."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        if text.lstrip()[:1] in {"[", "{"}:  # as Python prints it, which pandas writes into CSV
            with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
                return ast.literal_eval(text.strip())
        raise BadRow(
            f"{where}: {column!r} holds text that is not valid JSON ({error}); write the list as JSON",
            "JSON text is broken",
        ) from error


def turn_record(turn: Any) -> Any:
    """Read a turn that Arrow keeps as a map: a list of pairs."""
    if turn.__class__ is list and turn and all(isinstance(pair, tuple) and len(pair) == 2 for pair in turn):
        return dict(turn)
    return turn


def turns_of(value: Any, column: str, role: str, where: str, roles: Mapping[str, str] = ROLES) -> list[Message]:
    """Read a text, or a list of turns; texts alone are questions and answers by turns."""
    if not isinstance(value, list):
        return [Message(role, text_of(value, column, where))]
    if len(value) > 1 and value[0].__class__ is str and all(isinstance(said, str) for said in value):
        return [Message(("user", "assistant")[n % 2], text_of(said, column, where)) for n, said in enumerate(value)]
    turns: list[Message] = []
    analysis = ""  # what gpt-oss thinks in a turn of its own
    for n, turn in enumerate(value):
        said, place = turn_record(turn), f"{column}[{n}]"
        if isinstance(said, dict) and "human" in said and "assistant" in said:
            turns += [Message(ROLES[key], text_of(said[key], place, where)) for key in ("human", "assistant")]
            continue
        parts = said.get("content") if isinstance(said, dict) else None
        if parts.__class__ is list and any(_kind(part) in CALL_PARTS for part in parts):
            turns += _turns_of_parts(said, parts, place, where, roles)
            continue
        made = _turn(said, place, where, roles)
        if made.role != "assistant":
            turns.append(made)
        elif said.get("channel") == "analysis":
            analysis = "\n\n".join(text for text in (analysis, made.content) if text.strip())
        else:
            if analysis:
                made = replace(made, thoughts="\n\n".join(t for t in (analysis, made.thoughts) if t.strip()))
                analysis = ""
            calling = made.tool_calls and str(said.get("role") or said.get("from")).lower() in CALLING_ROLES
            if calling and turns and turns[-1].role == "assistant" and turns[-1].trained == made.trained:
                last = turns.pop()  # of whose answer they are a part
                made = replace(last, tool_calls=(*last.tool_calls, *made.tool_calls))
            turns.append(made)
    return [*turns, Message("assistant", thoughts=analysis)] if analysis else turns


CALL_PARTS = ("tool_use", "tool_result")


def _kind(part: Any) -> Any:
    return part.get("type") if isinstance(part, dict) else None


def _turns_of_parts(
    turn: dict[str, Any], parts: list[Any], place: str, where: str, roles: Mapping[str, str]
) -> list[Message]:
    """Read a turn in Anthropic's way: calls, and what tools answer, among the parts of its content."""
    calls = [{"name": p.get("name"), "arguments": p.get("input"), "id": p.get("id")} for p in parts
             if _kind(p) == "tool_use"]  # fmt: skip
    told = [Message("tool", text_of(p.get("content"), place, where), call_id=str(p.get("tool_use_id") or ""))
            for p in parts if _kind(p) == "tool_result"]  # fmt: skip
    rest = [p for p in parts if _kind(p) not in CALL_PARTS]
    made = _turn(turn | {"content": rest} | ({"tool_calls": calls} if calls else {}), place, where, roles)
    return [*told, made] if rest or calls else told


def _turn(turn: Any, place: str, where: str, roles: Mapping[str, str]) -> Message:
    if not isinstance(turn, dict):
        raise BadRow(
            f"{where}: {place} holds {kind_of(turn)}; a message is an object with role and content", "turn is no object"
        )
    role = turn.get("role") or turn.get("from")
    content = turn["content"] if turn.get("content") is not None else turn.get("value")
    if role is None or ("content" not in turn and "value" not in turn and SAYS.isdisjoint(turn)):
        raise BadRow(
            f"{where}: {place} has no role and content (or from and value); add them", "turn without role and content"
        )
    said = str(role).lower()
    known = roles.get(said)
    if known is None:
        raise BadRow(
            f"{where}: {place} has the role {role!r}; allowed are system, user, assistant and tool "
            "(others by columns: roles: in the run file)", "unknown role",
        )  # fmt: skip
    text = text_of(content, place, where)
    if len(turn) == 2 and not isinstance(content, list):  # parts may hold thoughts
        if said not in CALLING_ROLES:
            return Message(known, text)
        return Message(known, "", tool_calls=calls_of(text, place, where))
    turn = filled(turn)
    calls = calls_of(turn["tool_calls"], place, where) if turn.get("tool_calls") else ()
    if isinstance(turn.get("function_call"), dict):
        calls = (*calls, *calls_of([turn["function_call"]], place, where))
    if said in CALLING_ROLES:
        calls, text = calls_of(text, place, where), ""
    answers = known == "tool"
    return Message(
        known, text, thoughts_of(turn, f"{where}: {place}") or _thoughts_in(content), calls,
        trained=not any(name in turn and number_of(turn[name]) == 0 for name in WEIGHTS),
        name=str(turn.get("name") or "") if answers else "",
        call_id=str(turn.get("tool_call_id") or "") if answers else "",
    )  # fmt: skip


def thoughts_of(value: dict[str, Any], where: str) -> str:
    """Return the thoughts that stand beside an answer, under whichever name."""
    for name in THOUGHTS:
        if isinstance(value.get(name), str) and value[name].strip():
            return text_of(value[name], name, where)
    return ""


def _thoughts_in(content: Any) -> str:
    """Return the thoughts among the parts of an answer."""
    if not isinstance(content, list):
        return ""
    parts = [p for p in content if isinstance(p, dict) and p.get("type") in THOUGHTS]
    return "".join(str(part.get(part["type"]) or part.get("text") or "") for part in parts)


def calls_of(value: Any, place: str, where: str) -> tuple[dict[str, Any], ...]:
    """Read tool calls in the ways of OpenAI, LLaMA-Factory and ms-swift: with arguments as an object."""
    if isinstance(value, str):
        value = json_of(value, f"{place}.tool_calls", where)
    calls = []
    for call in value if isinstance(value, list) else [value]:
        inner = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
            raise BadRow(
                f"{where}: {place} has a tool call without a name; write name and arguments", "broken tool call"
            )
        arguments = inner.get("arguments", inner.get("parameters"))
        if isinstance(arguments, str) and arguments.strip():
            with contextlib.suppress(ValueError):  # else left as the text that the model shall write
                arguments = json.loads(arguments)
        made = {"name": inner["name"], "arguments": _without_nulls(arguments) if arguments is not None else {}}
        if call.get("id"):
            made["id"] = str(call["id"])
        calls.append(made)
    return tuple(calls)


def tools_of(value: Any, where: str) -> tuple[dict[str, Any], ...]:
    """Read tool schemas, bare or wrapped, as a list or as JSON text."""
    if isinstance(value, str):
        if not value.strip():
            return ()
        value = json_of(value, "tools", where)
    tools = []
    for tool in value if isinstance(value, list) else [value]:
        tool = json_of(tool, "tools", where) if isinstance(tool, str) else tool
        if not isinstance(tool, dict):
            raise BadRow(f"{where}: 'tools' holds {kind_of(tool)}; a tool is a JSON schema", "broken tools")
        tool = _without_nulls(tool)
        tools.append(tool if "function" in tool or ("type" in tool and "name" not in tool) else
                     {"type": "function", "function": tool})  # fmt: skip
    return tuple(tools)


def _without_nulls(value: Any) -> Any:
    """Drop the keys that a table padded with null."""
    if isinstance(value, dict):
        return {key: _without_nulls(part) for key, part in value.items() if part is not None}
    return [_without_nulls(part) for part in value] if isinstance(value, list) else value


def text_of(value: Any, column: str, where: str) -> str:
    """Return a column's text; null and NaN count as empty, a list of text parts is joined."""
    if value.__class__ is not str:
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return ""
        if isinstance(value, list) and all(isinstance(part, dict) for part in value):
            value = _joined(value)
            if isinstance(value, list):
                kinds = ", ".join(sorted({str(part.get("type")) for part in value}))
                raise BadRow(
                    f"{where}: {column!r} holds parts of the types {kinds}; read are text and thoughts "
                    "(calls are written as tool_calls, their answers as turns of the role tool)", "not text",
                )  # fmt: skip
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if not isinstance(value, str):
            raise BadRow(f"{where}: {column!r} holds {kind_of(value)}; it must be text", "not text")
    if value.isascii():
        return value
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRow(
            f"{where}: {column!r} holds half a character ({value[error.start]!a}); save the row as valid UTF-8",
            "half a character",
        ) from error
    return str(value)


def _joined(parts: list[dict[str, Any]]) -> Any:
    """Join the parts of a content; thoughts stand apart, images and sound leave the row out."""
    texts = []
    for part in parts:
        kind = part.get("type")
        if kind in SEEN_MEDIA:
            raise LeftOut(f"rows with {SEEN_MEDIA[str(kind)]} (a part of a message)")
        if kind in THOUGHTS:
            continue
        if not isinstance(part.get("text"), str):
            return parts
        texts.append(part["text"])
    return "".join(texts)
