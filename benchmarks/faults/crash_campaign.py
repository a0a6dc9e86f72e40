"""Kills at seeded moments and damaged files: does the same command go on and end with the same numbers?

    python benchmarks/faults/crash_campaign.py --cases 200

A small search (three demo domains, 0.1M proxies), an `apply` and a `scale-up` of its mixture are run undisturbed once.
Each case then starts one of them and kills it, in three of four cases the search: its driver, one worker or all of
them. Half of the kills come at a random time, half just before or after one system call (rename, fsync, opening a
file to write, unlink) of the process that is killed. A case that did not kill is drawn again. A search may begin where
an earlier kill left it, at a quarter, half or three quarters of its time, so that late moments are met as often. In a
third of the cases a random file of the folder is then torn, emptied, zeroed or has one bit flipped. The same command
follows until it ends. A case is `same` where `mixture.json` and the losses of every run (the model's weights and
losses of a `scale-up`, the rows of an `apply`) equal the undisturbed ones, `said` where a damaged file is named in one
sentence instead, and `lost` otherwise. Finished runs whose marker was set again are counted as repeated, but for the
damaged one. Cases are appended to `crash_campaign.jsonl` as they end; the same command goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import crash_shim
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent
CASES = RESULTS / "crash_campaign.jsonl"
CONFIG = """
name: small
domains:
  - {name: strings, path: "demo:strings?rows=900", base: "8%"}
  - {name: formats, path: "demo:formats?rows=900"}
  - {name: facts, path: "demo:facts?rows=900"}
capabilities:
  - {name: strings, path: "demo:strings?rows=120&split=reference"}
  - {name: formats, path: "demo:formats?rows=120&split=reference"}
proxy: {size: 0.1M, vocabulary: 300, context: 48, fraction: 0.2, batch_rows: 32, learning_rate: 0.003}
swarm: {runs: 6, workers: 2}
verify: {pairs: 3, max_pairs: 3}
rounds: 1
"""
EXECUTED = 8
"""The first cases start their processes as a user does; later ones fork them from one that has imported everything."""
SHIM = """
import sys
sys.path.insert(0, {here!r})
import crash_shim
crash_shim.install("worker" if "ideal_proxy.swarm.worker" in " ".join(sys.orig_argv) else "driver")
"""
CALLS = ("rename", "fsync", "open", "unlink")
STAGES = (0.25, 0.5, 0.75)
COMMANDS = {
    "search": ["search", "mix.yaml"],
    "apply": ["apply", "search-truth"],
    "scale-up": ["scale-up", "search-truth", "--model", "scratch:0.1M", "--fraction", "0.5", "--batch-rows", "32",
                 "--save-steps", "5", "--evaluations", "0"],
}  # fmt: skip
REFUSABLE = ("config.yaml", "lock", "log.txt")  # the user's own settings cannot be made anew


def environment(work: Path, crash: str | None) -> dict[str, str]:
    """Give what a process is told, with the shim where a system call is to kill it."""
    path = [str(ROOT)] if crash is None else [str(work / "shim"), str(ROOT)]
    (work / "crashed").unlink(missing_ok=True)
    return {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(path), "CRASH_AT": crash or "",
            "CRASH_MARK": str(work / "crashed")}  # fmt: skip


def start(command: list[str], work: Path, crash: str | None = None, *, fork: bool = False) -> Any:
    """Start the program."""
    told = environment(work, crash)
    log = open(work / "last.txt", "wb")  # noqa: SIM115 (the process keeps it)
    if fork:
        return crash_shim.Forked(command, told, work, log.fileno())
    return subprocess.Popen(
        [sys.executable, "-m", "ideal_proxy.cli", *command], env={**os.environ, **told}, cwd=work,
        start_new_session=True, stdout=log, stderr=log,
    )  # fmt: skip


def workers_of(driver: int) -> list[int]:
    """Return the processes that a driver started."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == driver:
                found.append(int(entry.name))
    return found


def numbers(out: Path, command: str) -> Any:
    """Read what a command ended with, but for times and places."""
    if command == "apply":
        return (out / "train.jsonl").read_bytes()
    if command == "scale-up":
        result = json.loads((out / "result.json").read_text(encoding="utf-8"))
        weights = [path.read_bytes() for path in sorted(out.glob("runs/*/model/model.safetensors"))]
        losses = [
            {name: array.tolist() for name, array in np.load(path).items()} for path in sorted(out.glob("runs/*/*.npz"))
        ]
        return result["capabilities"], losses, weights
    value = json.loads((out / "mixture.json").read_text(encoding="utf-8"))
    runs = {
        path.parent.name: json.loads(path.read_text(encoding="utf-8"))["reference_loss"]
        for path in sorted((out / "runs").glob("*/metrics.json"))
    }
    return {"mixture": {k: v for k, v in value.items() if k not in {"created", "provenance"}}, "runs": runs}


