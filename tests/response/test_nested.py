"""Parts of one domain (`maths/easy`, `maths/hard`) share strength: it helps at few runs and costs little at many."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from ideal_proxy.response.law_fit import DOMAIN_LEVEL, DOMAIN_SPREAD, PART_SPREAD, domain_precision
from ideal_proxy.response.model import ResponseModel

PARTS = [f"{parent}/{part}" for parent in ("maths", "code", "chat") for part in "abcd"]
D, J = len(PARTS), 2


def test_the_prior_is_wide_between_domains_and_narrow_within_one() -> None:
    apart = np.linalg.inv(domain_precision(np.arange(D)))
    nested = np.linalg.inv(domain_precision(np.arange(D) // 4))
    within, between = np.zeros(D), np.zeros(D)
    within[:2], between[[0, 4]] = (1, -1), (1, -1)
    assert within @ apart @ within == pytest.approx(2 * DOMAIN_SPREAD**2)
    assert within @ nested @ within == pytest.approx(2 * PART_SPREAD**2)
    assert between @ nested @ between == pytest.approx(2 * DOMAIN_SPREAD**2)
    for covariance in (apart, nested):
        assert np.ones(D) @ covariance @ np.ones(D) / D == pytest.approx(DOMAIN_LEVEL**2)


def errors(names: list[str], *, runs: int, spread: float, seed: int) -> float:
    """Error of predicted log-losses on mixtures not run, over their spread; parts lie `spread` about their domain."""
    rng = np.random.default_rng(seed)
    slope = np.exp(rng.normal(0, 1.2, (J, D // 4)).repeat(4, axis=1) + rng.normal(0, spread, (J, D)) - 1.2)
    floor, span = rng.uniform(0.4, 0.8, J), rng.uniform(2.0, 3.0, J)
    v, new = (1000 * np.exp(rng.uniform(-1.2, 1.2, (count, D))) for count in (runs, 100))
    seen, truth = (floor + span * (1 + np.sqrt(x / 1000) @ slope.T) ** -0.4 for x in (v, new))
    model = ResponseModel(base=np.full(D, 1000.0), process="never", harm="never", n_starts=1, n_draws=8)
    model.fit(pd.DataFrame(v, columns=names), seen * (1 + 0.01 * rng.standard_normal(seen.shape)))
    off = np.log(np.asarray(model.predict(pd.DataFrame(new, columns=names)))) - np.log(truth)
    return float(np.std(off - off.mean(axis=0)) / np.std(np.log(truth / truth.mean(axis=0))))


@pytest.mark.parametrize(("runs", "spread", "most"), [(20, 0.3, 0.97), (60, 1.5, 1.05)])
def test_nested_names_help_at_few_runs_and_do_not_hurt_at_many(runs: int, spread: float, most: float) -> None:
    apart = [name.replace("/", "-") for name in PARTS]
    nested, alone = (
        np.mean([errors(names, runs=runs, spread=spread, seed=seed) for seed in range(3)]) for names in (PARTS, apart)
    )
    assert nested < most * alone
