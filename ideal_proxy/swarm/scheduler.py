"""Many runs on any engine: long runs first, retries, resume, and an estimate of the time left.

The parent imports no torch. It hands out one run at a time, so a worker that dies loses that run alone, and that only
back to its last checkpoint. A run is complete when its marker stands; what is complete is never done again. Workers
are a pool's: processes of this machine (`local`) or actors of a Ray cluster (`ray_pool`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ideal_proxy.errors import UserError
from ideal_proxy.store import is_whole
from ideal_proxy.swarm.context import (
    IMITATED,
    JUDGED,
    WARM_RUN,
    ZERO_RUN,
    Run,
    RunSpec,
    SwarmContext,
    load_result,
    what_counts,
)
from ideal_proxy.swarm.forecast import Forecast, UnderWay, Work
from ideal_proxy.swarm.local import LocalPool
from ideal_proxy.swarm.pool import Message, Pool

ATTEMPTS = 2
LOSSES = 4
"""So often a run may lose its worker through no fault of its own, as when a machine goes away."""
STOP_SECONDS = 10.0
IMPLICIT_TRAININGS = 1.5
"""Most that an implicit estimate may cost, in trainings of its proxy; it uses as many rows as that allows."""


@dataclass(frozen=True, slots=True)
class SwarmEvent:
    """Something that happened, for progress."""

    # "skipped" (was complete), "started", "step", "finished", "retried", "failed", or "waiting" (no worker can be had
    # now; of no run)
    kind: str
    run: str  # the run's id
    role: str  # its role
    done: int  # optimiser steps done of this run
    steps: int  # optimiser steps of this run
    runs_done: int  # runs complete or given up, of this call
    runs: int  # runs of this call
    fraction: float  # share of this call's work that is done, 0 to 1
    seconds_left: float | None  # estimate from the speed measured so far; None before there is one
    message: str = ""  # what went wrong, for "retried", "failed" and "waiting"
    pid: int = 0  # process id of the worker, 0 where there is none
    worker: int = -1  # number of the worker, -1 where there is none
    # of the last step, nats per supervised token; None before there is one, or where it is not finite
    loss: float | None = None
    host: str = ""  # machine of the worker, "" where it is this one


@dataclass(frozen=True, slots=True)
class SwarmOutcome:
    """How a call ended."""

    results: dict[str, Run]  # by run id, in the order asked for; failed runs are not in it
    failures: dict[str, str]  # by run id, what went wrong


@dataclass(slots=True, eq=False)
class _Seat:
    """A worker that is ready, and the run it is at."""

    number: int
    pid: int
    host: str
    spec: RunSpec | None = None
    done: int = 0
    steps: int = 0
    loss: float | None = None
    runs: int = 0
    began: float = 0.0
    first_step: tuple[int, float] | None = None

    def take(self, spec: RunSpec) -> None:
        """Begin a run."""
        self.spec, self.done, self.steps, self.loss = spec, 0, 0, None
        self.runs, self.began, self.first_step = self.runs + 1, time.monotonic(), None

    def step(self, done: int, steps: int, loss: float | None) -> None:
        """Note a step; the first may come late, where a checkpoint was taken up."""
        self.done, self.steps, self.loss = done, steps, loss
        self.first_step = self.first_step or (done, time.monotonic())

    def under_way(self, work: Work) -> UnderWay:
        """Say how far the run is."""
        left = work.after(self.done, self.steps)
        done, since = self.first_step or (self.done, self.began)
        seconds = time.monotonic() - since
        return UnderWay(left, work.after(done, self.steps) - left, seconds, self.first_step is not None)

    def tell(self, forecast: Forecast, work: Work) -> None:
        """Take the finished run's speed into the forecast."""
        now = time.monotonic()
        if self.first_step is None:
            forecast.measured(now - self.began, work.whole)
        else:
            done, at = self.first_step
            forecast.measured(now - at, work.after(done, self.steps), at - self.began if self.runs > 1 else None)


@dataclass(slots=True)
class _Call:
    """The state of one call of `Swarm.run`."""

    total_runs: int
    work: dict[str, Work]
    on_event: Callable[[SwarmEvent], None] | None
    waiting: list[RunSpec] = field(default_factory=list)
    attempts: dict[str, int] = field(default_factory=dict)
    losses: dict[str, int] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    finished: set[str] = field(default_factory=set)
    skipped: set[str] = field(default_factory=set)

    def wait(self, *specs: RunSpec) -> None:
        """Put runs into the queue, long ones first, so that no long one is begun last."""
        self.waiting.extend(specs)
        self.waiting.sort(key=lambda spec: (-self.work[spec.id].whole, spec.id))


