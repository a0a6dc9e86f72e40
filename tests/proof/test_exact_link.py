"""A mixture weighted by exact match: only capabilities whose answers a lower loss makes right have a say in it."""

from __future__ import annotations

import argparse
import json
import sys

import numpy as np
import pandas as pd
import pytest
from builders import ROOT
from proof_tables import write_predictions, write_runs

sys.path.insert(0, str(ROOT / "benchmarks"))
sys.path.insert(0, str(ROOT / "benchmarks/proof"))

import exact_link
import on_target
import pretrained
import real
from peers import fixed, olmix, regmix
from peers.task import Runs, Task, in_the_box

from ideal_proxy.response import ResponseModel
from ideal_proxy.store import atomic_write_json

NAMES = ["right", "wrong", "never"]
BASE, LENGTHS = np.array([100.0, 100.0, 100.0]), np.array([20.0, 10.0, 10.0])
FREE = np.array([150.0, 60.0, 40.0])  # what the search proposes without protection
SLOPES = [-0.3, 0.3, 0.0]  # exact match over log loss: of `wrong` it rises with the loss


def losses(rows: np.ndarray) -> np.ndarray:
    return 2.0 * (1.0 + rows / 20.0) ** -0.3


@pytest.fixture
def searched(tmp_path, monkeypatch):
    """What a search on the target and the runs of exact match left; each domain has a capability of its name."""
    for module in (exact_link, on_target):
        monkeypatch.setattr(module, "HERE", tmp_path)
    monkeypatch.setattr(exact_link, "OUT", tmp_path / "exact_link.jsonl")
    monkeypatch.setattr(pretrained, "OUT", tmp_path / "real_smollm2.jsonl")
    rng = np.random.default_rng(0)
    rows = np.vstack([BASE, BASE, in_the_box(Task(BASE, BASE, BASE / 4.0, 3.0 * BASE), 14, 0)])
    seen = losses(rows) * np.exp(0.002 * rng.standard_normal(rows.shape))
    model = ResponseModel(available=4 * BASE, base=BASE, random_state=0)
    model.fit(rows, seen, seed_id=np.arange(16) % 2, own=np.arange(3), baseline_loss=np.full(3, 2.1))
    atomic_write_json(tmp_path / "run" / "fit.json", model.to_json())
    columns = [f"{what}/{name}" for what in ("rows", "search_loss") for name in NAMES]
    table = pd.DataFrame(np.hstack([rows, seen]), columns=columns)
    table.assign(run=[f"r{i}" for i in range(16)], seed=np.arange(16) % 2, role="design").to_csv(
        tmp_path / "on_target_runs.csv", index=False
    )
    domains = [
        {"name": name, "available": 400, "base_rows": 100, "base_tokens": 100 * length}
        for name, length in zip(NAMES, LENGTHS.tolist(), strict=True)
    ]
    free = {"rows": dict(zip(NAMES, FREE.tolist(), strict=True))}
    result = {"domains": domains, "capabilities": [{"name": name} for name in NAMES], "free": free}
    (tmp_path / "on_target.json").write_text(json.dumps({"result": result}))
    write_predictions(tmp_path, "smollm2", domains=NAMES, capabilities=NAMES, pairs=3, mixtures={})
    exact = 0.5 + np.log(seen / losses(BASE)) * SLOPES
    parts = zip(seen.tolist(), exact.tolist(), strict=True)
    lines = [{"run": f"r{i}", "losses": loss, "exact": share} for i, (loss, share) in enumerate(parts)]
    (tmp_path / "exact_link.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return argparse.Namespace(work=tmp_path, clean=False)


def test_a_capability_whose_answers_get_worse_with_a_lower_loss_weighs_nothing(searched, capsys):
    exact_link.propose(searched)
    told = json.loads((searched.work / "predictions" / "smollm2.json").read_text())["mixtures"][exact_link.ARM]
    slopes = [told["exact"]["slopes"][name] for name in NAMES]
    assert slopes == pytest.approx(SLOPES, abs=0.02)
    right, wrong, never = np.array(told["rows"]) / BASE
    assert right > 1.5
    assert wrong < 0.6
    assert never < 0.7
    assert np.array(told["rows"]) @ LENGTHS == pytest.approx(BASE @ LENGTHS, rel=1e-3)
    change = np.log(losses(np.array(told["rows"])) / losses(BASE))
    assert told["exact"]["gain"] == pytest.approx(np.mean(SLOPES * change), abs=0.01)
    assert told["exact"]["gain"] > 0.02
    assert f"predicted {100 * told['exact']['gain']:+.2f} points" in capsys.readouterr().out


def test_without_the_poisoned_domains_neither_base_nor_proposal_has_a_row_of_them(searched, monkeypatch):
    monkeypatch.setattr(real, "POISONED", ("never",))
    searched.clean = True
    exact_link.propose(searched)
    told = json.loads((searched.work / "predictions" / "smollm2.json").read_text())["mixtures"]
    ((name, record),) = told.items()
    assert name == f"{exact_link.ARM}, clean"
    right, wrong, never = record["rows"]
    assert never == 0
    assert 20 * right + 10 * wrong == pytest.approx(100 * 20 + 100 * 10, rel=1e-3)
    assert right > 115 > 70 > wrong
    ratios = [record["ratios"][capability][0] for capability in NAMES[:2]]
    assert ratios == pytest.approx((losses(np.array([right, wrong])) / losses(BASE[:2])).tolist(), rel=0.03)


def test_peers_read_the_search_s_own_runs_in_tokens_of_base(searched, monkeypatch):
    pytest.importorskip("lightgbm")
    monkeypatch.setattr(real, "POISONED", ("never",))
    on_target.peers(searched)
    told = json.loads((searched.work / "predictions" / "smollm2.json").read_text())["mixtures"]
    table = pd.read_csv(searched.work / "on_target_runs.csv")
    volumes, seen = (table[[f"{what}/{name}" for name in NAMES]].to_numpy() for what in ("rows", "search_loss"))
    runs = Runs(volumes * LENGTHS, seen, table["seed"].to_numpy())
    task, clean = (real.task_of(base * LENGTHS, 4 * BASE * LENGTHS) for base in (BASE, BASE * [1, 1, 0]))
    expected = {
        "temperature 2": fixed.temperature(task), "RegMix, on the target": regmix.propose(task, runs, 0),
        "Olmix, KL 0.005, on the target": olmix.propose(task, runs, 0, 0.005),
        "RegMix, on the target, clean": regmix.propose(clean, runs, 0),
        "ours, unprotected, on the target": FREE * LENGTHS * (BASE @ LENGTHS) / (FREE @ LENGTHS),
    }  # fmt: skip
    for name, tokens in expected.items():
        assert told[name]["tokens"] == pytest.approx(tokens.tolist(), abs=1)
    assert told["RegMix, on the target, clean"]["rows"][2] == 0
    before = (searched.work / "predictions" / "smollm2.json").read_text()
    on_target.peers(searched)  # what was said stays
    assert (searched.work / "predictions" / "smollm2.json").read_text() == before


def test_nothing_is_foretold_of_what_has_outcomes(searched):
    before = (searched.work / "predictions" / "smollm2.json").read_text()
    write_runs(searched.work / "real_smollm2.jsonl", {exact_link.ARM: {1: [1.0] * 3}}, tests=200, dtype="float32")
    with pytest.raises(SystemExit, match="there are outcomes"):
        exact_link.propose(searched)
    assert (searched.work / "predictions" / "smollm2.json").read_text() == before


def test_levers_are_the_runs_at_base_and_those_with_more_of_one_able_domain():
    rows = [[100, 100, 100], [100, 100, 100], [200, 95, 80], [95, 200, 80], [200, 200, 20], [60, 200, 130]]
    table = pd.DataFrame(rows, columns=[f"rows/{name}" for name in NAMES])
    assert exact_link.levers(table, NAMES, ["right"]).index.tolist() == [0, 1, 2]
    assert exact_link.levers(table, NAMES, ["right", "wrong"]).index.tolist() == [0, 1, 2, 3]
    assert exact_link.levers(table, NAMES, []).index.tolist() == [0, 1]
