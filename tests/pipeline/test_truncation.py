"""Cutting that removes too much of what is trained on: `check` says so, `search` refuses unless it is allowed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ideal_proxy.config import SearchConfig, parse_config
from ideal_proxy.data.tokens import kept_tokens
from ideal_proxy.errors import UserError
from ideal_proxy.pipeline.check import check_sources
from ideal_proxy.pipeline.prepare import prepare
from ideal_proxy.terminal import Reporter


def config(folder: Path, long_rows: int, **proxy: object) -> SearchConfig:
    """Two domains of 100 rows; `long_rows` of `b` have an answer twice as long as the context."""
    short = {"instruction": "count", "output": "7 8 9 1"}  # its digits and spaces are a token each, with the end 8
    long = {"instruction": "count", "output": "7" * 63}
    for name, rows in (("a", [short] * 100), ("b", [short] * (100 - long_rows) + [long] * long_rows)):
        text = "".join(json.dumps(row | {"input": str(n)}) + "\n" for n, row in enumerate(rows))
        (folder / f"{name}.jsonl").write_text(text)
    entries = [{"name": name, "path": str(folder / f"{name}.jsonl")} for name in ("a", "b")]
    return parse_config({
        "name": "cut", "domains": entries, "capabilities": entries[:1],
        "proxy": {"size": "0.1M", "vocabulary": 300, "context": 32, **proxy},
    })  # fmt: skip


def test_a_domain_that_loses_more_than_a_twentieth_is_refused_and_named(tmp_path: Path) -> None:
    over = config(tmp_path, 30)
    with pytest.raises(UserError) as refused:
        prepare(over, tmp_path / "prepared", Reporter(quiet=True))
    (cut,) = [one["supervised_cut"] / (one["supervised_cut"] + one["supervised_tokens"])
              for one in check_sources(over)["domains"] if one["name"] == "b"]  # fmt: skip
    assert 0.2 < cut < 0.5
    sentence = (
        f"domain b: cutting to proxy.context: 32 removes {cut:.0%} of its supervised tokens; "
        "raise proxy.context, or set proxy.allow_truncation: true"
    )
    assert str(refused.value) == sentence
    assert sentence in check_sources(over)["findings"]


def test_it_is_done_where_the_run_file_allows_it_and_where_it_is_little(tmp_path: Path) -> None:
    allowed = config(tmp_path, 30, allow_truncation=True)
    assert prepare(allowed, tmp_path / "allowed", Reporter(quiet=True)).domains[1].truncated == 30
    assert not [line for line in check_sources(allowed)["findings"] if "allow_truncation" in line]
    little = config(tmp_path, 1)
    assert prepare(little, tmp_path / "little", Reporter(quiet=True)).domains[1].truncated == 1
    assert not [line for line in check_sources(little)["findings"] if "allow_truncation" in line]


@pytest.mark.parametrize(
    ("prompt", "answer", "kept"),
    [(5, 3, range(8)), (9, 3, range(2, 12)), (12, 9, range(11, 21)), (12, 15, range(11, 21))],
    ids=["fits", "prompt goes first", "almost all of the prompt", "then the answer's end"],
)
def test_the_prompt_goes_from_the_left_before_the_answer_goes(prompt: int, answer: int, kept: range) -> None:
    mask = np.arange(prompt + answer) >= prompt
    found, cut = kept_tokens(np.arange(prompt + answer, dtype=np.int32), mask, 10, None)
    assert (found.tolist(), cut) == (list(kept), prompt + answer > 10)
