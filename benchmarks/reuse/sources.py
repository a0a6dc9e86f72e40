"""Real proxies over the 18 sources of sft5: a pool of mixtures, and every source left out once.

    OMP_NUM_THREADS=1 nice -n 5 python benchmarks/reuse/sources.py --train

Proxies of 0.1M parameters from scratch, one total of tokens; at base every source has the same volume (repeated where
it has fewer rows). Each source is left out of base with two seeds, at the same total, and base is run with the same
two; the pool are mixtures about base as a search lays them out. A call that was stopped goes on. What the runs lost is
written to `sources.json`, which the other scripts here read.

Legend: D sources, J capabilities, R runs.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
SFT5 = ROOT.parent / "shared" / "data" / "sft5"
OUT = Path(__file__).with_suffix(".json")
KINDS = ("mathematics", "coding", "reasoning", "instruction", "trust")
BASE, MOST, JUDGED, RATE, RUNS, SEEDS = 400, 600, 150, 4e-3, 60, 2


def run_file(folder: Path, fraction: float) -> dict[str, Any]:
    """Write a file for each source, and give the run file over them."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[str]] = {}
    for kind in KINDS:
        with open(SFT5 / kind / "train.jsonl", encoding="utf-8") as file:
            for line in file:
                rows.setdefault(json.loads(line)["source"], []).append(line)
    for name, lines in rows.items():
        path = folder / f"{name}.jsonl"
        if not path.exists():
            path.write_text("".join(lines[:MOST]), encoding="utf-8")
    for kind in KINDS:
        lines = (SFT5 / kind / "reference.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        (folder / f"reference-{kind}.jsonl").write_text(
            "".join(lines[:: len(lines) // JUDGED][:JUDGED]), encoding="utf-8"
        )
    return {
        "name": "sources",
        "domains": [{"name": name, "path": str(folder / f"{name}.jsonl"), "base": BASE} for name in sorted(rows)],
        "capabilities": [{"name": kind, "path": str(folder / f"reference-{kind}.jsonl")} for kind in KINDS],
        "proxy": {
            "size": "0.1M", "vocabulary": 1024, "context": 192, "fraction": fraction, "learning_rate": RATE,
            "allow_truncation": True, "batch_rows": 16,
        },
        "swarm": {"runs": RUNS, "workers": 1, "seeds": SEEDS}, "rounds": 1, "protect": "none",
    }  # fmt: skip


def without(base: np.ndarray, lengths: np.ndarray, source: int) -> np.ndarray:
    """Leave a source out, at the same total of tokens."""
    mixture = base.copy()
    mixture[source] = 0.0
    return mixture * (base @ lengths) / (mixture @ lengths)


def train(place: Path, fraction: float, runs: int) -> None:
    from ideal_proxy.config import parse_config
    from ideal_proxy.pipeline.outer_loop import open_laboratory
    from ideal_proxy.provenance import provenance
    from ideal_proxy.store import atomic_write_json
    from ideal_proxy.terminal import Reporter

    config = parse_config(run_file(place.resolve() / "data", fraction))
    with open_laboratory(config, place / "run", Reporter()) as laboratory:
        laboratory.warm_start()
        domains = laboratory.prepared.domains
        left_out = [without(domains.base, domains.lengths, d) for d in range(len(domains.names))]
        mixtures = [v for v in [domains.base, *left_out] for _ in range(SEEDS)]
        laboratory.try_out(np.array(mixtures), RATE)
        record(laboratory, provenance(), atomic_write_json)
        if runs:
            laboratory.explore(domains.base, config.swarm.spread, RUNS, RATE, 0)
            record(laboratory, provenance(), atomic_write_json)


def record(laboratory: Any, origin: dict[str, Any], write: Any) -> None:
    """Keep what every run lost on search rows."""
    evidence, domains, frame = laboratory.evidence(), laboratory.prepared.domains, laboratory.frame()
    write(OUT, {
        "domains": list(domains.names), "capabilities": laboratory.prepared.capability_names,
        "base": domains.base.tolist(), "available": domains.supply.tolist(), "lengths": domains.lengths.tolist(),
        "before": evidence.losses_before.tolist(), "fraction": laboratory.plan.fraction,
        "ids": list(evidence.ids), "volumes": evidence.volumes.tolist(), "losses": evidence.losses.tolist(),
        "seeds": evidence.seeds.tolist(), "seconds": float(frame["seconds"].mean()), "provenance": origin,
    })  # fmt: skip


def record_finished(place: Path) -> None:
    """Write down the runs that are finished, of a swarm that was stopped."""
    from ideal_proxy.pipeline.context import reference
    from ideal_proxy.store import atomic_write_json, is_complete
    from ideal_proxy.swarm import load_result

    found = json.loads(OUT.read_text())
    every = [
        load_result(place / "run", folder.name) for folder in (place / "run" / "runs").iterdir() if is_complete(folder)
    ]
    done = {run.spec.id: run for run in every if run.spec.role == "design"}
    done = {name: done.pop(name) for name in found["ids"] if name in done} | dict(sorted(done.items()))
    names = [reference(j, "search") for j in range(len(found["capabilities"]))]
    atomic_write_json(OUT, found | {
        "ids": list(done), "volumes": [list(run.spec.volumes) for run in done.values()],
        "losses": [[run.losses[name].mean for name in names] for run in done.values()],
        "seeds": [run.spec.seed for run in done.values()],
    })  # fmt: skip
    print(f"{len(done)} runs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--finished", action="store_true", help="record what a stopped call finished")
    parser.add_argument("--out", type=Path, default=Path("runs/reuse_sources"))
    parser.add_argument("--fraction", type=float, default=0.12)
    parser.add_argument("--runs", type=int, default=RUNS, help="0: only the sources left out")
    options = parser.parse_args()
    if not SFT5.exists():
        parser.error(f"{SFT5} is missing")
    if options.finished:
        record_finished(options.out)
    if options.train:
        train(options.out, options.fraction, options.runs)


if __name__ == "__main__":
    main()
