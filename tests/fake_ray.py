"""A stand-in for Ray inside one process, for tests where Ray is not installed: actors are objects with own threads.

Nodes take turns at actors. An actor that is killed, or lost with its node, loses its worker process too.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from types import SimpleNamespace
from typing import Any


class RayError(Exception):
    pass


class RayTaskError(RayError):
    def __init__(self, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.cause = cause


class Actor:
    def __init__(self, kind: Callable[..., Any], arguments: tuple[Any, ...], node: str) -> None:
        self.node, self.lost = node, False
        self.threads = ThreadPoolExecutor(4, initializer=lambda: setattr(HERE, "node", node))
        self.object = kind(*arguments)

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda *arguments: self.threads.submit(self._call, name, arguments))

    def _call(self, name: str, arguments: tuple[Any, ...]) -> Any:
        try:
            return getattr(self.object, name)(*arguments)
        finally:
            if self.lost:
                raise RayError("the actor died")

    def lose(self) -> None:
        """Take the actor away, as with its node."""
        self.lost = True
        for part in ("_pool", "_held"):
            if hasattr(self.object, part):
                getattr(self.object, part).close()


HERE = threading.local()


class FakeRay:
    """What `ideal_proxy.swarm` uses of the module `ray`."""

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def __init__(self, *nodes: str, cpus: int = 2) -> None:
        self.actors: list[Actor] = []
        self.puts = 0
        self._cpus, self._nodes = dict.fromkeys(nodes, cpus), itertools.cycle(nodes)

    def is_initialized(self) -> bool:
        return True

    def get_runtime_context(self) -> Any:
        return SimpleNamespace(get_node_id=lambda: HERE.node, get_job_id=lambda: "job")

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"CPU": cpus}} for cpus in self._cpus.values()]

    def empty(self) -> None:
        """Take every node away."""
        self._cpus = {}

    def put(self, value: Any) -> Future[Any]:
        self.puts += 1
        kept: Future[Any] = Future()
        kept.set_result(value)
        return kept

    def get(self, reference: Future[Any]) -> Any:
        try:
            return reference.result()
        except RayError:
            raise
        except Exception as error:
            raise RayTaskError(error) from error

    def wait(self, references: Sequence[Future[Any]], num_returns: int = 1, timeout: float | None = None) -> Any:
        done = wait(references, timeout, FIRST_COMPLETED if num_returns == 1 else "ALL_COMPLETED").done
        ready = [reference for reference in references if reference in done][:num_returns]
        return ready, [reference for reference in references if reference not in ready]

    def remote(self, kind: Callable[..., Any]) -> Any:
        def make(*arguments: Any) -> Actor:
            self.actors.append(Actor(kind, arguments, next(self._nodes)))
            return self.actors[-1]

        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=make))

    def kill(self, actor: Actor, *, no_restart: bool) -> None:
        assert no_restart
        actor.lose()
        actor.threads.shutdown(wait=False)
