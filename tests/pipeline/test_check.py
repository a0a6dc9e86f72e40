"""`check`: leaks and near-duplicates told with numbers, mended copies, large sources, what comes first."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from ideal_proxy.config import load_config, parse_config
from ideal_proxy.errors import UserError
from ideal_proxy.pipeline import check as check_module
from ideal_proxy.pipeline.check import RowSample, check_sources, health_tables, survey
from ideal_proxy.pipeline.findings import Finding, finding_lines, folded, leak_text, tell
from ideal_proxy.pipeline.mending import mend
from ideal_proxy.pipeline.prepare import prepare
from ideal_proxy.terminal import Reporter

RNG = random.Random(0)
WORDS = ["".join(RNG.choices("abcdefghijklmnopqrstuvwxyz", k=RNG.randint(2, 8))) for _ in range(800)]


def row(seed: str) -> dict[str, Any]:
    rng = random.Random(seed)
    return {
        "instruction": " ".join(rng.choices(WORDS, k=25)),
        "input": "",
        "output": " ".join(rng.choices(WORDS, k=25)),
    }


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")


RUN_FILE = """name: mix   # my own
domains:
  - {name: a, path: a.jsonl}
  - {name: b, path: b.jsonl}
capabilities:
  - name: a
    path: a_ref.jsonl   # the golden ones
  - {name: b, path: "b_ref.jsonl"}
