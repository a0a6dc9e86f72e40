"""The part of the Ray engine that runs on the cluster: an actor that keeps a worker process, and its node's files.

The process is the one of the local engine, so a run has the same bits. It works in a folder of its node that is laid
out like a run directory; what it makes goes to the driver, which alone writes the run directory.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

from ideal_proxy import __version__
from ideal_proxy.errors import UserError
from ideal_proxy.store import MARKER, is_complete, mark_complete
from ideal_proxy.swarm.context import RunSpec, load_context
from ideal_proxy.swarm.local import LocalPool
from ideal_proxy.swarm.pool import Message

CACHE = "IDEAL_PROXY_CACHE"
PIECE_BYTES = 16 << 20
SHIP_SECONDS = 1.0
MOST_SHIPPED = 256 << 20
"""Bytes of an unfinished run that go to the driver while it runs; more than these go only when the search stops."""
DEATH_SECONDS = 3.0
"""A process's death is told so much later: if its node is going, this actor ends first, and the run is not to blame."""
SWEEP_SECONDS = 3600.0
LOG_BYTES = 4000
MARK = "ideal-proxy.lock"
SIGN = "This folder belongs to ideal-proxy; it is removed when no process holds this file.\n"
"""Only a folder with a mark that says so is ever swept: the cache may lie in a folder that others use too."""

Files = list[tuple[str, list[Any]]]
"""Names of files, each with the references of its pieces in the object store."""


class NodeWorker:
    """A worker process on a node; the driver may stop it while it polls."""

    def __init__(self, number: int, module: str, name: str) -> None:
        self._number, self._module, self._name = number, module, name
        self._run = ""
        self._sent: dict[str, int] = {}
        self._sent_at = 0.0

    def begin(self, context: Files, wanted: dict[str, str]) -> list[Message]:
        """Put the context on this node, where it is not there yet, and start the process."""
        import ray

        host = platform.node()
        for package, version in versions().items():
            if version != wanted[package]:
                raise UserError(
                    f"{host} has {package} {version} and the search's machine {wanted[package]}; install the same "
                    "version on every node, for numbers must not depend on where a run is done"
                )
        self._get: Callable[[Any], bytes] = ray.get
        node = ray.get_runtime_context().get_node_id()
        self._folder = cache_root() / f"{self._name}-{node[:12]}"
        self._held = hold(self._folder)
        unpacked = unpack_once(context, self._folder / "context", self._get)
        shared = load_context(self._folder / "context")
        self._pool = LocalPool(shared, self._folder, numbers=[self._number], worker=self._module)
        self._pool.hire(1)
        return [{"kind": "placed", "host": host, "node": node, "unpacked": unpacked}]

    def assign(self, spec: dict[str, Any], checkpoint_seconds: float, inputs: dict[str, Files], own: Files) -> None:
        """Give the process a run, with the finished runs that it starts from and what there is of itself."""
        runs = self._folder / "runs"
        for run, files in inputs.items():
            unpack_once(files, runs / run, self._get)
        unpack(own, runs / spec["id"], self._get)
        self._sent = {name: (runs / spec["id"] / name).stat().st_mtime_ns for name, _ in own}
        self._run = spec["id"]
        self._pool.assign(self._number, RunSpec.from_json(spec), checkpoint_seconds)

    def stop(self) -> None:
        """Ask the process to save a checkpoint and to leave its run."""
        self._pool.stop(self._number)

    def poll(self, timeout: float) -> list[Message]:
        """Wait for what the process says; of several steps the last one is told, and files that changed come along."""
        said = [message for _, message in self._pool.messages(timeout)]
        said = [m for m, after in pairwise([*said, {"kind": ""}]) if not m["kind"] == after["kind"] == "step"]
        for message in said:
            kind = message["kind"]
            if kind == "died":
                time.sleep(DEATH_SECONDS)
                log = self._pool.log_path(self._number).read_bytes()[-LOG_BYTES:]
                message |= {"run": self._run, "log": log}
            if kind == "died" or (kind == "step" and time.monotonic() - self._sent_at >= SHIP_SECONDS):
                self._sent_at = time.monotonic()
                with contextlib.suppress(FileNotFoundError):  # a file was replaced or removed: the next time then
                    message["files"] = self._changed(MOST_SHIPPED)
            elif kind == "stopped":
                message["files"] = self._changed()
            elif kind == "finished":
                self._sent = {}  # all files, so that the driver can remove what is not among them
                message["files"] = self._changed()
                shutil.rmtree(self._folder / "runs" / self._run, ignore_errors=True)
                self._run = ""
        return said

    def leave(self) -> None:
        """End the process and remove what this driver put on this node."""
        self._pool.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _changed(self, most: float = float("inf")) -> dict[str, bytes]:
        """Read the files of the run that changed since they were last sent; none where they are more than `most`."""
        if not self._run:
            return {}
        folder = self._folder / "runs" / self._run
        stats = {path.relative_to(folder).as_posix(): path.stat() for path in files_of(folder)}
        new = {name: stat for name, stat in stats.items() if self._sent.get(name) != stat.st_mtime_ns}
        if sum(stat.st_size for stat in new.values()) > most:
            return {}
        files = {name: (folder / name).read_bytes() for name in new}
        self._sent |= {name: stat.st_mtime_ns for name, stat in new.items()}
        return files


