"""What a swarm needs from the place where its runs are done: the interface of the local and the Ray engine.

A pool knows workers by number. It hands out no run by itself, counts nothing and retries nothing: that is `swarm`'s.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from ideal_proxy.swarm.context import RunSpec

Message = dict[str, Any]
"""A worker's message; `kind` says what happened:

    ready     pid, host ("" is this machine): the worker can take a run
    started   run
    step      run, done, steps, loss
    finished  run: its folder is complete in the run directory
    failed    run, message, disk_full: the run went wrong, the worker lives
    stopped   run: on request, after a checkpoint
    died      message, charged: the worker is gone; charged says that its run may be to blame
    waiting   message: no worker can be had now
"""


class Pool(Protocol):
    """Workers that take one run at a time."""

    workers: int  # how many may work side by side

    def hire(self, wanted: int) -> None:
        """Start workers until there are so many, those still starting included."""

    def idle(self) -> list[int]:
        """Return the numbers of the workers that are ready and have no run."""

    def expected(self) -> int:
        """Return how many workers work now or will in a moment, for the estimate."""

    def assign(self, number: int, spec: RunSpec, checkpoint_seconds: float) -> None:
        """Give an idle worker a run."""

    def messages(self, timeout: float) -> Iterable[tuple[int, Message]]:
        """Yield what workers say, as it comes."""

    def stop(self, number: int) -> None:
        """Ask a worker to save a checkpoint and to leave its run."""

    def close(self) -> None:
        """End all workers now; those without a run may end by themselves."""
