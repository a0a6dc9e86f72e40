"""The ways in which rows are written, and the one form they are read into.

Alpaca (`instruction`, `input`, `output`, `history`, `system`), chat (`messages`, or `conversations` with `from` and
`value`; as a list, as JSON text, as a struct of lists, as a list of maps), prompt and completion (or query and
response), or columns that the run file names. Each row is read by its own columns, so a file may mix them. What is left
out has a name: `BadRow` for what cannot be read, `LeftOut` for what is no row to train on.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from ideal_proxy.data.messages import SETTINGS, Message
from ideal_proxy.data.records import BadRow, kind_of
from ideal_proxy.data.turns import (
    ROLES,
    SEEN_MEDIA,
    THOUGHTS,
    LeftOut,
    blank,
    calls_of,
    chat_like,
    filled,
    json_of,
    listed,
    number_of,
    text_of,
    thoughts_of,
    tools_of,
    turn_record,
    turns_of,
)

FORMATS = ("alpaca", "chat", "prompt")
MAPPED = "columns:"  # a format that names its columns, as JSON behind this mark
WITH_SETTINGS = f" {SETTINGS}:"  # what follows a format: what the chat template is given with every row, as JSON
ROW_SETTINGS = ("enable_thinking",)  # of a column of their own
TAKEN = {  # what `apply_chat_template` is told by ourselves
    "conversation", "tools", "documents", "chat_template", "add_generation_prompt", "continue_final_message",
    "tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict", "messages",
    "return_assistant_tokens_mask", "tokenizer_kwargs",
}  # fmt: skip
SYSTEMS = ("system", "system_prompt", "system_message")
TOOLS = ("tools", "functions")
KTO_LABELS = ("label", "kto_tag")
ROW_WEIGHTS = ("weight", "sample_weight", "loss_weight", "train", "trainable")
REJECTED = ("rejected_response", "rejected_messages", "non_preferred_output")
CHATS = ("messages", "conversations", "conversation")
ASKED, TOLD = ("prompt", "query"), ("completion", "response")
BESIDE = {*TOOLS, *SYSTEMS, SETTINGS, *ROW_SETTINGS}  # columns that every dialect may have
ROW_KEYS = {
    "alpaca": {"instruction", "input", "output", "history", *THOUGHTS, *BESIDE},
    "chat": {*CHATS, *BESIDE},
    "prompt": {*ASKED, *TOLD, "history", *THOUGHTS, *BESIDE},
}
MARKS = {"chosen", "rejected", *REJECTED, *KTO_LABELS, *ROW_WEIGHTS, "loss", *SEEN_MEDIA}
ANSWER_OF = {"alpaca": "`output`", "chat": "assistant messages", "prompt": "`completion`"}
NO_KNOWN_COLUMNS = "no known columns"
KNOWN = "rows need instruction and output (input may be empty), messages, or prompt and completion"


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
        value = json_of(value, SETTINGS, where)
    if not isinstance(value, dict) or TAKEN & value.keys():
        what = f"the key {min(TAKEN & value.keys())!r}" if isinstance(value, dict) else kind_of(value)
        raise BadRow(
            f"{where}: {SETTINGS!r} holds {what}; it must be an object of the chat template's own settings, such as "
            '{"enable_thinking": false}', f"broken {SETTINGS}",
        )  # fmt: skip
    return {str(key): inner for key, inner in value.items() if inner is not None}


@functools.cache
def mapping_of(format: str) -> dict[str, Any] | None:
    """Return the columns that a format names, None for a known layout."""
    format = split_format(format)[0]
    return dict(json.loads(format.removeprefix(MAPPED))) if format.startswith(MAPPED) else None


def format_text(format: str) -> str:
    """Write a format for people: its name, or which columns are read as what."""
    named = mapping_of(format)
    return (
        split_format(format)[0]
        if named is None
        else ", ".join(
            f"{column if isinstance(column, str) else json.dumps(column)} as {what}" for what, column in named.items()
        )
    )


def known_format(value: dict[str, Any]) -> str | None:
    """Tell by its columns in which known layout a row is."""
    if any(name in value and chat_like(value[name]) and value[name] for name in CHATS):
        return "chat"
    if "instruction" in value and "output" in value:
        return "alpaca"
    if any(name in value for name in ASKED) and any(name in value for name in TOLD):
        return "prompt"
    return None


def find_format(value: dict[str, Any], where: str) -> str:
    """Tell a row's format by its columns; raises BadRow where they belong to no known one."""
    known = known_format(value)
    if known is not None:
        return known
    blank_chat = next((name for name in CHATS if name in value and blank(value[name])), None)
    if blank_chat is not None:
        raise BadRow(f"{where}: {blank_chat!r} is empty; it must be a list of messages", NO_KNOWN_COLUMNS)
    columns = ", ".join(map(str, value)) or "none"
    if "input_ids" in value:
        raise BadRow(
            f"{where}: columns {columns} are tokens already, of one tokenizer; give the rows as text", NO_KNOWN_COLUMNS
        )
    raise BadRow(
        f"{where}: columns {columns} are no known format; {KNOWN}, or columns: in the run file", NO_KNOWN_COLUMNS
    )


