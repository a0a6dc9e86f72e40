"""Workers on a Ray cluster: actors that are watched, replaced when they or their node go, and send home what they made.

Only this module and the actor speak to Ray. The driver's run directory is the only state: an actor's node keeps files
for as long as the driver lives and no longer. The context, and each finished run that others start from, is put into
Ray's object store once and unpacked once a node.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ideal_proxy.errors import UserError
from ideal_proxy.store import atomic_write_bytes, is_complete, mark_complete
from ideal_proxy.swarm.context import WARM_RUN, RunSpec, SwarmContext
from ideal_proxy.swarm.pool import Message
from ideal_proxy.swarm.ray_worker import Files, NodeWorker, pack, versions

POLL_SECONDS = 1.0
REACH_SECONDS = 10.0
NOTICE_SECONDS = 30.0
"""Without any worker for so long, the user is told; then each time after twice as long."""
HOPELESS_SECONDS = 600.0
"""For so long there may be no node that could hold a worker at all, as when a cluster is still growing."""
UNREADY_DEATHS = 3
STARTS, START_SECONDS = 3, 5.0
"""How often a cluster that does not come up is tried, and how long between."""


@dataclass(slots=True, eq=False)
class _Actor:
    number: int
    handle: Any
    host: str = ""
    ready: bool = False
    busy: bool = False


class RayPool:
    """Actors of an existing Ray cluster, each with a worker process; each takes `context.threads` CPUs and `gpus`."""

    def __init__(
        self,
        context: SwarmContext,
        run_dir: str | Path,
        *,
        address: str = "auto",
        workers: int | None = None,
        gpus: float = 0.0,
        worker: str = "ideal_proxy.swarm.worker",
    ) -> None:
        self._ray = connect(address)
        self.context, self.run_dir = context, Path(run_dir)
        self._gpus, self._module = gpus, worker
        self._needs = f"{context.threads} CPU{'s' if context.threads > 1 else ''}"
        self._needs += f" and {gpus:g} GPU{'s' if gpus > 1 else ''}" if gpus else ""
        self.workers = workers or cluster_workers(context.threads, gpus)
        if not self.workers:
            raise UserError(
                f"no node of the Ray cluster has the {self._needs} of a worker; add one, or give --workers to wait for "
                "nodes that are still to come"
            )
        self._name = f"{context.fingerprint()[:16]}-{self._ray.get_runtime_context().get_job_id()}"
        self._actors: dict[int, _Actor] = {}
        self._asked: dict[Any, _Actor] = {}  # by the reference of what was asked
        self._put: dict[Path, Files] = {}
        self._inbox: deque[tuple[int, Message]] = deque()
        self._unready_deaths = 0
        self._alone_since, self._notice = 0.0, NOTICE_SECONDS

    def hire(self, wanted: int) -> None:
        """Start actors until there are so many; those for which the cluster has no room yet wait for it."""
        kind = self._ray.remote(NodeWorker).options(
            num_cpus=self.context.threads, num_gpus=self._gpus, max_restarts=0, max_concurrency=4,
            scheduling_strategy="SPREAD",
        )  # fmt: skip
        while len(self._actors) < min(wanted, self.workers):
            if not self._actors:
                self._alone_since = time.monotonic()
            number = next(n for n in range(self.workers) if n not in self._actors)
            handle = kind.remote(number, self._module, self._name)
            actor = self._actors[number] = _Actor(number, handle)
            self._asked[handle.begin.remote(self._put_once(self.context.folder), versions())] = actor

    def idle(self) -> list[int]:
        """Return the numbers of the workers that are ready and have no run."""
        return [number for number, actor in self._actors.items() if actor.ready and not actor.busy]

    def expected(self) -> int:
        """Return how many are ready; others may wait for the cluster to have room."""
        return sum(actor.ready for actor in self._actors.values())

    def assign(self, number: int, spec: RunSpec, checkpoint_seconds: float) -> None:
        """Give an idle worker a run, with what it starts from and what there is of it."""
        actor = self._actors[number]
        actor.busy = True
        needed = [WARM_RUN] if self.context.warm and spec.role != "warm" else []
        needed += [spec.trained] if spec.trained else [run for run, _ in spec.blend]
        runs = self.run_dir / "runs"
        inputs = {run: self._put_once(runs / run) for run in needed if is_complete(runs / run)}
        own = pack(runs / spec.id, self._ray.put)
        self._asked[actor.handle.assign.remote(spec.to_json(), checkpoint_seconds, inputs, own)] = actor

    def stop(self, number: int) -> None:
        """Ask a worker to save a checkpoint, to leave its run and to send home what there is of it."""
        if (actor := self._actors.get(number)) is not None:
            actor.handle.stop.remote()

    def messages(self, timeout: float) -> Iterable[tuple[int, Message]]:
        """Yield what workers say, as it comes, after their files are written."""
        ready: list[Any] = []
        if self._asked:
            ready, _ = self._ray.wait(list(self._asked), timeout=0 if self._inbox else timeout)
        elif not self._inbox:
            time.sleep(timeout)
        for reference in ready:
            actor = self._asked.pop(reference)
            try:
                said = self._ray.get(reference)
            except self._ray.exceptions.RayError as error:
                self._inbox.append((actor.number, self._lost(actor, error)))
                continue
            self._inbox.extend((actor.number, self._take(actor, message)) for message in said or [])
            if said is not None and self._actors.get(actor.number) is actor:  # None: a run was assigned
                self._asked[actor.handle.poll.remote(POLL_SECONDS)] = actor
        self._look_for_workers()
        while self._inbox:  # a caller that breaks off finds the rest here when it comes back
            yield self._inbox.popleft()

    def close(self) -> None:
        """End all actors now; each node loses what was put on it."""
        try:
            leaving = [actor.handle.leave.remote() for actor in self._actors.values() if actor.host]
            if leaving:
                self._ray.wait(leaving, num_returns=len(leaving), timeout=2.0)
        finally:
            for actor in list(self._actors.values()):
                self._drop(actor)
            self._inbox.clear()

    def _put_once(self, folder: Path) -> Files:
        """Return a folder's pieces in the object store."""
        if folder not in self._put:
            self._put[folder] = pack(folder, self._ray.put)
        return self._put[folder]

    def _take(self, actor: _Actor, message: Message) -> Message:
        """Write what came with a message, the marker of a finished run last, and note what it says of the worker."""
        kind, files = message["kind"], message.pop("files", {})
        folder = self.run_dir / "runs" / message.get("run", "")
        if message.get("run") and not is_complete(folder):
            for name, content in files.items():
                atomic_write_bytes(folder / name, content)
            if kind == "finished":
                keep_only(folder, files)  # without such as the checkpoint of a run that is done
                mark_complete(folder)
        if kind == "placed":
            actor.host = message["host"]
        elif kind == "ready":
            actor.ready, self._unready_deaths, message["host"] = True, 0, actor.host
        elif kind in {"finished", "failed", "stopped"}:
            actor.busy = False
        elif kind == "died":
            log = self.run_dir / "workers" / f"worker-{actor.number}.log"
            atomic_write_bytes(log, message.pop("log"))
            message["message"] += f" on {actor.host}"
            self._drop(actor, f"{message['message']}; see {log}")
        return message

    def _lost(self, actor: _Actor, error: Exception) -> Message:
        """Forget an actor that does not answer any more; its run is not to blame."""
        cause, faults = getattr(error, "cause", None), self._ray.exceptions
        if isinstance(cause, UserError):
            raise cause
        if isinstance(cause, OSError) and cause.strerror:
            where = actor.host or "a node"
            raise UserError(f"{where} cannot take the swarm's files ({cause.strerror}); make room there")
        if isinstance(error, faults.RayTaskError) and not isinstance(cause, faults.RayError):
            raise error  # a mistake in this program, not the cluster's
        self._drop(actor, str(error).strip().splitlines()[-1])
        where = f" on {actor.host}" if actor.host else ""
        return {"kind": "died", "message": f"the worker{where} was lost with its node or actor", "charged": False}

    def _drop(self, actor: _Actor, why: str = "") -> None:
        """Kill an actor and forget it; give up where none gets ready, and say why."""
        del self._actors[actor.number]
        self._asked = {reference: other for reference, other in self._asked.items() if other is not actor}
        with contextlib.suppress(Exception):  # it may be gone, and so may the cluster
            self._ray.kill(actor.handle, no_restart=True)
        if why and not actor.ready:
            self._unready_deaths += 1
            if self._unready_deaths > self.workers + UNREADY_DEATHS:
                raise UserError(f"no worker starts on the Ray cluster ({why}); is ideal-proxy installed on every node?")

    def _look_for_workers(self) -> None:
        """Say so where no worker is ready for a long time, and give up where none can ever be."""
        now = time.monotonic()
        if not self._actors or any(actor.ready for actor in self._actors.values()):
            self._alone_since, self._notice = now, NOTICE_SECONDS
        waited = now - self._alone_since
        if waited > HOPELESS_SECONDS and not cluster_workers(self.context.threads, self._gpus):
            raise UserError(f"no node of the Ray cluster has the {self._needs} of a worker any more; add one and go on")
        if waited > self._notice:
            self._notice *= 2
            told = f"no worker for {waited:.0f} s: waiting for a node with {self._needs} free"
            self._inbox.append((-1, {"kind": "waiting", "message": told}))


