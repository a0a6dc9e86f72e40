"""`plan`: which way to search is recommended follows cost, memory and whether the target is at hand."""

from __future__ import annotations

import pytest
import yaml
from builders import config_of, run, small_search

from ideal_proxy.config import parse_config
from ideal_proxy.errors import UsageError, UserError
from ideal_proxy.pipeline import ways as module
from ideal_proxy.pipeline.ways import LADDER, SCRATCH, TARGET, Way, compare_ways, recommend
from ideal_proxy.terminal import Reporter


def way(name, seconds, why_not=""):
    return Way(name=name, lines={}, plan={"total": {"seconds": seconds}}, why_not=why_not)


def test_the_target_is_taken_where_it_fits():
    scratch, ladder = way(SCRATCH, 100.0), way(LADDER, 60.0)
    assert recommend([scratch, ladder, way(TARGET, 900.0)])[0].name == TARGET
    chosen, why = recommend([scratch, ladder, way(TARGET, 900.0, "too large")])
    assert chosen.name == SCRATCH
    assert "say little" in why
    assert "scale-up --baseline" in why
    assert recommend([scratch, way(LADDER, 60.0, "no"), way(TARGET, 900.0, "too large")]) == (scratch, why)


def test_a_ladder_is_taken_only_where_one_size_cannot_be_searched():
    """For it gained nothing at equal cost where that was measured."""
    chosen, why = recommend([way(SCRATCH, 100.0), way(LADDER, 60.0)])
    assert chosen.name == SCRATCH
    assert why == (
        "a ladder gained nothing at equal cost where it was measured; here it saves 40% of the time, and fewer runs "
        "of one size save it too"
    )
    assert recommend([way(SCRATCH, 100.0), way(LADDER, 120.0)])[1].endswith("where it was measured")
    assert recommend([way(SCRATCH, 100.0, "no"), way(LADDER, 95.0)])[0].name == LADDER
    with pytest.raises(UserError, match=r"none of the ways to search can be gone here: .*: no"):
        recommend([way(SCRATCH, 100.0, "no")])


def test_every_way_is_planned_by_what_dry_run_counts(monkeypatch):
    """What does not fit memory is named; low-rank updates are tried where all weights do not fit."""
    asked = []

    def planned(settings, folder, reporter):
        asked.append(settings)
        large = settings.proxy.mode == "target" and settings.proxy.lora_rank is None
        return {"total": {"seconds": 10.0, "runs": 3}, "worker_bytes": 9e9 if large else 1e9, "device": "cpu",
                "fraction": 0.1, "parameters": 1, "trainable_parameters": None}  # fmt: skip

    monkeypatch.setattr(module, "plan_search", planned)
    monkeypatch.setattr(module, "free_bytes", lambda device: 4e9)
    ways = compare_ways(config_of(("a", "b"), ("a",)), "some/model", 2.0, Reporter(quiet=True))
    assert [w.name for w in ways] == [SCRATCH, LADDER, TARGET]
    assert [(s.proxy.size, s.swarm.sizes, s.proxy.model, s.proxy.lora_rank, s.swarm.max_hours) for s in asked] == [
        ("1M", (), None, None, 2.0), ("1M", ("0.1M", "1M"), None, None, 2.0), (None, (), "some/model", None, 2.0),
        (None, (), "some/model", 16, 2.0),
    ]  # fmt: skip
    chosen, _ = recommend(ways)
    assert chosen.lines == {"proxy": {"mode": "target", "model": "some/model", "lora_rank": 16}}
    parse_config(small_search() | chosen.lines)
    asked.clear()

    def slow(settings, folder, reporter):
        if settings.proxy.mode == "target" and settings.swarm.judge_rows is None:
            raise UsageError("--max-hours 2 is too little")
        return planned(settings, folder, reporter)

    monkeypatch.setattr(module, "plan_search", slow)
    chosen, _ = recommend(compare_ways(config_of(("a", "b"), ("a",)), "some/model", 2.0, Reporter(quiet=True)))
    assert chosen.lines["swarm"] == {"judge_rows": 64}, "fewer reference rows, where reading them all takes too long"
    parse_config(small_search() | chosen.lines)
    monkeypatch.setattr(module, "plan_search", planned)
    asked.clear()
    given = {"model": "some/model", "gguf": "q4.gguf", "trust_remote_code": True}
    compare_ways(config_of(("a", "b"), ("a",), proxy=given), None, 2.0, Reporter(quiet=True))
    assert [(s.proxy.gguf, s.proxy.revision, s.proxy.trust_remote_code) for s in asked[2:]] == [
        ("q4.gguf", None, True)
    ] * 2, "its file and its code are those of the run file"
    asked.clear()
    own = {"mode": "target", "model": "some/model", "lora_rank": 8, "learning_rate": 0.01, "imitations": 4}
    ways = compare_ways(config_of(("a", "b"), ("a",), proxy=own), None, 2.0, Reporter(quiet=True))
    assert ways[-1].lines == {"proxy": own}, "a search on the target is planned as the run file has it"
    asked.clear()
    family = {"proxy": {"lora_rank": 8}, "swarm": {"sizes": ["some/small", "some/model"]}}
    compare_ways(config_of(("a", "b"), ("a",), **family), None, None, Reporter(quiet=True))
    assert [(s.proxy.size, s.swarm.sizes, s.proxy.model, s.proxy.lora_rank) for s in asked[:2]] == [
        ("1M", (), None, None), (None, ("some/small", "some/model"), "some/model", 8),
    ]  # fmt: skip


def test_the_command_prints_lines_that_a_run_file_takes(tmp_path):
    raw = small_search(proxy={"size": "1M", "vocabulary": 300, "context": 48, "fraction": 0.08, "batch_rows": 16})
    (tmp_path / "mix.yaml").write_text(yaml.safe_dump(raw))
    answer = run("plan", "mix.yaml", "--quiet", cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert max(map(len, answer.stdout.splitlines())) <= 80
    assert "proxies from scratch" in answer.stdout
    assert "Take " in answer.stdout
    lines = yaml.safe_load(answer.stdout.split("In mix.yaml:")[1])
    parse_config({**raw, **lines, "proxy": {**raw["proxy"], **lines.get("proxy", {})}})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mix.yaml"]
