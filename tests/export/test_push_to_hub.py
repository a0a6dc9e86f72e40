"""Rows go to the hub with a card that is true; private, and nothing of this machine in it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from builders import write_rows
from hub_stub import Hub, make_hub
from typer.testing import CliRunner

from ideal_proxy.cli.app import app
from ideal_proxy.data.rows import read_rows, row_keys, source_fingerprint
from ideal_proxy.errors import UserError
from ideal_proxy.export.hub import data_card, licences_of
from ideal_proxy.mixture.file import DomainVolume, MixtureFile, save_mixture


@pytest.fixture
def mixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MixtureFile:
    monkeypatch.chdir(tmp_path)
    domains = []
    for name, count, rows in (("maths", 20, 50), ("a|b", 10, 7)):
        path = Path(f"data/{len(domains)}/rows.jsonl")
        write_rows(tmp_path / path, [{"prompt": f"{name} {n}", "completion": str(n)} for n in range(count)])
        found = source_fingerprint(row_keys(list(read_rows(tmp_path / path))))
        domains.append(DomainVolume(name=name, source=str(path), fingerprint=found, available=count, rows=rows))
    (tmp_path / "data/0/README.md").write_text("---\nlicense: apache-2.0\n---\n# rows\n")
    mixture = MixtureFile(name="mix", seed=3, domains=domains, verdict="improves", verdict_text="improves: +2 %")
    save_mixture(tmp_path / "mixture.json", mixture)
    return mixture


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    return make_hub(monkeypatch, tmp_path / "hub")


def push(folder: Path, *more: str, out: str = "rows") -> Any:
    words = ["apply", str(folder / "mixture.json"), "--out", str(folder / out), "--push-to-hub", "me/mix", *more]
    return CliRunner().invoke(app, words)


def test_apply_uploads_rows_and_a_card(mixture: MixtureFile, hub: Hub, tmp_path: Path) -> None:
    result = push(tmp_path, "--shards", "2", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["hub"] == "hub://dataset/me/mix"
    place = tmp_path / "hub/dataset/me/mix"
    assert sorted(path.name for path in place.iterdir()) == [
        "README.md", "train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl"
    ]  # fmt: skip
    for path in place.glob("*.jsonl"):
        assert path.read_bytes() == (tmp_path / "rows" / path.name).read_bytes()
    assert hub.private == {("dataset", "me/mix"): True}
    _, front, body = (place / "README.md").read_text().split("---\n", 2)
    facts = yaml.safe_load(front)
    assert facts["configs"][0]["data_files"] == [{"split": "train", "path": "train*.jsonl"}]
    assert "license" not in facts, "one of two sources states none"
    assert "| maths | rows.jsonl | apache-2.0 | 50 | 2.50 |" in body
    assert "| a\\|b | rows.jsonl | not stated | 7 | 0.70 |" in body
    assert "improves: +2 %" in body
    assert "ideal-proxy apply mixture.json --out DIR` (seed 3)" in body
    assert str(tmp_path) not in front + body, "no paths of this machine"


def test_the_page_is_public_only_when_told(mixture: MixtureFile, hub: Hub, tmp_path: Path) -> None:
    hub.private["dataset", "me/mix"] = False
    refused = push(tmp_path)
    assert isinstance(refused.exception, UserError)
    assert "me/mix is public on the hub, and nothing was uploaded" in str(refused.exception)
    assert not (tmp_path / "hub").exists()
    assert push(tmp_path, "--public").exit_code == 0
    assert (tmp_path / "hub/dataset/me/mix/train.jsonl").exists()


def test_what_the_hub_refuses_is_one_sentence(mixture: MixtureFile, hub: Hub, tmp_path: Path) -> None:
    words = ["apply", str(tmp_path / "mixture.json"), "--out", str(tmp_path / "rows"), "--push-to-hub", "mix"]
    result = CliRunner().invoke(app, words)
    assert isinstance(result.exception, UserError)
    assert re.search(r"cannot push to mix: mix has no owner; log in .*rows is kept", str(result.exception))
    assert (tmp_path / "rows" / "train.jsonl").exists()


def test_licences_come_from_the_sources(mixture: MixtureFile, hub: Hub, tmp_path: Path) -> None:
    theirs = mixture.domains[1].model_copy(update={"source": "hf:their/rows?split=train"})
    both = mixture.model_copy(update={"domains": [mixture.domains[0], theirs]})
    assert licences_of(both, tmp_path, {}) == {"maths": "apache-2.0", "a|b": "cc-by-4.0"}
    assert licences_of(both, tmp_path, {"maths": str(tmp_path / "data/1/rows.jsonl")})["maths"] == ""
    assert "license: mit" in data_card(mixture, {"maths": "mit", "a|b": "mit"})
    assert "hf:their/rows?split=train" in data_card(both, {})
