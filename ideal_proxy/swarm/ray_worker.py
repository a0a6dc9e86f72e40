"""The part of the Ray engine that runs on the cluster: an actor that keeps a worker process and its node's files.

The process is the one of the local engine, started with the same threads, so a run has the same bits. It works in a
folder of its node that is laid out like a run directory; what it leaves goes to the driver, which alone writes the
run directory. The process ends when its input does: with the actor, with the driver, with the node.
"""

from __future__ import annotations

import contextlib
import errno
import json
import platform
import queue
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from ideal_proxy import __version__
from ideal_proxy.store import is_complete, mark_complete
from ideal_proxy.swarm.local import send, start_worker
from ideal_proxy.swarm.pool import Message
from ideal_proxy.swarm.ship import Piece, alone, cache_root, files_of, hold, remove, unpack

SHIP_SECONDS = 1.0
MOST_SHIPPED = 256 << 20
"""Bytes of an unfinished run that go to the driver while it runs; more than these go only when the search stops."""
LOG_BYTES = 4000


class NodeWorker:
    """A worker process on a node; the driver calls every method, some of them at the same time.

    Args:
        number: the worker's number.
        module: what the process runs.
        threads: of its computations.
        name: of the folder for this context and this driver; each node has its own.
    """

    def __init__(self, number: int, module: str, threads: int, name: str) -> None:
        self._number, self._module, self._threads, self._name = number, module, threads, name
        self._said: queue.Queue[Message] = queue.Queue()
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = Path()
        self._run = ""
        self._done_with: Path | None = None
        self._sent: dict[Path, int] = {}
        self._looking = threading.Lock()
        self._looked = 0.0

    def begin(self, context: Sequence[Any]) -> dict[str, Any]:
        """Put the context on this node, where it is not there yet, and start the process."""
        import ray

        node = ray.get_runtime_context().get_node_id()
        self._folder = cache_root() / f"{self._name}-{node[:12]}"
        self._held = hold(self._folder)
        shipped = _fetch(self._folder / "context", context)
        with open(self._log, "ab") as errors:
            self._process = start_worker(
                self._module, self._folder / "context", self._folder, self._number, self._threads,
                stderr=errors.fileno(),
            )  # fmt: skip
        threading.Thread(target=self._listen, args=(self._process,), daemon=True).start()
        return {"shipped": shipped, "node": node, "host": platform.node(), "versions": versions()}

    def assign(
        self, spec: dict[str, Any], checkpoint_seconds: float, inputs: dict[str, Sequence[Any]], own: Sequence[Any]
    ) -> None:
        """Give the process a run."""
        if self._done_with is not None:
            shutil.rmtree(self._done_with, ignore_errors=True)
        self._run, self._sent = spec["id"], {}
        # Others may start from a run that keeps its weights; the folder of any other is needed no more once it is sent.
        kept = spec["save_model"] or spec["role"] == "warm"
        self._done_with = None if kept else self._folder / "runs" / self._run
        try:
            for run, pieces in inputs.items():
                _fetch(self._folder / "runs" / run, pieces)
            for path in unpack(_values(own), self._folder / "runs" / self._run):
                self._sent[path] = path.stat().st_mtime_ns
        except Exception as error:  # a piece that was lost, a full disk: nobody reads what this call returns
            message = f"{platform.node()} cannot take in a run's files ({error})"
            cause = error if isinstance(error, OSError) else error.__cause__
            full = isinstance(cause, OSError) and cause.errno in {errno.ENOSPC, errno.EDQUOT}
            self._said.put({"kind": "failed", "run": self._run, "message": message, "disk_full": full})
            return
        self._send({"spec": spec, "checkpoint_seconds": checkpoint_seconds})

    def stop(self) -> None:
        """Ask the process to save a checkpoint and to leave its run."""
        self._send({"stop": True})

    def poll(self, timeout: float) -> list[Message]:
        """Wait for what the process says."""
        said: list[Message] = []
        with contextlib.suppress(queue.Empty):
            said.append(self._said.get(timeout=timeout))
            while True:
                said.append(self._said.get_nowait())
        steps = [n for n, message in enumerate(said) if message["kind"] == "step"]
        if steps and time.monotonic() - self._looked >= SHIP_SECONDS:
            self._looked = time.monotonic()
            said[steps[-1]]["files"] = self._new_files(said[steps[-1]]["run"], MOST_SHIPPED)
        return [message for n, message in enumerate(said) if n not in steps[:-1]]

    def leave(self) -> None:
        """End the process and remove what this driver put on this node."""
        if self._process is not None:
            self._process.kill()
        remove(self._folder)

    @property
    def _log(self) -> Path:
        return self._folder / f"worker-{self._number}.log"

    def _send(self, message: Message) -> None:
        """Write to the process; one that just died is noticed by its closed output."""
        assert self._process is not None
        with contextlib.suppress(OSError):
            send(self._process, message)

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        """Pass on the process's lines, with the run's files where it leaves them."""
        assert process.stdout is not None
        for line in process.stdout:
            message: Message = json.loads(line)
            if message["kind"] in {"finished", "stopped"}:
                folder = self._folder / "runs" / message["run"]
                message["names"] = [path.relative_to(folder).as_posix() for path in files_of(folder)]
                message["files"] = self._new_files(message["run"], None)
            self._said.put(message)
        code = process.wait()
        how = f"signal {-code}" if code < 0 else f"exit status {code}"
        log = b""
        with contextlib.suppress(OSError):
            log = self._log.read_bytes()[-LOG_BYTES:]
        self._said.put({
            "kind": "died", "message": f"the worker process on {platform.node()} ended by {how} (out of memory?)",
            "charged": True, "run": self._run, "files": self._new_files(self._run, MOST_SHIPPED), "log": log,
        })  # fmt: skip

    def _new_files(self, run: str, most: int | None) -> dict[str, bytes]:
        """Read those files of a run that changed since they were last sent; none where they are more than `most`."""
        if not run:
            return {}
        folder = self._folder / "runs" / run
        with self._looking:
            new: dict[Path, int] = {}
            size = 0
            for path in files_of(folder):
                with contextlib.suppress(FileNotFoundError):
                    stat = path.stat()
                    if self._sent.get(path) != stat.st_mtime_ns:
                        new[path] = stat.st_mtime_ns
                        size += stat.st_size
            if most is not None and size > most:
                return {}
            files = {}
            for path, changed in new.items():
                with contextlib.suppress(FileNotFoundError):  # replaced or done with meanwhile
                    files[path.relative_to(folder).as_posix()] = path.read_bytes()
                    self._sent[path] = changed
            return files


def versions() -> dict[str, str]:
    """Return what a run's last bits depend on, for the driver to compare."""
    return {"ideal-proxy": __version__, **{name: metadata.version(name) for name in ("torch", "numpy")}}


def _fetch(folder: Path, pieces: Sequence[Any]) -> bool:
    """Fill a folder of this node once, however many workers want it; say whether this call did."""
    with alone(folder):
        if is_complete(folder):
            return False
        unpack(_values(pieces), folder)
        mark_complete(folder)
        return True


def _values(references: Sequence[Any]) -> Iterator[Piece]:
    """Get pieces one at a time; Ray brings an object to a node once and shares it there."""
    import ray

    for reference in references:
        yield ray.get(reference)
