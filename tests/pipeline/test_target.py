"""The target answers for itself: few mixtures are trained, others are imitated between them, and trust decides."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from builders import SMALL, config_of, domain_facts, interrupted, small_search, without_times
from pretrained_folder import pretrained_folder

from ideal_proxy.config import dump_config, load_config, parse_config
from ideal_proxy.data.context import Context
from ideal_proxy.errors import UsageError, UserError
from ideal_proxy.pipeline import laboratory
from ideal_proxy.pipeline.anchors import CHECKED, default_runs, disagreeing, make_anchors, told_imitations
from ideal_proxy.pipeline.laboratory import Laboratory
from ideal_proxy.pipeline.outer_loop import run_search
from ideal_proxy.pipeline.prepare import Prepared
from ideal_proxy.pipeline.status import read_status, status_text
from ideal_proxy.report.text import result_tables
from ideal_proxy.store import read_json
from ideal_proxy.terminal import Reporter

NAMES = ("code", "math", "trust")
QUIET = Reporter(quiet=True)


@pytest.fixture
def prepared(tmp_path):
    shapes = (("code", 200, 100.0), ("math", 2_000, 80.0), ("trust", 4_000, 60.0))
    facts = tuple(
        domain_facts(name, available=10_000, base=base, upper=40_000, tokens_per_row=tokens)
        for name, base, tokens in shapes
    )
    return Prepared(
        folder=tmp_path, facts=facts, capabilities=(), health={}, vocabulary=300, template={}, context=Context(64)
    )


def on_target(**changes):
    return config_of(NAMES, ["code"], proxy={"mode": "target", **changes})


def test_anchors_move_one_domain_each_and_keep_the_total(prepared):
    runs = default_runs(on_target(), prepared)
    anchors = make_anchors(on_target(), prepared, runs, (0, 1))
    base, lengths = prepared.domains.base, prepared.domains.lengths
    assert anchors.names == ("code up", "math up", "trust up", "code down", "math down", "trust down")
    assert anchors.volumes @ lengths == pytest.approx(np.full(8, base @ lengths))
    assert anchors.halfway @ lengths == pytest.approx(np.full(12, base @ lengths))
    assert (len(anchors.volumes), len(anchors.seeds), anchors.checked) == (2 + 6, 2 + 6, CHECKED + 1)
    assert runs == 2 + 6 + CHECKED + 1
    changes = np.log(anchors.mixtures / base)
    for d in range(3):
        assert changes[d].argmax() == d
        assert (np.delete(changes[d], d) < 0).all()
        assert changes[3 + d].argmin() == d
        assert (np.delete(changes[3 + d], d) > 0).all()
    shares = anchors.mixtures * lengths / (base @ lengths)
    assert shares[2, 2] == pytest.approx(0.5 + 0.5 * base[2] * lengths[2] / (base @ lengths)), "halfway to it alone"
    assert shares[0, 0] < 0.5, "not beyond what the spread allows"
    assert anchors.seeds.tolist() == [0, 1, *[0] * 6]
    assert len(anchors.pairs) == anchors.imitations == 12
    assert len({tuple(pair) for pair in anchors.pairs.tolist()}) == 12


def test_what_cannot_move_has_no_anchor(prepared):
    facts = tuple(
        replace(fact, lower=fact.base, upper=fact.base) if fact.name == "math" else fact for fact in prepared.facts
    )
    prepared = replace(prepared, facts=facts)
    runs = default_runs(on_target(imitations=2), prepared)
    anchors = make_anchors(on_target(imitations=2), prepared, runs, (0, 1))
    assert anchors.names == ("code up", "trust up", "code down", "trust down")
    assert anchors.mixtures[:, 1] == pytest.approx(np.full(4, facts[1].base))
    assert anchors.imitations == 2
    assert anchors.checked == CHECKED + 1
    assert len(anchors.to_check([0, 1], (0, 1))) == 5, "of pairs that are not imitated too"
    with pytest.raises(UsageError, match=r"needs 7 runs here .* swarm.runs is 6"):
        make_anchors(on_target(), prepared, 6, (0, 1))
    facts = tuple(replace(fact, lower=fact.base, upper=fact.base) for fact in prepared.facts[:2]) + prepared.facts[2:]
    with pytest.raises(UsageError, match="let none move by 5%"):
        make_anchors(on_target(), replace(prepared, facts=facts), 9, (0, 1))
    with pytest.raises(UsageError, match="imitations is of mode: target"):
        config_of(NAMES, ["code"], proxy={"imitations": 3})


def test_pairs_that_merge_are_trained_before_others(prepared):
    """Else, where the widest pairs do not merge, nothing tells what imitations are worth."""
    anchors = make_anchors(on_target(), prepared, default_runs(on_target(), prepared), (7, 8))
    assert anchors.to_check(range(12), (7, 8))[:4] == [(0, 7), (1, 7), (2, 7), (0, 8)]
    assert anchors.to_check([3, 5, 6, 8], (7, 8))[:5] == [(3, 7), (5, 7), (6, 7), (3, 8), (8, 7)]
    assert anchors.to_check([4], (7, 8))[:5] == [(4, 7), (0, 7), (1, 7), (4, 8), (2, 7)]
    assert anchors.to_check([], (7,)) == [(p, 7) for p in range(12)]
    assert replace(anchors, pairs=anchors.pairs[:0]).to_check([], (7, 8)) == []


def test_what_is_trained_is_distinct_in_a_proxys_rows_and_stays_chosen(prepared, tmp_path):
    anchors = make_anchors(on_target(), prepared, default_runs(on_target(), prepared), (7, 8))
    asked = []
    bench = SimpleNamespace(
        folder=tmp_path, _results={}, _roles={}, _seeds=lambda number: [7, 8],
        _spec=lambda volumes, seed, role, rate: SimpleNamespace(id=f"{np.rint(volumes / 1500)} {seed}"),
        _run=lambda stage, specs, needed, **rest: asked.append(([spec.id for spec in specs], needed)),
    )  # fmt: skip
    Laboratory._train_imitated(bench, [0, 1, 2, 3, 4, 5], anchors, 1e-3)
    Laboratory._train_imitated(bench, [9, 8, 7], anchors, 1e-3)  # as if other pairs merged in a resumed search
    (first, needed), again = asked
    assert len(np.unique(np.rint(anchors.halfway / 1500), axis=0)) < 12, "some are equal"
    assert len(first) == len(set(first)) == CHECKED + 1
    assert not needed, "a search goes on without them"
    assert again == (first, needed)


def test_imitations_that_all_failed_are_told():
    anchors = SimpleNamespace(imitations=4, names=("a up", "b up"))
    assert told_imitations(anchors, 0, (), ()) == "none of 4 mixtures could be imitated; the warnings say why"
    assert told_imitations(anchors, 3, (), ()) == "3 mixtures imitated by interpolation between 2 anchors"


def test_weights_that_lose_more_than_either_disagree():
    ends = np.array([[[1.0, 2.0], [2.0, 1.0]]] * 3)
    middle = np.array([[1.4, 1.4], [1.4, 2.1], [1.9, 1.99]])
    assert disagreeing(ends, middle).tolist() == [False, True, False]


# The search

FEW = [{"name": name, "path": f"demo:{name}?rows=500", "base": "8%" if name == "strings" else "100%"} for name in SMALL]
PROXY = {
    "mode": "target", "size": "0.1M", "vocabulary": 300, "context": 48, "fraction": 0.25, "batch_rows": 32,
    "learning_rate": 6e-3,
}  # fmt: skip


def test_a_search_on_the_target_killed_and_resumed(tmp_path, monkeypatch):
    """It ends decided, with the same numbers however it was interrupted, and says what imitations were worth."""
    apart = np.arange(12) < 1  # the widest pair does not merge

    def first_disagrees(ends, middle):
        return apart[: len(middle)] | disagreeing(ends, middle)

    monkeypatch.setattr(laboratory, "disagreeing", first_disagrees)
    config = parse_config(small_search(proxy=PROXY, swarm={"workers": 1}, domains=FEW))
    (tmp_path / "mix.yaml").write_text(dump_config(config), encoding="utf-8")
    results = [run_search(load_config(tmp_path / "mix.yaml"), tmp_path / "run", QUIET)]
    interrupted(tmp_path / "run", tmp_path / "killed", 23)  # between two of the mixtures that are trained too
    weights = sorted((tmp_path / "killed" / "runs").glob("[!w]*/model.safetensors"))
    assert len(weights) > 1
    for path in weights[:2]:  # of anchors, which imitations are made of
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0x40
        path.write_bytes(content)
    results.append(run_search(load_config(tmp_path / "mix.yaml"), tmp_path / "killed", QUIET))
    assert without_times(tmp_path / "run" / "mixture.json") == without_times(tmp_path / "killed" / "mixture.json")
    result = results[0]
    pairs = read_json(tmp_path / "run" / "imitated.json")["pairs"]
    assert len(pairs) == CHECKED + 1
    assert 0 not in [pair for pair, _ in pairs], "of the pair that does not merge nothing is trained"
    assert result["verdict"]["gain"]["value"] > 0.005
    assert result["domains"][0]["proposal_rows"] > 3 * result["domains"][0]["base_rows"]
    assert result["imitated"]["trust"] == results[1]["imitated"]["trust"]
    assert result["imitated"]["trust"]["learned"]
    most = 6 / result["imitated"]["mixtures"] + 1e-9
    assert 0 < result["imitated"]["trust"]["weight"] <= most, "together they count as the anchors at most"
    assert result["imitated"]["mixtures"] + len(result["imitated"]["disagree"]) == 12
    assert (result["cost"]["runs"], result["cost"]["imitations"]) == (1 + 12 + 4, 12)
    said = " ".join(result_tables(result, tmp_path / "run").split())
    assert f"{result['imitated']['mixtures']} mixtures imitated by interpolation between 6 anchors" in said
    assert "of what trained runs show; one of them counts as" in said
    frame = pd.read_parquet(tmp_path / "run" / "runs.parquet")
    imitated = frame[frame["role"] == "imitated"]
    assert (len(imitated), imitated["tokens"].sum()) == (12, 0)
    stages = {stage["name"]: stage["runs"] for stage in json.loads((tmp_path / "run/status.json").read_text())["plan"]}
    assert (stages["swarm"], stages["imitation"]) == (12, 12)
    status = read_status(tmp_path / "run")
    assert status["planned_runs"] == result["cost"]["runs"], "what is imitated is trained by nobody"
    assert "Done: 17 runs (" in status_text(status, tmp_path / "run")
    assert "imitation 12" in status_text(status, tmp_path / "run")


def test_a_pretrained_target_answers_for_itself(tmp_path):
    pytest.importorskip("peft")
    folder = pretrained_folder(tmp_path / "tiny")
    proxy = {
        "mode": "target", "model": str(folder), "lora_rank": 8, "context": 48, "fraction": 0.2, "batch_rows": 16,
        "learning_rate": 1e-2, "dtype": "float32",
    }  # fmt: skip
    config = parse_config(small_search(proxy=proxy, swarm={"workers": 1}, gradients="implicit"))
    result = run_search(config, tmp_path / "run", QUIET)
    assert result["imitated"]["mixtures"] > 6
    assert result["imitated"]["trust"]["weight"] > 0
    assert min(result["imitated"]["trust"]["explained"]) > 0.5
    signs = np.sign(np.array(result["gradients"]["M"]))
    assert signs[:, :2].tolist() == [[-1.0, 1.0], [1.0, -1.0]], "more rows of its own domain lower a loss"
    again = config.model_copy(update={"reuse": (str(tmp_path / "run"),)})
    assert run_search(again, tmp_path / "again", QUIET)["reuse"]["runs"][0]["runs"] > 6
    shutil.rmtree(folder)
    pretrained_folder(folder, steps_tokens=6_000)
    with pytest.raises(UserError, match=r"began from other weights of .*tiny"):
        run_search(again, tmp_path / "other", QUIET)
