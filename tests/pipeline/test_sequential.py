"""The check's mathematics on pairs of known truth: what it finds, what it takes for a gain, and its intervals."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from ideal_proxy.pipeline.sequential import Spread, boundary, futile, moderated, pairs_that_decide, planned_looks

LOOKS = (3, 5, 8)
PATHS = 20_000


def found(gain, *, degrees=4.0, known=1.0, rows=0.0, seed=1):
    """Share of checks that prove a gain, of pairs with unit scatter: by the boundaries alone, without a stop."""
    rng = np.random.default_rng(seed)
    pairs = gain + rng.standard_normal((PATHS, LOOKS[-1])) + rows * rng.standard_normal((PATHS, 1))
    variance = known**2 * (rng.chisquare(degrees, PATHS) / degrees if degrees else np.ones(PATHS))
    edges, prior, proved = boundary(LOOKS, degrees), Spread(variance, degrees), np.zeros(PATHS, dtype=bool)
    for look in LOOKS:
        spread = moderated(pairs[:, :look].var(axis=1, ddof=1), look - 1, prior)
        proved |= pairs[:, :look].mean(axis=1) > edges.half_width(look, spread, rows)
    return proved.mean()


@pytest.mark.parametrize("degrees", [0.0, 2.0, 4.0])
def test_a_gain_that_is_not_there_is_found_in_five_percent_over_all_looks(degrees):
    assert found(0.0, degrees=degrees) == pytest.approx(0.05, abs=0.005)


def test_a_gain_of_one_scatter_is_found_by_eight_pairs():
    assert found(1.0) > 0.825  # 83.2 in 100,000 paths
    assert found(1.0, degrees=0.0) > 0.79
    assert found(0.5) < 0.5


def test_a_prior_wrong_by_two_costs_little():
    for known in (0.5, 2.0):
        assert found(0.0, known=known) < 0.07
        assert found(1.0, known=known) > 0.74


def test_the_rows_error_is_never_averaged_away_by_pairs():
    assert found(0.0, rows=0.5) < 0.055
    edges = boundary(LOOKS, 4.0)
    wide = [float(edges.half_width(look, 1.0, 1.0)) for look in LOOKS]
    assert wide[-1] > edges.rows[-1] > 1.6
    assert wide == sorted(wide, reverse=True)


def test_one_look_is_students_interval():
    for pairs, level in ((3, 0.95), (8, 0.99)):
        only = boundary((pairs,), 0.0, level)
        assert only.pairs[0] == pytest.approx(stats.t.ppf(level, pairs - 1), rel=0.02)
        assert only.rows[0] == pytest.approx(stats.norm.ppf(level), rel=0.01)


def test_variances_are_combined_by_their_degrees_where_they_agree_and_the_pairs_win_where_not():
    one = np.array(1.0)
    assert moderated(one, 7, Spread(np.array(7.0), 0.0)) == 1.0
    assert moderated(one, 4, Spread(one, 40.0)) == 1.0
    near, far = (float(moderated(one, 7, Spread(np.array(x), 4.0))) for x in (1.2, 100.0))
    assert near == pytest.approx((4 * 1.2 + 7) / 11, rel=0.02)
    assert 1.0 < far < 3.0  # 37 if each degree counted
    assert float(moderated(one, 2, Spread(np.array(100.0), 4.0))) > far  # fewer pairs contradict it less


def test_looks_are_planned_between_first_and_last():
    assert planned_looks(3, 8) == (3, 5, 8)
    assert planned_looks(4, 4) == (4,)
    assert planned_looks(2, 4) == (2, 3, 4)


def test_pairs_that_would_decide_do_decide_and_a_hopeless_check_is_seen():
    edges = boundary(LOOKS, 4.0)
    needed = pairs_that_decide(0.003, 0.01**2, 0.0, 8, edges, -1.0)
    assert needed is not None
    assert edges.half_width(needed, 0.01**2, 0.0) < 0.003
    assert edges.half_width(needed - 1, 0.01**2, 0.0) >= 0.003
    assert pairs_that_decide(0.003, 0.01**2, 0.01, 8, edges, -1.0) is None, "rows alone hide it"
    assert futile(-0.005, 0.01**2, 0.0, 5, edges)
    assert not futile(0.005, 0.01**2, 0.0, 5, edges)
    assert not futile(-0.005, 0.01**2, 0.0, 8, edges), "the last look is not stopped before it"
