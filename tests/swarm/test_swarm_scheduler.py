"""The scheduler on simulated workers and time: long runs first, an honest estimate, losses and their limits."""

from __future__ import annotations

import heapq
import os
import signal
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from builders import TESTS, make_context, spec

from ideal_proxy.store import atomic_write_json
from ideal_proxy.swarm import scheduler as scheduling
from ideal_proxy.swarm.context import Run, RunSpec, SwarmContext
from ideal_proxy.swarm.forecast import Forecast, UnderWay, Work
from ideal_proxy.swarm.pool import Message
from ideal_proxy.swarm.scheduler import LOSSES, Swarm, SwarmEvent, warm_spec

STEPS = 20


class Simulation:
    """A pool whose workers are entries of a time table; `now` is its clock."""

    def __init__(
        self, run_dir: Path, workers: int, pace: dict[str, float], *, beginning: float, imports: float
    ) -> None:
        self.run_dir, self.workers, self.pace = run_dir, workers, pace
        self.beginning, self.imports = beginning, imports
        self.now = 0.0
        self.order: list[str] = []
        self.lose: Counter[str] = Counter()
        self._table: list[tuple[float, int, int, Message]] = []
        self._count = 0
        self._hired: dict[int, str | None] = {}
        self._fresh: set[int] = set()

    def hire(self, wanted: int) -> None:
        for number in range(self.workers):
            if len(self._hired) < wanted and number not in self._hired:
                self._hired[number] = None
                self._fresh.add(number)
                self._at(0.0, number, {"kind": "ready", "pid": 100 + number})

    def idle(self) -> list[int]:
        return [number for number, run in self._hired.items() if run is None]

    def expected(self) -> int:
        return len(self._hired)

    def assign(self, number: int, spec: RunSpec, checkpoint_seconds: float) -> None:
        self.order.append(spec.id)
        self._hired[number] = spec.id
        self._at(0.0, number, {"kind": "started", "run": spec.id})
        after = self.beginning + (self.imports if number in self._fresh else 0.0)
        self._fresh.discard(number)
        if self.lose[spec.id] > 0:
            self.lose[spec.id] -= 1
            self._at(after, number, {"kind": "died", "message": "the node went", "charged": False})
            return
        seconds = self.pace[spec.id]
        for step in range(1, STEPS + 1):
            message = {"kind": "step", "run": spec.id, "done": step, "steps": STEPS, "loss": 1.0}
            self._at(after + 0.95 * seconds * step / STEPS, number, message)
        self._at(after + seconds, number, {"kind": "finished", "run": spec.id})

    def messages(self, timeout: float) -> Iterable[tuple[int, Message]]:
        if self._table:
            self.now, _, number, message = heapq.heappop(self._table)
            if message["kind"] == "finished":
                atomic_write_json(self.run_dir / "done" / message["run"], 1)
                self._hired[number] = None
            elif message["kind"] == "died":
                del self._hired[number]
            yield number, message

    def stop(self, number: int) -> None:
        pass

    def close(self) -> None:
        self._table.clear()
        self._hired.clear()

    def _at(self, seconds: float, number: int, message: Message) -> None:
        self._count += 1
        heapq.heappush(self._table, (self.now + seconds, self._count, number, message))


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> SwarmContext:
    return make_context(tmp_path_factory.mktemp("simulated") / "context")


def simulate(
    context: SwarmContext, folder: Path, monkeypatch: pytest.MonkeyPatch, runs: list[RunSpec], pool: Simulation
) -> list[tuple[float, SwarmEvent]]:
    """Do the runs in simulated time; return (time, event)."""
    monkeypatch.setattr(scheduling.time, "monotonic", lambda: pool.now)

    def result(run_dir: Path, run: str) -> Run:
        assert (run_dir / "done" / run).exists()
        return Run(spec=next(r for r in runs if r.id == run), losses={}, metrics={}, folder=run_dir)

    monkeypatch.setattr(scheduling, "load_result", result)
    events: list[tuple[float, SwarmEvent]] = []
    with Swarm(context, folder, pool=pool) as swarm:
        outcome = swarm.run(runs, on_event=lambda event: events.append((pool.now, event)))
    assert set(outcome.results) | set(outcome.failures) == {run.id for run in runs}
    return events


