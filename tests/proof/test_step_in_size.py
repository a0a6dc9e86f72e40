"""What a larger model shows of promised changes: beliefs about a step in size, on made-up suites."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from builders import ROOT
from proof_tables import write_predictions, write_runs
from scipy.stats import norm

sys.path.insert(0, str(ROOT / "benchmarks"))
sys.path.insert(0, str(ROOT / "benchmarks/proof"))

import real
import step_in_size
from step_in_size import Belief, Changes, inside


def drawn(belief: Belief, mixtures: int, capabilities: int, seed: int) -> Changes:
    """A suite whose observed changes are as a belief has them."""
    rng = np.random.default_rng(seed)
    promised = rng.normal(0.0, 0.2, (mixtures, capabilities))
    factor = belief.factor + belief.common * rng.standard_normal() + belief.own * rng.standard_normal(capabilities)
    size = np.sqrt(np.mean(promised**2, axis=1, keepdims=True))
    observed = factor * promised + belief.error * size * rng.standard_normal(promised.shape)
    return Changes(promised, observed, np.zeros_like(promised), [f"c{j}" for j in range(capabilities)])


def one(promised: float, observed: float, fit: float = 0.0, beside: float = 0.0) -> Changes:
    return Changes(np.array([[promised, beside]]), np.array([[observed, 0.0]]), np.array([[fit, 0.0]]), ["a", "b"])


@pytest.mark.parametrize(
    ("belief", "of", "deviation"),
    [
        (Belief(2.0, 0.0, 0.0, 0.0), {"promised": 0.3, "fit": 0.1}, 0.2),  # of the fit, times the factor
        (Belief(2.0, 0.3, 0.4, 0.0), {"promised": 0.2}, 0.1),  # of what all share and of what is one's own
        (Belief(2.0, 0.0, 0.0, 0.5), {"promised": 0.3, "beside": 0.4}, np.sqrt(0.125) / 2),  # of the mean change
    ],
)
def test_nine_of_ten_changes_lie_inside(belief, of, deviation):
    edge = norm.ppf(0.95) * deviation
    for side in (-1.0, 1.0):
        centre = 2.0 * of["promised"]
        assert inside(one(observed=centre + side * 0.99 * edge, **of), belief)[0, 0]
        assert not inside(one(observed=centre + side * 1.01 * edge, **of), belief)[0, 0]


def test_the_belief_that_made_the_changes_holds_nine_of_ten_of_them_and_is_found_again():
    true = Belief(0.8, 0.2, 0.4, 0.2)
    suites = [drawn(true, 8, 10, seed) for seed in range(6)]
    many = np.concatenate([inside(drawn(true, 8, 10, seed), true).ravel() for seed in range(300)])
    assert many.mean() == pytest.approx(0.9, abs=0.015)
    found = step_in_size.likely(suites)
    assert found.factor == pytest.approx(0.8, abs=0.3)
    assert found.own == pytest.approx(0.4, abs=0.1)
    assert found.error == pytest.approx(0.2, abs=0.03)
    assert 0.02 < found.common < 0.6


def test_what_shows_as_promised_is_believed_and_what_scatters_is_not():
    exact = Belief(1.0, 0.01, 0.01, 0.05)
    loose = Belief(1.0, 0.01, 0.01, 0.5)
    tight, wide = (step_in_size.likely([drawn(belief, 8, 6, seed) for seed in (1, 2)]) for belief in (exact, loose))
    assert tight.factor == pytest.approx(1.0, abs=0.1)
    assert tight.own < 0.1
    assert tight.error == pytest.approx(0.05, abs=0.02)
    assert wide.error == pytest.approx(0.5, abs=0.15)


def test_changes_are_what_proxies_promised_before_the_step_and_what_targets_showed(tmp_path, monkeypatch):
    monkeypatch.setattr(real, "HERE", tmp_path)
    monkeypatch.setattr(step_in_size, "HERE", tmp_path / "step_in_size.py")
    step = [0.5, 0.2, 0.1, 0.3]

    def record(change, fit, tokens):
        own = 0.1**2 * np.mean(np.square(change)) + (0.3 * np.array(change)) ** 2
        half = 1.645 * np.sqrt((0.5 * np.array(fit)) ** 2 + (0.2 * np.array(change)) ** 2 + own)
        ratios = np.exp(0.5 * np.array(change) + np.multiply.outer([0, -1, 1], half)).T
        return {"tokens": tokens, "ratios": dict(zip("ab", ratios.tolist(), strict=True))}

    mixtures = {
        "ours": record([-0.4, 0.2], [0.1, 0.05], [1.0, 2.0]), "the same": record([-0.4, 0.2], [0.1, 0.05], [1.0, 2.0]),
        "base": {"tokens": [3.0, 0.0], "ratios": {"a": [1.0] * 3, "b": [1.0] * 3}},
        "RegMix": record([0.1, -0.3], [0.02, 0.2], [2.0, 1.0]),
    }  # fmt: skip
    write_predictions(tmp_path, "demo", step=step, pairs=2, mixtures=mixtures)
    ratios = {"ours": [0.7, 1.3], "the same": [0.7, 1.3], "RegMix": [1.1, 0.9]}
    runs = {name: {1: ratio, 2: np.multiply(3.0, ratio), 3: [9.0, 9.0]} for name, ratio in ratios.items()}
    write_runs(tmp_path / "real_demo.jsonl", {"base": {1: [1.0, 1.0], 2: [3.0, 3.0], 3: [1.0, 1.0]}, **runs})
    found = step_in_size.changes("demo")
    assert found.capabilities == ["a", "b"]
    assert found.promised == pytest.approx(np.array([[-0.4, 0.2], [0.1, -0.3]]))
    assert found.fit == pytest.approx(np.array([[0.1, 0.05], [0.02, 0.2]]))
    assert found.observed == pytest.approx(np.log([[0.7, 1.3], [1.1, 0.9]]))