def own_format(value: dict[str, Any], format: str) -> str:
    """Tell the format of a row of a source: the source's own, or where its columns are missing, that of its columns."""
    has = False
    if format == "chat":
        for name in CHATS:
            if name in value and _holds(value, name):
                return format
    elif format == "alpaca":
        has = _holds(value, "instruction") and _holds(value, "output")
    elif format == "prompt":
        has = any(_holds(value, name) for name in ASKED) and any(_holds(value, name) for name in TOLD)
    else:
        has = not _lacking(filled(value), mapping_of(format) or {})
    return format if has else known_format(filled(value)) or format


def _holds(value: dict[str, Any], name: str) -> bool:
    cell = value.get(name)
    return cell is not None and cell == cell and cell != []


def refuse_left_out(value: dict[str, Any], own: Collection[str] = ()) -> None:
    """Raise LeftOut for preference rows, rows without loss, with images or sound; `own` are columns the user named."""
    if MARKS.isdisjoint(value):
        return
    if not blank(value.get("chosen")) and "rejected" in value and not {"chosen", "rejected"} & set(own):
        raise LeftOut("preference rows (chosen and rejected)")
    for name in REJECTED:
        if not blank(value.get(name)) and name not in own:
            raise LeftOut(f"preference rows ({name})")
    for name in KTO_LABELS:
        cell = value.get(name)
        if cell is False or (isinstance(cell, str) and cell.strip().lower() == "false"):
            raise LeftOut(f"preference rows ({name} is false)")
    for name in (*ROW_WEIGHTS, "loss"):
        cell = value.get(name)
        if cell is not None and name not in own and (name != "loss" or cell is False) and number_of(cell) == 0:
            raise LeftOut(f"rows without loss ({name} is {str(cell).lower()})")
    for name, what in SEEN_MEDIA.items():
        if name in value and name not in own and not blank(value[name]):
            raise LeftOut(f"rows with {what} ({name})")


def read_turns(
    value: dict[str, Any], format: str, where: str
) -> tuple[tuple[Message, ...], tuple[dict[str, Any], ...], dict[str, Any]]:
    """Turn a record into its turns, tool schemas and settings; raises BadRow, or LeftOut where it is not trained on."""
    alone, settings = split_format(format)
    format = own_format(value, alone)
    columns = mapping_of(format)
    more = not BESIDE.isdisjoint(value)
    if more:
        settings = _row_settings(value, settings, where)
    raw, value = value, filled(value)
    refuse_left_out(value, named_columns(columns) if columns else ())
    roles = ROLES
    if value is not raw:  # an empty answer is no missing column
        value |= dict.fromkeys(_emptied(raw, value, format, columns), "")
    if columns is not None:
        value, format = _mapped(value, columns, where)
        roles = {**ROLES, **{said.lower(): role for said, role in (columns.get("roles") or {}).items()}}
    tools: tuple[dict[str, Any], ...] = ()
    system = ""
    if more or columns:
        tools = tuple(tool for name in TOOLS if value.get(name) for tool in tools_of(value[name], where))
        said = (text_of(value[name], name, where) for name in SYSTEMS if value.get(name))
        system = "\n\n".join(dict.fromkeys(text for text in said if text.strip()))
    if format == "alpaca":
        messages = _alpaca(value, where)
    elif format == "prompt":
        messages = _prompt(value, where, tools=bool(tools), roles=roles)
    else:
        column = next((name for name in CHATS if value.get(name)), next((n for n in CHATS if n in value), ""))
        if not column:
            _need(value, ("messages",), format, where)
        messages = turns_of(listed(value[column], column, where), column, "user", where, roles)
    if format != "chat":
        thoughts = thoughts_of(value, where)
        if thoughts and messages[-1].role == "assistant":
            messages[-1] = replace(messages[-1], thoughts=thoughts)
    if system:
        messages = _opened(messages, system)
    return tuple(messages), tools, settings


