"""The law's values against its written form, and every derivative against finite differences."""

from __future__ import annotations

import numpy as np
import pytest

from ideal_proxy.response.law import DELTA, FIRST_A, Volumes, evaluate, slopes, unpack

J, D, R = 3, 4, 6


def setting(seed: int, *, harm: bool, unit: str) -> tuple[np.ndarray, np.ndarray, Volumes, np.ndarray]:
    rng = np.random.default_rng(seed)
    theta = rng.normal(0.0, 0.7, (J, FIRST_A + D * (2 if harm else 1)))
    theta[:, FIRST_A + D :] = np.abs(theta[:, FIRST_A + D :])
    bounds = np.column_stack([np.zeros(J), rng.uniform(1.0, 2.0, J)])
    if unit == "share":
        return theta, bounds, Volumes(1.0, 0.0, None, np.full(D, 5.0)), rng.dirichlet(np.ones(D), R)
    available = rng.uniform(100.0, 1000.0, D)
    volumes = Volumes(float(available.mean()), 0.1 * float(available.sum()), available, rng.uniform(2.0, 8.0, D))
    return theta, bounds, volumes, available * rng.uniform(0.1, 4.0, (R, D))


def by_difference(function, at: np.ndarray, step: float) -> np.ndarray:
    columns = []
    for k in range(at.shape[-1]):
        e = np.zeros_like(at)
        e[..., k] = step
        columns.append((function(at + e) - function(at - e)) / (2.0 * step))
    return np.stack(columns, axis=-1)


def test_values_are_the_written_law() -> None:
    theta, bounds, volumes, v = setting(0, harm=True, unit="rows")
    u = volumes.effective(v)[0]
    p = unpack(theta, bounds, D)
    loss = evaluate(theta, bounds, volumes, u).loss_JR
    for j in range(J):
        for r in range(R):
            x = u[r] / volumes.scale
            s = 1.0 + sum(p["a"][j, i] * ((x[i] + DELTA) ** p["gamma"][j] - DELTA ** p["gamma"][j]) for i in range(D))
            harm = sum(p["b"][j, i] * u[r, i] for i in range(D)) / (volumes.kappa + u[r].sum())
            written = p["E"][j] + (p["Z"][j] - p["E"][j]) * s ** (-p["alpha"][j]) + harm
            assert loss[j, r] == pytest.approx(written, rel=1e-12)


def test_no_row_at_all_gives_z_and_endless_rows_give_e() -> None:
    theta, bounds, volumes, _ = setting(1, harm=False, unit="rows")
    theta[:, 2] = 1.0
    p = unpack(theta, bounds, D)
    ends = evaluate(theta, bounds, volumes, np.array([np.zeros(D), np.full(D, 1e15)])).loss_JR
    np.testing.assert_allclose(ends[:, 0], p["Z"], rtol=1e-12)
    np.testing.assert_allclose(ends[:, 1], p["E"], atol=1e-3)


@pytest.mark.parametrize("unit", ["rows", "share"])
@pytest.mark.parametrize("harm", [False, True])
@pytest.mark.parametrize("seed", [0, 17, 99])
def test_derivatives_match_finite_differences(seed: int, harm: bool, unit: str) -> None:
    theta, bounds, volumes, v = setting(seed, harm=harm, unit=unit)
    u = volumes.effective(v)[0]
    e = evaluate(theta, bounds, volumes, u)
    numeric = by_difference(lambda t: evaluate(t, bounds, volumes, u).loss_JR, theta, 1e-6)
    np.testing.assert_allclose(e.by_theta(), numeric, atol=1e-7)
    factor = np.random.default_rng(seed).random((1, len(u)))
    np.testing.assert_allclose(e.by_theta(np.array([1]), factor), numeric[1:2] * factor[:, :, None], atol=1e-7)
    numeric = by_difference(lambda w: evaluate(theta, bounds, volumes, w).loss_JR, u, 1e-6 * volumes.scale)
    np.testing.assert_allclose(e.by_u() * volumes.scale, numeric * volumes.scale, atol=1e-6)
    slope, slope_by_theta = slopes(theta, bounds, volumes, u[0])
    np.testing.assert_allclose(slope, e.by_u()[:, 0], rtol=1e-10)
    numeric = by_difference(lambda t: slopes(t[0], bounds, volumes, u[0])[0], np.stack([theta]), 1e-6)
    np.testing.assert_allclose(slope_by_theta * volumes.scale, numeric * volumes.scale, atol=1e-6)


def test_repeats_count_less_and_less() -> None:
    volumes = Volumes(100.0, 10.0, np.array([100.0]), np.array([3.0]))
    v = np.array([[50.0], [100.0], [200.0], [400.0], [4e4]])
    u, by_v, by_log_rho = volumes.effective(v)
    assert u[0, 0] == 50.0
    assert u[1, 0] == 100.0
    assert u[2, 0] == pytest.approx(100.0 * (1.0 + 3.0 * (1.0 - np.exp(-1.0 / 3.0))))
    assert u[4, 0] == pytest.approx(400.0)
    gains = np.diff(u[:, 0]) / np.diff(v[:, 0])
    assert (np.diff(gains) < 0).all()
    numeric = (volumes.effective(v + 1e-4)[0] - volumes.effective(v - 1e-4)[0]) / 2e-4
    np.testing.assert_allclose(by_v[[0, 2, 3]], numeric[[0, 2, 3]], rtol=1e-5)
    more = Volumes(100.0, 10.0, np.array([100.0]), np.array([3.0 * np.exp(1e-5)]))
    np.testing.assert_allclose(by_log_rho, (more.effective(v)[0] - u) / 1e-5, rtol=1e-4, atol=1e-6)


def test_harm_of_a_mixture_without_rows_is_finite() -> None:
    theta, bounds, _, _ = setting(3, harm=True, unit="share")
    volumes = Volumes(1.0, 0.0, None, np.full(D, 5.0))
    e = evaluate(theta, bounds, volumes, np.zeros((1, D)))
    assert np.isfinite(e.loss_JR).all()
    assert np.isfinite(e.by_theta()).all()
    assert np.isfinite(e.by_u()).all()
