"""Runs as Slurm jobs, handed out by submitit as array jobs; the run directory must lie in a folder that nodes share.

Nothing of ours stays on the cluster: a job is one run, and ends when the driver does.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
import uuid
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ideal_proxy.errors import UserError
from ideal_proxy.store import atomic_write_text
from ideal_proxy.swarm.context import RunSpec, SwarmContext
from ideal_proxy.swarm.pool import Message
from ideal_proxy.swarm.slurm_task import DRIVER, LAST_WORDS, OneRun

JOBS = "jobs.txt"  # ids of the jobs that were handed out, so that a later driver ends what is left of them
POLL_SECONDS, SIGN_SECONDS = 0.5, 10.0
DEFAULT_JOBS = 16
NOT_TO_BLAME = {"NODE_FAIL", "PREEMPTED", "CANCELLED", "TIMEOUT", "BOOT_FAIL", "REVOKED", "INTERRUPTED"}


@dataclass(slots=True, eq=False)
class _Seat:
    """A place for one job at a time."""

    number: int
    task: OneRun | None = None
    job: Any = None
    read: int = 0


class SlurmPool:
    """Up to `workers` jobs side by side; `address: local` runs them on this machine by submitit's local executor."""

    def __init__(
        self,
        context: SwarmContext,
        run_dir: str | Path,
        *,
        address: str = "auto",
        workers: int | None = None,
        gpus: float = 0.0,
        options: Mapping[str, Any] | None = None,
        worker: str = "ideal_proxy.swarm.worker",
    ) -> None:
        self.context, self.run_dir = context, Path(run_dir).resolve()
        self.workers = workers or DEFAULT_JOBS
        self._module, self._driver = worker, uuid.uuid4().hex[:12]
        self._place = self.run_dir / "slurm"
        self._place.mkdir(parents=True, exist_ok=True)
        need_slurm(address)
        import submitit

        self._executor = submitit.AutoExecutor(
            folder=self._place / "%j", cluster="local" if address == "local" else "slurm"
        )
        settings: dict[str, Any] = {
            "name": "ideal-proxy", "cpus_per_task": context.threads, "tasks_per_node": 1, "nodes": 1,
            **({"gpus_per_node": max(1, round(gpus))} if gpus else {}),
            **({} if address == "local" else {"slurm_array_parallelism": self.workers}), **(options or {}),
        }  # fmt: skip
        try:
            self._executor.update_parameters(**settings)
        except (NameError, TypeError, ValueError) as error:
            raise UserError(f"swarm.slurm is not what submitit takes ({str(error).splitlines()[0]})") from error
        self._seats: dict[int, _Seat] = {}
        self._inbox: deque[tuple[int, Message]] = deque()
        self._signed = 0.0
        self._end_earlier_jobs(address)
        atomic_write_text(self._place / DRIVER, self._driver)

    def hire(self, wanted: int) -> None:
        """Make places until there are so many; a job is handed in when there is a run for it."""
        while len(self._seats) < min(wanted, self.workers):
            number = next(n for n in range(self.workers) if n not in self._seats)
            self._seats[number] = _Seat(number)
            self._inbox.append((number, {"kind": "ready", "pid": 0, "host": "slurm"}))

    def idle(self) -> list[int]:
        """Return the numbers of the places that have no run."""
        return [number for number, seat in self._seats.items() if seat.task is None]

    def expected(self) -> int:
        """Return how many jobs run; others wait in the queue."""
        return sum(seat.job is not None and seat.read > 0 for seat in self._seats.values())

    def assign(self, number: int, spec: RunSpec, checkpoint_seconds: float) -> None:
        """Take a run for a place; it is handed in with the others that come in the same moment."""
        seat = self._seats[number]
        seat.task = OneRun(
            self._place, self.context.folder.resolve(), self.run_dir, spec.to_json(), checkpoint_seconds, self._module,
            number, self._driver,
        )  # fmt: skip
        seat.job, seat.read = None, seat.task.events.stat().st_size if seat.task.events.exists() else 0
        seat.task.stop_sign.unlink(missing_ok=True)

    def stop(self, number: int) -> None:
        """Ask a job to save a checkpoint and to end."""
        seat = self._seats.get(number)
        if seat is not None and seat.task is not None:
            seat.task.stop_sign.touch()

    def messages(self, timeout: float) -> Iterable[tuple[int, Message]]:
        """Hand in what waits, and yield what jobs say, as it comes."""
        self._hand_in()
        deadline = time.monotonic() + (0 if self._inbox else timeout)
        while True:
            if time.monotonic() - self._signed > SIGN_SECONDS:
                os.utime(self._place / DRIVER)
                self._signed = time.monotonic()
            for seat in list(self._seats.values()):
                if seat.task is not None and seat.job is not None:
                    self._inbox.extend((seat.number, message) for message in self._heard(seat))
            if self._inbox or time.monotonic() >= deadline:
                break
            time.sleep(min(POLL_SECONDS, max(0.0, deadline - time.monotonic())))
        while self._inbox:
            yield self._inbox.popleft()

    def close(self) -> None:
        """End all jobs now."""
        for seat in self._seats.values():
            if seat.job is not None and seat.task is not None:
                with contextlib.suppress(Exception):
                    seat.job.cancel()
                seat.task.stop_sign.touch()
        self._seats.clear()
        self._inbox.clear()

    def _hand_in(self) -> None:
        """Submit the runs that have no job yet as one array."""
        seats = [(seat, seat.task) for seat in self._seats.values() if seat.task is not None and seat.job is None]
        if not seats:
            return
        try:
            with self._executor.batch():
                jobs = [self._executor.submit(task) for _, task in seats]
        except Exception as error:  # submitit raises what sbatch printed, in several classes
            raise UserError(
                f"Slurm took no job ({str(error).strip().splitlines()[-1]}); correct swarm.slurm, or use --engine local"
            ) from error
        with open(self._place / JOBS, "a", encoding="utf-8") as file:
            for (seat, _), job in zip(seats, jobs, strict=True):
                seat.job = job
                file.write(f"{job.job_id}\n")

    def _heard(self, seat: _Seat) -> list[Message]:
        """Read what a job has said since; a job that ended without a word has died."""
        assert seat.task is not None
        over = bool(seat.job.done())
        said = self._read(seat)
        last = next((message for message in said if message["kind"] in LAST_WORDS), None)
        if last is not None and last["kind"] == "died":  # the worker process of the job
            last |= {"message": f"{last['message']} on {last.get('host', 'a node')}"}
        if last is None and over:
            state = str(seat.job.state).split()[0].upper()
            said.append({
                "kind": "died", "charged": state not in NOT_TO_BLAME,
                "message": f"Slurm job {seat.job.job_id} ended ({state.lower()}); see {seat.job.paths.stderr}",
            })  # fmt: skip
        if last is not None or over:
            seat.task = seat.job = None
        for message in said:
            if message["kind"] == "died":  # the place stays; the scheduler takes a dead worker's seat away
                self._seats.pop(seat.number, None)
        return said

    def _read(self, seat: _Seat) -> list[Message]:
        """Read whole new lines of a job's file."""
        assert seat.task is not None
        try:
            with open(seat.task.events, "rb") as file:
                file.seek(seat.read)
                text = file.read()
        except FileNotFoundError:
            return []
        whole = text[: text.rfind(b"\n") + 1]
        seat.read += len(whole)
        return [json.loads(line) for line in whole.splitlines()]

    def _end_earlier_jobs(self, address: str) -> None:
        """End what an earlier driver, that was killed, left in the queue."""
        path = self._place / JOBS
        if path.is_file() and address != "local":
            import submitit

            for name in path.read_text(encoding="utf-8").split():
                with contextlib.suppress(Exception):
                    submitit.SlurmJob(folder=self._place, job_id=name).cancel()
        path.unlink(missing_ok=True)


def need_slurm(address: str) -> None:
    """Refuse the engine where what it needs is not there."""
    try:
        import submitit  # noqa: F401
    except ImportError as error:
        raise UserError("swarm.engine: slurm needs submitit; pip install 'ideal-proxy[slurm]'") from error
    if address not in {"auto", "local"}:
        raise UserError(
            f"swarm.address is {address!r}; for engine: slurm it is auto, or local to try it on this machine"
        )
    if address == "auto" and shutil.which("sbatch") is None:
        raise UserError(
            "there is no Slurm here (no sbatch); start the search where it is, or use --engine local; swarm.address: "
            "local tries the engine without it"
        )
