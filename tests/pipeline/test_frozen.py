"""A settled mixture is one domain: its rows, repeats too, in its own shares; the search asks for its total alone."""

from __future__ import annotations

from collections import Counter

import pytest
import yaml
from builders import run, write_rows

from ideal_proxy.config import dump_config, load_config, parse_config
from ideal_proxy.data.demo import demo_rows
from ideal_proxy.data.messages import row_keys, source_fingerprint
from ideal_proxy.data.rows import read_rows
from ideal_proxy.errors import UserError
from ideal_proxy.mixture.file import DomainVolume, MixtureFile, save_mixture
from ideal_proxy.pipeline.frozen import replayed, with_frozen_rows


@pytest.fixture
def folder(tmp_path):
    """A mixture of 40 rows of one set and all of another, with half of that again, and a run file that freezes it."""
    domains = []
    for name, available, rows in (("strings", 100, 40), ("facts", 60, 90)):
        source = write_rows(tmp_path / f"{name}.jsonl", demo_rows(f"demo:{name}?rows={available}"))
        keys = row_keys(list(read_rows(source)))
        domains.append(
            DomainVolume(
                name=name, source=source, fingerprint=source_fingerprint(keys), available=available, rows=rows,
                base_rows=available,
            )
        )  # fmt: skip
    save_mixture(tmp_path / "old.json", MixtureFile(domains=domains))
    write_rows(tmp_path / "lists.jsonl", demo_rows("demo:lists?rows=80"))
    (tmp_path / "mix.yaml").write_text(
        "freeze: {existing: old.json}\n"
        "domains: [{name: lists, path: lists.jsonl}]\n"
        "capabilities: [{name: strings, path: 'demo:strings?rows=40&split=reference'}]\n"
        "proxy: {size: 0.1M, vocabulary: 300, context: 48}\n"
    )
    return tmp_path


def test_its_rows_are_the_mixtures_own(folder):
    said: list[str] = []
    config = load_config(folder / "mix.yaml")
    assert config.domain_names == ["existing", "lists"]
    resolved = with_frozen_rows(config, folder / "run", said.append)
    drawn = Counter(row_keys(list(read_rows(resolved.domains[0].path))).tolist())
    strings, facts = (set(row_keys(list(read_rows(str(folder / f"{n}.jsonl")))).tolist()) for n in ("strings", "facts"))
    assert sum(drawn[k] for k in strings) == 40
    assert Counter(drawn[k] for k in facts if drawn[k]).keys() <= {1, 2, 3}
    assert sum(drawn[k] for k in facts) == 90
    assert resolved.domains[1] == config.domains[1]
    assert "130 rows of" in said[0]
    assert "its members carry no evidence of their own" in said[0]


def test_a_run_file_with_it_reads_back_and_may_give_it_limits(folder):
    config = load_config(folder / "mix.yaml")
    assert parse_config(yaml.safe_load(dump_config(config))) == config
    given = "[{name: existing, path: 'mixture:old.json', min: 20}, {name: lists"
    (folder / "limits.yaml").write_text((folder / "mix.yaml").read_text().replace("[{name: lists", given))
    limited = load_config(folder / "limits.yaml")
    assert limited.domains[0].min == 20
    assert limited.domains[0].path == config.domains[0].path


def test_the_plan_searches_its_total_against_new_sets(folder):
    answer = run("search", "mix.yaml", "--out", "run", "--dry-run", cwd=folder)
    assert answer.returncode == 0, answer.stderr
    assert "existing: 130 rows of" in answer.stderr
    assert "existing" in answer.stdout


def test_replay_is_told_with_a_range():
    config = parse_config({
        "freeze": {"existing": "old.json"}, "domains": [{"name": "lists", "path": "demo:lists"}],
        "capabilities": [{"name": "lists", "path": "demo:lists?split=reference"}],
    })  # fmt: skip
    result = {"domains": [
        {"name": "existing", "moves": [300.4, 900.0], "proposal_rows": 500, "available": 1000},
        {"name": "lists", "moves": [0.0, 1.0], "proposal_rows": 1, "available": 1},
    ]}  # fmt: skip
    assert list(replayed(config, result)) == [
        "replay 500 of the 1,000 rows of existing (50%); from 300 to 900 the check could not see a difference"
    ]


def test_a_file_that_is_not_there_is_told(folder):
    (folder / "old.json").unlink()
    with pytest.raises(UserError, match=r"old\.json"):
        with_frozen_rows(load_config(folder / "mix.yaml"), folder / "run", print)
