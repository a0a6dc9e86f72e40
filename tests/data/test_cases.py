"""Situations from public bug reports, as small inputs: nothing with meaning is dropped in silence."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import random
import re
import time
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pyarrow.ipc as ipc
import pyarrow.parquet as parquet
import pytest
from builders import write_rows
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ideal_proxy.config import parse_config
from ideal_proxy.data.duplicates import find_duplicates, prompt_mark
from ideal_proxy.data.layout import look
from ideal_proxy.data.messages import Message, Row, chat_record, messages_of
from ideal_proxy.data.preview import preview_rows
from ideal_proxy.data.rows import SourceReader, look_through, read_rows, scan
from ideal_proxy.data.template import make_template
from ideal_proxy.data.tokenizer import train_tokenizer
from ideal_proxy.data.tokenizing import tokenize_rows
from ideal_proxy.errors import UserError
from ideal_proxy.pipeline.check import check_sources, preview_sources
from ideal_proxy.pipeline.start import write_run_file

SUMS = [(f"Add {n} and 7.", f"{n} + 7 = {n + 7}") for n in range(60)]


def turn(role: str, content: str | None, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def chat(first: int = 0, last: int = 60) -> list[dict[str, Any]]:
    return [{"messages": [turn("user", q), turn("assistant", a)]} for q, a in SUMS[first:last]]


CALL = [{"type": "function", "id": "c1", "function": {"name": "add", "arguments": '{"q": "x"}'}}]
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}


def read(path: Path, **options: Any) -> tuple[list[Row], SourceReader]:
    reader = SourceReader(path, **options)
    return [row for _, row in reader], reader


def one(path: Path, record: dict[str, Any], **options: Any) -> Row:
    write_rows(path / "one.jsonl", [record])
    return next(iter(read_rows(path / "one.jsonl", **options)))


# --- what a row holds -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_thoughts_are_kept_under_any_name_and_counted(tmp_path, key):
    write_rows(tmp_path / "a.jsonl", [{"messages": [turn("user", q), turn("assistant", a, **{key: "Hm."})]}
                                      for q, a in SUMS])  # fmt: skip
    rows, reader = read(tmp_path / "a.jsonl")
    assert {row.messages[1].thoughts for row in rows} == {"Hm."}
    assert f"60 rows hold thoughts ({key})" in reader.tally.lines()
    assert rows[0].as_chat()[1] == {"role": "assistant", "content": SUMS[0][1], "reasoning_content": "Hm."}


def test_rows_that_differ_in_any_used_field_are_no_duplicates(tmp_path):
    plain = {"messages": [turn("user", "q"), turn("assistant", "a")]}
    records = [
        plain,
        {**plain, "system": "s"},
        {**plain, "tools": [TOOL]},
        {"messages": [turn("user", "q"), turn("assistant", "a", thinking="t")]},
        {"messages": [turn("user", "q"), turn("assistant", "a", tool_calls=CALL)]},
        {"messages": [turn("user", "q"), turn("assistant", "a", weight=0), turn("assistant", "b")]},
        {"messages": [turn("user", "q"), turn("assistant", "a", weight=1), turn("assistant", "b")]},
    ]
    write_rows(tmp_path / "a.jsonl", records)
    rows, _ = read(tmp_path / "a.jsonl")
    assert len({row.key for row in rows}) == len(records)
    assert not find_duplicates({"a": rows[:5]}).any
    write_rows(tmp_path / "b.jsonl", [{**plain, "id": 7, "system": None, "source": "x"}])
    (same,), reader = read(tmp_path / "b.jsonl")
    assert same.key == rows[0].key
    assert reader.tally.lines() == ["not used: id (1 row), source (1 row)"]


def test_a_system_column_opens_the_conversation_once(tmp_path):
    talk = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    row = one(tmp_path, {"system": "s", "conversations": talk})
    assert row.pairs == (("system", "s"), ("user", "q"), ("assistant", "a"))
    assert one(tmp_path, {"system": "s", "conversations": [{"from": "system", "value": "s"}, *talk]}).key == row.key
    history = {"instruction": "i", "output": "o", "history": [["q1", "a1"]], "system": "s"}
    assert [text for _, text in one(tmp_path, history).pairs] == ["s", "q1", "a1", "i", "o"]


def test_calls_of_every_dialect_read_the_same(tmp_path):
    tools = [TOOL]
    openai = {"tools": tools, "messages": [turn("user", "q"), turn("assistant", None, tool_calls=[
        {"type": "function", "function": {"name": "add", "arguments": '{"q": "x"}'}}]), turn("tool", "7")]}  # fmt: skip
    parsed = json.loads(json.dumps(openai))
    parsed["messages"][1]["tool_calls"][0]["function"]["arguments"] = {"q": "x", "padded": None}
    sharegpt = {"tools": json.dumps([TOOL["function"]]), "conversations": [
        {"from": "human", "value": "q"}, {"from": "function_call", "value": '{"name": "add", "arguments": {"q": "x"}}'},
        {"from": "observation", "value": "7"}]}  # fmt: skip
    rows = [one(tmp_path, record) for record in (openai, parsed, sharegpt)]
    assert len({row.key for row in rows}) == 1
    assert rows[0].messages[1].tool_calls == ({"name": "add", "arguments": {"q": "x"}},)
    assert rows[0].tools == (TOOL,)
    write_rows(tmp_path / "again.jsonl", [chat_record(row.messages, row.tools) for row in rows])
    assert {row.key for row in read_rows(tmp_path / "again.jsonl")} == {rows[0].key}


def test_the_columns_of_xlam_and_openorca_are_guessed(tmp_path):
    calls = json.dumps([{"name": "add", "arguments": {"q": "x"}}])
    write_rows(tmp_path / "x.jsonl", [{"query": "q", "answers": calls, "tools": json.dumps([TOOL["function"]])}])
    info = look_through(tmp_path / "x.jsonl")
    (row,) = read_rows(tmp_path / "x.jsonl", format=info.format)
    assert row.messages == (Message("user", "q"), Message("assistant", tool_calls=(json.loads(calls)[0],)))
    assert row.tools == (TOOL,)
    write_rows(tmp_path / "o.jsonl", [{"id": 1, "system_prompt": "s", "question": "q", "response": "a"}])
    (row,) = read_rows(tmp_path / "o.jsonl", format=look_through(tmp_path / "o.jsonl").format)
    assert row.pairs == (("system", "s"), ("user", "q"), ("assistant", "a"))


def test_preference_rows_images_and_sound_are_left_out_by_name(tmp_path):
    records = [
        *chat(0, 3),
        {**chat(3, 4)[0], "label": False},
        {**chat(4, 5)[0], "images": ["a.png"]},
        {**chat(5, 6)[0], "audio": {"path": "a.wav"}},
        {"messages": [turn("user", [{"type": "image"}, {"type": "text", "text": "?"}]), turn("assistant", "a")]},
        {"messages": [turn("user", "q")], "chosen": [turn("assistant", "a")], "rejected": [turn("assistant", "b")]},
        {**chat(6, 7)[0], "images": [], "label": True},
    ]
    write_rows(tmp_path / "a.jsonl", records)
    rows, reader = read(tmp_path / "a.jsonl")
    assert len(rows) == 4
    assert sorted(reader.tally.left_out) == [
        "preference rows (chosen and rejected)", "preference rows (label is false)", "rows with audio (audio)",
        "rows with images (a part of a message)", "rows with images (images)",
    ]  # fmt: skip
    assert reader.tally.left_out["rows with images (images)"] == (1, f"{tmp_path}/a.jsonl:5")
    write_rows(tmp_path / "b.jsonl", records[7:8])
    with pytest.raises(UserError, match="no row to train on: 1 row left out, preference rows"):
        scan(tmp_path / "b.jsonl")


# --- templates --------------------------------------------------------------------------------------------------

FULL = (  # Qwen's kind: thoughts, calls, answers of tools and schemas have places
    "{% if tools %}{{ '<|im_start|>system\n' }}{% for t in tools %}{{ t | tojson }}{% endfor %}{{ '<|im_end|>\n' }}"
    "{% endif %}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.reasoning_content %}{{ '<think>\n' + m.reasoning_content + '\n</think>\n\n' }}{% endif %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ '<tool_call>' + c.function.name + ' ' }}{{ c.function.arguments | tojson }}"
    "{{ '</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
BARE = (  # ChatML without places for anything
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def template(jinja: str | None):
    made = train_tokenizer(["Add 1 and 7. seven zebras drink count with care"] * 3, 300)
    if jinja is not None:
        made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", "</tool_call>"]})
        made.chat_template = jinja
    return make_template(made)


STRUCTURED = (
    Message("user", "q"),
    Message("assistant", "Let me look.", "I need add.", ({"name": "add", "arguments": {"q": "x"}},)),
    Message("tool", "8"),
    Message("assistant", "It is 8."),
)


def supervised(made, messages, tools=()) -> list[str]:
    text, spans = made.render(messages, tools)
    return [text[start:end] for start, end in spans]


def test_thoughts_and_calls_stand_where_the_template_puts_them_and_are_trained_on():
    made = template(FULL)
    assert made.render_row(Row(STRUCTURED, {}, "s:1", (TOOL,))).told == ()
    call = '<tool_call>add {"q": "x"}</tool_call>'
    thought = "<think>\nI need add.\n</think>\n\nLet me look."
    assert supervised(made, STRUCTURED, (TOOL,)) == [f"{thought}{call}<|im_end|>", "It is 8.<|im_end|>"]
    assert '"name": "add"' in made.render(STRUCTURED, (TOOL,))[0].partition("<|im_end|>")[0]
    alone = (STRUCTURED[0], Message("assistant", tool_calls=STRUCTURED[1].tool_calls))
    assert supervised(made, alone) == [f"{call}<|im_end|>"]
    untrained = (*alone[:1], Message("assistant", "no", trained=False), STRUCTURED[0], Message("assistant", "yes"))
    assert supervised(made, untrained) == ["yes<|im_end|>"]


def test_a_call_that_is_told_in_another_way_than_a_last_turn_is_trained_on_too():
    qwen3 = FULL.replace("{{ m.content }}", (
        "{% if m.role == 'assistant' and loop.last and not m.reasoning_content %}"
        "{{ '<think>\n\n</think>\n\n' }}{% endif %}"
        "{{ m.content }}"
    ))  # fmt: skip
    turns = (STRUCTURED[0], Message("assistant", tool_calls=STRUCTURED[1].tool_calls), *STRUCTURED[2:])
    assert supervised(template(qwen3), turns, (TOOL,)) == [
        '<tool_call>add {"q": "x"}</tool_call><|im_end|>', "<think>\n\n</think>\n\nIt is 8.<|im_end|>",
    ]  # fmt: skip


def test_what_a_template_has_no_place_for_is_counted_and_no_answer_is_trained_without_its_call(caplog):
    made = template(BARE)
    caplog.set_level("INFO")
    rows = [Row(messages_of([("user", q), ("assistant", a)]), {}, f"x:{n}") for n, (q, a) in enumerate(SUMS)]
    thinking = Row((Message("user", "q"), Message("assistant", "a", "hm")), {}, "t:1", (TOOL,))
    kept = tokenize_rows([*rows, thinking, Row(STRUCTURED, {}, "c:1")], made, 200)
    assert (len(kept), kept.refused) == (61, 1)
    for name in ("thoughts", "tools"):
        assert f"1 row: {name}, for which the chat template has no place: trained without them" in caplog.text
    assert "1 row: left out, tool calls without a place in the chat template (first: c:1" in caplog.text


def test_the_plain_template_writes_thoughts_calls_and_tools_as_text():
    first, second = supervised(template(None), STRUCTURED, (TOOL,))
    assert first.startswith("<think>\nI need add.\n</think>\n\nLet me look.\n<tool_call>\n")
    assert second == "It is 8.<|end|>"


# --- containers -------------------------------------------------------------------------------------------------


def as_cells(records: list[dict[str, Any]], delimiter: str) -> bytes:
    out = io.StringIO()
    names = sorted({name for record in records for name in record})
    writer = csv.DictWriter(out, names, delimiter=delimiter)
    writer.writeheader()
    writer.writerows({k: v if isinstance(v, str) else json.dumps(v) for k, v in record.items()} for record in records)
    return out.getvalue().encode()


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    """Write records as the file's name says."""
    lines = "".join(json.dumps(record) + "\n" for record in records).encode()
    if path.suffix == ".parquet":
        parquet.write_table(arrow.Table.from_pylist(records), path)
    elif path.suffix == ".arrow":
        table = arrow.Table.from_pylist(records)
        with ipc.new_stream(path, table.schema) as sink:
            sink.write_table(table)
    elif path.name.endswith((".csv", ".tsv")):
        path.write_bytes(as_cells(records, "\t" if path.suffix == ".tsv" else ","))
    elif path.name.endswith("list.json"):
        path.write_text(json.dumps(records, indent=2))
    elif path.name.endswith("object.json"):
        path.write_text(json.dumps({"version": "1", "data": records}, indent=2))
    elif path.name.endswith("columns.json"):
        names = sorted({name for record in records for name in record})
        path.write_text(json.dumps({name: [record.get(name) for record in records] for name in names}))
    elif path.name.endswith("pretty.json"):
        path.write_text("\n".join(json.dumps(record, indent=2) for record in records))
    elif path.suffix == ".zst":
        with arrow.output_stream(str(path), compression="zstd") as sink:
            sink.write(lines)
    else:
        pack = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}.get(path.suffix, bytes)
        path.write_bytes(pack(lines))
    return path


