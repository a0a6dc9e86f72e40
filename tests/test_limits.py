"""Limits: numbers with units all the way from the run file to the mixture file and back."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from ideal_proxy.amounts import Amount, Comparison
from ideal_proxy.config import parse_config
from ideal_proxy.domains import Domains
from ideal_proxy.errors import UsageError
from ideal_proxy.limits import Budget, Limits
from ideal_proxy.optimizer import Constraints, Limit, Problem

DOMAINS, CAPABILITIES = ["code", "maths", "trust"], ["reason", "safe"]


def settings(**more: Any) -> dict[str, Any]:
    return {
        "domains": [{"name": n, "path": f"{n}.jsonl", "pinned": n == "trust"} for n in DOMAINS],
        "capabilities": [{"name": "reason", "path": "r.jsonl"}, {"name": "safe", "path": "s", "must_not_drop": 0.013}],
        **more,
    }


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        ({}, Budget("keep")),
        ({"mode": "keep", "total": 123457, "unit": "rows"}, Budget("exactly", Amount(123457.0, "rows"))),
        ({"mode": "at_most", "total": 1234567}, Budget("at most", Amount(1234567.0, "tokens"))),
        ({"mode": "at_most"}, Budget("at most", Amount(1.0, "share"))),
        ({"mode": "free"}, Budget("free")),
    ],
)
def test_the_run_file_becomes_numbers_at_once(budget: dict[str, Any], expected: Budget) -> None:
    limits = parse_config(settings(budget=budget, constraints={"groups": ["code + 2 * maths <= 61.7 %"]})).limits
    assert limits.budget == expected
    assert limits.pinned == {"trust": None}
    assert limits.must_not_drop == {"safe": 0.013}
    (group,) = limits.groups
    assert (group.weights, group.constant, group.unit) == ({"code": 1.0, "maths": 2.0}, pytest.approx(0.617), "share")


def test_what_goes_into_a_file_comes_out_equal() -> None:
    limits = Limits(
        budget=Budget("at most", Amount(1234567.25, "tokens")),
        budget_unit="tokens",
        lower={"code": Amount(1 / 3, "share", "rows")},
        upper={"maths": Amount(5000.125, "rows")},
        pinned={"trust": None, "code": Amount(10.5, "rows")},
        repeat_cap=None,
        groups=(Comparison("code <= 2 * maths", "<=", {"code": 1.0, "maths": -2.0}),),
        must_not_drop={"safe": 0.1 + 0.2},
    )
    told = json.loads(json.dumps(limits.to_json()))
    assert Limits.from_json(told, DOMAINS, CAPABILITIES) == limits
    assert told["upper"]["maths"]["value"] == 5000.125, "a number is kept as a number"


def test_texts_of_earlier_files_are_read() -> None:
    told = {
        "budget": "exactly 9000 rows", "budget_unit": "rows", "pinned": ["trust"], "repeat_cap": 3.0,
        "groups": ["code + maths <= 60 %"], "must_not_drop": {"safe": 0.01}, "lower": {"code": "12 rows"},
        "upper": None,
    }  # fmt: skip
    assert Limits.from_json(told, DOMAINS, CAPABILITIES) == Limits(
        budget=Budget("exactly", Amount(9000.0, "rows")), budget_unit="rows", pinned={"trust": None}, repeat_cap=3.0,
        groups=(Comparison("code + maths <= 60 %", "<=", {"code": 1.0, "maths": 1.0}, 0.6, "share"),),
        must_not_drop={"safe": 0.01}, lower={"code": Amount(12.0, "rows")},
    )  # fmt: skip


def test_a_group_that_cannot_be_read_is_refused_with_the_run_file() -> None:
    with pytest.raises(UsageError, match='did you mean "maths"'):
        parse_config(settings(constraints={"groups": ["mathz <= 60 %"]}))


def test_a_trust_region_lies_around_its_centre() -> None:
    problem = Problem(
        domains=Domains(names=tuple(DOMAINS), base=np.array([100.0, 200.0, 300.0])), capabilities=tuple(CAPABILITIES)
    )
    centre = np.array([400.0, 50.0, 100.0])
    found = Constraints(problem=problem, limits=Limits(repeat_cap=None), trust_region=0.5, trust_centre=centre)
    atoms = [atom for atom in found.atoms() if atom.kind is Limit.TRUST_REGION]
    highest = {atom.index: atom.upper for atom in atoms if np.isfinite(atom.upper)}
    assert highest == {i: pytest.approx((v + 2.0) * np.exp(0.5) - 2.0) for i, v in enumerate(centre)}
    assert all(atom.label.startswith("trust region: ") for atom in atoms)
