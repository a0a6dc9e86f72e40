"""One rule for every interval: known answers for the mean, weights and the worst, and coverage on simulated draws."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from ideal_proxy.response.model import ResponseModel
from ideal_proxy.response.prediction import combine, compare
from ideal_proxy.response.relative import Yardstick

Z = norm.ppf(0.95)


@dataclass
class Known:
    """Losses that double as the first volume doubles; draws scatter by what is given."""

    draws_SJ: np.ndarray[Any, Any]
    residual_scale_: np.ndarray[Any, Any]

    def value_and_gradient(self, v):
        value = np.array([2.0, 1.0, 4.0]) * v[0] ** np.array([1.0, -0.1, 0.0])
        return value, np.zeros((3, len(v)))

    def draws_value_and_gradient(self, v):
        return self.value_and_gradient(v)[0] * (1 + (v[0] - 1) * self.draws_SJ), None


def surface(spread=(0.0, 0.0, 0.0), noise=(0.0, 0.0, 0.0), draws=20_000):
    rng = np.random.default_rng(0)
    scatter = rng.standard_normal((draws, 3)) * spread
    return Known(scatter - scatter.mean(axis=0), np.array(noise))


OTHER, MIXTURE = np.array([1.0, 1.0]), np.array([2.0, 1.0])
RATIO = np.array([2.0, 2**-0.1, 1.0])


def test_values_by_hand_and_a_mixture_is_never_better_than_itself():
    found = compare(surface(), MIXTURE, OTHER, pairs=3)
    assert [r.value for r in found.ratios] == pytest.approx(RATIO.tolist())
    assert found.gain.value == pytest.approx(1 - RATIO.mean())
    assert found.other.tolist() == [2.0, 1.0, 4.0]
    same = compare(surface(noise=(1, 1, 1)), OTHER, OTHER, pairs=3)
    assert (same.gain.value, same.gain.lower, same.gain.upper) == (0, 0, 0)


def test_what_runs_miss_together_widens_the_mean_and_no_single_capability():
    alone, together = surface((0.1, 0.1, 0.1), (0.2, 0.1, 0.4)), surface((0.1, 0.1, 0.1), (0.2, 0.1, 0.4))
    together.correlation_ = np.ones((3, 3))  # type: ignore[attr-defined]
    a, b = (compare(s, MIXTURE, OTHER, pairs=3) for s in (alone, together))
    assert [x.lower for x in a.ratios] == [x.lower for x in b.ratios]
    run, draws = np.array([0.1, 0.1, 0.1]) * np.sqrt(2 / 3), RATIO * 0.1
    assert b.gain.upper - b.gain.value == pytest.approx(Z * np.hypot(run.sum(), draws.sum()) / 3, rel=0.02)
    assert a.gain.upper - a.gain.value == pytest.approx(Z * np.sqrt((run**2).sum() + (draws**2).sum()) / 3, rel=0.02)
    both = [compare(s, MIXTURE, OTHER, pairs=3, kind="worst").gain for s in (alone, together)]
    assert both[0].value == both[1].value


def test_a_fit_measures_what_runs_miss_together_and_keeps_it():
    rng = np.random.default_rng(3)
    volumes = 100.0 * np.exp(rng.uniform(-1, 1, (40, 3)))
    law = 2.0 + 1.5 / (1 + np.sqrt(volumes / 100) @ (0.3 + np.eye(3)).T)
    for share in (0.0, 0.9):
        noise = np.sqrt(1 - share) * rng.standard_normal((40, 3)) + np.sqrt(share) * rng.standard_normal((40, 1))
        model = ResponseModel(base=np.full(3, 100.0), process="never").fit(volumes, law * np.exp(0.01 * noise))
        off = model.correlation_[np.triu_indices(3, 1)]
        assert np.abs(off - share).max() < 0.25
        again = ResponseModel.from_json(json.dumps(model.to_json()))
        assert np.array_equal(again.correlation_, model.correlation_)


@pytest.mark.parametrize("pairs", [1, 3, 12])
def test_the_noise_of_runs_falls_with_pairs_and_adds_to_that_of_draws(pairs):
    found = compare(surface((0.1, 0, 0), (0.2, 0.05, 0.0)), MIXTURE, OTHER, pairs=pairs)
    run = np.array([0.2 / 2, 0.05 / 1, 0.0]) * np.sqrt(2 / pairs)
    half = Z * np.hypot(run, [0.2, 0, 0])  # the draws scatter by a tenth of the ratio 2
    assert [r.upper - r.value for r in found.ratios] == pytest.approx(half.tolist(), rel=0.02)
    wide = Z * np.hypot(0.2 / 3, np.sqrt((run**2).sum()) / 3)
    assert found.gain.upper - found.gain.lower == pytest.approx(2 * wide, rel=0.02)


def test_weights_decide_whose_noise_counts():
    uncertain_first = surface((0.1, 0.0, 0.0), (0.0, 0.0, 0.1))
    first = compare(uncertain_first, MIXTURE, OTHER, pairs=2, kind="weighted", weights=[1, 0, 0]).gain
    second = compare(uncertain_first, MIXTURE, OTHER, pairs=2, kind="weighted", weights=[0, 1, 0]).gain
    third = compare(uncertain_first, MIXTURE, OTHER, pairs=2, kind="weighted", weights=[0, 0, 3]).gain
    assert first.value == pytest.approx(-1)
    assert first.upper - first.lower == pytest.approx(2 * Z * 0.2, rel=0.02)
    assert second.upper - second.lower == pytest.approx(0, abs=1e-9)
    assert third.upper - third.lower == pytest.approx(2 * Z * 0.1 / 4, rel=0.02)


def test_the_interval_of_the_worst_is_that_of_the_worst():
    """Where one capability is far the worst, its noise alone counts; where all are level, the maximum's does."""
    alone = compare(surface((0.1, 0.3, 0.3), (0, 0, 0)), MIXTURE, OTHER, pairs=3, kind="worst").gain
    clear = compare(surface((0.1, 0.0, 0.0), (0, 0, 0)), MIXTURE, OTHER, pairs=3, kind="worst").gain
    assert alone.value == clear.value == pytest.approx(1 - 2.0)
    assert clear.upper - clear.lower == pytest.approx(2 * Z * 0.2, rel=0.03)
    noisy = compare(surface(noise=(0.4, 9.0, 0.0)), MIXTURE, OTHER, pairs=2, kind="worst").gain
    quiet = compare(surface(noise=(0.4, 0.0, 0.0)), MIXTURE, OTHER, pairs=2, kind="worst").gain
    assert quiet.upper - quiet.lower == pytest.approx(2 * Z * 0.2, rel=0.15)
    assert noisy.upper - noisy.lower > 3 * (quiet.upper - quiet.lower)


