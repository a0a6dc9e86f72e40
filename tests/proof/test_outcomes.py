"""What targets showed, held against base and against the best other contender: known answers on made-up runs."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from builders import ROOT
from proof_tables import write_runs

sys.path.insert(0, str(ROOT / "benchmarks"))
sys.path.insert(0, str(ROOT / "benchmarks/proof"))

import efficiency
import jsonl
import proof
import real

BASE = {101: [1.0, 2.0], 102: [2.0, 8.0], 103: [4.0, 1.0]}  # seeds differ by more than mixtures do


def gaining(*gains: float) -> dict[int, list[float]]:
    """Runs whose mean relative loss lies so many per cent below base's, seed by seed."""
    return {
        seed: [loss * (1 - gain / 100 + side) for loss, side in zip(base, (-0.01, 0.01), strict=True)]
        for gain, (seed, base) in zip(gains, BASE.items(), strict=False)
    }


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for module in (real, proof):
        monkeypatch.setattr(module, "HERE", tmp_path)
    return tmp_path


def test_a_run_is_divided_by_base_s_run_of_its_own_seed(folder):
    runs = {"base": BASE, "ours": {103: [2.0, 1.1], 101: [0.9, 2.2], 104: [1.0, 1.0]}}
    write_runs(folder / "real_demo.jsonl", runs)
    seen = real.outcomes("demo")
    assert list(seen) == ["ours"]
    assert seen["ours"] == pytest.approx(np.array([[0.9, 1.1], [0.5, 1.1]]))  # by seed; 104 has no base


def test_arms_without_the_poisoned_domains_have_a_base_of_their_own(folder):
    write_runs(folder / "real_demo.jsonl", {"base": {1: [8.0]}, "base, clean": {1: [2.0]}, "ours, clean": {1: [1.0]}})
    assert real.outcomes("demo") == {"ours, clean": pytest.approx(np.array([[0.5]]))}


def test_runs_judged_twice_count_once_against_the_base_that_was_judged_alike(folder):
    path = folder / "real_smollm2.jsonl"
    write_runs(path, {"base": {1: [2.0]}, "ours": {1: [1.0]}}, tests=200, dtype="float32")
    write_runs(path, {"base": {1: [10.0]}, "ours": {1: [9.0], 2: [9.0]}}, tests=40, dtype="float32")
    write_runs(path, {"base": {2: [4.0]}}, tests=40, dtype="bfloat16")
    assert real.outcomes("smollm2") == {"ours": pytest.approx(np.array([[0.5]]))}


def test_a_prediction_is_held_against_as_many_pairs_as_it_was_made_for():
    def record(tokens, a=(0.9, 0.8, 1.0), b=(1.1, 1.0, 1.2)):
        return {"tokens": tokens, "ratios": {"a": list(a), "b": list(b)}}

    kept, one = record([1.0, 3.0]), (1.0, 1.0, 1.0)
    mixtures = {
        "ours": kept, "the same": record([1.0, 3.0]), "base again": record([2.0, 2.0], one, one),
        "not trained": record([3.0, 1.0]), "RegMix": record([4.0, 0.0]),
    }  # fmt: skip
    pairs = np.array([[0.8, 1.2], [1.0, 1.0], [9.0, 9.0]])
    seen = {name: pairs for name in mixtures if name != "not trained"} | {"untold": pairs}
    found = list(real.held({"mixtures": mixtures, "pairs": 2}, seen))
    assert [name for name, *_ in found] == ["ours", "RegMix"]
    _, told, bounds, mean = found[0]
    assert told is kept
    assert bounds.tolist() == [[0.9, 0.8, 1.0], [1.1, 1.0, 1.2]]
    assert mean == pytest.approx([0.9, 1.1])
    _, _, turned, _ = next(real.held({"mixtures": mixtures, "pairs": 2, "capabilities": ["b", "a"]}, seen))
    assert turned.tolist() == bounds[::-1].tolist()


def test_the_interval_is_student_s():
    assert efficiency.interval([1.0, 2.0, 3.0, 4.0]) == pytest.approx((2.5, 0.44574, 4.55426), abs=1e-5)
    assert efficiency.interval([1.0, 3.0]) == pytest.approx((2.0, -10.7062, 14.7062), abs=1e-4)
    mean, *bounds = efficiency.interval([7.0])
    assert mean == 7.0
    assert np.isnan(bounds).all()


