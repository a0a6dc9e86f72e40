"""A program of the user's, run in a process group of its own that ends with this process, however that ends."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from ideal_proxy.errors import UserError

LAST_LINES, LAST_WORDS = 3, 300  # of what a failed program said, told to the user; characters
# Launchers such as torchrun begin their workers in sessions of their own, which a signal to the group does not reach;
# those are known by a mark in the environment that they inherited (Linux).
MARK = "IDEAL_PROXY_PROGRAM"
GUARD = """
import glob, os, signal, sys, time
sys.stdin.buffer.read()
try:
    os.killpg(int(sys.argv[1]), signal.SIGKILL)
except ProcessLookupError:
    pass
for _ in range(100):
    alive = False
    for path in glob.glob("/proc/[0-9]*/environ"):
        try:
            with open(path, "rb") as file:
                if sys.argv[2].encode() in file.read():
                    os.kill(int(path.split("/")[2]), signal.SIGKILL)
                    alive = True
        except OSError:
            pass
    if not alive:
        break
    time.sleep(0.02)
"""
POLL_SECONDS = 0.05
TAIL_BYTES = 65536


class ProgramStopped(Exception):
    """The program was asked to stop; it has to begin again."""


def written_out(command: str, values: Mapping[str, Any], told: str) -> list[str]:
    """Split a command into words and put values where `{name}` stands in them; no shell reads it."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UserError(f"{told} cannot be read ({error}); put its quotes right") from error
    return [re.sub(r"\{(\w+)\}", lambda at: str(values.get(at[1], at[0])), word) for word in words]


def run_program(
    words: Sequence[str],
    *,
    told: str,
    folder: str,
    setting: str,
    environment: Mapping[str, str],
    seconds: float | None,
    too_long: str,
    should_stop: Callable[[], bool] | None = None,
    log: Path | None = None,
) -> str:
    """Run a program to its end and return the end of what it printed; what it says can be kept in a file."""
    mark = uuid.uuid4().hex
    whole = {
        **os.environ,
        # `python` is the interpreter that ideal-proxy runs in, whether or not its environment is activated.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        **environment, "PYTHONUNBUFFERED": "1", MARK: f"{os.environ.get(MARK, '')}:{mark}",
    }  # fmt: skip
    with contextlib.ExitStack() as stack:
        if log is None:
            out: IO[bytes] = stack.enter_context(tempfile.TemporaryFile())
            errors: IO[bytes] = stack.enter_context(tempfile.TemporaryFile())
        else:
            out = errors = stack.enter_context(open(log, "w+b"))
        try:
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=out, stderr=errors, cwd=folder, env=whole,
                start_new_session=True,
            )  # fmt: skip
        except (OSError, ValueError) as error:  # a null byte in a word
            why = f"{error.strerror}: {error.filename or words[0]}" if isinstance(error, OSError) else str(error)
            raise UserError(f"{told} cannot be started ({why}); correct {setting}") from error
        with _ended_with_us(process, mark):
            deadline = float("inf") if seconds is None else time.monotonic() + seconds
            while process.poll() is None:
                if should_stop is not None and should_stop():
                    raise ProgramStopped
                if time.monotonic() > deadline:
                    raise UserError(f"{told} took longer than {seconds:g} s and was ended{_last(errors)}; {too_long}")
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(POLL_SECONDS)
        if process.returncode:
            signalled = process.returncode < 0
            how = f"signal {-process.returncode}" if signalled else f"exit status {process.returncode}"
            raise UserError(f"{told} ended with {how}{_last(errors)}{'' if log is None else f'; all of it: {log}'}")
        return _tail(out)


@contextlib.contextmanager
def _ended_with_us(process: subprocess.Popen[bytes], mark: str) -> Iterator[None]:
    """End a process and what it began when this block is left or we die, however: a guard waits for our end."""
    read, write = os.pipe()
    command = [sys.executable, "-I", "-S", "-c", GUARD, str(process.pid), mark]
    guard = subprocess.Popen(command, stdin=read, start_new_session=True)
    os.close(read)
    try:
        yield
    finally:
        os.close(write)
        guard.wait()
        process.wait()


def _tail(file: IO[bytes]) -> str:
    """Read the end of a file that a program wrote."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - TAIL_BYTES))
    return file.read().decode("utf-8", errors="replace")


def _last(errors: IO[bytes]) -> str:
    """Quote the last lines that a program wrote to stderr."""
    lines = [line.strip() for line in _tail(errors).splitlines() if line.strip()]
    text = " / ".join(lines[-LAST_LINES:])
    return f"; its last words: {text[-LAST_WORDS:]}" if text else ""
