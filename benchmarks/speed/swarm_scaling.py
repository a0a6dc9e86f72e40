"""Two workers against one: runs a second, and what memory a worker takes. Interleaved turns, the same runs in each.

    OMP_NUM_THREADS=1 python benchmarks/speed/swarm_scaling.py --size 1M --runs 4 --rows 320 --turns 5 \\
        --out benchmarks/speed/swarm_scaling.json

Each turn does the same runs with one worker and with two, in turn first; workers are up and warm before the clock
starts. Reported for every turn: the ratio by the clock, and the ratio that the processor's seconds give: if a worker
computes as many seconds for its runs beside another as it does alone, two do twice as much. The second is what counts
where other work shares the machine, as far as that work slows both arms alike; `steal` says how much of the wanted
time the workers did not get, and a turn with much of it says little by the clock. Memory is read while both workers
train: USS is a worker's own, PSS with its share of what is mapped by several.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ideal_proxy.data.tokens import TokenRows
from ideal_proxy.provenance import provenance
from ideal_proxy.proxy.records import TrainSettings
from ideal_proxy.store import atomic_write_json
from ideal_proxy.swarm.context import RunSpec, SwarmContext, prepare_context
from ideal_proxy.swarm.scheduler import Swarm, SwarmEvent

VOCABULARY = 4096
MEGABYTE = 1 << 20


def rows_of(count: int, seed: int) -> TokenRows:
    """Random rows of 30 to 400 tokens, the last half supervised: speed does not depend on what they say."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(30, 400, count)
    ends = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    position = np.arange(ends[-1]) - np.repeat(ends[:-1], lengths)
    return TokenRows(
        ids=rng.integers(0, VOCABULARY, ends[-1]).astype(np.int32),
        supervised=position >= np.repeat(lengths // 2, lengths),
        offsets=ends, keys=rng.integers(0, 2**63, count).astype(np.uint64), source_index=np.arange(count),
    )  # fmt: skip


class Arm:
    """A swarm of so many workers, kept up between turns."""

    def __init__(self, context: SwarmContext, folder: Path, workers: int, options: argparse.Namespace) -> None:
        self.swarm = Swarm(context, folder, workers=workers, checkpoint_seconds=1e9)
        self.workers, self.options = workers, options
        self.turn = 0
        self.memory: dict[str, list[float]] = {"uss": [], "pss": [], "rss": []}
        self.pids: set[int] = set()

    def __call__(self, *, rows: int | None = None, look: bool = False) -> dict[str, float]:
        """Do the runs once, as new ones."""
        self.turn += 1
        count = rows or self.options.rows
        specs = [
            RunSpec(id=f"turn{self.turn}-{n}", rows=(count // 2, count - count // 2), volumes=(1.0, 1.0), seed=n,
                    role="design", learning_rate=1e-3)
            for n in range(self.options.runs)
        ]  # fmt: skip
        looked: set[str] = set()

        def on_event(event: SwarmEvent) -> None:
            self.pids |= {event.pid} if event.pid else set()
            if look and event.kind == "step" and event.done > event.steps / 2 and event.run not in looked:
                looked.add(event.run)
                for pid in self.pids:
                    memory = psutil.Process(pid).memory_full_info()
                    for name, values in self.memory.items():
                        values.append(getattr(memory, name) / MEGABYTE)

        before, at = self._cpu(), time.monotonic()
        outcome = self.swarm.run(specs, on_event=on_event)
        assert not outcome.failures, outcome.failures
        wall = time.monotonic() - at
        trained = sum(result.metrics["tokens"] for result in outcome.results.values())
        cpu = self._cpu() - before
        return {"wall": wall, "cpu": cpu, "tokens": trained, "steal": 1 - cpu / (wall * self.workers)}

    def _cpu(self) -> float:
        times = [psutil.Process(pid).cpu_times() for pid in self.pids]
        return sum(t.user + t.system for t in times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="1M")
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--rows", type=int, default=320)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--data-rows", type=int, default=20_000, help="rows of each domain")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        context = prepare_context(
            SwarmContext(
                folder=folder / "context", domains=("a", "b"), references=("a",), size=options.size,
                available=(options.data_rows,) * 2, vocab_size=VOCABULARY, context=400, train=TrainSettings(),
            ),
            domains=[rows_of(options.data_rows, n) for n in range(2)], references=[rows_of(40, 9)],
        )  # fmt: skip
        data = sum(path.stat().st_size for path in context.folder.rglob("*.npy")) / MEGABYTE
        arms = {workers: Arm(context, folder / f"workers-{workers}", workers, options) for workers in (1, 2)}
        try:
            for arm in arms.values():
                arm(rows=64)
                arm(rows=64)  # so that both workers of a pair have had a run
            turns: list[dict[str, Any]] = []
            for turn in range(options.turns):
                load = os.getloadavg()[0]
                found = {w: arms[w](look=w == 2) for w in ((1, 2) if turn % 2 else (2, 1))}
                one, two = found[1], found[2]
                turns.append({
                    "one": one, "two": two, "load": load,
                    "ratio_wall": one["wall"] / two["wall"], "ratio_cpu": 2 * one["cpu"] / two["cpu"],
                })  # fmt: skip
                print({k: round(v, 3) for k, v in turns[-1].items() if isinstance(v, float)}, flush=True)
            memory = {name: round(max(values), 1) for name, values in arms[2].memory.items()}
        finally:
            for arm in arms.values():
                arm.swarm.close()
    ratios = {name: [t[name] for t in turns] for name in ("ratio_wall", "ratio_cpu")}
    summary = {
        "size": options.size, "data_megabytes": round(data, 1), "worker_megabytes_at_most": memory,
        **{f"{name}_median": round(statistics.median(values), 3) for name, values in ratios.items()},
        **{f"{name}_all": [round(value, 3) for value in values] for name, values in ratios.items()},
        "steal": [round(max(t["one"]["steal"], t["two"]["steal"]), 2) for t in turns],
        "load": [round(t["load"], 1) for t in turns],
    }  # fmt: skip
    print(summary)
    if options.out:
        arguments = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
        atomic_write_json(
            options.out, {"arguments": arguments, "summary": summary, "turns": turns, "provenance": provenance()}
        )


if __name__ == "__main__":
    main()
