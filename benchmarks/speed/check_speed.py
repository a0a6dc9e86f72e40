"""How fast `check` looks through rows, against `datasets`: `load_dataset` and one `map` over the same files.

    python benchmarks/speed/check_speed.py --rows 200000 1000000 --repeats 3 --work /big/disk

Rows of about 300 bytes in Alpaca format, words drawn by Zipf's law from 20,000, in four domains, with 500 reference
rows each. Every turn runs, each in a process of its own: `check` as the command does it (rows, tokens of a scratch
tokenizer that it trains first, duplicates, leaks, near-duplicates); `check` with `--every-row`; `datasets` with a map
that counts letters (`map`), with an empty cache; and with a map that tokenises by the tokenizer that `check` trained
(`map_tokens`). Imports are not counted. CPU seconds count child processes. Memory is the peak resident size less that
after the imports.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
DOMAINS, REFERENCES = 4, 500

HEAD = """
import json, os, resource, sys, time
folder, kind = sys.argv[1:]
def cpu():
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)
def resident(name):  # not ru_maxrss: a child inherits that of its parent
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))
"""

TAIL = """
print(json.dumps({"seconds": time.perf_counter() - started, "cpu": cpu() - busy, "peak": resident("VmHWM") - idle}))
"""

CHECK = (
    HEAD
    + """
import torch, rensa
from ideal_proxy.config import load_config
from ideal_proxy.pipeline.check import survey
from ideal_proxy.proxy import best_device
started, busy, idle = time.perf_counter(), cpu(), resident("VmRSS")
health = survey(load_config(folder + "/mix.yaml"), every_row=kind == "every_row").health
assert sum(entry["rows"] for entry in health["domains"]) > 0 and health["near_duplicates"] == []
"""
    + TAIL
)

DATASETS = (
    HEAD
    + """
import datasets
from transformers import AutoTokenizer
datasets.disable_progress_bars()
tokenizer = AutoTokenizer.from_pretrained(folder + "/tokenizer") if kind == "map_tokens" else None
def letters(row):
    return {"letters": len(row["instruction"]) + len(row["output"])}
def tokens(row):
    text = f"<|user|>{row['instruction']}<|end|><|assistant|>{row['output']}<|end|>"
    return {"input_ids": tokenizer(text, add_special_tokens=False)["input_ids"]}
files = sorted(os.path.join(folder, name) for name in os.listdir(folder) if name.startswith("domain"))
started, busy, idle = time.perf_counter(), cpu(), resident("VmRSS")
rows = datasets.load_dataset("json", data_files=files, split="train", cache_dir=folder + "/cache")
rows.map(letters if tokenizer is None else tokens)
"""
    + TAIL
)


KINDS = {"check": CHECK, "every_row": CHECK, "map": DATASETS, "map_tokens": DATASETS}


def write_rows(path: Path, rows: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    letters, ends = draw.integers(97, 123, 160_000, dtype=np.uint8).tobytes().decode(), draw.integers(2, 10, 20_000)
    words = [letters[8 * n : 8 * n + end] for n, end in enumerate(ends.tolist())]
    weight = 1 / (np.arange(len(words)) + 3)
    with open(path, "w", encoding="ascii") as file:
        for first in range(0, rows, 10_000):
            drawn = draw.choice(len(words), (min(10_000, rows - first), 40), p=weight / weight.sum())
            for row in drawn.tolist():
                said = [words[n] for n in row]
                question, answer = " ".join(said[:16]), " ".join(said[16:])
                file.write(f'{{"instruction": "{question}", "input": "", "output": "{answer}"}}\n')


def write_run(folder: Path, rows: int, kinds: Collection[str]) -> None:
    """Write the files of one size, its run file, and the tokenizer that `check` trains."""
    from ideal_proxy.data import domain_tokenizer, read_rows

    parts: dict[str, list[str]] = {"domains": [], "capabilities": []}
    for n in range(DOMAINS):
        for kind, count, seed in (("domain", rows // DOMAINS, n), ("reference", REFERENCES, 100 + n)):
            path = folder / f"{kind}{n}.jsonl"
            write_rows(path, count, seed)
            parts["domains" if kind == "domain" else "capabilities"].append(f"  - {{name: d{n}, path: {path}}}")
    text = "\n".join(line for name, lines in parts.items() for line in [f"{name}:", *lines])
    (folder / "mix.yaml").write_text(text + "\n", encoding="utf-8")
    if "map_tokens" not in kinds:
        return
    some = [list(read_rows(folder / f"domain{n}.jsonl"))[:20_000] for n in range(DOMAINS)]
    domain_tokenizer(some, 4096).save_pretrained(str(folder / "tokenizer"))


def run_child(program: str, folder: Path, kind: str) -> dict[str, float]:
    shutil.rmtree(folder / "cache", ignore_errors=True)
    quiet = {**os.environ, "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder), kind],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env=quiet,
    )
    return json.loads(done.stdout)


def middle(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def measure(rows: int, given: argparse.Namespace) -> dict[str, Any]:
    folder = Path(tempfile.mkdtemp(dir=given.work, prefix="check-speed-"))
    kinds = {kind: program for kind, program in KINDS.items() if kind in given.kinds}
    runs: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    load = []
    try:
        write_run(folder, rows, kinds)
        size = sum(path.stat().st_size for path in folder.glob("domain*.jsonl"))
        for _ in range(given.repeats):
            for kind, program in kinds.items():
                load.append(os.getloadavg()[0])
                runs[kind].append(run_child(program, folder, kind))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    result: dict[str, Any] = {
        "rows": rows,
        "bytes_a_row": round(size / rows),
        "load": [round(min(load), 1), round(max(load), 1)],
    }
    for kind, found in runs.items():
        result[kind] = {
            "seconds": [round(run["seconds"], 1) for run in found],
            "cpu_seconds": [round(run["cpu"], 1) for run in found],
            "peak_megabytes": round(max(run["peak"] for run in found) / 1024),
        }  # fmt: skip
    for kind in {"check", "every_row"} & kinds.keys():
        for other in {"map", "map_tokens"} & kinds.keys():
            result[kind][f"against_{other}"] = {
                what: [round(a[key] / b[key], 2) for a, b in zip(runs[kind], runs[other], strict=True)]
                for what, key in (("seconds", "seconds"), ("cpu", "cpu"))
            }
    return result


def main() -> None:
    from ideal_proxy.provenance import provenance

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[200_000, 1_000_000], help="rows of all domains")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--work", type=Path, default=None, help="folder on the disk to measure")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    given = parser.parse_args()
    found = []
    for rows in given.rows:
        found.append(measure(rows, given))
        print(json.dumps(found[-1], indent=1), flush=True)
    given.out.write_text(json.dumps({"sizes": found, "provenance": provenance()}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
