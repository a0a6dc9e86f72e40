"""Real runs: contenders that read one and the same table of proxy runs, and their mixtures trained on a larger model.

    python benchmarks/proof/suites.py skills --out runs/suites
    python benchmarks/proof/real.py pool --suite skills       # proxies of 0.1M: the table that every contender reads
    python benchmarks/proof/real.py propose --suite skills    # mixtures and predictions, to be committed now
    python benchmarks/proof/real.py targets --suite skills --seeds 3
    python benchmarks/proof/real.py show --suite skills

Rows are a share φ of the suite's, for proxies and target alike, so that repeats are equal; volumes keep base's tokens
and lie within e^±2 of base, no row more than four times. Base is all rows once (sft5: the uneven base). Proxies are
judged on the search half of the reference rows, targets on the other half, on seeds that no proxy had. Each stage is
kept (`--work`), and a stopped one goes on. `predictions/NAME.json` is not written anew once there are outcomes.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
for place in (ROOT, ROOT / "benchmarks", ROOT / "benchmarks" / "gradients", ROOT / "benchmarks" / "proof"):
    sys.path.insert(0, str(place))
HERE = Path(__file__).parent
RANGE, CAP = 2.0, 4.0
SETTINGS: dict[str, dict[str, Any]] = {
    "skills": {"fraction": 0.05, "context": 256, "vocabulary": 1024, "runs": 40, "judged": 60},
    "sft5": {"fraction": 0.05, "context": 512, "vocabulary": 2048, "runs": 18, "judged": 60},
}
RATES = {"0.1M": 4e-3, "1M": 2e-3, "3M": 1.4e-3}
UNEVEN = {"mathematics": 1.0, "coding": 0.1, "reasoning": 1.0, "instruction": 0.3, "trust": 1.0}
POISONED = ("shuffled", "copy")
STEP, STEP_SD = 0.75, 0.35  # of log losses from proxies to a larger model, before any is seen


class Setting:
    """A suite's rows at φ, as a task in tokens and as a problem whose proxies can be trained."""

    def __init__(self, suite: str, suites: Path, work: Path, size: str, half: str, workers: int = 1) -> None:
        from peers.task import Task
        from problem import prepare_rows

        from ideal_proxy.data.rows import read_rows

        told = SETTINGS[suite]
        folder = suites / suite if suite == "skills" else ROOT.parent / "shared" / "data" / suite
        train = {path.parent.name: list(read_rows(path)) for path in sorted(folder.glob("*/train.jsonl"))}
        train = {name: rows[: max(30, round(told["fraction"] * len(rows)))] for name, rows in train.items()}
        judge = {path.parent.name: list(read_rows(path)) for path in sorted(folder.glob("*/reference.jsonl"))}
        self.problem = prepare_rows(
            suite, work / f"{suite}-{size}-{half}", train, judge, size=size, context=told["context"],
            vocabulary=told["vocabulary"], learning_rate=RATES[size], workers=workers, half=half,
            most_judged=told["judged"],
        )  # fmt: skip
        self.names, self.capabilities = self.problem.names, tuple(self.problem.references)
        self.per_row = np.array([rows.lengths.mean() for rows in self.problem.domains.values()])
        available = self.problem.base * self.per_row
        base = available * [UNEVEN[name] if suite == "sft5" else 1.0 for name in self.names]
        self.task = Task(base, available, base * np.exp(-RANGE), np.minimum(CAP * available, base * np.exp(RANGE)))

    def rows(self, volumes: np.ndarray) -> np.ndarray:
        """Whole rows of a mixture in tokens."""
        from ideal_proxy.mixture.draws import apportion

        rows = volumes / self.per_row
        return apportion(rows, round(float(rows.sum()))).astype(float)

    def train(self, volumes: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        return self.problem.losses([(self.rows(v), int(s)) for v, s in zip(volumes, seeds, strict=True)])


def pool(given: argparse.Namespace) -> None:
    """Train the table of runs: base with both seeds, and mixtures that fill the bounds."""
    from peers import ours

    setting = Setting(given.suite, given.suites, given.work, "0.1M", "search", given.workers)
    volumes, seeds = ours.design(setting.task, SETTINGS[given.suite]["runs"], 0)
    losses = setting.train(volumes, seeds + 1)
    before = setting.problem.losses([(np.zeros(len(setting.names)), 0)])[0]
    told = {
        "suite": given.suite, "size": "0.1M", **SETTINGS[given.suite], "domains": setting.names,
        "capabilities": setting.capabilities, "base_tokens": setting.task.base.round(1).tolist(),
        "tokens_per_row": setting.per_row.round(3).tolist(), "volumes": volumes.round(1).tolist(),
        "seeds": (seeds + 1).tolist(), "losses": losses.round(5).tolist(), "before": before.round(5).tolist(),
    }  # fmt: skip
    (HERE / f"real_{given.suite}_pool.json").write_text(json.dumps(told) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("pool", "online", "propose", "targets", "show"))
    parser.add_argument("--suite", choices=tuple(SETTINGS), default="skills")
    parser.add_argument("--suites", type=Path, default=Path("runs/suites"))
    parser.add_argument("--work", type=Path, default=Path("runs/proof"))
    parser.add_argument("--size", default="1M", help="of the target")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    globals()[given.stage](given)


if __name__ == "__main__":
    main()
