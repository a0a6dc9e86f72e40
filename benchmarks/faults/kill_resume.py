"""Does a killed search end with the same mixture? The embedded default, killed with SIGKILL at random moments.

    python benchmarks/faults/kill_resume.py

One search runs undisturbed. Then five are killed once each, at a random moment of the undisturbed run's time, and one
is killed five times in a row; each is started again with the same command. Their `mixture.json` must equal the
undisturbed one in everything but `created` and `provenance`.
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
from pathlib import Path

from ideal_proxy.provenance import provenance
from ideal_proxy.store import atomic_write_json, atomic_write_text

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent


def search(out: Path, limit: float | None = None) -> bool:
    """Run the demo's search, killed with all its workers after `limit` seconds; True where it came to its end."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "cli.py"), "search", "--out", str(out), "--quiet"],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=ROOT, start_new_session=True,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        if process.wait(limit):
            raise SystemExit(f"the search in {out} failed with exit code {process.returncode}")
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return False
    return True


def mixture(out: Path) -> dict:
    """Read the mixture file without its times."""
    value = json.loads((out / "mixture.json").read_text(encoding="utf-8"))
    return {key: entry for key, entry in value.items() if key not in {"created", "provenance"}}


def finished(out: Path) -> int:
    """Count the proxy runs that are complete."""
    return sum(1 for _ in (out / "runs").glob("*/complete*")) if (out / "runs").exists() else 0


def main() -> None:
    """Kill, resume, compare, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/kill_resume"))
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    shutil.rmtree(options.work, ignore_errors=True)
    rng = random.Random(options.seed)
    started = time.monotonic()
    search(options.work / "undisturbed")
    whole = time.monotonic() - started
    truth = mixture(options.work / "undisturbed")
    entries = []
    plans = [(f"killed_{k + 1}", [rng.uniform(2, whole)]) for k in range(5)]
    plans.append(("killed_five_times", [rng.uniform(2, 0.4 * whole) for _ in range(5)]))
    for name, moments in plans:
        out, runs = options.work / name, []
        for moment in moments:
            ended = search(out, moment)
            runs.append(finished(out))
            if ended:
                break
        search(out)
        entry = {"search": name, "seconds": moments, "runs_complete": runs, "same": mixture(out) == truth}
        print(json.dumps(entry), flush=True)
        entries.append(entry)
    atomic_write_json(RESULTS / "kill_resume.json", {"provenance": provenance(), "whole_s": whole, "searches": entries})
    lines = [
        "# Killed and resumed", "", "`python benchmarks/faults/kill_resume.py`", "",
        f"The embedded default, {whole:.0f} s undisturbed here. SIGKILL to the search and its workers, "
        "then the same command.", "",
        "| search | killed after s | runs complete then | same mixture.json |", "|---|---|---|---|",
    ]  # fmt: skip
    for e in entries:
        moments = ", ".join(f"{s:.1f}" for s in e["seconds"])
        lines.append(f"| {e['search']} | {moments} | {', '.join(map(str, e['runs_complete']))} | {e['same']} |")
    atomic_write_text(RESULTS / "kill_resume.md", "\n".join(lines) + "\n")
    if not all(e["same"] for e in entries):
        raise SystemExit("a resumed search ended with another mixture")


if __name__ == "__main__":
    main()
