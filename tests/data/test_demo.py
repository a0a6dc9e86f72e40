"""The embedded default: deterministic, without leaks, with the structure that it promises."""

from __future__ import annotations

import pytest

from ideal_proxy.data.demo import DOMAINS, demo_config, demo_rows
from ideal_proxy.errors import UsageError


@pytest.mark.parametrize("name", [*DOMAINS, "blend"])
def test_rows_depend_on_the_uri_alone_and_are_distinct(name):
    rows = demo_rows(f"demo:{name}?seed=3&rows=600")
    assert rows == demo_rows(f"demo:{name}?seed=3&rows=600")
    assert rows != demo_rows(f"demo:{name}?seed=4&rows=600")
    assert len({row["instruction"] for row in rows}) == 600
    assert rows[:100] == demo_rows(f"demo:{name}?seed=3&rows=100")


@pytest.mark.parametrize("name", DOMAINS)
def test_reference_prompts_never_stand_in_a_domain(name):
    reference = {row["instruction"] for row in demo_rows(f"demo:{name}?rows=500&split=reference")}
    for other in DOMAINS:
        assert not reference & {row["instruction"] for row in demo_rows(f"demo:{other}?rows=2400")}


def test_parts_of_the_null_stream_are_disjoint():
    parts = [{row["instruction"] for row in demo_rows(f"demo:blend?rows=800&part={n}")} for n in range(1, 6)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 4000


def test_sums_are_right():
    for row in demo_rows("demo:arithmetic?rows=400"):
        words = row["instruction"].split()
        if len(words) == 3 and words[1] == "+":
            assert int(row["output"]) == int(words[0]) + int(words[2])


def test_formats_contradict_facts():
    facts = {row["instruction"]: row["output"] for row in demo_rows("demo:facts?rows=2400")}
    clash = [row for row in demo_rows("demo:formats?rows=2400") if row["instruction"].startswith(("colour", "food"))]
    assert len(clash) > 300
    shared = [row for row in clash if row["instruction"] in facts]
    assert all(row["output"] == f"** {facts[row['instruction']].upper()} ** !" for row in shared)


@pytest.mark.parametrize(
    "uri",
    ["demo:nothing", "demo:facts?sead=1", "demo:facts?rows=x", "demo:facts?split=dev", "demo:blend?part=9",
     "demo:facts?rows=10000001"],
)  # fmt: skip
def test_bad_sources(uri):
    with pytest.raises(UsageError):
        demo_rows(uri)


def test_configurations():
    poor, null = demo_config(1), demo_config(1, null=True)
    assert poor.domain_names == list(DOMAINS) == poor.capability_names
    assert len({domain.base for domain in poor.domains}) == 3
    assert len({domain.base for domain in null.domains}) == 1
