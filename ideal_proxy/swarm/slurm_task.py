"""The part of the Slurm engine that runs in a job: one run, by the local engine's own worker process.

The folder that driver and jobs share is all they speak through: a job appends what its worker says to a file, and
ends when the driver's sign of life there is old or another driver's.
"""

from __future__ import annotations

import contextlib
import json
import platform
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ideal_proxy.swarm.context import RunSpec, load_context
from ideal_proxy.swarm.local import LocalPool

DRIVER = "driver"  # in the shared folder: who drives, touched while it does
DRIVER_GONE_SECONDS = 180.0
POLL_SECONDS = 0.5
CHECKPOINT_WAIT = 20.0
LAST_WORDS = {"finished", "failed", "stopped", "died"}


@dataclass
class OneRun:
    """A run as a job: called to do it, and again after it was requeued, when it goes on from its last checkpoint."""

    place: Path  # the shared folder
    context: Path
    run_dir: Path
    spec: dict[str, Any]
    checkpoint_seconds: float
    module: str
    number: int
    driver: str
    _pool: LocalPool | None = field(default=None, repr=False)

    @property
    def events(self) -> Path:
        """What the worker says."""
        return self.place / f"{self.spec['id']}-{self.driver}.jsonl"

    @property
    def stop_sign(self) -> Path:
        """A file that asks to stop."""
        return self.place / f"{self.spec['id']}-{self.driver}.stop"

    def __call__(self) -> str:
        """Do the run; return the kind of the worker's last message."""
        pool = self._pool = LocalPool(
            load_context(self.context), self.run_dir, numbers=[self.number], worker=self.module
        )
        pool.hire(1)
        stopping = False
        try:
            with open(self.events, "a", encoding="utf-8") as out:
                while True:
                    if not stopping and (self.stop_sign.exists() or not self._driven()):
                        stopping = True
                        pool.stop(self.number)
                        if not pool.idle() and not pool.expected():
                            return "stopped"
                    for _, message in pool.messages(POLL_SECONDS):
                        if message["kind"] == "ready":
                            pool.assign(self.number, RunSpec.from_json(self.spec), self.checkpoint_seconds)
                            continue
                        out.write(json.dumps(message | {"host": platform.node()}) + "\n")
                        out.flush()
                        if message["kind"] in LAST_WORDS:
                            return str(message["kind"])
        finally:
            pool.close()

    def checkpoint(self) -> Any:
        """Save a checkpoint where the job is to make room, and ask to be queued again."""
        from submitit.helpers import DelayedSubmission

        if self._pool is not None:
            self._pool.stop(self.number)
            deadline = time.monotonic() + CHECKPOINT_WAIT
            with contextlib.suppress(Exception):
                while time.monotonic() < deadline and not any(
                    message["kind"] in LAST_WORDS for _, message in self._pool.messages(POLL_SECONDS)
                ):
                    pass
            self._pool.close()
            self._pool = None
        return DelayedSubmission(self)

    def _driven(self) -> bool:
        """Whether the driver that wanted this run still lives."""
        path = self.place / DRIVER
        try:
            mine = path.read_text(encoding="utf-8") == self.driver
            return mine and time.time() - path.stat().st_mtime < DRIVER_GONE_SECONDS
        except OSError:
            return False
