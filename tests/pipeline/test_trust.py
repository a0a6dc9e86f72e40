"""The trust check's arithmetic: which mixtures, which pairs count, and what the sentence says."""

from __future__ import annotations

import functools
import json
from dataclasses import replace

import numpy as np
import pytest
from builders import config_of
from finished_run import result

from ideal_proxy.errors import UsageError, UserError
from ideal_proxy.pipeline.encoding import scratch_products
from ideal_proxy.pipeline.evidence import Evidence
from ideal_proxy.pipeline.outer_loop import override
from ideal_proxy.pipeline.trust import AGREES, DISAGREES, UNCLEAR, compare, far_apart
from ideal_proxy.report.text import result_tables

NAMES = ("code", "math")
SMALL = np.array([[2.0, 1.0], [1.8, 1.2], [1.5, 1.1]])  # base and two mixtures; three pairs a capability
NOISE = np.array([0.01, 0.01])

config = functools.partial(config_of, ("lists", "facts"), ["lists"])


def told(large: np.ndarray, noise: np.ndarray = NOISE) -> dict:
    return compare(SMALL, large, noise, names=NAMES, sizes=("1M", "3M"))


def test_the_same_order_agrees():
    found = told(SMALL * np.array([0.7, 0.8]) + 0.1)
    assert json.loads(json.dumps(found)) == found
    assert found["answer"] == AGREES
    assert (found["pairs"], found["agree"], found["clear"], found["clear_agree"]) == (6, 6, 6, 6)
    assert [e["rank_correlation"] for e in found["capabilities"]] == [1.0, 1.0]
    assert found["objective"]["small"] == pytest.approx([1.0, (0.9 + 1.2) / 2, (0.75 + 1.1) / 2])
    assert found["objective"]["rank_correlation"] == 1.0
    text = "3M proxies rank three spread mixtures as the 1M ones do (6 of 6 pairs of losses are in the same order, 6 of"
    assert found["sentence"].startswith(text)


def test_the_reverse_order_disagrees_and_says_what_to_do():
    found = told(3.0 - SMALL)
    assert found["answer"] == DISAGREES
    assert found["agree"] == found["clear_agree"] == 0
    assert [e["rank_correlation"] for e in found["capabilities"]] == [-1.0, -1.0]
    assert "repeat the search with proxy.size 3M before you scale this mixture up" in found["sentence"]


def test_one_capability_of_two_turned_round_disagrees():
    found = told(np.column_stack([SMALL[:, 0], 3.0 - SMALL[:, 1]]))
    assert [(e["agree"], e["clear_agree"]) for e in found["capabilities"]] == [(3, 3), (0, 0)]
    assert (found["answer"], found["agree"]) == (DISAGREES, 3)


def test_pairs_within_noise_do_not_count():
    # 2 · √2 · 0.06: of `code`, base and the third mixture alone differ by more; of `math` at base 1 none does.
    assert [e["clear"] for e in told(SMALL, np.array([0.1, 0.1]))["capabilities"]] == [2, 0]
    found = told(3.0 - SMALL, np.array([0.15, 0.15]))
    assert found["clear"] == 1
    assert found["answer"] == UNCLEAR
    assert "only 1 of 6 pairs of losses differ by more than noise" in found["sentence"]
    # A pair must be clear at the larger size too: flat there, nothing is.
    assert told(np.ones((3, 2)) + 1e-4 * SMALL)["clear"] == 0


def test_noise_is_a_share_of_the_loss_at_the_larger_size():
    found = compare(SMALL, 10 * SMALL, 10 * NOISE, names=NAMES, sizes=("1M", "3M"))
    same = compare(10 * SMALL, SMALL, 100 * NOISE, names=NAMES, sizes=("1M", "3M"))
    assert [e["clear"] for e in found["capabilities"]] == [e["clear"] for e in same["capabilities"]] == [2, 0]


def table() -> Evidence:
    volumes = np.array([[100.0, 100], [300, 30], [100, 100], [110, 100], [20, 300], [330, 33], [900, 1]])
    seeds = np.array([0, 0, 1, 0, 0, 0, 1])
    return Evidence(
        ids=tuple("abcdefg"),
        volumes=volumes,
        losses=np.zeros((7, 2)),
        values=np.zeros((7, 2)),
        seeds=seeds,
        losses_before=np.zeros(2),
        values_before=np.zeros(2),
    )


def test_the_mixtures_are_base_and_the_farthest_of_its_seed():
    chosen = far_apart(table(), np.array([100.0, 100.0]))
    assert chosen[0] == 0
    assert set(chosen[1:]) == {4, 5}  # not 6, which another seed ran


def test_too_few_mixtures_are_told():
    few = table()
    few = replace(few, ids=few.ids[:3], volumes=few.volumes[:3], losses=few.losses[:3], seeds=few.seeds[:3])
    with pytest.raises(UserError, match="three mixtures run with one seed"):
        far_apart(few, np.array([100.0, 100.0]))


@pytest.mark.parametrize(("size", "larger"), [("0.1M", "1M"), ("1M", "3M"), ("3M", "10M")])
def test_the_option_takes_the_next_size(size, larger):
    assert override(config(proxy={"size": size}), trust_check=True).verify.larger_size == larger
    assert override(config(proxy={"size": size})).verify.larger_size is None
    given = config(proxy={"size": size}, verify={"larger_size": "10M"})
    assert override(given, trust_check=True).verify.larger_size == "10M"


def test_there_must_be_a_larger_size():
    with pytest.raises(UsageError, match="there is none above 10M"):
        override(config(proxy={"size": "10M"}), trust_check=True)
    with pytest.raises(UsageError, match="needs scratch proxies and a size above theirs"):
        config(proxy={"size": "3M"}, verify={"larger_size": "3M"})


def test_a_size_is_counted_without_building_it():
    from ideal_proxy.proxy.cost import count_products
    from ideal_proxy.proxy.model import build_proxy

    model = build_proxy("0.1M", 512, 64, 0)
    assert scratch_products("0.1M", 512) == (sum(p.numel() for p in model.parameters()), count_products(model))


def test_show_prints_the_sentence_and_every_capability(tmp_path):
    found = told(SMALL)
    text = " ".join(result_tables(result(trust=found), tmp_path).split())
    assert f"Trust check: {found['sentence']}. Same order by capability: code 3 of 3, math 3 of 3." in text
    assert "Trust check" not in result_tables(result(trust=None), tmp_path)
    assert "Trust check: failed (out of memory)." in result_tables(result(trust={"failed": "out of memory"}), tmp_path)
