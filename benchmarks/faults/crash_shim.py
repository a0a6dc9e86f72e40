"""What `crash_campaign.py` puts into the processes it kills: a system call that ends them, forks for starts."""

from __future__ import annotations

import builtins
import contextlib
import io
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

PLACES = {
    "rename": [(os, "replace"), (os, "rename")], "fsync": [(os, "fsync")], "unlink": [(os, "unlink")],
    "open": [(builtins, "open"), (io, "open")],
}  # fmt: skip
REAL = {(holder, name): getattr(holder, name) for places in PLACES.values() for holder, name in places}
PLAIN_OPEN = os.open


def install(who: str) -> None:
    """Let one system call kill this process, or count them all, as CRASH_AT says."""
    for (holder, name), real in REAL.items():
        setattr(holder, name, real)
    target, call, number, when = (os.environ.get("CRASH_AT") or ":::").split(":")
    seen = [0]

    def shim(real: Callable[..., Any], name: str) -> Callable[..., Any]:
        def shimmed(*arguments: Any, **options: Any) -> Any:
            mode = str(options.get("mode", arguments[1] if len(arguments) > 1 else "r"))
            if name == "open" and not set(mode) & set("wax"):
                return real(*arguments, **options)
            seen[0] += 1
            if target == "count":
                place = f"{os.environ['CRASH_MARK']}-{who}-{name}"
                handle = PLAIN_OPEN(place, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
                os.write(handle, b"x")
                os.close(handle)
            elif seen[0] == int(number):
                try:  # once: a worker that is started in the place of a killed one lives
                    os.close(PLAIN_OPEN(os.environ["CRASH_MARK"], os.O_CREAT | os.O_EXCL))
                except FileExistsError:
                    return real(*arguments, **options)
                if when == "after":
                    real(*arguments, **options)
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        return shimmed

    for name, places in PLACES.items():
        if target == "count" or (who, call) == (target, name):
            for holder, attribute in places:
                setattr(holder, attribute, shim(REAL[holder, attribute], name))


class Forked:
    """A process forked from this one, with what `subprocess.Popen` has of it."""

    def __init__(self, command: Sequence[str], told: Mapping[str, str], folder: Path, log: int) -> None:
        self.returncode: int | None = None
        self.stdin: Any = None
        self.stdout: Any = None
        self.pid = os.fork()
        if not self.pid:
            _become(lambda: _driver(command), {0: os.open(os.devnull, os.O_RDONLY), 1: log, 2: log}, told, folder)

    def poll(self) -> int | None:
        """Return the exit status, None while it runs."""
        if self.returncode is None:
            with contextlib.suppress(ChildProcessError):
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if pid:
                    self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end."""
        import subprocess

        end = time.monotonic() + (1e9 if timeout is None else timeout)
        while self.poll() is None:
            if time.monotonic() >= end:
                raise subprocess.TimeoutExpired("fork", timeout or 0)
            time.sleep(0.01)
        return int(self.returncode or 0)

    def kill(self) -> None:
        """Kill it."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


class ForkedWorker(Forked):
    """A worker of the swarm, forked from its driver."""

    def __init__(self, settings: dict[str, Any], stderr: int, told: Mapping[str, str]) -> None:
        self.returncode = None
        (given, self_in), (self_out, made) = os.pipe(), os.pipe()
        self.pid = os.fork()
        if not self.pid:
            _become(lambda: _worker(settings), {0: given, 1: made, 2: stderr}, told, Path.cwd())
        os.close(given)
        os.close(made)
        self.stdin, self.stdout = open(self_in, "wb"), open(self_out, "rb", 0)  # noqa: SIM115


def _become(work: Callable[[], None], streams: Mapping[int, int], told: Mapping[str, str], folder: Path) -> None:
    """Be a fresh process as far as files, environment and standard streams go; never returns."""
    code = 1
    try:
        os.setsid()
        kept = {name: os.dup(handle) for name, handle in streams.items()}
        nothing = os.open(os.devnull, os.O_RDWR)
        for entry in os.listdir("/proc/self/fd"):  # whatever was open is closed: locks, the pipes of other workers
            if int(entry) > 2 and int(entry) not in {*kept.values(), nothing}:
                with contextlib.suppress(OSError):
                    os.dup2(nothing, int(entry))
        for name, handle in kept.items():
            os.dup2(handle, name)
            os.close(handle)
        os.environ.update(told)
        os.chdir(folder)
        for number, name in enumerate(("stdin", "stdout", "stderr")):
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8", closefd=False))  # noqa: SIM115
        signal.signal(signal.SIGINT, signal.default_int_handler)
        work()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(code)


def _driver(command: Sequence[str]) -> None:
    import ideal_proxy.swarm.local as local
    from ideal_proxy.cli import main

    install("driver")

    def start_worker(
        module: str, context: Path, run_dir: Path, number: int, threads: int, *, cores: Sequence[int] = (),
        stderr: int | None = None,
    ) -> Any:  # fmt: skip
        settings = {"context": str(context.resolve()), "run_dir": str(run_dir.resolve()), "worker": number,
                    "cores": list(cores)}  # fmt: skip
        assert module == "ideal_proxy.swarm.worker"
        return ForkedWorker(settings, 2 if stderr is None else stderr, {"OMP_NUM_THREADS": str(threads)})

    local.start_worker = start_worker
    sys.argv = ["ideal-proxy", *command]
    main()


def _worker(settings: dict[str, Any]) -> None:
    from ideal_proxy.swarm import worker

    install("worker")
    sys.argv = ["worker", json.dumps(settings)]
    worker.main()


def preload() -> None:
    """Import what drivers and workers import, so that forks need not."""
    import accelerate
    import duckdb
    import pandas
    import scipy.optimize
    import scipy.stats
    import sklearn.gaussian_process
    import tokenizers
    import transformers
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, Trainer

    import ideal_proxy.cli.app
    import ideal_proxy.pipeline.outer_loop
    import ideal_proxy.report.text
    import ideal_proxy.response.model
    import ideal_proxy.scaleup.train
    import ideal_proxy.swarm.worker

    del accelerate, duckdb, pandas, scipy, sklearn, tokenizers, transformers, LlamaForCausalLM
    del PreTrainedTokenizerFast, Trainer, ideal_proxy