CONTAINERS = [
    "a.jsonl", "a.ndjson", "a.jsonlines", "a.json", "list.json", "object.json", "columns.json", "pretty.json", "a.csv",
    "a.tsv", "a.parquet", "a.arrow", "a.jsonl.gz", "a.json.gz", "a.jsonl.zst", "a.jsonl.bz2", "a.ndjson.xz",
]  # fmt: skip
DIALECTS = {
    "chat": lambda m: {"messages": [{"role": r, "content": c} for r, c in m]},
    "sharegpt": lambda m: {"conversations": [{"from": {"user": "human", "assistant": "gpt"}.get(r, r), "value": c}
                                             for r, c in m if r != "system"], "system": m[0][1]},
    "JSON text": lambda m: {"messages": json.dumps([{"role": r, "content": c} for r, c in m])},
    "struct of lists": lambda m: {"messages": {"role": [r for r, _ in m], "content": [c for _, c in m]}},
    "alpaca": lambda m: {"system": m[0][1], "instruction": m[-2][1], "output": m[-1][1],
                         "history": [[m[n][1], m[n + 1][1]] for n in range(1, len(m) - 2, 2)]},
    "prompt": lambda m: {"prompt": [{"role": r, "content": c} for r, c in m[:-1]],
                         "completion": [{"role": "assistant", "content": m[-1][1]}]},
}  # fmt: skip
# No NUL, which CSV cannot hold, and no text that is blank or opens like JSON, which would be another kind of row.
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), min_size=1, max_size=12).map(lambda t: f"x{t}y")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.lists(TEXT, min_size=5, max_size=5), min_size=2, max_size=4),
    container=st.sampled_from(CONTAINERS), dialect=st.sampled_from(sorted(DIALECTS)),
)  # fmt: skip
def test_every_dialect_in_every_container_gives_the_same_turns(tmp_path, texts, container, dialect):
    roles = ("system", "user", "assistant", "user", "assistant")
    said = [tuple(zip(roles, row, strict=True)) for row in texts]
    if dialect == "prompt" and container.endswith((".csv", ".tsv")):
        return  # a cell of JSON text is a text there
    path = write(tmp_path / container, [DIALECTS[dialect](row) for row in said])
    assert [row.pairs for row in read_rows(path)] == said


