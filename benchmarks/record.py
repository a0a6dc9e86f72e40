"""Record a finished search: its numbers as JSON, its tables and the machine as Markdown.

python cli.py search benchmarks/sft5.yaml --out runs/sft5
python benchmarks/record.py runs/sft5
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from ideal_proxy.show import load_result, result_tables
from ideal_proxy.store import atomic_write_json, atomic_write_text, read_json

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Read the run directory and write `results/NAME.json` and `results/NAME.md`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    run = parser.parse_args().run
    result, origin = load_result(run), read_json(run / "provenance.json")
    rate, plan = read_json(run / "rate.json"), read_json(run / "plan.json")
    frame = pd.read_parquet(run / "runs.parquet")
    name = result["name"]
    atomic_write_json(RESULTS / f"{name}.json", {"result": result, "provenance": origin, "rate": rate, "plan": plan})
    machine = origin["machine"]
    verify = frame[frame["role"] == "verify"].groupby("seed").size()

    def interval(bound: dict) -> str:
        return f"{bound['value']:+.2%} [{bound['lower']:+.2%}, {bound['upper']:+.2%}]"

    rounds = [
        f"| {r['round']} | {r['answer']} | {interval(r['gain'])} | {interval(r['predicted_gain'])} | {r['pairs']} |"
        for r in result["rounds"]
    ]
    gains = ", ".join(f"{g:+.2%}" for g in result["verdict"]["gains_by_seed"])
    lines = [
        f"# {name}", "",
        f"`python cli.py search benchmarks/{name}.yaml`, then `python benchmarks/record.py RUN`", "",
        f"{machine['processor']}, {machine['cores']} cores, {machine['system']}, "
        + ", ".join(f"{k} {v}" for k, v in origin["versions"].items() if k in {"python", "torch", "transformers"})
        + f", source {origin['git']}, {origin['time'][:10]}. {plan['workers']} workers of one thread; "
        "the machine did other work at the same time, so times are upper bounds.", "",
        f"Proxy: {plan['parameters']:,} parameters, φ = {plan['fraction']:g}, rate {rate['learning_rate']:g} "
        f"({rate['chosen']}: {rate.get('scores')}). {len(frame)} runs, {frame['tokens'].sum():,} tokens, "
        f"{frame['seconds'].sum() / 60:.0f} minutes of one worker. Fresh seeds of the check: {len(verify)}; "
        f"gain of each pair of the round kept: {gains}.", "",
        "| round | verdict | verified gain | predicted gain | pairs |", "|---:|---|---|---|---:|", *rounds, "",
        "```", result_tables(result, Path("RUN")), "```", "",
    ]  # fmt: skip
    atomic_write_text(RESULTS / f"{name}.md", "\n".join(lines))


if __name__ == "__main__":
    main()
