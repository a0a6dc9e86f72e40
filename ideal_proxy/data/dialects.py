"""The ways in which rows are written, and the one form they are read into.

Alpaca (`instruction`, `input`, `output`, `history`, `system`), chat (`messages`, or `conversations` with `from` and
`value`; as a list, as JSON text, as a struct of lists, as a list of maps), prompt and completion, or columns that the
run file names. What is left out has a name: `BadRow` for what cannot be read, `LeftOut` for what is no row to train on.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
from collections.abc import Sequence
from typing import Any

from ideal_proxy.data.files import BadRow, kind_of
from ideal_proxy.data.messages import SETTINGS, Message

FORMATS = ("alpaca", "chat", "prompt")
MAPPED = "columns:"  # a format that names its columns, as JSON behind this mark
WITH_SETTINGS = f" {SETTINGS}:"  # what follows a format: what the chat template is given with every row, as JSON
TAKEN = {  # what `apply_chat_template` is told by ourselves
    "conversation", "tools", "documents", "chat_template", "add_generation_prompt", "continue_final_message",
    "tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict", "messages",
    "return_assistant_tokens_mask", "tokenizer_kwargs",
}  # fmt: skip
ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "chatgpt": "assistant", "bot": "assistant",
    "function_call": "assistant", "tool_call": "assistant",
    "tool": "tool", "observation": "tool", "function": "tool", "function_response": "tool", "tool_response": "tool",
    "ipython": "tool",
}  # fmt: skip
CALLING_ROLES = ("function_call", "tool_call")
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
SYSTEMS = ("system", "system_prompt")
KTO_LABELS = ("label", "kto_tag")
WEIGHTS = ("weight", "train", "trainable", "loss")
CHATS = ("messages", "conversations")
TURN_KEYS = {
    "role", "from", "content", "value", *THOUGHTS, *WEIGHTS, "tool_calls", "function_call", "name", "tool_call_id",
}  # fmt: skip
ROW_KEYS = {
    "alpaca": {"instruction", "input", "output", "history", "tools", *SYSTEMS, *THOUGHTS},
    "chat": {*CHATS, "tools", *SYSTEMS},
    "prompt": {"prompt", "completion", "tools", *SYSTEMS, *THOUGHTS},
}
REQUIRED: dict[str, tuple[str, ...]] = {
    "alpaca": ("instruction", "output"), "chat": (), "prompt": ("prompt", "completion"),
}  # fmt: skip
SEEN_MEDIA = {
    "image": "images", "images": "images", "image_url": "images", "input_image": "images",
    "audio": "audio", "audios": "audio", "input_audio": "audio",
    "video": "videos", "videos": "videos",
}  # fmt: skip
ANSWER_OF = {"alpaca": "`output`", "chat": "assistant messages", "prompt": "`completion`"}
NO_KNOWN_COLUMNS = "no known columns"
KNOWN = "rows need instruction and output (input may be empty), messages, or prompt and completion"


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


@functools.cache
def split_format(format: str) -> tuple[str, dict[str, Any]]:
    """Return a format alone, and what the chat template is given with every row."""
    alone, found, settings = format.partition(WITH_SETTINGS)
    return alone, settings_of(json.loads(settings), "the run file") if found else {}


def settings_of(value: Any, where: str) -> dict[str, Any]:
    """Read what the chat template is given with a row: an object, or one as JSON text."""
    if blank(value):
        return {}
    if isinstance(value, str):
        value = _json(value, SETTINGS, where)
    if not isinstance(value, dict) or TAKEN & value.keys():
        what = f"the key {min(TAKEN & value.keys())!r}" if isinstance(value, dict) else kind_of(value)
        raise BadRow(
            f"{where}: {SETTINGS!r} holds {what}; it must be an object of the chat template's own settings, such as "
            '{"enable_thinking": false}', f"broken {SETTINGS}",
        )  # fmt: skip
    return {str(key): inner for key, inner in value.items() if inner is not None}


def mapping_of(format: str) -> dict[str, Any] | None:
    """Return the columns that a format names, None for a known layout."""
    format = split_format(format)[0]
    return dict(json.loads(format.removeprefix(MAPPED))) if format.startswith(MAPPED) else None


def find_format(value: dict[str, Any], where: str) -> str:
    """Tell a row's format by its columns; raises BadRow where they belong to no known one."""
    if any(name in value and _chat_like(value[name]) for name in CHATS):
        return "chat"
    if "instruction" in value and "output" in value:
        return "alpaca"
    if "prompt" in value and "completion" in value:
        return "prompt"
    blank_chat = next((name for name in CHATS if name in value and blank(value[name])), None)
    if blank_chat is not None:
        raise BadRow(f"{where}: {blank_chat!r} is empty; it must be a list of messages", NO_KNOWN_COLUMNS)
    columns = ", ".join(map(str, value)) or "none"
    raise BadRow(
        f"{where}: columns {columns} are no known format; {KNOWN}, or columns: in the run file", NO_KNOWN_COLUMNS
    )


