"""Worker processes forked from one that has loaded torch and transformers already, which spares each its imports.

For tests of what a search does. Where it matters how workers start and end (`tests/swarm`, `tests/faults`, whatever
runs the program as a process of its own) they start as a user's do.
"""

from __future__ import annotations

import json
import multiprocessing as mp
import os
import runpy
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

from ideal_proxy.swarm import local

LOADED = ["transformers.models.llama.modeling_llama", "ideal_proxy.swarm.worker", "ideal_proxy.gradients.worker"]


class Ends(tuple):
    """File descriptors that a process gets duplicates of."""

    def __reduce__(self) -> Any:
        return tuple, ([DupFd(end) for end in self],)


def serve(module: str, settings: str, environment: Mapping[str, str], ends: Sequence[Any]) -> None:
    """Be `python -m MODULE SETTINGS` in a session of its own, with these ends as standard input, output and error."""
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    for place, end in enumerate(ends):
        os.dup2(end.detach(), place)
    sys.stdin, sys.argv = open(0, encoding="utf-8"), [module, settings]  # noqa: SIM115
    del sys.modules[module]  # so that it runs as the program
    runpy.run_module(module, run_name="__main__", alter_sys=True)


class ForkedWorker:
    """What a pool of workers needs of `subprocess.Popen`."""

    def __init__(self, module: str, settings: str, environment: Mapping[str, str], stderr: int) -> None:
        (read, write), (answers, answer) = os.pipe(), os.pipe()
        makers: Any = mp.get_context("forkserver")
        makers.set_forkserver_preload(LOADED)
        self._process = makers.Process(
            target=serve, args=(module, settings, dict(environment), Ends((read, answer, stderr))), daemon=True
        )
        self._process.start()
        os.close(read)
        os.close(answer)
        self.stdin, self.stdout, self.pid = os.fdopen(write, "wb"), os.fdopen(answers, "rb"), self._process.pid

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("a worker", timeout or 0.0)
        return int(self._process.exitcode)

    def kill(self) -> None:
        self._process.kill()


def start_worker(
    module: str, context: Path, run_dir: Path, number: int, threads: int, *, cores: Sequence[int] = (), stderr: int
) -> ForkedWorker:
    """Stand in for `local.start_worker`."""
    settings = {"context": str(context.resolve()), "run_dir": str(run_dir.resolve()), "worker": number,
                "cores": list(cores)}  # fmt: skip
    return ForkedWorker(module, json.dumps(settings), local._environment(threads), stderr)
