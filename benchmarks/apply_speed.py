"""How fast `apply` writes rows, against `cp` of the same bytes, and how much memory it holds.

    python benchmarks/apply_speed.py --rows 10000000 --work /big/disk

Rows of about 300 bytes pass through unchanged (JSONL to JSONL), in training order, from two domains, one of them
repeated. `apply` is timed in a process of its own, fingerprint check included; `cp` copies what `apply` wrote.
Memory is the process's peak resident size less that of one that only imports.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

CHILD = """
import json, resource, sys, time
from pathlib import Path
from ideal_proxy.materialise import apply_mixture
from ideal_proxy.mixture_file import load_mixture
before = resource.getrusage(resource.RUSAGE_SELF)
busy = before.ru_utime + before.ru_stime
started = time.perf_counter()
if len(sys.argv) > 2:
    apply_mixture(load_mixture(sys.argv[1]), sys.argv[2], shards=int(sys.argv[3]))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({
    "seconds": time.perf_counter() - started, "cpu": used.ru_utime + used.ru_stime - busy, "peak": peak,
}))
"""


def write_source(path: Path, rows: int) -> str:
    """Write rows and return their fingerprint."""
    import numpy as np

    from ideal_proxy.rows import row_key, source_fingerprint

    keys = np.empty(rows, dtype=np.uint64)
    with open(path, "w", encoding="utf-8") as file:
        for n in range(rows):
            answer = f"answer {n} " * (8 + n % 17)
            file.write(json.dumps({"instruction": f"{path.stem} question {n}", "input": "", "output": answer}) + "\n")
            keys[n] = row_key((("user", f"{path.stem} question {n}"), ("assistant", answer)))
    return source_fingerprint(keys)


def run_child(*arguments: str) -> dict[str, float]:
    command = [sys.executable, "-c", CHILD, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=None, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def copy(source: Path, target: Path) -> float:
    started = time.perf_counter()
    subprocess.run(["cp", str(source), str(target)], check=True)
    subprocess.run(["sync", str(target)], check=True)
    return time.perf_counter() - started


def main() -> None:
    from ideal_proxy.mixture_file import DomainVolume, MixtureFile, save_mixture
    from ideal_proxy.store import provenance

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows that apply writes")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--work", type=Path, default=None, help="folder on the disk to measure")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "apply_speed.json")
    given = parser.parse_args()
    work = Path(tempfile.mkdtemp(dir=given.work, prefix="apply-speed-"))
    try:
        sizes = {"once": given.rows // 2, "twice": given.rows // 4}
        domains = []
        for name, count in sizes.items():
            path = work / f"{name}.jsonl"
            fingerprint = write_source(path, count)
            rows = count if name == "once" else given.rows - given.rows // 2
            domains.append(
                DomainVolume(
                    name=name, source=str(path), format="alpaca", fingerprint=fingerprint, available=count, rows=rows
                )
            )
        save_mixture(work / "mixture.json", MixtureFile(domains=domains))
        idle = run_child(str(work / "mixture.json"))["peak"]
        runs, copies = [], []
        for turn in range(given.repeats):
            out = work / f"out{turn}"
            runs.append(run_child(str(work / "mixture.json"), str(out), str(given.shards)))
            files = sorted(out.glob("train*.jsonl"))
            copies.append(sum(copy(file, work / "copied") for file in files))
            size = sum(file.stat().st_size for file in files)
            shutil.rmtree(out)
        apply_seconds = sorted(run["seconds"] for run in runs)[len(runs) // 2]
        copy_seconds = sorted(copies)[len(copies) // 2]
        result = {
            "rows": given.rows,
            "bytes": size,
            "shards": given.shards,
            "apply_seconds": [round(run["seconds"], 3) for run in runs],
            "apply_cpu_seconds": [round(run["cpu"], 3) for run in runs],
            "cp_seconds": [round(seconds, 3) for seconds in copies],
            "apply_megabytes_a_second": round(size / apply_seconds / 1e6, 1),
            "cp_megabytes_a_second": round(size / copy_seconds / 1e6, 1),
            "speed_against_cp": round(copy_seconds / apply_seconds, 3),
            "rows_a_second": round(given.rows / apply_seconds),
            "peak_megabytes": round((max(run["peak"] for run in runs) - idle) / 1024, 1),
            "peak_bytes_a_row": round((max(run["peak"] for run in runs) - idle) * 1024 / given.rows, 1),
            "provenance": provenance(),
        }
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(json.dumps({key: value for key, value in result.items() if key != "provenance"}, indent=1))
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
