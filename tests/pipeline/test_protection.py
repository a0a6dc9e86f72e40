"""Protection by default: what the run file says, what the proposal keeps, and what the swarm tells of the scatter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import yaml
from builders import capability_facts, domain_facts

from ideal_proxy.config import dump_config, parse_config
from ideal_proxy.data.context import Context
from ideal_proxy.errors import UsageError, UserError
from ideal_proxy.pipeline.evidence import Evidence
from ideal_proxy.pipeline.prepare import Prepared
from ideal_proxy.pipeline.proposal import fit_and_propose
from ideal_proxy.response.relative import Yardstick

DOMAINS = ("code", "math", "trust")
CAPABILITIES = ("code", "math")
BASE = np.array([1000.0, 1000.0, 1000.0])
WEIGHT = np.array([[2.0, 0.2, 0.0], [0.1, 1.6, 0.0]])  # each likes its own domain, and nobody needs trust


def truth(volumes: np.ndarray) -> np.ndarray:
    return 0.5 + 2.5 / (1 + np.sqrt(np.atleast_2d(volumes) / 1000.0) @ WEIGHT.T)


def settings(**changes: Any):
    """A search that pays for code with mathematics: trust is pinned and code weighs twenty times as much."""
    return parse_config({
        "domains": [{"name": name, "path": name, "pinned": name == "trust"} for name in DOMAINS],
        "capabilities": [{"name": "code", "path": "c", "weight": 20.0}, {"name": "math", "path": "m"}],
        "objective": {"kind": "weighted"}, **changes,
    })  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    facts = [domain_facts(name, lower=1000, upper=1000) if name == "trust" else domain_facts(name) for name in DOMAINS]
    return Prepared(
        context=Context(64), folder=tmp_path_factory.mktemp("prepared"), facts=tuple(facts),
        capabilities=tuple(capability_facts(name) for name in CAPABILITIES), health={}, vocabulary=300, template={},
    )  # fmt: skip


def runs(noise: float = 0.002) -> Evidence:
    rng = np.random.default_rng(0)
    shares = np.exp(rng.uniform(-1.2, 1.2, (16, 3)))
    volumes = np.vstack([BASE, BASE, 3000 * shares / shares.sum(axis=1, keepdims=True)])
    losses = truth(volumes) + noise * rng.standard_normal((18, 2))
    none = truth(np.zeros(3))[0]
    return Evidence(
        ids=tuple(map(str, range(18))), volumes=volumes, losses=losses, values=losses, seeds=np.arange(18) % 2,
        losses_before=none, values_before=none,
    )  # fmt: skip


@pytest.fixture(scope="module")
def evidence():
    return runs()


def rise(rows: np.ndarray, j: int) -> float:
    return float(truth(rows)[0, j] / truth(BASE)[0, j] - 1)


def test_by_default_nobody_loses_more_than_two_percent_and_the_free_answer_is_kept(prepared, evidence):
    held, free = (fit_and_propose(settings(**p), prepared, evidence, seed=0) for p in ({}, {"protect": "none"}))
    assert rise(free.rows, 1) > 0.1
    assert -0.005 < rise(held.rows, 1) < 0.02, "the margin for error stays inside"
    assert rise(held.rows, 0) < -0.005
    assert any(text.startswith("protect: math (tolerance 2 %") for text in held.optimum.active)
    assert held.free is not None
    assert held.free.rows == pytest.approx(free.rows, abs=30)
    assert held.free.predicted.gain.value == pytest.approx(free.predicted.gain.value, rel=0.05)
    assert held.free.predicted.ratios[1].value - 1 == pytest.approx(rise(free.rows, 1), abs=0.02)
    assert free.free is None


def test_the_worst_capability_is_protected_too_and_the_stricter_of_two_limits_holds(prepared, evidence):
    names = [{"name": "code", "path": "c", "weight": 20.0}, {"name": "math", "path": "m", "must_not_drop": 0.05}]
    both = fit_and_propose(settings(capabilities=names, protect={"math": "1%"}), prepared, evidence, seed=0)
    assert rise(both.rows, 1) < 0.01
    loose = fit_and_propose(settings(capabilities=names, protect={"math": "20%"}), prepared, evidence, seed=0)
    assert 0.02 < rise(loose.rows, 1) < 0.05
    assert any(text.startswith("must not drop: math (tolerance 5 %") for text in loose.optimum.active)
    worst = fit_and_propose(settings(objective={"kind": "worst"}), prepared, evidence, seed=0)
    assert max(rise(worst.rows, j) for j in range(2)) < 0.02


def test_protection_that_no_mixture_can_keep_is_lifted_and_said_but_must_not_drop_is_an_error(prepared, evidence):
    less = {"budget": {"mode": "keep", "total": 100_000}}  # two thirds of the tokens
    lifted = fit_and_propose(settings(**less), prepared, evidence, seed=0)
    assert any("the proposal is the free one" in note for note in lifted.notes)
    names = [{"name": name, "path": name, "must_not_drop": 0.01} for name in CAPABILITIES]
    with pytest.raises(UserError, match="must not drop"):
        fit_and_propose(settings(capabilities=names, objective={}, **less), prepared, evidence, seed=0)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, {"code": 0.02, "math": 0.02}), ("2%", {"code": 0.02, "math": 0.02}),
        (0.03, {"code": 0.03, "math": 0.03}),
        ("none", {}), ({"code": "none"}, {"math": 0.02}), ({"math": "5 %"}, {"code": 0.02, "math": 0.05}),
    ],
)  # fmt: skip
def test_protect_is_read_and_written_again(given, expected):
    config = settings(**({} if given is None else {"protect": given}))
    assert config.limits.protect == expected
    assert parse_config(yaml.safe_load(dump_config(config))) == config


@pytest.mark.parametrize(
    ("given", "said"),
    [("5", "from 0 to 1"), ({"maths": "1%"}, 'did you mean "math"'), ("much", "cannot read"), (-0.1, "out of range")],
)
def test_a_wrong_protect_is_told(given, said):
    with pytest.raises(UsageError, match=said):
        settings(protect=given)


def test_the_scatter_of_a_difference_is_measured_by_replicates_alone():
    rng = np.random.default_rng(0)
    stick, base, found = Yardstick.of_losses(2), np.array([2.0, 4.0]), []
    for _ in range(400):
        volumes = np.repeat(np.arange(1.0, 8.0)[:, None] * BASE, [2, 2, 2, 2, 2, 1, 1], axis=0)
        seeds = np.array([0, 1] * 5 + [0, 1])
        level = rng.standard_normal((7, 2)) * 0.3  # mixtures and seeds differ by much more than the noise
        losses = base * (1 + level[np.repeat(np.arange(7), [2, 2, 2, 2, 2, 1, 1])])
        losses = losses + base * (
            0.2 * rng.standard_normal((2, 1))[seeds] + [0.01, 0.02] * rng.standard_normal((12, 2))
        )
        table = Evidence(
            ids=tuple(map(str, range(12))), volumes=volumes, losses=losses, values=losses, seeds=seeds,
            losses_before=base, values_before=base,
        )  # fmt: skip
        found.append(table.scatter(stick, base, "mean", None))
    assert {known.gain.degrees for known in found} == {4}  # (5 − 1) (2 − 1)
    ratios = np.mean([known.ratios.variance for known in found], axis=0)
    assert np.sqrt(ratios) == pytest.approx(np.sqrt(2) * np.array([0.01, 0.02]), rel=0.06)
    gain = np.mean([known.gain.variance for known in found])
    assert np.sqrt(gain) == pytest.approx(np.hypot(0.01, 0.02) / np.sqrt(2), rel=0.06)


def test_runs_without_replicates_tell_nothing_of_the_scatter():
    table = runs()
    one = Evidence(
        ids=table.ids[1:], volumes=table.volumes[1:], losses=table.losses[1:], values=table.values[1:],
        seeds=table.seeds[1:], losses_before=table.losses_before, values_before=table.values_before,
    )  # fmt: skip
    assert one.scatter(Yardstick.of_losses(2), truth(BASE)[0], "mean", None).gain.degrees == 0