def test_maps_null_padding_and_nan_cells(tmp_path):
    kind = arrow.list_(arrow.map_(arrow.string(), arrow.string()))
    turns = [[[("role", "user"), ("content", "q")], [("role", "assistant"), ("content", "a")]]]
    parquet.write_table(arrow.table({"messages": arrow.array(turns, type=kind)}), tmp_path / "maps.parquet")
    assert next(iter(read_rows(tmp_path / "maps.parquet"))).pairs == (("user", "q"), ("assistant", "a"))
    padded = {"messages": None, "instruction": "i", "input": float("nan"), "output": "o", "tools": None}
    assert one(tmp_path, padded).pairs == (("user", "i"), ("assistant", "o"))


def test_valid_json_that_is_no_rows_is_told_by_what_it_holds(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"version": 1, "data": "x"}, indent=1))
    with pytest.raises(UserError, match="one object with the keys version, data, and no list of rows") as caught:
        scan(tmp_path / "a.json")
    assert "repair" not in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "record"),
    [
        ({"prompt": "question", "completion": ["rationale", "answer"]},
         {"question": "q", "rationale": "r", "answer": "a"}),
        ({"messages": "dialog", "role": "speaker", "content": "text", "roles": {"Customer": "user", "agent": "assistant"}},  # noqa: E501
         {"dialog": [{"speaker": "customer", "text": "q"}, {"speaker": "agent", "text": "r\n\na"}]}),
    ],
)  # fmt: skip
def test_columns_of_the_run_file_name_what_no_layout_knows(tmp_path, columns, record):
    write_rows(tmp_path / "a.jsonl", [record])
    entry = {"name": "a", "path": str(tmp_path / "a.jsonl"), "columns": columns}
    config = parse_config({"domains": [entry, {**entry, "name": "b"}], "capabilities": [entry]})
    assert parse_config(config.model_dump(mode="json")) == config
    for source in (config.domains[0], config.capabilities[0]):
        (row,) = read_rows(source.path, format=source.format)
        assert row.pairs == (("user", "q"), ("assistant", "r\n\na"))


