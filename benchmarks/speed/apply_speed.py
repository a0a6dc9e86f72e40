"""How fast `apply` writes rows, against `cp` of the same bytes, and how much memory it holds.

    python benchmarks/speed/apply_speed.py --rows 200000 1000000 10000000 --repeats 3 --work /big/disk

Rows of about 270 bytes pass through unchanged (JSONL to JSONL), in training order, from two domains, one of them
repeated. `apply` runs in a process of its own, twice a turn: first with no table of row keys (`cold`: every row is
parsed and hashed, and the table is written), then with it (`warm`). `cp` copies what `apply` wrote. `join` is the
yardstick: plain DuckDB reads the same lines, joins them to a prepared table of (domain, row, place) under the same
limits of memory and threads, and writes them in that order; it checks nothing. The four follow each other in every
turn, files in the page cache; each ends when its output is on the disk. CPU seconds count the processes that `apply`
starts. Memory is the peak resident size less that of a process that only imports. `--drop` has the sources leave the
page cache before every run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

CHILD = """
import json, resource, sys, time
from ideal_proxy.mixture.apply import apply_mixture
from ideal_proxy.mixture.file import load_mixture
mixture, out, shards, index = sys.argv[1:]
def cpu():
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)
def peak():
    try:  # not ru_maxrss: a child inherits that of its parent
        return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
started, busy = time.perf_counter(), cpu()
if out:
    apply_mixture(load_mixture(mixture), out, shards=int(shards), index=index)
print(json.dumps({
    "seconds": time.perf_counter() - started, "cpu": cpu() - busy,
    "peak": peak(),
}))
"""

JOIN = """
import json, os, resource, sys, time
import duckdb
from joblib import cpu_count
from ideal_proxy.mixture.order import MEMORY, MOST_THREADS
out, wanted, *sources = sys.argv[1:]
plain = "delim='\\x01', header=false, quote='', escape='', auto_detect=false, columns={'text': 'VARCHAR'}"
lines = " UNION ALL ".join(
    f"SELECT {n}::INTEGER AS domain, row_number() OVER () - 1 AS row, text FROM read_csv('{source}', {plain})"
    for n, source in enumerate(sources)
)
def cpu():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
started, busy = time.perf_counter(), cpu()
joined = duckdb.connect(config={"memory_limit": MEMORY, "threads": min(cpu_count(), MOST_THREADS)})
joined.execute("SET enable_progress_bar = false")
joined.execute(
    f"COPY (SELECT text FROM ({lines}) JOIN read_parquet('{wanted}') USING (domain, row) ORDER BY place) "
    f"TO '{out}' (FORMAT csv, header false, quote '', escape '', delim '\\x01')"
)
with open(out, "rb") as file:
    os.fsync(file.fileno())
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"seconds": time.perf_counter() - started, "cpu": cpu() - busy, "peak": peak}))
"""


def write_wanted(path: Path, drawn: list[tuple[int, int]]) -> None:
    """Write a table of (domain, row, place) in random order; `drawn` has a domain's available and drawn rows."""
    import numpy as np
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    domain = np.concatenate([np.full(rows, n, np.int32) for n, (_, rows) in enumerate(drawn)])
    row = np.concatenate([np.arange(rows) % available for available, rows in drawn])
    place = np.random.default_rng(0).permutation(len(row))
    parquet.write_table(arrow.table({"domain": domain, "row": row, "place": place}), path)


def write_source(path: Path, rows: int) -> None:
    with open(path, "w", encoding="ascii") as file:
        for first in range(0, rows, 10_000):
            file.write("".join([
                f'{{"instruction": "{path.stem} question {n}", "input": "", "output": "'
                + f"answer {n} " * (8 + n % 17) + '"}\n'
                for n in range(first, min(first + 10_000, rows))
            ]))  # fmt: skip


def fingerprint(path: Path, work: Path) -> str:
    """Give the fingerprint of a source's rows, as a search does."""
    from ideal_proxy.mixture.row_table import open_table

    return open_table(str(path), "alpaca", keep=None, scratch=work / "fingerprint").fingerprint


