"""`preview`: rows as they will be trained, against expectations written by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ideal_proxy.cli.app import app
from ideal_proxy.data.preview import preview_rows
from ideal_proxy.data.rows import SourceReader, read_rows
from ideal_proxy.data.template import make_template
from ideal_proxy.data.tokenizer import train_tokenizer
from ideal_proxy.data.tokenizing import tokenize_rows

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


@pytest.mark.parametrize("context", [30, 60, 400])
def test_the_text_is_that_of_the_tokens_that_are_trained(tmp_path: Path, context: int) -> None:
    """With a begin-of-text token that cutting keeps, earlier answers that it takes, and characters of many bytes."""
    made = train_tokenizer(["a b c d 1 2 3 é 🦓 user"] * 3, 300)
    made.add_special_tokens({"bos_token": "<s>", "additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    made.chat_template = "{{ bos_token }}" + CHATML
    template = make_template(made)
    file = tmp_path / "rows.jsonl"
    rows = [
        {"messages": [
            {"role": "user", "content": "a b é " * asked}, {"role": "assistant", "content": "c d " * 3},
            {"role": "user", "content": "more"}, {"role": "assistant", "content": "1 2 3 " * said + "🦓"},
        ]}
        for asked in (1, 5, 20) for said in (1, 9)
    ]  # fmt: skip
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    tokens = tokenize_rows(read_rows(file), template, context)
    shown = list(preview_rows("x", SourceReader(file), template, context, 9))
    assert len(shown) == len(tokens) == 6
    for n, one in enumerate(shown):
        part = slice(tokens.offsets[n], tokens.offsets[n + 1])
        whole = made.decode(tokens.ids[part])
        assert one.text == whole or "\ufffd" in whole  # half a character was cut off
        said = made.decode(tokens.ids[part][tokens.supervised[part]])
        assert "".join(one.text[a:b] for a, b in one.supervised) == said or "\ufffd" in said
    assert sum(one.prompt_cut > 0 for one in shown) == tokens.truncated
    assert sum(one.answer_cut > 0 for one in shown) == tokens.answers_cut