def refuse_left_out(value: dict[str, Any], own: Sequence[str] = ()) -> None:
    """Raise LeftOut for preference rows, and rows with images or sound; `own` are columns that the user named."""
    if not blank(value.get("chosen")) and "rejected" in value and not {"chosen", "rejected"} & set(own):
        raise LeftOut("preference rows (chosen and rejected)")
    for name in KTO_LABELS:
        if value.get(name) is False:
            raise LeftOut(f"preference rows ({name} is false)")
    for name, what in SEEN_MEDIA.items():
        if name in value and name not in own and not blank(value[name]):
            raise LeftOut(f"rows with {what} ({name})")


def read_turns(
    value: dict[str, Any], format: str, where: str
) -> tuple[tuple[Message, ...], tuple[dict[str, Any], ...], dict[str, Any]]:
    """Turn a record into its turns, tool schemas and settings; raises BadRow, or LeftOut where it is not trained on."""
    columns = mapping_of(format)
    format, settings = split_format(format)
    if value.get(SETTINGS):
        settings = settings | settings_of(value[SETTINGS], where)
    raw, value = value, filled(value)
    refuse_left_out(value, _named(columns) if columns else ())
    roles: dict[str, str] = ROLES
    if columns is not None:
        value, format = _mapped(value, columns, where)
        roles = {**ROLES, **{said.lower(): role for said, role in (columns.get("roles") or {}).items()}}
    elif value is not raw:  # an empty answer is no missing column
        value |= {name: "" for name in REQUIRED[format] if name in raw and name not in value}
    tools = _tools(value["tools"], where) if value.get("tools") else ()
    said = (text_of(value[name], name, where) for name in SYSTEMS if value.get(name))
    system = "\n\n".join(dict.fromkeys(text for text in said if text.strip()))
    if format == "alpaca":
        messages = _alpaca(value, where)
    elif format == "prompt":
        _need(value, ("prompt", "completion"), format, where)
        messages = [
            *_turns(value["prompt"], "prompt", "user", where, roles),
            *_turns(value["completion"], "completion", "assistant", where, roles),
        ]
        if tools and messages[-1].content.startswith(("[{", "{")):  # xLAM's answers: calls as JSON text
            with contextlib.suppress(BadRow):
                messages[-1] = Message("assistant", tool_calls=_calls(messages[-1].content, "completion", where))
    else:
        column = next((name for name in CHATS if name in value), "")
        if not column:
            _need(value, ("messages",), format, where)
        messages = _turns(_listed(value[column], column, where), column, "user", where, roles)
    if format != "chat":
        thoughts = _thoughts(value, where)
        if thoughts and messages[-1].role == "assistant":
            last = messages[-1]
            messages[-1] = Message(last.role, last.content, thoughts, last.tool_calls, last.trained)
    if system.strip():
        messages = _opened(messages, system)
    return tuple(messages), tools, settings


def to_messages(value: dict[str, Any], format: str, where: str) -> tuple[Message, ...]:
    """Turn a record into its turns; see `read_turns`."""
    return read_turns(value, format, where)[0]