def test_gains_are_told_against_base_of_the_same_seed(folder):
    write_runs(folder / "real_demo.jsonl", {"base": BASE, "ours": gaining(3.0, 4.0, 5.0), "RegMix": gaining(2.0)})
    assert proof.gains("demo") == {"ours": "+4.00 [+1.52, +6.48] (n 3)", "RegMix": "+2.00 (n 1)"}


def cells(lines: list[str]) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_ours_stands_beside_the_best_other_and_has_its_place_among_all(folder):
    runs = {"base": BASE, "RegMix": gaining(1.0, 2.0, 3.0), "Olmix, KL 0.05": gaining(6.0, 7.0, 8.0),
            "DoGE": gaining(-2.0, -1.0, 0.0), "ours": gaining(4.0, 5.5, 6.0)}  # fmt: skip
    write_runs(folder / "real_demo.jsonl", runs)
    (line,) = cells(proof.against_the_best("demo"))
    apart = "-1.83 [-2.55, -1.12]"  # -2, -1.5 and -2
    assert line == ["demo", "ours", "+5.17", "2 of 4", "Olmix, KL 0.05", "+7.00", apart, "3"]


def test_pairs_are_of_one_seed_where_a_contender_lacks_some(folder):
    runs = {"base": BASE, "rival": gaining(10, 50, 10)}
    runs["ours"] = {seed: run for seed, run in gaining(10, 0, 10).items() if seed != 102}
    write_runs(folder / "real_demo.jsonl", runs)
    (line,) = proof.against_the_best("demo")
    assert line.endswith("| +0.00 [+0.00, +0.00] | 2 |")


def test_no_form_of_ours_is_a_rival_and_the_protected_one_has_a_line_of_its_own(folder):
    runs = {"base": BASE, "ours": gaining(4.0, 4.0, 4.0), "ours, protected": gaining(1.0, 1.0, 1.0),
            "ours, with gradients": gaining(9.0, 9.0, 9.0), "RegMix": gaining(2.0, 2.0),
            "DoGE": gaining(0.0, 0.0, 0.0)}  # fmt: skip
    write_runs(folder / "real_demo.jsonl", runs)
    free, protected = cells(proof.against_the_best("demo"))
    assert free[1:6] == ["ours", "+4.00", "1 of 3", "RegMix", "+2.00"]
    assert protected[1:6] == ["ours, protected", "+1.00", "2 of 3", "RegMix", "+2.00"]
    assert [free[6][:5], protected[6][:5]] == ["+2.00", "-1.00"]
    assert free[7] == protected[7] == "2"  # as many pairs as both have
    write_runs(folder / "real_traces.jsonl", {"base": BASE, "ours": gaining(4.0, 4.0, 4.0)})
    assert proof.against_the_best("traces") == proof.against_the_best("skills") == []


def test_on_smollm2_the_default_is_called_protected_and_each_suite_has_its_own_mixtures(folder):
    runs = {
        "base": BASE, "untuned": gaining(9.0, 9.0, 9.0), "ours": gaining(1.0, 1.0, 1.0),
        "Olmix, KL 0.05": gaining(3.0, 3.0, 3.0), "ours, on the target": gaining(4.0, 4.0, 4.0),
        "ours, unprotected, on the target": gaining(6.0, 6.0, 6.0), "RegMix, on the target": gaining(5.0, 5.0, 5.0),
        "ours, weighted by exact match, on the target": gaining(8.0, 8.0, 8.0),
    }  # fmt: skip
    write_runs(folder / "real_smollm2.jsonl", runs, tests=200, dtype="float32")
    scratch = cells(proof.against_the_best("smollm2_scratch"))
    assert [line[1:5] for line in scratch] == [["ours", "+1.00", "2 of 2", "Olmix, KL 0.05"]]
    target = cells(proof.against_the_best("smollm2"))
    assert [line[1:5] for line in target] == [
        ["ours", "+6.00", "1 of 2", "RegMix"], ["ours, protected", "+4.00", "2 of 2", "RegMix"]
    ]  # fmt: skip


