"""How often the verdict is right on the demo: a poor base that should improve, and a null that should not.

    python benchmarks/verdict/demo_verdicts.py --poor 10 --null 20

Every search runs in a folder of its own under --work and is resumed from there. The poor demo gains by construction;
the null demo cuts one stream of rows into five domains at random, so `improves` there is a false alarm.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path

from scipy.stats import binomtest

from ideal_proxy.data.demo import demo_config
from ideal_proxy.pipeline.outer_loop import run_search
from ideal_proxy.pipeline.overrides import override
from ideal_proxy.provenance import provenance
from ideal_proxy.store import atomic_write_json, atomic_write_text
from ideal_proxy.terminal import Reporter

RESULTS = Path(__file__).parent


def run(kind: str, seed: int, work: Path, workers: int | None) -> dict:
    """Run one search and keep what the benchmark reports."""
    config = override(demo_config(seed, null=kind == "null"), workers=workers)
    started = time.monotonic()
    result = run_search(config, work / f"{kind}-{seed}", Reporter(quiet=True))
    entry = {
        "kind": kind,
        "seed": seed,
        "answer": result["verdict"]["answer"],
        "gain": result["verdict"]["gain"],
        "predicted_gain": result["predicted_gain"],
        "pairs": result["verdict"]["pairs"],
        "rounds": len(result["rounds"]),
        "runs": result["cost"]["runs"],
        "training_seconds": result["cost"]["seconds"],
        "wall_seconds": time.monotonic() - started,
    }
    shown = ("kind", "seed", "answer", "pairs", "rounds", "wall_seconds")
    print(json.dumps({key: entry[key] for key in shown}), flush=True)
    return entry


def main() -> None:
    """Run the searches that are missing and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--poor", type=int, default=10, help="seeds of the poor demo")
    parser.add_argument("--null", type=int, default=20, help="seeds of the null demo")
    parser.add_argument("--work", type=Path, default=Path("runs/demo_verdicts"))
    parser.add_argument("--workers", type=int, default=None)
    options = parser.parse_args()
    entries = [run("poor", seed, options.work, options.workers) for seed in range(options.poor)]
    entries += [run("null", seed, options.work, options.workers) for seed in range(options.null)]
    atomic_write_json(RESULTS / "demo_verdicts.json", {"provenance": provenance(), "searches": entries})
    atomic_write_text(RESULTS / "demo_verdicts.md", report(entries))


def report(entries: list[dict]) -> str:
    """Lay out the counts with Wilson intervals, and every search."""
    lines = [
        "# Verdicts on the demo", "",
        "`python benchmarks/verdict/demo_verdicts.py`", "",
        f"{provenance()['machine']['processor']}, {platform.platform()}; wall seconds are of a machine that did other "
        "work at the same time, and of this call alone where a search was resumed.", "",
        "| demo | searches | improves | 95 % interval | no better than base | not enough evidence |",
        "|---|---:|---:|---|---:|---:|",
    ]  # fmt: skip
    for kind in ("poor", "null"):
        answers = [entry["answer"] for entry in entries if entry["kind"] == kind]
        if not answers:
            continue
        count = answers.count("improves")
        interval = binomtest(count, len(answers)).proportion_ci(method="wilson")
        lines.append(
            f"| {kind} | {len(answers)} | {count} | {interval.low:.0%} to {interval.high:.0%} "
            f"| {answers.count('no better than base')} | {answers.count('not enough evidence')} |"
        )
    lines += ["", "| demo | seed | answer | gain [interval] | predicted | pairs | rounds | runs | training s |",
              "|---|---:|---|---|---:|---:|---:|---:|---:|"]  # fmt: skip
    for e in entries:
        gain = e["gain"]
        lines.append(
            f"| {e['kind']} | {e['seed']} | {e['answer']} | {gain['value']:+.2%} [{gain['lower']:+.2%}, "
            f"{gain['upper']:+.2%}] | {e['predicted_gain']['value']:+.2%} | {e['pairs']} | {e['rounds']} | {e['runs']} "
            f"| {e['training_seconds']:.0f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