# --- bad rows ---------------------------------------------------------------------------------------------------


def test_bad_rows_are_counted_by_reason_with_the_first_place_and_limited(tmp_path):
    lines = [json.dumps(row) for row in chat()]
    lines[3:3] = ["{broken", "[1]", "{again"]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(lines))
    told: list[str] = []
    rows, reader = read(path, told=told.append)
    assert len(rows) == 60
    assert {reason: count for reason, (count, _) in reader.tally.bad.items()} == {
        "not valid JSON": 2,
        "not an object": 1,
    }
    assert reader.tally.bad["not valid JSON"][1].startswith(f"{path}:4 is not valid JSON")
    assert [json.loads(line)["where"] for line in told] == [f"{path}:{n}" for n in (4, 5, 6)]
    with pytest.raises(UserError, match=r"a\.jsonl:4 is not valid JSON"):
        read(path, on_bad_rows="refuse")
    with pytest.raises(UserError, match=r"3 rows of 63 cannot be read, allowed are 2 \(the first: .*raise max_bad"):
        read(path, max_bad=2)
    path.write_text("\n".join([*lines, *["{"] * 8]))
    with pytest.raises(UserError, match="11 rows of 71 cannot be read, allowed are 10"):
        read(path)


# --- folders ----------------------------------------------------------------------------------------------------


