"""Capabilities judged by more than loss: a command or a Python function that scores a trained proxy.

The proxy lies in a folder that `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained` load. A
command is told the folder in its arguments and prints one JSON number, or an object with `score`, as its last line; a
function is called as `function(model, tokenizer, split)` and returns the number. Whatever goes wrong is one sentence.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ideal_proxy.errors import UserError, shortened
from ideal_proxy.hooks import load_entry_point
from ideal_proxy.proxy.items import Items
from ideal_proxy.proxy.process import LAST_WORDS, run_program, written_out
from ideal_proxy.store import save_pretrained, whole

SCORE = "a JSON number, or an object with `score`, `items` or both"


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
    harness: str = ""  # a task of lm-eval, as JSON for `HarnessTask`
    built_in: str = ""  # a score of our own, as JSON for `BuiltIn`
    folder: str = "."  # where the command runs and where modules are looked for too
    timeout_seconds: float = 600.0  # it is ended after so long
    keep_model: bool = False  # leave the exported model in the run's folder

    @property
    def identity(self) -> tuple[str, ...]:
        """What a score depends on besides the run: neither the time allowed nor where the folder lies."""
        return (self.key, self.split, self.command, self.python, *filter(None, (self.harness, self.built_in)))

    @property
    def told(self) -> str:
        """The metric as messages name it."""
        named = self.command or self.python
        if self.harness:
            named = f"lm_eval: {json.loads(self.harness)['lm_eval']}"
        elif self.built_in:
            named = json.loads(self.built_in)["score"]
        return f"the metric of {self.capability} ({shortened(named, 80)})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A score."""

    score: float  # in the metric's own unit
    seconds: float  # what it took
    script: str  # short hash of the files that the command names, or of the function's module; "" where there are none
    items: dict[str, Any] | None = None  # what each item gave, as `Items` writes it; None where nothing says it


def measure(
    spec: MetricSpec,
    model_folder: Path,
    *,
    seed: int,
    device: str = "cpu",
    should_stop: Callable[[], bool] | None = None,
    keys: Collection[int] = (),
) -> Measured:
    """Score one exported model; a score of our own judges the reference rows with these keys."""
    started = time.monotonic()
    if spec.command:
        score, items = _run_command(spec, model_folder.resolve(), seed, device, should_stop)
    else:
        score, items = _call_function(spec, model_folder, seed, device, keys)
    return Measured(
        score=score, seconds=time.monotonic() - started, script=script_hash(spec),
        items=None if items is None else items.to_json(),
    )  # fmt: skip


def command_arguments(spec: MetricSpec, model_folder: Path, seed: int) -> list[str]:
    """Write out a command; no shell reads it."""
    return written_out(spec.command, {"model": model_folder, "split": spec.split, "seed": seed}, spec.told)


def script_hash(spec: MetricSpec) -> str:
    """Identify the code that a metric runs, as far as it can be seen."""
    if spec.command:
        paths = [Path(spec.folder) / word for word in shlex.split(spec.command) if "{" not in word]
    else:
        paths = [Path(str(getattr(sys.modules.get(spec.python.partition(":")[0]), "__file__", None) or ""))]
    code = [path.read_bytes() for path in paths if path.is_file()]
    return hashlib.sha256(b"".join(code)).hexdigest()[:12] if code else ""


def parse_score(text: str, told: str) -> tuple[float, Items | None]:
    """Read a command's last line: its score, and what each item gave where it says that."""
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise UserError(f"{told} printed nothing; its last line must be {SCORE}")
    shown = repr(shortened(lines[-1].strip()))
    try:
        value = json.loads(lines[-1])
    except (ValueError, RecursionError) as error:
        raise UserError(f"{told} ended with the line {shown}; its last line must be {SCORE}") from error
    items = None
    if isinstance(value, dict):
        items = Items.read(value["items"], told) if isinstance(value.get("items"), list) else None
        if "score" not in value and items is None:
            raise UserError(f"{told} ended with {shown}; a JSON object needs the key `score`")
        value = value.get("score", None if items is None else items.mean)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UserError(f"{told} gave {shown}; the score must be {SCORE}")
    return _finite(value, told), items


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
) -> tuple[float, Items | None]:
    """Run a command, and read its last line."""
    said = run_program(
        command_arguments(spec, model, seed), told=spec.told, folder=spec.folder, setting="metric.command",
        environment=_told(spec, model, seed, device), seconds=spec.timeout_seconds, should_stop=should_stop,
        too_long="raise metric.timeout_seconds, or judge fewer items",
    )  # fmt: skip
    return parse_score(said, spec.told)


def _told(spec: MetricSpec, model: Path, seed: int, device: str) -> dict[str, str]:
    """What a metric finds in its environment."""
    return {
        "IDEAL_PROXY_MODEL": str(model), "IDEAL_PROXY_SPLIT": spec.split, "IDEAL_PROXY_SEED": str(seed),
        "IDEAL_PROXY_DEVICE": device, "IDEAL_PROXY_CAPABILITY": spec.capability,
    }  # fmt: skip


def _call_function(
    spec: MetricSpec, model_folder: Path, seed: int, device: str, keys: Collection[int] = ()
) -> tuple[float, Items | None]:
    """Call a Python function on the loaded model; it changes neither random states nor gradients here."""
    function = _own_function(spec, seed, keys) if spec.harness or spec.built_in else load_function(spec)
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
    except UserError:
        raise
    except _TooLong:
        raise UserError(
            f"{spec.told} took longer than {spec.timeout_seconds:g} s and was ended; raise metric.timeout_seconds, or "
            "judge fewer items"
        ) from None
    except Exception as error:
        message = str(error).strip().replace("\n", " ")[:LAST_WORDS]
        raise UserError(f"{spec.told} failed: {type(error).__name__}{f': {message}' if message else ''}") from error
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        for name, old in before.items():
            if old is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = old
    items = value if isinstance(value, Items) else None
    if isinstance(value, dict):
        items = Items.read(value["items"], spec.told) if isinstance(value.get("items"), list) else None
        value = value.get("score", items)
    if isinstance(value, Items):
        value = value.mean
    try:
        if isinstance(value, (bool, str)):
            raise TypeError
        return _finite(value if isinstance(value, int) else float(value), spec.told), items
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{spec.told} returned {str(value)[:60]!r}; it must return a number, or a dict with `score`"
        ) from error


def _own_function(spec: MetricSpec, seed: int, keys: Collection[int]) -> Callable[..., Any]:
    """Give a score of our own, or of lm-eval, as a function like the user's."""
    if spec.harness:
        from ideal_proxy.proxy.harness import HarnessTask, harness_items

        task = HarnessTask.read(spec.harness)
        return lambda model, tokenizer, split: harness_items(task, model, tokenizer, split, seed=seed, told=spec.told)
    from ideal_proxy.proxy.built_in import BuiltIn, score_items

    wanted = BuiltIn.read(spec.built_in)
    return lambda model, tokenizer, _: score_items(
        wanted, model, tokenizer, keys, seed=seed, told=spec.told, folder=spec.folder
    )


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
    if not abs(value) <= sys.float_info.max:
        shown = value if isinstance(value, float) else "an integer beyond every float"
        raise UserError(
            f"{told} gave {shown}; the score must be a finite number, so say what counts where there is none"
        )
    return float(value)
