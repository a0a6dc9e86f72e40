"""Names, rows and files of strangers: nothing of them acts upon the terminal, the shell or the disk."""

from __future__ import annotations

import csv
import json
import os
import pickle
import resource
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from builders import make_rows, run, small_search, write_rows
from finished_run import folder as finished_folder

from ideal_proxy.config import load_config
from ideal_proxy.data import TokenRows, make_template
from ideal_proxy.data.rows import read_rows, row_keys, source_fingerprint
from ideal_proxy.errors import UsageError, UserError
from ideal_proxy.mixture.file import FORMAT
from ideal_proxy.proxy import read_row_losses
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


@pytest.mark.parametrize(
    "name", [*ACTING, "x<\u2215script><script>alert(1)<\u2215script>", "q\"uo'te {{7*7}}", "=cmd|calc", "n" * 250]
)
def test_a_run_directory_of_any_name_is_shown_and_acts_upon_nothing(name: str, tmp_path: Path) -> None:
    """Its name reaches the terminal, the page, JSON, the card and what is written for a trainer."""
    place = tmp_path / "in" / name
    shutil.copytree(finished_folder(), place)
    place = place.relative_to(tmp_path)
    commands: list[list[str]] = [
        ["status", str(place)],
        ["show", str(place)],
        ["what-if", str(place), "--set", "coding=2100"],
    ]
    commands += [[*command, "--json"] for command in commands] + [["report", str(place), "--markdown"]]
    for command in commands:
        done = run(*command, cwd=tmp_path)
        assert done.returncode == 0, (command, done.stderr)
        for text in (done.stdout, done.stderr):
            assert harmless(text) == text, command
        if "--json" in command:
            assert json.loads(done.stdout)
    assert "<script>alert" not in (tmp_path / place / "report.md").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"in"}


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


ACT = "touch PWNED"
CODE = "import pathlib\npathlib.Path('PWNED').touch()\n"


def untouched(*folders: Path) -> bool:
    return not any((folder / "PWNED").exists() for folder in (*folders, Path.cwd()))


@pytest.mark.parametrize(
    "text",
    [
        f"name: !!python/object/apply:os.system ['{ACT}']",
        "!!python/object/new:subprocess.Popen [[touch, PWNED]]\n",
        "domains: !!python/name:os.system",
        "? !!python/object/apply:os.getcwd []\n: 1",
    ],
)
def test_a_run_file_makes_no_objects(text: str, tmp_path: Path) -> None:
    (tmp_path / "mix.yaml").write_text(text)
    for command in (["check", "mix.yaml"], ["search", "mix.yaml", "--dry-run", "--out", "out"]):
        done = run(*command, cwd=tmp_path)
        assert done.returncode == 2
        assert done.stderr.startswith("error: ")
        assert untouched(tmp_path)


def test_what_a_stranger_s_search_would_run_is_not_run_by_looking_at_it(tmp_path: Path) -> None:
    """A run file is a program of the user's: `search` alone runs its metric and its tracker."""
    (tmp_path / "evil.py").write_text(CODE)
    config = small_search(tracker="evil:main")
    config["capabilities"][0]["metric"] = {"command": f"sh -c '{ACT}' {{model}}"}
    config["capabilities"][1]["metric"] = {"python": "evil:main"}
    (tmp_path / "mix.yaml").write_text(json.dumps(config))
    strange = tmp_path / "strange"
    shutil.copytree(finished_folder(), strange)
    given = yaml.safe_load((strange / "config.yaml").read_text()) | {"tracker": "evil:main"}
    (strange / "config.yaml").write_text(yaml.safe_dump(given))
    for command in (
        ["check", "mix.yaml"], ["preview", "mix.yaml", "--rows", "1"], ["status", "strange"], ["show", "strange"],
        ["what-if", "strange", "--set", "coding=2100"],
    ):  # fmt: skip
        done = run(*command, cwd=tmp_path)
        assert done.returncode == 0, (command, done.stderr)
        assert untouched(tmp_path, strange), command


def test_the_metric_of_a_mixture_file_is_told_and_never_run(tmp_path: Path) -> None:
    place = mixture("plain", tmp_path / "in")
    value = json.loads(place.read_text())
    metric = {"command": f"sh -c '{ACT}' {{model}}", "python": "evil:main"}
    value["capabilities"] = [{"name": "c", "source": "demo:facts?rows=20&split=reference", "metric": metric}]
    value["provenance"] = {"command": ACT}
    place.write_text(json.dumps(value))
    (tmp_path / "evil.py").write_text(CODE)
    for command in (
        ["apply", str(place), "--out", "rows"],
        ["export", str(place), "--to", "jsonl", "--out", "lines"],
        ["scale-up", str(place), "--model", "scratch:0.1M", "--evaluations", "0", "--out", "up"],
    ):
        done = run(*command, cwd=tmp_path)
        assert done.returncode == 0, (command, done.stderr)
        assert untouched(tmp_path), command