def finished(out: Path) -> dict[str, tuple[int, int]]:
    """Return the runs that are finished, and which file says so since when."""
    marks = {path.parent.name: path.stat() for path in out.glob("runs/*/complete")}
    return {name: (state.st_ino, state.st_mtime_ns) for name, state in marks.items()}


def damage(out: Path, rng: random.Random) -> dict[str, str] | None:
    """Hurt one file of a run directory."""
    files = [path for path in sorted(out.rglob("*")) if path.is_file() and path.name not in REFUSABLE]
    if not files:
        return None
    path, how = rng.choice(files), rng.choice(("torn", "empty", "zeros", "flipped"))
    content = bytearray(path.read_bytes())
    if how == "torn":
        content = content[: len(content) // 2]
    elif how == "empty":
        content = bytearray()
    elif how == "zeros":
        content = bytearray(len(content))
    elif content:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    return {"file": str(path.relative_to(out)), "how": how}


def kill_at_call(
    command: list[str], work: Path, who: str, calls: dict[str, int], rng: random.Random, fork: bool
) -> str | None:
    """Start a command and let one system call kill it; say which, or None where it was not met."""
    known = [name for name in CALLS if calls.get(f"{who}-{name}")]
    if not known:  # at so late a stage that no worker is needed
        return None
    call = rng.choice(known)
    most = calls[f"{who}-{call}"] // (2 if who == "worker" else 1)
    crash = f"{who}:{call}:{rng.randint(1, max(1, most))}:{rng.choice(('before', 'after'))}"
    start(command, work, crash, fork=fork).wait()
    return crash if (work / "crashed").exists() else None


def kill_at_time(
    command: list[str], work: Path, who: str, longest: float, rng: random.Random, fork: bool
) -> str | None:
    """Start a command and kill it at a random time; say when, or None where it had ended."""
    moment = rng.uniform(0.3, longest)
    process = start(command, work, fork=fork)
    time.sleep(moment)
    while who == "worker" and process.poll() is None and not workers_of(process.pid):
        time.sleep(0.05)
    pids = workers_of(process.pid) if process.poll() is None else []
    killed = {"driver": [process.pid], "worker": pids[:1] and [rng.choice(pids)], "all": [process.pid, *pids]}[who]
    met = process.poll() is None and bool(killed)
    for pid in killed if met else []:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
    return f"{who} after {moment:.1f} s" if met else None


def case(number: int, work: Path, known: dict[str, Any]) -> dict[str, Any]:
    """Run one case."""
    rng = random.Random(number)
    name = {3: "scale-up", 7: "apply"}.get(number % 8, "search")
    out = work / name
    fork = number >= EXECUTED
    told: dict[str, Any] = {"case": number, "command": name}
    killed = None
    while killed is None:
        shutil.rmtree(out, ignore_errors=True)
        stage = rng.randint(0, len(STAGES)) if name == "search" else 0
        if stage:
            shutil.copytree(work / f"stage-{stage}", out)
        command = [*COMMANDS[name], "--out", out.name]
        facts = known[f"{name}-{stage}"]
        if (number // 8 + number) % 2:
            who = rng.choice(("driver", "worker")) if name == "search" else "driver"
            killed = kill_at_call(command, work, who, facts["calls"], rng, fork)
        else:
            who = rng.choice(("driver", "worker", "all")) if name == "search" else "driver"
            killed = kill_at_time(command, work, who, facts["seconds"] * (0.6 if fork else 1), rng, fork)
    told |= {"stage": stage, "killed": killed}
    before = finished(out)
    if name != "apply" and rng.random() < 1 / 3 and out.exists():
        told["damaged"] = damage(out, rng)
    hurt = (told.get("damaged") or {}).get("file", "")
    resumed = [*command, *(["--resume"] if name == "scale-up" else [])]
    for _ in range(3):
        code = start(resumed, work, fork=fork).wait()
        last = (work / "last.txt").read_text(errors="replace").strip().rpartition("\n")[2]
        if code == 0:
            break
    after = finished(out)
    repeated = [run for run, mark in before.items() if after.get(run) != mark and f"runs/{run}/" not in hurt]
    told |= {"complete_before": len(before), "repeated": len(repeated), "code": code}
    with contextlib.suppress(ValueError, OSError, KeyError):
        if code == 0 and numbers(out, name) == known[name]:
            return told | {"ended": "same"}
    named = hurt and any(text in last for text in (hurt, str(Path(hurt).parent)))
    return told | {
        "ended": "said" if code == 1 and last.startswith("error: ") and named else "lost",
        "last": last[:300],
    }


def report(cases: list[dict[str, Any]], machine: str) -> str:
    """Write the table."""
    kinds = Counter(
        (entry["command"], ("at a call" if ":" in entry["killed"] else "at a time")
         + (", file damaged" if entry.get("damaged") else ""), entry["ended"]) for entry in cases
    )  # fmt: skip
    rows = sorted({(command, how) for command, how, _ in kinds})
    lines = [
        "# Killed and damaged", "", "`python benchmarks/faults/crash_campaign.py --cases N`",
        "", f"{len(cases)} kills, {sum(':' in entry['killed'] for entry in cases)} of them at system calls; "
        f"{sum(entry['repeated'] for entry in cases)} of {sum(entry['complete_before'] for entry in cases)} finished "
        f"runs repeated ({machine}).", "",
        "| command | killed | same numbers | damaged file named | lost |", "|---|---|---|---|---|",
    ]  # fmt: skip
    lines += [
        f"| {command} | {how} | " + " | ".join(str(kinds[command, how, end]) for end in ("same", "said", "lost")) + " |"
        for command, how in rows
    ]
    lost = [entry for entry in cases if entry["ended"] == "lost"]
    lines += ["", *(f"* lost: `{json.dumps(entry)}`" for entry in lost)]
    return "\n".join(lines).rstrip() + "\n"


def undisturbed(work: Path) -> dict[str, Any]:
    """Run every command undisturbed: its numbers, its time, and how often it makes each system call."""
    known: dict[str, Any] = {}

    def measured(name: str, stage: int, out: str) -> None:
        for path in work.glob("crashed-*"):
            path.unlink()
        started = time.monotonic()
        if start([*COMMANDS[name], "--out", out], work, "count::0:").wait():
            raise SystemExit((work / "last.txt").read_text())
        calls = {path.name.removeprefix("crashed-"): path.stat().st_size for path in work.glob("crashed-*")}
        known[f"{name}-{stage}"] = {"seconds": time.monotonic() - started, "calls": calls}

    for name in COMMANDS:
        shutil.rmtree(work / f"{name}-truth", ignore_errors=True)
        measured(name, 0, f"{name}-truth")
        known[name] = numbers(work / f"{name}-truth", name)
    for stage, share in enumerate(STAGES, 1):
        out = work / f"stage-{stage}"
        shutil.rmtree(out, ignore_errors=True)
        process = start([*COMMANDS["search"], "--out", out.name], work)
        time.sleep(share * known["search-0"]["seconds"])
        process.kill()
        process.wait()
        time.sleep(1)  # its workers end
        shutil.rmtree(work / "search", ignore_errors=True)
        shutil.copytree(out, work / "search")
        measured("search", stage, "search")
        if numbers(work / "search", "search") != known["search"]:
            raise SystemExit(f"stage {stage} ends with other numbers")
    return known


def main() -> None:
    """Go on until there are so many cases."""
    from ideal_proxy.provenance import provenance
    from ideal_proxy.store import atomic_write_text

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/crash_campaign"))
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--at-once", type=int, default=2)
    options = parser.parse_args()
    work = options.work.resolve()
    (work / "shim").mkdir(parents=True, exist_ok=True)
    (work / "shim" / "sitecustomize.py").write_text(SHIM.format(here=str(RESULTS)))
    (work / "mix.yaml").write_text(CONFIG)
    kept = work / "known.pickle"  # ours, of this very search
    known = pickle.loads(kept.read_bytes()) if kept.exists() else undisturbed(work)
    kept.write_bytes(pickle.dumps(known))
    crash_shim.preload()
    done = {entry["case"] for entry in read_cases()}
    children = []
    for part in range(options.at_once):
        if child := os.fork():
            children.append(child)
            continue
        own = work / f"part-{part}"
        if not own.exists():
            own.mkdir()
            for entry in [*work.glob("stage-*"), work / "search-truth", work / "shim", work / "mix.yaml"]:
                (shutil.copytree if entry.is_dir() else shutil.copy)(entry, own / entry.name)
        for number in range(part, options.cases, options.at_once):
            if number not in done:
                line = json.dumps(case(number, own, known))
                with open(CASES, "a") as file:
                    file.write(line + "\n")
                print(line, flush=True)
        os._exit(0)
    failed = [child for child in children if os.waitpid(child, 0)[1]]
    cases = sorted(read_cases(), key=lambda entry: int(entry["case"]))
    atomic_write_text(CASES, "".join(json.dumps(entry) + "\n" for entry in cases))
    machine = str(provenance()["machine"]["processor"])
    atomic_write_text(RESULTS / "crash_campaign.md", report(cases, machine))
    if failed or any(entry["ended"] == "lost" for entry in cases):
        raise SystemExit("a case was lost")


def read_cases() -> list[dict[str, Any]]:
    """Read the cases so far."""
    return [json.loads(line) for line in CASES.read_text().splitlines()] if CASES.exists() else []


if __name__ == "__main__":
    main()
