"""Python processes forked from one that has loaded torch and transformers already, which spares each its imports.

`Forked` stands in for `subprocess.Popen`, both for programs that a test starts and for the workers of a search. It is
another process with all that tests of processes look at; only its start is not a user's.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.reduction import DupFd
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any
from unittest import mock

LOADED = [
    "transformers.models.llama.modeling_llama", "ideal_proxy.swarm.worker", "ideal_proxy.gradients.worker",
    "ideal_proxy.cli.app", "ideal_proxy.pipeline.outer_loop",
]  # fmt: skip


class _Ends(tuple):
    """File descriptors that a process gets duplicates of."""

    def __reduce__(self) -> Any:
        return tuple, ([DupFd(end) for end in self],)


def forked_workers() -> Any:
    """Patch the pool of a search so that its workers are forked."""
    stand_in = SimpleNamespace(Popen=Forked, PIPE=subprocess.PIPE, TimeoutExpired=subprocess.TimeoutExpired)
    return mock.patch("ideal_proxy.swarm.local.subprocess", stand_in)


def _serve(words: Sequence[str], environment: Mapping[str, str], folder: str, ends: Sequence[Any], maker: Any) -> None:
    """Be `python WORDS` in a session and a folder of its own, with these ends as standard input, output and error."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for place, end in enumerate(ends):
        os.dup2(end.detach(), place)
    sys.stdin, sys.stdout = open(0, encoding="utf-8"), open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    if threads := environment.get("OMP_NUM_THREADS"):  # torch read it when it was loaded
        import torch

        torch.set_num_threads(int(threads))
    # Its own workers come from the same maker of processes, which is told by its address.
    mp.current_process().daemon = False
    vars(forkserver._forkserver).update(maker)  # type: ignore[attr-defined]
    how, what, *arguments = words
    sys.argv = [how, *arguments]
    with forked_workers(), mock.patch.object(forkserver._forkserver, "ensure_running"):  # type: ignore[attr-defined]
        if how == "-c":
            exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.modules.pop(what, None)  # so that it runs as the program
            runpy.run_module(what, run_name="__main__", alter_sys=True)


class Forked:
    """A process as `subprocess.Popen` gives one, of a command that begins with this Python, in a session of its own."""

    def __init__(
        self, command: Sequence[str], *, stdin: Any = None, stdout: Any = None, stderr: Any = None,
        env: Mapping[str, str], cwd: Path | str = ".", text: bool = False, start_new_session: bool = True,
    ) -> None:  # fmt: skip
        assert command[0] == sys.executable
        assert start_new_session
        words = [word for word in command[1:] if word != "-P"]
        self.returncode: int | None = None
        given, ours, pipes = [], [], []
        for place, end in enumerate((stdin, stdout, stderr)):
            pipes.append(None)
            if end == subprocess.PIPE:
                theirs, mine = os.pipe() if place == 0 else reversed(os.pipe())
                pipes[-1] = os.fdopen(mine, ("w" if place == 0 else "r") + ("" if text else "b"))
            elif end == subprocess.DEVNULL or (end is None and place == 0):
                theirs = os.open(os.devnull, os.O_RDWR)
            else:
                given.append(place if end is None else end if isinstance(end, int) else end.fileno())
                continue
            given.append(theirs)
            ours.append(theirs)
        self.stdin, self.stdout, self.stderr = pipes
        makers: Any = mp.get_context("forkserver")
        makers.set_forkserver_preload(LOADED)
        maker: Any = forkserver._forkserver  # type: ignore[attr-defined]
        maker.ensure_running()
        place_of = {name: value for name, value in vars(maker).items() if name.endswith(("address", "authkey"))}
        self._process = makers.Process(
            target=_serve, args=(words, dict(env), str(Path(cwd).resolve()), _Ends(given), place_of), daemon=True
        )
        self._process.start()
        self.pid = self._process.pid
        for end in ours:
            os.close(end)

    def poll(self) -> int | None:
        self.returncode = self._process.exitcode
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.poll() is None:
            raise subprocess.TimeoutExpired("a forked process", timeout or 0.0)
        return int(self._process.exitcode)

    def send_signal(self, sent: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, sent)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> Forked:
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in (self.stdin, self.stdout, self.stderr):
            if pipe is not None:
                pipe.close()
        self.wait()


def run(command: Sequence[str], *, timeout: float, **options: Any) -> subprocess.CompletedProcess[str]:
    """Do what `subprocess.run(command, capture_output=True, text=True)` does, in a forked process."""
    said: list[IO[str]]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        with Forked(command, stdout=out, stderr=err, **options) as process:
            try:
                process.wait(timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        said = [out, err]
        for file in said:
            file.seek(0)
        return subprocess.CompletedProcess(command, process.wait(), *(file.read() for file in said))