def run_child(program: str, *given: Path | str | int) -> dict[str, float]:
    command = [sys.executable, "-c", program, *map(str, given)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def copy(files: list[Path], target: Path) -> tuple[float, float]:
    started, before = time.perf_counter(), os.times()
    for file in files:
        subprocess.run(["cp", str(file), str(target)], check=True)
        subprocess.run(["sync", str(target)], check=True)
    after = os.times()
    busy = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - started, busy


def forget(files: list[Path]) -> None:
    """Have files leave the page cache."""
    for file in files:
        with open(file, "rb") as handle:
            os.fsync(handle.fileno())
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def middle(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def measure(rows: int, given: argparse.Namespace) -> dict[str, Any]:
    from ideal_proxy.mixture.file import DomainVolume, MixtureFile, save_mixture

    work = Path(tempfile.mkdtemp(dir=given.work, prefix="apply-speed-"))
    try:
        sizes, domains = {"once": rows // 2, "twice": rows // 4}, []
        for name, count in sizes.items():
            path = work / f"{name}.jsonl"
            write_source(path, count)
            drawn = count if name == "once" else rows - rows // 2
            domains.append(DomainVolume(
                name=name, source=str(path), format="alpaca", fingerprint=fingerprint(path, work),
                available=count, rows=drawn,
            ))  # fmt: skip
        sources = [Path(domain.source) for domain in domains]
        mixture, index, out = work / "mixture.json", work / "index", work / "out"
        save_mixture(mixture, MixtureFile(domains=domains))
        idle = run_child(CHILD, mixture, "", 1, "")["peak"]
        runs: dict[str, list[dict[str, float]]] = {"cold": [], "warm": [], "cp": [], "join": []}
        write_wanted(work / "wanted.parquet", [(domain.available, domain.rows) for domain in domains])
        load = []
        for _ in range(given.repeats):
            shutil.rmtree(index, ignore_errors=True)
            for kind in ("cold", "warm"):
                if given.drop:
                    forget(sources)
                shutil.rmtree(out, ignore_errors=True)
                load.append(os.getloadavg()[0])
                runs[kind].append(run_child(CHILD, mixture, out, given.shards, index))
            files = sorted(out.glob("train*.jsonl"))
            if given.drop:
                forget(files)
            seconds, busy = copy(files, work / "copied")
            runs["cp"].append({"seconds": seconds, "cpu": busy})
            runs["join"].append(run_child(JOIN, work / "joined.jsonl", work / "wanted.parquet", *sources))
            size = sum(file.stat().st_size for file in files)
        result: dict[str, Any] = {"rows": rows, "bytes": size, "load": [round(min(load), 1), round(max(load), 1)]}
        for kind, found in runs.items():
            wall, cpu = [run["seconds"] for run in found], [run["cpu"] for run in found]
            result[kind] = {
                "seconds": [round(s, 3) for s in wall], "cpu_seconds": [round(s, 3) for s in cpu],
                "megabytes_a_second": round(size / middle(wall) / 1e6, 1),
                "megabytes_a_cpu_second": round(size / middle(cpu) / 1e6, 1),
            }  # fmt: skip
            if kind in ("cold", "warm"):
                result[kind]["cpu_against_join"] = round(middle(cpu) / middle([run["cpu"] for run in runs["join"]]), 2)
                result[kind]["seconds_against_join"] = [
                    round(run["seconds"] / joined["seconds"], 2)
                    for run, joined in zip(found, runs["join"], strict=True)
                ]
                pairs = [copied["seconds"] / run["seconds"] for run, copied in zip(found, runs["cp"], strict=True)]
                result[kind] |= {
                    "speed_against_cp": [round(pair, 3) for pair in pairs],
                    "speed_against_cp_median": round(middle(pairs), 3),
                    "peak_megabytes": round((max(run["peak"] for run in found) - idle) / 1024, 1),
                }
        return result
    finally:
        shutil.rmtree(work, ignore_errors=True)


def main() -> None:
    from ideal_proxy.provenance import provenance

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[200_000, 1_000_000], help="rows that apply writes")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--drop", action="store_true", help="sources leave the page cache before every run")
    parser.add_argument("--work", type=Path, default=None, help="folder on the disk to measure")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    given = parser.parse_args()
    found = []
    for rows in given.rows:
        found.append(measure(rows, given))
        print(json.dumps(found[-1], indent=1), flush=True)
    result = {"shards": given.shards, "page_cache": not given.drop, "sizes": found, "provenance": provenance()}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