def keep_only(folder: Path, names: Iterable[str]) -> None:
    """Remove what a folder holds besides some files."""
    for path in sorted(folder.rglob("*"), reverse=True):  # what is inside comes before what it is in
        if not path.is_dir() and path.relative_to(folder).as_posix() not in names:
            path.unlink()
        elif path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def connect(address: str) -> Any:
    """Connect this process to a cluster; a connection that is there is kept."""
    try:
        import ray
    except ImportError as error:
        raise UserError("swarm.engine: ray needs Ray; pip install 'ideal-proxy[ray]'") from error
    if ray.is_initialized():
        return ray
    host, _, port = address.rpartition(":")
    if address.startswith("ray://"):
        raise UserError(
            f"swarm.address is {address}; a Ray client cannot drive a search, so start it on a machine of the cluster "
            "(`ray job submit`, docs/cluster.md)"
        )
    if address not in {"auto", "local"} and not (host and port.isdigit()):
        raise UserError(f"swarm.address is {address!r}; write auto, HOST:PORT, or local to start a cluster here")
    ours = signal.getsignal(signal.SIGTERM)
    try:
        if host:  # Ray itself would wait for minutes
            socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_SECONDS).close()
        _begin(ray, address)
    except (OSError, RuntimeError, ValueError) as error:
        why = str(error).partition("\n")[0]
        raise UserError(
            f"no Ray cluster answers at {address} ({why}); start one with `ray start --head` on "
            "this machine and `ray start --address HOST:PORT` on the others, or use --engine local"
        ) from error
    if ours not in {None, signal.SIG_DFL} and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, ours)  # Ray puts one of its own, which would end a search without its checkpoints
    return ray


def _begin(ray: Any, address: str) -> None:
    """Connect, or start a head; one that does not come up in time on a busy machine is tried again."""
    for left in reversed(range(STARTS)):
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, RuntimeError, ValueError):
            raise
        except Exception as error:  # Ray's own word for a head or a node that is not up in time
            ray.shutdown()
            if not left:
                raise UserError(
                    f"Ray did not come up at {address} in {STARTS} tries ({str(error).partition(chr(10))[0]}); this "
                    "machine may be too busy or its memory full: try again later, give Ray more time "
                    "(RAY_raylet_start_wait_time_s=200), or use --engine local"
                ) from error
            time.sleep(START_SECONDS)
        else:
            return


def cluster_workers(threads: int, gpus: float) -> int:
    """Count the workers that the nodes of the connected cluster can hold when they do nothing else."""
    import ray

    has = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return sum(
        int(min(node.get("CPU", 0) // threads, node.get("GPU", 0) / gpus if gpus else float("inf"))) for node in has
    )