def used_keys(format: str) -> set[str]:
    """Names of the columns that a format reads."""
    columns = mapping_of(format)
    own = {*_named(columns), "tools", *SYSTEMS} if columns is not None else ROW_KEYS[split_format(format)[0]]
    return own | {SETTINGS}


def suggest_columns(value: dict[str, Any]) -> dict[str, Any] | None:
    """Suggest `columns:` for a record of no known layout, None where its names tell nothing."""
    asked = ("question", "query", "problem", "input", "prompt", "instruction", "task", "text")
    told = ("answer", "response", "solution", "output", "completion", "target", "answers", "reply")
    for name, cell in value.items():
        if _chat_like(cell) and (turns := _listed(cell, name, "")) and isinstance(turns[0], dict):
            names = list(turns[0])
            role = next((n for n in names if n in {"role", "from", "speaker", "author", "sender"}), None)
            content = next((n for n in names if n in {"content", "value", "text", "message", "utterance"}), None)
            if role and content:
                return {"messages": name, "role": role, "content": content}
    text = {name.lower().strip(): name for name, cell in value.items() if isinstance(cell, str)}
    prompt = next((text[n] for n in asked if n in text), None)
    completion = [text[n] for n in ("rationale", "reasoning", *told) if n in text and text[n] != prompt]
    if prompt is None or not completion:
        return None
    return {"prompt": prompt, "completion": completion[0] if len(completion) == 1 else completion}


def _named(columns: dict[str, Any]) -> list[str]:
    """List the columns of the file that a mapping names."""
    names: list[str] = []
    for key in ("prompt", "completion", "messages", "system", "tools"):
        names += [columns[key]] if isinstance(columns.get(key), str) else columns.get(key) or []
    return names


def _mapped(value: dict[str, Any], columns: dict[str, Any], where: str) -> tuple[dict[str, Any], str]:
    """Give a record's columns the names that we know."""
    _need(value, [n for n in _named(columns) if n not in (columns.get("system"), columns.get("tools"))], "these", where)
    found = {
        key: value[name] for key in ("system", "system_prompt", "tools") if (name := columns.get(key, key)) in value
    }
    if "messages" in columns:
        role, content = columns.get("role", "role"), columns.get("content", "content")
        turns = [_turn_record(turn) for turn in _listed(value[columns["messages"]], columns["messages"], where)]
        renamed = {role: "role", content: "content"}
        return found | {
            "messages": [{renamed.get(k, k): v for k, v in t.items()} if isinstance(t, dict) else t for t in turns]
        }, "chat"
    for key in ("prompt", "completion"):
        names = [columns[key]] if isinstance(columns[key], str) else columns[key]
        cells = [value[name] for name in names]
        if len(cells) == 1 and isinstance(cells[0], list):
            found[key] = cells[0]
        else:
            texts = [text_of(cell, name, where) for cell, name in zip(cells, names, strict=True)]
            found[key] = "\n\n".join(text for text in texts if text.strip())
    return found, "prompt"


def _alpaca(value: dict[str, Any], where: str) -> list[Message]:
    _need(value, ("instruction", "output"), "alpaca", where)
    prompt = text_of(value["instruction"], "instruction", where)
    extra = text_of(value.get("input"), "input", where)
    if extra.strip():
        prompt = f"{prompt}\n\n{extra}" if prompt.strip() else extra
    turns = []
    for n, pair in enumerate(_listed(value["history"], "history", where) if value.get("history") else []):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise BadRow(f"{where}: history[{n}] must be a question and its answer", "history is not pairs")
        turns += [Message(role, text_of(text, f"history[{n}]", where))
                  for role, text in zip(("user", "assistant"), pair, strict=True)]  # fmt: skip
    return [*turns, Message("user", prompt), Message("assistant", text_of(value["output"], "output", where))]


def _opened(messages: list[Message], system: str) -> list[Message]:
    """Let the system text of a column open a conversation, once."""
    first = messages[0] if messages else None
    if first is None or first.role != "system":
        return [Message("system", system), *messages]
    if first.content.strip() == system.strip():
        return messages
    return [Message("system", f"{system}\n\n{first.content}"), *messages[1:]]


