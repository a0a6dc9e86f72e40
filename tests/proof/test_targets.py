"""Targets are judged on reference rows that no proxy saw, and only on the rows that the proxies' table was made of."""

from __future__ import annotations

import argparse
import json
import sys

import numpy as np
import pytest
from builders import ROOT
from proof_tables import write_pool, write_predictions

sys.path.insert(0, str(ROOT / "benchmarks"))
sys.path.insert(0, str(ROOT / "benchmarks/gradients"))
sys.path.insert(0, str(ROOT / "benchmarks/proof"))

import jsonl
import problem
import real
import suites

from ideal_proxy.data.rows import read_rows
from ideal_proxy.mixture.draws import search_verify_split

JUDGED = ("strings", "facts")


@pytest.fixture
def suite(tmp_path, monkeypatch):
    """The demo with few rows, and a swarm that trains nothing: its losses tell stage, mixture and seed."""
    asked = {}

    def losses(self, runs):
        asked.setdefault(self.run_dir.name, []).extend(runs)
        for name, rows in self.references.items():
            asked[self.run_dir.name, name] = rows
        return np.array([[1.0 + rows.sum() / 1e3, seed] for rows, seed in runs])

    def few_rows(suite, suites):
        train = {name: list(read_rows(f"demo:{name}?rows=60")) for name in ("lists", *JUDGED)}
        return train, {name: list(read_rows(f"demo:{name}?rows=60&split=reference")) for name in JUDGED}

    monkeypatch.setattr(real, "HERE", tmp_path)
    suites.write("demo", tmp_path)
    monkeypatch.setattr(real, "suite_rows", few_rows)
    monkeypatch.setattr(problem.Problem, "losses", losses)
    given = argparse.Namespace(
        suite="demo", suites=tmp_path, work=tmp_path / "work", seeds=2, workers=1, finished=False
    )  # fmt: skip
    real.pool(given)
    table = json.loads((tmp_path / "real_demo_pool.json").read_text())
    tokens = table["volumes"][3]
    record = {"tokens": tokens, "gain": [0.0, -1.0, 1.0], "ratios": {name: [1.0, 0.5, 1.5] for name in JUDGED}}
    write_predictions(tmp_path, "demo", domains=table["domains"], pairs=2, mixtures={"ours": record})
    return given, asked, table


def test_targets_are_judged_on_the_half_that_no_proxy_was_judged_on(suite):
    given, asked, _ = suite
    real.targets(given)
    for name in JUDGED:
        proxies, targets = asked["demo-0.1M-search", name], asked["demo-1M-verify", name]
        assert set(proxies.keys.tolist()).isdisjoint(targets.keys.tolist())
        assert len(proxies) + len(targets) == 60
        searched = search_verify_split(np.concatenate([proxies.split_keys, targets.split_keys]))
        assert searched.tolist() == [True] * len(proxies) + [False] * len(targets)


def test_every_mixture_is_trained_beside_base_on_each_seed_once(suite):
    given, asked, table = suite
    real.targets(given)
    rows = jsonl.read(real.HERE / "real_demo.jsonl")
    pairs = [("base", 101), ("ours", 101), ("base", 102), ("ours", 102)]
    assert [(row["contender"], row["seed"]) for row in rows] == pairs
    assert {row["size"] for row in rows} == {"1M"}
    trained = asked["demo-1M-verify"]
    assert [seed for _, seed in trained] == [101, 101, 102, 102]
    for (counts, _), tokens in zip(trained, [table["base_tokens"], table["volumes"][3]] * 2, strict=True):
        assert counts * table["tokens_per_row"] == pytest.approx(tokens, abs=1.01 * max(table["tokens_per_row"]))
    real.targets(given)
    assert len(trained) == len(jsonl.read(real.HERE / "real_demo.jsonl")) == 4
    assert {seed for _, seed in asked["demo-0.1M-search"]}.isdisjoint({101, 102})


def test_targets_refuse_other_rows_than_those_of_the_table(suite):
    given, asked, table = suite
    others = [table["base_tokens"][0] + 1.0, *table["base_tokens"][1:]]
    write_pool(real.HERE, "demo", **table | {"base_tokens": others})
    with pytest.raises(SystemExit, match=r"other rows of demo .*suites.py --check"):
        real.targets(given)
    assert "demo-1M-verify" not in asked
    write_pool(real.HERE, "demo", **table)
    (given.suites / "demo" / "mix.yaml").write_text("of other reference rows")
    with pytest.raises(SystemExit, match="other rows of demo"):
        real.targets(given)
    assert not (real.HERE / "real_demo.jsonl").exists()