def _emptied(raw: dict[str, Any], value: dict[str, Any], format: str, columns: dict[str, Any] | None) -> list[str]:
    """List the columns that a row has to have, and has with nothing in them."""
    layouts: dict[str, list[Sequence[str]]] = {"alpaca": [["instruction"], ["output"]], "prompt": [ASKED, TOLD]}
    needed = layouts.get(format, [])
    if columns is not None:
        needed = [[name] for name in _lacking(value, columns)]
    return [found[0] for names in needed if not any(name in value for name in names)
            and (found := [name for name in names if name in raw])]  # fmt: skip


def _row_settings(value: dict[str, Any], settings: dict[str, Any], where: str) -> dict[str, Any]:
    """What the chat template is given with a row: its source's settings, under the row's own columns."""
    for name in ROW_SETTINGS:
        if name in value and not blank(value[name]):
            said = number_of(value[name])
            if said not in (0, 1):
                raise BadRow(f"{where}: {name!r} holds {value[name]!r}; it must be true or false", f"broken {name}")
            settings = settings | {name: said == 1}
    own = value.get(SETTINGS)
    return settings | settings_of(own, where) if own else settings


def to_messages(value: dict[str, Any], format: str, where: str) -> tuple[Message, ...]:
    """Turn a record into its turns; see `read_turns`."""
    return read_turns(value, format, where)[0]


def used_keys(format: str) -> set[str]:
    """Names of the columns that a format reads."""
    columns = mapping_of(format)
    return {*named_columns(columns), *BESIDE} if columns is not None else ROW_KEYS[split_format(format)[0]]


def suggest_columns(value: dict[str, Any]) -> dict[str, Any] | None:
    """Suggest `columns:` for a record of no known layout, None where its names tell nothing."""
    asked = ("question", "query", "problem", "prompt", "instruction", "task", "input", "inputs", "text")
    beside = ("context", "passage", "input")  # what is asked about
    told = ("answer", "response", "solution", "output", "completion", "target", "targets", "answers", "reply")
    for name, cell in value.items():
        if chat_like(cell) and (turns := _turns_in(cell, name)):
            if isinstance(turns[0], str):
                if name.lower() in DIALOGUES and all(isinstance(turn, str) for turn in turns):
                    return {"messages": name}
                continue
            names = list(turns[0])
            role = next((n for n in names if n in {"role", "from", "speaker", "author", "sender"}), None)
            content = next((n for n in names if n in {"content", "value", "text", "message", "utterance"}), None)
            if role and content:
                return {"messages": name, "role": role, "content": content}
    text = {name.lower().strip(): name for name, cell in value.items() if isinstance(cell, str | int | None)}
    prompt = [text[n] for n in asked if n in text][:1]
    completion = [text[n] for n in ("rationale", "reasoning", *told) if n in text and text[n] not in prompt]
    if not prompt or not completion:
        return None
    prompt += [text[n] for n in beside if n in text and text[n] not in (*prompt, *completion)]
    return {key: names[0] if len(names) == 1 else names for key, names in
            (("prompt", prompt), ("completion", completion))}  # fmt: skip


DIALOGUES = {"data", "dialog", "dialogue", "dialogues", "turns", "utterances", "chat"}


def _turns_in(cell: Any, name: str) -> list[Any]:
    """Return what a cell lists where these may be turns: objects, or at least two texts."""
    with contextlib.suppress(BadRow):
        turns = [turn_record(turn) for turn in listed(cell, name, "")]
        if turns and (isinstance(turns[0], dict) or (isinstance(turns[0], str) and len(turns) > 1)):
            return turns
    return []


