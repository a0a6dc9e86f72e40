"""`status`: empty, planned, running, stopped and finished run directories, each told apart and in 80 columns."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from builders import environment
from finished_run import folder as finished_folder

from ideal_proxy.errors import UserError
from ideal_proxy.pipeline.stage import Stage, stage_at
from ideal_proxy.pipeline.status import read_status, status_text
from ideal_proxy.pipeline.status_record import StatusRecord
from ideal_proxy.store import atomic_write_json, lock, lock_holder, mark_complete, read_json
from ideal_proxy.swarm.scheduler import SwarmEvent

PLAN = [
    {"name": "warm start", "runs": 1, "tokens": 1_000, "seconds": 10.0},
    {"name": "learning rate", "runs": 0, "tokens": 0, "seconds": 0.0},
    {"name": "swarm", "runs": 12, "tokens": 24_000, "seconds": 60.0},
    {"name": "check", "runs": 16, "tokens": 32_000, "seconds": 80.0},
    {"name": "more rounds", "runs": 40, "tokens": 80_000, "seconds": 200.0, "rounds": 2},
]


def event(kind: str, run: str, **changes) -> SwarmEvent:
    settings = {"role": "design", "done": 0, "steps": 0, "runs_done": 3, "runs": 12, "fraction": 0.3}
    return SwarmEvent(kind, run, **{**settings, "seconds_left": 42.0, **changes})


def begin(folder: Path) -> StatusRecord:
    """A search in its first swarm: three runs done, two under way, one failed."""
    (folder / "config.yaml").write_text("name: x\n")
    atomic_write_json(folder / "plan.json", {"workers": 2})
    for n, role in enumerate(["warm", "design", "design"]):
        done = folder / "runs" / f"done{n}"
        metrics = {"spec": {"role": role}, "tokens": 2_000, "train_seconds": 9.0, "evaluate_seconds": 1.0}
        atomic_write_json(done / "metrics.json", metrics)
        mark_complete(done)
    record = StatusRecord(folder, PLAN)
    record.__enter__()
    record.stage(Stage.SWARM, 1)
    record.event(event("started", "a" * 16, pid=11, worker=0))
    record.event(event("started", "b" * 16, pid=12, worker=1, host="node7.cluster.example"))
    record.event(event("failed", "c" * 16, message="the loss is not finite at step 3; choose a smaller learning rate"))
    record._written = 0.0
    record.event(event("step", "a" * 16, worker=0, done=50, steps=250, loss=2.3456))
    atomic_write_json(folder / "runs" / ("a" * 16) / "checkpoint.safetensors", {})
    return record


def test_a_running_search(tmp_path):
    with lock(tmp_path):
        record = begin(tmp_path)
        found = read_status(tmp_path)
        text = status_text(found, tmp_path.relative_to(tmp_path.parent))
    assert found["state"] == "running"
    assert found["holder"].startswith(f"process {os.getpid()} on")
    first, second = found["working"]
    assert (first["run"], first["step"], first["steps"], first["loss"]) == ("a" * 16, 50, 250, 2.3456)
    assert (second["worker"], second["step"], second["process"]) == (1, 0, 12)
    assert found["complete"] == {"warm": 1, "design": 2}
    assert found["failed"][0]["message"].startswith("the loss is not finite")
    assert found["stage_seconds_left"] == 42.0
    # 30 s for 6,000 tokens measured, two workers: the check and both further rounds come after this stage.
    assert found["seconds_left"] == pytest.approx(42 + (32_000 + 80_000) * 30 / 6_000 / 2)
    assert max(len(line) for line in text.splitlines() if not line.startswith("Look again: ")) <= 80
    for words in (
        "running, round 1: swarm",
        "50 of 250",
        "2.346",
        "Failed twice",
        "3 of 12 runs",
        "3 runs of 69 at",
        "1 node7  ",
    ):
        assert words in text
    record.event(event("finished", "a" * 16, worker=0, runs_done=4))
    assert [at["run"] for at in read_status(tmp_path)["working"]] == ["b" * 16]


def test_later_rounds_leave_less(tmp_path):
    record = begin(tmp_path)
    left = []
    for stage, number in ((Stage.FIT, 1), (Stage.SWARM, 2), (Stage.FIT, 3), (Stage.CHECK, None)):
        record.stage(stage, number)
        left.append(read_status(tmp_path)["seconds_left"])
    each = 30 / 6_000 / 2
    assert left == pytest.approx([(80_000 + 32_000) * each, (40_000 + 32_000) * each, 32_000 * each, 0.0])


def test_gradients_and_a_ladder_count_too(tmp_path):
    """Products are counted, and a lower size has a speed of its own."""
    plan = [
        {"name": name, "runs": runs, "tokens": tokens, "flops": 10.0 * tokens, "seconds": 1.0, **more}
        for name, runs, tokens, more in (
            ("lower sizes", 4, 5_000, {"size": "0.1M"}), ("warm start", 1, 1_000, {}), ("swarm", 10, 20_000, {}),
            ("gradients", 2, 8_000, {}), ("check", 4, 16_000, {}), ("more rounds", 8, 40_000, {"rounds": 2}),
        )
    ]  # fmt: skip
    begin(tmp_path)
    for metrics in tmp_path.glob("runs/*/metrics.json"):
        atomic_write_json(metrics, read_json(metrics) | {"flops": 10.0 * read_json(metrics)["tokens"]})
    record = StatusRecord(tmp_path, plan)
    left = {}
    each = 30 / 6_000 / 2
    rest = (20_000 + 8_000 + 16_000 + 40_000) * each + 1_000 * each * 2
    record.stage(Stage.LOWER_SIZES)
    assert read_status(tmp_path)["seconds_left"] == pytest.approx(1.0 + rest)  # as planned: none of its runs is done
    small = tmp_path / "lower" / "0.1M" / "runs" / "warm"
    metrics = {"spec": {"role": "warm"}, "tokens": 1_000, "flops": 1e4, "train_seconds": 2.0, "evaluate_seconds": 0.0}
    atomic_write_json(small / "metrics.json", metrics)
    mark_complete(small)
    assert read_status(tmp_path)["seconds_left"] == pytest.approx(0.8 * 5_000 * 2 / 1_000 / 2 + rest)
    for stage, number in (
        (Stage.SWARM, 1), (Stage.GRADIENTS, 1), (Stage.FIT, 1), (Stage.GRADIENTS, 2), (Stage.FIT, 3),
        (Stage.CHECK, None), (Stage.RESULT, None),
    ):  # fmt: skip
        record.stage(stage, number)
        found = read_status(tmp_path)
        left[found["stage"]] = found["seconds_left"]
    assert left == {
        "round 1: swarm": pytest.approx((8_000 + 16_000 + 40_000) * each),
        "round 1: gradients": pytest.approx((16_000 + 40_000) * each),
        "round 1: fit": pytest.approx((16_000 + 40_000) * each),
        "round 2: gradients": pytest.approx((16_000 + 20_000) * each),
        "round 3: fit": pytest.approx(16_000 * each),
        "check": 0.0,
        "result": 0.0,
    }


@pytest.mark.parametrize(
    "record",
    [
        {}, {"stage": "swarm"}, {"began": 1, "updated": [], "spent_before": 0}, {"working": []},
        {"began": 1, "updated": 2, "spent_before": 0, "working": {"x": {}}},
        {"began": 1e308, "updated": -1e308, "spent_before": 1e308, "plan": [{"runs": 1}]},
        {"began": 1, "updated": 2, "spent_before": 0, "failed": {"a": 3}},
    ],
)  # fmt: skip
def test_a_record_of_anything_is_none(record, tmp_path):
    """Found by fuzzing."""
    (tmp_path / "config.yaml").write_text("name: x\n")
    (tmp_path / "runs").mkdir()
    atomic_write_json(tmp_path / "status.json", record)
    found = read_status(tmp_path)
    assert (found["holder"], found["complete"], found["working"], found["failed"]) == (None, {}, [], [])
    assert "Go on: " in status_text(found, tmp_path)


@pytest.mark.parametrize(
    ("written", "shown", "stage"),
    [
        (("check", 2), "round 2: check", (Stage.CHECK, 2)),
        (("learning rate", None), "learning rate", (Stage.LEARNING_RATE, None)),
        (("dreaming", None), "dreaming", (None, None)),
    ],
)
def test_the_stage_is_read_and_one_of_another_version_shown(tmp_path, written, shown, stage):
    begin(tmp_path)
    path = tmp_path / "status.json"
    old = read_json(path) | dict(zip(("stage", "round"), written, strict=True))
    atomic_write_json(path, old)
    assert stage_at(old) == stage
    found = read_status(tmp_path)
    assert (found["stage"], found["seconds_left"] > 0) == (shown, True)
    assert f"stopped, {shown}" in status_text(found, tmp_path)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (None, "it was killed"),
        (KeyboardInterrupt(), "by Ctrl-C or a signal"),
        (UserError("cannot write x: No space left"), "It stopped with: cannot write x: No space left"),
    ],
)
def test_a_stopped_search_says_why_and_how_to_go_on(tmp_path, error, says):
    record = begin(tmp_path)
    if error is not None:
        record.__exit__(type(error), error, None)
    found = read_status(tmp_path)
    text = status_text(found, Path("run"))
    assert found["state"] == "stopped"
    assert says in text.replace("\n", " ")
    assert "Was running" in text
    assert [at["checkpoint"] for at in found["working"]] == [True, False]
    assert found["next"] == f"ideal-proxy search {tmp_path / 'config.yaml'} --out {tmp_path}"


def test_texts_of_any_length_are_cut(tmp_path):
    record = begin(tmp_path)
    record.stage("s" * 9_000)
    for kind in ("started", "retried", "failed"):
        record.event(event(kind, "r" * 9_000, message=f"{'x' * 9_000} mend that"))
    text = status_text(read_status(tmp_path), Path("run"))
    assert len(text) < 8_000
    assert "mend that" in text
    assert str(UserError(f"{'x' * 9_000}; mend that")).endswith("xx; mend that")


def test_wall_time_adds_up_over_sessions(tmp_path):
    for began, updated, before in ((1000.0, 1060.0, 0.0), (2000.0, 2030.0, 60.0)):
        assert StatusRecord(tmp_path, PLAN).spent_seconds == pytest.approx(before, abs=0.5)
        state = {"began": began, "updated": updated, "spent_before": before}
        atomic_write_json(tmp_path / "status.json", state)
    assert StatusRecord(tmp_path, PLAN).spent_seconds == pytest.approx(90.0, abs=0.5)


def test_finished_empty_and_foreign_folders(tmp_path):
    found = read_status(finished_folder())
    assert found["state"] == "finished"
    assert found["verdict"].startswith("improves")
    assert "ideal-proxy show" in status_text(found, Path("run"))
    empty = tmp_path / "empty"
    empty.mkdir()
    assert read_status(empty)["state"] == "empty"
    assert "no search yet" in status_text(read_status(empty), Path("empty"))
    with pytest.raises(UserError, match="is no folder"):
        read_status(tmp_path / "nowhere")
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="holds no search"):
        read_status(tmp_path)


def test_looking_never_gets_in_the_way(tmp_path):
    with lock(tmp_path):
        assert lock_holder(tmp_path) == lock_holder(tmp_path)
        with pytest.raises(UserError, match=f"in use by process {os.getpid()}"), lock(tmp_path):
            pass
    assert lock_holder(tmp_path) is None
    look = "import sys\nfrom ideal_proxy.store import lock_holder\nwhile True: lock_holder(sys.argv[1])"
    watcher = subprocess.Popen([sys.executable, "-c", look, str(tmp_path)], env=environment())
    try:
        time.sleep(0.5)
        for _ in range(20):
            with lock(tmp_path):
                pass
    finally:
        watcher.kill()
        watcher.wait()


def test_watch_looks_again_until_the_search_ends(monkeypatch, capsys):
    app = importlib.import_module("ideal_proxy.cli.app")
    finished = read_status(finished_folder())
    states = iter([finished | {"state": "running"}, finished | {"state": "running"}, finished])
    waits: list[float] = []
    monkeypatch.setattr("ideal_proxy.pipeline.read_status", lambda run: next(states), raising=False)
    monkeypatch.setattr(time, "sleep", waits.append)
    app.status(finished_folder(), as_json=True, watch=True)
    lines = [json.loads(line)["state"] for line in capsys.readouterr().out.splitlines()]
    assert lines == ["running", "running", "finished"]
    assert waits == [app.WATCH_SECONDS] * 2


@pytest.mark.parametrize("record", [{}, {"spec": 5}, {"spec": {}}, {"spec": {"role": 5}}])
def test_a_run_that_tells_no_role_is_one_sentence(tmp_path, record):
    begin(tmp_path)
    atomic_write_json(tmp_path / "runs" / "done0" / "metrics.json", record)
    (tmp_path / "runs" / "done0" / "complete").write_text("")
    with pytest.raises(UserError, match=r"done0/metrics.json is no record of a run; remove "):
        read_status(tmp_path)


def test_a_record_or_a_holder_that_is_a_pipe_is_not_waited_for(tmp_path):
    begin(tmp_path)
    for name in ("status.json", "lock.holder"):
        (tmp_path / name).unlink(missing_ok=True)
        os.mkfifo(tmp_path / name)
    assert read_status(tmp_path)["state"] == "stopped"