def test_links_to_folders_are_followed_once(tmp_path):
    write_rows(tmp_path / "coding" / "part-0.jsonl", chat(0, 30))
    write_rows(tmp_path / "disk" / "part-1.jsonl", chat(30, 60))
    os.symlink("../disk", tmp_path / "coding" / "more")
    os.symlink(".", tmp_path / "coding" / "round")
    assert len({row.key for row in read_rows(tmp_path / "coding")}) == scan(tmp_path / "coding").rows == 60


def test_names_are_judged_by_their_siblings(tmp_path):
    for name in ("python", "test_generation"):
        write_rows(tmp_path / "code" / f"{name}.jsonl", chat(0, 5))
    assert scan(tmp_path / "code").rows == 10
    for name in ("train_sums", "test_sums"):
        write_rows(tmp_path / "maths" / f"{name}.jsonl", chat(0, 5))
    assert [Path(file).name for file in scan(tmp_path / "maths").files] == ["train_sums.jsonl"]
    write_rows(tmp_path / "train-tickets.jsonl", chat(0, 5))
    assert [found.name for found in look(tmp_path).domains] == ["code", "maths", "train-tickets"]


def test_two_training_splits_are_told_apart_and_asked_about(tmp_path):
    write_rows(tmp_path / "d" / "words.jsonl", chat())
    (tmp_path / "d" / "talk" / "data").mkdir(parents=True)
    for split, rows in (("train_sft", 40), ("test_sft", 20), ("train_gen", 40), ("test_gen", 20)):
        write(tmp_path / "d" / "talk" / "data" / f"{split}-00000-of-00001.parquet", chat(0, rows))
    said = write_run_file(tmp_path / "d", tmp_path / "mix.yaml")
    assert "talk_gen: 40 rows (chat), 20 reference rows" in said
    assert "talk_sft: 40 rows (chat), 20 reference rows" in said
    assert "talk/ holds 2 training splits (talk_gen, talk_sft): are they the same rows?" in said