def named_columns(columns: dict[str, Any]) -> list[str]:
    """List the columns of the file that a mapping names."""
    names: list[str] = []
    for key in ("prompt", "completion", "messages", "system", "tools"):
        names += [columns[key]] if isinstance(columns.get(key), str) else columns.get(key) or []
    return names


def _lacking(value: dict[str, Any], columns: dict[str, Any]) -> list[str]:
    """List the columns that a mapping needs and a record lacks; of several that are put together, one is enough."""
    needed = [[named] if isinstance(named, str) else named for key in ("prompt", "completion", "messages")
              if (named := columns.get(key))]  # fmt: skip
    return [names[0] for names in needed if not any(name in value for name in names)]


def _mapped(value: dict[str, Any], columns: dict[str, Any], where: str) -> tuple[dict[str, Any], str]:
    """Give a record's columns the names that we know."""
    lacking = _lacking(value, columns)
    if lacking:
        _need(value, lacking, "these", where)
    found = {key: value[name] for key in BESIDE if (name := columns.get(key, key)) in value}
    if "messages" in columns:
        role, content = columns.get("role", "role"), columns.get("content", "content")
        turns = [turn_record(turn) for turn in listed(value[columns["messages"]], columns["messages"], where)]
        renamed = {role: "role", content: "content"}
        return found | {
            "messages": [{renamed.get(k, k): v for k, v in t.items()} if isinstance(t, dict) else t for t in turns]
        }, "chat"
    for key in ("prompt", "completion"):
        names = [columns[key]] if isinstance(columns[key], str) else columns[key]
        cells = [value.get(name) for name in names]
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
    answer = Message("assistant", text_of(value["output"], "output", where))
    return [*_history(value, where), Message("user", prompt), answer]


def _history(value: dict[str, Any], where: str) -> list[Message]:
    """Read earlier questions and their answers."""
    turns = []
    for n, pair in enumerate(listed(value["history"], "history", where) if value.get("history") else []):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise BadRow(f"{where}: history[{n}] must be a question and its answer", "history is not pairs")
        turns += [Message(role, text_of(text, f"history[{n}]", where))
                  for role, text in zip(("user", "assistant"), pair, strict=True)]  # fmt: skip
    return turns


def _prompt(value: dict[str, Any], where: str, *, tools: bool, roles: dict[str, str]) -> list[Message]:
    """Read a prompt and its completion, or a query and its response, each a text or a list of turns."""
    columns = [next((name for name in names if name in value), names[0]) for names in (ASKED, TOLD)]
    _need(value, columns, "prompt", where)
    asked, told = (_perhaps_turns(value[name]) for name in columns)
    if isinstance(told, list) and not isinstance(asked, list):
        told = value[columns[1]]  # the text of an answer may be a list
    messages = [
        *_history(value, where),
        *turns_of(asked, columns[0], "user", where, roles),
        *turns_of(told, columns[1], "assistant", where, roles),
    ]
    if tools and messages[-1].content.startswith(("[{", "{")):  # xLAM's answers: calls as JSON text
        with contextlib.suppress(BadRow):
            messages[-1] = Message("assistant", tool_calls=calls_of(messages[-1].content, columns[1], where))
    return messages


def _perhaps_turns(cell: Any) -> Any:
    """Return the turns that a cell of a table holds as JSON text, else the cell."""
    if isinstance(cell, str) and cell.lstrip()[:1] == "[" and cell.rstrip()[-1:] == "]":
        with contextlib.suppress(BadRow):
            turns = json_of(cell, "", "")
            if turns and all(isinstance(turn, dict) and {"role", "content"} <= turn.keys() for turn in turns):
                return turns
    return cell


def _opened(messages: list[Message], system: str) -> list[Message]:
    """Let the system text of a column open a conversation, once."""
    first = messages[0] if messages else None
    if first is None or first.role != "system":
        return [Message("system", system), *messages]
    if first.content.strip() == system.strip():
        return messages
    return [Message("system", f"{system}\n\n{first.content}"), *messages[1:]]


def _need(value: dict[str, Any], columns: Sequence[str], format: str, where: str) -> None:
    missing = [column for column in columns if column not in value]
    if missing:
        raise BadRow(
            f"{where}: column {missing[0]!r} is missing (found {', '.join(map(str, value)) or 'none'}); "
            f"{format} rows need {' and '.join(columns)}",
            f"column {missing[0]} is missing",
        )
