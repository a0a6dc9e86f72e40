"""Record a finished scale-up beside the search that it came from: its numbers as JSON, its tables as Markdown.

python cli.py scale-up runs/sft5/mixture.json --model scratch:10M --baseline --seeds 3 --fraction 0.1 --out runs/up
python benchmarks/target/scale_up.py runs/up sft5_scaleup_10M     (a run with --refine: refine)
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from ideal_proxy.scaleup.result import scale_up_tables
from ideal_proxy.store import atomic_write_json, atomic_write_text, read_json

RESULTS = Path(__file__).parent
PRIVATE = re.compile(r"/\S+/(?=[^/\s]+)")  # folders of the machine that measured


def main() -> None:
    """Read the scale-up's folder and write `NAME.json` and `NAME.md` beside this script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    options = parser.parse_args()
    result = read_json(options.run / "result.json")
    origin = result["provenance"]
    origin["command"] = PRIVATE.sub("", origin["command"])
    atomic_write_json(RESULTS / f"{options.name}.json", result)
    machine, gain, train = origin["machine"], result["gain"], result["settings"]["train"]
    lines = [
        f"# {options.name}", "",
        f"`{origin['command']}`, then `python benchmarks/target/scale_up.py RUN {options.name}`", "",
        f"{machine['processor']}, {machine['cores']} cores, {machine['system']}, "
        + ", ".join(f"{k} {v}" for k, v in origin["versions"].items() if k in {"python", "torch", "transformers"})
        + f", source {origin['git']}, {origin['time'][:10]}; the machine did other work at the same time.", "",
        f"Mixture {result['mixture']}, {result['parameters']:,} parameters, {result['fraction']:.1%} of the rows "
        f"({result['rows']:,} rows, {result['tokens']:,} tokens, {result['steps']} steps), rate "
        f"{train['learning_rate']:g}, seeds {', '.join(map(str, result['seeds']))}"
        + (f", {result['peak_memory_bytes'] / 2**30:.2f} GiB at the peak" if result.get("peak_memory_bytes") else "")
        + ". "
        + ("" if gain is None or "gains_by_seed" not in gain else "Gain of each pair of seeds: "
        + ", ".join(f"{g:+.2%}" for g in gain["gains_by_seed"])
        + f". Ratios inside the predicted interval: {result['inside']['count']} of {result['inside']['of']}."), "",
        "```", scale_up_tables(result, "RUN"), "```", "",
    ]  # fmt: skip
    atomic_write_text(RESULTS / f"{options.name}.md", "\n".join(lines))


if __name__ == "__main__":
    main()
