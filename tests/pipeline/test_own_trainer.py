"""A search whose proxies somebody's own trainer trains: verdict, files, resume; and TRL beside the built-in one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from builders import TESTS, interrupted, run, start, without_times, write_small_search
from pretrained_folder import pretrained_folder

from ideal_proxy.pipeline.finished import load_result
from ideal_proxy.store import is_complete, read_json

OWN = f"{sys.executable} {TESTS / 'own_trainer.py'} {{run}}"


def write(folder: Path, command: str | None, **changes: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    proxy = {"model": str(folder.parent / "model"), "context": 64, "fraction": 0.9, "learning_rate": 3e-3}
    proxy |= {} if command is None else {"command": command}
    base = {"strings": "8%", "formats": "100%", "facts": "100%"}
    write_small_search(folder, **{
        "domains": [{"name": n, "path": f"demo:{n}?rows=300", "base": share} for n, share in base.items()],
        "proxy": proxy | changes.pop("proxy", {}), "swarm": {"runs": 6, "workers": 1},
        "verify": {"pairs": 2, "max_pairs": 2}, **changes,
    })  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trainers")
    pretrained_folder(folder / "model")
    return folder


def test_a_search_by_a_trainer_of_ones_own(place: Path) -> None:
    folder = place / "own"
    write(folder, f"{OWN} mean")
    answer = run("search", "mix.yaml", "--out", "run", cwd=folder)
    assert answer.returncode == 0, answer.stderr
    result = load_result(folder / "run")
    assert result["verdict"]["answer"] == "improves"  # the law of `own_trainer` wants more of both
    assert [d["change"] > 0 for d in result["domains"]] == [True, True, False]
    assert result["verdict"]["row_noise"] == pytest.approx(0.0, abs=1e-12)  # a mean loss says nothing of rows
    text = (folder / "run" / "mixture.json").read_text()
    assert "own_trainer" not in text
    assert "command" not in json.loads(text)["provenance"]["proxy"]
    assert not list(folder.glob("run/runs/*/work"))
    killed = interrupted(folder / "run", folder / "killed", 5)
    done = {path: path.stat().st_mtime_ns for path in killed.glob("runs/*/metrics.json") if is_complete(path.parent)}
    again = run("search", "mix.yaml", "--out", "killed", cwd=folder)
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert without_times(folder / "killed" / "mixture.json") == without_times(folder / "run" / "mixture.json")


def test_scores_that_it_reports_are_a_metric(place: Path) -> None:
    folder = place / "scores"
    capabilities = [
        {"name": name, "path": f"demo:{name}?rows=120&split=reference", "metric": {"reported": True}}
        for name in ("strings", "formats")
    ]
    write(folder, f"{OWN} rows", capabilities=capabilities, swarm={"runs": 4, "workers": 1})
    answer = run("search", "mix.yaml", "--out", "run", cwd=folder)
    assert answer.returncode == 0, answer.stderr
    strings = load_result(folder / "run")["capabilities"][0]
    assert strings["metric"]["base"] == pytest.approx(-strings["base_loss"] + 2.95, abs=0.1)
    assert strings["metric"]["before_sft"] is None


def test_one_that_cannot_work_is_said_before_anything_is_trained(place: Path) -> None:
    folder = place / "fails"
    write(folder, f"{OWN} fails")
    answer = run("search", "mix.yaml", "--out", "run", "--dry-run", cwd=folder)
    assert answer.returncode == 1
    assert "ended with exit status 1; its last words: no such flag: --bf17" in answer.stderr
    assert not (folder / "run" / "runs").exists()


@pytest.mark.slow
def test_trl_gives_the_verdict_of_the_built_in_trainer(place: Path) -> None:
    pytest.importorskip("trl", reason="TRL is not installed")
    answers = {}
    trl = "trl sft --config {data}/sft.yaml --use_cpu true --bf16 false --save_strategy no"
    for name, command, changes in (("built-in", None, {}), ("trl", trl, {"proxy": {"export": "trl"}})):
        write(place / name, command, **changes)
        done = start("search", "mix.yaml", "--out", "run", cwd=place / name, timeout=3000)
        assert done.returncode == 0, done.stderr
        answers[name] = load_result(place / name / "run")
    assert answers["trl"]["verdict"]["answer"] == answers["built-in"]["verdict"]["answer"] == "improves"
    grown = [[d["proposal_rows"] > d["base_rows"] for d in found["domains"]] for found in answers.values()]
    assert grown[0] == grown[1]
    runs = [read_json(path) for path in (place / "trl" / "run" / "runs").glob("*/metrics.json")]
    assert {each.get("judged_by") for each in runs} == {None, "ideal-proxy"}  # None is the model before any row
