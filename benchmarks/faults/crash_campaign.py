"""Kills at seeded moments and damaged files: does the same command go on and end with the same numbers?

    python benchmarks/faults/crash_campaign.py --cases 200

A small search (three demo domains, 0.1M proxies) is run undisturbed once. Each case then runs it again and kills its
driver, one worker or all of them, at a random time or just before or after one system call (rename, fsync, opening a
file to write) of the process that is killed; in a third of the cases a random file of the run directory is then torn,
emptied, zeroed or has one bit flipped. The same command follows until it ends. A case is `same` where `mixture.json`
and the losses of every run equal the undisturbed ones, `said` where a damaged file is named in one sentence instead,
and `lost` otherwise. Every eighth case kills `apply` instead. Cases are appended to `crash_campaign.jsonl` as they end;
the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

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
SHIM = """
import builtins, os, signal, sys
who = "worker" if "ideal_proxy.swarm.worker" in " ".join(sys.orig_argv) else "driver"
target, call, number, when = os.environ["CRASH_AT"].split(":")
if who == target:
    real = {"replace": os.replace, "fsync": os.fsync, "open": builtins.open}[call]
    count = 0
    def shimmed(*arguments, **options):
        global count
        writes = call != "open" or "w" in str(options.get("mode", arguments[1] if len(arguments) > 1 else "r"))
        count += writes
        if writes and count == int(number):
            try:  # once: a worker that is started in the place of a killed one lives
                os.close(os.open(os.environ["CRASH_MARK"], os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return real(*arguments, **options)
            if when == "after":
                real(*arguments, **options)
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **options)
    setattr(builtins if call == "open" else os, call, shimmed)
"""
REFUSABLE = ("config.yaml", "lock", "log.txt")  # the user's own settings cannot be made anew


def start(command: list[str], work: Path, crash: str | None = None) -> subprocess.Popen[bytes]:
    """Start the program, with the shim where a system call is to kill it."""
    path = [str(ROOT)] if crash is None else [str(work / "shim"), str(ROOT)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(path), "CRASH_AT": crash or ""}
    environment["CRASH_MARK"] = str(work / "crashed")
    (work / "crashed").unlink(missing_ok=True)
    log = open(work / "last.txt", "wb")  # noqa: SIM115 (the process keeps it)
    return subprocess.Popen(
        [sys.executable, "-m", "ideal_proxy.cli", *command], env=environment, cwd=work, start_new_session=True,
        stdout=log, stderr=log,
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


def numbers(out: Path) -> dict[str, Any]:
    """Read what a search ended with, but for times and places."""
    value = json.loads((out / "mixture.json").read_text(encoding="utf-8"))
    runs = {
        path.parent.name: json.loads(path.read_text(encoding="utf-8"))["reference_loss"]
        for path in sorted((out / "runs").glob("*/metrics.json"))
    }
    return {"mixture": {k: v for k, v in value.items() if k not in {"created", "provenance"}}, "runs": runs}


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


def case(number: int, work: Path, whole: float, truth: dict[str, Any]) -> dict[str, Any]:
    """Run one case."""
    rng = random.Random(number)
    apply = number % 8 == 7
    out = work / ("applied" if apply else "search")
    shutil.rmtree(out, ignore_errors=True)
    command = ["apply", "undisturbed", "--out", out.name] if apply else ["search", "mix.yaml", "--out", out.name]
    told: dict[str, Any] = {"case": number, "command": command[0]}
    if rng.random() < 0.5:
        who = "driver" if apply else rng.choice(("driver", "worker"))
        call = rng.choice(("replace", "fsync", "open"))
        most = (3 if apply else 60) if who == "driver" else 12
        crash = f"{who}:{call}:{rng.randint(1, most)}:{rng.choice(('before', 'after'))}"
        process = start(command, work, crash)
        process.wait()
        told["killed"] = crash
    else:
        who, moment = rng.choice(("driver", "worker", "all")), rng.uniform(0.5, 4 if apply else whole)
        process = start(command, work)
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            if who == "driver":
                process.kill()
            elif who == "all":
                os.killpg(process.pid, signal.SIGKILL)
            elif pids := workers_of(process.pid):
                os.kill(rng.choice(pids), signal.SIGKILL)
        process.wait()
        told["killed"] = f"{who} after {moment:.1f} s"
    if not apply and rng.random() < 1 / 3 and out.exists():
        told["damaged"] = damage(out, rng)
    before = {path.parent.name for path in out.glob("runs/*/complete")}
    for _ in range(3):
        code = start(command, work).wait()
        last = (work / "last.txt").read_text(errors="replace").strip().rpartition("\n")[2]
        if code == 0:
            break
    told |= {"complete_before": len(before), "code": code}
    if code == 0 and apply:
        same = (out / "train.jsonl").read_bytes() == (work / "truth" / "train.jsonl").read_bytes()
        return told | {"ended": "same" if same else "lost"}
    if code == 0 and numbers(out) == truth:
        return told | {"ended": "same"}
    named = told.get("damaged") and any(
        name in last for name in (told["damaged"]["file"], str(Path(told["damaged"]["file"]).parent))
    )
    return told | {
        "ended": "said" if code == 1 and last.startswith("error: ") and named else "lost",
        "last": last[:300],
    }


def report(cases: list[dict[str, Any]], machine: str) -> str:
    """Write the table."""
    kinds = Counter(
        (entry["command"], "damaged" if entry.get("damaged") else "killed at a call" if ":" in entry["killed"]
         else "killed at a time", entry["ended"]) for entry in cases
    )  # fmt: skip
    rows = sorted({(command, how) for command, how, _ in kinds})
    lines = [
        "# Killed and damaged", "", "`python benchmarks/faults/crash_campaign.py --cases N`",
        "", f"{len(cases)} cases ({machine}).", "",
        "| command | what befell it | same numbers | damaged file named | lost |", "|---|---|---|---|---|",
    ]  # fmt: skip
    lines += [
        f"| {command} | {how} | " + " | ".join(str(kinds[command, how, end]) for end in ("same", "said", "lost")) + " |"
        for command, how in rows
    ]
    lost = [entry for entry in cases if entry["ended"] == "lost"]
    lines += ["", *(f"* lost: `{json.dumps(entry)}`" for entry in lost)]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    """Go on until there are so many cases."""
    from ideal_proxy.store import atomic_write_text, provenance

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/crash_campaign"))
    parser.add_argument("--cases", type=int, default=20)
    options = parser.parse_args()
    work = options.work.resolve()
    (work / "shim").mkdir(parents=True, exist_ok=True)
    (work / "shim" / "sitecustomize.py").write_text(SHIM)
    (work / "mix.yaml").write_text(CONFIG)
    shutil.rmtree(work / "undisturbed", ignore_errors=True)
    started = time.monotonic()
    if start(["search", "mix.yaml", "--out", "undisturbed"], work).wait():
        raise SystemExit((work / "last.txt").read_text())
    whole = time.monotonic() - started
    truth = numbers(work / "undisturbed")
    shutil.rmtree(work / "truth", ignore_errors=True)
    start(["apply", "undisturbed", "--out", "truth"], work).wait()
    cases = [json.loads(line) for line in CASES.read_text().splitlines()] if CASES.exists() else []
    while len(cases) < options.cases:
        cases.append(case(len(cases), work, whole, truth))
        with open(CASES, "a") as file:
            file.write(json.dumps(cases[-1]) + "\n")
        print(json.dumps(cases[-1]), flush=True)
        atomic_write_text(RESULTS / "crash_campaign.md", report(cases, str(provenance()["machine"]["processor"])))
    if any(entry["ended"] == "lost" for entry in cases):
        raise SystemExit("a case was lost")


if __name__ == "__main__":
    main()
