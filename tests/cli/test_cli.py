"""The command line: the same from a checkout and installed, light, and one sentence for a user's error."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from builders import PROGRAM, ROOT, environment, run, small_search, write_rows
from forked import Forked

from ideal_proxy.config import parse_config
from ideal_proxy.pipeline.claim import claim
from ideal_proxy.store import atomic_write_json, read_json

COMMANDS = (
    "init", "check", "search", "show", "status", "report", "compare", "price", "what-if", "apply", "transfer", "export",
    "scale-up", "fit", "predict", "optimize", "influence",
)  # fmt: skip
ROW = '{"instruction": "say", "input": "", "output": "it"}\n'


def start(*head: str) -> subprocess.CompletedProcess[str]:
    """Start the program as a process of its own."""
    command = [sys.executable, *head, "--help"]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)


def test_help_is_the_same_from_the_checkout_and_installed():
    checkout, installed = start(str(ROOT / "cli.py")), start("-m", "ideal_proxy.cli")
    assert checkout.returncode == installed.returncode == 0
    assert checkout.stdout == installed.stdout
    assert max(map(len, installed.stdout.splitlines())) <= 80
    for command in COMMANDS:
        assert f"\n  {command} " in installed.stdout
    assert not [line for line in installed.stdout.splitlines()[1:] if line.endswith("...")], "a command's line is cut"
    assert "Start with a folder of rows: ideal-proxy init data/" in " ".join(installed.stdout.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_line_and_an_example(command):
    answer = run(command, "--help")
    assert answer.returncode == 0
    assert "Example: ideal-proxy" in answer.stdout
    assert max(map(len, answer.stdout.splitlines())) <= 80


def _tight_budget(folder: Path) -> None:
    _edit(folder, "mode: keep", "total: 50\n  mode: at_most")
    _edit(folder, "base: 60", "base: 60\n    min: 50")


def _one_free(folder: Path) -> None:
    _edit(folder, 'train.jsonl"\n    base: 60\n\n', 'train.jsonl"\n    base: 60\n    pinned: true\n\n')


def rows(path: Path, count: int, start: int = 0) -> None:
    numbers = range(start, start + count)
    write_rows(path, [{"instruction": f"say {n}", "input": "", "output": f"{n} it is"} for n in numbers])


def two_domains(folder: Path) -> Path:
    for n, name in enumerate(("code", "math")):
        rows(folder / "data" / name / "train.jsonl", 60, 1000 * n)
        rows(folder / "data" / name / "reference.jsonl", 20, 1000 * n + 500)
    return folder


@pytest.fixture
def folder(tmp_path):
    return two_domains(tmp_path)


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """Two domains and what `init` writes for them, to be copied."""
    place = two_domains(tmp_path_factory.mktemp("begun"))
    assert run("init", "data", cwd=place).returncode == 0
    return place


def test_init_then_check(folder):
    answer = run("init", "data", cwd=folder)
    assert answer.returncode == 0, answer.stderr
    assert "code: 60 rows (alpaca), 20 reference rows (few)" in answer.stdout
    again = run("init", "data", cwd=folder)
    assert again.returncode == 2
    assert again.stderr == "error: mix.yaml exists; use --force to overwrite it or --out for another name\n"
    checked = run("check", "mix.yaml", cwd=folder)
    assert checked.returncode == 0, checked.stderr
    assert "no duplicates, no leaks" in checked.stdout
    assert max(map(len, checked.stdout.splitlines())) <= 80
    as_json = json.loads(run("check", "mix.yaml", "--json", cwd=folder).stdout)
    assert [entry["rows"] for entry in as_json["domains"]] == [60, 60]
    written = json.loads(run("init", "data", "--force", "--json", cwd=folder).stdout)
    assert written["run_file"] == "mix.yaml"
    assert [entry["base"] for entry in written["config"]["domains"]] == [60, 60]
    assert any(line.endswith("check mix.yaml") for line in written["said"])


def test_every_command_speaks_json():
    from ideal_proxy.cli.app import app

    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert len(known) > 15
    assert not [name for name, command in known.items() if "--json" not in {o for p in command.params for o in p.opts}]


def test_check_counts_duplicates_and_leaks(folder):
    rows(folder / "data" / "math" / "train.jsonl", 60, 1000)
    with open(folder / "data" / "math" / "train.jsonl", "a", encoding="utf-8") as file:
        for n in (1000, 1001, 1500, 1501, 1502, 0):
            file.write(json.dumps({"instruction": f"say {n}", "input": "", "output": f"{n} it is"}) + "\n")
    run("init", "data", cwd=folder)
    with open(folder / "data" / "code" / "reference.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({"instruction": "say " * 600, "input": "", "output": "long"}) + "\n")
        file.write(json.dumps({"instruction": "say", "input": "", "output": None}) + "\n")
    found = " ".join(run("check", "mix.yaml", cwd=folder).stdout.split())
    assert "- reference rows of code: 1 row longer than 64 tokens (proxy.context) loses prompt from the left" in found
    assert "- reference rows of code: 1 row left out: no answer" in found
    assert "math: 2 rows repeat another row of it" in found
    assert "code and math share 1 equal row" in found
    assert "3 of 20 reference rows of math stand in domain math: its loss is no fair judge" in found
    assert "check mix.yaml --fix" in found
    assert run("check", "mix.yaml", "--fix", cwd=folder).stdout.startswith("mix_mended/math.jsonl written: ")
    assert "stand in domain" not in run("check", "mix_mended.yaml", cwd=folder).stdout


def test_init_without_references_says_what_to_do(folder):
    (folder / "data" / "math" / "reference.jsonl").unlink()
    answer = run("init", "data", cwd=folder)
    assert answer.returncode == 0
    assert "math has no reference rows: the others judge it" in answer.stdout
    (folder / "data" / "code" / "reference.jsonl").rename(folder / "kept.jsonl")
    answer = run("init", "data", "--force", cwd=folder)
    assert answer.returncode == 1
    assert "no reference rows for code, math" in answer.stderr
    (folder / "kept.jsonl").rename(folder / "data" / "code" / "reference.jsonl")
    held = run("init", "data", "--force", "--hold-out", "50", cwd=folder)
    assert held.returncode == 0, held.stderr
    assert "math: 45 rows (alpaca), 15 reference rows" in held.stdout
    found = run("check", "mix.yaml", cwd=folder).stdout.partition("Found")[2]
    assert [line for line in found.splitlines() if line.startswith("- ")] == [
        "- domain math: 45 rows to train on; with fewer than 50 its effect can hardly be",
        "- under 200 reference rows for the verdict, which makes it noisy: code 10, math",
    ]


@pytest.mark.parametrize(
    ("break_it", "says", "code"),
    [
        (lambda d: (d / "data/math/train.jsonl").write_text('{"instruction": "x"\n'), "train.jsonl:1", 1),
        (lambda d: (d / "data/math/train.jsonl").write_text('{"text": "x"}\n'), "train.jsonl", 1),
        (lambda d: (d / "data/math/train.jsonl").write_text(""), "math", 1),
        (lambda d: (d / "data/math/train.jsonl").write_bytes(b'{"instruction": "\xff", "output": "a"}\n'), "UTF-8", 1),
        (lambda d: (d / "data/math/reference.jsonl").write_text(""), "math", 1),
        (lambda d: (d / "data/math/train.jsonl").unlink(), "train.jsonl", 1),
        (lambda d: _edit(d, "base: 60", "base: 600"), "max_repeat", 1),
        (lambda d: _edit(d, "base: 60", "base: 60\n    min: 50\n    max: 10"), "min (50 rows) is above max", 1),
        (lambda d: _edit(d, "rounds: 6", "round: 2"), "did you mean 'rounds'?", 2),
        (_tight_budget, "budget", 1),
        (lambda d: _edit(d, "groups: []", "groups: ['code <= 10%', 'math <= 20%']"), "code <= 10", 1),
        (lambda d: _edit(d, "groups: []", "groups: ['cod <= 10%']"), 'did you mean "code"?', 2),
        (lambda d: _edit(d, "size: 1M", "device: gpu"), "proxy.device is 'gpu'", 2),
        (
            lambda d: _edit(d, "max_repeat: 4", "max_repeat: 1\n", "base: 60", "base: 60\n    min: 2x"),
            "max_repeat 1",
            1,
        ),
        (lambda d: _edit(d, "base: 60", "base: 60\n    pinned: true"), "every domain is pinned", 2),
        (_one_free, "only code can change", 1),
        (lambda d: (d / "data/math/train.jsonl").write_text(ROW * 60), "no two different rows", 1),
        (lambda d: _no_answers(d / "data/math/train.jsonl"), "math", 1),
    ],
)
def test_bad_input_is_one_sentence(begun, tmp_path, break_it, says, code):
    folder = shutil.copytree(begun, tmp_path / "own")
    break_it(folder)
    answer = run("search", "mix.yaml", "--dry-run", cwd=folder)
    assert answer.returncode == code, answer.stderr
    last = answer.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert says in last
    assert "Traceback" not in answer.stderr
    assert answer.stdout == ""


def _no_answers(path: Path) -> None:
    path.write_text('{"instruction": "say", "input": "", "output": ""}\n' * 60, encoding="utf-8")


def _edit(folder: Path, *pairs: str) -> None:
    path = folder / "mix.yaml"
    text = path.read_text(encoding="utf-8")
    for old, new in zip(pairs[::2], pairs[1::2], strict=True):
        assert old in text
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")


def test_another_runs_folder_is_refused(begun, tmp_path):
    folder = shutil.copytree(begun, tmp_path / "own")
    _edit(folder, "size: 1M", "size: 0.1M")
    assert run("search", "mix.yaml", "--dry-run", "--out", "runs/a", cwd=folder).returncode == 0
    (folder / "runs" / "a" / "dry-run").unlink()  # as a search that was begun leaves it
    _edit(folder, "seed: 0", "seed: 1")
    answer = run("search", "mix.yaml", "--dry-run", "--out", "runs/a", cwd=folder)
    assert answer.returncode == 1
    assert "holds another run" in answer.stderr
    (folder / "runs" / "b").mkdir()
    (folder / "runs" / "b" / "thesis.txt").write_text("mine")
    answer = run("search", "mix.yaml", "--dry-run", "--out", "runs/b", cwd=folder)
    assert answer.returncode == 1
    assert "is not empty (thesis.txt)" in answer.stderr
    assert (folder / "runs" / "b" / "thesis.txt").read_text() == "mine"
    unfinished = run("show", "runs/a", cwd=folder)
    assert unfinished.returncode == 1
    assert "is not finished" in unfinished.stderr


def test_a_dry_run_stands_in_nobodys_way(begun, tmp_path):
    folder = shutil.copytree(begun, tmp_path / "own")
    _edit(folder, "size: 1M", "size: 0.1M")
    plan = ("search", "mix.yaml", "--dry-run", "--out", "runs/a", "--json")
    first = run(*plan, cwd=folder)
    assert first.returncode == 0
    facts = folder / "runs" / "a" / "prepared" / "facts.json"
    kept = facts.stat().st_mtime_ns
    again = run(*plan, "--runs", "7", cwd=folder)
    assert json.loads(again.stdout)["runs"] == 7 != json.loads(first.stdout)["runs"], "the plan is made anew"
    _edit(folder, "seed: 0", "seed: 1")
    assert run(*plan, cwd=folder).returncode == 0, "another configuration takes the folder"
    assert "seed: 1" in (folder / "runs" / "a" / "config.yaml").read_text()
    assert facts.stat().st_mtime_ns != kept
    kept = facts.stat().st_mtime_ns
    assert run(*plan, cwd=folder).returncode == 0
    assert facts.stat().st_mtime_ns == kept, "what was prepared serves the next command"
    assert "planned, nothing trained yet" in run("status", "runs/a", cwd=folder).stdout


def test_a_search_after_its_dry_run_says_where_it_came_from_itself(tmp_path):
    config, origin = parse_config(small_search()), tmp_path / "run" / "provenance.json"
    (tmp_path / "run").mkdir()
    claim(config, tmp_path / "run", dry_run=True)
    atomic_write_json(origin, {"command": "of the plan"}, seal=True)
    claim(config, tmp_path / "run")
    assert read_json(origin)["command"] != "of the plan"
    atomic_write_json(origin, {"command": "of the search"}, seal=True)
    claim(config, tmp_path / "run")  # and a resumed one keeps its own
    assert read_json(origin) == {"command": "of the search"}


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_says_how_to_go_on(folder, sent):
    run("init", "data", cwd=folder)
    command = [*PROGRAM, "search", "mix.yaml"]
    with Forked(
        command, cwd=folder, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        for line in process.stderr:
            if line.startswith("tokenizer"):
                break
        process.send_signal(sent)
        rest = process.stderr.read()
        assert process.wait(60) == 130
    assert rest.strip().endswith("stopped; run the same command again to go on where it was")
    assert "Traceback" not in rest


@pytest.mark.parametrize(
    ("setting", "encoding"),
    [({"PYTHONIOENCODING": "ascii"}, "ascii"), ({"PYTHONIOENCODING": "cp1252"}, "cp1252"), ({"LC_ALL": "C"}, "utf-8")],
)
def test_a_terminal_that_is_not_utf_8_gets_replacements(tmp_path, setting, encoding):
    rows = "".join(f'{{"instruction": "say {n}", "output": "{n}"}}\n' for n in range(40))
    for name in ("数学", "words"):
        (tmp_path / f"{name}.jsonl").write_text(rows, encoding="utf-8")
    program = [sys.executable, "-m", "ideal_proxy.cli", "init", str(tmp_path), "--out", str(tmp_path / "mix.yaml")]
    done = subprocess.run(
        [*program, "--hold-out", "9"], capture_output=True, env=environment() | setting, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"  {'数学' if encoding == 'utf-8' else '??'}: 31 rows" in done.stdout.decode(encoding)


def test_a_file_name_that_is_no_text_is_one_sentence(tmp_path):
    for name in (b"a\xff.jsonl", b"b.jsonl"):
        with open(bytes(tmp_path) + b"/" + name, "wb") as file:
            file.write(b"".join(b'{"instruction": "say %d", "output": "x"}\n' % n for n in range(40)))
    answer = run("init", str(tmp_path), "--out", str(tmp_path / "mix.yaml"), "--hold-out", "9")
    assert answer.returncode == 1
    assert answer.stderr.splitlines()[-1].startswith(r"error: 'a\udcff' is no text in utf-8, in which this system")


def test_the_package_itself_is_the_command_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "ideal_proxy", "search", "--help"], cwd=tmp_path, env=environment(), capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert done.stdout.startswith("Usage: ideal-proxy search")
    init = [sys.executable, "-m", "ideal_proxy", "init", str(two_domains(tmp_path) / "data")]
    done = subprocess.run(init, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True)
    assert "next: python3 -m ideal_proxy check mix.yaml" in done.stdout