def versions() -> dict[str, str]:
    """Return what a run's last bits depend on, for the driver to compare."""
    return {"ideal-proxy": __version__, **{name: metadata.version(name) for name in ("torch", "numpy")}}


def files_of(folder: Path) -> list[Path]:
    """List a folder's files, oldest first, without its marker and half-written files (names with a leading dot)."""
    found = []
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        with contextlib.suppress(FileNotFoundError):
            if path.is_file() and not hidden and path != folder / MARKER:
                found.append((path.stat().st_mtime_ns, path))
    return [path for _, path in sorted(found)]


def pack(folder: Path, put: Callable[[bytes], Any], piece_bytes: int = PIECE_BYTES) -> Files:
    """Hand every file of a folder to `put` in pieces, one piece in memory at a time."""
    files: Files = []
    for path in files_of(folder):
        with open(path, "rb") as file:
            pieces = [put(data) for data in iter(partial(file.read, piece_bytes), b"")]
        files.append((path.relative_to(folder).as_posix(), pieces))
    return files


def unpack(files: Files, folder: Path, get: Callable[[Any], bytes]) -> None:
    """Write the files that `pack` read."""
    for name, pieces in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with open(folder / name, "wb") as file:
            for piece in pieces:
                file.write(get(piece))


def unpack_once(files: Files, folder: Path, get: Callable[[Any], bytes]) -> bool:
    """Fill a folder, unless a process of this node did so already; the marker comes last. Return whether it did."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(f".{folder.name}.filling"), "w", encoding="utf-8") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        if is_complete(folder):
            return False
        unpack(files, folder, get)
        mark_complete(folder)
        return True


def cache_root() -> Path:
    """Return this node's folder for what is sent to it: `IDEAL_PROXY_CACHE`, or one in the temporary folder."""
    root = Path(os.environ.get(CACHE) or Path(tempfile.gettempdir()) / f"ideal-proxy-{os.getuid()}")
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        if root.stat().st_uid == os.getuid():
            return root
        why = "it belongs to another user"
    except OSError as error:
        why = error.strerror or "error"
    raise UserError(f"cannot use {root} on a node ({why}); set {CACHE} to another folder")


def hold(folder: Path) -> IO[str]:
    """Make a folder and mark it as in use while the returned file is open; remove old folders that nobody uses."""
    folder.mkdir(parents=True, exist_ok=True)
    held = open(folder / MARK, "a", encoding="utf-8")  # noqa: SIM115 (the caller keeps it open)
    fcntl.flock(held, fcntl.LOCK_SH)
    if not held.tell():
        held.write(SIGN)
        held.flush()
    os.utime(held.fileno())
    for mark in folder.parent.glob(f"*/{MARK}"):
        with contextlib.suppress(OSError, UnicodeDecodeError), open(mark, "r+", encoding="utf-8") as other:
            # A folder that was used a moment ago may be about to get its next worker.
            old = mark.parent != folder and time.time() - mark.stat().st_mtime > SWEEP_SECONDS
            if old and other.read() == SIGN:
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(mark.parent, ignore_errors=True)
    return held