proxy: {vocabulary: 400}
"""


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    """Domain b trains on two reference rows of a as they are, and on one with a word more."""
    references = {name: [row(f"{name} reference {n}") for n in range(40)] for name in "ab"}
    rows = {name: [row(f"{name} {n}") for n in range(80)] for name in "ab"}
    near = references["a"][5]
    rows["b"] += [*references["a"][:2], {**near, "output": near["output"] + " indeed"}]
    for name in "ab":
        write(tmp_path / f"{name}.jsonl", rows[name])
        write(tmp_path / f"{name}_ref.jsonl", references[name])
    (tmp_path / "mix.yaml").write_text(RUN_FILE, encoding="utf-8")
    return tmp_path / "mix.yaml"


def test_leaks_and_near_duplicates_are_told_of_how_many(run_file: Path) -> None:
    pytest.importorskip("rensa")
    health = check_sources(load_config(run_file))
    assert health["leaks"] == [{"capability": "a", "domain": "b", "rows": 2, "of": 40}]
    (near,) = health["near_duplicates"]
    assert (near["capability"], near["domain"], near["rows"], near["of"]) == ("a", "b", 1, 40)
    places = [place.rpartition("/")[2] for place in near["example"]]
    assert places == ["a_ref.jsonl:6", "b.jsonl:83"]
    assert 0.9 < near["similarity"] < 1
    assert health["leaked"] == {"a": 3}
    text = " ".join(health_tables(health, "mix.yaml").split())
    assert "- 2 of 40 reference rows of a stand in domain b: its loss is no fair judge" in text
    assert "- 1 of 40 reference rows of a stands nearly in domain b" in text
    assert "check mix.yaml --fix (writes the reference sets without them)" in text


def test_the_mended_copy_leaves_out_those_rows_alone(run_file: Path) -> None:
    pytest.importorskip("rensa")
    config = load_config(run_file)
    made = mend(survey(config), run_file, config)
    assert made.run_file is not None
    text = made.run_file.read_text(encoding="utf-8")
    assert text == RUN_FILE.replace("path: a_ref.jsonl", 'path: "mix_mended/a.jsonl"'), "comments and all else stay"
    assert yaml.safe_load(text)["capabilities"][1]["path"] == "b_ref.jsonl"
    left = [json.loads(line) for line in (run_file.parent / "mix_mended" / "a.jsonl").read_text().splitlines()]
    assert left == [row(f"a reference {n}") for n in range(40) if n not in (0, 1, 5)]
    again = survey(load_config(made.run_file))
    assert not again.health["leaked"]
    assert made.to_json()["references"][0]["left_out"] == 3
    assert "37 reference rows of a, 3 left out" in " ".join(made.text().split())
    nothing = mend(again, made.run_file, load_config(made.run_file))
    assert nothing.run_file is None
    assert "nothing was written" in nothing.text()


def test_a_run_file_of_any_name_is_mended(run_file: Path) -> None:
    run_file = run_file.rename(run_file.with_name("😀.yaml"))
    made = mend(survey(load_config(run_file)), run_file, load_config(run_file))
    assert made.run_file is not None
    assert Path(load_config(made.run_file).capabilities[0].path) == run_file.parent / "😀_mended" / "a.jsonl"


def test_a_set_that_is_trained_on_whole_cannot_be_mended(run_file: Path) -> None:
    write(run_file.parent / "a_ref.jsonl", [row(f"a {n}") for n in range(30)])
    config = load_config(run_file)
    with pytest.raises(UserError, match="a: 30 of 30 reference rows stand in a domain, so that too few are left"):
        mend(survey(config), run_file, config)


def test_a_set_that_cannot_be_mended_does_not_keep_the_others_from_it(run_file: Path) -> None:
    write(run_file.parent / "a_ref.jsonl", [row(f"a {n}") for n in range(30)])
    write(run_file.parent / "b_ref.jsonl", [row(f"b {n}") for n in range(4)] + [row(f"new {n}") for n in range(20)])
    config = load_config(run_file)
    made = mend(survey(config), run_file, config)
    assert made.run_file is not None
    places = [entry["path"] for entry in yaml.safe_load(made.run_file.read_text(encoding="utf-8"))["capabilities"]]
    assert places == ["a_ref.jsonl", "mix_mended/b.jsonl"]
    assert [entry["capability"] for entry in made.to_json()["references"]] == ["b"]
    assert "a stays as it is: 30 of 30 reference rows" in " ".join(made.text().split())


def test_without_the_library_check_says_how_to_get_it(run_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_module, "can_look", lambda: False)
    health = check_sources(load_config(run_file))
    assert health["near_duplicates"] is None
    assert "pip install 'ideal-proxy[near-duplicates]'" in " ".join(health_tables(health).split())
    assert health["leaked"] == {"a": 2}


@pytest.mark.parametrize(
    ("count", "of", "text"),
    [
        (1, 400, "1 of 400 reference rows of c stands in domain d: its loss is a little too good"),
        (157, 400, "157 of 400 reference rows of c stand in domain d: its loss is no fair judge"),
        (1, 1, "1 of 1 reference row of c stands in domain d: its loss is no fair judge"),
    ],
)
def test_few_leaks_read_otherwise_than_many(count: int, of: int, text: str) -> None:
    assert leak_text(count, of, "c", {"d": count}) == text


def test_what_stands_in_several_domains_is_said_once(tmp_path: Path) -> None:
    references = [row(f"reference {n}") for n in range(60)]
    names = [f"d{n}" for n in range(5)]
    for n, name in enumerate(names):
        write(tmp_path / f"{name}.jsonl", [*(row(f"{name} {k}") for k in range(60)), *references[: n + 1], row("all")])
    write(tmp_path / "r.jsonl", references)
    config = parse_config({
        "domains": [{"name": name, "path": str(tmp_path / f"{name}.jsonl")} for name in names],
        "capabilities": [{"name": "r", "path": str(tmp_path / "r.jsonl")}], "proxy": {"vocabulary": 400},
    })  # fmt: skip
    found = check_sources(config)["findings"]
    where = "domains (d0 1, d1 2, d2 3, d3 4, d4 5)"
    assert found[0] == f"5 of 60 reference rows of r stand in {where}: its loss is no fair judge"
    assert found[1].startswith("equal rows in two domains: d0 and d1 2, d0 and d2 2, ")
    assert len(found) == 2


def test_what_matters_comes_first_and_the_rest_is_folded() -> None:
    findings = ["2 of 9 reference rows of x stand in domain y: its loss is no fair judge"]
    findings += [f"domain d{n}: {n + 2} rows hold thoughts (reasoning)" for n in range(9)]
    findings += ["a and b share 3 equal rows"]
    lines = [" ".join(line.split()) for line in finding_lines(findings, 1)]
    assert lines[0].startswith("- 2 of 9 reference rows")
    assert lines[1] == "Good to know:"
    assert lines[2] == (
        "- domain d0: 2 rows hold thoughts (reasoning) (and so, with other numbers: d1, d2, d3, d4, d5, d6, d7, d8)"
    )
    assert lines[3:] == ["- a and b share 3 equal rows"]


def test_what_is_said_of_several_in_the_same_words_is_said_once() -> None:
    told = [f"{name}: the fit predicts no better than the mean" for name in ("x", "y", "z/hard")]
    told += ["the proposal takes 12% more optimiser steps than base; budget: {steps: keep} compares"]
    told += [f"reference rows of {name}: not used: id (60 rows)" for name in ("a", "b")]
    told += ["reference rows of c: not used: id (61 rows)", "not enough runs"]
    assert folded(told) == [
        "x, y, z/hard: the fit predicts no better than the mean",
        "the proposal takes 12% more optimiser steps than base; budget: {steps: keep} compares",
        *told[4:7],
        "not enough runs",
    ]
    assert folded(told[4:6]) == ["reference rows of a, b: not used: id (60 rows)"]


def test_columns_that_nothing_reads_are_named_once_each() -> None:
    told = ["a share 3", "domain b: not used: id (1,500 rows), a, b (1 row)", "domain c: not used: source (9 rows)"]
    told += ["reference rows of b: not used: id (3 rows)", "domain d: not used: id (4 rows)", "z: last"]
    assert folded(told) == ["a share 3", "not used: id (b, d), a, b (b), source (c)", "z: last"]


def test_a_large_domain_is_counted_by_some_of_its_rows(run_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(run_file)
    exact = survey(config, every_row=True).health
    assert "estimated" not in health_tables(exact)
    monkeypatch.setattr(check_module, "LEAST_COUNTED", 30)
    monkeypatch.setattr(check_module, "COUNTED_ROWS", 60)
    health = check_sources(config)
    for entry, whole in zip(health["domains"], exact["domains"], strict=True):
        assert (entry["counted"], entry["rows"], entry["read"]) == (30, whole["rows"], whole["rows"])
        assert entry["tokens"] != whole["tokens"]
        assert entry["tokens"] == pytest.approx(whole["tokens"], rel=0.1)
    assert health["leaks"] == exact["leaks"], "what occurs twice is looked for in all rows"
    assert "estimated from 30 rows of each; --every-row counts all" in " ".join(health_tables(health).split())


def test_a_sample_does_not_depend_on_the_order() -> None:
    rng = random.Random(1)
    marks = [rng.randrange(1 << 64) for _ in range(500)]
    made: list[Any] = [f"row {n}" for n in range(500)]
    samples = []
    for order in (list(range(500)), rng.sample(range(500), 500)):
        sample = RowSample(40, 3)
        for n in order:
            sample.add(made[n], marks[n])
        assert sample.first == [made[n] for n in order[:3]]
        assert len(sample.rows) == 40
        samples.append(sample.rows)
    assert (
        sorted(samples[0])
        == sorted(samples[1])
        == sorted(made[n] for n in sorted(range(500), key=marks.__getitem__)[:40])
    )
    assert samples[0] == sorted(samples[0], key=made.index), "in the order of the source"


def test_a_search_shows_findings_folded_and_logs_each() -> None:
    findings = [Finding(f"domain d{n}", f"{n + 2} rows hold thoughts (reasoning)") for n in range(9)]
    findings.insert(4, Finding("", "2 of 9 reference rows of x stand in domain y: its loss is no fair judge", True))
    logged: list[str] = []
    shown: list[str] = []

    class Both(Reporter):
        def show(self, text: str) -> None:
            shown.append(text)

    tell(findings, Both(on_note=logged.append))
    assert len(logged) == 10
    assert sum(line.startswith("warning: ") for line in logged) == 1
    assert len(shown) == 2
    assert shown[0].startswith("warning: 2 of 9")


def test_few_reference_rows_are_one_warning(run_file: Path) -> None:
    health = check_sources(load_config(run_file))
    assert health["few_references"] == "under 200 reference rows for the verdict, which makes it noisy: a 20, b 20"
    assert "- under 200 reference rows for the verdict" in health_tables(health)
    logged: list[str] = []
    prepare(load_config(run_file), run_file.parent / "run" / "prepared", Reporter(quiet=True, on_note=logged.append))
    assert sum("noisy" in line for line in logged) == 1
