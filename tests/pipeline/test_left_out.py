"""Rows that the chat template refuses: not available, told once, in `bad_rows.jsonl`, and never the end of a search."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from builders import read_back, run, small_search, write_rows
from pretrained_folder import NAMES, pretrained_folder

from ideal_proxy.config import dump_config, parse_config
from ideal_proxy.data.rows import read_rows
from ideal_proxy.errors import UserError
from ideal_proxy.mixture.apply import apply_mixture
from ideal_proxy.mixture.file import load_mixture
from ideal_proxy.pipeline.check import check_sources, health_tables
from ideal_proxy.pipeline.outer_loop import run_search
from ideal_proxy.pipeline.prepare import load_prepared
from ideal_proxy.scaleup.source import read_domains
from ideal_proxy.terminal import Reporter

STRICT = (  # Gemma's kind: turns must alternate, and one that says a word is refused
    "{% for m in messages %}{% if 'REFUSE' in m['content'] %}{{ raise_exception('no such turn') }}{% endif %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


def rows_of(name: str, rows: int) -> list[dict]:
    return [{"messages": [{"role": r, "content": c} for r, c in row.pairs]}
            for row in read_rows(f"demo:{name}?rows={rows}&seed=3")]  # fmt: skip


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[str]]:
    """A finished search with pretrained proxies: of 61 rows one is refused, one broken, one has two user turns."""
    folder = tmp_path_factory.mktemp("left_out")
    model = pretrained_folder(folder / "model", steps_tokens=3_000)
    saved = json.loads((model / "tokenizer_config.json").read_text())
    saved.pop("chat_template", None)
    (model / "tokenizer_config.json").write_text(json.dumps(saved))
    (model / "chat_template.jinja").write_text(STRICT)
    domains = []
    for name in NAMES:
        rows = rows_of(name, 60)
        if name == "facts":
            rows[7]["messages"][0]["content"] = "REFUSE this"
            rows[9]["messages"].insert(0, {"role": "user", "content": "Hello."})
        write_rows(folder / f"{name}.jsonl", rows)
        if name == "facts":
            with open(folder / f"{name}.jsonl", "a") as file:
                file.write("{broken\n")
        domains.append({"name": name, "path": str(folder / f"{name}.jsonl"), "base": 60})
    config = parse_config(small_search(
        domains=domains, swarm={"runs": 4, "workers": 1},
        proxy={"model": str(model), "context": 64, "fraction": 1.0, "batch_rows": 16, "learning_rate": 3e-3},
    ))  # fmt: skip
    (folder / "mix.yaml").write_text(dump_config(config))
    told: list[str] = []
    reporter = Reporter(quiet=True)
    reporter.record = told.append  # type: ignore[method-assign]
    run_search(config, folder / "run", reporter)
    return folder, folder / "run", told


def test_one_row_that_does_not_fit_the_template_ends_no_search(searched):
    _, out, told = searched
    facts = {f.name: f for f in load_prepared(out / "prepared").facts}
    assert [facts[name].available for name in NAMES] == [60, 60, 59]
    assert facts["facts"].base == 59
    assert len(facts["facts"].left_out) == 1
    mixture = load_mixture(out / "mixture.json")
    assert sum(d.available for d in mixture.domains) == 179
    bad = [json.loads(line) for line in (out / "bad_rows.jsonl").read_text().splitlines()]
    places = [(entry["where"].rpartition(":")[2], entry["reason"]) for entry in bad]
    assert places == [("61", "not valid JSON"), ("8", "refused by the chat template")]
    for what in ("not valid JSON", "no such turn", "merged"):
        assert sum(what in line for line in told) == 1, "told, and once"


def test_what_a_search_left_out_apply_and_scale_up_leave_out_too(searched, tmp_path):
    _, out, _ = searched
    mixture = load_mixture(out / "mixture.json")
    applied = apply_mixture(mixture, tmp_path / "rows")
    written = list(read_back(applied))
    assert len(written) == mixture.total_rows
    assert "REFUSE" not in json.dumps(written)
    everything = mixture.model_copy(
        update={"domains": [d.model_copy(update={"rows": d.available}) for d in mixture.domains]}
    )
    written = [json.dumps(row, sort_keys=True) for row in read_back(apply_mixture(everything, tmp_path / "all"))]
    assert len(written) == sum(d.available for d in mixture.domains)
    assert not any("REFUSE" in row for row in written), "every row of the domain is drawn, but for the one left out"
    assert [len(rows) for rows in read_domains(mixture)] == [d.available for d in mixture.domains]
    assert (
        run("export", str(out / "mixture.json"), "--to", "llamafactory", "--out", str(tmp_path / "lf")).returncode == 0
    )
    assert not any("REFUSE" in path.read_text() for path in (tmp_path / "lf").rglob("*.jsonl"))


def test_check_tells_everything_once_and_warns_of_few_rows(searched, tmp_path, caplog):
    folder, _, _ = searched
    done = run("check", str(folder / "mix.yaml"))
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 0, done.stderr
    for what in ("is not valid JSON", "no such turn", "merged"):
        assert said.count(what) == 1
    write_rows(tmp_path / "few.jsonl", rows_of("facts", 5))
    config = parse_config(small_search())
    few = config.domains[0].model_copy(update={"name": "few", "path": str(tmp_path / "few.jsonl"), "base": None})
    health = check_sources(config.model_copy(update={"domains": [*config.domains, few]}))
    assert "domain few: 5 rows to train on; with fewer than 50 its effect can hardly be measured" in " ".join(
        health_tables(health).split()
    )


def test_rows_that_are_refused_stand_in_bad_rows_also_where_they_are_too_many(searched, tmp_path):
    folder, _, _ = searched
    rows = rows_of("facts", 60)
    for row in rows[:9]:
        row["messages"][0]["content"] = "REFUSE this"
    write_rows(tmp_path / "facts.jsonl", rows)
    config = parse_config(yaml.safe_load((folder / "mix.yaml").read_text()))
    domains = [d.model_dump() | ({"path": str(tmp_path / "facts.jsonl")} if d.name == "facts" else {})
               for d in config.domains]  # fmt: skip
    config = parse_config(config.model_dump(mode="json") | {"domains": domains})
    with pytest.raises(UserError, match=r"refuses 9 of 60 rows, more than 10%.*all of them stand in .*bad_rows\.jsonl"):
        run_search(config, tmp_path / "run", Reporter(quiet=True))
    bad = [json.loads(line) for line in (tmp_path / "run" / "bad_rows.jsonl").read_text().splitlines()]
    path = str(tmp_path / "facts.jsonl")
    assert [(row["source"], row["where"]) for row in bad] == [(path, f"{path}:{n + 1}") for n in range(9)]
    assert {row["reason"] for row in bad} == {"refused by the chat template"}


def test_influence_counts_such_rows_as_left_out_too(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from ideal_proxy.data.template import make_template
    from ideal_proxy.gradients.estimation import encode_sources

    model = pretrained_folder(tmp_path / "model", steps_tokens=3_000)
    tokenizer = AutoTokenizer.from_pretrained(str(model))
    tokenizer.chat_template = STRICT
    domains = []
    for name in NAMES:
        rows = rows_of(name, 60)
        if name == "facts":
            rows[7]["messages"][0]["content"] = "REFUSE this"
        domains.append({"name": name, "path": write_rows(tmp_path / f"{name}.jsonl", rows), "base": 60})
    config = parse_config(small_search(domains=domains))
    sources = encode_sources(config, make_template(tokenizer), 64)
    number = NAMES.index("facts")
    wanted = [60 - (name == "facts") for name in NAMES]
    assert sources.available.tolist() == sources.base.tolist() == wanted, "a base of 60 means all that there are"
    lost = [f"{row.key:016x}" for row in read_rows(domains[number]["path"]) if "REFUSE" in row.prompt]
    assert sources.left_out == [lost if name == "facts" else [] for name in NAMES]
