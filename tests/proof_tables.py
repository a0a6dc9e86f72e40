"""What tests of the proof build: recorded runs and predictions of a suite, made up, in a folder of their own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def write_runs(path: Path, runs: Mapping[str, Mapping[int, Sequence[float]]], **about: Any) -> None:
    """Add runs of the target to a file: losses by contender and seed."""
    with path.open("a", encoding="utf-8") as file:
        for name, by_seed in runs.items():
            for seed, losses in by_seed.items():
                file.write(json.dumps({"contender": name, "seed": seed, "losses": list(losses), **about}) + "\n")


def write_predictions(folder: Path, suite: str, /, **told: Any) -> None:
    """Write what was predicted of a suite's mixtures."""
    place = folder / "predictions" / f"{suite}.json"
    place.parent.mkdir(exist_ok=True)
    place.write_text(json.dumps(told), encoding="utf-8")


def write_pool(folder: Path, suite: str, /, **told: Any) -> None:
    """Write the table of proxy runs of a suite."""
    (folder / f"real_{suite}_pool.json").write_text(json.dumps(told), encoding="utf-8")
