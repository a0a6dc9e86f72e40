"""The shipped JSON schema is the settings' own, and takes and refuses what the run file does."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from builders import ROOT, small_search, write_rows

from ideal_proxy.config import parse_config
from ideal_proxy.errors import UserError
from ideal_proxy.pipeline.schema import FILE, schema_text
from ideal_proxy.pipeline.start import write_run_file

SCHEMA = json.loads(FILE.read_text(encoding="utf-8"))
CHECK = jsonschema.Draft202012Validator(SCHEMA)


def test_the_shipped_schema_is_current() -> None:
    assert FILE.read_text(encoding="utf-8") == schema_text(), "run python -m ideal_proxy.pipeline.schema"
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_recorded_run_files_are_valid() -> None:
    paths = sorted((ROOT / "benchmarks" / "verdict").glob("*.yaml"))
    assert len(paths) >= 4
    for path in paths:
        CHECK.validate(yaml.safe_load(path.read_text(encoding="utf-8")))


def test_init_names_the_schema_and_what_it_writes_is_valid(tmp_path: Path) -> None:
    for name in ("maths", "code"):
        rows = [{"prompt": f"{name} {n}", "completion": str(n)} for n in range(60)]
        write_rows(tmp_path / "data" / name / "train.jsonl", rows[:40])
        write_rows(tmp_path / "data" / name / "reference.jsonl", rows[40:])
    write_run_file(tmp_path / "data", tmp_path / "mix.yaml")
    text = (tmp_path / "mix.yaml").read_text(encoding="utf-8")
    head = text.splitlines()[0]
    assert head == f"# yaml-language-server: $schema={FILE.as_uri()}"
    assert Path(head.split("file://")[1]).is_file()
    CHECK.validate(yaml.safe_load(text))


TAKEN: list[dict[str, Any]] = [
    {}, {"protect": "2%"}, {"protect": "none"}, {"protect": {"strings": "1%", "formats": "none"}}, {"protect": 0.05},
    {"budget": {"tokens": "keep"}}, {"budget": {"rows": "at_most", "total": 900}}, {"budget": {"steps": "keep"}},
    {"budget": {"unit": "rows", "mode": "free"}}, {"base": {"epochs": 3}},
    {"batch": {"tokens": 4096}, "proxy": {"size": "0.1M"}},
    {"proxy": None}, {"constraints": None, "seed": None}, {"loss": "row"}, {"rounds": 1, "reuse": ["runs/a"]},
    {"constraints": {"groups": ["strings + formats <= 60%"]}},
    {"proxy": {"size": "0.1M", "learning_rate": 0.001}},
]  # fmt: skip
REFUSED: list[dict[str, Any]] = [
    {"colour": "red"}, {"rounds": 0}, {"rounds": "many"}, {"loss": "mean"}, {"proxy": {"size": "2M"}},
    {"budget": {"tokens": "some"}}, {"protect": {"maths": [1]}}, {"domains": []}, {"capabilities": "maths"},
    {"swarm": {"engine": "kubernetes"}}, {"verify": {"pairs": 1}}, {"batch": {"rows": 0}},
]  # fmt: skip


@pytest.mark.parametrize("change", TAKEN, ids=json.dumps)
def test_what_the_run_file_takes_the_schema_takes(change: dict[str, Any]) -> None:
    value = copy.deepcopy(small_search()) | change
    parse_config(value, where="mix.yaml")
    CHECK.validate(value)


@pytest.mark.parametrize("change", REFUSED, ids=json.dumps)
def test_what_the_schema_refuses_the_run_file_refuses(change: dict[str, Any]) -> None:
    value = copy.deepcopy(small_search()) | change
    assert not CHECK.is_valid(value)
    with pytest.raises(UserError):
        parse_config(value, where="mix.yaml")