def test_scores_are_measured_by_their_scale():
    stick = Yardstick(("score", "loss", "loss"), np.array([4.0, np.nan, np.nan]))
    found = compare(surface(noise=(0.4, 0, 0)), MIXTURE, OTHER, pairs=2, yardstick=stick)
    assert found.ratios[0].value == pytest.approx(1 - (4.0 - 2.0) / 4.0)
    assert found.ratios[0].upper - found.ratios[0].value == pytest.approx(Z * 0.4 / 4)


def test_combine_by_hand():
    ratios = np.array([[0.8, 1.2], [1.0, 0.9]])
    assert combine(ratios, "mean") == pytest.approx([1.0, 0.95])
    assert combine(ratios, "mean", [1.0, 3.0]) == pytest.approx([1.0, 0.95])
    assert combine(ratios, "worst") == pytest.approx([1.2, 1.0])
    assert combine(ratios, "weighted", [1.0, 3.0]) == pytest.approx([1.1, 0.925])


def test_a_chosen_gain_is_shrunk_by_how_well_it_is_known():
    mixture = np.array([0.9, 1.0])
    for spread in (0.0, 0.2, 1.0):
        uncertain = surface((3 * spread, 0, 0))  # of the ratio 0.9 a part of 0.3 times the spread, a third in the mean
        plain, chosen = (compare(uncertain, mixture, OTHER, pairs=3, chosen=c).gain for c in (False, True))
        known = (plain.upper - plain.lower) / 2 / Z
        assert known == pytest.approx(0.09 * spread, rel=0.02)
        assert chosen.value == pytest.approx(plain.value * plain.value**2 / (plain.value**2 + known**2))
        assert chosen.upper - chosen.lower == pytest.approx(plain.upper - plain.lower), "no surer for being smaller"
    worse = np.array([1.5, 1.0])
    plain, chosen = (compare(uncertain, worse, OTHER, pairs=3, chosen=c).gain for c in (False, True))
    assert plain.value < 0
    assert chosen.value == plain.value, "a loss is told as it is"


def test_a_gain_is_taken_down_by_what_runs_of_base_show_that_the_fit_misses():
    noise = 0.01
    better = surface(noise=(2 * noise, noise, 4 * noise))
    mixture = np.array([0.9, 1.0])
    plain = compare(better, mixture, OTHER, pairs=3, chosen=True).gain
    assert plain.value == pytest.approx(1 - np.mean([0.9, 0.9**-0.1, 1.0]))
    found = {}
    for lower in (0.0, 0.002, 0.02, 0.2):  # base's runs lie below what is predicted there
        better.at_base_ = {"runs": 6, "values": [2.0 * (1 - lower), 1.0 - lower, 4.0 * (1 - lower)]}
        found[lower] = compare(better, mixture, OTHER, pairs=3, chosen=True).gain
    error, size = noise / np.sqrt(3 * 6), plain.value
    wide = {lower: (gain.upper - gain.lower) / 2 / Z for lower, gain in found.items()}
    doubt = {lower: np.sqrt(width**2 - noise**2 * 2 / 9) for lower, width in wide.items()}  # without the pairs' noise
    assert all(x > 0 for x in doubt.values()), "it may still be missed by a little"

    def told(lower, share):
        gain = plain.value - share * lower
        return gain**3 / (gain**2 + doubt[lower] ** 2) if gain > 0 else gain

    sure = size**2 / (size**2 + error**2)
    assert found[0.0].value == pytest.approx(told(0.0, 0.0))
    assert found[0.2].value == pytest.approx(told(0.2, sure), rel=1e-6), "surely missed: by precision"
    odds = 0.5 * norm.pdf(0.002, 0, np.hypot(size, error)) / norm.pdf(0.002, 0, error)
    assert found[0.002].value == pytest.approx(told(0.002, sure * odds / (1 + odds))), (
        "no more than noise: half believed"
    )
    better.at_base_["values"] = [2.2, 1.1, 4.4]
    assert compare(better, mixture, OTHER, pairs=3, chosen=True).gain.value > plain.value, "promised too little"
    assert compare(better, mixture, OTHER, pairs=3).gain.value == pytest.approx(plain.value), "not of any mixture"
