"""The proof in one table: every contender on every suite, from what the other scripts recorded; what is empty says so.

python benchmarks/proof/proof.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
SUITES = {  # suite: (what it is, command)
    "skills": ("16 generators, a shuffled and a copied domain", "real.py targets --suite skills"),
    "skills_clean": ("the same without those two", "real.py targets --suite skills_clean"),
    "sft5": ("five real domains, uneven base; proxies 1M, target 10M", "real.py targets --suite sft5"),
    "sft5_all": ("the same, all rows as base", "real.py targets --suite sft5_all"),
    "traces": ("traces near 4,000 tokens beside short rows", "real.py targets --suite traces"),
    "demo": ("the demo with its poor base, by loss", "real.py targets --suite demo"),
    "smollm2": ("mixtures of `skills` on SmolLM2-135M-Instruct (LoRA), by loss", "pretrained.py run"),
}
CONTENDERS = (
    "all rows once", "equal rows", "temperature 2", "best of random", "RegMix", "Olmix, KL 0.05", "Olmix, KL 0.005",
    "GP, lowest mean", "DoReMi", "DoGE", "IDEAL's rule, two rounds", "OP-Mix", "ours", "ours, protected",
    "ours, with gradients",
)  # fmt: skip
EMPTY = "·"
NOT_SHOWN = (
    "No pretrained model decided anything here: SmolLM2-135M, the 10M target and exact match on `skills` are prepared, "
    "and their rows are empty.",
    "The curve's surfaces are synthetic and were drawn by the makers of one of the contenders; trained models compare "
    "the contenders in one suite, from scratch, at 1M parameters, over three seeds; there ours is not surely above "
    "equal rows, which needs no search.",
    "Nothing here says that a mixture found by small proxies helps a model of a billion parameters or more.",
)


def gains(suite: str) -> dict[str, str]:
    """Observed gain over base by contender, in per cent, from recorded targets."""
    from efficiency import text
    from real import pair_interval

    path = HERE / f"real_{suite}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    by = {(row["contender"], row["seed"]): np.array(row["losses"]) for row in rows}
    told: dict[str, list[float]] = {}
    for (name, seed), losses in by.items():
        if name != "base" and ("base", seed) in by:
            told.setdefault(name, []).append(100.0 * (1.0 - float(np.mean(losses / by["base", seed]))))
    return {name: f"{text(pair_interval(np.array(g)), '+')} (n {len(g)})" for name, g in told.items()}


def main() -> None:
    columns = {suite: gains(suite) for suite in SUITES}
    lines = [
        "# The proof, as far as it is", "",
        "`python benchmarks/proof/proof.py`. Gain over base in per cent of the mean relative loss on unseen rows and",
        f"seeds [95 % interval of the pairs]; {EMPTY} is empty: not run. Rows of every figure: `real_SUITE.jsonl`,",
        "`efficiency.jsonl`; predictions made before outcomes: `predictions/`. Proxies of 0.1M and targets of 1M where",
        "nothing else is said. Ours reads the same table of runs as the others, without gradients; with them, beside.",
        "", "| contender | " + " | ".join(SUITES) + " |", "|---" * (len(SUITES) + 1) + "|",
    ]  # fmt: skip
    for name in CONTENDERS:
        lines.append(f"| {name} | " + " | ".join(columns[suite].get(name, EMPTY) for suite in SUITES) + " |")
    lines += ["", "| suite | what | command |", "|---|---|---|"]
    lines += [f"| {suite} | {what} | `{command}` |" for suite, (what, command) in SUITES.items()]
    lines += [
        "", "Regret over compute, on surfaces of known truth and on RegMix's 512 real runs:",
        "[efficiency.md](efficiency.md). What the limit to the explored region costs: [explored.md](explored.md).",
        "Steps on one GPU: [gpu.md](gpu.md).", "", "## At equal compute, 16 runs", "",
        "The best other contender is chosen after seeing all of them, which flatters it.", "",
        "| surface | best other | its regret | ours | difference | n |", "|---|---|---|---|---|---:|",
    ]  # fmt: skip
    for found in json.loads((HERE / "efficiency.json").read_text())["first"]:
        if found["runs"] == 16:
            mean, low, high = (np.nan if v is None else v for v in found["difference"])
            interval = "" if np.isnan(low) else f" [{low:+.2f}, {high:+.2f}]"
            lines.append(f"| {found['surface']} | {found['rival']} | {found['theirs']:.2f} | {found['ours']:.2f} "
                         f"| {mean:+.2f}{interval} | {found['n']} |")  # fmt: skip
    lines += ["", "## What was not shown", "", *(f"{n}. {said}" for n, said in enumerate(NOT_SHOWN, 1)), ""]
    (HERE / "proof.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
