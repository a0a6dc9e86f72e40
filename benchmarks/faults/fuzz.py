"""Feed every reader with bent files for minutes: does anything but a sentence come out, and how long does it take?

    python benchmarks/faults/fuzz.py --minutes 15 --work runs/fuzz

Every target is led by coverage (atheris): three inputs of four are libFuzzer's, one is a seeded mutation of a right
file (other values in their places, bytes cut, changed or put in), which `--way mutations` alone makes without atheris.
Minutes are of processor time. Targets stand in `tests/fuzz_targets.py`. A fault is an exception other than UserError,
or a message above 2,000 characters; faults are told once each, by the line that raised them. `fuzz.json` keeps inputs,
faults, the slowest input and memory, the newest for each target.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULT = Path(__file__).parent / "fuzz"
ALL = ("rows", "mixture", "run file", "template", "run directory", "table", "fit")


def feed(name: str, way: str, seconds: float, seed: int, work: Path) -> dict[str, Any]:
    """Feed one target in this process."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    if way == "coverage":
        import atheris

        with atheris.instrument_imports(include=["ideal_proxy"]):
            from fuzz_targets import fed, mutated, seeds
    else:
        from fuzz_targets import fed, mutated, seeds
    work.mkdir(parents=True, exist_ok=True)
    for content in seeds(name):
        assert fed(name, content, work)
    found: dict[str, Any] = {"target": name, "way": way, "inputs": 0, "faults": {}, "slowest": 0.0, "seconds": 0.0}
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    kept = [began]

    def one(content: bytes) -> None:
        start = time.process_time()
        try:
            fed(name, content, work)
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            frame = next((f for f in reversed(frames) if "ideal_proxy" in f.filename), frames[-1])
            place = f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}"
            if place not in found["faults"]:
                (work / f"fault-{len(found['faults'])}").write_bytes(content)
                found["faults"][place] = str(error)[:200]
        spent = time.process_time() - start
        if spent > found["slowest"]:
            found["slowest"] = spent
            (work / "slowest").write_bytes(content)
        found["inputs"] += 1
        found["seconds"] = time.process_time() - began
        found["mebibytes"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
        if time.process_time() - kept[0] > 20:
            kept[0] = time.process_time()
            (work / "found.json").write_text(json.dumps(found))

    if way == "mutations":
        rng = random.Random(seed)
        while time.process_time() - began < seconds:
            one(mutated(name, rng))
        return found
    corpus = work / "corpus"
    corpus.mkdir(exist_ok=True)
    for number, content in enumerate(seeds(name)):
        (corpus / f"seed-{number}").write_bytes(content)

    def last(content: bytes) -> None:
        one(content)
        if time.process_time() - began > seconds:  # libFuzzer ends the process itself
            (work / "found.json").write_text(json.dumps(found))
            os._exit(0)

    def mutate(content: bytes, most: int, seed: int) -> bytes:
        rng = random.Random(seed)
        return mutated(name, rng)[:most] if rng.random() < 0.25 else bytes(atheris.Mutate(content, most))

    options = [f"-seed={seed + 1}", "-max_len=20000", "-timeout=1200", "-rss_limit_mb=4096", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], last, custom_mutator=mutate)
    atheris.Fuzz()
    return found


def table(found: list[dict[str, Any]]) -> str:
    """Write the result."""
    lines = [
        "# Fuzzing", "", "`python benchmarks/faults/fuzz.py --minutes N`", "",
        "| target | led by | inputs | CPU minutes | faults | slowest, CPU s | memory grown, MiB |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    lines += [
        f"| {e['target']} | {e['way']} | {e['inputs']:,} | {e['seconds'] / 60:.1f} | {len(e['faults'])} | "
        f"{e['slowest']:.1f} | {e['mebibytes']} |"
        for e in found
    ]
    lines += ["", *(f"* {e['target']}: {place}: {text!r}" for e in found for place, text in e["faults"].items())]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    """Feed the targets one after the other, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("runs/fuzz"))
    parser.add_argument("--target", choices=ALL)
    parser.add_argument("--way", choices=("coverage", "mutations"), default="coverage")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        found = feed(options.target, options.way, 60 * options.minutes, options.seed, options.work)
        (options.work / "found.json").write_text(json.dumps(found))
        return
    way = options.way
    for name in [name for name in ALL if options.target in {None, name}]:
        work = options.work / f"{name.replace(' ', '-')}-{way}"
        child = [sys.executable, __file__, "--child", "--target", name, "--way", way, "--work", str(work),
                 "--minutes", str(options.minutes), "--seed", str(options.seed)]  # fmt: skip
        (work / "found.json").unlink(missing_ok=True)
        work.mkdir(parents=True, exist_ok=True)
        with open(work / "log", "wb") as log:
            subprocess.run(child, check=False, stdout=log, stderr=log)
        new = json.loads((work / "found.json").read_text())
        print(json.dumps(new), flush=True)
        kept = json.loads(RESULT.with_suffix(".json").read_text()) if RESULT.with_suffix(".json").exists() else []
        found = [e for e in kept if (e["target"], e["way"]) != (name, way)] + [new]
        found.sort(key=lambda e: (e["way"], ALL.index(e["target"])))
        RESULT.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
        RESULT.with_suffix(".md").write_text(table(found))


if __name__ == "__main__":
    main()
