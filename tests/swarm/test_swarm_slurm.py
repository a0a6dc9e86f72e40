"""The Slurm engine by submitit's local executor: the local engine's numbers, deaths, stops, requeues."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from builders import TESTS, make_context, same, spec

from ideal_proxy.errors import UserError
from ideal_proxy.store import is_complete
from ideal_proxy.swarm.context import SwarmContext
from ideal_proxy.swarm.local import LocalPool
from ideal_proxy.swarm.scheduler import Swarm, SwarmEvent, warm_spec
from ideal_proxy.swarm.slurm_pool import SlurmPool
from ideal_proxy.swarm.slurm_task import DRIVER, OneRun

pytest.importorskip("submitit", reason="submitit is not installed (extra: slurm)")
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")
COUNT = "counting_worker"
SECONDS = 0.02  # of a step
RUNS = [spec("a", (40, 20), learning_rate=SECONDS), spec("b", (10, 70), learning_rate=SECONDS),
        spec("c", (5, 5), learning_rate=SECONDS)]  # fmt: skip


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SwarmContext:
    """A warm start that is made, and the reference: the same runs by the local engine."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]))
    context = make_context(tmp_path / "context")
    for name in ("local", "slurm"):
        with Swarm(context, tmp_path / name, workers=1, worker=COUNT) as swarm:
            quick = RUNS if name == "local" else []
            assert not swarm.run([warm_spec(context, 0)]).failures
            assert not quick or not swarm.run(quick).failures
    return context


def slurm(context: SwarmContext, run_dir: Path, **options: Any) -> Swarm:
    pool = SlurmPool(context, run_dir, address="local", workers=2, worker=COUNT, **options)
    return Swarm(context, run_dir, worker=COUNT, pool=pool, checkpoint_seconds=0.1)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.05)


def counted(run_dir: Path, run: str) -> int:
    path = run_dir / "runs" / run / "checkpoint.safetensors"
    return int(json.loads(path.read_text())["done"]) if path.exists() else 0


def test_a_killed_worker_costs_its_steps_only_and_numbers_are_the_local_ones(
    context: SwarmContext, tmp_path: Path
) -> None:
    place, events = tmp_path / "slurm", []

    def kill_one(event: SwarmEvent) -> None:
        events.append((event.kind, event.run, event.message))
        if event.kind == "step" and event.run == "a" and event.done > 20 and "retried" not in {e[0] for e in events}:
            for process in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    text = process.read_bytes()
                except OSError:
                    continue
                if COUNT.encode() in text and str(place).encode() in text and b'"worker": ' in text:
                    log = json.loads(text.split(b"\0")[-2])
                    if log["worker"] == event.worker:
                        os.kill(int(process.parent.name), signal.SIGKILL)

    with slurm(context, place) as swarm:
        outcome = swarm.run(RUNS, on_event=kill_one)
    assert not outcome.failures
    assert list(outcome.results) == ["a", "b", "c"]
    retried = [(run, why) for kind, run, why in events if kind == "retried"]
    assert [run for run, _ in retried] == ["a"]
    assert "signal 9" in retried[0][1]
    assert outcome.results["a"].metrics["steps_resumed"] > 15
    assert all(same(tmp_path / "local", place, run.id) for run in RUNS)


def test_a_stop_saves_and_the_next_driver_goes_on(context: SwarmContext, tmp_path: Path) -> None:
    place = tmp_path / "slurm"

    def stop(event: SwarmEvent) -> None:
        if event.kind == "step" and event.run == "b" and event.done > 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), slurm(context, place) as swarm:
        swarm.run(RUNS, on_event=stop)
    assert counted(place, "b") > 20
    with slurm(context, place) as swarm:
        outcome = swarm.run(RUNS)
    assert outcome.results["b"].metrics["steps_resumed"] > 20
    assert all(same(tmp_path / "local", place, run.id) for run in RUNS)


def one_run(context: SwarmContext, run_dir: Path, driver: str) -> OneRun:
    place = run_dir / "slurm"
    place.mkdir(exist_ok=True)
    (place / DRIVER).write_text("me")
    return OneRun(place, context.folder, run_dir, RUNS[0].to_json(), 0.1, COUNT, 0, driver)


def test_a_job_that_makes_room_is_queued_again_with_its_checkpoint(context: SwarmContext, tmp_path: Path) -> None:
    run_dir = tmp_path / "slurm"
    task = one_run(context, run_dir, "me")
    task._pool = LocalPool(context, run_dir, numbers=[0], worker=COUNT)
    task._pool.hire(1)
    wait_for(lambda: any(m["kind"] == "ready" for _, m in task._pool.messages(0.1)))
    task._pool.assign(0, RUNS[0], 0.1)
    wait_for(lambda: counted(run_dir, "a") > 5)
    again = task.checkpoint()
    steps = counted(run_dir, "a")
    assert not is_complete(run_dir / "runs" / "a")
    assert again.function() == "finished"
    assert is_complete(run_dir / "runs" / "a")
    assert steps > 5
    assert same(tmp_path / "local", run_dir, "a")


def test_a_job_ends_with_its_driver(context: SwarmContext, tmp_path: Path) -> None:
    run_dir = tmp_path / "slurm"
    task = one_run(context, run_dir, "me")
    said: list[str] = []
    job = threading.Thread(target=lambda: said.append(task()))
    job.start()
    wait_for(lambda: counted(run_dir, "a") > 5)
    (run_dir / "slurm" / DRIVER).write_text("another driver")
    job.join(60)
    assert said == ["stopped"]
    assert not is_complete(run_dir / "runs" / "a")


def test_what_cannot_be_is_one_sentence(context: SwarmContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"there is no Slurm here \(no sbatch\); start the search where it is"):
        SlurmPool(context, tmp_path / "slurm", worker=COUNT)
    with pytest.raises(UserError, match=r"swarm\.slurm is not what submitit takes"):
        slurm(context, tmp_path / "slurm", options={"partition_of_mine": "gpu"})
