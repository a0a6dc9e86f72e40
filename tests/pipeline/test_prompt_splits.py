"""Rows of equal prompt stand on one side of every split: search and verify halves, the warm start."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ideal_proxy.config import parse_config
from ideal_proxy.data.messages import prompt_groups, row_keys
from ideal_proxy.data.rows import read_rows
from ideal_proxy.mixture.draws import reserve_mask
from ideal_proxy.pipeline.prepare import prepare
from ideal_proxy.pipeline.row_record import Heritage
from ideal_proxy.sections import SwarmConfig
from ideal_proxy.terminal import Reporter
from tests.builders import write_rows

PROMPTS, ANSWERS = 60, 3
QUIET = Reporter(quiet=True)


def rows_of(name: str) -> list[dict[str, str]]:
    return [
        {"prompt": f"{name} {n % PROMPTS}", "completion": f"answer {n // PROMPTS} to {n % PROMPTS}"}
        for n in range(PROMPTS * ANSWERS)
    ]


def test_no_prompt_stands_on_both_sides(tmp_path: Path) -> None:
    domains = [{"name": name, "path": write_rows(tmp_path / f"{name}.jsonl", rows_of(name))} for name in ("a", "b")]
    reference = write_rows(tmp_path / "reference.jsonl", rows_of("reference"))
    config = parse_config({
        "name": "prompts", "domains": domains, "capabilities": [{"name": "a", "path": reference}],
        "proxy": {"size": "0.1M", "vocabulary": 300, "context": 64, "warm_fraction": 0.25},
    })  # fmt: skip
    prepared = prepare(config, tmp_path / "prepared", QUIET)
    prompts = np.array([row["prompt"] for row in rows_of("reference")])
    search, verify = (prompts[prepared.reference_rows(0, half).source_index] for half in ("search", "verify"))
    assert len(search) + len(verify) == len(prompts)
    assert not set(search) & set(verify)
    assert len(set(search)) == len(set(verify)) == PROMPTS // 2, "half of the prompts on each side"
    for index, domain in enumerate(("a", "b")):
        tokens = prepared.domain_rows(index)
        warm = reserve_mask(tokens.split_keys, 0.25)
        asked = np.array([row["prompt"] for row in rows_of(domain)])[tokens.source_index]
        assert 0 < warm.sum() < len(warm)
        assert not set(asked[warm]) & set(asked[~warm])
        assert prepared.facts[index].reserved == warm.sum()


def test_proxies_read_some_reference_rows_and_the_check_reads_all_of_its_own(tmp_path: Path) -> None:
    rows = rows_of("reference")
    halves: dict[tuple[int | None, bool], list[set[str]]] = {}
    for most, turned in ((None, False), (12, False), (12, True), (500, False)):
        folder = tmp_path / f"{most}{turned}"
        folder.mkdir()
        reference = write_rows(folder / "reference.jsonl", rows[::-1] if turned else rows)
        config = parse_config({
            "name": "few", "domains": [
                {"name": name, "path": write_rows(folder / f"{name}.jsonl", rows_of(name))} for name in ("a", "b")
            ],
            "capabilities": [{"name": "a", "path": reference}], "swarm": {"judge_rows": most},
            "proxy": {"size": "0.1M", "vocabulary": 300, "context": 64},
        })  # fmt: skip
        prepared = prepare(config, folder / "prepared", QUIET)
        texts = np.array([row["completion"] for row in (rows[::-1] if turned else rows)])
        halves[most, turned] = [
            set(texts[prepared.reference_rows(0, half).source_index].tolist()) for half in ("search", "verify")
        ]
        facts = prepared.capabilities[0]
        assert (facts.search_rows, facts.verify_rows) == tuple(map(len, halves[most, turned]))
    whole, few = halves[None, False], halves[12, False]
    assert len(few[0]) == 12
    assert few[0] < whole[0], "some of the search's half"
    assert few[1] == whole[1], "and the check's own is whole"
    assert halves[12, True] == few, "the same ones in any order of the file"
    assert halves[500, False] == whole


def test_rows_that_earlier_runs_read_are_read_before_others(tmp_path: Path) -> None:
    reference = write_rows(tmp_path / "reference.jsonl", rows_of("reference"))
    config = parse_config({
        "name": "few", "capabilities": [{"name": "a", "path": reference}], "swarm": {"judge_rows": 20},
        "domains": [
            {"name": name, "path": write_rows(tmp_path / f"{name}.jsonl", rows_of(name))} for name in ("a", "b")
        ],
        "proxy": {"size": "0.1M", "vocabulary": 300, "context": 64},
    })  # fmt: skip
    first = prepare(config.model_copy(update={"swarm": SwarmConfig()}), tmp_path / "first" / "prepared", QUIET)
    read = first.reference_rows(0, "search").split_keys[:9]  # by an earlier search
    heritage = Heritage(
        folder=first.folder, warm="", reserved=np.zeros(0, dtype=np.uint64), search=np.unique(read),
        verify=np.unique(first.reference_rows(0, "verify").split_keys), size="",
    )  # fmt: skip
    found = prepare(config, tmp_path / "next" / "prepared", QUIET, heritage).reference_rows(0, "search")
    assert len(found) == 20
    known = np.isin(first.reference_rows(0, "search").split_keys, read)
    assert np.isin(found.split_keys, read).sum() == min(20, known.sum()) > 0


def test_a_row_of_its_own_prompt_keeps_its_key(tmp_path: Path) -> None:
    # So that splits of rows without equal prompts are those of earlier versions.
    text = [*rows_of("x")[:5], rows_of("x")[PROMPTS]]
    rows = list(read_rows(write_rows(tmp_path / "x.jsonl", text)))
    keys = row_keys(rows)
    groups = prompt_groups(rows, keys)
    assert (groups[1:5] == keys[1:5]).all()
    assert groups[0] == groups[5] == min(keys[0], keys[5])
    spoken = tmp_path / "spoken.jsonl"  # rows that open with the assistant have no prompt to share
    turns = [{"messages": [{"role": "assistant", "content": f"hello {n}"}]} for n in range(4)]
    spoken.write_text("".join(json.dumps(one) + "\n" for one in turns))
    rows = list(read_rows(str(spoken)))
    assert (prompt_groups(rows, row_keys(rows)) == row_keys(rows)).all()
