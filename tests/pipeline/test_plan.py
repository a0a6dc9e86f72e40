"""The plan: φ from a compute budget, and numbers that add up."""

from __future__ import annotations

import functools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from builders import capability_facts, config_of, domain_facts, make_rows

from ideal_proxy.data.context import Context
from ideal_proxy.errors import UsageError, UserError
from ideal_proxy.optimizer.rounding import round_volumes
from ideal_proxy.pipeline import machine
from ideal_proxy.pipeline import plan as planning
from ideal_proxy.pipeline.encoding import scratch_products
from ideal_proxy.pipeline.machine import Measured
from ideal_proxy.pipeline.plan import largest_fraction, make_plan, read_plan
from ideal_proxy.pipeline.plan_cost import describe_plan
from ideal_proxy.pipeline.prepare import Prepared
from ideal_proxy.pipeline.proposal import check_constraints, make_constraints
from ideal_proxy.proxy.cost import Elsewhere, Products
from ideal_proxy.report.plan_text import plan_tables

NAMES = ("code", "math", "trust")
config = functools.partial(config_of, NAMES, ["code"])
PRODUCTS = Products(trained=1_000_000, frozen=0, head=500_000, head_trained=True, attention=1000)


@pytest.fixture
def prepared(tmp_path):
    domains = tuple(
        domain_facts(
            name, available=10_000, base=base, upper=40_000, tokens_per_row=tokens, supervised_per_row=40.0,
            reserved=reserved, longest=200,
        )
        for name, base, tokens, reserved in (
            ("code", 10_000, 100.0, 1400),
            ("math", 2_000, 80.0, 1600),
            ("trust", 8_000, 60.0, 1500),
        )
    )  # fmt: skip
    capabilities = (capability_facts("code"),)
    return Prepared(
        folder=tmp_path,
        facts=domains,
        capabilities=capabilities,
        health={},
        vocabulary=1000,
        template={},
        context=Context(64),
    )


@pytest.fixture(autouse=True)
def speed(monkeypatch):
    found = Measured(5_000.0, "float32", 1_500_000, PRODUCTS, 3e10)
    monkeypatch.setattr(planning, "measure", lambda config, prepared, device: found)
    monkeypatch.setattr(machine, "cpu_count", lambda: 2)
    monkeypatch.setattr("ideal_proxy.proxy.best_device", lambda: "cpu")


def test_defaults(prepared, tmp_path):
    plan = make_plan(config(), prepared, tmp_path / "plan.json")
    assert plan.runs == 3 * (3 + 1)
    assert plan.fraction == pytest.approx(4000 / 20_000)
    assert plan.looks == (3, 5, 8)
    assert plan.workers == 2


@pytest.mark.parametrize(("cost", "chosen", "most"), [(60.0, "float32", machine.FEW_ROWS), (0.5, "bfloat16", 128)])
def test_a_precision_that_a_processor_only_imitates_is_not_timed_on_all_rows(prepared, monkeypatch, cost, chosen, most):
    asked = []

    def seconds(model, domain, row, parts, settings, device, which):
        asked.append((settings.dtype, len(domain[which])))
        return len(domain[which]) * (cost if settings.dtype == "bfloat16" else 1.0)

    monkeypatch.setattr(machine, "_seconds", seconds)
    monkeypatch.setattr(Prepared, "domain_rows", lambda self, index: make_rows(40, 2, index))
    found = machine.measure(config(proxy={"size": "1M"}, batch={"rows": 32}), prepared, "cpu")
    assert found.dtype == chosen
    assert max(rows for dtype, rows in asked if dtype == "bfloat16") == most
    assert max(rows for dtype, rows in asked if dtype == "float32") == 128


def test_a_plan_is_made_once(prepared, tmp_path):
    first = make_plan(config(), prepared, tmp_path / "plan.json")
    again = make_plan(config(swarm={"runs": 40}), prepared, tmp_path / "plan.json")
    assert again == first
    more = make_plan(config(swarm={"workers": 7}), prepared, tmp_path / "plan.json")
    assert more == replace(first, workers=7)  # a search may go on with more workers, and with nothing else changed


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


def test_fewer_reference_rows_are_offered_where_reading_them_takes_long(prepared, tmp_path):
    many = replace(
        prepared, capabilities=tuple(replace(of, rows=40_000, search_rows=20_000, verify_rows=20_000)
                                     for of in prepared.capabilities),
    )  # fmt: skip
    with pytest.raises(UsageError, match=r"\d\d% of it go with swarm\.judge_rows: 64$"):
        make_plan(config(swarm={"max_hours": 0.01}), many, tmp_path / "plan.json")
    with pytest.raises(UsageError, match=r"or proxy\.fraction; \d\d% of it go with swarm\.judge_rows: 64$"):
        make_plan(config(swarm={"max_hours": 0.01}, proxy={"fraction": 0.01}), many, tmp_path / "plan.json")
    with pytest.raises(UsageError, match=r"or the proxy's size$"):
        make_plan(config(swarm={"max_hours": 0.01}), prepared, tmp_path / "plan.json")


