"""A search judged by metrics, end to end: what it shows, and a kill in the middle of a metric that changes nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from builders import SMALL, TESTS, environment, run, search_command, start, without_times, write_small_search
from forked import Forked

from ideal_proxy.pipeline.finished import load_result, load_run
from ideal_proxy.pipeline.status import read_status
from ideal_proxy.report.text import result_tables
from ideal_proxy.report.whatif import what_if, what_if_tables
from ideal_proxy.report.write import write_report
from ideal_proxy.store import is_complete

HERE = str(TESTS)
METRICS = {
    "strings": {"python": "metric_functions:loss_facts", "higher_is_better": False},
    "formats": {"python": "metric_functions:accuracy_formats", "scale": 1.0},
}


def write(folder: Path, **changes) -> None:
    write_small_search(folder, **{
        "domains": [
            {"name": n, "path": f"demo:{n}?rows=500", "base": "8%" if n == "strings" else "100%"}
            for n in SMALL
        ],
        "capabilities": [
            {"name": n, "path": f"demo:{n}?rows=120&split=reference", "metric": {**metric, "folder": HERE}}
            for n, metric in METRICS.items()
        ],
        "proxy": {
            "size": "0.1M", "vocabulary": 300, "context": 48, "fraction": 0.6, "batch_rows": 16, "learning_rate": 0.006,
        },
        "swarm": {"runs": 6, "workers": 1},
        "verify": {"pairs": 2, "max_pairs": 2},
        **changes,
    })  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("metric-search")
    write(folder)
    answer = run("search", "mix.yaml", "--out", "run", cwd=folder)
    assert answer.returncode == 0, answer.stderr
    return folder, answer


def test_scores_stand_beside_losses_everywhere(finished):
    folder, answer = finished
    place = folder / "run"
    result = load_result(place)
    frame = pd.read_parquet(place / "runs.parquet")
    verify = frame[frame["role"] == "verify"]
    at_base = [(verify[f"rows/{d['name']}"] - d["base_rows"]).abs() < 1 for d in result["domains"]]
    base = verify[np.logical_and.reduce(at_base)]
    for entry in result["capabilities"]:
        name, metric = entry["name"], entry["metric"]
        assert metric["base"] == pytest.approx(base[f"verify_score/{name}"].mean())
        assert entry["base_loss"] == pytest.approx(base[f"verify_loss/{name}"].mean())
        change = verify.drop(base.index)[f"verify_score/{name}"].to_numpy() - base[f"verify_score/{name}"].to_numpy()
        assert metric["verified"]["value"] == pytest.approx(change.mean())
        assert metric["predicted"]["lower"] < metric["predicted"]["value"] < metric["predicted"]["upper"]
    cost, accuracy = (entry["metric"] for entry in result["capabilities"])
    assert 0 < accuracy["before_sft"] < accuracy["base"] < 1
    assert accuracy["scale"] == 1.0
    change = (accuracy["verified"]["value"] - cost["verified"]["value"] / cost["scale"]) / 2
    assert result["verdict"]["gain"]["value"] == pytest.approx(change, rel=1e-6)
    assert result["verdict"]["row_noise"] == pytest.approx(0.0, abs=1e-12)  # both halves score the same rows
    text = result_tables(result, Path("run"))
    assert "Metrics, which judge instead of the loss" in text
    assert "by the metrics" in text or "keep the base" in text
    assert max(len(line) for line in text.splitlines()) <= 80
    assert set(text.splitlines()) & set(answer.stdout.splitlines())
    mixture = json.loads((place / "mixture.json").read_text())
    assert mixture["capabilities"][1]["metric"]["base_score"] == pytest.approx(accuracy["base"])
    assert mixture["law"]["options"]["kind"] == "loss"  # what a full-size run measures
    assert (frame["metric_seconds"] > 0).all()


def test_report_what_if_and_status_know_of_scores(finished):
    folder, _ = finished
    found = load_run(folder / "run")
    assert found.model.kinds_ == ("cost", "score")
    assert found.values().shape == found.losses().shape == (6, 2)
    assert not np.allclose(found.values()[:, 1], found.losses()[:, 1])
    answer = what_if(found, {"strings": 200})
    text = what_if_tables(answer)
    assert "formats (score)" in text
    assert max(len(line) for line in text.splitlines()) <= 80
    same = what_if(found, {})
    assert same.gain.value == pytest.approx(0.0, abs=1e-9)
    report = write_report(found, folder / "report")
    page, numbers = report.page.read_text(), json.loads(report.numbers.read_text())
    assert "accuracy_formats" in page
    assert "Metrics, which judge instead of the loss" in page
    assert numbers["capabilities"][1]["metric"]["verified"]["value"] == pytest.approx(
        found.result["capabilities"][1]["metric"]["verified"]["value"], rel=1e-5
    )
    assert "share of base" in numbers["responses"]["unit"]
    assert read_status(folder / "run")["state"] == "finished"


@pytest.mark.slow
def test_killed_in_the_middle_of_a_metric_it_ends_with_the_same_mixture(finished):
    folder, _ = finished
    slow = {**environment(), "TEST_METRIC_SLEEP": "3"}
    command = search_command(folder, "killed")
    process = Forked(command, env=slow, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    kept: list[Path] = []
    while not kept and time.monotonic() < deadline and process.poll() is None:
        kept = [path for path in folder.glob("killed/runs/*/trained.json") if path.parent.name != "warm"]
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert kept, "no run was at its metric"
    one = kept[0].parent
    before = json.loads(kept[0].read_text())["metrics"]["train_seconds"]
    assert not is_complete(one)
    again = start("search", "mix.yaml", "--out", "killed", cwd=folder)
    assert again.returncode == 0, again.stderr
    assert json.loads((one / "metrics.json").read_text())["train_seconds"] == before  # not trained again
    assert not list(folder.glob("killed/runs/*/exported"))
    assert without_times(folder / "killed" / "mixture.json") == without_times(folder / "run" / "mixture.json")


def test_a_broken_metric_is_said_before_anything_is_trained(tmp_path):
    metric = {"python": "metric_functions:broken", "folder": HERE}
    write(
        tmp_path, capabilities=[{"name": "formats", "path": "demo:formats?rows=60&split=reference", "metric": metric}]
    )
    answer = run("search", "mix.yaml", "--out", "run", "--dry-run", cwd=tmp_path)
    assert answer.returncode == 1
    last = answer.stderr.strip().splitlines()[-1]
    assert last == (
        "error: the metric of formats (metric_functions:broken) failed: ZeroDivisionError: no items were judged"
    )
    assert not (tmp_path / "run" / "runs").exists()
