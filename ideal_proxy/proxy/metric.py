"""Capabilities judged by more than loss: a command or a Python function that scores a trained proxy.

The proxy lies in a folder that `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained` load. A
command is told the folder in its arguments and prints one JSON number, or an object with `score`, as its last line; a
function is called as `function(model, tokenizer, split)` and returns the number. Whatever goes wrong is one sentence.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ideal_proxy.errors import UserError, shortened
from ideal_proxy.hooks import load_entry_point
from ideal_proxy.store import save_pretrained, whole

SCORE = "a JSON number, or an object with `score`"
STDERR_LINES = 3  # of a failed command's last words, told to the user
STDERR_CHARACTERS = 300
GUARD = """
import os, signal, sys
sys.stdin.buffer.read()
try:
    os.killpg(int(sys.argv[1]), signal.SIGKILL)
except ProcessLookupError:
    pass
"""
POLL_SECONDS = 0.05
TAIL_BYTES = 65536


class MetricStopped(Exception):
    """The measuring was asked to stop; it has to begin again."""


class _TooLong(BaseException):
    """Raised in a function that exceeds its time; no `except Exception` of its own holds it up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricSpec:
    """One metric to measure on one trained proxy."""

    key: str  # names the result in the run, such as `search-0`
    capability: str  # whose metric it is, for messages
    split: str  # `search` or `verify`: which half of its items the metric may judge on
    command: str = ""  # program and arguments, `{model}` standing for the folder; "" where there is a function
    python: str = ""  # `package.module:function`; "" where there is a command
    folder: str = "."  # where the command runs and where modules are looked for too
    timeout_seconds: float = 600.0  # it is ended after so long
    keep_model: bool = False  # leave the exported model in the run's folder

    @property
    def identity(self) -> tuple[str, str, str, str]:
        """What a score depends on besides the run: neither the time allowed nor where the folder lies."""
        return self.key, self.split, self.command, self.python

    @property
    def told(self) -> str:
        """The metric as messages name it."""
        return f"the metric of {self.capability} ({shortened(self.command or self.python, 80)})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A score."""

    score: float  # in the metric's own unit
    seconds: float  # what it took
    script: str  # short hash of the files that the command names, or of the function's module; "" where there are none


def measure(
    spec: MetricSpec,
    model_folder: Path,
    *,
    seed: int,
    device: str = "cpu",
    should_stop: Callable[[], bool] | None = None,
) -> Measured:
    """Score one exported model."""
    started = time.monotonic()
    if spec.command:
        score = _run_command(spec, model_folder.resolve(), seed, device, should_stop)
    else:
        score = _call_function(spec, model_folder, seed, device)
    return Measured(score=score, seconds=time.monotonic() - started, script=script_hash(spec))


def command_arguments(spec: MetricSpec, model_folder: Path, seed: int) -> list[str]:
    """Write out a command; no shell reads it."""
    try:
        words = shlex.split(spec.command)
    except ValueError as error:
        raise UserError(f"{spec.told} cannot be read ({error}); put its quotes right") from error
    for name, value in (("model", model_folder), ("split", spec.split), ("seed", seed)):
        words = [word.replace("{" + name + "}", str(value)) for word in words]
    return words


def script_hash(spec: MetricSpec) -> str:
    """Identify the code that a metric runs, as far as it can be seen."""
    if spec.command:
        paths = [Path(spec.folder) / word for word in shlex.split(spec.command) if "{" not in word]
    else:
        paths = [Path(str(getattr(sys.modules.get(spec.python.partition(":")[0]), "__file__", None) or ""))]
    code = [path.read_bytes() for path in paths if path.is_file()]
    return hashlib.sha256(b"".join(code)).hexdigest()[:12] if code else ""


def parse_score(text: str, told: str) -> float:
    """Read a command's last line."""
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise UserError(f"{told} printed nothing; its last line must be {SCORE}")
    shown = repr(shortened(lines[-1].strip()))
    try:
        value = json.loads(lines[-1])
    except json.JSONDecodeError as error:
        raise UserError(f"{told} ended with the line {shown}; its last line must be {SCORE}") from error
    if isinstance(value, dict):
        if "score" not in value:
            raise UserError(f"{told} ended with {shown}; a JSON object needs the key `score`")
        value = value["score"]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UserError(f"{told} gave {shown}; the score must be {SCORE}")
    return _finite(float(value), told)


