"""Names, rows and files of strangers: nothing of them acts upon the terminal, the shell or the disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from builders import run, small_search, write_rows

from ideal_proxy.config import load_config
from ideal_proxy.data.rows import read_rows, row_keys, source_fingerprint
from ideal_proxy.errors import UsageError
from ideal_proxy.mixture.file import FORMAT
from ideal_proxy.terminal import harmless

ACTING = ("\x1b[31mred", "\x9b31m", "a\u202egnp", "\x07bell", "a\nb", "\u2066x")
HARMLESS = ("../../evil", "..", "-rf", "$(touch PWNED)", "`touch PWNED`", 'a"; touch PWNED; "', "'; import os #",
            "=cmd|calc", "{{7*7}}", "a\\b", "con", "日本", "/abs")  # fmt: skip
TARGETS = ("llamafactory", "ms-swift", "axolotl", "open-instruct", "trl", "streaming", "jsonl")


def mixture(name: str, folder: Path) -> Path:
    """A mixture file as a stranger may send it."""
    rows = write_rows(folder / "rows.jsonl", ({"instruction": f"i {n}", "output": f"o {n}"} for n in range(9)))
    marks = source_fingerprint(row_keys(list(read_rows(rows))))
    domain = {"name": name, "source": rows, "fingerprint": marks, "available": 9, "rows": 14, "base_rows": 9,
              "tokens": 140, "repeat": 14 / 9}  # fmt: skip
    (folder / "m").mkdir()
    (folder / "m" / "mixture.json").write_text(json.dumps({"format": FORMAT, "domains": [domain]}))
    return folder / "m" / "mixture.json"


@pytest.mark.parametrize("name", ACTING)
def test_names_that_act_upon_a_terminal_are_refused_everywhere(name: str, tmp_path: Path) -> None:
    done = run("apply", str(mixture(name, tmp_path)), "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert "'domains.0.name'" in done.stderr
    assert harmless(done.stderr.rstrip("\n")) == done.stderr.rstrip("\n")
    for section in ("domains", "capabilities"):
        config: dict[str, Any] = small_search()
        config[section] = [*config[section], {"name": name, "path": "demo:facts"}]
        (tmp_path / "mix.yaml").write_text(json.dumps(config))
        with pytest.raises(UsageError, match="name"):
            load_config(tmp_path / "mix.yaml")


@pytest.mark.parametrize("name", HARMLESS)
def test_names_stay_names(name: str, tmp_path: Path) -> None:
    given = mixture(name, tmp_path / "in")
    before = set(tmp_path.rglob("*"))
    for target in TARGETS:
        done = run("export", str(given), "--to", target, "--out", str(tmp_path / "out" / target), cwd=tmp_path)
        assert done.returncode == 0, (target, done.stderr)
    made = set(tmp_path.rglob("*")) - before
    assert made
    assert all(path.resolve().is_relative_to((tmp_path / "out").resolve()) for path in made)
    assert not Path("/abs").exists()


def test_rows_cannot_act_upon_the_terminal(tmp_path: Path) -> None:
    rows = [
        {"instruction": f"\x1b[2J{n}", "output": f"\u202eo {n}\x9b1m", "\x1b[31mkey": "x", "meta": "y"}
        for n in range(60)
    ]
    write_rows(tmp_path / "data" / "\x1b[31mred.jsonl", rows)
    write_rows(tmp_path / "data" / "plain.jsonl", rows)
    write_rows(tmp_path / "data" / "plain.reference.jsonl", rows[:20])
    source = str(tmp_path / "data" / "plain.jsonl")
    for command in (["init", str(tmp_path / "data"), "--out", str(tmp_path / "m.yaml")], ["preview", source]):
        done = run(*command, cwd=tmp_path)
        for text in (done.stdout, done.stderr):
            assert harmless(text) == text, command
