"""Training rows: their sources, their dialects, and the one form they are read into.

A source is a file, a glob, a folder, `hf:NAME` (see `hub`) or `demo:NAME?seed=S&rows=N`. Its rows are Alpaca
(`instruction`, `input`, `output`), chat (`messages`, or `conversations` with `from` and `value`) or prompt/completion,
in JSONL (also .gz), JSON or parquet. Reading turns each into a `Row`; a row without an answer is left out and counted.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ideal_proxy.data.files import Record, find_files, is_virtual, read_records
from ideal_proxy.data.hub import HUB, hub_records
from ideal_proxy.errors import UserError

log = logging.getLogger(__name__)

Message = tuple[str, str]
FORMATS = ("alpaca", "chat", "prompt")
ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "chatgpt": "assistant",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """One training or reference row.

    Attributes:
        messages: (role, content) pairs in order; roles are system, user and assistant.
        raw: the record as it was read.
        where: file and line, for messages to the user.
    """

    messages: tuple[Message, ...]
    raw: dict[str, Any]
    where: str

    @property
    def key(self) -> int:
        """Fingerprint of the content as an unsigned 64-bit number, the same on any machine."""
        return row_key(self.messages)

    @property
    def prompt(self) -> str:
        """Text of everything before the last answer."""
        return "\n".join(content for _, content in self.messages[: self._last_answer()])

    @property
    def answer(self) -> str:
        """Text of the last assistant message."""
        return self.messages[self._last_answer()][1]

    def _last_answer(self) -> int:
        return max(n for n, (role, _) in enumerate(self.messages) if role == "assistant")


@dataclass(frozen=True, slots=True)
class SourceInfo:
    """What looking through a source found.

    Attributes:
        source: as the user wrote it.
        format: alpaca, chat or prompt.
        files: files read, in order; empty for procedural sources.
        rows: rows with an answer.
        without_answer: rows left out because they have none.
        fingerprint: SHA-256 over the keys of the rows, in order.
    """

    source: str
    format: str
    files: tuple[str, ...]
    rows: int
    without_answer: int
    fingerprint: str


def row_key(messages: Iterable[Message]) -> int:
    """Fingerprint of a conversation.

    Args:
        messages: (role, content) pairs.

    Returns:
        int: first 8 bytes (big-endian) of the SHA-256 of the messages as compact JSON.
    """
    return int.from_bytes(hashlib.sha256(compact_text(messages).encode("ascii")).digest()[:8], "big")


def compact_text(messages: Iterable[Message]) -> str:
    """Write a conversation as what its key is the hash of.

    Args:
        messages: (role, content) pairs.

    Returns:
        str: what `json.dumps(ensure_ascii=True, separators=(",", ":"))` writes for a list of pairs.
    """
    quoted = json.encoder.encode_basestring_ascii  # without making an encoder for every row
    return "[" + ",".join([f"[{quoted(role)},{quoted(content)}]" for role, content in messages]) + "]"


def has_answer(messages: Iterable[Message]) -> bool:
    """Tell whether a conversation can be trained on.

    Args:
        messages: (role, content) pairs.

    Returns:
        bool: an assistant says something in it.
    """
    return any(role == "assistant" and content.strip() for role, content in messages)


def row_keys(rows: Iterable[Row]) -> npt.NDArray[np.uint64]:
    """Fingerprints of many rows.

    Args:
        rows: the rows.

    Returns:
        array (N,) uint64: one key a row.
    """
    return np.fromiter((row.key for row in rows), dtype=np.uint64)


def source_fingerprint(keys: npt.ArrayLike) -> str:
    """Fingerprint of a source: changes when a row changes, moves, comes or goes.

    Args:
        keys: row keys (N,) uint64, in the order of the source.

    Returns:
        str: SHA-256 in hex.
    """
    return hashlib.sha256(np.asarray(keys, dtype=np.uint64).astype(">u8").tobytes()).hexdigest()


def read_rows(source: str | Path, *, format: str = "auto") -> Iterator[Row]:
    """Read the rows of a source in a fixed order; files are streamed.

    Args:
        source: file, glob, folder, `hf:NAME[:CONFIG][?split=SPLIT]` or `demo:NAME?seed=S&rows=N`.
        format: alpaca, chat, prompt, or auto to look.

    Yields:
        Row: every row that has an answer.

    Raises:
        UserError: the source is missing, empty, broken, or its rows are in no known format.
    """
    reader = SourceReader(source, format=format)
    for _, row in reader:
        yield row


def scan(source: str | Path, *, format: str = "auto") -> SourceInfo:
    """Look through a source once.

    Args:
        source: as for `read_rows`.
        format: alpaca, chat, prompt, or auto to look.

    Returns:
        SourceInfo: format, files, counts and fingerprint.
    """
    reader = SourceReader(source, format=format)
    keys = np.fromiter((row.key for _, row in reader), dtype=np.uint64)
    return SourceInfo(
        source=str(source),
        format=reader.format,
        files=tuple(str(file) for file in reader.files),
        rows=len(keys),
        without_answer=reader.without_answer,
        fingerprint=source_fingerprint(keys),
    )


class SourceReader:
    """One pass over a source that yields each row beside its record and counts what it leaves out.

    Args:
        source: as for `read_rows`.
        format: alpaca, chat, prompt, or auto to look.

    Attributes:
        format: the format found, or given.
        files: files of the source, in order.
        without_answer: rows left out so far.
    """

    def __init__(self, source: str | Path, *, format: str = "auto") -> None:
        if format not in (*FORMATS, "auto"):
            raise UserError(f"format is {format!r}; it must be auto, {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
        self.source = str(source)
        self.format = format
        self.files: tuple[Path, ...] = () if is_virtual(self.source) else find_files(self.source)
        self.without_answer = 0

    def __iter__(self) -> Iterator[tuple[Record, Row]]:
        """Yield (record, row) for every row with an answer."""
        rows = 0
        self.without_answer = 0
        for record in self._records():
            if not isinstance(record.value, dict):
                raise UserError(
                    f"{record.where} holds {_kind(record.value)}, not a JSON object; write one object a line"
                )
            if self.format == "auto":
                self.format = find_format(record.value, record.where)
                log.info("%s: rows are in %s format", self.source, self.format)
            messages = to_messages(record.value, self.format, record.where)
            if not has_answer(messages):
                self.without_answer += 1
                continue
            rows += 1
            yield record, Row(messages, record.value, record.where)
        if self.without_answer:
            log.warning("%s: %d rows without an answer are left out", self.source, self.without_answer)
        if not rows:
            if self.without_answer:
                raise UserError(
                    f"none of the {self.without_answer} rows of {self.source} has an answer; "
                    f"fill the {ANSWER_OF[self.format]} of its rows"
                )
            raise UserError(f"{self.source} has no rows; take it out or put rows in it")

    def _records(self) -> Iterator[Record]:
        if self.source.startswith("demo:"):
            from ideal_proxy.data.demo import demo_rows

            for n, value in enumerate(demo_rows(self.source)):
                yield Record(value, f"{self.source} row {n + 1}")
        elif self.source.startswith(HUB):
            yield from hub_records(self.source)
        for file in self.files:
            yield from read_records(file)


def find_format(value: dict[str, Any], where: str) -> str:
    """Tell a row's format by its columns.

    Args:
        value: the first record.
        where: its place.

    Returns:
        str: alpaca, chat or prompt.

    Raises:
        UserError: the columns belong to no known format.
    """
    if isinstance(value.get("messages"), list) or isinstance(value.get("conversations"), list):
        return "chat"
    if "instruction" in value and "output" in value:
        return "alpaca"
    if "prompt" in value and "completion" in value:
        return "prompt"
    columns = ", ".join(map(str, value)) or "none"
    raise UserError(
        f"{where}: columns {columns} are no known format; "
        "rows need instruction and output (input may be empty), messages, or prompt and completion"
    )


ANSWER_OF = {
    "alpaca": "`output`", "chat": "assistant messages", "prompt": "`completion`", "auto": "answers",
}  # fmt: skip


def to_messages(value: dict[str, Any], format: str, where: str) -> tuple[Message, ...]:
    """Turn a record into messages.

    Args:
        value: the record.
        format: alpaca, chat or prompt.
        where: its place, for errors.

    Returns:
        tuple of (role, content): a missing answer is an empty assistant message.

    Raises:
        UserError: a column is missing or holds something else than text.
    """
    if format == "alpaca":
        _need(value, ("instruction", "output"), format, where)
        prompt = _text(value["instruction"], "instruction", where)
        extra = _text(value.get("input"), "input", where)
        if extra.strip():
            prompt = f"{prompt}\n\n{extra}" if prompt.strip() else extra
        system = _text(value.get("system"), "system", where)
        answer = _text(value["output"], "output", where)
        head: tuple[Message, ...] = (("system", system),) if system.strip() else ()
        return (*head, ("user", prompt), ("assistant", answer))
    if format == "prompt":
        _need(value, ("prompt", "completion"), format, where)
        return (
            *_turns(value["prompt"], "prompt", "user", where),
            *_turns(value["completion"], "completion", "assistant", where),
        )
    column = "messages" if isinstance(value.get("messages"), list) or "conversations" not in value else "conversations"
    if column not in value:
        _need(value, ("messages",), format, where)
    if not isinstance(value[column], list):
        raise UserError(f"{where}: {column!r} holds {_kind(value[column])}; it must be a list of messages")
    return _turns(value[column], column, "user", where)


def _turns(value: Any, column: str, role: str, where: str) -> tuple[Message, ...]:
    """Read a text, or a list of messages, as messages."""
    if not isinstance(value, list):
        return ((role, _text(value, column, where)),)
    messages = []
    for n, message in enumerate(value):
        place = f"{column}[{n}]"
        if not isinstance(message, dict):
            raise UserError(f"{where}: {place} holds {_kind(message)}; a message is an object with role and content")
        said = message.get("role", message.get("from"))
        if said is None or not ("content" in message or "value" in message):
            raise UserError(f"{where}: {place} has no role and content (or from and value); add them")
        if str(said).lower() not in ROLES:
            raise UserError(f"{where}: {place} has the role {said!r}; allowed are system, user and assistant")
        messages.append((ROLES[str(said).lower()], _text(message.get("content", message.get("value")), place, where)))
    return tuple(messages)


def _text(value: Any, column: str, where: str) -> str:
    """Return a column's text; null counts as empty, a list of text parts is joined."""
    if value is None:
        return ""
    if isinstance(value, list) and all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in value):
        value = "".join(part["text"] for part in value)
    if not isinstance(value, str):
        raise UserError(f"{where}: {column!r} holds {_kind(value)}; it must be text")
    if value.isascii():
        return value
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: {column!r} holds half a character ({value[error.start]!a}); save the row as valid UTF-8"
        ) from error
    return value


def _need(value: dict[str, Any], columns: tuple[str, ...], format: str, where: str) -> None:
    missing = [column for column in columns if column not in value]
    if missing:
        raise UserError(
            f"{where}: column {missing[0]!r} is missing (found {', '.join(map(str, value)) or 'none'}); "
            f"{format} rows need {' and '.join(columns)}"
        )


def _kind(value: Any) -> str:
    """Name a JSON value's kind."""
    if value is None:
        return "null"
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), type(value).__name__)
