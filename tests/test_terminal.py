"""What long commands say while they work."""

from __future__ import annotations

from ideal_proxy.terminal import remaining


def test_a_forecast_that_is_given_wins_over_a_straight_line():
    # One step of a hundred after eleven seconds, ten of them imports: the swarm knows better.
    assert remaining(0.01, 1.0, 11.0) == "about 18 min left"
    assert remaining(0.01, 1.0, 11.0, 60.0) == "about 60 s left"
    assert remaining(0.5, 1.0, 11.0, 0.0) == "about 0 s left"
    assert remaining(0.0, 1.0, 11.0, 60.0) == "", "nothing was done"