def _chat_like(value: Any) -> bool:
    """Whether a cell holds a list of turns, in one of the ways in which they are written."""
    if isinstance(value, str):
        return value.lstrip()[:1] in {"[", "{"}
    return isinstance(value, list) or (isinstance(value, dict) and any(isinstance(v, list) for v in value.values()))


def _listed(value: Any, column: str, where: str) -> list[Any]:
    """Read a list that may stand as JSON text or as a struct of lists."""
    if isinstance(value, str) and _chat_like(value):
        value = _json(value, column, where)
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


def _json(text: str, column: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRow(
            f"{where}: {column!r} holds text that is not valid JSON ({error})", "JSON text is broken"
        ) from error


def _turn_record(turn: Any) -> Any:
    """Read a turn that Arrow keeps as a map: a list of pairs."""
    if isinstance(turn, list) and turn and all(isinstance(pair, tuple) and len(pair) == 2 for pair in turn):
        return dict(turn)
    return turn


def _turns(value: Any, column: str, role: str, where: str, roles: dict[str, str]) -> list[Message]:
    """Read a text, or a list of turns."""
    if not isinstance(value, list):
        return [Message(role, text_of(value, column, where))]
    return [_turn(_turn_record(turn), f"{column}[{n}]", where, roles) for n, turn in enumerate(value)]


def _turn(turn: Any, place: str, where: str, roles: dict[str, str]) -> Message:
    if not isinstance(turn, dict):
        raise BadRow(
            f"{where}: {place} holds {kind_of(turn)}; a message is an object with role and content", "turn is no object"
        )
    role = turn.get("role") or turn.get("from")
    content = turn["content"] if turn.get("content") is not None else turn.get("value")
    if role is None or not ("content" in turn or "value" in turn or turn.get("tool_calls")):
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
        return Message(known, "", tool_calls=_calls(text, place, where))
    turn = filled(turn)
    calls = _calls(turn["tool_calls"], place, where) if turn.get("tool_calls") else ()
    if isinstance(turn.get("function_call"), dict):
        calls = (*calls, *_calls([turn["function_call"]], place, where))
    if said in CALLING_ROLES:
        calls, text = _calls(text, place, where), ""
    answers = known == "tool"
    return Message(
        known, text, _thoughts(turn, f"{where}: {place}") or _thoughts_in(content), calls,
        trained=not any(name in turn and _zero(turn[name]) for name in WEIGHTS),
        name=str(turn.get("name") or "") if answers else "",
        call_id=str(turn.get("tool_call_id") or "") if answers else "",
    )  # fmt: skip


def _zero(value: Any) -> bool:
    return value is False or (isinstance(value, int | float) and value == 0) or value in ("0", "false", "False")


def _thoughts(value: dict[str, Any], where: str) -> str:
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


def _calls(value: Any, place: str, where: str) -> tuple[dict[str, Any], ...]:
    """Read tool calls in the ways of OpenAI, LLaMA-Factory and ms-swift: with arguments as an object."""
    if isinstance(value, str):
        value = _json(value, f"{place}.tool_calls", where)
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


def _tools(value: Any, where: str) -> tuple[dict[str, Any], ...]:
    """Read tool schemas, bare or wrapped, as a list or as JSON text."""
    if isinstance(value, str):
        if not value.strip():
            return ()
        value = _json(value, "tools", where)
    tools = []
    for tool in value if isinstance(value, list) else [value]:
        tool = _json(tool, "tools", where) if isinstance(tool, str) else tool
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


def _need(value: dict[str, Any], columns: Sequence[str], format: str, where: str) -> None:
    missing = [column for column in columns if column not in value]
    if missing:
        raise BadRow(
            f"{where}: column {missing[0]!r} is missing (found {', '.join(map(str, value)) or 'none'}); "
            f"{format} rows need {' and '.join(columns)}",
            f"column {missing[0]} is missing",
        )