def test_init_tells_everything_it_did_not_use(tmp_path):
    write_rows(tmp_path / "d" / "words.jsonl", [{**row, "id": 1} for row in chat()])
    write_rows(tmp_path / "d" / "asked.jsonl", [{"question": q, "answer": a} for q, a in SUMS])
    write_rows(tmp_path / "d" / "eval" / "words.jsonl", chat(0, 9))
    write_rows(tmp_path / "d" / "eval" / "safety.jsonl", chat(9, 20))
    said = " ".join(write_run_file(tmp_path / "d", tmp_path / "mix.yaml").split())
    assert "words: not used: id (60 rows)" in said
    assert "safety: no training rows, 11 reference rows" in said
    assert "asked: no known layout; answer as completion, question as prompt is a guess" in said
    assert "asked has no reference rows: the others judge it" in said
    write_rows(tmp_path / "d" / "dpo.jsonl", [{"chosen": a, "rejected": "no", "prompt": q} for q, a in SUMS])
    said = " ".join(write_run_file(tmp_path / "d", tmp_path / "mix.yaml", force=True).split())
    assert "dpo.jsonl holds no row to train on: 60 rows left out, preference rows (chosen and rejected)" in said
    assert "mix.yaml written with 2 domains" in said
    (tmp_path / "index.csv").write_text(",prompt,completion\n0,a,b\n1,c,d\n")
    assert scan(tmp_path / "index.csv").tally.lines() == ["not used: a column without a name (2 rows)"]
    write_rows(tmp_path / "d" / "pairs.jsonl", [{"inputs": q, "targets": a} for q, a in SUMS])
    (tmp_path / "d" / "bare.jsonl").write_text("\n")
    said = " ".join(write_run_file(tmp_path / "d", tmp_path / "mix.yaml", force=True).split())
    assert "pairs: no known layout; targets as completion, inputs as prompt is a guess" in said
    assert "passed over: " in said
    assert "bare.jsonl has no rows" in said
    (tmp_path / "d" / "x.json").write_text('{"version": 1}')
    (tmp_path / "d" / "y.parquet").write_bytes(b"no")
    with pytest.raises(UserError) as told:
        write_run_file(tmp_path / "d", tmp_path / "mix.yaml", force=True)
    head, *faults = str(told.value).splitlines()
    assert head == "2 sources cannot be used:"
    assert all(len(line) <= 80 or len(line.split()) == 1 for line in faults)
    assert re.search(r"\(1\) \S+x\.json .* \(2\) \S+y\.parquet is a broken", " ".join(" ".join(faults).split()))


def test_no_prompt_stands_on_both_sides_of_what_is_held_out(tmp_path):
    twins = chat() + chat(0, 30) + [{"messages": [turn("user", q), turn("assistant", "other")]} for q, _ in SUMS[20:50]]
    write_rows(tmp_path / "d" / "sums.jsonl", twins)
    write_rows(tmp_path / "d" / "words.jsonl", chat())
    write_run_file(tmp_path / "d", tmp_path / "mix.yaml", hold_out=20)
    parts = [list(read_rows(tmp_path / "mix_held_out" / "sums" / f"{part}.jsonl")) for part in ("train", "reference")]
    marks = [{prompt_mark(row) for row in part} for part in parts]
    assert not marks[0] & marks[1]
    assert sum(map(len, parts)) == len(twins)
    assert 15 <= len(parts[1]) <= 20


def test_a_word_without_end_takes_linear_time_in_check_and_preview(tmp_path):
    """Case 25: four times the letters take about four times as long, not sixteen times."""

    def seconds(letters: int) -> float:
        word = "".join(random.Random(0).choices("ACGT", k=letters))
        write_rows(tmp_path / "a.jsonl", [{"prompt": "read", "completion": word}, *SHORT])
        began = time.process_time()
        assert check_sources(config)["domains"][0]["longest"] > 64
        template, sources, context = preview_sources(config, None)
        first = next(preview_rows("a", SourceReader(sources["a"][0]), template, context.tokens, 1))
        assert first.text.endswith(word[:100]) or word[:100] in first.text
        return time.process_time() - began

    write_rows(tmp_path / "b.jsonl", SHORT)
    entries = [{"name": name, "path": str(tmp_path / f"{name}.jsonl")} for name in "ab"]
    config = parse_config({"domains": entries, "capabilities": entries[1:], "proxy": {"vocabulary": 400}})
    seconds(1_000)  # imports
    few = min(seconds(75_000), seconds(75_000))
    assert seconds(300_000) < 9 * few


