"""Scores beside losses, without training: one unit for both, the fit, the proposal and the verdict."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from builders import capability_facts, domain_facts

from ideal_proxy.config import parse_config
from ideal_proxy.data.context import Context
from ideal_proxy.domains import Domains
from ideal_proxy.errors import UserError
from ideal_proxy.optimizer.constraints import Constraints, Problem
from ideal_proxy.optimizer.objective import Objective, RelativeLosses
from ideal_proxy.optimizer.optimum import optimize
from ideal_proxy.pipeline.evidence import Evidence
from ideal_proxy.pipeline.laboratory import Laboratory
from ideal_proxy.pipeline.prepare import Prepared
from ideal_proxy.pipeline.proposal import fit_and_propose
from ideal_proxy.pipeline.verdict import IMPROVES, NO_BETTER, UNDECIDED, PairedLosses, PairedScores, judge
from ideal_proxy.response.inputs import BadInput
from ideal_proxy.response.model import ResponseModel
from ideal_proxy.response.relative import Yardstick
from ideal_proxy.swarm import WARM_RUN

DOMAINS = ("code", "math", "trust")
BASE = np.array([1000.0, 1000.0, 1000.0])
WEIGHT = np.array([[2.0, 0.2, 0.0], [0.1, 1.6, 0.0]])  # code and mathematics like their own domains


def truth(volumes: np.ndarray) -> np.ndarray:
    x = np.sqrt(np.atleast_2d(volumes) / 1000.0)
    return 0.5 + 2.5 / (1 + x @ WEIGHT.T)


def trust_score(volumes: np.ndarray) -> np.ndarray:
    """A score that only rows of `trust` raise."""
    return 0.2 + 0.3 * (1 - np.exp(-np.atleast_2d(volumes)[:, 2] / 1500.0))


def settings(*metrics: dict[str, Any] | None, **changes: Any):
    return parse_config({
        "domains": [{"name": n, "path": n} for n in DOMAINS],
        "capabilities": [
            {"name": n, "path": n, **({"metric": {"python": "a:b", **m}} if m is not None else {})}
            for n, m in zip(("code", "math"), metrics, strict=True)
        ],
        **changes,
    })  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return Prepared(
        context=Context(64),
        folder=tmp_path_factory.mktemp("prepared"), facts=tuple(domain_facts(name) for name in DOMAINS),
        capabilities=tuple(capability_facts(name) for name in ("code", "math")), health={}, vocabulary=300, template={},
    )  # fmt: skip


def table(values: Any = None, *, noise: float = 0.004, seed: int = 0) -> Evidence:
    """Runs at a fixed total, their losses, and what judges them instead."""
    rng = np.random.default_rng(seed)
    shares = np.exp(rng.uniform(-1.2, 1.2, (16, 3)))
    volumes = np.vstack([BASE, BASE, 3000 * shares / shares.sum(axis=1, keepdims=True)])
    losses = truth(volumes) + noise * rng.standard_normal((18, 2))
    none = truth(np.zeros(3))[0]
    return Evidence(
        ids=tuple(map(str, range(18))), volumes=volumes, losses=losses, seeds=np.arange(18) % 2,
        values=losses if values is None else values(volumes, losses, rng), losses_before=none, values_before=none,
    )  # fmt: skip


def propose(config, prepared, runs: Evidence, **changes: Any):
    none = np.where([kind == "loss" for kind in config.kinds], runs.losses_before, np.nan)
    return fit_and_propose(config, prepared, replace(runs, values_before=none), seed=0, **changes)


@pytest.fixture(scope="module")
def by_losses(prepared):
    return propose(settings(None, None), prepared, table())


def test_minus_the_loss_proposes_what_the_loss_proposes(prepared, by_losses):
    assert np.abs(np.log(by_losses.rows / BASE)).max() > 0.2  # there is something to agree on
    judged = propose(settings({}, {}), prepared, table(lambda v, losses, rng: -losses))
    assert judged.rows == pytest.approx(by_losses.rows, rel=0.05, abs=20)
    assert judged.yardstick.scale == pytest.approx(by_losses.predicted_losses.other, rel=0.15)
    assert judged.predicted.gain.value == pytest.approx(by_losses.predicted.gain.value, rel=0.25)
    assert [b.value for b in judged.predicted_losses.ratios] == pytest.approx(
        [b.value for b in by_losses.predicted.ratios], rel=0.01
    )
    assert judged.noise[0] == pytest.approx(by_losses.noise[0], rel=0.2)


@pytest.mark.parametrize("factor", [100.0, 1e-3])
def test_the_unit_of_a_score_changes_nothing(prepared, factor):
    one, other = (
        propose(settings(None, {}), prepared, table(lambda v, losses, rng, f=f: losses * [1, -f] + [0, 7 * f]))
        for f in (1.0, factor)
    )
    assert other.rows == pytest.approx(one.rows, abs=2)
    assert other.predicted.gain.value == pytest.approx(one.predicted.gain.value, rel=1e-3)


def test_a_metric_that_likes_a_domain_gets_it_and_lower_may_be_better(prepared, by_losses):
    noise = np.random.default_rng(5).standard_normal(18) * 0.003

    def score(sign):
        def judged(v, losses, rng):
            return np.column_stack([sign * (trust_score(v) + noise), losses[:, 1]])

        return judged

    higher = propose(settings({}, None), prepared, table(score(1.0)))
    lower = propose(settings({"higher_is_better": False}, None), prepared, table(score(-1.0)))
    assert higher.rows[2] > 1.5 * by_losses.rows[2]
    assert higher.rows[0] < 0.7 * by_losses.rows[0]
    assert lower.rows == pytest.approx(higher.rows, abs=2)
    wrong = propose(
        settings({}, None), prepared, table(score(-1.0))
    )  # the same numbers, called good when they are high
    assert wrong.rows[2] < 0.7 * BASE[2]
    kinds = [problem.kinds for problem in (higher.constraints.problem, lower.constraints.problem)]
    assert kinds == [("score", "loss"), ("cost", "loss")]


def test_a_scale_weighs_a_score(prepared):
    def score(v, losses, rng):
        return np.column_stack([trust_score(v) + 0.003 * rng.standard_normal(18), losses[:, 1]])

    light, heavy, base = (
        propose(settings({"scale": scale}, None), prepared, table(score)) for scale in (100.0, 0.05, "base")
    )
    assert heavy.rows[2] > base.rows[2] > light.rows[2]
    assert heavy.yardstick.scale[0] == 0.05
    assert base.yardstick.scale[0] == pytest.approx(trust_score(BASE)[0], rel=0.1)
    again = propose(settings({}, None), prepared, table(score), yardstick=heavy.yardstick)
    assert again.yardstick is heavy.yardstick  # later rounds measure as the first did


def test_a_metric_of_noise_alone_weighs_nothing(prepared):
    def score(v, losses, rng):
        return np.column_stack([rng.standard_normal(18), losses[:, 1]])

    mathematics = propose(settings({"scale": 1e6}, None), prepared, table(score))
    noisy = propose(settings({}, None), prepared, table(score))
    assert noisy.yardstick.scale[0] > 50  # one of its standard deviations counts as one of the loss
    assert noisy.rows == pytest.approx(mathematics.rows, rel=0.25, abs=60)
    assert noisy.rows[1] > 1.3 * BASE[1]


def test_a_score_that_never_changes_is_refused():
    result = SimpleNamespace(spec=SimpleNamespace(volumes=BASE, rows=tuple(BASE), seed=0), scores={"search-0": 0.0})
    bench = SimpleNamespace(
        _results={"a": result, "b": result, WARM_RUN: result}, _roles={"a": "design", "b": "design", WARM_RUN: "warm"},
        config=settings({}, None), context=SimpleNamespace(warm=True),
        prepared=SimpleNamespace(capabilities=(None, None)), _values=lambda r: np.array([r.scores["search-0"], 1.0]),
        _search_losses=lambda r: np.ones(2),
    )  # fmt: skip
    with pytest.raises(UserError, match="metric of code gave 0 in all 2 runs"):
        Laboratory.evidence(bench)  # type: ignore[arg-type]


def test_a_score_may_not_drop(prepared):
    def score(v, losses, rng):
        return np.column_stack([losses[:, 0], trust_score(v) + 0.002 * rng.standard_normal(18)])

    free = propose(settings(None, {"scale": 1000.0}), prepared, table(score))
    config = settings(None, {"scale": 1000.0})
    protected = config.model_copy(
        update={"capabilities": tuple(c.model_copy(update={"must_not_drop": 0.02}) for c in config.capabilities[1:])}
    )
    config = config.model_copy(update={"capabilities": (config.capabilities[0], *protected.capabilities)})
    held = propose(config, prepared, table(score))
    assert trust_score(free.rows)[0] < 0.9 * trust_score(BASE)[0]
    assert trust_score(held.rows)[0] > 0.97 * trust_score(BASE)[0]
    assert any("must not drop: math" in name for name in held.optimum.active)


# ---------------------------------------------------------------- the pieces


def test_one_unit_for_losses_scores_and_costs():
    stick = Yardstick(("loss", "score", "cost"), np.array([np.nan, 0.5, 2.0]))
    base, values = np.array([2.0, 0.3, 10.0]), np.array([[1.9, 0.35, 9.0], [2.1, 0.25, 12.0]])
    relative = stick.relative(values, base)
    assert relative == pytest.approx(np.array([[0.95, 0.9, 0.5], [1.05, 1.1, 2.0]]))
    assert stick.absolute(relative, base) == pytest.approx(values)
    assert stick.relative(base, base) == pytest.approx(np.ones(3))
    assert [stick.allowance(0.1, base, j) for j in range(3)] == pytest.approx([1.1, 1.06, 1.5])
    zero = Yardstick(("score",), np.array([1.0]))
    assert zero.relative(np.array([0.2]), np.array([0.0])) == pytest.approx([0.8])  # accuracy that begins at nothing
    with pytest.raises(UserError, match="above 0"):
        Yardstick(("score",), np.array([0.0]))


@pytest.fixture(scope="module")
def mixed():
    runs = table()
    values = np.column_stack([runs.losses, trust_score(runs.volumes), 50 - 40 * trust_score(runs.volumes)])
    values[:, 2:] += np.random.default_rng(3).standard_normal((18, 2)) * [0.003, 0.1]
    names = ["code", "math", "score", "cost"]
    model = ResponseModel(kind=["loss", "loss", "score", "cost"], base=BASE, n_starts=1, n_draws=16)
    model.fit(pd.DataFrame(runs.volumes, columns=DOMAINS), pd.DataFrame(values, columns=names), seed_id=runs.seeds)
    return runs, values, model


def test_a_fit_of_several_kinds(mixed):
    runs, values, model = mixed
    v = pd.DataFrame(runs.volumes, columns=DOMAINS)
    predicted = model.predict(v)
    for j in range(4):
        assert np.corrcoef(predicted[:, j], values[:, j])[0, 1] > 0.98
    gradient = model.value_and_gradient(BASE)[1]
    assert gradient[2, 2] > 0 > gradient[3, 2]  # rows of trust raise the score and lower the cost
    restored = ResponseModel.from_json(model.to_json())
    assert restored.predict(v) == pytest.approx(predicted)
    assert restored.kinds_ == ("loss", "loss", "score", "cost")
    assert restored.draws_value_and_gradient(BASE)[0] == pytest.approx(model.draws_value_and_gradient(BASE)[0])
    old = {**model.to_json(), "sign_": 1.0, "options": {**model.to_json()["options"], "kind": "loss"}}
    assert ResponseModel.from_json(old).kinds_ == ("loss",) * 4  # as files of before said it
    with pytest.raises(BadInput, match="3 entries and there are 4"):
        ResponseModel(kind=["loss"] * 3).fit(runs.volumes, values)
    with pytest.raises(BadInput, match="one of loss, score, cost"):
        ResponseModel(kind=["loss", "good", "loss", "loss"]).fit(runs.volumes, values)


def test_z_of_a_score_is_taken_softly(mixed):
    runs, values, _ = mixed
    fits = [
        ResponseModel(kind="score", base=BASE, n_starts=1, n_draws=4).fit(runs.volumes, values[:, 2], baseline_loss=[z])
        for z in (0.2, 0.21)
    ]
    one, other = (np.asarray(fit.predict(runs.volumes)) for fit in fits)
    assert np.abs(one - other).max() < 0.3 * 0.01


def test_derivatives_of_relative_values_of_several_kinds(mixed):
    _, _, model = mixed
    domains = Domains(names=DOMAINS, base=BASE)
    problem = Problem(domains=domains, capabilities=("code", "math", "score", "cost"), kinds=model.kinds_)
    losses = RelativeLosses(model, problem, {"score": 0.4, "cost": 8.0})
    assert losses.point(BASE)[0] == pytest.approx(np.ones(4))
    v = np.array([700.0, 1500.0, 900.0])
    weights = np.array([[0.25, 0.25, 0.25, 0.25], [0.0, 0.0, 0.7, 0.3]])
    for level in (0.5, 0.9):
        gradient = losses.upper(v, level, weights)[1]
        for i in range(3):
            step = np.eye(3)[i] * 0.05
            up, down = losses.upper(v + step, level, weights)[0], losses.upper(v - step, level, weights)[0]
            assert (up - down) / 0.1 == pytest.approx(gradient[:, i], rel=2e-3, abs=1e-9)
    relative = losses.point(v)[0]
    assert losses.absolute(relative) == pytest.approx(model.value_and_gradient(v)[0])
    assert relative[2] == pytest.approx(1 - (model.value_and_gradient(v)[0][2] - losses.base_losses_J[2]) / 0.4)
    worst = optimize(
        model, Objective(kind="worst", scale={"score": 0.4, "cost": 8.0}),
        Constraints.from_options({"budget": "exactly 3000 rows", "budget_unit": "rows", "repeat_cap": None}, problem),
    )  # fmt: skip
    assert worst.objective == pytest.approx(worst.relative.max(), abs=1e-6)
    assert worst.base_objective == pytest.approx(1.0)


def paired(gain: float, spread: float, seeds: int = 5) -> PairedScores:
    rng = np.random.default_rng(2)
    base = 0.4 + 0.05 * rng.standard_normal(seeds)  # what a seed does to both
    return PairedScores(base=base, proposal=base + gain + spread * rng.standard_normal(seeds))


def losses(gain: float) -> PairedLosses:
    rng = np.random.default_rng(1)
    base = rng.gamma(20.0, 0.05, (5, 200)) * (1 + 0.002 * rng.standard_normal((5, 1)))
    return PairedLosses(base=base, proposal=base * (1 - gain), tokens=np.ones(200))


def test_the_verdict_of_a_metric_alone():
    def answer(gain, spread, kind="score", **options):
        return judge([paired(gain, spread)], yardstick=Yardstick((kind,), np.array([1.0])), **options)

    good = answer(0.03, 0.002)
    assert good.answer == IMPROVES
    assert good.gain.value == pytest.approx(0.03, abs=0.003)
    assert good.gain.lower < 0.03 < good.gain.upper
    assert good.row_noise == 0.0
    assert answer(0.03, 0.002, "cost").gain.value == pytest.approx(-0.03, abs=0.003)
    assert answer(0.03, 0.002, "cost").answer == NO_BETTER
    noisy = answer(0.03, 0.2)
    assert noisy.answer == UNDECIDED
    assert noisy.pairs_needed is None or noisy.pairs_needed > 5
    half = judge([paired(0.03, 0.002)], yardstick=Yardstick(("score",), np.array([2.0])))
    assert half.gain.value == pytest.approx(good.gain.value / 2)


def test_the_verdict_of_losses_and_scores_together():
    stick = Yardstick(("loss", "score"), np.array([np.nan, 2.0]))
    both = judge([losses(0.02), paired(0.04, 0.002)], yardstick=stick)
    alone = [judge([losses(0.02)]), judge([paired(0.04, 0.002)], yardstick=Yardstick(("score",), np.array([2.0])))]
    assert both.gain.value == pytest.approx((alone[0].gain.value + alone[1].gain.value) / 2)
    assert both.row_noise == pytest.approx(alone[0].row_noise / 2)
    assert both.answer == IMPROVES
    worst = judge([losses(0.02), paired(-0.04, 0.002)], yardstick=stick, kind="worst")
    assert worst.gain.value == pytest.approx(-0.02, abs=0.002)


def test_a_protected_score_that_falls_is_said():
    stick = Yardstick(("loss", "score"), np.array([np.nan, 2.0]))
    pairs = [losses(0.2), paired(-0.05, 0.002)]
    free = judge(pairs, yardstick=stick)
    assert free.answer == IMPROVES
    held = judge(pairs, yardstick=stick, tolerances=[None, 0.02])  # 0.008 of about 0.4 may go, 0.05 did
    assert held.answer == NO_BETTER
    assert held.dropped == (1,)
    assert judge(pairs, yardstick=stick, tolerances=[None, 0.2]).answer == IMPROVES
