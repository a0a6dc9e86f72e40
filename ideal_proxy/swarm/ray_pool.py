"""Workers on a Ray cluster: actors that are watched, replaced when they or their node go, and send home what they made.

Only this module and the actor speak to Ray. The driver's run directory is the only state: an actor's node keeps files
for as long as the driver lives and no longer. Each node gets the context once, each finished run that others start
from once.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ideal_proxy.errors import UserError
from ideal_proxy.store import atomic_write_bytes, is_complete, mark_complete
from ideal_proxy.swarm.context import WARM_RUN, RunSpec, SwarmContext
from ideal_proxy.swarm.pool import Message
from ideal_proxy.swarm.ray_worker import NodeWorker, versions
from ideal_proxy.swarm.ship import keep_only, pack, write_files

POLL_SECONDS = 1.0
REACH_SECONDS = 10.0
NOTICE_SECONDS = 30.0
"""Without any worker for so long, the user is told; then each time after twice as long."""
HOPELESS_SECONDS = 600.0
"""For so long there may be no node that could hold a worker at all, as when a cluster is still growing."""
STARTING_SECONDS = 60.0
UNREADY_DEATHS = 3


@dataclass(slots=True, eq=False)
class _Actor:
    """An actor and what is known of it."""

    number: int
    handle: Any
    born: float
    node: str = ""
    host: str = ""
    ready: bool = False
    spec: RunSpec | None = None
    lent: list[Any] = field(default_factory=list)


class RayPool:
    """Actors of an existing Ray cluster, each with a worker process.

    Args:
        context: the prepared files and settings.
        run_dir: the run directory, on the driver's disk.
        address: of the cluster: "auto" finds the one of this machine or of `RAY_ADDRESS`; "HOST:PORT"; "local" starts
            one on this machine.
        workers: actors side by side; default as many as the cluster's nodes can hold.
        gpus: GPUs of a worker, a fraction where several share one; each also takes `context.threads` CPUs.
        worker: module that a worker process runs.

    Raises:
        UserError: Ray is not installed, the cluster cannot be reached, or no node of it can hold a worker.
    """

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
        self.context = context
        self.run_dir = Path(run_dir)
        self.workers = workers or cluster_workers(context.threads, gpus)
        if not self.workers:
            raise UserError(
                f"no node of the Ray cluster has the {_needs(context.threads, gpus)} of a worker; add one, or give "
                "--workers to wait for nodes that are still to come"
            )
        self.shipments: Counter[str] = Counter()
        self._gpus = gpus
        self._module = worker
        self._actors: dict[int, _Actor] = {}
        self._asked: dict[Any, _Actor] = {}
        self._context: list[Any] | None = None
        self._inputs: dict[str, list[Any]] = {}
        job = self._ray.get_runtime_context().get_job_id()
        self._name = f"{context.fingerprint()[:16]}-{job}"
        self._inbox: deque[tuple[int, Message]] = deque()
        self._deaths_unready = 0
        self._lonely = 0.0
        self._notice = NOTICE_SECONDS

    def node_of(self, number: int) -> str:
        """Return the id of the node that a worker is on."""
        return self._actors[number].node if number in self._actors else ""

    def hire(self, wanted: int) -> None:
        """Start actors until there are so many; those for which the cluster has no room yet wait for it."""
        while len(self._actors) < min(wanted, self.workers):
            self._start()

    def idle(self) -> list[int]:
        """Return the numbers of the workers that are ready and have no run."""
        return [number for number, actor in self._actors.items() if actor.ready and actor.spec is None]

    def expected(self) -> int:
        """Return how many are ready, or were asked for just now."""
        now = time.monotonic()
        return sum(actor.ready or now - actor.born < STARTING_SECONDS for actor in self._actors.values())

    def assign(self, number: int, spec: RunSpec, checkpoint_seconds: float) -> None:
        """Give an idle worker a run, with what it starts from and what there is of it."""
        actor = self._actors[number]
        actor.spec = spec
        needed = [WARM_RUN] if self.context.warm and spec.role != "warm" else []
        needed += [spec.trained] if spec.trained else []
        inputs = {run: self._input(run) for run in needed if is_complete(self._run_folder(run))}
        own = self._put(self._run_folder(spec.id))
        actor.lent = own  # until the actor has it
        actor.handle.assign.remote(spec.to_json(), checkpoint_seconds, inputs, own)

    def stop(self, number: int) -> None:
        """Ask a worker to save a checkpoint, to leave its run and to send home what there is of it."""
        if (actor := self._actors.get(number)) is not None:
            actor.handle.stop.remote()

    def messages(self, timeout: float) -> Iterable[tuple[int, Message]]:
        """Yield what workers say, as it comes, after their files are written."""
        ready: list[Any] = []
        rest = list(self._asked)
        if rest:
            ready, rest = self._ray.wait(rest, num_returns=1, timeout=0 if self._inbox else timeout)
        elif not self._inbox:
            time.sleep(timeout)
        if rest:
            ready += self._ray.wait(rest, num_returns=len(rest), timeout=0)[0]
        for reference in ready:
            actor = self._asked[reference]
            try:
                said = self._ray.get(reference)
            except self._ray.exceptions.RayError as error:
                self._inbox.append((actor.number, self._lost(actor, error)))
                continue
            del self._asked[reference]
            if isinstance(said, dict):
                self._arrived(actor, said)
                said = []
            self._inbox.extend((actor.number, self._take(actor, message)) for message in said)
            if self._actors.get(actor.number) is actor:
                self._asked[actor.handle.poll.remote(POLL_SECONDS)] = actor
        self._inbox.extend(self._notices())
        while self._inbox:  # a caller that breaks off finds the rest here when it comes back
            yield self._inbox.popleft()

    def close(self) -> None:
        """End all actors now; each node loses what was put on it."""
        try:
            leaving = [actor.handle.leave.remote() for actor in self._actors.values() if actor.node]
            if leaving:
                self._ray.wait(leaving, num_returns=len(leaving), timeout=2.0)
        finally:
            for actor in list(self._actors.values()):
                self._drop(actor)
            self._asked.clear()
            self._inbox.clear()
            self._lonely = 0.0

    def _start(self) -> None:
        """Ask the cluster for one actor more; it comes when there is room."""
        if self._context is None:
            self._context = self._put(self.context.folder)
        number = next(n for n in range(self.workers) if n not in self._actors)
        kind = self._ray.remote(NodeWorker).options(
            num_cpus=self.context.threads, num_gpus=self._gpus, max_restarts=0, max_concurrency=4,
            scheduling_strategy="SPREAD",
        )  # fmt: skip
        handle = kind.remote(number, self._module, self.context.threads, self._name)
        actor = _Actor(number, handle, time.monotonic())
        self._actors[number] = actor
        self._asked[handle.begin.remote(self._context)] = actor

    def _arrived(self, actor: _Actor, said: dict[str, Any]) -> None:
        """Take in where an actor is, and refuse one whose runs would have other bits."""
        actor.node, actor.host = said["node"], said["host"]
        self.shipments[actor.node] += int(said["shipped"])
        for package, here in versions().items():
            if said["versions"][package] != here:
                raise UserError(
                    f"{actor.host} has {package} {said['versions'][package]} and this machine {here}; "
                    "install the same version on every node, for numbers must not depend on where a run is done"
                )

    def _take(self, actor: _Actor, message: Message) -> Message:
        """Write what came with a message, the marker of a finished run last."""
        kind = message["kind"]
        files, names = message.pop("files", {}), message.pop("names", [])
        folder = self._run_folder(message["run"]) if message.get("run") else None
        if folder is not None and not is_complete(folder):
            write_files(files, folder)
            if kind == "finished":
                keep_only(folder, names)  # without such as the checkpoint of a run that is done
                mark_complete(folder)
        if kind == "ready":
            actor.ready, self._deaths_unready, message["host"] = True, 0, actor.host
        elif kind in {"finished", "failed", "stopped"}:
            actor.spec, actor.lent = None, []
        elif kind == "died":
            log = self.run_dir / "workers" / f"worker-{actor.number}.log"
            atomic_write_bytes(log, message.pop("log"))
            self._drop(actor)
            if not actor.ready:
                self._unready(f"{message['message']}; see {log}")
        return message

    def _lost(self, actor: _Actor, error: Exception) -> Message:
        """Bury an actor that does not answer any more; its run is not to blame."""
        self._drop(actor)
        cause = getattr(error, "cause", None)
        if isinstance(cause, UserError):
            raise cause
        if isinstance(cause, OSError):
            raise UserError(f"a node cannot take the swarm's files ({cause.strerror or cause}); make room there")
        if isinstance(error, self._ray.exceptions.RayTaskError):  # a fault of ours, not of the cluster's
            raise error
        if not actor.ready:
            self._unready(str(error).strip().splitlines()[-1])
        where = f" on {actor.host}" if actor.host else ""
        return {"kind": "died", "message": f"the worker{where} was lost with its node or actor", "charged": False}

    def _unready(self, why: str) -> None:
        """Count a worker that never got ready; give up where none does."""
        self._deaths_unready += 1
        if self._deaths_unready > self.workers + UNREADY_DEATHS:
            raise UserError(f"no worker starts on the Ray cluster ({why}); is ideal-proxy installed on every node?")

    def _notices(self) -> Iterable[tuple[int, Message]]:
        """Say so where there is no worker for a long time, and give up where there can be none."""
        now = time.monotonic()
        if not self._actors or any(actor.ready for actor in self._actors.values()):
            self._lonely, self._notice = 0.0, NOTICE_SECONDS
            return
        self._lonely = self._lonely or now
        waited = now - self._lonely
        needs = _needs(self.context.threads, self._gpus)
        if waited > HOPELESS_SECONDS and not cluster_workers(self.context.threads, self._gpus):
            raise UserError(f"no node of the Ray cluster has the {needs} of a worker any more; add one and go on")
        if waited > self._notice:
            self._notice *= 2
            yield -1, {
                "kind": "waiting", "message": f"no worker for {waited:.0f} s: waiting for a node with {needs} free",
            }  # fmt: skip

    def _drop(self, actor: _Actor) -> None:
        """Kill an actor and forget it."""
        if self._actors.get(actor.number) is actor:
            del self._actors[actor.number]
        for reference in [ref for ref, other in self._asked.items() if other is actor]:
            del self._asked[reference]
        with contextlib.suppress(Exception):  # it may be gone, and so may the cluster
            self._ray.kill(actor.handle, no_restart=True)

    def _run_folder(self, run: str) -> Path:
        return self.run_dir / "runs" / run

    def _input(self, run: str) -> list[Any]:
        """Return the pieces of a finished run, put into the object store once."""
        if run not in self._inputs:
            self._inputs[run] = self._put(self._run_folder(run))
        return self._inputs[run]

    def _put(self, folder: Path) -> list[Any]:
        return [self._ray.put(piece) for piece in pack(folder)]


def connect(address: str) -> Any:
    """Connect this process to a cluster; a connection that is there is kept."""
    try:
        import ray
    except ImportError as error:
        raise UserError("swarm.engine: ray needs Ray; pip install 'ideal-proxy[ray]'") from error
    if ray.is_initialized():
        return ray
    if address.startswith("ray://"):
        raise UserError(
            f"swarm.address is {address}; a Ray client cannot drive a search, so start it on a machine of the cluster "
            "(`ray job submit`, docs/cluster.md)"
        )
    host, _, port = address.rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_SECONDS).close()
        except OSError as error:
            raise UserError(
                f"no Ray cluster answers at {address} ({error.strerror or error}); start one with `ray start --head`, "
                "or put its address into swarm.address"
            ) from error
    elif address not in {"auto", "local"}:
        raise UserError(f"swarm.address is {address!r}; write auto, HOST:PORT, or local to start a cluster here")
    ours = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"no Ray cluster can be reached (swarm.address: {address}); start one with `ray start --head` on this "
            "machine and `ray start --address HOST:PORT` on the others, or use --engine local"
        ) from error
    if ours not in {None, signal.SIG_DFL} and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, ours)  # Ray puts one of its own, which would end a search without its checkpoints
    return ray


def cluster_workers(threads: int, gpus: float) -> int:
    """Count the workers that the nodes of the connected cluster can hold when they do nothing else."""
    import ray

    count = 0
    for node in ray.nodes():
        if node["Alive"]:
            has = node["Resources"]
            count += int(min(has.get("CPU", 0) // threads, has.get("GPU", 0) / gpus if gpus else float("inf")))
    return count


def _needs(threads: int, gpus: float) -> str:
    """Say what a worker takes."""
    cpus = f"{threads} CPU{'s' if threads > 1 else ''}"
    return f"{cpus} and {gpus:g} GPU{'s' if gpus > 1 else ''}" if gpus else cpus
