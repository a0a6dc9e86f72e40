"""The Ray engine on a real cluster of two nodes: nothing lost, nothing done twice, the numbers of the local engine.

Everything that speaks to Ray runs in a process of its own, so that no thread of its is left in this one.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import TESTS, environment, make_context, same
from ray_swarm import COUNT, GRADIENTS, RUNS, TRAIN

from ideal_proxy.errors import UserError
from ideal_proxy.store import is_complete
from ideal_proxy.swarm.context import load_result
from ideal_proxy.swarm.ray_pool import connect
from ideal_proxy.swarm.scheduler import Swarm, warm_spec


def cluster(folder: Path, scenario: str, worker: str, seconds: float) -> dict[str, Any]:
    """Run a scenario of `ray_swarm.py` and return its report."""
    (folder / "cache").mkdir()
    env = environment(
        IDEAL_PROXY_CACHE=str(folder / "cache"), COUNTED=str(folder / "counted.txt"), RAY_USAGE_STATS_ENABLED="0",
        # A machine full of other work is slow, not broken.
        RAY_raylet_start_wait_time_s="200", RAY_health_check_timeout_ms="60000",
        RAY_worker_niceness="0",  # Ray's own 15 is no processor time at all beside others
        **({"GATE": str(folder / "gate")} if scenario == "losses" else {}),
    )  # fmt: skip
    command = [sys.executable, str(TESTS / "ray_swarm.py"), str(folder), scenario, worker]
    with open(folder / "output.txt", "w+") as output:
        subprocess.run(command, stdout=output, stderr=output, env=env, timeout=seconds, check=False)
        output.seek(0)
        assert (folder / "report.json").is_file(), output.read()[-3000:]
        report: dict[str, Any] = json.loads((folder / "report.json").read_text())
        assert "failures" in report, output.read()[-3000:]
    return report


def local(folder: Path, worker: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Do the same runs with the local engine."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]))
    context = make_context(folder / "context")
    with Swarm(context, folder / "local", workers=1, worker=worker) as swarm:
        assert not swarm.run([warm_spec(context, 0)]).failures
        for run in RUNS[worker]:
            quick = dataclasses.replace(run, learning_rate=0.0) if worker == COUNT else run
            assert not swarm.run([quick]).failures
    return folder / "local"


def test_a_killed_worker_and_a_lost_node_cost_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="Ray is not installed (extra: ray)")
    report = cluster(tmp_path, "losses", COUNT, 1500)
    check_losses(tmp_path, report, local(tmp_path, COUNT, monkeypatch), COUNT)
    # Every step was done once, but for those after the killed worker's last checkpoint and those that a lost node had
    # not sent home.
    lines = (tmp_path / "counted.txt").read_text().splitlines()
    counted = Counter(line.split()[0] for line in lines)
    for run in RUNS[COUNT]:
        most = {report["killed"]: 1, report["removed"]: 119}.get(run.id, 0)
        assert 0 <= counted[run.id] - sum(run.rows) <= most


def check_losses(folder: Path, report: dict[str, Any], reference: Path, worker: str) -> None:
    runs = RUNS[worker]
    assert report["workers"] == 2
    assert report["unpacked"] == [1, 1]  # the context went to each node once, though three workers were there
    assert not report["failures"]
    assert report["results"] == [run.id for run in runs]
    assert {report["killed"], report["removed"]} == {"long-a", "long-b"}
    events = report["events"]
    assert Counter(e["run"] for e in events if e["kind"] == "finished") == {run.id: 1 for run in runs}
    retried = {e["run"]: e["message"] for e in events if e["kind"] == "retried"}
    assert set(retried) == {report["killed"], report["removed"]}
    assert "signal 9" in retried[report["killed"]]
    assert "lost with its node" in retried[report["removed"]]
    assert events[-1]["runs_done"] == len(runs)
    assert all(e["host"] for e in events if e["kind"] == "step")
    assert load_result(folder, report["killed"]).metrics["steps_resumed"] >= report["killed_at"] - 1
    for run in runs:
        assert same(reference, folder, run.id)
        assert not (folder / "runs" / run.id / "checkpoint.safetensors").exists()
    assert not same_losses(folder, "long-a", "long-b")


def same_losses(folder: Path, one: str, two: str) -> bool:
    a, b = load_result(folder, one), load_result(folder, two)
    return all((a.losses[name].loss_sum == b.losses[name].loss_sum).all() for name in a.losses)


@pytest.mark.slow
def test_ctrl_c_and_a_killed_driver_leave_what_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="Ray is not installed (extra: ray)")
    report = cluster(tmp_path, "stops", COUNT, 1500)
    assert report["checkpoint"]  # it came home from its node
    assert not report["left_by_stop"]  # and the nodes keep nothing
    assert report["orphan_ended"]
    assert not report["failures"]
    assert report["results"] == [run.id for run in RUNS[COUNT]]
    assert load_result(tmp_path, report["stopped"]).metrics["steps_resumed"] >= report["stopped_at"]
    reference = local(tmp_path, COUNT, monkeypatch)
    assert all(same(reference, tmp_path, run.id) for run in RUNS[COUNT])


@pytest.mark.slow
def test_real_proxies_have_the_local_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="Ray is not installed (extra: ray)")
    report = cluster(tmp_path, "losses", TRAIN, 900)
    check_losses(tmp_path, report, local(tmp_path, TRAIN, monkeypatch), TRAIN)


@pytest.mark.slow
def test_responses_are_estimated_on_a_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="Ray is not installed (extra: ray)")
    report = cluster(tmp_path, "plain", GRADIENTS, 900)
    assert not report["failures"]
    reference = local(tmp_path, GRADIENTS, monkeypatch)
    assert is_complete(tmp_path / "runs" / "implicit")
    here, there = (np.load(folder / "runs" / "implicit" / "responses.npz") for folder in (reference, tmp_path))
    with here, there:
        assert np.isfinite(here["M"]).all()
        assert here["M"].any()
        assert np.array_equal(here["M"], there["M"])


def test_a_cluster_that_is_not_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="Ray is not installed (extra: ray)")
    with pytest.raises(UserError, match=r"no Ray cluster answers at 127\.0\.0\.1:1 \(.*\); start one with `ray start"):
        connect("127.0.0.1:1")
    with pytest.raises(UserError, match="a Ray client cannot drive a search"):
        connect("ray://127.0.0.1:10001")
    with pytest.raises(UserError, match="write auto, HOST:PORT, or local"):
        connect("somewhere")


def test_without_ray_the_user_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'ideal-proxy\[ray\]'"):
        connect("auto")
