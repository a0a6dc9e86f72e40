"""The cost model against measured small cases: complete searches at two proxy sizes, and the memory of a worker.

    OMP_NUM_THREADS=1 python benchmarks/speed/cost_check.py

Every search is whole (warm start, swarm, fit, check, result), with one learning rate and two pairs. Its runs are done
in this process by the worker's own code, so that the seconds this process computed can be taken instead of the
clock's, which on a busy machine measures the others. Predicted: FLOPs of the plan for the runs that were done, over the
speed that the plan measured. Memory: a fresh process that trains one proxy for a few steps as a worker does, its
largest resident size.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ideal_proxy.config import SearchConfig, parse_config
from ideal_proxy.pipeline import laboratory
from ideal_proxy.pipeline import plan as planning
from ideal_proxy.pipeline.encoding import scratch_products
from ideal_proxy.pipeline.finished import load_run
from ideal_proxy.pipeline.outer_loop import run_search
from ideal_proxy.pipeline.plan import read_plan
from ideal_proxy.pipeline.plan_cost import CPU_MICRO_BATCH, describe_plan
from ideal_proxy.provenance import provenance
from ideal_proxy.proxy.cost import worker_bytes
from ideal_proxy.store import atomic_write_json, atomic_write_text, is_complete
from ideal_proxy.swarm.context import load_result
from ideal_proxy.swarm.scheduler import SwarmOutcome
from ideal_proxy.swarm.worker import Worker
from ideal_proxy.terminal import Reporter

RESULTS = Path(__file__).parent
STAGES = {"warm": "warm start", "design": "swarm", "verify": "check"}


class InProcess:
    """Stands in for the swarm: does every run here and adds up the seconds computed, by role."""

    seconds: dict[str, float]

    def __init__(self, context: Any, run_dir: Path, **_: Any) -> None:
        self.worker = Worker(context, Path(run_dir), torch.device("cpu"), io.StringIO())
        self.run_dir = Path(run_dir)
        type(self).seconds = {}

    def __enter__(self) -> InProcess:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def run(self, specs: Any, **_: Any) -> SwarmOutcome:
        for spec in specs:
            if not is_complete(self.run_dir / "runs" / spec.id):
                started = time.process_time()
                self.worker.run(spec, 1e9)
                spent = time.process_time() - started
                self.seconds[spec.role] = self.seconds.get(spec.role, 0.0) + spent
        return SwarmOutcome({spec.id: load_result(self.run_dir, spec.id) for spec in specs}, {})


def case(data: str, size: str, rows: int) -> SearchConfig:
    """Describe one search: five domains of the demo, or sft5."""
    if data == "demo":
        names = ("arithmetic", "strings", "lists", "formats", "facts")
        train, reference = "demo:{0}?rows=2400", "demo:{0}?rows=400&split=reference"
        context, total, vocabulary = 96, 2400 * len(names), 320
    else:
        names = ("mathematics", "coding", "reasoning", "instruction", "trust")
        folder = Path(__file__).resolve().parents[3] / "shared" / "data" / "sft5"
        train, reference = str(folder / "{0}/train.jsonl"), str(folder / "{0}/reference.jsonl")
        total = sum(len((folder / n / "train.jsonl").read_text().splitlines()) for n in names)
        context, vocabulary = 512, 4096
    return parse_config({
        "name": f"{data}-{size}",
        "domains": [{"name": n, "path": train.format(n)} for n in names],
        "capabilities": [{"name": n, "path": reference.format(n)} for n in names],
        "proxy": {"size": size, "vocabulary": vocabulary, "context": context, "fraction": rows / total,
                  "learning_rate": 3e-3, "dtype": "float32", "warm_fraction": 0.05},
        "swarm": {"runs": 8, "workers": 1}, "verify": {"pairs": 2, "max_pairs": 2}, "rounds": 1,
    })  # fmt: skip


def check(data: str, size: str, rows: int) -> dict[str, Any]:
    """Run one search and set every stage against the plan."""
    config = case(data, size, rows)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "run"
        run_search(config, folder, Reporter(quiet=True))
        run = load_run(folder)
        plan = read_plan(folder / "plan.json")
        described = describe_plan(config, run.prepared, plan)
        planned = {stage["name"]: stage for stage in described["stages"]}
        stages = []
        for role, stage in STAGES.items():
            done = int((run.runs["role"] == role).sum())
            predicted = planned[stage]["flops"] / planned[stage]["runs"] * done / plan.flops_per_second
            tokens = float(run.runs.loc[run.runs["role"] == role, "tokens"].sum())
            stages.append({
                "stage": stage, "runs": done, "predicted_seconds": predicted, "seconds": InProcess.seconds[role],
                "ratio": InProcess.seconds[role] / predicted, "tokens": tokens,
                "predicted_tokens": planned[stage]["tokens"] / planned[stage]["runs"] * done,
            })  # fmt: skip
    predicted, seconds = (sum(s[key] for s in stages) for key in ("predicted_seconds", "seconds"))
    return {
        "data": data, "size": size, "rows": rows, "tokens_per_second": plan.tokens_per_second,
        "gflops_per_second": plan.flops_per_second / 1e9, "stages": stages,
        "predicted_seconds": predicted, "seconds": seconds, "ratio": seconds / predicted,
    }  # fmt: skip


def memory(size: str) -> dict[str, Any]:
    """Train one proxy as a worker does, in this fresh process, and read its largest resident size."""
    from ideal_proxy.data.tokens import TokenRows
    from ideal_proxy.proxy import model as models
    from ideal_proxy.proxy import training

    vocabulary, length, count = 4096, 200, 96
    rng = np.random.default_rng(0)
    rows = TokenRows(
        ids=rng.integers(0, vocabulary, count * length).astype(np.int32), supervised=np.arange(count * length) % 2 == 0,
        offsets=np.arange(count + 1) * length, keys=np.arange(count).astype(np.uint64), source_index=np.arange(count),
    )  # fmt: skip
    torch.set_num_threads(1)
    model = models.build_proxy(size, vocabulary, 512, 0)
    order = (np.zeros(count, dtype=np.int64), np.arange(count))
    training.train(model, order, [rows], training.TrainSettings())
    models.evaluate(model, rows)
    parameters, products = scratch_products(size, vocabulary)
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    predicted = worker_bytes(products, parameters, CPU_MICRO_BATCH, length)
    return {"size": size, "bytes": held, "predicted_bytes": predicted, "ratio": held / predicted}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=["demo:0.1M:1200", "demo:1M:600", "sft5:1M:300"])
    parser.add_argument("--sizes", nargs="+", default=["0.1M", "1M", "3M", "10M"], help="for the memory")
    parser.add_argument("--memory-of", help="internal: measure one size in this process")
    parser.add_argument("--out", type=Path, default=RESULTS / "cost_check.json")
    options = parser.parse_args()
    if options.memory_of:
        print(json.dumps(memory(options.memory_of)))
        return
    torch.set_num_threads(1)
    planning.time = types.SimpleNamespace(perf_counter=time.process_time)  # type: ignore[attr-defined]
    laboratory.Swarm = InProcess  # type: ignore[misc,assignment]
    sizes = []
    for size in options.sizes:
        command = [sys.executable, __file__, "--memory-of", size]
        sizes.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
        print(sizes[-1], flush=True)
    cases = []
    for text in options.cases:
        data, size, rows = text.split(":")
        cases.append(check(data, size, int(rows)))
        print(cases[-1], flush=True)
    lines = [
        "# The cost model against measured small cases", "",
        "`python benchmarks/speed/cost_check.py`. Seconds computed by one thread, not the clock's; each search once.",
        "",
        "| search | proxy | rows a run | stage | runs | predicted s | measured s | measured / predicted |",
        "|---|---|---:|---|---:|---:|---:|---:|",
    ]  # fmt: skip
    for c in cases:
        whole = {"stage": "all", "runs": sum(s["runs"] for s in c["stages"])} | {
            k: c[k] for k in ("predicted_seconds", "seconds", "ratio")
        }
        lines += [
            f"| {c['data']} | {c['size']} | {c['rows']} | {s['stage']} | {s['runs']} | {s['predicted_seconds']:.1f} | "
            f"{s['seconds']:.1f} | {s['ratio']:.2f} |"
            for s in (*c["stages"], whole)
        ]
    lines += ["", "| proxy | predicted GB a worker | measured GB | measured / predicted |", "|---|---:|---:|---:|"]
    lines += [f"| {m['size']} | {m['predicted_bytes'] / 1e9:.2f} | {m['bytes'] / 1e9:.2f} | {m['ratio']:.2f} |"
              for m in sizes]  # fmt: skip
    print("\n".join(lines))
    atomic_write_json(options.out, {"cases": cases, "memory": sizes, "provenance": provenance()})
    atomic_write_text(options.out.with_suffix(".md"), "\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
