"""The forms of the response: derivatives, draws, shares, files of the first format, surfaces no single form fits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize

from ideal_proxy.response.choice import _least, combine
from ideal_proxy.response.forms import FAMILIES, HeldOut
from ideal_proxy.response.model import ResponseModel
from ideal_proxy.response.process import Family, fit_processes
from ideal_proxy.response.stacked import Stack


@pytest.mark.parametrize("family", [f for f in FAMILIES if f is not None])
@pytest.mark.parametrize("shape", ["matern", "product", "linear"])
def test_a_process_has_exact_derivatives_and_draws_of_its_own_spread(family: Family, shape) -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(0.2, 2.0, (30, 3))
    y = (x[:, :1] * x[:, 1:2] + 0.1 * rng.standard_normal((30, 1))).T
    family = Family((shape,), family.features, family.centred, family.exponential)
    process = fit_processes(x, y, np.ones_like(y), family)[0]
    at, step = np.array([0.7, 1.3, 0.9]), 1e-5
    stack = Stack.of([process, replace(process, beta_R=2 * process.beta_R)])
    (value, twice), (by, _) = stack.at(at, stack.weights([process.beta_R[None], 2 * process.beta_R[None]]))
    if process.floor is None:
        assert twice[0] - process.centre == pytest.approx(2 * (value[0] - process.centre))
    assert value[0] == pytest.approx(process.mean(at[None])[0])
    numeric = [(process.mean((at + e)[None]) - process.mean((at - e)[None]))[0] / (2 * step) for e in step * np.eye(3)]
    np.testing.assert_allclose(by[0], numeric, rtol=1e-5, atol=1e-7)
    drawn = Stack.of([process]).at(at, process.draws(4000, rng)[None])[0]
    assert drawn.mean() == pytest.approx(value[0], abs=0.1 * y.std())
    assert drawn.std() < 1.2 * np.sqrt(process.spread(at[None])[0])  # directions without data are not drawn


def test_shares_minimise_the_quadratic_form() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        root = rng.standard_normal((5, 5))
        Q, linear = root @ root.T + 0.01 * np.eye(5), rng.standard_normal(5)
        found = _least(Q, linear)
        assert found.sum() == pytest.approx(1.0)
        assert (found >= 0).all()
        oracle = minimize(
            lambda w, Q=Q, linear=linear: 0.5 * w @ Q @ w - linear @ w, np.full(5, 0.2), bounds=[(0, 1)] * 5,
            constraints={"type": "eq", "fun": lambda w: w.sum() - 1}, options={"ftol": 1e-12},
        )  # fmt: skip
        assert 0.5 * found @ Q @ found - linear @ found <= oracle.fun + 1e-6


def test_the_form_that_predicts_gets_the_weight_and_equal_ones_share_it() -> None:
    rng = np.random.default_rng(2)
    y = rng.standard_normal((3, 40))
    wrong = y + rng.standard_normal((5, 3, 40))
    right = wrong.copy()
    right[3] = y + 0.1 * rng.standard_normal((3, 40))
    noise = np.ones((5, 3))
    assert (combine(y, np.ones((3, 40)), HeldOut(right, right, noise))[:, 3] > 0.7).all()
    equal = combine(y, np.ones((3, 40)), HeldOut(np.tile(wrong[:1], (5, 1, 1)), wrong, noise))
    np.testing.assert_allclose(equal, 0.2, atol=1e-6)


def surface(rng: np.random.Generator, v: np.ndarray, together: float) -> np.ndarray:
    a = np.exp(rng.normal(0.0, 1.0, (3, v.shape[1])))
    log_v = np.tanh(np.log(v))
    return (1.0 + 2.0 * (1.0 + np.sqrt(v) @ a.T) ** -0.4) * np.exp(together * (log_v[:, :1] * log_v[:, 1:2]))


def test_interactions_are_found_and_cost_nothing_where_there_are_none() -> None:
    ratio = {0.0: [], 0.1: []}
    for seed in range(4):
        for together, ratios in ratio.items():
            rng = np.random.default_rng(seed)
            v = np.exp(rng.uniform(-1.2, 1.2, (140, 4)))
            truth = surface(rng, v, together)
            seen = truth[:40] * np.exp(0.005 * rng.standard_normal((40, 3)))
            model = ResponseModel(base=np.ones(4), n_draws=2).fit(v[:40], seen)
            error, law = (np.abs(m.predict(v[40:]) - truth[40:]).mean() for m in (model, model.alone("law")))
            ratios.append(error / law)
    assert np.mean(ratio[0.1]) < 0.4
    assert np.mean(ratio[0.0]) < 1.15
