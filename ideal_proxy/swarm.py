"""Many proxies on one machine: worker processes, long runs first, retries, resume, and an honest estimate.

The parent imports no torch. It hands out one run at a time, so a worker that dies loses that run alone, and that only
back to its last checkpoint. A run is complete when its marker stands; what is complete is never done again.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ideal_proxy.errors import UserError
from ideal_proxy.store import is_complete
from ideal_proxy.swarm_context import (
    MODEL,
    RESPONSES,
    WARM_RUN,
    RunResult,
    RunSpec,
    SwarmContext,
    draw_run,
    load_context,
    load_result,
    prepare_context,
)

__all__ = [
    "MODEL", "RESPONSES", "WARM_RUN", "RunResult", "RunSpec", "Swarm", "SwarmContext", "SwarmEvent", "SwarmOutcome",
    "draw_run", "load_context", "load_result", "prepare_context", "response_trainings", "run_swarm", "warm_spec",
]  # fmt: skip

ATTEMPTS = 2
STOP_SECONDS = 10.0
IMPLICIT_TRAININGS = 1.5
"""What an implicit estimate may cost, in trainings of that proxy; its rows are chosen by it."""


@dataclass(frozen=True, slots=True)
class SwarmEvent:
    """Something that happened, for progress.

    Attributes:
        kind: "skipped" (was complete), "started", "step", "finished", "retried", "failed".
        run: the run's id.
        role: its role.
        done: optimiser steps done of this run.
        steps: optimiser steps of this run.
        runs_done: runs complete or given up, of this call.
        runs: runs of this call.
        fraction: share of this call's work that is done, 0 to 1.
        seconds_left: estimate from the speed measured so far; None before there is one.
        message: what went wrong, for "retried" and "failed".
        pid: process id of the worker, 0 where there is none.
        worker: number of the worker, -1 where there is none.
        loss: of the last step, nats per supervised token; None before there is one, or where it is not finite.
    """

    kind: str
    run: str
    role: str
    done: int
    steps: int
    runs_done: int
    runs: int
    fraction: float
    seconds_left: float | None
    message: str = ""
    pid: int = 0
    worker: int = -1
    loss: float | None = None


@dataclass(frozen=True, slots=True)
class SwarmOutcome:
    """How a call ended.

    Attributes:
        results: by run id, in the order asked for; failed runs are not in it.
        failures: by run id, what went wrong.
    """

    results: dict[str, RunResult]
    failures: dict[str, str]


@dataclass(slots=True, eq=False)
class _Worker:
    """A worker process and the run it is at."""

    number: int
    process: subprocess.Popen[bytes]
    buffer: bytes = b""
    ready: bool = False
    spec: RunSpec | None = None
    done: int = 0
    steps: int = 0
    loss: float | None = None
    began: float = 0.0


@dataclass(slots=True)
class _Call:
    """The state of one call of `Swarm.run`."""

    total_runs: int
    work: dict[str, float]
    on_event: Callable[[SwarmEvent], None] | None
    waiting: list[RunSpec] = field(default_factory=list)
    attempts: dict[str, int] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    finished: set[str] = field(default_factory=set)
    skipped: set[str] = field(default_factory=set)
    deaths_unready: int = 0


class Swarm:
    """Worker processes that stay up between calls (starting one costs seconds of imports).

    Use as a context manager: leaving it ends the workers.

    Args:
        context: the prepared files and settings.
        run_dir: the run directory; runs go to `runs/<id>/` under it.
        workers: number of processes; default one for every `context.threads` cores, or one on a GPU.
        checkpoint_seconds: time between a run's checkpoints.
        worker: module that a worker process runs; one that estimates responses lies to the right of this one.
    """

    def __init__(
        self,
        context: SwarmContext,
        run_dir: str | Path,
        *,
        workers: int | None = None,
        checkpoint_seconds: float = 30.0,
        worker: str = "ideal_proxy.swarm_worker",
    ) -> None:
        self.context = context
        self.worker = worker
        self.run_dir = Path(run_dir)
        cores = _cores()
        self.workers = workers or (max(1, len(cores) // context.threads) if context.device == "cpu" else 1)
        self.checkpoint_seconds = checkpoint_seconds
        self._selector = selectors.DefaultSelector()
        self._pool: dict[int, _Worker] = {}
        self._tokens_per_row: np.ndarray[Any, Any] | None = None
        # Seconds of a worker per unit of work, measured over finished runs: sums of both.
        self._seconds = 0.0
        self._work = 0.0

    def __enter__(self) -> Swarm:
        """Return self; workers start with the first call that needs them."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the workers; on an error or Ctrl-C let them save a checkpoint first."""
        self.close(save=kind is not None)

    def run(self, specs: Sequence[RunSpec], *, on_event: Callable[[SwarmEvent], None] | None = None) -> SwarmOutcome:
        """Do the runs that are not complete yet.

        Args:
            specs: the runs; ids must differ.
            on_event: called for every event, in this process.

        Returns:
            SwarmOutcome: results and failures; a failed run was tried twice.

        Raises:
            UserError: two runs share an id, a complete run of that id is another run, the disk is full, or no
                worker starts.
        """
        if len({spec.id for spec in specs}) != len(specs):
            raise UserError("two runs of a swarm have the same id; ids must differ")
        call = _Call(len(specs), {spec.id: self._work_of(spec) for spec in specs}, on_event)
        fingerprint = self.context.fingerprint()
        for spec in specs:
            if not is_complete(self.run_dir / "runs" / spec.id):
                call.waiting.append(spec)
                continue
            found = load_result(self.run_dir, spec.id)
            if _what_counts(found.spec) != _what_counts(spec) or found.metrics["context"] != fingerprint:
                raise UserError(
                    f"{self.run_dir / 'runs' / spec.id} holds another run; choose another --out or remove that folder"
                )
            call.skipped.add(spec.id)
            self._tell(call, "skipped", spec)
        call.waiting.sort(key=lambda spec: (-call.work[spec.id], spec.id))  # long runs first
        try:
            self._work_off(call)
        except BaseException:
            self.close(save=True)
            raise
        results = {spec.id: load_result(self.run_dir, spec.id) for spec in specs if spec.id not in call.failures}
        return SwarmOutcome(results, call.failures)

    def close(self, *, save: bool = False) -> None:
        """End the workers.

        Args:
            save: let busy workers save a checkpoint first, for some seconds at most; a second Ctrl-C ends them at once.
        """
        try:
            if save:
                busy = [worker for worker in self._pool.values() if worker.spec is not None]
                for worker in busy:
                    self._send(worker, {"stop": True})
                deadline = time.monotonic() + STOP_SECONDS
                while any(w.spec is not None for w in self._pool.values()) and time.monotonic() < deadline:
                    for worker, message in self._messages(0.2):
                        if message is None:
                            self._bury(worker)
                        elif message["kind"] in {"stopped", "finished", "failed"}:
                            worker.spec = None
        finally:
            for worker in list(self._pool.values()):
                with contextlib.suppress(OSError):
                    if worker.process.stdin is not None:
                        worker.process.stdin.close()
                try:
                    worker.process.wait(timeout=0.5 if worker.spec is None else 0)
                except subprocess.TimeoutExpired:
                    worker.process.kill()
                    worker.process.wait()
                self._bury(worker)

    def _work_off(self, call: _Call) -> None:
        """Hand out the waiting runs until all are finished or given up."""
        while call.waiting or any(worker.spec is not None for worker in self._pool.values()):
            wanted = min(self.workers, len(call.waiting) + sum(w.spec is not None for w in self._pool.values()))
            while len(self._pool) < wanted:
                self._start()
            for worker in self._pool.values():
                if worker.ready and worker.spec is None and call.waiting:
                    self._assign(call, worker, call.waiting.pop(0))
            for worker, message in self._messages(1.0):
                if message is None:
                    self._died(call, worker)
                elif message["kind"] == "ready":
                    worker.ready = True
                elif message.get("run") == (worker.spec.id if worker.spec else None):
                    self._handle(call, worker, message)

    def _assign(self, call: _Call, worker: _Worker, spec: RunSpec) -> None:
        """Give a run to an idle worker."""
        call.attempts[spec.id] = call.attempts.get(spec.id, 0) + 1
        worker.spec, worker.done, worker.steps, worker.loss, worker.began = spec, 0, 0, None, time.monotonic()
        self._send(worker, {"spec": spec.to_json(), "checkpoint_seconds": self.checkpoint_seconds})

    def _handle(self, call: _Call, worker: _Worker, message: dict[str, Any]) -> None:
        """Act on one message about the run a worker is at."""
        spec = worker.spec
        assert spec is not None
        kind = message["kind"]
        if kind == "started":
            self._tell(call, "started", spec, worker)
        elif kind == "step":
            worker.done, worker.steps, worker.loss = message["done"], message["steps"], message["loss"]
            self._tell(call, "step", spec, worker)
        elif kind == "finished":
            worker.spec = None
            call.finished.add(spec.id)
            self._seconds += time.monotonic() - worker.began
            self._work += call.work[spec.id]
            self._tell(call, "finished", spec, worker)
        elif kind == "failed":
            worker.spec = None
            if message["disk_full"]:
                raise UserError(message["message"])
            self._failed(call, spec, message["message"])

    def _failed(self, call: _Call, spec: RunSpec, message: str) -> None:
        """Try a failed run once more, then give it up; the others go on."""
        if call.attempts[spec.id] < ATTEMPTS:
            call.waiting.append(spec)
            self._tell(call, "retried", spec, message=message)
        else:
            call.failures[spec.id] = message
            self._tell(call, "failed", spec, message=message)

    def _died(self, call: _Call, worker: _Worker) -> None:
        """Bury a worker that ended by itself, and put its run back."""
        code = worker.process.wait()
        spec, worker.spec = worker.spec, None
        self._bury(worker)
        how = f"signal {-code}" if code < 0 else f"exit status {code}"
        if spec is not None:
            self._failed(call, spec, f"the worker process ended by {how} (out of memory?)")
        elif not worker.ready:
            call.deaths_unready += 1
            if call.deaths_unready > self.workers + 1:
                raise UserError(f"no worker process starts ({how}); see {self._log_path(worker.number)}")

    def _start(self) -> None:
        """Start one worker process, on its own cores where there are enough."""
        number = next(n for n in range(self.workers) if n not in self._pool)
        threads = self.context.threads
        cores = _cores()
        pin = self.workers > 1 and self.context.device == "cpu" and self.workers * threads <= len(cores)
        settings = {
            "context": str(self.context.folder.resolve()), "run_dir": str(self.run_dir.resolve()), "worker": number,
            "cores": cores[number * threads : (number + 1) * threads] if pin else [],
        }  # fmt: skip
        package = str(Path(__file__).resolve().parent.parent)
        paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {
            **os.environ, "PYTHONPATH": os.pathsep.join(paths), "TOKENIZERS_PARALLELISM": "false",
            "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": "1",
        }  # fmt: skip
        log = self._log_path(number)
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            with open(log, "ab") as errors:
                process = subprocess.Popen(
                    [sys.executable, "-m", self.worker, json.dumps(settings)],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=environment,
                    start_new_session=True,
                )  # fmt: skip
        except OSError as error:
            raise UserError(f"cannot start a worker process: {error.strerror or error}") from error
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        worker = _Worker(number, process)
        self._pool[number] = worker
        self._selector.register(process.stdout, selectors.EVENT_READ, worker)

    def _messages(self, timeout: float) -> Iterable[tuple[_Worker, dict[str, Any] | None]]:
        """Yield (worker, message) as they come; the message None says that the worker ended."""
        for key, _ in self._selector.select(timeout):
            worker: _Worker = key.data
            chunk = worker.process.stdout.read() if worker.process.stdout is not None else b""
            if not chunk:
                if chunk == b"":
                    yield worker, None
                continue
            *lines, worker.buffer = (worker.buffer + chunk).split(b"\n")
            for line in lines:
                yield worker, json.loads(line)

    def _send(self, worker: _Worker, message: dict[str, Any]) -> None:
        """Write one line to a worker; one that just died is noticed by its closed output."""
        with contextlib.suppress(OSError):
            assert worker.process.stdin is not None
            worker.process.stdin.write(json.dumps(message).encode() + b"\n")
            worker.process.stdin.flush()

    def _bury(self, worker: _Worker) -> None:
        """Forget a worker whose process has ended or will not be read any more."""
        if self._pool.pop(worker.number, None) is None:
            return
        if worker.process.stdout is not None:
            self._selector.unregister(worker.process.stdout)
            worker.process.stdout.close()
        with contextlib.suppress(OSError):
            if worker.process.stdin is not None:
                worker.process.stdin.close()
        worker.process.wait()

    def _log_path(self, number: int) -> Path:
        return self.run_dir / "workers" / f"worker-{number}.log"

    def _work_of(self, spec: RunSpec) -> float:
        """Estimate a run's work in trained tokens, judging included (a third of training's products)."""
        if self._tokens_per_row is None:
            means = [np.diff(rows.offsets).mean() if len(rows) else 0.0 for rows in self.context.domain_rows()]
            self._tokens_per_row = np.array(means)
        judged = sum(
            int(self.context.reference_rows(name).offsets[-1]) for name in (spec.references or self.context.references)
        )
        if spec.role == "warm":
            sizes = [int(rows.offsets[-1]) for rows in self.context.reserved_rows()]
            goal = self.context.warm_tokens or min(sum(sizes) // len(sizes), 4 * min(sizes))
            return goal * len(sizes) + judged / 3
        trained = float(np.dot(spec.rows, self._tokens_per_row))
        if spec.responses:
            return trained * response_trainings(spec.responses, len(spec.references or self.context.references))
        return trained + judged / 3

    def _tell(self, call: _Call, kind: str, spec: RunSpec, worker: _Worker | None = None, message: str = "") -> None:
        """Send an event with the present estimate."""
        if call.on_event is None:
            return
        busy = [w for w in self._pool.values() if w.spec is not None]
        left = {s.id: call.work[s.id] for s in call.waiting}
        for other in busy:
            assert other.spec is not None
            share = other.done / other.steps if other.steps else 0.0
            left[other.spec.id] = call.work[other.spec.id] * (1 - 0.95 * share)
        seconds, work = self._seconds, self._work
        for other in busy:  # what is under way counts as measured once it has trained for a while
            assert other.spec is not None
            if other.steps and other.done >= 3:
                seconds += time.monotonic() - other.began
                work += 0.95 * call.work[other.spec.id] * other.done / other.steps
        total = sum(call.work.values()) or 1.0
        remaining = sum(left.values())
        estimate = None
        if work > 0:
            together = remaining / max(1, min(self.workers, len(left)))
            estimate = max(together, max(left.values(), default=0.0)) * seconds / work
        closed = len(call.finished) + len(call.skipped) + len(call.failures)
        event = SwarmEvent(
            kind, spec.id, spec.role, worker.done if worker else 0, worker.steps if worker else 0, closed,
            call.total_runs, min(1.0, max(0.0, 1 - remaining / total)), estimate, message,
            worker.process.pid if worker else 0, worker.number if worker else -1, worker.loss if worker else None,
        )  # fmt: skip
        call.on_event(event)


def run_swarm(
    specs: Sequence[RunSpec],
    context: SwarmContext,
    run_dir: str | Path,
    *,
    workers: int | None = None,
    on_event: Callable[[SwarmEvent], None] | None = None,
    checkpoint_seconds: float = 30.0,
) -> SwarmOutcome:
    """Do runs with workers of their own; see `Swarm`, which keeps its workers over several calls.

    Args:
        specs: the runs.
        context: the prepared files and settings.
        run_dir: the run directory.
        workers: number of processes; default by cores or devices.
        on_event: as for `Swarm.run`.
        checkpoint_seconds: time between a run's checkpoints.

    Returns:
        SwarmOutcome: results and failures.
    """
    with Swarm(context, run_dir, workers=workers, checkpoint_seconds=checkpoint_seconds) as swarm:
        return swarm.run(specs, on_event=on_event)


def warm_spec(context: SwarmContext, seed: int) -> RunSpec:
    """Return the run that makes the warm start; do it before any other run of a warm context.

    Args:
        context: the prepared files and settings.
        seed: seed of its order.

    Returns:
        RunSpec: its losses are Z_j, the losses before any SFT row.
    """
    nothing = (0,) * len(context.domains)
    return RunSpec(
        id=WARM_RUN, rows=nothing, volumes=nothing, seed=seed, role="warm",
        learning_rate=context.warm_learning_rate, save_model=True,
    )  # fmt: skip


def response_trainings(method: str, capabilities: int) -> float:
    """Say what an estimate of responses costs.

    Args:
        method: "implicit" or "unrolled".
        capabilities: J.

    Returns:
        float: in trainings of the proxy on the same mixture.
    """
    return IMPLICIT_TRAININGS if method == "implicit" else 3.0 + 2.0 * capabilities


def _what_counts(spec: RunSpec) -> tuple[Any, ...]:
    """Return the parts of a specification that its numbers depend on."""
    return spec.rows, spec.seed, spec.learning_rate, spec.role == "warm", spec.references, spec.responses


def _cores() -> list[int]:
    """Return the cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))
