"""How much is there to gain on a target at all? Our fit of every run that the target had, and its best mixture.

    python benchmarks/proof/ceiling.py

Reads what `real.py` recorded: each contender's mixture trained on the target, base beside it, and the proxies' table,
which counts as runs of a smaller size. The best mixture of that fit, within the contenders' bounds and no farther than
the runs went, is what a search with the target's own answers would propose; its gain is corrected for being chosen.
To see what the fit is worth, each contender's gain is foretold from the runs of all others.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

ROOT = Path(__file__).resolve().parents[2]
for place in (ROOT, ROOT / "benchmarks", ROOT / "benchmarks" / "proof"):
    sys.path.insert(0, str(place))
HERE = Path(__file__)
MANY = 10**6  # pairs: the noise of single runs is left out
# Those of `real.py` whose optimum is not at the bounds.
SUITES = ("sft5", "sft5_all", "skills", "skills_clean", "unseen", "demo")


def table_of(suite: str) -> tuple[Any, list[str], Any]:
    """The task, each target run's contender, and all runs: proxies first, then the target's."""
    import jsonl
    import real
    from peers.task import Runs

    told, task, pool = real.read_pool(suite)
    tokens = json.loads((HERE.parent / "predictions" / f"{suite}.json").read_text())["mixtures"]
    rows = jsonl.read(HERE.parent / f"real_{suite}.jsonl")
    mixtures = {"base": task.base} | {name: np.array(record["tokens"]) for name, record in tokens.items()}
    runs = Runs(
        np.vstack([pool.volumes, *(mixtures[row["contender"]] for row in rows)]),
        np.vstack([pool.losses, *(row["losses"] for row in rows)]),
        np.append(pool.seeds, [row["seed"] for row in rows]),
    )
    return (told, task), [""] * len(pool.losses) + [row["contender"] for row in rows], runs


def fit(told: dict, task: Any, contenders: list[str], runs: Any, keep: np.ndarray) -> Any:
    """Fit the kept runs of the target and all proxies."""
    import real

    from ideal_proxy.response import SMALLER_SIZE, ResponseModel, fit_kinds

    model = ResponseModel(available=task.available, base=task.base, random_state=0)
    options = real.fitting_of(told)
    before = options["baseline_loss"]
    kinds = np.where(np.array(contenders) == "", "proxies", "")[keep].tolist()
    V, L = (pd.DataFrame(part[keep]) for part in (runs.volumes, runs.losses))
    fit_kinds(
        model, V, L, kinds, {"proxies": SMALLER_SIZE}, {"proxies": before}, seed_id=runs.seeds[keep],
        run_id=np.flatnonzero(keep), **options,
    )  # fmt: skip
    return model


def one_suite(suite: str) -> dict[str, Any]:
    import real
    from peers import ours
    from peers.task import Runs

    from ideal_proxy.response import compare

    (told, task), contenders, runs = table_of(suite)
    of = np.array(contenders)
    model = fit(told, task, contenders, runs, np.ones(len(of), dtype=bool))
    found: dict[str, Any] = {"suite": suite, "runs": int((of != "").sum())}
    target_runs = Runs(runs.volumes[of != ""], runs.losses[of != ""], runs.seeds[of != ""])
    rivals = {"base": task.base}
    if suite == "sft5":
        rivals["all rows once"] = runs.volumes[contenders.index("all rows once")]
    for name, protect in (("free", None), ("protected", 0.02)):
        best = ours.Ours(protect=protect).best(model, task, target_runs)
        found[name] = {"tokens": best.round(1).tolist()}
        for rival, volumes in rivals.items():
            gain = compare(model, best, volumes, pairs=MANY, chosen=True).gain
            found[name][rival] = [gain.value, gain.lower, gain.upper]
    seen = {name: 100 * (1 - pairs.mean()) for name, pairs in real.outcomes(suite).items()}
    found["best seen"] = max(seen.items(), key=lambda item: item[1])
    foretold = {}
    for name in seen:
        same = np.isclose(runs.volumes, runs.volumes[contenders.index(name)]).all(axis=1) & (of != "")
        left = fit(told, task, contenders, runs, ~same)
        gain = compare(left, runs.volumes[contenders.index(name)], task.base, pairs=MANY).gain
        foretold[name] = 100 * gain.value
    both = np.array([[foretold[name], seen[name]] for name in seen])
    found["left out"] = {
        "foretold": foretold, "seen": seen, "rmse": float(np.sqrt(np.mean((both[:, 0] - both[:, 1]) ** 2))),
        "spearman": float(spearmanr(*both.T).statistic),
    }  # fmt: skip
    return found


def main() -> None:
    from efficiency import text

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--show", action="store_true", help="only write the page of what was recorded")
    kept = HERE.with_suffix(".json")
    if not parser.parse_args().show:
        logging.disable(logging.WARNING)
        warnings.filterwarnings("ignore")
        kept.write_text(json.dumps([one_suite(suite) for suite in SUITES], indent=1) + "\n")
    found = json.loads(kept.read_text())

    def points(value: list[float]) -> str:
        return text(tuple(100 * v for v in value), "+")

    lines = []
    for told in found:
        name, gain = told["best seen"]
        left = told["left out"]
        for rival in [key for key in told["free"] if key != "tokens"]:
            cells = [points(told["free"][rival]), "", "", "", ""]
            if rival == "base":  # which is what the limit of the protected one is measured from
                cells[1:] = [points(told["protected"][rival]), f"{name} {gain:+.2f}"]
                cells += [f"{left['rmse']:.2f}", f"{left['spearman']:.2f}"]
            lines.append(f"| {told['suite']} against {rival} | {told['runs']} | " + " | ".join(cells) + " |")
    page = [
        "# What there is to gain on the targets", "",
        "`python benchmarks/proof/ceiling.py`, from what `real.py` recorded.", "",
        "The best mixture of a fit to all runs of the target, within the contenders' bounds: gain in per cent of the",
        "mean relative loss with its 90 % interval, free and with no loss raised by more than 2 %; the best contender",
        "that was trained (chosen after seeing all); error in points and Spearman's ρ of contenders' gains foretold",
        "from the runs of all others.", "",
        "| target | runs | best, free | best, protected | best seen | error | ρ |",
        "|---|---:|---|---|---|---:|---:|", *lines, "",
    ]  # fmt: skip
    HERE.with_suffix(".md").write_text("\n".join(page))


if __name__ == "__main__":
    main()