def test_judging_counts_the_rows_that_are_read(prepared, tmp_path):
    """The search's rows at every run, those of the check at its runs alone."""
    settings = config(rounds=1)
    plan = make_plan(settings, prepared, tmp_path / "plan.json")
    few = replace(prepared, capabilities=tuple(replace(of, search_rows=10) for of in prepared.capabilities))
    whole, less = (
        {stage["name"]: stage["flops"] for stage in describe_plan(settings, of, plan)["stages"]}
        for of in (prepared, few)
    )
    judged = hand_counted()["judging"]
    saved = judged * (1 - 10 * len(prepared.capabilities) / sum(of.search_rows for of in prepared.capabilities))
    assert whole["swarm"] - less["swarm"] == pytest.approx(9 * saved)
    assert whole["check"] - less["check"] == pytest.approx(16 * saved)


@pytest.mark.parametrize(("batch", "unit"), [({"rows": 32}, "tokens"), ({"tokens": 900}, "rows")])
def test_kept_steps_and_a_kept_budget_both_hold(prepared, batch, unit):
    settings = config(batch=batch, budget={unit: "keep", "steps": "keep"})
    check_constraints(settings, prepared)
    constraints = make_constraints(settings, prepared, None)
    base, length = prepared.domains.base, prepared.domains.lengths
    move = np.cross(np.ones(3), length)  # keeps rows and tokens
    volumes = base + 0.3 * move / np.abs(move / base).max()
    rows = round_volumes(volumes, constraints)
    assert np.abs(rows - base).max() > 100
    assert abs(rows.sum() - base.sum()) <= 1
    assert abs(length @ rows - length @ base) <= length.max()
    lesser = replace(prepared, facts=(replace(prepared.facts[0], lower=10_000, upper=10_000), *prepared.facts[1:]))
    with pytest.raises(UserError, match="tokens and rows both"):
        check_constraints(settings, lesser)


def hand_counted() -> dict[str, float]:
    """FLOPs of training on 4,000 rows and of judging 200: 2 a multiply-add, three products to learn, one to judge."""
    rows = 0.2 * (10_000 + 2_000 + 8_000)
    tokens = 0.2 * (10_000 * 100 + 2_000 * 80 + 8_000 * 60)
    labelled = rows * 40
    attention = 1000 * tokens / rows
    training = 2 * 3 * ((1_000_000 + attention) * tokens + 500_000 * labelled)
    judging = 2 * ((1_000_000 + 1000 * 80) * 200 * 80 + 500_000 * 4500)
    return {"tokens": tokens, "training": training, "judging": judging}


def test_the_stages_add_up(prepared, tmp_path):
    settings = config(rounds=1)
    plan = make_plan(settings, prepared, tmp_path / "plan.json")
    described = describe_plan(settings, prepared, plan)
    by_hand = hand_counted()
    stages = {stage["name"]: stage for stage in described["stages"]}
    assert list(stages) == ["warm start", "learning rate", "swarm", "check"]
    assert described["total"]["runs"] == 1 + 3 * 3 + (12 - 3) + 16, (
        "the sweep's runs at the chosen rate are the swarm's"
    )
    assert stages["swarm"]["tokens"] == pytest.approx(9 * by_hand["tokens"])
    assert stages["swarm"]["flops"] == pytest.approx(9 * (by_hand["training"] + by_hand["judging"]))
    assert stages["check"]["flops"] == pytest.approx(16 * (by_hand["training"] + 2 * by_hand["judging"]))
    # The warm start learns every token: 1400 · 100, 1600 · 80 and 1500 · 60 tokens are there, equal parts are taken.
    assert stages["warm start"]["tokens"] == pytest.approx(140_000 + 128_000 + 90_000)
    length = by_hand["tokens"] / (0.2 * 20_000)
    warm = 6 * (1_500_000 + 1000 * length) * stages["warm start"]["tokens"] + 2 * by_hand["judging"]
    assert stages["warm start"]["flops"] == pytest.approx(warm)
    assert described["total"]["flops"] == pytest.approx(sum(stage["flops"] for stage in stages.values()))
    # Two workers of 3e10 FLOP/s; one in the warm start.
    assert stages["swarm"]["seconds"] == pytest.approx(stages["swarm"]["flops"] / 6e10)
    assert stages["warm start"]["seconds"] == pytest.approx(warm / 3e10)
    halved = describe_plan(settings, prepared, replace(plan, flops_per_second=plan.flops_per_second * 2))
    assert halved["total"]["seconds"] == pytest.approx(described["total"]["seconds"] / 2)
    assert described["least_seconds"] < described["total"]["seconds"]
    least = described["total"]["seconds"] - stages["check"]["seconds"] * (1 - 3 / 8)
    assert described["least_seconds"] == pytest.approx(least)
    assert described["total"]["cost"] is None
    # 0.56 GB of process, 4 bytes a weight, 12 more for those that learn, 130 for each token, layer and width.
    assert described["worker_bytes"] == pytest.approx(560e6 + 4 * 1.5e6 + 12 * 1.5e6 + 130 * 2048 * 1000)


