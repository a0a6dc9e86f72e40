"""What a search's panel says of its finished runs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from builders import config_of

from ideal_proxy.pipeline.live import BEST, EVIDENCE, Watcher
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