def model_folder(folder: Path, **changes: Any) -> Path:
    """A model as a stranger may send it, without weights."""
    from ideal_proxy.data.tokenizer import train_tokenizer

    train_tokenizer(["some text of this and that"] * 9, 300).save_pretrained(folder)
    config = {"model_type": "llama", "vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 1, **changes}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_model_brings_neither_code_nor_pickles(tmp_path: Path) -> None:
    place = model_folder(tmp_path / "coded", model_type="evil", auto_map={"AutoConfig": "evil.Config"})
    (place / "evil.py").write_text(CODE)
    pickled = model_folder(tmp_path / "pickled")

    class Evil:
        def __reduce__(self) -> Any:
            return os.system, (ACT,)

    (pickled / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
    given = mixture("plain", tmp_path / "in")
    for model in (place, pickled):
        config = small_search(proxy={"model": str(model), "context": 48})
        (tmp_path / "mix.yaml").write_text(json.dumps(config))
        for command in (
            ["search", "mix.yaml", "--dry-run", "--out", f"out-{model.name}"],
            ["scale-up", str(given), "--model", str(model), "--out", f"up-{model.name}"],
        ):
            done = run(*command, cwd=tmp_path)
            assert done.returncode in {1, 2}, command
            assert done.stderr.splitlines()[-1].startswith("error: "), done.stderr
            assert untouched(tmp_path, model), command


def test_arrays_that_are_pickles_are_damaged_files(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'PWNED'}",)

    rows = make_rows(9, 2, 0)
    rows.save(tmp_path / "rows")
    np.save(tmp_path / "rows" / "ids.npy", np.array([Evil()], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="cannot be read"):
        TokenRows.load(tmp_path / "rows")
    (tmp_path / "losses.npz").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UserError):
        read_row_losses(tmp_path / "losses.npz", ["c"])
    assert untouched(tmp_path)


WHOLE = "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] + '</s>' }}{% endfor %}"


@pytest.mark.parametrize(
    ("attack", "told"),
    [
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{{ cycler.__init__.__globals__.os.system('touch PWNED') }}", "unsafe|undefined"),
        ("{{ raise_exception.__globals__['os'] }}", "unsafe|undefined|has no"),
        ("{{ 'a' * 9999999999 }}", "GiB"),
        ("{{ '%9999999999d' % 1 }}", "GiB"),
        (
            "{% set n = namespace(s='aa') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
            "GiB|than 2 s",
        ),
        ("{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}", "more than 2 s"),
    ],
)
def test_a_template_stays_in_its_sandbox(attack: str, told: str, tmp_path: Path) -> None:
    from ideal_proxy.data.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(["some text of this and that"] * 9, 300)
    tokenizer.chat_template = WHOLE
    assert make_template(tokenizer).render([("user", "q"), ("assistant", "a")])[0]
    tokenizer.chat_template = "{% if messages[0]['content'] == 'now' %}" + attack + "{% endif %}" + WHOLE
    template = make_template(tokenizer)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(UserError, match=told):
        template.render([("user", "now"), ("assistant", "a")])
    assert time.process_time() - began < 60  # unbounded it takes far longer; pages may be dear
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 3 << 20
    assert resource.getrlimit(resource.RLIMIT_AS) == limits
    assert template.render([("user", "later"), ("assistant", "a")])[0]
    assert untouched(tmp_path)


def test_no_formulas_into_a_table(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.ones(2), 12)
    metric = '@SUM(1+1)*cmd|"/c calc"!A0'
    pd.DataFrame({"run": range(12), "=a": shares[:, 0], "b": shares[:, 1]}).to_csv(tmp_path / "r.csv", index=False)
    pd.DataFrame({"run": range(12), metric: 3 - shares[:, 0] ** 0.5}).to_csv(tmp_path / "m.csv", index=False)
    pd.DataFrame({"run": ["=1+1", "-2", "+x"], "=a": [0.5, 0.4, 0.3], "b": [0.5, 0.6, 0.7]}).to_csv(
        tmp_path / "n.csv", index=False
    )
    done = run("fit", "--ratios", "r.csv", "--metrics", "m.csv", "--out", "fit.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = run("predict", "fit.json", "--ratios", "n.csv", "--out", "p.csv", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    cells = [cell for line in csv.reader((tmp_path / "p.csv").read_text().splitlines()) for cell in line]
    assert not [
        cell for cell in cells if cell[:1] in "=@+-" and cell and not cell.lstrip("+-").replace(".", "").isdigit()
    ]
    assert {"'=1+1", "-2", "'+x"} <= set(cells)
    assert any(cell.startswith(f"'{metric}") for cell in cells)
