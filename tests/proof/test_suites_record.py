"""The record of the suites' rows: a check finds what is missing or other, a new record keeps the rest."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from builders import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
sys.path.insert(0, str(ROOT / "benchmarks/proof"))

import suites

RUN_FILES = ("sft5", "sft5_all", "demo")  # suites that are run files over rows kept elsewhere


def call(monkeypatch, *arguments: str) -> str | int | None:
    """How the script ends."""
    monkeypatch.setattr(sys, "argv", ["suites.py", *arguments])
    try:
        suites.main()
    except SystemExit as stop:
        return stop.code
    return None


@pytest.fixture
def copied(tmp_path, monkeypatch) -> Path:
    """The script's record in another folder, beside copies of the run files that it reads."""
    place = tmp_path / "benchmarks" / "proof"
    place.mkdir(parents=True)
    (place.parent / "verdict").mkdir()
    for path in (ROOT / "benchmarks" / "verdict").glob("*.yaml"):
        shutil.copy(path, place.parent / "verdict")
    monkeypatch.setattr(suites, "HERE", place / "suites.py")
    return place / "suites.json"


def test_the_run_files_that_are_written_are_those_that_were_recorded(tmp_path, monkeypatch):
    assert call(monkeypatch, *RUN_FILES, "--out", str(tmp_path)) is None
    assert call(monkeypatch, *RUN_FILES, "--check", str(tmp_path)) == 0
    path = tmp_path / "sft5" / "mix.yaml"
    text = path.read_text()
    assert f"path: {suites.SFT5.as_posix()}/" in text
    path.write_text(text.replace("seed: 0", "seed: 1"))
    assert path.read_text() != text
    said = call(monkeypatch, *RUN_FILES, "--check", str(tmp_path))
    assert said == "missing, or other rows than recorded: sft5/mix.yaml"
    assert call(monkeypatch, "sft5_all", "--check", str(tmp_path)) == 0
    (tmp_path / "demo" / "mix.yaml").unlink()
    said = call(monkeypatch, *RUN_FILES, "--check", str(tmp_path))
    assert said == "missing, or other rows than recorded: sft5/mix.yaml, demo/mix.yaml"


def test_a_run_file_is_the_same_wherever_its_rows_lie(tmp_path, monkeypatch):
    here = suites.write("sft5", tmp_path / "here")
    monkeypatch.setattr(suites, "SFT5", Path("/elsewhere/shared/data/sft5"))
    assert suites.write("sft5", tmp_path / "there") == here
    assert (tmp_path / "here/sft5/mix.yaml").read_text() != (tmp_path / "there/sft5/mix.yaml").read_text()
    assert call(monkeypatch, "sft5", "--check", str(tmp_path / "there")) == 0


def test_rows_that_are_written_again_are_those_that_were_recorded_and_one_other_row_is_found(
    tmp_path, monkeypatch, copied
):
    recorded = suites.write("traces", tmp_path, scale=0.1)
    copied.write_text(json.dumps({"traces": recorded}))
    assert {"chat/train.jsonl", "chat/reference.jsonl", "mix.yaml"} < set(recorded)
    shutil.rmtree(tmp_path / "traces")
    assert call(monkeypatch, "traces", "--out", str(tmp_path), "--scale", "0.1") is None
    assert call(monkeypatch, "traces", "--check", str(tmp_path)) == 0
    path = tmp_path / "traces" / "chat" / "reference.jsonl"
    first, *others = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*others, first]))
    said = call(monkeypatch, "traces", "--check", str(tmp_path))
    assert said == "missing, or other rows than recorded: traces/chat/reference.jsonl"


def test_a_new_record_keeps_what_it_does_not_name_and_only_it_is_written(tmp_path, monkeypatch, copied):
    old = {"skills": {"mix.yaml": "kept"}, "demo": {"mix.yaml": "old"}}
    copied.write_text(json.dumps(old))
    assert call(monkeypatch, "demo", "sft5", "--out", str(tmp_path)) is None
    assert json.loads(copied.read_text()) == old
    assert call(monkeypatch, "demo", "sft5", "--out", str(tmp_path), "--record") is None
    told = json.loads(copied.read_text())
    true = json.loads((ROOT / "benchmarks" / "proof" / "suites.json").read_text())
    assert told == {"skills": {"mix.yaml": "kept"}, "demo": true["demo"], "sft5": true["sft5"]}


def test_a_rehearsal_is_not_recorded(tmp_path, monkeypatch, copied):
    copied.write_text("{}")
    assert call(monkeypatch, "demo", "--out", str(tmp_path), "--scale", "0.1", "--record") == 2
    assert copied.read_text() == "{}"


def test_no_suite_of_another_name_is_written(tmp_path, monkeypatch, capsys):
    assert call(monkeypatch, "skils", "--out", str(tmp_path)) == 2
    assert "no suite is called skils; there are skills, unseen" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