class Swarm:
    """Workers that stay up between calls, because starting one takes seconds, and the runs that they do.

    Use as a context manager: leaving it ends the workers.
    """

    def __init__(
        self,
        context: SwarmContext,
        run_dir: str | Path,
        *,
        workers: int | None = None,
        checkpoint_seconds: float = 30.0,
        worker: str = "ideal_proxy.swarm.worker",
        pool: Pool | None = None,
    ) -> None:
        self.context = context
        self.run_dir = Path(run_dir)
        self.checkpoint_seconds = checkpoint_seconds
        self.pool: Pool = pool or LocalPool(context, run_dir, workers=workers, worker=worker)
        self._seats: dict[int, _Seat] = {}
        self._forecast = Forecast()
        self._tokens_per_row: np.ndarray[Any, Any] | None = None

    @property
    def workers(self) -> int:
        """How many runs may be done side by side."""
        return self.pool.workers

    def __enter__(self) -> Swarm:
        """Return self; workers start with the first call that needs them."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the workers; on an error or Ctrl-C let them save a checkpoint first."""
        self.close(save=kind is not None)

    def run(self, specs: Sequence[RunSpec], *, on_event: Callable[[SwarmEvent], None] | None = None) -> SwarmOutcome:
        """Do the runs that are not complete yet; their ids must differ. A run that fails is tried twice."""
        if len({spec.id for spec in specs}) != len(specs):
            raise UserError("two runs of a swarm have the same id; ids must differ")
        call = _Call(len(specs), {spec.id: self._work_of(spec) for spec in specs}, on_event)
        fingerprint = self.context.fingerprint()
        for spec in specs:
            if not is_whole(self.run_dir / "runs" / spec.id):
                call.wait(spec)
                continue
            found = load_result(self.run_dir, spec.id)
            if what_counts(found.spec) != what_counts(spec) or found.metrics["context"] != fingerprint:
                raise UserError(
                    f"{self.run_dir / 'runs' / spec.id} holds another run; choose another --out or remove that folder"
                )
            call.skipped.add(spec.id)
            self._tell(call, "skipped", spec)
        try:
            self._work_off(call)
        except BaseException:
            self.close(save=True)
            raise
        results = {spec.id: load_result(self.run_dir, spec.id) for spec in specs if spec.id not in call.failures}
        return SwarmOutcome(results, call.failures)

    def close(self, *, save: bool = False) -> None:
        """End the workers; with `save`, busy ones save a checkpoint first, for ten seconds at most."""
        try:
            if save:
                busy = {number for number, seat in self._seats.items() if seat.spec is not None}
                for number in busy:
                    self.pool.stop(number)
                deadline = time.monotonic() + STOP_SECONDS
                while busy and time.monotonic() < deadline:
                    for number, message in self.pool.messages(0.2):
                        if message["kind"] in {"stopped", "finished", "failed", "died"}:
                            busy.discard(number)
        finally:
            self._seats.clear()
            self.pool.close()

    def _work_off(self, call: _Call) -> None:
        """Hand out the waiting runs until all are finished or given up."""
        while True:
            for number in self.pool.idle():
                if call.waiting and number in self._seats:
                    self._assign(call, self._seats[number], call.waiting.pop(0))
            busy = sum(seat.spec is not None for seat in self._seats.values())
            if not call.waiting and not busy:
                return
            self.pool.hire(min(self.pool.workers, len(call.waiting) + busy))
            for number, message in self.pool.messages(1.0):
                self._handle(call, number, message)

    def _assign(self, call: _Call, seat: _Seat, spec: RunSpec) -> None:
        """Give a run to an idle worker."""
        call.attempts[spec.id] = call.attempts.get(spec.id, 0) + 1
        seat.take(spec)
        self.pool.assign(seat.number, spec, self.checkpoint_seconds)

    def _handle(self, call: _Call, number: int, message: Message) -> None:
        """Act on one message."""
        kind, seat = message["kind"], self._seats.get(number)
        if kind == "ready":
            self._seats[number] = _Seat(number, message["pid"], message.get("host", ""))
        elif kind == "died":
            self._seats.pop(number, None)
            if seat is not None and seat.spec is not None:
                self._failed(call, seat.spec, message["message"], charged=message["charged"])
        elif kind == "waiting":
            self._tell(call, "waiting", None, message=message["message"])
        elif seat is not None and seat.spec is not None and message.get("run") == seat.spec.id:
            self._progress(call, seat, seat.spec, message)

    def _progress(self, call: _Call, seat: _Seat, spec: RunSpec, message: Message) -> None:
        """Act on a message about the run that a worker is at."""
        kind = message["kind"]
        if kind == "started":
            self._tell(call, "started", spec, seat)
        elif kind == "step":
            seat.step(message["done"], message["steps"], message["loss"])
            self._tell(call, "step", spec, seat)
        elif kind == "finished":
            seat.tell(self._forecast, call.work[spec.id])
            seat.spec = None
            call.finished.add(spec.id)
            self._tell(call, "finished", spec, seat)
        elif kind == "failed":
            seat.spec = None
            if message["disk_full"]:
                raise UserError(message["message"])
            self._failed(call, spec, message["message"], charged=True)

    def _failed(self, call: _Call, spec: RunSpec, message: str, *, charged: bool) -> None:
        """Try a run again, or give it up after its last attempt; the others go on."""
        if not charged:
            call.attempts[spec.id] -= 1
            call.losses[spec.id] = call.losses.get(spec.id, 0) + 1
        if call.attempts[spec.id] < ATTEMPTS and call.losses.get(spec.id, 0) < LOSSES:
            call.wait(spec)
            self._tell(call, "retried", spec, message=message)
        else:
            call.failures[spec.id] = message
            self._tell(call, "failed", spec, message=message)

    def _work_of(self, spec: RunSpec) -> Work:
        """Estimate a run's work in tokens; to judge a token takes a third of the products of training on it."""
        if self._tokens_per_row is None:
            means = [np.diff(rows.offsets).mean() if len(rows) else 0.0 for rows in self.context.domain_rows()]
            self._tokens_per_row = np.array(means)
        judged = sum(
            int(self.context.reference_rows(name).offsets[-1]) for name in (spec.references or self.context.references)
        )
        if spec.role == "warm":
            if self.context.warm_from:
                return Work(0.0, judged / 3)
            sizes = [int(rows.offsets[-1]) for rows in self.context.reserved_rows()]
            goal = self.context.warm_tokens or min(sum(sizes) // len(sizes), 4 * min(sizes))
            return Work(float(goal * len(sizes)), judged / 3)
        if spec.role in {JUDGED, IMITATED}:
            return Work(0.0, judged / 3)
        trained = float(np.dot(spec.rows, self._tokens_per_row))
        if spec.responses:
            return Work(trained * response_trainings(spec.responses, len(spec.references or self.context.references)))
        return Work(trained, judged / 3)

    def _tell(self, call: _Call, kind: str, spec: RunSpec | None, seat: _Seat | None = None, message: str = "") -> None:
        """Send an event with the present estimate."""
        if call.on_event is None:
            return
        waiting = [call.work[s.id].whole for s in call.waiting]
        under_way = [s.under_way(call.work[s.spec.id]) for s in self._seats.values() if s.spec is not None]
        left = self._forecast.seconds_left(waiting, under_way, max(1, self.pool.expected()))
        undone = sum(waiting) + sum(run.left for run in under_way)
        total = sum(work.whole for work in call.work.values()) or 1.0
        closed = len(call.finished) + len(call.skipped) + len(call.failures)
        event = SwarmEvent(
            kind, spec.id if spec else "", spec.role if spec else "", seat.done if seat else 0,
            seat.steps if seat else 0, closed, call.total_runs,
            min(1.0, max(0.0, 1 - undone / total)), left, message,
            seat.pid if seat else 0, seat.number if seat else -1, seat.loss if seat else None,
            seat.host if seat else "",
        )  # fmt: skip
        call.on_event(event)


def warm_spec(context: SwarmContext, seed: int) -> RunSpec:
    """Return the run that makes the warm start, to be done first; its losses are Z_j, those before any SFT row."""
    nothing = (0,) * len(context.domains)
    return RunSpec(
        id=WARM_RUN, rows=nothing, volumes=nothing, seed=seed, role="warm",
        learning_rate=context.warm_learning_rate, save_model=True,
    )  # fmt: skip


def zero_spec(context: SwarmContext) -> RunSpec:
    """Return the run that judges a pretrained proxy before any row; its losses are Z_j."""
    nothing = (0,) * len(context.domains)
    return RunSpec(id=ZERO_RUN, rows=nothing, volumes=nothing, seed=0, role="zero", learning_rate=0.0)


def response_trainings(method: str, capabilities: int) -> float:
    """Return what an estimate of responses costs, in trainings of the proxy on the same mixture."""
    return IMPLICIT_TRAININGS if method == "implicit" else 3.0 + 3.0 * capabilities
