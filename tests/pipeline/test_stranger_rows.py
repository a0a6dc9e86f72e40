"""Rows of a stranger: columns that are guessed, turns that carry no loss."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ideal_proxy.cli.app import app
from ideal_proxy.config import parse_config
from ideal_proxy.errors import UserError
from ideal_proxy.pipeline.prepare import prepare
from ideal_proxy.terminal import Reporter
from tests.builders import write_rows


def test_preview_guesses_the_columns_of_a_source_as_init_does(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "sums.jsonl", [{"Question": f"{n} + 1", "Answer": f"it is {n + 1}"} for n in range(9)])
    shown = CliRunner().invoke(app, ["preview", path, "--json", "--rows", "2"])
    assert shown.exit_code == 0, shown.output
    (first, _) = json.loads(shown.stdout)
    ((start, end), *_) = first["supervised"]
    assert first["text"][start:end].startswith("it is 1")
    assert "0 + 1" in first["text"][:start]


def test_a_domain_whose_turns_carry_no_loss_is_told_as_that(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 0}]
    silent = write_rows(tmp_path / "silent.jsonl", [{"messages": turns, "id": n} for n in range(60)])
    spoken = write_rows(tmp_path / "spoken.jsonl", [{"prompt": f"q {n}", "completion": f"{n}"} for n in range(60)])
    config = parse_config({
        "domains": [{"name": "silent", "path": silent}, {"name": "spoken", "path": spoken}],
        "capabilities": [{"name": "spoken", "path": spoken}],
        "proxy": {"size": "0.1M", "vocabulary": 300, "context": 32},
    })  # fmt: skip
    with pytest.raises(UserError, match=r"domain silent: no turn of its 60 rows .* carries loss \(weight 0"):
        prepare(config, tmp_path / "run" / "prepared", Reporter(quiet=True))
