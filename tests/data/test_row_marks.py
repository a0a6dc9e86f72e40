"""What a row's own columns say of it: a bad answer, no loss, a weight, whether it thinks; each is told by name."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from builders import write_rows

from ideal_proxy.data.messages import Message
from ideal_proxy.data.rows import NothingToTrainOnError, SourceReader, look_through, read_rows, scan
from ideal_proxy.errors import UserError


def talk(n: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"q {n}"}, {"role": "assistant", "content": f"a {n}"}]


def read(path: Path) -> tuple[list[str], SourceReader]:
    reader = SourceReader(path)
    return [row.answer for _, row in reader], reader


def cells(path: Path, rows: list[dict[str, Any]]) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.mark.parametrize("name", ["label", "kto_tag"])
@pytest.mark.parametrize(
    ("good", "bad"), [(True, False), (1, 0), ("1", "0"), ("true", "false"), ("True", "FALSE"), (1.0, 0.0)], ids=str
)
def test_a_mark_of_bad_answers_leaves_these_out_however_it_is_written(tmp_path, name, good, bad):
    rows = [{"messages": talk(n), name: bad if n % 3 == 0 else good} for n in range(9)]
    answers, reader = read(write_rows(tmp_path / "a.jsonl", rows))
    assert answers == [f"a {n}" for n in range(9) if n % 3]
    ((told, (count, first)),) = reader.tally.left_out.items()
    assert (told.startswith(f"preference rows ({name} is "), count, first) == (True, 3, f"{tmp_path}/a.jsonl:1")
    assert f"6 rows hold a mark as good ({name}), of preference rows" in reader.tally.lines()
    rows = [{"prompt": f"q {n}", "completion": f"a {n}", name: bad if n % 3 == 0 else good} for n in range(9)]
    assert read(cells(tmp_path / "a.csv", rows))[0] == answers


@pytest.mark.parametrize("labels", [(0, 1, 2), ("0", "4", "1"), ("spam", "ham", "0"), (0.0, 0.5, 1.0)])
def test_a_label_that_names_a_class_is_no_mark(tmp_path, labels):
    write_rows(tmp_path / "a.jsonl", [{"messages": talk(n), "label": label} for n, label in enumerate(labels)])
    answers, reader = read(tmp_path / "a.jsonl")
    assert answers == ["a 0", "a 1", "a 2"]
    assert reader.tally.lines() == ["not used: label (3 rows)"]


@pytest.mark.parametrize(
    "more",
    [{"rejected_response": "no"}, {"rejected_messages": talk(0)}, {"chosen": "a", "rejected": "b"},
     {"non_preferred_output": talk(1)[1:]}],
    ids=lambda more: next(iter(more)),
)  # fmt: skip
def test_a_row_with_a_worse_answer_beside_it_is_a_preference_row(tmp_path, more):
    write_rows(tmp_path / "a.jsonl", [{"messages": talk(n), **more} for n in range(3)])
    with pytest.raises(NothingToTrainOnError, match=r"3 rows left out, preference rows \("):
        scan(tmp_path / "a.jsonl")
    write_rows(tmp_path / "b.jsonl", [{"messages": talk(n)} | dict.fromkeys(more, None if n else []) for n in range(3)])
    assert scan(tmp_path / "b.jsonl").rows == 3


@pytest.mark.parametrize(
    ("name", "zero"), [("weight", 0), ("weight", "0.0"), ("sample_weight", 0.0), ("train", False), ("train", "false"),
                       ("trainable", False), ("loss", False)],
)  # fmt: skip
def test_rows_without_loss_are_left_out_by_name(tmp_path, name, zero):
    rows = [{"messages": talk(0), name: zero}, {"messages": talk(1), name: None}, {"messages": talk(2)}]
    write_rows(tmp_path / "a.jsonl", rows)
    answers, reader = read(tmp_path / "a.jsonl")
    assert answers == ["a 1", "a 2"]
    assert list(reader.tally.left_out) == [f"rows without loss ({name} is {str(zero).lower()})"]


def test_other_weights_of_rows_are_named_and_a_loss_is_only_a_number(tmp_path):
    rows = [{"messages": talk(n), "weight": w, "loss": 0.0} for n, w in enumerate([0.5, 3, 1, "1.0", None])]
    write_rows(tmp_path / "a.jsonl", rows)
    answers, reader = read(tmp_path / "a.jsonl")
    assert len(answers) == 5
    assert reader.tally.lines() == [
        "2 rows hold a weight of the row that is not 1, read as 1 (weight)", "not used: loss (5 rows)",
    ]  # fmt: skip


def test_a_weight_of_one_is_used_and_a_word_is_not(tmp_path):
    rows = [{"messages": talk(n), "weight": 1, "train": "set A" if n else None} for n in range(3)]
    write_rows(tmp_path / "a.jsonl", rows)
    assert scan(tmp_path / "a.jsonl").tally.lines() == ["not used: train (2 rows)"]


def test_enable_thinking_of_a_row_reaches_the_template_and_the_key(tmp_path):
    said = [True, False, "false", 1, None]
    rows = [{"messages": talk(0), "enable_thinking": cell} for cell in said]
    rows.append({"messages": talk(0), "enable_thinking": True, "chat_template_kwargs": {"enable_thinking": False}})
    write_rows(tmp_path / "a.jsonl", rows)
    got = list(read_rows(tmp_path / "a.jsonl", format='auto chat_template_kwargs:{"enable_thinking": true, "k": 1}'))
    assert [row.settings for row in got] == [
        {"enable_thinking": v, "k": 1} for v in (True, False, False, True, True, False)
    ]
    assert len({row.key for row in got}) == 2
    write_rows(tmp_path / "b.jsonl", [{"messages": talk(0), "enable_thinking": "perhaps"}])
    with pytest.raises(UserError, match="'enable_thinking' holds 'perhaps'; it must be true or false"):
        scan(tmp_path / "b.jsonl")


def test_rows_of_another_dialect_are_read_and_told(tmp_path):
    rows: list[dict[str, Any]] = [{"messages": talk(n), "id": n} for n in range(20)]
    rows[3:3] = [{"instruction": "i", "input": "x", "output": "o", "lang": "en"}] * 12
    write_rows(tmp_path / "a.jsonl", rows)
    reader = SourceReader(tmp_path / "a.jsonl")
    got = [row for _, row in reader]
    assert (len(got), got[3].messages) == (32, (Message("user", "i\n\nx"), Message("assistant", "o")))
    assert reader.format == "chat"
    assert reader.tally.lines() == [
        "12 rows hold columns of another dialect (alpaca)", "not used: id (20 rows), lang (12 rows)",
    ]  # fmt: skip
    again = list(read_rows(tmp_path / "a.jsonl", format=reader.format))
    assert [row.key for row in again] == [row.key for row in got], "as apply reads it, by the format found"


def test_columns_are_guessed_for_the_rows_that_need_it(tmp_path):
    rows: list[dict[str, Any]] = [{"messages": talk(n)} for n in range(15)]
    rows += [{"question": f"Q{n}", "context": "c" if n else None, "answer": n} for n in range(15)]
    write_rows(tmp_path / "a.jsonl", rows)
    info = look_through(tmp_path / "a.jsonl")
    assert json.loads(info.format.removeprefix("columns:")) == {
        "prompt": ["question", "context"],
        "completion": "answer",
    }
    got = list(read_rows(tmp_path / "a.jsonl", format=info.format))
    assert [row.pairs for row in got[14:17]] == [
        (("user", "q 14"), ("assistant", "a 14")), (("user", "Q0"), ("assistant", "0")),
        (("user", "Q1\n\nc"), ("assistant", "1")),
    ]  # fmt: skip


def test_named_columns_may_be_empty(tmp_path):
    rows = [{"q": "x", "why": None, "a": "y"}, {"q": "x", "why": "w", "a": "y"}, {"q": "x", "why": None, "a": None}]
    write_rows(tmp_path / "a.jsonl", rows)
    reader = SourceReader(tmp_path / "a.jsonl", format='columns:{"prompt": "q", "completion": ["why", "a"]}')
    assert [row.answer for _, row in reader] == ["y", "w\n\ny"]
    assert (reader.tally.without_answer, reader.tally.bad_rows) == (1, 0)


def test_keys_of_turns_are_counted_in_every_packing(tmp_path):
    turns = [{"role": "user", "content": "q", "mood": "calm"}, {"role": "assistant", "content": "a", "mood": None}]
    columns = {key: [turn[key] for turn in turns] for key in turns[0]}
    for cell in (turns, json.dumps(turns), repr(turns), columns):
        write_rows(tmp_path / "a.jsonl", [{"messages": cell}])
        assert scan(tmp_path / "a.jsonl").tally.lines() == ["not used: mood of a turn (1 row)"]
    write_rows(tmp_path / "a.jsonl", [{"talk": turns}])
    info = look_through(tmp_path / "a.jsonl")
    assert info.tally.lines() == ["not used: mood of a turn (1 row)"]


def test_calls_and_answers_of_tools_among_the_parts_of_a_content(tmp_path):
    """Anthropic's way: calls in the assistant's parts, what tools answer in the user's."""
    use = {"type": "tool_use", "id": "1", "name": "add", "input": {"q": "x"}}
    result = {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "7"}]}
    turns = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": [{"type": "text", "text": "Let me look."}, use]},
        {"role": "user", "content": [result, {"type": "text", "text": "Go on."}]},
        {"role": "assistant", "content": [use]},
        {"role": "user", "content": [result | {"content": "8"}]},
        {"role": "assistant", "content": "8"},
    ]
    write_rows(tmp_path / "a.jsonl", [{"messages": turns}])
    call = {"name": "add", "arguments": {"q": "x"}, "id": "1"}
    (row,) = read_rows(tmp_path / "a.jsonl")
    assert row.messages == (
        Message("user", "q"), Message("assistant", "Let me look.", tool_calls=(call,)),
        Message("tool", "7", call_id="1"), Message("user", "Go on."), Message("assistant", "", tool_calls=(call,)),
        Message("tool", "8", call_id="1"), Message("assistant", "8"),
    )  # fmt: skip


@pytest.mark.parametrize("packing", ["turns", "prompt"])
def test_thoughts_are_named_by_their_key_in_every_dialect(tmp_path, packing):
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "thought": "t"}]
    row = {"messages": turns} if packing == "turns" else {"prompt": turns[:1], "completion": turns[1:]}
    write_rows(tmp_path / "a.jsonl", [row | {"system_message": "s"}])
    reader = SourceReader(tmp_path / "a.jsonl")
    assert [row.messages for _, row in reader] == [
        (Message("system", "s"), Message("user", "q"), Message("assistant", "a", "t"))
    ]
    assert reader.tally.lines() == ["1 row hold thoughts (thought)", "1 row hold a system column (system_message)"]
