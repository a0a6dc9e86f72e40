"""Domains that runs had and no mixture can have any more: known to the fit, gone from what it predicts."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from ideal_proxy.errors import UserError
from ideal_proxy.response.model import ResponseModel

BASE = np.array([100.0, 200.0, 0.0])


@pytest.fixture(scope="module")
def fits():
    rng = np.random.default_rng(3)
    v = rng.uniform(5.0, 400.0, (24, 3))
    losses = 0.4 + 2.0 * (1.0 + v @ np.array([[0.02, 0.001], [0.001, 0.03], [0.05, 0.002]])) ** -0.4
    losses *= np.exp(0.003 * rng.standard_normal(losses.shape))
    table, names = pd.DataFrame(v, columns=["a", "b", "old"]), ["a", "b"]

    def model():
        return ResponseModel(available=[500.0, 500.0, 300.0], base=BASE, n_starts=1, n_draws=16)

    targets = pd.DataFrame(losses, columns=names)
    return model().fit(table, targets), model().fit(table, targets, retired=1)


def test_what_remains_is_predicted_as_with_no_row_of_it(fits):
    whole, narrow = fits
    assert narrow.domain_names_ == ["a", "b"]
    v = np.array([[50.0, 300.0], [700.0, 10.0]])
    wide = np.pad(v, ((0, 0), (0, 1)))
    names = ["a", "b", "old"]
    for kind in ({}, {"return_interval": 0.9}):
        seen = narrow.predict(pd.DataFrame(v, columns=names[:2]), **kind)
        expected = whole.predict(pd.DataFrame(wide, columns=names), **kind)
        np.testing.assert_allclose(np.array(seen), np.array(expected), rtol=1e-12)
    for ask in ("value_and_gradient", "draws_value_and_gradient"):
        (value, slope), (value_3, slope_3) = (getattr(m, ask)(x) for m, x in ((narrow, v[0]), (whole, wide[0])))
        np.testing.assert_allclose(value, value_3, rtol=1e-12)
        np.testing.assert_allclose(slope, slope_3[..., :2], rtol=1e-12)
    np.testing.assert_allclose(narrow.floors(), whole.floors())
    # it is no stranger to the fit: what the retired domain did is not laid at the others' door
    assert np.abs(whole.value_and_gradient(wide[0])[1][:, 2]).max() > 0


def test_it_outlives_a_file(fits):
    _, narrow = fits
    again = ResponseModel.from_json(json.loads(json.dumps(narrow.to_json())))
    v = np.array([120.0, 80.0])
    np.testing.assert_allclose(again.value_and_gradient(v)[0], narrow.value_and_gradient(v)[0], rtol=1e-12)
    drawn, before = (m.draws_value_and_gradient(v)[1] for m in (again, narrow))
    np.testing.assert_allclose(drawn, before, rtol=1e-9)
    with pytest.raises((ValueError, UserError)):
        again.value_and_gradient(np.array([120.0, 80.0, 0.0, 1.0]))
