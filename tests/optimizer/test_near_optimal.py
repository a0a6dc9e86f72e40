"""Mixtures as good as the optimum: the one nearest base, and how far single volumes may move."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ideal_proxy.amounts import Amount
from ideal_proxy.domains import Domains
from ideal_proxy.limits import Limits
from ideal_proxy.optimizer import Constraints, Objective, Problem, leeway, nearest_base, optimize, round_volumes
from ideal_proxy.optimizer.near_optimal import COST
from ideal_proxy.response.model import ResponseModel

BASE = np.array([1000.0, 1000.0, 1000.0])


class Together:
    """One capability that asks for the second and third domain together: which of the two does not matter."""

    is_convex_ = np.array([False])
    residual_scale_ = np.array([0.01])

    def __init__(self, doubt: float) -> None:
        # draws: how much the second is better than the third
        self.doubt = doubt * np.array([-1.5, -0.5, 0.5, 1.5])

    def _at(self, v: np.ndarray, more: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        s = 1.0 + (v[1] * (1.0 + more) + v[2] * (1.0 - more)) / 1000.0
        by = -0.5 * s[:, None] ** -1.5 * np.stack([0.0 * more, 1.0 + more, 1.0 - more], axis=1) / 1000.0
        return (s**-0.5)[:, None], by[:, None]

    def value_and_gradient(self, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        value, gradient = self._at(v, np.array([1e-3]))  # the point prediction has a favourite
        return value[0], gradient[0]

    def draws_value_and_gradient(self, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._at(v, self.doubt)


def constraints(least: float = 300.0) -> Constraints:
    names = ("a", "b", "c")
    domains = Domains(names=names, base=BASE, available=BASE, tokens_per_row=np.ones(3))
    limits = Limits(lower={n: Amount(least, "rows") for n in names}, upper={n: Amount(2500.0, "rows") for n in names})
    return Constraints(problem=Problem(domains=domains, capabilities=("k",)), limits=limits)


def test_what_draws_cannot_tell_stays_as_it_was_at_base() -> None:
    for doubt, alike in ((0.3, True), (0.0, False)):
        model, limits = Together(doubt), constraints()
        best = optimize(model, Objective(), limits)
        assert best.volumes[1] == pytest.approx(2400.0, abs=1.0)  # the favourite takes all
        near = nearest_base(model, Objective(), limits, best)
        if alike:
            assert abs(np.log(near.volumes[1] / near.volumes[2])) < 0.7
            assert near.volumes[0] < 400.0  # what is known still moves
            assert near.objective - best.objective <= COST * best.predicted_gain
        else:  # draws that agree leave no doubt
            np.testing.assert_array_equal(near.volumes, best.volumes)


def test_leeway_agrees_with_a_scan_and_holds_the_proposal() -> None:
    model, limits = Together(0.3), constraints()
    best = optimize(model, Objective(), limits)
    found = leeway(model, Objective(), limits, best.volumes, slack=0.005)
    assert (found.lower <= best.volumes).all()
    assert (best.volumes <= found.upper).all()
    at_base = model.value_and_gradient(BASE)[0][0]
    scan = np.linspace(300.0, 2400.0, 400)
    for i in range(3):
        allowed = []
        for volume in scan:
            others = [k for k in range(3) if k != i]
            split = np.linspace(300.0, 2700.0 - volume, 60)
            for one in split[(split >= 300.0) & (3000.0 - volume - split >= 299.0)]:
                v = np.empty(3)
                v[i], v[others[0]], v[others[1]] = volume, one, 3000.0 - volume - one
                if model.value_and_gradient(v)[0][0] / at_base <= best.objective + 0.005:
                    allowed.append(volume)
        assert found.lower[i] == pytest.approx(min(allowed), abs=15.0)
        assert found.upper[i] == pytest.approx(max(allowed), abs=15.0)
    assert found.open == ("b", "c")
    tight = leeway(model, Objective(), limits, best.volumes, slack=1e-7)
    assert tight.open == ()
    assert tight.unsettled == ()


def test_a_domain_of_shuffled_answers_among_twelve_does_not_grow() -> None:
    """Ten capabilities of which two are noise, twelve domains of which the last teaches nothing."""
    D, J = 12, 10
    grown, noise = [], []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        base = 1000.0 * np.exp(rng.normal(0.0, 0.5, D))
        a = np.exp(rng.normal(-1.0, 1.0, (J, D)) + 2.0 * np.eye(J, D))
        a[:, -1] = 0.0
        v = base * np.exp(rng.uniform(-1.2, 1.2, (39, D)))
        v *= base.sum() / v.sum(axis=1, keepdims=True)
        v[0] = base
        losses = 1.0 + 2.0 * (1.0 + np.sqrt(v / 1000.0) @ a.T) ** -0.4
        losses[:, -2:] = 2.0
        losses *= np.exp(0.01 * rng.standard_normal(losses.shape))
        model = ResponseModel(base=base, available=10.0 * base, n_starts=1, n_draws=16).fit(v, losses)
        noise.extend(model.known_[-2:])
        assert (model.known_[:-2] > 0.8).sum() >= 6
        named = ["not predicted" in (d.warning or "") for d in model.diagnostics_]
        assert named == [known < 0.5 for known in model.known_]
        names = tuple(f"d{i}" for i in range(D))
        domains = Domains(names=names, base=base, available=10.0 * base, tokens_per_row=np.ones(D))
        problem = Problem(domains=domains, capabilities=tuple(f"c{j}" for j in range(J)))
        limits = Constraints(problem=problem, trust_region=1.2)
        best = optimize(model, Objective(), limits)
        grown.append(nearest_base(model, Objective(), limits, best).volumes[-1] / base[-1])
    assert max(grown) < 1.0
    assert np.mean(noise) < 0.5


def test_round_numbers_keep_the_bounds_and_the_total_to_within_a_step() -> None:
    limits = constraints()
    rows = round_volumes(np.array([312.4, 2100.2, 587.4]), limits, 100)
    assert (rows % 100 == 0).all()
    assert 2900 < rows.sum() <= 3000
    assert rows[0] == 300  # 400 is farther, 200 is below the bound
    pinned = replace(limits, limits=replace(limits.limits, pinned={"a": Amount(333.0, "rows")}))
    assert round_volumes(np.array([333.0, 2100.2, 566.8]), pinned, 100)[0] == 333
