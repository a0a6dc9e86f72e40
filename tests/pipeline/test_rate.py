"""The learning-rate sweep: the smaller of level rates, and no answer from the edge."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest

from ideal_proxy.pipeline.rate import choose_rate
from ideal_proxy.terminal import Reporter


def laboratory(best: float, curvature: float = 0.05):
    """A bench whose relative loss is a parabola in log rate around `best`."""
    asked = []

    def sweep(rates):
        asked.append(tuple(rates))
        return {r: 1 + curvature * math.log(r / best) ** 2 for r in rates}

    return SimpleNamespace(
        plan=SimpleNamespace(rates=(1e-3, 2e-3, 4e-3)),
        sweep=sweep,
        asked=asked,
        lower="",
        reporter=Reporter(quiet=True),
    )


@pytest.mark.parametrize(("best", "sweeps"), [(2e-3, 1), (8e-3, 3), (0.5e-3, 3), (1.0, 4)])
def test_the_sweep_goes_on_until_the_best_lies_inside(tmp_path, best, sweeps):
    bench = laboratory(best)
    rate = choose_rate(bench, tmp_path / "rate.json")
    assert len(bench.asked) == sweeps  # never more than three extensions
    if best < 1:
        assert rate == pytest.approx(best)
    assert json.loads((tmp_path / "rate.json").read_text())["learning_rate"] == rate


def test_of_level_rates_the_smaller_is_taken(tmp_path):
    rate = choose_rate(laboratory(2.2e-3, curvature=1e-4), tmp_path / "rate.json")
    assert rate == 1e-3


def test_a_rate_once_chosen_stays(tmp_path):
    first = choose_rate(laboratory(2e-3), tmp_path / "rate.json")
    assert choose_rate(laboratory(8e-3), tmp_path / "rate.json") == first


def test_a_resumed_search_takes_the_sweeps_runs_up_again(tmp_path):
    choose_rate(laboratory(8e-3), tmp_path / "rate.json")
    resumed = laboratory(8e-3)
    choose_rate(resumed, tmp_path / "rate.json")
    assert resumed.asked == [(1e-3, 2e-3, 4e-3, 8e-3, 16e-3)]