def test_more_rounds_cost_more_runs_and_no_check(prepared, tmp_path):
    settings = config(rounds=3)
    described = describe_plan(settings, prepared, make_plan(settings, prepared, tmp_path / "plan.json"))
    (more, check), by_hand = described["stages"][-2:], hand_counted()
    assert (more["name"], more["rounds"], more["runs"]) == ("more rounds", 2, 2 * 4)
    assert (check["name"], check["runs"]) == ("check", 16)
    expected = 2 * 4 * (by_hand["training"] + by_hand["judging"])
    assert more["flops"] == pytest.approx(expected)


def test_a_ladder_counts_its_lower_sizes(prepared, tmp_path):
    """Warm start, sweep and swarm of the lower size; the last has no sweep, and few runs."""
    settings = config(rounds=2, swarm={"sizes": ["1M", "3M"], "runs": [9, 5]})
    assert settings.proxy.size == "3M"
    plan = make_plan(settings, prepared, tmp_path / "plan.json")
    assert read_plan(tmp_path / "plan.json") == plan
    described, by_hand = describe_plan(settings, prepared, plan), hand_counted()
    lower, warm, sweep, swarm = described["stages"][:4]
    single = {s["name"]: s for s in describe_plan(config(), prepared, plan.of_lower(plan.lower[0]))["stages"]}
    assert (lower["name"], lower["size"], lower["runs"]) == ("lower sizes", "1M", 1 + 3 * 3 + 9 - 3)
    each = by_hand["training"] + by_hand["judging"]
    assert lower["flops"] == pytest.approx(single["warm start"]["flops"] + 15 * each)
    assert (warm["name"], sweep["runs"], swarm["runs"]) == ("warm start", 0, 5)
    assert swarm["flops"] == pytest.approx(5 * each)
    assert described["total"]["flops"] == pytest.approx(sum(stage["flops"] for stage in described["stages"]))
    text = plan_tables(described)
    assert "1M proxies" in text
    total, below = described["total"]["runs"], lower["runs"]
    assert f"{total} runs at most: {below} of 1M proxies, {total - below} of a " in " ".join(text.split())
    assert "Ladder: 9 of 1M proxies cost" in text


def test_runs_of_a_ladder_follow_what_they_cost(prepared, tmp_path, monkeypatch):
    """Half of what 3(n + 1) runs of the last size cost buys those below it; never more than tell something."""
    few = 4
    for speed, runs in ((1.0, 6 * few), (0.1, 2 * few)):  # of the small size: it is slow there, or as fast as the last

        def measured(settings, *_, speed=speed):
            size = settings.proxy.size
            products = scratch_products(size, 1000)[1]
            return Measured(1e4, "float32", 1, products, 1e9 * (speed if size == "1M" else 1.0))

        monkeypatch.setattr(planning, "measure", measured)
        plan = make_plan(config(swarm={"sizes": ["1M", "10M"]}), prepared, tmp_path / f"{speed}.json")
        assert [of.runs for of in plan.lower] == [runs]
        assert plan.runs == few


