"""`init`: whatever layout a folder has, no row that is there to judge is trained on, and nothing is left out unsaid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
import yaml
from builders import write_rows

from ideal_proxy.config import load_config
from ideal_proxy.data.layout import look
from ideal_proxy.data.rows import read_rows
from ideal_proxy.errors import UsageError, UserError
from ideal_proxy.pipeline.schema import yaml_text
from ideal_proxy.pipeline.start import write_run_file

BOTH = ("code", "math")


def put(path: Path, names: list[str]) -> None:
    """Write rows whose answers are the names."""
    rows = [{"instruction": f"q {name}", "input": "", "output": name} for name in names]
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        parquet.write_table(arrow.Table.from_pylist(rows), path)
    else:
        write_rows(path, rows)


def train(domain: str, first: int = 0, last: int = 6) -> list[str]:
    return [f"{domain} train {n}" for n in range(first, last)]


def judge(domain: str) -> list[str]:
    return [f"{domain} judge {n}" for n in range(4)]


def one_file_each(root, name):
    put(root / f"{name}.jsonl", train(name))
    put(root / f"{name}.reference.jsonl", judge(name))


def underscore(root, name):
    put(root / f"{name}.parquet", train(name))
    put(root / f"{name}_test.parquet", judge(name))


def folder_each(root, name):
    put(root / name / "train.jsonl", train(name))
    put(root / name / "validation.jsonl", judge(name))


def hub(root, name):
    for n in range(3):
        put(root / name / "data" / f"train-0000{n}-of-00003.parquet", train(name, 2 * n, 2 * n + 2))
    put(root / name / "data" / "test-00000-of-00001.parquet", judge(name))


def hub_without_train(root, name):
    for n in range(2):
        put(root / name / f"part-{n}.jsonl", train(name, 3 * n, 3 * n + 3))
    put(root / name / "dev.jsonl", judge(name))


def splits_inside(root, name):
    put(root / name / "train" / "a.jsonl", train(name, 0, 3))
    put(root / name / "train" / "b.jsonl", train(name, 3, 6))
    put(root / name / "test" / "a.jsonl", judge(name))


def splits_outside(root, name):
    put(root / "train" / f"{name}.jsonl", train(name))
    put(root / "eval" / f"{name}.jsonl", judge(name))


def reference_folder(root, name):
    put(root / name / "rows.jsonl", train(name))
    put(root / "reference" / name / "rows.jsonl", judge(name))


def named_files(root, name):
    put(root / name / f"{name}.jsonl", train(name))
    put(root / name / f"{name}_eval.jsonl", judge(name))


LAYOUTS = [one_file_each, underscore, folder_each, hub, hub_without_train, splits_inside, splits_outside,
           reference_folder, named_files]  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_every_layout_gives_the_rows_to_train_on_and_those_to_judge_by(tmp_path, layout):
    root = tmp_path / "data [v1]"  # a name that a glob would read as a pattern
    for name in BOTH:
        layout(root, name)
    (root / "README.md").write_text("notes")
    said = write_run_file(root, tmp_path / "mix.yaml")
    config = load_config(tmp_path / "mix.yaml")
    assert config.domain_names == config.capability_names == list(BOTH)
    for domain, capability in zip(config.domains, config.capabilities, strict=True):
        assert [row.answer for row in read_rows(domain.path)] == train(domain.name)
        assert [row.answer for row in read_rows(capability.path)] == judge(domain.name)
        assert domain.base == 6
        assert f"{domain.name}: 6 rows (alpaca), 4 reference rows (few)" in said


def test_a_name_that_ends_in_a_reference_word_is_a_domain_where_nothing_stands_beside_it(tmp_path):
    for name in ("self_eval", "unit-test"):
        put(tmp_path / f"{name}.jsonl", train(name))
    assert [found.name for found in look(tmp_path).domains] == ["self_eval", "unit-test"]


def test_reference_rows_under_a_misspelt_name_are_not_trained_on(tmp_path):
    for name in ("caps", "sums"):
        put(tmp_path / "data" / f"{name}.jsonl", train(name))
    for name in ("capps.reference", "lore.test", "old_holdout", "sum_val", "self_eval"):
        put(tmp_path / "data" / f"{name}.jsonl", judge(name))
    put(tmp_path / "data" / "references" / "sums.jsonl", judge("sums"))
    found = look(tmp_path / "data")
    assert [domain.name for domain in found.domains] == ["caps", "self_eval", "sum_val", "sums"]
    assert [name for name, _ in found.references] == ["capps", "lore", "old"]
    assert next(domain.reference for domain in found.domains if domain.name == "sums").parent.name == "references"
    said = " ".join(write_run_file(tmp_path / "data", tmp_path / "mix.yaml").split())
    assert "capps: no training rows, 4 reference rows" in said
    assert "no capps is here to train on: if it is of caps, name it caps.reference.jsonl" in said
    assert "no lore is here to train on; rename it if it is to be trained on" in said
    assert "sum_val.jsonl is trained on: if it is of sums, name it sums.reference.jsonl" in said
    assert "self_eval.jsonl" not in said


def test_what_is_not_taken_is_said(tmp_path):
    for name in BOTH:
        one_file_each(tmp_path / "data", name)
    (tmp_path / "data" / "old.xlsx").write_text("a,b\n")
    (tmp_path / "data" / "logs").mkdir()
    (tmp_path / "data" / "logs" / "x.zip").write_text("a\tb\n")
    put(tmp_path / "data" / "lonely" / "test.jsonl", judge("lonely"))
    said = write_run_file(tmp_path / "data", tmp_path / "mix.yaml")
    assert "lonely: no training rows, 4 reference rows" in said
    assert load_config(tmp_path / "mix.yaml").capability_names == [*BOTH, "lonely"]
    assert "passed over: logs/, old.xlsx (rows are read from" in said


def test_one_name_for_two_sources_is_refused(tmp_path):
    for name in BOTH:
        one_file_each(tmp_path, name)
    put(tmp_path / "code" / "train.jsonl", train("code"))
    with pytest.raises(
        UserError, match=r"code/train\.jsonl and .*code\.jsonl are both named 'code'; rename one of them"
    ):
        look(tmp_path)


def test_one_domain_is_too_few(tmp_path):
    one_file_each(tmp_path / "data", "code")
    with pytest.raises(UsageError, match="holds one domain"):
        write_run_file(tmp_path / "data", tmp_path / "mix.yaml")


def test_of_many_domains_without_reference_rows_some_are_named(tmp_path):
    for number in range(30):
        put(tmp_path / "data" / f"part{number:02}.jsonl", train(f"part{number:02}", 0, 2))
    with pytest.raises(UserError, match=r"no reference rows for part00, .*part04 and 25 more; .*--hold-out"):
        write_run_file(tmp_path / "data", tmp_path / "mix.yaml")


def test_rows_held_out_are_a_quarter_at_most_and_never_trained_on(tmp_path):
    sizes = {"code": 40, "math": 8}
    for name, size in sizes.items():
        put(tmp_path / "data" / f"{name}.jsonl", train(name, 0, size))
    with pytest.raises(UserError, match=r"no reference rows for code, math; .*--hold-out 400"):
        write_run_file(tmp_path / "data", tmp_path / "mix.yaml")
    write_run_file(tmp_path / "data", tmp_path / "mix.yaml", hold_out=6)
    config = load_config(tmp_path / "mix.yaml")
    for domain, capability, held in zip(config.domains, config.capabilities, (6, 2), strict=True):
        left, kept = ([row.answer for row in read_rows(path)] for path in (domain.path, capability.path))
        assert len(kept) == held
        assert sorted(left + kept) == sorted(train(domain.name, 0, sizes[domain.name]))
        assert left != train(domain.name, 0, len(left))  # not simply the last rows
    assert (tmp_path / "data" / "code.jsonl").read_text().count("\n") == 40
    put(tmp_path / "data" / "tiny.jsonl", train("tiny", 0, 3))
    with pytest.raises(UserError, match="tiny has 3 rows, too few to hold any out"):
        write_run_file(tmp_path / "data", tmp_path / "mix.yaml", hold_out=6, force=True)


@pytest.mark.parametrize("name", ["😀", "日本"])
def test_a_run_file_names_files_and_columns_of_any_letters(tmp_path: Path, name: str) -> None:
    for domain in (name, "code"):
        put(tmp_path / "data" / f"{domain}.jsonl", train(domain))
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    write_rows(tmp_path / "data" / f"{name}.reference.jsonl", [{name: turns}] * 4)
    mix = tmp_path / f"{name}.yaml"
    write_run_file(tmp_path / "data", mix)
    config = load_config(mix)
    assert json.loads(config.capabilities[0].format.removeprefix("columns:"))["messages"] == name
    assert sorted(Path(domain.path).stem for domain in config.domains) == sorted([name, "code"])


def test_any_text_is_read_back_from_a_run_file() -> None:
    text = "".join(map(chr, [*range(0xD800), 0xD83D, *range(0xE000, 0x11000)])) + "😀"
    assert yaml.safe_load(yaml_text({"prompt": [text]})) == {"prompt": [text]}
    assert "\n" not in yaml_text(text)


@pytest.mark.parametrize("how", [{"hold_out": 6}, {"split_by": "part"}])
def test_half_a_character_beside_the_rows_is_written_as_it_is(tmp_path: Path, how: dict[str, Any]) -> None:
    for name in BOTH:
        rows = [{"prompt": f"{name} {n}", "completion": "é", "part": "xy"[n % 2], "note": "\ud800"} for n in range(120)]
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / f"{name}.json").write_text(json.dumps(rows))
        (tmp_path / "data" / f"{name}.reference.json").write_text(json.dumps(rows[:9]))
    if "hold_out" in how:
        for name in BOTH:
            (tmp_path / "data" / f"{name}.reference.json").unlink()
    write_run_file(tmp_path / "data", tmp_path / "mix.yaml", **how)
    made = [row.raw for domain in load_config(tmp_path / "mix.yaml").domains for row in read_rows(domain.path)]
    assert len(made) in (228, 240)
    assert {row["note"] for row in made} == {"\ud800"}
