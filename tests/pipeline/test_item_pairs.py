"""Pairs judged by item and seed, clusters kept together; metrics that are noise are refused by name."""

from __future__ import annotations

import numpy as np
import pytest

from ideal_proxy.errors import UserError
from ideal_proxy.pipeline.evidence import noise_and_spread, refuse_poor_metrics
from ideal_proxy.pipeline.verdict import IMPROVES, PairedScores, Scored, judge
from ideal_proxy.proxy.items import Items
from ideal_proxy.response.relative import Yardstick
from ideal_proxy.sections import CapabilityConfig

STICK = Yardstick(("score",), np.array([1.0]))


def pairs_of(rng: np.random.Generator, gain: float, *, seeds: int, items: int, of_a_cluster: int) -> PairedScores:
    """Items of which clusters share what they gain by chance; seeds add little."""
    clusters = np.arange(items) // of_a_cluster
    luck = rng.normal(0, 0.2, clusters.max() + 1)[clusters] + rng.normal(0, 0.02, items)
    sides: list[list[Scored]] = [[], []]
    for _ in range(seeds):
        level = rng.normal(0.5, 0.1, items)
        for side, change in ((0, 0.0), (1, gain + luck + rng.normal(0, 0.002))):
            scores = level + change
            found = Items(tuple(map(str, range(items))), scores, tuple(map(str, clusters)))
            sides[side].append(Scored(found.mean, found))
    return PairedScores.of(*sides)


def false_alarms(kind: str) -> float:
    rng = np.random.default_rng(7)
    said = 0
    for _ in range(200):
        pairs = pairs_of(rng, 0.0, seeds=3, items=200, of_a_cluster=20)
        if kind == "seeds":
            pairs = PairedScores(pairs.base, pairs.proposal)
        elif kind == "items":
            pairs = PairedScores(pairs.base, pairs.proposal, pairs.items, np.arange(200))
        said += judge([pairs], yardstick=STICK, min_gain=1e-4).answer == IMPROVES
    return said / 200


def test_only_clusters_hold_the_level_where_items_share_their_luck() -> None:
    assert false_alarms("clusters") < 0.05 + 0.05
    assert false_alarms("items") > 0.15  # what a plain test of items would say
    assert false_alarms("seeds") > 0.3


def test_the_error_is_the_sandwich_over_clusters() -> None:
    rng = np.random.default_rng(2)
    pairs = pairs_of(rng, 0.1, seeds=4, items=60, of_a_cluster=6)
    verdict = judge([pairs], yardstick=Yardstick(("score",), np.array([0.5])))
    mean = pairs.items.mean(axis=0) / 0.5
    sums = np.array([(mean - mean.mean())[pairs.clusters == c].sum() for c in range(10)])
    assert verdict.row_noise == pytest.approx(np.sqrt(10 / 9 * (sums**2).sum()) / 60)
    assert verdict.gain.value == pytest.approx(mean.mean())
    alone = judge([PairedScores(pairs.base, pairs.proposal)], yardstick=Yardstick(("score",), np.array([0.5])))
    assert alone.row_noise == 0


def test_items_that_differ_between_runs_are_not_paired() -> None:
    one, two = Items(("a", "b"), np.array([0.0, 1.0]), ("a", "b")), Items(("a", "c"), np.array([0.0, 1.0]), ("a", "c"))
    pairs = PairedScores.of([Scored(0.5, one), Scored(0.5, one)], [Scored(0.5, one), Scored(0.5, two)])
    assert pairs.items is None
    assert PairedScores.of([Scored(0.5, None)], [Scored(0.5, None)]).items is None


def capability(**metric: object) -> CapabilityConfig:
    return CapabilityConfig.model_validate({
        "name": "maths", "path": "demo:facts", "metric": {"command": "score {model}", **metric},
    })  # fmt: skip


def test_a_metric_that_seeds_move_more_than_mixtures_is_refused_by_name() -> None:
    rng = np.random.default_rng(0)
    rows = [(n, 100 - n) for n in range(14)] + [(n, 100 - n) for n in range(5)]
    of_mixture = np.array([n for n, _ in rows], dtype=float)
    runs = [str(n) for n in range(len(rows))]

    def refused(spread: float, **metric: object) -> float:
        """How often a metric is refused whose mixtures differ by so many times the noise."""
        said: list[str] = []
        for _ in range(200):
            values = spread * of_mixture[:, None] / of_mixture[:14].std() + rng.normal(0, 1, (len(rows), 1))
            try:
                refuse_poor_metrics([capability(**metric)], runs, rows, values)
            except UserError as error:
                said.append(str(error))
        assert all(text.startswith("the metric of maths says little of mixtures: between them") for text in said)
        return len(said) / 200

    assert refused(0.0) > 0.75
    assert refused(3.0) < 0.05
    assert refused(0.0, noisy=True) == 0
    noise = rng.normal(0, 1, (14, 1))
    refuse_poor_metrics([capability()], runs[:14], rows[:14], noise)  # without repeats nothing tells
    with pytest.raises(UserError, match="gave 0 in all 14 runs"):
        refuse_poor_metrics([capability(noisy=True)], runs[:14], rows[:14], 0 * noise)
    within, between, degrees = noise_and_spread(of_mixture + np.arange(19) % 2 / 100, of_mixture.astype(np.int64))
    assert degrees == 5
    assert within < 0.1 < between


def test_no_item_that_changed_is_no_certainty() -> None:
    stick = Yardstick(("score",), np.array([0.275]))
    few, many = (
        judge([PairedScores(np.full(2, 0.275), np.full(2, 0.275), np.zeros((2, n)), np.arange(n))], yardstick=stick)
        for n in (20, 2_000)
    )
    assert few.ratios[0].upper - few.ratios[0].lower > 0.1
    assert 0 < many.ratios[0].upper - many.ratios[0].lower < 0.01
