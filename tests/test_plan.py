"""The plan: φ from a compute budget, and numbers that add up."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ideal_proxy import plan as planning
from ideal_proxy.config import parse_config
from ideal_proxy.errors import UsageError
from ideal_proxy.plan import describe_plan, largest_fraction, make_plan
from ideal_proxy.prepare import CapabilityFacts, DomainFacts, Prepared

NAMES = ("code", "math", "trust")


@pytest.fixture
def prepared(tmp_path):
    domains = tuple(
        DomainFacts(
            name=name, source=f"demo:{name}", format="alpaca", fingerprint="0" * 64, available=10_000, base=base,
            lower=0, upper=40_000, tokens_per_row=tokens, supervised_per_row=40.0, reserved=reserved, truncated=0,
            dropped=0, longest=200,
        )
        for name, base, tokens, reserved in (
            ("code", 10_000, 100.0, 1400),
            ("math", 2_000, 80.0, 1600),
            ("trust", 8_000, 60.0, 1500),
        )
    )  # fmt: skip
    capabilities = (
        CapabilityFacts(
            name="code", source="x", format="alpaca", fingerprint="0" * 64, rows=400, search_rows=200,
            verify_rows=200, supervised_tokens=9000, truncated=0,
        ),
    )  # fmt: skip
    return Prepared(
        folder=tmp_path, domains=domains, capabilities=capabilities, health={}, vocabulary=1000, template={}
    )


@pytest.fixture(autouse=True)
def speed(monkeypatch):
    monkeypatch.setattr(planning, "_measure", lambda config, prepared, device: (5_000.0, "float32", 1_000_000))
    monkeypatch.setattr(planning, "_cores", lambda: 2)
    monkeypatch.setattr(planning, "_device", lambda: "cpu")


def config(**changes):
    return parse_config({
        "domains": [{"name": n, "path": f"demo:{n}"} for n in NAMES],
        "capabilities": [{"name": "code", "path": "x"}],
        **changes,
    })


def test_defaults(prepared, tmp_path):
    plan = make_plan(config(), prepared, tmp_path / "plan.json")
    assert plan.runs == 3 * (3 + 1)
    assert plan.fraction == pytest.approx(4000 / 20_000)
    assert plan.looks == (3, 5, 8)
    assert plan.workers == 2


def test_a_plan_is_made_once(prepared, tmp_path):
    first = make_plan(config(), prepared, tmp_path / "plan.json")
    again = make_plan(config(swarm={"runs": 40, "workers": 7}), prepared, tmp_path / "plan.json")
    assert again == first


def test_a_given_fraction_leaves_the_warm_rows_alone(prepared, tmp_path):
    plan = make_plan(config(proxy={"fraction": 0.85}), prepared, tmp_path / "plan.json")
    assert plan.fraction <= largest_fraction(prepared) == pytest.approx(0.84)
    assert plan.fraction == pytest.approx(0.84, abs=1e-4)


@pytest.mark.parametrize("hours", [0.5, 1.0, 1.5])
def test_the_planned_time_fits_the_budget_and_uses_it(prepared, tmp_path, hours):
    settings = config(swarm={"max_hours": hours})
    plan = make_plan(settings, prepared, tmp_path / "plan.json")
    seconds = describe_plan(settings, prepared, plan)["total"]["seconds"]
    assert seconds <= hours * 3600
    assert seconds >= 0.8 * hours * 3600 or plan.fraction == pytest.approx(largest_fraction(prepared), abs=1e-3)


def test_more_hours_mean_more_rows(prepared, tmp_path):
    fractions = [
        make_plan(config(swarm={"max_hours": h}), prepared, tmp_path / f"{h}.json").fraction for h in (0.4, 0.8)
    ]
    assert fractions[0] < fractions[1]


def test_too_small_a_budget_says_what_is_needed(prepared, tmp_path):
    with pytest.raises(UsageError, match=r"--max-hours 0\.01 is too little.*need about 0\.\d+ h here"):
        make_plan(config(swarm={"max_hours": 0.01}), prepared, tmp_path / "plan.json")
    assert not (tmp_path / "plan.json").exists()


def test_the_stages_add_up(prepared, tmp_path):
    settings = config(rounds=1)
    plan = make_plan(settings, prepared, tmp_path / "plan.json")
    described = describe_plan(settings, prepared, plan)
    assert [stage["name"] for stage in described["stages"]] == ["warm start", "learning rate", "swarm", "check"]
    assert described["total"]["runs"] == 1 + 2 * 3 + 12 + 16
    base_tokens = 0.2 * (10_000 * 100 + 2_000 * 80 + 8_000 * 60)
    assert described["stages"][2]["tokens"] == pytest.approx(12 * base_tokens)
    assert described["total"]["flops"] == pytest.approx(6e6 * described["total"]["tokens"])
    halved = describe_plan(settings, prepared, replace(plan, tokens_per_second=plan.tokens_per_second * 2))
    assert halved["total"]["seconds"] == pytest.approx(described["total"]["seconds"] / 2)
    assert described["least_seconds"] < described["total"]["seconds"]