def test_all_surfaces_together_are_held_against_the_rival_that_is_best_over_all_of_them():
    def rows(name: str, family: str, noise: float, regrets: list[float]) -> list[dict]:
        runs = 16 if name == "ours" else 256
        return [
            {"family": family, "noise": noise, "seed": seed, "name": name, "runs": runs, "regret": regret}
            for seed, regret in enumerate(regrets)
        ]

    told = efficiency.gather([
        *rows("ours", "law", 0.006, [0.2, 0.4]), *rows("ours", "law", 0.03, [0.4, 0.6]),
        *rows("RegMix", "law", 0.006, [0.1, 0.1]), *rows("RegMix", "law", 0.03, [0.1, 0.1]),
        *rows("GP", "law", 0.006, [0.6, 0.6]), *rows("GP", "law", 0.03, [0.8, 0.8]),
        *rows("ours", "harm", 0.03, [1.0, 5.0]), *rows("RegMix", "harm", 0.03, [4.0]), *rows("GP", "harm", 0.03, [1.2]),
    ])  # fmt: skip
    found = efficiency.together(told, 16, ("RegMix", "GP"), 256)
    assert found["rival"] == "GP"  # which is worse than RegMix on most surfaces
    assert found["n"] == 3  # a surface at both noises counts once; one that a rival lacks, not at all
    assert found["ours"] == pytest.approx((0.3 + 0.5 + 1.0) / 3)
    assert found["theirs"] == pytest.approx((0.7 + 0.7 + 1.2) / 3)
    assert found["difference"] == pytest.approx(efficiency.interval([-0.4, -0.2, -0.2]))
    assert efficiency.together(told, 16, ("GP", "RegMix"), 256) == found
    assert efficiency.together(told, 16, ("RegMix",), 256)["rival"] == "RegMix"
    assert efficiency.together(told, 16, (), 256) is efficiency.together(told, 32, ("GP",), 512) is None


def test_ours_is_held_against_the_better_of_two_rivals_over_the_seeds_that_both_have():
    def rows(name: str, runs: int, regrets: list[float]) -> list[dict]:
        return [
            {"family": "law", "noise": 0.03, "seed": seed, "name": name, "runs": runs, "regret": regret}
            for seed, regret in enumerate(regrets)
        ]

    told = efficiency.gather([
        *rows("ours", 16, [1.0, 2.0]), *rows("RegMix", 256, [3.0, 5.0, 7.0]), *rows("GP", 256, [6.0, 6.0, 6.0])
    ])  # fmt: skip
    found = efficiency.against(told, ("law", 0.03), 16, ("GP", "RegMix"), 256)
    assert (found["rival"], found["ours"], found["theirs"], found["n"]) == ("RegMix", 1.5, 4.0, 2)
    assert found["difference"][0] == pytest.approx(-2.5)


def test_a_last_row_that_was_cut_off_is_taken_away_and_written_again(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    assert jsonl.read(path) == []
    jsonl.add(path, {"seed": 1})
    jsonl.add(path, {"seed": 2})
    assert jsonl.read(path) == [{"seed": 1}, {"seed": 2}]
    assert not capsys.readouterr().err
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"seed": 3, "lo')
    assert jsonl.read(path) == [{"seed": 1}, {"seed": 2}]
    assert "rows.jsonl: its last line was cut off" in capsys.readouterr().err
    assert path.read_bytes() != whole  # who only looks changes nothing
    jsonl.add(path, {"seed": 3})
    assert path.read_bytes() == whole + b'{"seed": 3}\n'
    path.write_bytes(b'{"seed": 1')
    assert jsonl.read(path) == []
    jsonl.add(path, {"seed": 2})
    assert jsonl.read(path) == [{"seed": 2}]


def test_a_broken_row_in_the_middle_stops_and_stays(tmp_path):
    path = tmp_path / "rows.jsonl"
    said = b'{"seed": 1}\n{"se\n' + json.dumps({"seed": 3}).encode() + b"\n"
    path.write_bytes(said)
    with pytest.raises(SystemExit, match="a line that is not JSON"):
        jsonl.read(path)
    assert path.read_bytes() == said
