"""Worker processes of this machine. They end when their input ends, so they never outlive this process."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from joblib import cpu_count

from ideal_proxy.errors import UserError
from ideal_proxy.swarm.context import RunSpec, SwarmContext
from ideal_proxy.swarm.pool import Message


@dataclass(slots=True, eq=False)
class _Worker:
    """A worker process."""

    number: int
    process: subprocess.Popen[bytes]
    buffer: bytes = b""
    ready: bool = False
    busy: bool = False


class LocalPool:
    """Processes of this machine, each on its own cores where there are enough.

    `workers` processes are started, by default one for every `context.threads` cores, or one on a GPU; or those of
    the given `numbers`.
    """

    def __init__(
        self,
        context: SwarmContext,
        run_dir: str | Path,
        *,
        workers: int | None = None,
        numbers: Sequence[int] = (),
        worker: str = "ideal_proxy.swarm.worker",
    ) -> None:
        self.context = context
        self.run_dir = Path(run_dir)
        workers = workers or (max(1, cpu_count() // context.threads) if context.device == "cpu" else 1)
        self._numbers = numbers or range(workers)
        self.workers = len(self._numbers)
        self._module = worker
        self._selector = selectors.DefaultSelector()
        self._pool: dict[int, _Worker] = {}
        self._inbox: deque[tuple[int, Message]] = deque()
        self._deaths_unready = 0

    def hire(self, wanted: int) -> None:
        """Start processes until there are so many."""
        while len(self._pool) < min(wanted, self.workers):
            self._start()

    def idle(self) -> list[int]:
        """Return the numbers of the workers that are ready and have no run."""
        return [number for number, worker in self._pool.items() if worker.ready and not worker.busy]

    def expected(self) -> int:
        """Return how many processes there are."""
        return len(self._pool)

    def assign(self, number: int, spec: RunSpec, checkpoint_seconds: float) -> None:
        """Give an idle worker a run."""
        self._pool[number].busy = True
        self._send(number, {"spec": spec.to_json(), "checkpoint_seconds": checkpoint_seconds})

    def stop(self, number: int) -> None:
        """Ask a worker to save a checkpoint and to leave its run."""
        self._send(number, {"stop": True})

    def messages(self, timeout: float) -> Iterable[tuple[int, Message]]:
        """Yield what workers say, as it comes."""
        for key, _ in self._selector.select(0 if self._inbox else timeout):
            worker: _Worker = key.data
            chunk = worker.process.stdout.read() if worker.process.stdout is not None else b""
            if not chunk:
                if chunk == b"":
                    self._inbox.append((worker.number, self._died(worker)))
                continue
            *lines, worker.buffer = (worker.buffer + chunk).split(b"\n")
            for line in lines:
                message = json.loads(line)
                if message["kind"] == "ready":
                    worker.ready, self._deaths_unready = True, 0
                elif message["kind"] in {"finished", "failed", "stopped"}:
                    worker.busy = False
                self._inbox.append((worker.number, message))
        while self._inbox:  # a caller that breaks off finds the rest here when it comes back
            yield self._inbox.popleft()

    def close(self) -> None:
        """End all processes: busy ones are killed, idle ones end with their input."""
        for worker in list(self._pool.values()):
            with contextlib.suppress(OSError):
                if worker.process.stdin is not None:
                    worker.process.stdin.close()
            try:
                worker.process.wait(timeout=0 if worker.busy else 0.5)
            except subprocess.TimeoutExpired:
                worker.process.kill()
            self._forget(worker)
        self._inbox.clear()

    def _died(self, worker: _Worker) -> Message:
        """Forget a worker that ended by itself, and return the message that says how."""
        code = worker.process.wait()
        self._forget(worker)
        how = f"signal {-code}" if code < 0 else f"exit status {code}"
        if not worker.ready:
            self._deaths_unready += 1
            if self._deaths_unready > self.workers + 1:
                raise UserError(f"no worker process starts ({how}); see {self.log_path(worker.number)}")
        return {"kind": "died", "message": f"the worker process ended by {how} (out of memory?)", "charged": True}

    def _start(self) -> None:
        """Start one worker process, on its own cores where there are enough."""
        number = next(n for n in self._numbers if n not in self._pool)
        threads = self.context.threads
        mine = cores()
        pin = self.workers > 1 and self.context.device == "cpu" and self.workers * threads <= len(mine)
        log = self.log_path(number)
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            with open(log, "ab") as errors:
                process = start_worker(
                    self._module, self.context.folder, self.run_dir, number, threads,
                    cores=mine[number * threads : (number + 1) * threads] if pin else [], stderr=errors.fileno(),
                )  # fmt: skip
        except OSError as error:
            raise UserError(f"cannot start a worker process: {error.strerror or error}") from error
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        worker = _Worker(number, process)
        self._pool[number] = worker
        self._selector.register(process.stdout, selectors.EVENT_READ, worker)

    def _send(self, number: int, message: Message) -> None:
        """Write one line to a worker; that one has just ended is seen when its output closes."""
        worker = self._pool.get(number)
        if worker is not None:
            with contextlib.suppress(OSError):
                send(worker.process, message)

    def _forget(self, worker: _Worker) -> None:
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

    def log_path(self, number: int) -> Path:
        """Return where a worker's messages and errors go."""
        return self.run_dir / "workers" / f"worker-{number}.log"


def start_worker(
    module: str,
    context: Path,
    run_dir: Path,
    number: int,
    threads: int,
    *,
    cores: Sequence[int] = (),
    stderr: int | None = None,
) -> subprocess.Popen[bytes]:
    """Start a worker process that speaks JSON lines on its standard input and output."""
    settings = {
        "context": str(context.resolve()), "run_dir": str(run_dir.resolve()), "worker": number, "cores": list(cores),
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-P", "-m", module, json.dumps(settings)],  # -P: no module of the current folder is run
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, env=_environment(threads),
        start_new_session=True,
    )  # fmt: skip


def send(process: subprocess.Popen[bytes], message: Mapping[str, object]) -> None:
    """Write one message to a worker process."""
    assert process.stdin is not None
    process.stdin.write(json.dumps(message).encode() + b"\n")
    process.stdin.flush()


def cores() -> list[int]:
    """Return the numbers of the cores this process may be pinned to; how many it may keep busy says `cpu_count`."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _environment(threads: int) -> dict[str, str]:
    """Return the environment of a worker process: this package found, and its threads bounded.

    An empty part of PYTHONPATH would mean the current folder, so it is left out.
    """
    package = str(Path(__file__).resolve().parents[2])
    paths = [package, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {
        **os.environ, "PYTHONPATH": os.pathsep.join(paths), "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": "1",
    }  # fmt: skip
