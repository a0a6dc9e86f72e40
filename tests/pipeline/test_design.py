"""The design: inside its bounds, spread out, nested, the same everywhere."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest

from ideal_proxy.errors import UsageError
from ideal_proxy.pipeline.design import make_design, make_later_design, spread_mixtures
from ideal_proxy.pipeline.laboratory import Laboratory

CENTRE = np.array([1000.0, 200.0, 5000.0, 800.0, 60.0])
SEEDS = [7, 8]


class Design(NamedTuple):
    """What `make_design` gives, by name."""

    volumes: np.ndarray
    seeds: np.ndarray


def make(**changes: Any) -> Design:
    settings: dict[str, Any] = {
        "centre": CENTRE, "spread": 1.2, "lower": np.zeros(5), "upper": np.full(5, 1e9), "seeds": SEEDS,
    }  # fmt: skip
    settings |= changes
    return Design(*make_design(settings.pop("centre"), **settings))


def nearest(logs: np.ndarray) -> float:
    distance = np.linalg.norm(logs[:, None] - logs[None], axis=-1)
    return float(distance[np.triu_indices(len(logs), 1)].min())


def test_default_count_base_runs_replicate_and_turning_seeds() -> None:
    design = make()
    assert design.volumes.shape == (18, 5)
    assert design.seeds[:4].tolist() == [7, 8, 7, 8]
    assert np.array_equal(design.volumes[:2], [CENTRE, CENTRE])
    assert np.array_equal(design.volumes[2], design.volumes[3])
    turns = design.seeds[4:].tolist()
    assert abs(turns.count(7) - turns.count(8)) <= 1
    assert len(np.unique(design.volumes, axis=0)) == 18 - 2


@pytest.mark.parametrize("seed", range(5))
def test_points_stay_inside_bounds_and_spread(seed: int) -> None:
    lower, upper = np.array([900.0, 0, 0, 800, 0]), np.array([1100.0, 300, 1e9, 800, 1e9])
    design = make(lower=lower, upper=upper, random_state=seed, count=40)
    assert (design.volumes >= lower * (1 - 1e-12)).all()
    assert (design.volumes <= upper * (1 + 1e-12)).all()
    eta = 0.01 * CENTRE.mean()
    change = np.log((design.volumes + eta) / (CENTRE + eta))
    assert (np.abs(change) <= 1.2 + 1e-12).all()
    # It uses the room it has: free domains both ways, the pinned one not at all.
    assert change[:, 2].max() > 1.0
    assert change[:, 2].min() < -1.0
    assert np.ptp(design.volumes[:, 3]) == pytest.approx(0, abs=1e-9)


def test_more_spread_out_than_chance() -> None:
    eta = 0.01 * CENTRE.mean()
    rng = np.random.default_rng(0)
    random = [nearest(rng.uniform(-1.2, 1.2, (15, 5))) for _ in range(200)]
    ours = []
    for seed in range(10):
        design = make(random_state=seed, seeds=[0], replicates=0, count=16)
        ours.append(nearest(np.log((design.volumes[1:] + eta) / (CENTRE + eta))))
    assert min(ours) > np.quantile(random, 0.9)


def test_every_domain_is_covered_evenly() -> None:
    design = make(count=66, seeds=[0], replicates=0)
    eta = 0.01 * CENTRE.mean()
    unit = np.log((design.volumes[1:] + eta) / (CENTRE + eta)) / 2.4 + 0.5
    for column in unit.T:
        counts, _ = np.histogram(column, bins=4, range=(0, 1))
        assert counts.min() >= 8  # of 65; a design of corners has none in the middle
    correlation = np.corrcoef(unit.T) - np.eye(5)
    assert np.abs(correlation).max() < 0.35


def test_a_shorter_design_is_the_beginning_of_a_longer_one() -> None:
    short, long = make(count=9), make(count=37)
    assert np.array_equal(short.volumes, long.volumes[:9])
    assert np.array_equal(short.seeds, long.seeds[:9])
    fixed_short, fixed_long = make(count=9, total=7060.0), make(count=37, total=7060.0)
    assert np.array_equal(fixed_short.volumes, fixed_long.volumes[:9])


def test_the_same_arguments_give_the_same_design_and_another_seed_another() -> None:
    np.random.seed(1)  # noqa: NPY002 (global state must not matter)
    one = make()
    np.random.seed(2)  # noqa: NPY002
    assert np.array_equal(one.volumes, make().volumes)
    assert not np.allclose(one.volumes[2:], make(random_state=1).volumes[2:])


@pytest.mark.parametrize("seed", range(3))
def test_a_fixed_total_is_kept_in_its_own_unit(seed: int) -> None:
    tokens = np.array([120.0, 300, 80, 50, 900])
    total = float(tokens @ CENTRE)
    design = make(weights=tokens, total=total, random_state=seed, count=30)
    assert np.allclose(design.volumes @ tokens, total, rtol=1e-9)
    assert np.ptp(design.volumes.sum(1)) > 100
    eta = 0.01 * CENTRE.mean()
    assert (np.abs(np.log((design.volumes + eta) / (CENTRE + eta))) <= 1.2 + 1e-9).all()
    assert len(np.unique(design.volumes.round(6), axis=0)) == 28
    free = make(weights=tokens, random_state=seed, count=30)
    assert np.ptp(free.volumes @ tokens) > 0.5 * total


def test_a_domain_of_base_zero_is_tried_up_to_the_others() -> None:
    centre = np.array([1000.0, 0.0, 500.0])
    design = make(centre=centre, lower=np.zeros(3), upper=np.full(3, 1e6), count=30)
    tried = design.volumes[2:, 1]
    assert (tried >= 0).all()
    assert tried.max() > 400
    assert tried.max() <= 750 + 1e-9
    assert np.median(tried) > 10
    limited = make(centre=centre, lower=np.zeros(3), upper=np.array([1e6, 50, 1e6]), count=30)
    assert limited.volumes[:, 1].max() <= 50 + 1e-9


def test_another_round_keeps_away_from_what_was_run() -> None:
    first = make()
    centre = CENTRE * 1.3
    second = make(centre=centre, spread=0.6, existing=first.volumes, count=12, random_state=1)
    assert np.array_equal(second.volumes[0], centre)
    eta = 0.01 * centre.mean()
    logs = np.log(np.vstack([np.unique(first.volumes, axis=0), second.volumes[4:]]) + eta)
    assert nearest(logs) > 0.05


def test_sweep_mixtures_are_far_from_base_and_each_other() -> None:
    design = make()
    chosen = spread_mixtures(design.volumes)
    logs = np.log(design.volumes + 0.01 * CENTRE.mean())
    from_base = np.linalg.norm(logs - logs[0], axis=1)
    assert len(chosen) == 2
    assert from_base[chosen[0]] == from_base.max()
    assert np.linalg.norm(logs[chosen[0]] - logs[chosen[1]]) > np.median(from_base)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"lower": np.full(5, 10.0), "upper": np.full(5, 5.0)}, "domain 1: no volume lies between the bounds 10 and 5"),
        ({"centre": np.zeros(5)}, "above 0 for some domain"),
        ({"total": 1e9}, "no mixture inside the bounds and the spread has a total"),
    ],
)
def test_arguments_that_do_not_go_together(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        make(**changes)


def bench(*, seeds=2, gradients=None, domains=5):
    """What a laboratory knows when it lays out a round, of domains alike."""
    each = np.full(domains, 1000.0)
    config = SimpleNamespace(
        swarm=SimpleNamespace(seeds=seeds),
        seed=3,
        limits=SimpleNamespace(budget_unit="rows", budget=SimpleNamespace(kind="keep")),
    )
    made = SimpleNamespace(
        config=config,
        gradients=gradients,
        evidence=lambda: SimpleNamespace(volumes=each[None]),
        _seed=lambda n: n,
        prepared=SimpleNamespace(
            domains=SimpleNamespace(lengths=each, base=each),
            column=lambda name: each * {"lower": 0.0, "upper": 4.0}[name],
        ),
    )
    made._seeds = lambda number: Laboratory._seeds(made, number)
    return lambda count, number=0: Laboratory._design(made, each, 1.0, count, number)


def test_a_first_round_runs_four_mixtures_with_both_seeds_beside_base_and_a_small_one_fewer():
    for count, expected in ((18, 5), (10, 3), (40, 5)):
        volumes, seeds = bench()(count)
        _, times = np.unique(volumes, axis=0, return_counts=True)
        assert (len(volumes), (times == 2).sum()) == (count, expected)
        assert set(seeds) == {0, 1}
    volumes, _ = bench(seeds=3)(30)
    assert (np.unique(volumes, axis=0, return_counts=True)[1] == 3).sum() == 3  # base and two: (3 - 1) (3 - 1) = 4


def test_as_few_runs_as_domains_are_spent_on_mixtures_with_one_seed_and_a_later_round_has_fresh_seeds():
    volumes, seeds = bench()(4)
    assert len(np.unique(volumes, axis=0)) == 4
    assert set(seeds) == {0}
    volumes, seeds = bench(gradients="implicit")(4)
    assert len(np.unique(volumes, axis=0)) == 2  # gradients are averaged over the seeds at base
    volumes, seeds = bench()(6, 1)
    assert list(seeds[:2]) == [2, 3]
    assert (volumes[0] == volumes[1]).all()


def test_a_later_round_runs_centre_and_base_side_by_side_and_what_is_wanted() -> None:
    centre = CENTRE[[1, 0, 2, 4, 3]]
    options: dict[str, Any] = {
        "spread": 0.6, "lower": np.zeros(5), "upper": np.full(5, 1e9), "total": float(CENTRE.sum()), "seeds": SEEDS,
    }  # fmt: skip
    wanted = CENTRE * np.array([[1.1], [1.2], [1.3]])
    volumes, seeds = make_later_design(centre, CENTRE, wanted, count=6, **options)
    assert volumes.tolist() == [centre.tolist()] * 2 + wanted[:2].tolist() + [CENTRE.tolist()] * 2
    assert seeds.tolist() == [7, 8, 7, 8, 7, 8], "centre and base with the same seeds"
    many, _ = make_later_design(centre, CENTRE, wanted[:1], count=12, **options)
    assert (many == wanted[0]).all(axis=1).sum() == 1
    assert len(np.unique(many, axis=0)) == 10, "centre, base, the wanted one and seven points"
    few, _ = make_later_design(centre, CENTRE, wanted[:0], count=3, **options)
    assert not (few == CENTRE).all(axis=1).any(), "no room for base"
    again, _ = make_later_design(CENTRE, CENTRE, wanted[:0], count=6, **options)
    assert (again == CENTRE).all(axis=1).sum() == 2, "the centre is base"