def test_money_is_price_times_devices_times_hours(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr("ideal_proxy.proxy.best_device", lambda: "cuda")
    monkeypatch.setattr(planning, "gpus", lambda: 4)
    for number, (workers, given, devices) in enumerate(((8, None, 4), (2, None, 2), (2, 3, 3))):
        settings = config(cost={"price": 2.5, "devices": given, "currency": "EUR"}, swarm={"workers": workers})
        plan = make_plan(settings, prepared, tmp_path / f"{number}.json")
        described = describe_plan(settings, prepared, plan)
        total = described["total"]
        assert plan.devices == devices
        assert total["cost"] == pytest.approx(2.5 * devices * total["seconds"] / 3600)
        assert total["cost"] == pytest.approx(2.5 * total["device_hours"])
        assert total["cost"] == pytest.approx(sum(stage["cost"] for stage in described["stages"]))
        assert described["worker_bytes"] is None  # checked on CPUs only


@pytest.mark.parametrize("most", [1.0, 2.0, 3.0])
def test_max_cost_shrinks_the_search_as_max_hours_does(prepared, tmp_path, most):
    settings = config(cost={"price": 2.0, "max": most})
    plan = make_plan(settings, prepared, tmp_path / "plan.json")
    cost = describe_plan(settings, prepared, plan)["total"]["cost"]
    assert cost <= most
    assert cost >= 0.8 * most or plan.fraction == pytest.approx(largest_fraction(prepared), abs=1e-3)
    as_hours = make_plan(config(swarm={"max_hours": most / 2}), prepared, tmp_path / "hours.json")
    assert plan.fraction == as_hours.fraction


def test_the_tighter_of_two_budgets_holds(prepared, tmp_path):
    both = config(cost={"price": 2.0, "max": 1.0}, swarm={"max_hours": 5})
    alone = config(swarm={"max_hours": 0.5})
    plans = [make_plan(c, prepared, tmp_path / f"{k}.json") for k, c in enumerate((both, alone))]
    assert plans[0].fraction == plans[1].fraction


def test_too_little_money_says_what_is_needed(prepared, tmp_path):
    needed = r"--max-cost 0\.02 is too little.*need about 0\.\d+ h \(0\.\d+ CHF\) here; raise it, or lower --runs"
    with pytest.raises(UsageError, match=needed):
        make_plan(config(cost={"price": 2, "max": 0.02, "currency": "CHF"}), prepared, tmp_path / "plan.json")
    assert not (tmp_path / "plan.json").exists()


def test_a_given_fraction_is_not_shrunk_but_refused_where_not_even_one_round_fits(prepared, tmp_path):
    least = describe_plan(
        config(), prepared, make_plan(config(proxy={"fraction": 0.3}), prepared, tmp_path / "free.json")
    )["least_seconds"]
    for factor, refused in ((0.9, True), (1.1, False)):
        settings = config(proxy={"fraction": 0.3}, swarm={"max_hours": factor * least / 3600})
        path = tmp_path / f"{factor}.json"
        if refused:
            with pytest.raises(UsageError, match=r"one round of 12 proxies at proxy\.fraction 0\.3 needs about"):
                make_plan(settings, prepared, path)
        else:
            assert make_plan(settings, prepared, path).fraction == 0.3


def test_another_machine_is_planned_for_and_not_kept(prepared, tmp_path):
    kept = make_plan(config(), prepared, tmp_path / "plan.json")
    elsewhere = Elsewhere(device_flops=1e12, utilisation=0.3, devices=4)
    settings = config(cost={"price": 3.0})
    plan = make_plan(settings, prepared, tmp_path / "plan.json", elsewhere)
    there, here = describe_plan(settings, prepared, plan), describe_plan(settings, prepared, kept)
    assert there["total"]["flops"] == here["total"]["flops"]
    swarm = next(stage for stage in there["stages"] if stage["name"] == "swarm")
    assert swarm["seconds"] == pytest.approx(swarm["flops"] / (4 * 3e11))
    assert there["total"]["cost"] == pytest.approx(3.0 * 4 * there["total"]["seconds"] / 3600)
    assert make_plan(config(), prepared, tmp_path / "plan.json") == kept
    assert not (tmp_path / "other.json").exists()
    make_plan(config(), prepared, tmp_path / "other.json", elsewhere)
    assert not (tmp_path / "other.json").exists()


def test_a_plan_of_another_version_is_refused(prepared, tmp_path):
    make_plan(config(), prepared, tmp_path / "plan.json")
    text = (tmp_path / "plan.json").read_text()
    (tmp_path / "plan.json").write_text(text.replace('"products"', '"product"'))
    with pytest.raises(UserError, match="written by another version"):
        make_plan(config(), prepared, tmp_path / "plan.json")


def test_anchors_keep_no_more_weights_than_the_disk_holds(prepared, tmp_path, monkeypatch):
    given = config(proxy={"mode": "target"})
    plan = make_plan(given, prepared, tmp_path / "plan.json")
    assert (plan.runs, plan.imitations) == (2 + 6 + 3 + 1, 12)
    stages = {stage["name"]: stage for stage in describe_plan(given, prepared, plan)["stages"]}
    assert stages["imitation"]["runs"] == 12
    assert stages["imitation"]["tokens"] == stages["imitation"]["steps"] == 0
    assert 0 < stages["imitation"]["flops"] < stages["swarm"]["flops"]
    free = SimpleNamespace(free=27 * 4 * 1_500_000)
    monkeypatch.setattr(planning.shutil, "disk_usage", lambda folder: free)
    with pytest.raises(
        UsageError, match=r"keeps the weights of up to 27 runs, 0.162 GB, and .* has 0.162 GB free; set proxy.lora_rank"
    ):
        make_plan(given, prepared, tmp_path / "other.json")
