"""Every command that reads a search takes its run directory or the `mixture.json` in it, and says the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from finished_run import folder as finished_folder
from typer.testing import CliRunner

from ideal_proxy.cli.app import app
from ideal_proxy.data.rows import read_rows, row_keys, source_fingerprint
from ideal_proxy.mixture.file import DomainVolume, MixtureFile, save_mixture
from ideal_proxy.pipeline.finished import load_run


def said(*command: str) -> tuple[int, str]:
    """Exit code, and what the command printed or raised."""
    answer = CliRunner().invoke(app, list(command))
    return answer.exit_code, answer.stdout or str(answer.exception)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with a mixture over rows that exist."""
    folder = tmp_path_factory.mktemp("run")
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps({"instruction": f"i {n}", "output": f"o {n}"}) + "\n" for n in range(9)))
    marks = source_fingerprint(row_keys(list(read_rows(rows))))
    domain = DomainVolume(
        name="a", source=str(rows), fingerprint=marks, available=9, rows=14, base_rows=9, tokens=140, repeat=14 / 9
    )
    save_mixture(folder / "mixture.json", MixtureFile(domains=[domain]))
    return folder


@pytest.mark.parametrize("command", [["show"], ["status"], ["what-if", "--set", "coding=2100"], ["report", "--json"]])
def test_commands_on_a_run(command: list[str], tmp_path: Path) -> None:
    run, more = finished_folder(), (["--out", str(tmp_path)] if command[0] == "report" else [])
    by_folder = said(command[0], str(run), *command[1:], *more)
    by_file = said(command[0], str(run / "mixture.json"), *command[1:], *more)
    assert by_folder == by_file
    assert by_folder[0] == 0, by_folder[1]
    assert len(by_folder[1]) > 80


def test_a_fit_of_a_search(tmp_path: Path) -> None:
    run = finished_folder()
    fits = [run, run / "mixture.json", run / "fit.json"]
    answers = [said("optimize", str(fit), "--out", str(tmp_path / "m.json"), "--json") for fit in fits]
    assert answers[0][0] == 0, answers[0][1]
    assert answers[0] == answers[1] == answers[2]


def test_the_fit_of_a_search_is_optimised_inside_what_its_runs_cover(tmp_path: Path) -> None:
    run = finished_folder()
    table = pd.read_parquet(run / "runs.parquet")
    covered = table.loc[table["role"] == "design"].filter(like="rows/").max().to_numpy()
    rows = []
    for options in ([], ["--trust-region", "none"]):
        code, told = said("optimize", str(run), "--out", str(tmp_path / "m.json"), *options)
        assert code == 0, told
        rows.append([d["rows"] for d in json.loads((tmp_path / "m.json").read_text())["domains"]])
    assert (rows[0] <= covered + 1).all()
    assert (rows[1] > covered + 1).any()


def test_apply_writes_the_same_rows(searched: Path, tmp_path: Path) -> None:
    for name, place in (("a", searched), ("b", searched / "mixture.json")):
        code, text = said("apply", str(place), "--out", str(tmp_path / name), "--quiet")
        assert code == 0, text
    first, second = (sorted((tmp_path / name).glob("*.jsonl")) for name in ("a", "b"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert sum(len(path.read_bytes().splitlines()) for path in first) == 14


@pytest.mark.parametrize(
    "command",
    [
        ["export", "--to", "trl"],
        ["transfer", "--mode", "share", "--total-rows", "21"],
    ],
)
def test_commands_on_a_mixture(command: list[str], searched: Path, tmp_path: Path) -> None:
    out = str(tmp_path / ("full.json" if command[0] == "transfer" else "out"))
    answers = []
    for place in (searched, searched / "mixture.json"):
        shutil.rmtree(out, ignore_errors=True)
        answers.append(said(command[0], str(place), *command[1:], "--out", out, "--json"))
    assert answers[0][0] == 0, answers[0][1]
    assert answers[0] == answers[1]


def test_scale_up_reads_either(searched: Path, tmp_path: Path) -> None:
    answers = [
        said("scale-up", str(place), "--model", "scratch:1M", "--out", str(tmp_path / "full"))
        for place in (searched, searched / "mixture.json")
    ]
    assert answers[0] == answers[1]
    assert answers[0][0] != 0
    assert "names no capability" in answers[0][1], "the mixture was read"


def test_a_link_in_a_run_directory_is_not_where_scale_up_writes(searched: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = searched / "scale-up-scratch-1M"
    link.symlink_to(tmp_path / "elsewhere")
    code, answer = said("scale-up", str(searched), "--model", "scratch:1M")
    link.unlink()
    assert code != 0
    assert "is a link; name the folder" in answer
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_folder_without_a_mixture_says_what_to_do(tmp_path: Path) -> None:
    assert "holds no mixture.json" in said("apply", str(tmp_path), "--out", str(tmp_path / "x"))[1]
    (tmp_path / "config.yaml").write_text("name: x\n")
    assert "is not finished" in said("apply", str(tmp_path), "--out", str(tmp_path / "x"))[1]


def test_a_search_prints_in_one_line() -> None:
    text = repr(load_run(finished_folder() / "mixture.json"))
    assert "\n" not in text
    assert len(text) < 250
    assert all(word in text for word in ("improves", "3 domains", "2 capabilities", str(finished_folder())))