def export_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a trained proxy as any transformers program loads it; its folder appears when it is whole."""
    # A LoRA is merged in place, so the model is not to be used again. Attention of our own, the cache switched off in
    # training and an unset end of text are put back to what a program that generates expects.
    from ideal_proxy.proxy.pretrained import quiet_libraries

    if hasattr(model, "merge_and_unload"):
        model = model.float().merge_and_unload()  # a base kept in bfloat16 would round the updates away
    remove_model(folder)
    with whole(folder) as part:
        part.mkdir()
        with quiet_libraries():
            save_pretrained(model, part)
        save_pretrained(tokenizer, part)
        for name in ("config.json", "generation_config.json"):
            path = part / name
            if not path.exists():
                continue
            settings = json.loads(path.read_text(encoding="utf-8"))
            settings["use_cache"] = True
            for key in ("eos_token_id", "pad_token_id"):
                if settings.get(key) is None and getattr(tokenizer, key, None) is not None:
                    settings[key] = getattr(tokenizer, key)
            path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        path = (
            part / "tokenizer_config.json"
        )  # transformers below 5 would make token types, which no causal model takes
        settings = {"model_input_names": ["input_ids", "attention_mask"]} | json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def remove_model(folder: Path) -> None:
    """Remove an exported model and what half-written ones left."""
    shutil.rmtree(folder, ignore_errors=True)
    if folder.parent.is_dir():
        for leftover in folder.parent.glob(f".{folder.name}.*.part"):
            shutil.rmtree(leftover, ignore_errors=True)


def _run_command(
    spec: MetricSpec, model: Path, seed: int, device: str, should_stop: Callable[[], bool] | None
) -> float:
    """Run a command in a process group of its own, and read its last line."""
    words = command_arguments(spec, model, seed)
    environment = {
        **os.environ,
        # `python` is the interpreter that ideal-proxy runs in, whether or not its environment is activated.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        **_told(spec, model, seed, device), "PYTHONUNBUFFERED": "1",
    }  # fmt: skip
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=out, stderr=errors, cwd=spec.folder, env=environment,
                start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise UserError(
                f"{spec.told} cannot be started ({error.strerror or error}: {error.filename or words[0]}); "
                "correct metric.command"
            ) from error
        with _ended_with_us(process):
            _wait(process, spec, should_stop, errors)
        if process.returncode:
            how = f"exit status {process.returncode}" if process.returncode > 0 else f"signal {-process.returncode}"
            raise UserError(f"{spec.told} ended with {how}{_last_words(errors)}")
        return parse_score(_tail(out), spec.told)


@contextlib.contextmanager
def _ended_with_us(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """End a process group when this block is left or this process dies, however it dies: a guard waits for our end."""
    read, write = os.pipe()
    command = [sys.executable, "-I", "-S", "-c", GUARD, str(process.pid)]
    guard = subprocess.Popen(command, stdin=read, start_new_session=True)
    os.close(read)
    try:
        yield
    finally:
        os.close(write)
        guard.wait()
        process.wait()


def _wait(
    process: subprocess.Popen[bytes],
    spec: MetricSpec,
    should_stop: Callable[[], bool] | None,
    errors: IO[bytes],
) -> None:
    """Wait for a command's end; it is an error where it takes too long or is not wanted any more."""
    deadline = time.monotonic() + spec.timeout_seconds
    while process.poll() is None:
        if should_stop is not None and should_stop():
            raise MetricStopped
        if time.monotonic() > deadline:
            raise UserError(
                f"{spec.told} took longer than {spec.timeout_seconds:g} s and was ended{_last_words(errors)}; "
                "raise metric.timeout_seconds, or judge fewer items"
            )
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(POLL_SECONDS)


def _told(spec: MetricSpec, model: Path, seed: int, device: str) -> dict[str, str]:
    """What a metric finds in its environment."""
    return {
        "IDEAL_PROXY_MODEL": str(model), "IDEAL_PROXY_SPLIT": spec.split, "IDEAL_PROXY_SEED": str(seed),
        "IDEAL_PROXY_DEVICE": device, "IDEAL_PROXY_CAPABILITY": spec.capability,
    }  # fmt: skip


def _call_function(spec: MetricSpec, model_folder: Path, seed: int, device: str) -> float:
    """Call a Python function on the loaded model; it changes neither random states nor gradients here."""
    function = load_function(spec)
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ideal_proxy.proxy.pretrained import quiet_libraries

    options: dict[str, Any] = {"local_files_only": True}
    with quiet_libraries():
        tokenizer = AutoTokenizer.from_pretrained(str(model_folder), **options)
        loaded: Any = AutoModelForCausalLM.from_pretrained(str(model_folder), dtype=torch.float32, **options)
    model = loaded.to(device).eval()
    states = random.getstate(), np.random.get_state()  # noqa: NPY002 (what a user's function may draw from)
    told = _told(spec, model_folder.resolve(), seed, device)
    before = {name: os.environ.get(name) for name in told}
    os.environ |= told
    place = torch.device(device)
    forked = [place] if place.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=forked), torch.no_grad(), _deadline(spec.timeout_seconds):
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            value = function(model, tokenizer, spec.split)
    except _TooLong:
        raise UserError(
            f"{spec.told} took longer than {spec.timeout_seconds:g} s and was ended; raise metric.timeout_seconds, or "
            "judge fewer items"
        ) from None
    except Exception as error:
        message = str(error).strip().replace("\n", " ")[:STDERR_CHARACTERS]
        raise UserError(f"{spec.told} failed: {type(error).__name__}{f': {message}' if message else ''}") from error
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        for name, old in before.items():
            if old is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = old
    if isinstance(value, dict) and "score" in value:
        value = value["score"]
    try:
        if isinstance(value, (bool, str)):
            raise TypeError
        return _finite(float(value), spec.told)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{spec.told} returned {str(value)[:60]!r}; it must return a number, or a dict with `score`"
        ) from error


def load_function(spec: MetricSpec) -> Callable[..., Any]:
    """Import a metric's function."""
    folder = str(Path(spec.folder).resolve())
    if folder not in sys.path:
        sys.path.append(folder)  # never before the standard library: a `json.py` there must not take its place
    return load_entry_point(spec.python, told=spec.told, folder=spec.folder, takes="give package.module:function")


@contextlib.contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """Interrupt what runs here after so long; in another thread than the main one nothing can."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def too_long(*_: Any) -> None:
        raise _TooLong

    old = signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def _finite(value: float, told: str) -> float:
    if not math.isfinite(value):
        raise UserError(
            f"{told} gave {value}; the score must be a finite number, so say what counts where there is none"
        )
    return value


def _tail(file: IO[bytes]) -> str:
    """Read the end of a file that a command wrote."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - TAIL_BYTES))
    return file.read().decode("utf-8", errors="replace")


def _last_words(errors: IO[bytes]) -> str:
    """Quote the last lines that a command wrote to stderr."""
    lines = [line.strip() for line in _tail(errors).splitlines() if line.strip()]
    text = " / ".join(lines[-STDERR_LINES:])
    return f"; its last words: {text[-STDERR_CHARACTERS:]}" if text else ""
