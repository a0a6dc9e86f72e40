"""What a search is doing, in `status.json` of its run directory: written by the search, read by `ideal-proxy status`.

The file is a convenience: no result rests on it, and a search whose file is lost goes on all the same.
"""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from ideal_proxy.errors import UserError
from ideal_proxy.pipeline.stage import Stage
from ideal_proxy.store import atomic_write_json, read_json
from ideal_proxy.swarm import SwarmEvent

STATUS = "status.json"
WRITE_SECONDS = 2.0  # between two writes of mere progress
NONE_DONE: dict[str, Any] = {"runs_done": 0, "runs": 0, "fraction": 0.0, "seconds_left": None}  # when a stage begins


class StatusRecord:
    """Keeps `status.json` up to date; use as a context manager, so that it also says how the search ended."""

    def __init__(self, folder: Path, plan: Sequence[dict[str, Any]]) -> None:
        self._path = folder / STATUS
        self._written = 0.0
        now = time.time()
        self._state: dict[str, Any] = {
            "process": f"{os.getpid()} on {platform.node()}", "began": now, "updated": now,
            "spent_before": _spent(self._path), "plan": list(plan), "stage": Stage.PREPARING, "round": None,
            "working": {}, "retried": {}, "failed": {}, "ended": None, **NONE_DONE,
        }  # fmt: skip

    def __enter__(self) -> StatusRecord:
        """Write the first state."""
        self._write()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Say how it ended; a process that is killed says nothing, which is an answer too."""
        if kind is None:
            how = "finished"
        else:
            how = "Ctrl-C" if issubclass(kind, KeyboardInterrupt) else str(error) or kind.__name__
        self._state["ended"] = how
        with contextlib.suppress(UserError):  # a full disk must not hide what ended the search
            self._write()

    @property
    def state(self) -> dict[str, Any]:
        """What the file says, or will say."""
        return self._state

    @property
    def spent_seconds(self) -> float:
        """Wall time of the search so far, over all sessions."""
        return float(self._state["spent_before"] + time.time() - self._state["began"])

    def stage(self, stage: Stage, number: int | None = None) -> None:
        """Begin a stage, of a round counted from 1."""
        self._state |= {"stage": stage, "round": number, "working": {}, **NONE_DONE}
        self._write()

    def event(self, event: SwarmEvent) -> None:
        """Take in what the swarm tells."""
        state, first = self._state, False
        state |= {
            "runs_done": event.runs_done, "runs": event.runs, "fraction": event.fraction,
            "seconds_left": event.seconds_left,
        }  # fmt: skip
        what = {"run": event.run, "role": event.role}
        for worker in [number for number, at in state["working"].items() if at["run"] == event.run]:
            if event.kind in {"finished", "retried", "failed"}:
                del state["working"][worker]
        if event.kind == "started":
            state["working"][str(event.worker)] = {
                **what, "process": event.pid, "host": event.host, "step": 0, "steps": 0, "loss": None,
                "since": time.time(),
            }  # fmt: skip
        elif event.kind == "step" and (at := state["working"].get(str(event.worker))) is not None:
            first = not at["steps"]
            at |= {"step": event.done, "steps": event.steps, "loss": event.loss}
        elif event.kind in {"retried", "failed"}:
            state[event.kind][event.run] = {**what, "message": event.message}
        if first or event.kind != "step" or time.time() - self._written >= WRITE_SECONDS:
            self._write()

    def _write(self) -> None:
        self._written = self._state["updated"] = time.time()
        atomic_write_json(self._path, self._state, seal=True)


def _spent(path: Path) -> float:
    """Return the wall time of earlier sessions, seconds."""
    try:
        before = read_json(path)
        return float(before["spent_before"] + before["updated"] - before["began"])
    except (UserError, KeyError, TypeError):
        return 0.0
