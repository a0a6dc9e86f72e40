"""Rows of every dialect, written in every container, are read back as the same turns, tools and settings.

What is written is a conversation of ours; each dialect says how it writes one, and which conversations it can write.
The oracle is the conversation itself, so nothing that reads is used to write.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pyarrow.ipc as ipc
import pyarrow.parquet as parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ideal_proxy.data.messages import Message
from ideal_proxy.data.rows import SourceReader, look_through
from ideal_proxy.errors import UserError

Record = dict[str, Any]


@dataclass(frozen=True)
class Talk:
    """A conversation: its turns, and what stands beside them."""

    turns: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    thinking: bool | None = None


# --- conversations ----------------------------------------------------------------------------------------------

# No NUL, which CSV cannot hold, no half characters, and no text that is blank or opens like JSON.
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=12).map(lambda t: f"x{t}y")
CALL = st.builds(lambda name, text: {"name": name, "arguments": {"q": text}}, st.sampled_from(["add", "find"]), TEXT)
TOOLS = tuple(
    {"type": "function", "function": {"name": name, "description": "d", "parameters": {"type": "object"}}}
    for name in ("add", "find")
)


@st.composite
def talks(draw: st.DrawFn, *, turns: int, calls: bool, thoughts: bool, weights: bool) -> Talk:
    """Draw a conversation of `turns` questions, with or without what not every dialect can write."""
    said: list[Message] = [Message("system", draw(TEXT))] if draw(st.booleans()) else []
    called = False
    for n in range(turns):
        said.append(Message("user", draw(TEXT)))
        thought = draw(TEXT) if thoughts and draw(st.booleans()) else ""
        if calls and draw(st.booleans()):
            called = True
            said.append(Message("assistant", "", thought, (draw(CALL),)))
            said.append(Message("tool", draw(TEXT)))
            thought = ""
        trained = n == turns - 1 or not weights or draw(st.booleans())
        said.append(Message("assistant", draw(TEXT), thought, trained=trained))
    return Talk(tuple(said), TOOLS if called else (), draw(st.sampled_from([None, True, False])))


# --- dialects: how a conversation is written --------------------------------------------------------------------


def beside(talk: Talk, tools: str = "tools") -> Record:
    """Write what stands beside the turns."""
    more: Record = {tools: list(talk.tools)} if talk.tools else {}
    return more if talk.thinking is None else more | {"chat_template_kwargs": {"enable_thinking": talk.thinking}}


def openai_turn(turn: Message, thoughts: str = "reasoning_content", weight: str = "weight", on: Any = 1) -> Record:
    value: Record = {"role": turn.role, "content": turn.content}
    if turn.tool_calls:
        value["content"] = None
        value["tool_calls"] = [
            {"type": "function", "function": {"name": c["name"], "arguments": json.dumps(c["arguments"])}}
            for c in turn.tool_calls
        ]
    if turn.thoughts:
        value[thoughts] = turn.thoughts
    if turn.role == "assistant" and weight:
        value[weight] = on if turn.trained else type(on)(0)
    return value


def messages(talk: Talk, **how: Any) -> Record:
    return {"messages": [openai_turn(turn, **how) for turn in talk.turns]} | beside(talk)


def sharegpt_turns(talk: Talk, names: tuple[str, str] = ("from", "value")) -> list[Record]:
    said = []
    for turn in talk.turns:
        who = {"user": "human", "assistant": "gpt", "tool": "observation"}.get(turn.role, turn.role)
        if turn.tool_calls:
            said += [{names[0]: "function_call", names[1]: json.dumps(call)} for call in turn.tool_calls]
        else:
            said.append({names[0]: who, names[1]: turn.content})
    return said


def split_system(talk: Talk) -> tuple[Record, list[Message]]:
    first = talk.turns[0]
    return ({"system": first.content}, [*talk.turns[1:]]) if first.role == "system" else ({}, [*talk.turns])


def sharegpt(talk: Talk) -> Record:
    return {"conversations": sharegpt_turns(talk)} | beside(talk)


def sharegpt_system_column(talk: Talk) -> Record:
    system, turns = split_system(talk)
    record = {"conversations": sharegpt_turns(replace(talk, turns=tuple(turns)))} | system | beside(talk)
    return record | ({"tools": json.dumps([tool["function"] for tool in talk.tools])} if talk.tools else {})


def earlier(turns: list[Message]) -> list[list[str]]:
    return [[turns[n].content, turns[n + 1].content] for n in range(0, len(turns) - 2, 2)]


def alpaca(talk: Talk) -> Record:
    system, turns = split_system(talk)
    last: Record = {"instruction": turns[-2].content, "input": "", "output": turns[-1].content}
    return last | {"history": earlier(turns)} | system | beside(talk)


def query(talk: Talk) -> Record:
    system, turns = split_system(talk)
    return (
        {"query": turns[-2].content, "response": turns[-1].content, "history": earlier(turns)} | system | beside(talk)
    )


def prompt(talk: Talk) -> Record:
    system, turns = split_system(talk)
    return {"prompt": turns[0].content, "completion": turns[1].content} | system | beside(talk)


def prompt_turns(talk: Talk) -> Record:
    told = [openai_turn(turn, weight="") for turn in talk.turns]
    return {"prompt": told[:-1], "completion": told[-1:]} | beside(talk)


def pairs(talk: Talk) -> Record:
    system, turns = split_system(talk)
    said = [{"human": turns[n].content, "assistant": turns[n + 1].content} for n in range(0, len(turns), 2)]
    return {"conversation": said} | system | beside(talk)


def strings(talk: Talk) -> Record:
    system, turns = split_system(talk)
    return {"id": "7", "data": [turn.content for turn in turns]} | system | beside(talk)


def mapped_dialog(talk: Talk) -> Record:
    who = {"user": "customer", "assistant": "agent"}
    return {"dialog": [{"speaker": who.get(t.role, t.role), "text": t.content} for t in talk.turns]} | beside(talk)


def mapped_question(talk: Talk) -> Record:
    system, turns = split_system(talk)
    return {"Frage": turns[0].content, "Antwort": turns[1].content} | system | beside(talk)


def harmony(talk: Talk) -> Record:
    said = []
    for turn in talk.turns:
        if turn.thoughts:
            said.append({"role": "assistant", "content": turn.thoughts, "channel": "analysis"})
        more = {"channel": "final"} if turn.role == "assistant" else {}
        said.append({"role": turn.role, "content": turn.content} | more)
    return {"messages": said} | beside(talk)


def parts(talk: Talk) -> Record:
    said = []
    for turn in talk.turns:
        content = [{"type": "thinking", "thinking": turn.thoughts, "text": None}] if turn.thoughts else []
        content.append({"type": "text", "text": turn.content, "thinking": None})
        said.append({"role": turn.role, "content": content})
    return {"messages": said} | beside(talk)


def flag_column(talk: Talk) -> Record:
    more = {} if talk.thinking is None else {"enable_thinking": talk.thinking}
    return {"messages": [openai_turn(turn) for turn in talk.turns]} | beside(replace(talk, thinking=None)) | more


@dataclass(frozen=True)
class Dialect:
    """How a conversation is written, what it can hold, and the `format` it is read with where one is needed."""

    write: Callable[[Talk], Record]
    turns: int = 2
    calls: bool = False
    thoughts: bool = False
    weights: bool = False
    format: str = ""


DIALECTS = {
    "messages": Dialect(messages, calls=True, thoughts=True, weights=True),
    "messages, thinking, train": Dialect(
        lambda t: messages(t, thoughts="thinking", weight="train", on=True), thoughts=True, weights=True
    ),
    "messages, reasoning, loss": Dialect(
        lambda t: messages(t, thoughts="reasoning", weight="loss", on=True), thoughts=True, weights=True
    ),
    "messages, enable_thinking column": Dialect(flag_column, calls=True, thoughts=True),
    "channels": Dialect(harmony, thoughts=True),
    "parts": Dialect(parts, thoughts=True),
    "sharegpt": Dialect(sharegpt, calls=True),
    "sharegpt, system and tools columns": Dialect(sharegpt_system_column, calls=True),
    "pairs": Dialect(pairs),
    "alpaca": Dialect(alpaca),
    "query and response": Dialect(query),
    "prompt and completion": Dialect(prompt, turns=1),
    "prompt and completion, turns": Dialect(prompt_turns, calls=True, thoughts=True),
    "texts alone": Dialect(strings, format="guess"),
    "columns, messages": Dialect(
        mapped_dialog,
        format='columns:{"messages": "dialog", "role": "speaker", "content": "text", '
        '"roles": {"customer": "user", "agent": "assistant"}}',
    ),
    "columns, prompt": Dialect(
        mapped_question, turns=1, format='columns:{"prompt": "Frage", "completion": ["Denken", "Antwort"]}'
    ),
}


# --- how a record is packed -------------------------------------------------------------------------------------

TURNS = ("messages", "conversations", "conversation", "dialog", "prompt", "completion")


def padded(value: Any, empty: Any = None) -> Any:
    """Give every object of a list the keys of all of them, as a table does."""
    if isinstance(value, dict):
        return {key: padded(inner, empty) for key, inner in value.items()}
    if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
        names = dict.fromkeys(key for one in value for key in one)
        return [{name: padded(one.get(name, empty), empty) for name in names} for one in value]
    return value


def text_turns(record: Record) -> Record:
    return {k: json.dumps(v) if k in TURNS[:4] else v for k, v in record.items()}


def python_text(record: Record) -> Record:
    return {k: repr(v) if k in TURNS[:4] else v for k, v in record.items()}


def struct_of_lists(record: Record) -> Record:
    made = padded(record)
    for name in TURNS[:4]:
        if name in made and isinstance(made[name][0], dict):
            made[name] = {key: [turn[key] for turn in made[name]] for key in made[name][0]}
    return made


PACKINGS: dict[str, Callable[[Record], Record]] = {
    "as it is": lambda record: record,
    "null-padded": lambda record: padded(record) | {"instruction_id": None, "source": None},
    "NaN-padded": lambda record: record | {"source": math.nan, "score": math.nan, "images": None},
    "JSON text": text_turns,
    "Python text": python_text,
    "struct of lists": struct_of_lists,
    "tools as JSON text": lambda r: {
        k: json.dumps(v) if k in ("tools", "chat_template_kwargs") and not isinstance(v, str) else v
        for k, v in r.items()
    },
}

# --- containers -------------------------------------------------------------------------------------------------


def json_lines(records: list[Record]) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def names_of(records: list[Record]) -> list[str]:
    return list(dict.fromkeys(name for record in records for name in record))


def arrow_table(records: list[Record]) -> arrow.Table:
    """Make a table; what Arrow has no one type for is written as JSON text, as people do."""
    names = names_of(records)
    columns = []
    for name in names:
        cells = [None if isinstance(c := r.get(name), float) and math.isnan(c) else c for r in records]
        try:
            columns.append(arrow.array(cells))
            if arrow.types.is_struct(columns[-1].type) and columns[-1].type.num_fields == 0:
                raise arrow.ArrowInvalid
        except (arrow.ArrowInvalid, arrow.ArrowTypeError):
            columns.append(arrow.array([c if c is None or isinstance(c, str) else json.dumps(c) for c in cells]))
    return arrow.table(columns, names=names)


def maps_table(records: list[Record]) -> arrow.Table:
    """A table that keeps turns as maps of texts."""
    table = arrow_table(records)
    kind = arrow.list_(arrow.map_(arrow.string(), arrow.string()))
    for name in TURNS:
        cells = [record.get(name) for record in records]
        turns = [turn for cell in cells if isinstance(cell, list) for turn in cell]
        said = [v for turn in turns if isinstance(turn, dict) for v in turn.values()]
        plain = all(isinstance(turn, dict) for turn in turns) and all(isinstance(v, str) for v in said)
        if plain and turns and all(isinstance(cell, list) for cell in cells):
            maps = arrow.array([[list(turn.items()) for turn in cell] for cell in cells], type=kind)
            table = table.set_column(table.column_names.index(name), name, maps)
    return table


def cells(delimiter: str) -> Callable[[Path, list[Record]], None]:
    def write(path: Path, records: list[Record]) -> None:
        out = io.StringIO()
        writer = csv.writer(out, delimiter=delimiter)
        names = names_of(records)
        writer.writerow(names)
        for record in records:
            values = [record.get(name) for name in names]
            writer.writerow([
                "" if v is None or v != v else v if isinstance(v, str) else json.dumps(v) for v in values
            ])  # fmt: skip
        pack(path, out.getvalue().encode())

    return write


def pack(path: Path, content: bytes) -> None:
    """Write bytes packed as a name says."""
    if path.suffix == ".zst":
        with arrow.output_stream(str(path), compression="zstd") as sink:
            sink.write(content)
    else:
        packers: dict[str, Callable[[bytes], bytes]] = {
            ".gz": gzip.compress,
            ".bz2": bz2.compress,
            ".xz": lzma.compress,
        }
        path.write_bytes(packers.get(path.suffix, bytes)(content))


def as_lines(path: Path, records: list[Record]) -> None:
    pack(path, json_lines(records))


def as_list(path: Path, records: list[Record]) -> None:
    pack(path, json.dumps(records).encode())


def as_indented_list(path: Path, records: list[Record]) -> None:
    pack(path, json.dumps(records, indent=2).encode())


def as_object(path: Path, records: list[Record]) -> None:
    pack(path, json.dumps({"version": "1", "license": None, "rows": records}, indent=1).encode())


def as_columns(path: Path, records: list[Record]) -> None:
    pack(path, json.dumps({name: [record.get(name) for record in records] for name in names_of(records)}).encode())


def as_pandas(path: Path, records: list[Record]) -> None:
    table = {name: {str(n): r.get(name) for n, r in enumerate(records)} for name in names_of(records)}
    pack(path, json.dumps(table).encode())


def as_pretty(path: Path, records: list[Record]) -> None:
    pack(path, "\n".join(json.dumps(record, indent=2) for record in records).encode())


def as_stream(path: Path, records: list[Record]) -> None:
    table = arrow_table(records)
    with ipc.new_stream(path, table.schema) as sink:
        sink.write_table(table, max_chunksize=1)


def as_feather(path: Path, records: list[Record]) -> None:
    table = arrow_table(records)
    with ipc.new_file(path, table.schema) as sink:
        sink.write_table(table)


def as_split(path: Path, records: list[Record]) -> None:
    names = names_of(records)
    table = {"columns": names, "index": [*range(len(records))], "data": [[r.get(n) for n in names] for r in records]}
    pack(path, json.dumps(table).encode())


def saved_to_disk(path: Path, records: list[Record]) -> None:
    from datasets import Dataset

    Dataset(arrow_table(records)).save_to_disk(str(path))


def saved_splits(path: Path, records: list[Record]) -> None:
    from datasets import Dataset, DatasetDict

    table = Dataset(arrow_table(records))
    DatasetDict({"train": table, "test": table.select([0])}).save_to_disk(str(path))


def folder_of_parts(path: Path, records: list[Record]) -> None:
    path.mkdir()
    for n, record in enumerate(records):
        as_lines(path / f"part-{n:05d}.jsonl", [record])


def folder_of_shards(path: Path, records: list[Record]) -> None:
    (path / "data").mkdir(parents=True)
    for n, record in enumerate(records):
        parquet.write_table(arrow_table([record]), path / "data" / f"train-{n:05d}-of-{len(records):05d}.parquet")
    parquet.write_table(arrow_table(records[:1]), path / "data" / "test-00000-of-00001.parquet")


Writer = Callable[[Path, list[Record]], None]
CONTAINERS: dict[str, Writer] = {
    "a.jsonl": as_lines, "a.ndjson": as_lines, "a.jsonlines": as_lines, "a.json": as_lines, "list.json": as_list,
    "indented.json": as_indented_list, "object.json": as_object, "columns.json": as_columns, "pandas.json": as_pandas,
    "split.json": as_split,
    "pretty.json": as_pretty, "pretty.jsonl": as_pretty, "a.csv": cells(","), "semicolons.csv": cells(";"),
    "a.tsv": cells("\t"),
    "a.parquet": lambda path, records: parquet.write_table(arrow_table(records), path),
    "maps.parquet": lambda path, records: parquet.write_table(maps_table(records), path),
    "a.arrow": as_stream, "file.arrow": as_feather,
    "a.jsonl.gz": as_lines, "a.ndjson.xz": as_lines, "a.jsonl.bz2": as_lines, "a.jsonl.zst": as_lines,
    "a.json.gz": as_lines, "list.json.gz": as_list, "list.json.zst": as_indented_list, "a.csv.gz": cells(","),
    "a.tsv.bz2": cells("\t"), "columns.json.xz": as_columns,
    "saved": saved_to_disk, "saved splits": saved_splits, "parts": folder_of_parts, "shards": folder_of_shards,
}  # fmt: skip


def read(path: Path, format: str) -> list[Talk]:
    """Read a source as `search` does; where its columns are to be guessed, as `init` does."""
    if format == "guess":
        format = look_through(path).format
    reader = SourceReader(path, format=format or "auto", on_bad_rows="refuse")
    return [Talk(row.messages, row.tools, row.settings.get("enable_thinking")) for _, row in reader]


@pytest.mark.parametrize("name", DIALECTS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), container=st.sampled_from(sorted(CONTAINERS)), packing=st.sampled_from(sorted(PACKINGS)))
def test_what_is_written_is_read(tmp_path_factory, name, data, container, packing):
    dialect = DIALECTS[name]
    talk = talks(turns=dialect.turns, calls=dialect.calls, thoughts=dialect.thoughts, weights=dialect.weights)
    fewest = 2 if dialect.format == "guess" else 1  # columns are not guessed where a file is one object
    said = data.draw(st.lists(talk, min_size=fewest, max_size=4))
    records = [PACKINGS[packing](dialect.write(one)) for one in said]
    path = tmp_path_factory.mktemp("rows") / container
    CONTAINERS[container](path, records)
    assert read(path, dialect.format) == said


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), container=st.sampled_from(sorted(CONTAINERS)))
def test_a_file_may_mix_dialects_row_by_row(tmp_path_factory, data, container):
    known = [name for name, dialect in DIALECTS.items() if not dialect.format]
    said, records = [], []
    for name in data.draw(st.lists(st.sampled_from(known), min_size=2, max_size=5)):
        dialect = DIALECTS[name]
        said.append(data.draw(talks(turns=dialect.turns, calls=False, thoughts=False, weights=False)))
        records.append(text_turns(dialect.write(said[-1])))
    path = tmp_path_factory.mktemp("rows") / container
    CONTAINERS[container](path, records)
    assert read(path, "") == said


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.json", "a.jsonl.gz", "a.parquet"])
@pytest.mark.parametrize(
    "really", ["a.jsonl.gz", "a.jsonl.zst", "a.jsonl.bz2", "a.jsonl.xz", "a.parquet", "a.arrow", "a.jsonl"]
)
def test_a_file_is_read_by_what_it_is_whatever_its_name(tmp_path, name, really):
    talk = Talk((Message("user", "q"), Message("assistant", "a")))
    writer = CONTAINERS.get(really, as_lines)
    writer(tmp_path / f"really-{really}", [messages(talk)])
    (tmp_path / f"really-{really}").rename(tmp_path / name)
    assert read(tmp_path / name, "") == [talk]


def test_a_zip_archive_is_told_as_that(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(UserError, match=re.escape("a.jsonl is a zip archive (or an Excel file)")):
        read(tmp_path / "a.jsonl", "")


def told(path: Path, text: str) -> str:
    """What a file is refused with."""
    path.write_text(text)
    with pytest.raises(UserError) as refused:
        look_through(path)
    return str(refused.value).removeprefix(str(path))


@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_a_quote_that_is_never_closed_is_told_by_its_line(tmp_path, kind):
    mark = {"csv": ",", "tsv": "\t"}[kind]
    rows = ["prompt,completion", '"q\n0","a\n\n0"', "", *(f"q{n},a{n}" for n in range(1, 60))]
    cut = "\n".join([*rows[:13], '"q\nx","a10', *rows[13:]]).replace(",", mark)
    said = told(tmp_path / f"a.{kind}", cut)
    assert said.startswith(":18 opens a quote that is never closed"), said
    assert cut.split("\n")[17] == f'x"{mark}"a10'
    for end in ("", "\n", "\n\n"):
        honest = "\n".join([*rows, 'he said "so",5" pipe', '"x"y,"z"']) + end
        (tmp_path / f"b.{kind}").write_text(honest.replace(",", mark))
        assert look_through(tmp_path / f"b.{kind}").rows == 62


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("a.csv", "prompt,completion,completion\nq,a,b\n", " has 2 columns named 'completion'"),
        ("a.tsv", "prompt\tprompt\tcompletion\nq,a,b\n", " has 2 columns named 'prompt'"),
        (
            "a.json",
            {"columns": ["prompt", "completion", "prompt"], "data": [["q", "a", "r"]]},
            "columns named 'prompt'",
        ),
        ("a.json", {"columns": ["prompt", 0, 0], "data": []}, " has 2 columns named '0'"),
        ("a.json", {"columns": ["prompt", "completion"], "data": [["q", "a"], ["q"]]}, " row 2 has 1 cells where"),
        ("a.json", {"columns": ["prompt", "completion"], "data": [5]}, "no list of rows in it"),
        ("a.json", {"columns": ["prompt"], "data": 5}, "no list of rows in it"),
        ("a.json", {"columns": 5, "data": [["a"]]}, "no list of rows in it"),
        ("a.json", {"columns": [["a"]], "data": [["a"]]}, "columns columns, data are no known format"),
    ],
)
def test_tables_whose_columns_are_not_what_they_name_are_told(tmp_path, name, text, why):
    assert why in told(tmp_path / name, text if isinstance(text, str) else json.dumps(text))


def test_columns_without_a_name_may_be_many(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,completion,,\nq,a,,\n")
    assert look_through(tmp_path / "a.csv").rows == 1
