"""What several tests build: files of rows, run files, small swarms, facts of sources, and calls of the program."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import forked
import numpy as np

from ideal_proxy.config import SearchConfig, dump_config, parse_config
from ideal_proxy.data.tokens import Batch, TokenRows
from ideal_proxy.mixture.apply import Applied
from ideal_proxy.pipeline.facts import CapabilityFacts, DomainFacts
from ideal_proxy.proxy.records import TrainSettings
from ideal_proxy.swarm.context import RunSpec, SwarmContext, load_result, prepare_context
from ideal_proxy.swarm.scheduler import Swarm, SwarmEvent, SwarmOutcome

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
PLAIN = {"COLUMNS": "80", "NO_COLOR": "1", "TERM": "dumb"}
PROGRAM = [sys.executable, "-m", "ideal_proxy.cli"]


def read_back(applied: Applied) -> list[dict[str, Any]]:
    """Read rows that `apply` wrote, in training order."""
    return [json.loads(line) for path in applied.files for line in path.read_bytes().splitlines()]


def run_swarm(
    specs: Sequence[RunSpec],
    context: SwarmContext,
    run_dir: Path,
    *,
    workers: int | None = None,
    on_event: Callable[[SwarmEvent], None] | None = None,
) -> SwarmOutcome:
    """Do runs with workers of their own."""
    with Swarm(context, run_dir, workers=workers) as swarm:
        return swarm.run(specs, on_event=on_event)


def environment(**changes: str) -> dict[str, str]:
    """Give the environment of a process that runs this checkout, one thread, 80 columns, no colour."""
    return {**os.environ, **PLAIN, "PYTHONPATH": f"{ROOT}{os.pathsep}{TESTS}", "OMP_NUM_THREADS": "1", **changes}


def run(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Call the program in this process, which spares its start."""
    from ideal_proxy.cli import main

    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), contextlib.chdir(cwd),
        mock.patch.object(sys, "argv", ["ideal-proxy", *arguments]), mock.patch.dict(os.environ, PLAIN),
    ):  # fmt: skip
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def start(*arguments: str, cwd: Path, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    """Run the program in a process of its own, forked, in a folder."""
    return forked.run([*PROGRAM, *arguments], env=environment(), cwd=cwd, timeout=timeout)


def gone(pid: int) -> bool:
    """Whether a process has ended (a zombie that nobody has reaped yet has)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    status = Path(f"/proc/{pid}/stat")
    return status.is_file() and status.read_text().rpartition(")")[2].split()[0] == "Z"


# Files of rows and run files


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> str:
    """Write rows as JSONL, their folder too, and return the path as a source."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def config_of(domains: Sequence[str], capabilities: Sequence[str], **changes: Any) -> SearchConfig:
    """Give a run file over demo domains of these names."""
    named = {
        kind: [{"name": name, "path": f"demo:{name}"} for name in names]
        for kind, names in (("domains", domains), ("capabilities", capabilities))
    }
    return parse_config({**named, **changes})


SMALL = ("strings", "formats", "facts")


def small_search(**changes: Any) -> dict[str, Any]:
    """Give a run file whose search takes seconds: three demo domains, base with almost no `strings`.

    One worker, for each that starts loads its libraries for 5 s; the learning rate is given, which spares nine runs.
    """
    return {
        "name": "small",
        "domains": [
            {"name": name, "path": f"demo:{name}?rows=900", "base": "8%" if name == "strings" else "100%"}
            for name in SMALL
        ],
        "capabilities": [{"name": name, "path": f"demo:{name}?rows=120&split=reference"} for name in SMALL[:2]],
        "proxy": {
            "size": "0.1M",
            "vocabulary": 300,
            "context": 48,
            "fraction": 0.2,
            "batch_rows": 16,
            "learning_rate": 0.006,
        },
        "swarm": {"runs": 8, "workers": 1},
        "verify": {"pairs": 2, "max_pairs": 2},
        "rounds": 1,
        **changes,
    }  # fmt: skip


def write_small_search(folder: Path, **changes: Any) -> Path:
    """Write the run file of `small_search` as `mix.yaml`."""
    path = folder / "mix.yaml"
    path.write_text(dump_config(parse_config(small_search(**changes))), encoding="utf-8")
    return path


def search_command(folder: Path, out: str) -> list[str]:
    return [*PROGRAM, "search", str(folder / "mix.yaml"), "--out", str(folder / out)]


def board(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Read what TensorBoard would show of a folder: by name, steps and values."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    seen = EventAccumulator(str(folder)).Reload()
    return {name: [(e.step, e.value) for e in seen.Scalars(name)] for name in seen.Tags()["scalars"]}


def without_times(path: Path) -> dict[str, Any]:
    """Read a mixture file without what differs between two equal searches."""
    value = json.loads(path.read_text(encoding="utf-8"))
    value["verdict_text"] = re.sub(r"more, [^)]*", "more", value["verdict_text"] or "")  # how long they would take
    return {key: content for key, content in value.items() if key not in ("created", "provenance")}


def domain_facts(name: str, **changes: Any) -> DomainFacts:
    """Give what preparing found out about a domain of 2,000 rows of 50 tokens."""
    facts: dict[str, Any] = {
        "source": f"demo:{name}", "format": "alpaca", "fingerprint": "0" * 64, "available": 2_000, "base": 1_000,
        "lower": 0, "upper": 8_000, "tokens_per_row": 50.0, "supervised_per_row": 20.0, "reserved": 100,
        "truncated": 0, "dropped": 0, "longest": 90,
    }  # fmt: skip
    return DomainFacts(**{"name": name, **facts, **changes})


def capability_facts(name: str, **changes: Any) -> CapabilityFacts:
    """Give what preparing found out about a capability of 400 reference rows."""
    facts: dict[str, Any] = {
        "source": f"demo:{name}", "format": "alpaca", "fingerprint": "0" * 64, "rows": 400, "search_rows": 200,
        "verify_rows": 200, "supervised_tokens": 9000, "truncated": 0,
    }  # fmt: skip
    return CapabilityFacts(**{"name": name, **facts, **changes})


# A small swarm: two domains that count upwards by twos and by fives

VOCABULARY = 48


def make_rows(count: int, step: int, seed: int) -> TokenRows:
    """Rows that count upwards by `step`, modulo the vocabulary."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(6, 25, count)
    position = np.concatenate([np.arange(n) for n in lengths])
    first = np.repeat(rng.integers(0, VOCABULARY, count), lengths)
    return TokenRows(
        ids=((first + step * position) % VOCABULARY).astype(np.int32), supervised=position >= 3,
        offsets=np.concatenate(([0], np.cumsum(lengths))).astype(np.int64),
        keys=rng.integers(0, 2**63, count).astype(np.uint64), source_index=np.arange(count),
    )  # fmt: skip


def collate(rows: TokenRows, chosen: Sequence[int]) -> Batch:
    """Lay rows of one set end to end as the proxies are given them."""
    from ideal_proxy.proxy.model import collate_across

    return collate_across([rows], np.zeros(len(chosen), dtype=np.int64), np.asarray(chosen, dtype=np.int64))


def make_context(folder: Path, **changes: Any) -> SwarmContext:
    """Write the context of a swarm over `twos` and `fives`, with a short warm start."""
    settings: dict[str, Any] = {
        "folder": folder, "domains": ("twos", "fives"), "references": ("twos", "fives"), "available": (200, 200),
        "size": "0.1M", "vocab_size": VOCABULARY, "context": 32, "warm": True, "warm_tokens": 600,
        "train": TrainSettings(batch_rows=16),
    }  # fmt: skip
    return prepare_context(
        SwarmContext(**{**settings, **changes}),
        domains=[make_rows(220, 2, 0), make_rows(240, 5, 1)],
        references=[make_rows(30, 2, 2), make_rows(30, 5, 3)],
        reserved=[make_rows(60, 2, 4), make_rows(60, 5, 5)],
    )


def spec(run: str, rows: tuple[int, ...], seed: int = 0, **changes: Any) -> RunSpec:
    given = {"id": run, "rows": rows, "volumes": rows, "seed": seed, "role": "design", "learning_rate": 5e-3}
    return RunSpec(**{**given, **changes})


SPECS = [
    spec("few-twos", (40, 200)),
    spec("few-fives", (320, 40)),
    spec("again", (320, 40), seed=1),
    spec("nothing", (0, 0)),
]


def same(one: Path, two: Path, run: str) -> bool:
    """Whether a run gave the same bits in two folders."""
    a, b = load_result(one, run), load_result(two, run)
    return a.metrics["train_loss"] == b.metrics["train_loss"] and all(
        np.array_equal(a.losses[name].loss_sum, b.losses[name].loss_sum) for name in a.losses
    )


def interrupted(finished: Path, folder: Path, complete: int) -> Path:
    """Copy a finished search as a kill would have left it when so many runs were complete, by the files' times."""
    shutil.copytree(finished, folder)
    done = sorted(path.stat().st_mtime_ns for path in folder.rglob("runs/*/complete"))
    for path in folder.rglob("*"):
        if path.is_file() and path.stat().st_mtime_ns > done[complete - 1]:
            path.unlink()
    assert not (folder / "mixture.json").exists()
    assert complete <= len(list(folder.rglob("runs/*/complete"))) < len(done)
    return folder


WHOLE = {
    "proxy": {"size": "0.1M", "vocabulary": 300, "context": 48, "fraction": 0.2, "batch_rows": 16},
    "swarm": {"runs": 8, "workers": 2}, "verify": {"pairs": 3, "max_pairs": 3},
}  # fmt: skip


def whole_search(place: Path) -> Path:
    """Give the folder of one finished search that is run once for all tests: what it prints, `mix.yaml` and `run`.

    It is started as a user's, with two workers, and tries learning rates. Nobody writes into `run`: copy it.
    """
    from filelock import FileLock

    folder = place / "whole-search"
    with FileLock(f"{folder}.lock"):
        if not (folder / "said.json").exists():
            folder.mkdir(exist_ok=True)
            write_small_search(folder, **WHOLE)
            command = [*PROGRAM, "search", "mix.yaml", "--out", "run"]
            answer = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False, cwd=folder)
            assert answer.returncode == 0, answer.stderr
            (folder / "said.json").write_text(json.dumps([answer.stdout, answer.stderr]), encoding="utf-8")
    return folder
