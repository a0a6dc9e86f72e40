"""`preview`: rows as they will be trained, against expectations written by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ideal_proxy.cli.app import app
from ideal_proxy.data.template import train_tokenizer

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ROWS = [
    {"instruction": "Add 1 and 2.", "output": "3 apples"},
    {"instruction": "Say nothing.", "output": ""},
    {"messages": [
        {"role": "user", "content": "Ünicode?"}, {"role": "assistant", "content": "ja é"},
        {"role": "user", "content": "More?"}, {"role": "assistant", "content": "no"},
    ]},
]  # fmt: skip


def run(*arguments: str, columns: int = 80) -> str:
    result = CliRunner(env={"COLUMNS": str(columns)}).invoke(app, ["preview", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def mix(tmp_path: Path) -> Path:
    for name, rows in (("sums", ROWS[:2] * 2), ("talk", ROWS[2:] * 2)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    lines = "".join(f"  - {{name: {name}, path: {name}.jsonl}}\n" for name in ("sums", "talk"))
    text = f"domains:\n{lines}capabilities:\n{lines}proxy: {{vocabulary: 300, context: 40}}\n"
    (tmp_path / "mix.yaml").write_text(text, encoding="utf-8")
    return tmp_path / "mix.yaml"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tokenizer = train_tokenizer([json.dumps(ROWS, ensure_ascii=False)] * 3, 300)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_rows_of_a_run_file_by_hand(mix: Path) -> None:
    shown = json.loads(run(str(mix), "--rows", "2", "--json"))
    talk = "<|user|>Ünicode?<|end|><|assistant|>ja é<|end|><|user|>More?<|end|><|assistant|>no<|end|>"
    sums = "<|user|>Add 1 and 2.<|end|><|assistant|>3 apples<|end|>"
    assert [(one["domain"], one["row"], one["text"], one["left_out"]) for one in shown] == [
        ("sums", 0, sums, None), ("sums", 1, "", "it has no answer"), ("talk", 0, talk, None), ("talk", 1, talk, None),
    ]  # fmt: skip
    said = [[one["text"][a:b] for a, b in one["supervised"]] for one in shown]
    assert said == [["3 apples<|end|>"], [], ["ja é<|end|>", "no<|end|>"], ["ja é<|end|>", "no<|end|>"]]


def test_the_model_writes_the_rows_and_one_domain_is_shown(mix: Path, model: Path) -> None:
    (shown,) = json.loads(run(str(mix), "--model", str(model), "--domain", "sums", "--rows", "1", "--json"))
    assert shown["text"] == "<|im_start|>user\nAdd 1 and 2.<|im_end|>\n<|im_start|>assistant\n3 apples<|im_end|>"
    ((start, end),) = shown["supervised"]
    assert shown["text"][start:end] == "3 apples<|im_end|>"


def test_what_is_cut_is_said_and_offsets_are_those_of_what_is_left(tmp_path: Path, mix: Path) -> None:
    row = {"instruction": "x y z " * 30, "output": "seven"}
    (tmp_path / "sums.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    (shown,) = json.loads(run(str(mix), "--domain", "sums", "--json"))
    assert shown["text"].endswith(" x y z <|end|><|assistant|>seven<|end|>")
    assert not shown["text"].startswith("<|user|>")
    assert [shown["text"][a:b] for a, b in shown["supervised"]] == ["seven<|end|>"]
    assert "sums, row 0; " in (page := run(str(mix), "--domain", "sums"))
    assert "tokens of the prompt cut" in page
    row = {"instruction": "x", "output": "seven " * 60}
    (tmp_path / "sums.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    assert "tokens of the answers cut" in run(str(mix), "--domain", "sums")


@pytest.mark.parametrize("columns", [60, 80])
def test_marks_stand_around_what_carries_loss_within_the_width(mix: Path, columns: int) -> None:
    page = run(str(mix), "--rows", "2", columns=columns)
    assert all(len(line) <= columns for line in page.splitlines())
    assert "sums, row 0\n<|user|>Add 1 and 2.<|end|><|assistant|>«3 apples<|end|>»\n" in page
    assert "sums, row 1; left out: it has no answer\n" in page
    assert "\x1b" not in page
    assert page.count("«") == page.count("»") == 6  # one pair is of the legend


def test_an_unknown_domain_is_told(mix: Path) -> None:
    result = CliRunner().invoke(app, ["preview", str(mix), "--domain", "nobody"])
    assert str(result.exception) == "there is no domain 'nobody'; there are sums, talk"
