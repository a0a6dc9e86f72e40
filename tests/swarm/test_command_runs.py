"""A trainer of the user's own: what it is handed, what it may hand back, and every way in which it can fail."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import TESTS, gone, spec, write_rows

from ideal_proxy.config import parse_config
from ideal_proxy.data.rows import read_rows
from ideal_proxy.data.template import make_template
from ideal_proxy.data.tokenizer import train_tokenizer
from ideal_proxy.data.tokenizing import tokenize_rows
from ideal_proxy.data.tokens import TokenRows
from ideal_proxy.errors import UsageError, UserError
from ideal_proxy.proxy.process import run_program
from ideal_proxy.swarm.command_runs import (
    ROWS,
    TrainerCommand,
    do_command,
    load_trained,
    read_results,
    write_command,
)
from ideal_proxy.swarm.context import SwarmContext, draw_run, prepare_context

NAMES = ("strings", "formats")
HOW = f"{sys.executable} {TESTS / 'own_trainer.py'} {{run}}"


def trainer(how: str, **changes: Any) -> TrainerCommand:
    fields = {"command": f"{HOW} {how}", "export": None, "model": "the model", "capabilities": NAMES}
    return TrainerCommand(**{**fields, **changes})


@pytest.fixture
def context(tmp_path: Path) -> SwarmContext:
    """Two demo domains with repeats of equal rows, and their reference rows."""
    found: dict[str, TokenRows] = {}
    sources: dict[str, list[Any]] = {}
    for kind, query in (("domain", "rows=60"), ("search", "rows=20&split=reference")):
        for n, name in enumerate(NAMES):
            sources[f"{kind}-{n}"] = list(read_rows(f"demo:{name}?{query}"))
    sources["domain-0"] += sources["domain-0"][:7]
    texts = [text for rows in sources.values() for row in rows for _, text in row.pairs]
    template = make_template(train_tokenizer(texts, 300))
    folder = tmp_path / "swarm"
    for key, rows in sources.items():
        found[key] = tokenize_rows(rows, template, 64)
        write_rows(folder / ROWS / f"{key}.jsonl", [{"messages": row.as_chat()} for row in rows])
    write_command(folder, trainer("rows"))
    return prepare_context(
        SwarmContext(
            folder=folder, domains=NAMES, references=("search-0", "search-1"), available=(50, 60), size="",
            vocab_size=300, context=64, trainer="x",
        ),
        domains=[found["domain-0"], found["domain-1"]], references=[found["search-0"], found["search-1"]],
    )  # fmt: skip


def do(context: SwarmContext, folder: Path, how: str, **changes: Any) -> tuple[Any, Any, Any]:
    write_command(context.folder, trainer(how))
    folder.mkdir(exist_ok=True)

    def judge(*_: Any) -> Any:
        raise AssertionError("its own results count")

    return do_command(context, folder, spec("a", (80, 25), seed=3, **changes), "cpu", judge=judge)


def test_it_is_handed_the_very_rows_of_a_run(context: SwarmContext, tmp_path: Path) -> None:
    losses, metrics, model = do(context, tmp_path / "run", "rows")
    place = tmp_path / "run" / "work"
    lines = [(context.folder / ROWS / f"domain-{n}.jsonl").read_text().splitlines() for n in (0, 1)]
    order = draw_run(context, context.domain_rows(), spec("a", (80, 25), seed=3))
    wanted = [json.loads(lines[domain][row])["messages"] for domain, row in zip(*order, strict=True)]
    given = [json.loads(line)["messages"] for line in (place / "data" / "train.jsonl").read_text().splitlines()]
    assert given != sorted(given, key=str)
    assert sorted(map(str, given)) == sorted(map(str, wanted))
    assert model is None
    assert metrics["judged_by"] == "command"
    assert metrics["rows"] == 105
    own = 1.0 + 2.0 / 3**0.5 + 0.3 * (1 - 80 / 105)
    assert losses["search-0"].mean == pytest.approx(own + 0.95, abs=0.01)  # a row's number over its ten tokens
    assert np.diff(losses["search-0"].loss_sum).tolist() == pytest.approx([1.0] * 19)
    told = json.loads((place / "run.json").read_text())
    assert told["rows"] == {"strings": 80, "formats": 25}
    assert Path(told["references"]["search"]["formats"]).read_text().splitlines() == (
        (context.folder / ROWS / "search-1.jsonl").read_text().splitlines()
    )


def test_a_smaller_runs_order_is_part_of_a_larger_ones(context: SwarmContext, tmp_path: Path) -> None:
    given = []
    for rows in ((70, 25), (80, 60)):
        write_command(context.folder, trainer("mean"))
        folder = tmp_path / str(rows[0])
        folder.mkdir()
        do_command(context, folder, spec("a", rows, seed=3), "cpu", judge=lambda *_: {})
        given.append((folder / "work" / "data" / "train.jsonl").read_text().splitlines())
    rest = iter(given[1])
    assert all(line in rest for line in given[0])


def test_a_mean_loss_is_that_of_every_row(context: SwarmContext, tmp_path: Path) -> None:
    losses, metrics, _ = do(context, tmp_path / "run", "mean")
    rows = context.reference_rows("search-1")
    each = losses["search-1"].loss_sum / rows.supervised_tokens
    assert each == pytest.approx(np.full(len(rows), losses["search-1"].mean))
    assert metrics["reported"]["search-1"] == pytest.approx(-losses["search-1"].mean)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("fails", r"ended with exit status 1; its last words: no such flag: --bf17; all of it: .*command\.log"),
        ("nothing", r"left neither \{run\}/results\.json nor a model in \{run\}/model or \{run\}/data/trained"),
        ("few", r"the loss of strings in results\.json must have an entry for each of the 20 rows, got 1 entries"),
    ],
)
def test_a_trainer_that_fails_is_one_sentence(context: SwarmContext, tmp_path: Path, how: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        do(context, tmp_path / "run", how)
    assert str(caught.value).startswith("proxy.command (")
    assert "\n" not in str(caught.value)


def test_one_that_takes_too_long_is_ended_with_its_children(context: SwarmContext, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"took longer than 3 s and was ended.*raise proxy\.timeout_seconds"):
        do(context, tmp_path / "run", "slow", timeout_seconds=3.0)
    assert gone(int((tmp_path / "run" / "child.pid").read_text()))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[1]", "must be an object with `losses`, `scores` or both"),
        ('{"losses": {"search": {"strings": 1.0}}}', "lacks losses of formats on the search rows"),
        ('{"losses": {"search": {"strings": NaN, "formats": 1}}}', "is nan; it must be a finite number"),
        ('{"losses": {"search": {"strings": true, "formats": 1}}}', "is True; it must be a finite number"),
        ('{"losses": {"search": {"strings": {"mean": 1}, "formats": 1}}}', "an object with loss_sum and tokens"),
        ('{"scores": {"search": {"strings": "good"}}}', "the score of strings in results.json is 'good'"),
        ('{"scores": {"search": 5}}', "scores in results.json must be"),
        ('{"scores": [5]}', "scores in results.json must be"),
        ("[" * 100_000, "is not JSON"),
        ('{"losses": {"search": {"strings": ' + "9" * 400 + ', "formats": 1}}}', "it must be a finite number"),
        ('{"losses": {"search": {"strings": -1, "formats": 1}}}', "has -1; nats are above 0"),
        (
            json.dumps({"losses": {"search": {name: {"loss_sum": [1] * 20, "tokens": [1.5] * 20} for name in NAMES}}}),
            "tokens must be a whole number in every row",
        ),
    ],
)
def test_results_that_cannot_be_read(context: SwarmContext, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "results.json").write_text(text)
    references = {name: context.reference_rows(name) for name in context.references}
    with pytest.raises(UserError, match=message):
        read_results(tmp_path, trainer("mean"), references)


def test_no_shell_reads_the_command_and_values_are_filled_in_once(context: SwarmContext, tmp_path: Path) -> None:
    write = "import sys, json; json.dump({'losses': {'search': {'strings': 1, 'formats': 1}}}, open(sys.argv[1], 'w'))"
    odd = "$(touch oops); [seed} `id`"  # a value is not filled in again
    write += f"; assert sys.argv[2:] == [{odd!r}.replace('[', chr(123)), '3', 'a b']"
    command = f'{sys.executable} -c "{write}" {{run}}/results.json {{model}} {{seed}} "a b"'
    write_command(context.folder, trainer("", command=command, model=odd.replace("[", "{")))
    (tmp_path / "run").mkdir()
    losses, _, _ = do_command(context, tmp_path / "run", spec("a", (8, 8), seed=3), "cpu", judge=lambda *_: {})
    assert losses["search-0"].mean == 1
    assert not list(tmp_path.rglob("oops"))


def test_what_the_run_file_may_say(tmp_path: Path) -> None:
    named = {
        "domains": [{"name": n, "path": f"demo:{n}"} for n in NAMES],
        "capabilities": [{"name": n, "path": f"demo:{n}"} for n in NAMES],
    }
    for proxy, message in (
        ({"command": "train {data}"}, "command needs model"),
        ({"command": "train", "model": "m"}, "must hold {data}"),
        ({"export": "trl"}, "export is for command"),
        ({"command": "train {data}", "model": "m", "lora_rank": 4}, "command has its own settings"),
    ):
        with pytest.raises(UsageError, match=message):
            parse_config({**named, "proxy": proxy})
    named["capabilities"][0]["metric"] = {"reported": True}  # type: ignore[assignment]
    with pytest.raises(UsageError, match=r"reported by proxy\.command, and there is none"):
        parse_config(named)


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="their mark is read in /proc")
@pytest.mark.parametrize("ending", ["pass", "time.sleep(60)"])
def test_children_in_a_session_of_their_own_end_too(tmp_path: Path, ending: str) -> None:
    """As those of torchrun, which a signal to the group does not reach."""
    child = "subprocess.Popen(['sleep', '60'], start_new_session=True).pid"
    code = f"import subprocess, time, pathlib; pathlib.Path('pid').write_text(str({child})); {ending}"
    with contextlib.suppress(UserError):
        run_program(
            [sys.executable, "-c", code], told="it", folder=str(tmp_path), setting="command", environment={},
            seconds=4.0, too_long="", log=None,
        )  # fmt: skip
    assert gone(int((tmp_path / "pid").read_text()))


def test_a_model_that_cannot_be_loaded_is_one_sentence(tmp_path: Path) -> None:
    for name, text in (("config.json", "{"), ("adapter_config.json", '{"peft_type": "LORA"}')):
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=r"left (a model in .* that cannot be loaded|an adapter, and reading it)"):
            load_trained(tmp_path, trainer("mean"))
