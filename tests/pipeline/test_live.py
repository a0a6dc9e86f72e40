"""What a search's panel says of its finished runs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from builders import config_of

from ideal_proxy.pipeline.live import BEST, EVIDENCE, TIME, Watcher
from ideal_proxy.pipeline.stage import LOWER, Stage
from ideal_proxy.pipeline.status_record import StatusRecord
from ideal_proxy.store import atomic_write_json, mark_complete
from ideal_proxy.terminal import Reporter

BASE = (100, 100)


def finished(name: str, rows: tuple[int, int], losses: tuple[float, float]) -> Any:
    return SimpleNamespace(spec=SimpleNamespace(id=name, rows=rows)), np.array(losses)


@pytest.mark.parametrize(("kind", "best"), [("mean", "+7.5%"), ("worst", "+5.0%")])
def test_the_best_run_is_told_against_the_mean_of_bases_own(tmp_path, kind, best):
    reporter = Reporter()
    config = config_of(["facts", "lists"], ["facts", "lists"], objective={"kind": kind})
    watcher = Watcher(config, tmp_path, reporter, None)  # type: ignore[arg-type]
    watcher.evidence([finished("a", (10, 190), (0.5, 0.5))], BASE)
    assert BEST not in reporter._facts, "nothing to compare with yet"
    runs = [finished("b", BASE, (0.9, 2.0)), finished("c", BASE, (1.1, 2.0)), finished("a", (150, 50), (0.95, 1.8))]
    watcher.evidence(runs, BASE)
    watcher.evidence([finished("d", (50, 150), (1.2, 2.0))], BASE)
    assert reporter._facts[EVIDENCE] == "4 runs of 3 mixtures"
    assert reporter._facts[BEST].startswith(f"{best} against base")
    watcher.best("+3.1% predicted")
    watcher.evidence([finished("e", (50, 150), (0.1, 0.1))], BASE)
    assert reporter._facts[BEST] == "+3.1% predicted", "no lucky run stands in its place"


@pytest.mark.parametrize("part", ["", f"{LOWER}/0.1M"])
def test_the_time_left_is_that_of_the_whole_search(tmp_path, part):
    """Also while a ladder's lower size is trained, in a folder of its own."""
    atomic_write_json(tmp_path / "plan.json", {"workers": 2})
    metrics = {"spec": {"role": "warm"}, "tokens": 1_000, "train_seconds": 9.0, "evaluate_seconds": 1.0}
    atomic_write_json(tmp_path / "runs/a/metrics.json", metrics)
    mark_complete(tmp_path / "runs/a")
    plan = [
        {"name": "warm start", "runs": 1, "tokens": 1_000, "seconds": 1.0},
        {"name": "swarm", "runs": 12, "tokens": 24_000, "seconds": 1.0},
    ]
    reporter, record = Reporter(), StatusRecord(tmp_path, plan)
    record.stage(Stage.WARM_START)
    Watcher(config_of(["facts", "lists"], ["facts"]), tmp_path / part, reporter, record).time()
    assert reporter._facts[TIME] == "0 s so far, at most 2 min left"  # 24,000 tokens at 100 a second, two at once
