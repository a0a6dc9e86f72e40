"""Record a finished search: its numbers as JSON, its tables and the machine as Markdown.

python cli.py search benchmarks/verdict/sft5.yaml --out runs/sft5
python benchmarks/verdict/record.py runs/sft5
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from ideal_proxy.pipeline.finished import load_result
from ideal_proxy.report.text import result_tables
from ideal_proxy.store import atomic_write_json, atomic_write_text, read_json

RESULTS = Path(__file__).parent


def main() -> None:
    """Read the run directory and write `NAME.json` and `NAME.md` beside this script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--command", help="the line that began the search, where it is no run file of this folder")
    parser.add_argument("--out", type=Path, help="write OUT.json and OUT.md; default: beside this, by the run's name")
    given = parser.parse_args()
    run = given.run
    result, origin = load_result(run), read_json(run / "provenance.json")
    rate, plan = read_json(run / "rate.json"), read_json(run / "plan.json")
    frame = pd.read_parquet(run / "runs.parquet")
    name = result["name"]
    out = given.out or RESULTS / name
    atomic_write_json(out.with_suffix(".json"), {"result": result, "provenance": origin, "rate": rate, "plan": plan})
    machine = origin["machine"]
    verify = frame[frame["role"] == "verify"].groupby("seed").size()

    def interval(bound: dict) -> str:
        return f"{bound['value']:+.2%} [{bound['lower']:+.2%}, {bound['upper']:+.2%}]"

    rounds = [f"| {r['round']} | {interval(r['predicted_gain'])} |" for r in result["rounds"]]
    gains = ", ".join(f"{g:+.2%}" for g in result["verdict"]["gains_by_seed"])
    lines = [
        f"# {name}", "",
        f"`{given.command or _command(name, origin)}`, then `python benchmarks/verdict/record.py RUN`", "",
        f"{machine['processor']}, {machine['cores']} cores, {machine['system']}, "
        + ", ".join(f"{k} {v}" for k, v in origin["versions"].items() if k in {"python", "torch", "transformers"})
        + f", source {origin['git']}, {origin['time'][:10]}. {plan['workers']} workers of one thread; "
        "the machine did other work at the same time, so times are upper bounds."
        + (" Time and source are those of the plan that was made first." if "--dry-run" in origin["command"] else ""),
        "",
        f"Proxy: {plan['parameters']:,} parameters, φ = {plan['fraction']:g}, rate {rate['learning_rate']:g} "
        f"({rate['chosen']}: {rate.get('scores')}). {len(frame)} runs, {frame['tokens'].sum():,} tokens, "
        f"{frame['seconds'].sum() / 60:.0f} minutes of one worker. Fresh seeds of the check: {len(verify)}; "
        f"gain of each pair: {gains}.", "",
        *_memory(run),
        "| round | predicted gain |", "|---:|---|", *rounds, "",
        "```", result_tables(result, Path("RUN")), "```", "",
    ]  # fmt: skip
    atomic_write_text(out.with_suffix(".md"), "\n".join(lines))


def _command(name: str, origin: dict) -> str:
    """Say what was typed; a search that another script began has that script's line."""
    script, _, rest = origin["command"].partition(" ")
    return (
        f"python benchmarks/verdict/{script} {rest}"
        if (RESULTS / script).exists()
        else f"python cli.py search benchmarks/verdict/{name}.yaml"
    )


def _memory(run: Path) -> list[str]:
    """Lay out the memory of the workers, where a script watched it."""
    if not (run / "memory.json").exists():
        return []
    rows = [
        f"| {count} | {peak['rss'] / 2**20:,.0f} | {peak['pss'] / 2**20:,.0f} | {peak['uss'] / 2**20:,.0f} | "
        f"{peak['pss_together'] / 2**20:,.0f} |"
        for count, peak in read_json(run / "memory.json").items()
    ]
    return [
        "Most memory of a worker in MiB, looked at every 3 s: resident (RSS), with shared pages shared out (PSS), its "
        "own (USS), and the PSS of all workers at one time:", "",
        "| workers | RSS | PSS | USS | PSS together |", "|---:|---:|---:|---:|---:|", *rows, "",
    ]  # fmt: skip


if __name__ == "__main__":
    main()