@pytest.mark.parametrize("seed", range(5))
def test_long_runs_first_and_an_estimate_that_comes_true(context, tmp_path, monkeypatch, seed):
    rng = np.random.default_rng(seed)
    runs = [spec(f"run{n:02d}", (int(a), int(b))) for n, (a, b) in enumerate(rng.integers(20, 400, (24, 2)))]
    length = [np.diff(rows.offsets).mean() for rows in context.domain_rows()]
    work = {run.id: float(np.dot(run.rows, length)) for run in runs}
    # Speeds that scatter by a fifth, a second to begin a run, half a minute of imports before a worker's first.
    pace = {run: tokens * 0.01 * float(rng.lognormal(0, 0.2)) for run, tokens in work.items()}
    pool = Simulation(tmp_path, 3, pace, beginning=1.0, imports=30.0)
    events = simulate(context, tmp_path, monkeypatch, runs, pool)
    assert [work[run] for run in pool.order] == sorted(work.values(), reverse=True)
    end = events[-1][0]
    assert end <= 1.06 * (sum(pace.values()) + len(runs) + 3 * 30.0) / 3  # no worker waits long for the last run
    known = [(at, e.seconds_left) for at, e in events if e.seconds_left is not None and e.kind == "step"]
    assert known[0][0] < 50
    for share, most in ((0.15, 0.26), (0.5, 0.15), (0.7, 0.1)):  # of the whole time; holds for 40 seeds
        assert max(abs(left - (end - at)) / end for at, left in known if at > share * end) < most
    assert events[-1][1].seconds_left == pytest.approx(0.0, abs=1e-6)
    assert events[-1][1].fraction == pytest.approx(1.0)


def test_a_run_may_lose_its_worker_some_times_without_blame(context, tmp_path, monkeypatch):
    runs = [spec("unlucky", (50, 50)), spec("doomed", (40, 40)), spec("other", (30, 30))]
    pool = Simulation(tmp_path, 2, {run.id: 5.0 for run in runs}, beginning=0.5, imports=1.0)
    pool.lose.update(unlucky=LOSSES - 1, doomed=LOSSES)
    events = simulate(context, tmp_path, monkeypatch, runs, pool)
    kinds = Counter((event.kind, event.run) for _, event in events)
    assert kinds["retried", "unlucky"] == LOSSES - 1
    assert kinds["finished", "unlucky"] == kinds["finished", "other"] == 1
    assert kinds["failed", "doomed"] == 1
    assert kinds["retried", "doomed"] == LOSSES - 1
    assert events[-1][1].runs_done == 3


def test_the_forecast_by_hand():
    forecast = Forecast()
    assert forecast.seconds_left([10.0], [], 1) is None
    forecast.measured(20.0, 100.0, beginning=2.0)  # 0.2 s a token
    assert forecast.seconds_left([50.0, 40.0, 30.0], [], 2) == pytest.approx(2 + 40 * 0.2 + 2 + 30 * 0.2)
    assert forecast.seconds_left([50.0], [], 4) == pytest.approx(2 + 50 * 0.2)
    under_way = UnderWay(left=80.0, done=0.0, seconds=1.5, stepping=False)
    assert forecast.seconds_left([], [under_way], 1) == pytest.approx(0.5 + 80 * 0.2)
    half = UnderWay(left=50.0, done=50.0, seconds=40.0, stepping=True)  # slower: 60 s for 150 tokens
    assert forecast.seconds_left([], [half], 1) == pytest.approx(50 * 0.4)
    work = Work(90.0, 10.0)
    assert (work.whole, work.after(0, 0), work.after(45, 90), work.after(90, 90)) == (100.0, 100.0, 55.0, 10.0)


def test_a_killed_worker_repeats_no_step_that_its_checkpoint_holds(tmp_path, monkeypatch):
    """Real processes that count: of two runs, one loses its worker to the system."""
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    monkeypatch.setenv("COUNTED", str(tmp_path / "counted.txt"))
    context = make_context(tmp_path / "context")
    runs = [spec("killed", (30, 10), learning_rate=0.02), spec("spared", (10, 10), learning_rate=0.02)]
    killed_at: list[int] = []

    def on_event(event: SwarmEvent) -> None:
        if event.kind == "step" and event.run == "killed" and event.done >= 10 and not killed_at:
            killed_at.append(event.done)
            os.kill(event.pid, signal.SIGKILL)

    with Swarm(context, tmp_path, workers=2, worker="counting_worker", checkpoint_seconds=0.0) as swarm:
        swarm.run([warm_spec(context, 0)])
        outcome = swarm.run(runs, on_event=on_event)
    assert not outcome.failures
    counted = Counter(line.split()[0] for line in (tmp_path / "counted.txt").read_text().splitlines())
    assert counted["spared"] == 20
    assert 40 <= counted["killed"] <= 41  # a step may have been done whose checkpoint was not yet there
    assert outcome.results["killed"].metrics["steps_resumed"] >= killed_at[0]


@pytest.mark.usefixtures("real_workers")
@pytest.mark.parametrize("search_path", ["", ":"], ids=["unset", "an empty part"])
def test_no_module_of_the_current_folder_is_run(tmp_path, monkeypatch, search_path):
    """A user's `queue.py` or `json.py` beside the run file is data, not a part of a worker."""
    here = tmp_path / "here"
    here.mkdir()
    for name in ("json", "queue", "argparse", "torch", "numpy", "ideal_proxy"):
        (here / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write({name!r})\n")
    context = make_context(tmp_path / "context")
    monkeypatch.setenv("PYTHONPATH", str(TESTS) + search_path)
    monkeypatch.chdir(here)
    with Swarm(context, tmp_path, workers=1, worker="counting_worker") as swarm:
        assert not swarm.run([warm_spec(context, 0)]).failures
    assert not (tmp_path / "ran").exists()
