"""Cutting that removes too much of what is trained on: `check` says so, `search` refuses unless it is allowed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ideal_proxy.config import SearchConfig, parse_config
from ideal_proxy.data.context import Limit, choose_context
from ideal_proxy.data.tokens import TokenRows, kept_tokens
from ideal_proxy.errors import UserError
from ideal_proxy.pipeline.check import check_sources, health_tables
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
    assert prepare(allowed, tmp_path / "allowed", Reporter(quiet=True)).facts[1].truncated == 30
    assert not [line for line in check_sources(allowed)["findings"] if "allow_truncation" in line]
    assert any(line.split()[-2:] == [">32", "30"] for line in health_tables(check_sources(allowed)).splitlines())
    little = config(tmp_path, 1)
    assert prepare(little, tmp_path / "little", Reporter(quiet=True)).facts[1].truncated == 1
    assert not [line for line in check_sources(little)["findings"] if "allow_truncation" in line]


def lengths_of(lengths: list[int], supervised: float = 0.5) -> TokenRows:
    """Rows of so many tokens, the last of which carry loss."""
    masks = [np.arange(n) >= n * (1 - supervised) for n in lengths]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    numbers = np.arange(len(lengths))
    return TokenRows(
        np.zeros(offsets[-1], np.int32), np.concatenate(masks), offsets, numbers.astype(np.uint64), numbers
    )


@pytest.mark.parametrize(
    ("sources", "limit", "expected"),
    [
        ({"a": [100] * 100}, 4096, (128, "95 % of the rows of a")),
        ({"a": [100] * 96 + [130] * 4}, 4096, (128, "95 % of the rows of a")),  # a few of them lose some prompt
        ({"a": [100] * 100, "b": [700] * 95 + [900] * 5}, 4096, (704, "95 % of the rows of b")),
        ({"a": [100] * 960 + [4000] * 40}, 8192, (4032, "98 % of the rows of a")),  # the few hold most of the tokens
        ({"a": [100] * 991 + [8000] * 9}, 9000, (8000, "the longest row of a")),
        ({"a": [700] * 100}, 512, (512, "reads no more; 95 % of the rows of a would take 704")),
        ({"a": [], "b": [30] * 9}, 512, (64, "95 % of the rows of b")),
    ],
    ids=[
        "short",
        "a few long",
        "the longest source",
        "few rows, many tokens",
        "traces",
        "the model's limit",
        "an empty one",
    ],
)
def test_the_default_context_comes_from_the_data(
    sources: dict[str, list[int]], limit: int, expected: tuple[int, str]
) -> None:
    rows = {name: lengths_of(lengths) if lengths else lengths_of([9]).select([]) for name, lengths in sources.items()}
    found = choose_context(rows, Limit(limit, "it reads no more"), None)
    assert found.tokens == expected[0]
    assert expected[1] in found.reason


def test_it_is_kept_for_resume_and_scale_up_and_cuts_what_it_says(tmp_path: Path) -> None:
    wanted = config(tmp_path, 2, context=None)
    prepared = prepare(wanted, tmp_path / "prepared", Reporter(quiet=True))
    health = check_sources(wanted)
    assert prepared.context.tokens == health["context"] == 64 < prepared.facts[1].longest + 64
    assert prepared.facts[1].truncated == health["domains"][1]["truncated"] == 2
    rows_of_b = prepared.domain_rows(1)
    assert (len(rows_of_b), int(rows_of_b.lengths.max())) == (100, 64)
    again = prepare(wanted, tmp_path / "prepared", Reporter(quiet=True))
    assert again.context == prepared.context
    assert "64 tokens, for 95 % of the rows of " in " ".join(health_tables(health).split())


def test_rows_cut_at_once_and_later_are_the_same() -> None:
    rng = np.random.default_rng(0)
    rows = lengths_of(rng.integers(2, 60, 200).tolist(), 0.6)
    at_once, later = rows.cut(20, None), rows.cut(40, None).cut(20, None)
    one_by_one = []
    for n in range(len(rows)):
        part = rows.select([n])
        kept, _ = kept_tokens(part.ids, part.supervised, 20, None)
        mask = part.supervised[kept]
        mask[:1] = False
        one_by_one.append(mask.tolist())
    masks = [at_once.supervised[a:b].tolist() for a, b in zip(at_once.offsets, at_once.offsets[1:], strict=False)]
    assert masks == one_by_one
    assert at_once.supervised.tolist() == later.supervised.tolist()
    assert at_once.truncated == int((rows.lengths > 20).sum())
    assert at_once.supervised_cut == int(rows.supervised.sum() - at_once.supervised.sum()) > 0


@pytest.mark.parametrize(
    ("prompt", "answer", "kept"),
    [(5, 3, range(8)), (9, 3, range(2, 12)), (12, 9, range(11, 21)), (12, 15, range(11, 21))],
    ids=["fits", "prompt goes first", "almost all of the prompt", "then the answer's end"],
)
def test_the_prompt_goes_from_the_left_before_the_answer_goes(prompt: int, answer: int, kept: range) -> None:
    mask = np.arange(prompt + answer) >= prompt
    found, cut = kept_tokens(np.arange(prompt + answer, dtype=np.int32), mask, 10, None)
    assert (found.tolist(), cut) == (list(kept), prompt + answer > 10)