SHORT = [{"prompt": f"p {n}", "completion": f"c {n}"} for n in range(20)]


def test_thoughts_among_the_parts_of_a_bare_turn_are_kept_and_counted(tmp_path):
    parts = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "3"}]
    record = {"messages": [turn("user", "1+2"), {"role": "assistant", "content": parts}]}
    assert one(tmp_path, record).messages[1] == Message("assistant", "3", "hm")
    assert scan(tmp_path / "one.jsonl").tally.used == {"thoughts (in the content)": 1}


def test_parts_of_unknown_types_are_told_by_type(tmp_path):
    part = {"type": "server_tool_use", "name": "add", "input": {}}
    write_rows(tmp_path / "a.jsonl", [{"messages": [turn("user", "q"), {"role": "assistant", "content": [part]}]}])
    with pytest.raises(UserError, match="parts of the types server_tool_use; read are text and thoughts"):
        read(tmp_path / "a.jsonl")


def test_rows_that_llama_factory_marks_as_bad_are_left_out(tmp_path):
    turns = [turn("user", "q"), turn("assistant", "a")]
    write_rows(tmp_path / "a.jsonl", [{"messages": turns, "kto_tag": good} for good in (True, False, True)])
    rows, reader = read(tmp_path / "a.jsonl")
    assert len(rows) == 2
    assert "preference rows (kto_tag is false)" in str(reader.tally.left_out)


def test_two_system_columns_are_both_used_equal_ones_once(tmp_path):
    turns = [turn("user", "q"), turn("assistant", "a")]
    both = one(tmp_path, {"system": "A", "system_prompt": "B", "messages": turns})
    equal = one(tmp_path, {"system": "A", "system_prompt": "A", "messages": turns})
    assert (both.messages[0].content, equal.messages[0].content) == ("A\n\nB", "A")


@pytest.mark.parametrize(("weight", "told"), [(0.5, True), (3, True), (1, False), (True, False), (0, False)])
def test_weights_that_cannot_be_kept_are_counted(tmp_path, weight, told):
    turns = [turn("user", "q"), turn("assistant", "b", weight=weight), turn("user", "q"), turn("assistant", "a")]
    write_rows(tmp_path / "a.jsonl", [{"messages": turns}])
    used = scan(tmp_path / "a.jsonl").tally.used
    assert ("weights between 0 and 1 or above (read as 1: full loss)" in used) == told


def test_rows_that_are_tokens_already_are_told_as_that(tmp_path):
    write_rows(tmp_path / "a.jsonl", [{"input_ids": [1, 2], "labels": [-100, 2]}])
    with pytest.raises(
        UserError, match="columns input_ids, labels are tokens already, of one tokenizer; give the rows"
    ):
        look_through(tmp_path / "a.jsonl")


def test_a_link_to_nowhere_is_listed(tmp_path):
    write_rows(tmp_path / "words.jsonl", chat())
    os.symlink("gone.jsonl", tmp_path / "dead.jsonl")
    assert look(tmp_path).passed_over == ["dead.jsonl (a link to gone.jsonl, which does not exist)"]


def test_a_link_to_its_own_folder_is_no_domain(tmp_path):
    write_rows(tmp_path / "words.jsonl", chat())
    os.symlink(".", tmp_path / "loop")
    found = look(tmp_path)
    assert [domain.name for domain in found.domains] == ["words"]
    assert found.passed_over == ["loop (a link to the folder that it lies in)"]


def test_an_empty_first_row_of_a_chat_file_is_told_as_that(tmp_path):
    write_rows(tmp_path / "a.jsonl", [{"messages": None}, *chat()])
    rows, reader = read(tmp_path / "a.jsonl")
    assert len(rows) == 60
    assert "'messages' is empty" in str(reader.tally.bad)
