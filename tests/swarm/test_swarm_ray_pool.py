"""The Ray engine on a stand-in for Ray: as `test_swarm_ray.py`, also where Ray is not installed."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections import Counter
from concurrent.futures import Future
from types import SimpleNamespace

import pytest
from builders import TESTS, make_context, same, spec
from fake_ray import FakeRay

from ideal_proxy.errors import UserError
from ideal_proxy.swarm import ray_pool, ray_worker
from ideal_proxy.swarm.context import load_result
from ideal_proxy.swarm.ray_pool import RayPool
from ideal_proxy.swarm.scheduler import Swarm, warm_spec

COUNT = "counting_worker"
RUNS = [
    spec("long-a", (90, 0), learning_rate=0.02), spec("long-b", (0, 90), learning_rate=0.02),
    *(spec(f"short-{n}", (4 + n, 3), seed=n) for n in range(3)),
]  # fmt: skip


@pytest.fixture
def ray(real_workers, tmp_path, monkeypatch):
    """Two nodes with two CPUs each."""
    fake = FakeRay("near", "far")
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    monkeypatch.setenv(ray_worker.CACHE, str(tmp_path / "cache"))
    monkeypatch.setattr(ray_worker, "DEATH_SECONDS", 0.0)
    monkeypatch.setattr(ray_worker, "SHIP_SECONDS", 0.0)
    return fake


def test_a_killed_process_and_a_lost_actor_cost_no_run(ray, tmp_path):
    context = make_context(tmp_path / "context")
    pool = RayPool(context, tmp_path, worker=COUNT)
    assert pool.workers == 4
    events = []
    killed, lost = {}, {}

    def on_event(event):
        events.append(event)
        if event.kind == "step" and event.run == "long-a" and event.done >= 10 and not killed:
            killed[event.run] = event.done
            os.kill(event.pid, signal.SIGKILL)
        if event.kind == "step" and event.run == "long-b" and event.done >= 10 and not lost:
            lost[event.run] = event.done
            pool._actors[event.worker].handle.lose()

    with Swarm(context, tmp_path, pool=pool, checkpoint_seconds=0.0) as swarm:
        assert not swarm.run([warm_spec(context, 0)]).failures
        before = ray.puts
        outcome = swarm.run(RUNS, on_event=on_event)
        filled = sorted(path.name for path in (tmp_path / "cache").iterdir())
    assert not outcome.failures
    retried = {event.run: event.message for event in events if event.kind == "retried"}
    assert set(retried) == {"long-a", "long-b"}
    assert "signal 9" in retried["long-a"]
    assert "was lost with its node or actor" in retried["long-b"]
    assert Counter(e.run for e in events if e.kind == "finished") == {run.id: 1 for run in RUNS}
    for run in RUNS[:2]:
        assert load_result(tmp_path, run.id).metrics["steps_resumed"] >= {**killed, **lost}[run.id]
    assert len(filled) == 2  # a folder a node
    assert not list((tmp_path / "cache").iterdir())  # and nothing stays
    # The warm start was put once for all, the two long runs' checkpoints once more each.
    warm = len(ray_worker.files_of(tmp_path / "runs" / "warm"))
    assert ray.puts - before == warm + 2
    with Swarm(context, tmp_path / "local", workers=2, worker=COUNT) as swarm:
        swarm.run([warm_spec(context, 0)])
        swarm.run(RUNS)
    assert all(same(tmp_path / "local", tmp_path, run.id) for run in RUNS)
    assert not list((tmp_path / "runs").rglob("checkpoint*"))


def refuse(tmp_path, **options):
    context = make_context(tmp_path / "context")
    with Swarm(context, tmp_path, pool=RayPool(context, tmp_path, worker=COUNT, **options)) as swarm:
        swarm.run([warm_spec(context, 0)])


def test_a_node_with_another_version_is_refused(ray, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_pool, "versions", lambda: {**ray_worker.versions(), "torch": "1.0"})
    with pytest.raises(UserError, match=r"has torch .* and the search's machine 1\.0; install the same version"):
        refuse(tmp_path)


def test_a_full_disk_of_a_node_ends_the_search_and_names_it(ray, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(ray_worker, "unpack", full)
    with pytest.raises(UserError, match=r"cannot take the swarm's files \(No space left on device\); make room there"):
        refuse(tmp_path)


@pytest.mark.parametrize("fails", [2, 3])
def test_a_head_that_does_not_come_up_is_tried_again(fails, ray, monkeypatch):
    tried, waited = [], []

    def init(**options):
        tried.append(options["address"])
        if len(tried) <= fails:
            raise Exception("The current node timed out during startup.\nmore")  # what Ray raises

    ray.init, ray.shutdown, ray.is_initialized = init, lambda: None, lambda: False
    monkeypatch.setattr(ray_pool, "time", SimpleNamespace(sleep=waited.append))
    if fails == 2:
        assert ray_pool.connect("local") is ray
    else:
        with pytest.raises(UserError, match=r"did not come up at local in 3 tries \(The current node .* startup\.\);"):
            ray_pool.connect("local")
    assert tried == ["local"] * 3
    assert waited == [ray_pool.START_SECONDS] * 2


def test_no_node_with_room_is_told(ray, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no node of the Ray cluster has the 1 CPU and 1 GPU of a worker; add one"):
        refuse(tmp_path, gpus=1.0)


def test_workers_that_never_start_end_the_search(ray, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "")  # so that there is no counting worker
    with pytest.raises(UserError, match=r"no worker starts on the Ray cluster \(.*exit status 1.*see .*-0\.log\)"):
        refuse(tmp_path, workers=1)
    assert "No module named counting_worker" in (tmp_path / "workers" / "worker-0.log").read_text()


def test_a_long_wait_for_room_is_told_and_ends_where_no_node_is_left(ray, tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(ray_pool, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=lambda _: None))
    asked: Future = Future()
    waiting = SimpleNamespace(begin=SimpleNamespace(remote=lambda *_: asked))  # the cluster has no room for this actor
    kind = SimpleNamespace(remote=lambda *_: waiting)
    monkeypatch.setattr(ray, "remote", lambda _: SimpleNamespace(options=lambda **_: kind))
    pool = RayPool(make_context(tmp_path / "context"), tmp_path, worker=COUNT)
    now[0] = 1000.0  # the data was prepared meanwhile
    pool.hire(1)
    assert (pool.idle(), pool.expected()) == ([], 0)
    told = []
    for after in (1, 29, 31, 59, 61, 119, 121, 599):
        now[0] = 1000.0 + after
        told += [(after, number, message["message"]) for number, message in pool.messages(0.0)]
    assert told == [(n, -1, f"no worker for {n} s: waiting for a node with 1 CPU free") for n in (31, 61, 121, 599)]
    now[0] = 1601.0
    list(pool.messages(0.0))  # no error: a node could still hold it
    ray.empty()
    with pytest.raises(UserError, match="no node of the Ray cluster has the 1 CPU of a worker any more; add one"):
        list(pool.messages(0.0))
