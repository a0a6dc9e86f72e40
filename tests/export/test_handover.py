"""What a trainer is handed is what the search would train on: tokens, masks, counts; tried with trainers themselves."""

from __future__ import annotations

import collections
import importlib.util
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest
from typer import Typer
from typer.testing import CliRunner

from benchmarks.handover.problem import CONTEXT, VOLUMES, make, rows_of
from ideal_proxy.cli.scaleup import register
from ideal_proxy.errors import UsageError, UserError
from ideal_proxy.export.hand_over import export_mixture, export_table
from ideal_proxy.mixture.file import MixtureFile, load_mixture

LOADERS = Path(__file__).resolve().parents[2] / "benchmarks" / "handover" / "loaders"


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, MixtureFile]:
    model, path = make(tmp_path_factory.mktemp("problem"))
    return str(model), load_mixture(path)


@pytest.fixture(scope="module")
def tokenizer(problem: tuple[str, MixtureFile]) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(problem[0])


def pieces(tokenizer: Any, turns: list[dict[str, str]]) -> tuple[list[int], list[bool]]:
    """ChatML written by hand, piece by piece: tokens up to the last answer's end, and which of them carry loss."""
    last = max(n for n, turn in enumerate(turns) if turn["role"] == "assistant")
    ids: list[int] = []
    loss: list[bool] = []
    for turn in turns[: last + 1]:
        head = tokenizer(f"<|im_start|>{turn['role']}\n")["input_ids"]
        body = tokenizer(f"{turn['content']}<|im_end|>")["input_ids"]
        end = tokenizer("\n")["input_ids"]
        ids += head + body + end
        loss += [False] * len(head) + [turn["role"] == "assistant"] * len(body) + [False] * len(end)
    return ids[: -len(end)], loss[: -len(end)]


def with_ends(tokenizer: Any, turns: list[dict[str, str]], breaks: bool, asks: bool) -> list[list[bool]]:
    """Where loss lies, turn by turn, for a trainer that reads turns: the line break after an answer ends the row."""
    end = len(tokenizer("\n")["input_ids"])
    last = max(n for n, turn in enumerate(turns) if turn["role"] == "assistant")
    turns = turns[: last + 1]
    first = next(n for n, turn in enumerate(turns) if turn["role"] != "system")
    if asks and turns[first]["role"] == "assistant":
        turns.insert(first, {"role": "user", "content": ""})
    marks = []
    for turn in turns:
        answer = turn["role"] == "assistant"
        head = len(tokenizer(f"<|im_start|>{turn['role']}\n")["input_ids"])
        body = len(tokenizer(f"{turn['content']}<|im_end|>")["input_ids"])
        marks.append([False] * head + [answer] * body + [answer and breaks] * end)
    return marks


def at_the_end(marks: list[list[bool]]) -> list[bool]:
    return list(itertools.chain(*marks))[:CONTEXT]


def at_the_start(marks: list[list[bool]]) -> list[bool]:
    whole = list(itertools.chain(*marks))
    return whole if len(whole) <= CONTEXT else [False, *whole[-CONTEXT + 1 :]]


def turn_by_turn(marks: list[list[bool]]) -> list[bool]:
    """LLaMA-Factory 0.9.5: `infer_seqlen` pair by pair, of what is left."""
    whole = list(itertools.chain(*marks))
    if len(whole) <= CONTEXT:
        return whole
    kept: list[bool] = []
    source = 0
    for part in marks:
        if not any(part):
            source += len(part)
            continue
        target, left = sum(part), CONTEXT - len(kept)
        source += len(part) - target  # what opens the answer
        if left <= 0:
            break
        most = left if 2 * target < left else left - source if 2 * source < left else int(
            left * (target / (source + target)))  # fmt: skip
        new = min(most, target)
        kept += [False] * min(max(left - new, 0), source) + [True] * new
        source = 0
    return kept


def tag_of(text: str) -> str:
    (found,) = set(re.findall(r"\[\w+-\d+\]", text))
    return str(found)


def test_tokens_are_the_templates_and_loss_lies_on_answers(
    problem: tuple[str, MixtureFile], tokenizer: Any, tmp_path: Path
) -> None:
    model, mixture = problem
    report = export_mixture(mixture, "parquet", tmp_path / "out", model=model)
    table = parquet.read_table(tmp_path / "out" / "train.parquet").to_pylist()
    written = collections.defaultdict(list)
    for row in table:
        written[tag_of(tokenizer.decode(row["input_ids"]))].append((row["input_ids"], row["labels"]))
    seen: dict[str, int] = collections.Counter()
    for domain, (available, _) in VOLUMES.items():
        for row in rows_of(domain, available):
            ids, loss = pieces(tokenizer, row["messages"])
            for got, labels in written.get(tag_of(row["messages"][0]["content"]), []):
                seen[domain] += 1
                marks = [label != -100 for label in labels]
                assert [i for i, on in zip(got, marks, strict=True) if on] == [x for x in labels if x != -100]
                if len(ids) <= CONTEXT:
                    assert (got, marks) == (ids, loss)
                    continue
                assert len(got) <= CONTEXT, "cut to the search's context"
                end = loss.index(True)
                first = ids[end:][: len(got)]  # the answer begins where it began, whatever was lost of the question
                assert any(marks)
                assert domain != "long" or [x for x in labels if x != -100] == first[: sum(marks)]
    assert seen == {domain: wanted for domain, (_, wanted) in VOLUMES.items()}
    assert {d.domain: d.draws for d in report.draws} == seen
    assert sum(len(row["labels"]) for row in table) == sum(d.count.tokens for d in report.draws if d.count)
    assert sum(x != -100 for row in table for x in row["labels"]) == sum(d.supervised_tokens or 0 for d in report.draws)


@pytest.mark.parametrize(
    ("target", "text", "keep", "breaks", "asks"),
    [
        ("skyrl", True, at_the_end, False, False),
        ("trl", True, at_the_end, False, False),
        ("ms-swift", False, at_the_start, True, False),
        ("verl", False, at_the_end, True, True),
        ("automodel", False, at_the_end, True, True),
        ("llamafactory", True, turn_by_turn, True, True),
    ],
)
def test_what_a_trainer_cuts_is_counted(
    problem: tuple[str, MixtureFile],
    tokenizer: Any,
    tmp_path: Path,
    target: str,
    text: bool,
    keep: Any,
    breaks: bool,
    asks: bool,
) -> None:
    """By the target's own rule, row by row, with the draw read from another export; trainers themselves agree."""
    model, mixture = problem
    report = export_mixture(mixture, target, tmp_path / "out", model=model, text=text)
    export_mixture(mixture, "jsonl", tmp_path / "rows")
    wanted = {domain: collections.Counter() for domain in VOLUMES}  # type: ignore[var-annotated]
    for line in (tmp_path / "rows" / "train.jsonl").read_text(encoding="utf-8").splitlines():
        turns = json.loads(line)["messages"]
        domain = tag_of(turns[0]["content"])[1:].split("-")[0]
        marks = with_ends(tokenizer, turns, breaks, asks)
        kept, whole = sum(keep(marks)), list(itertools.chain(*marks))
        wanted[domain] += collections.Counter(
            draws=kept > 0, supervised=kept, cut=kept > 0 and len(whole) > CONTEXT, lost=sum(whole) - kept
        )
    found = {
        d.domain: collections.Counter(
            draws=d.draws, supervised=d.supervised_tokens, cut=d.count.cut, lost=d.count.supervised_lost
        )
        for d in report.draws
        if d.count is not None
    }
    assert found == wanted
    assert wanted["long"]["lost"] > 0
    told = json.loads((tmp_path / "out" / "counts.json").read_text())
    assert [d["supervised_tokens"] for d in told["domains"]] == [wanted[domain]["supervised"] for domain in VOLUMES]
    assert [d["repeat"] for d in told["domains"]] == [rows / available for available, rows in VOLUMES.values()]
    assert (told["counted_with"], told["context"]) == (model, CONTEXT)


def test_a_step_that_is_left_out_is_counted(problem: tuple[str, MixtureFile], tmp_path: Path) -> None:
    _, mixture = problem
    for target, left in (("verl", 391 % 8), ("jsonl", 0)):
        export_mixture(mixture, target, tmp_path / target)
        assert json.loads((tmp_path / target / "counts.json").read_text())["last_step_left_out"] == left


def test_strict_refuses_where_tokens_are_lost(problem: tuple[str, MixtureFile], tmp_path: Path) -> None:
    model, mixture = problem
    with pytest.raises(UsageError, match="--strict counts tokens with the target's tokenizer; add --model"):
        export_mixture(mixture, "trl", tmp_path / "out", strict=True)
    with pytest.raises(UserError, match=r"would lose [\d,]+ tokens with loss at 96 tokens a row"):
        export_mixture(mixture, "trl", tmp_path / "out", model=model, strict=True)
    assert not (tmp_path / "out").exists()
    report = export_mixture(mixture, "trl", tmp_path / "out", model=model, context=2048, strict=True)
    assert report.lost == 0
    assert [d.draws for d in report.draws] == [rows for _, rows in VOLUMES.values()]


def test_rows_that_a_trainer_would_drop_are_mended(problem: tuple[str, MixtureFile], tmp_path: Path) -> None:
    _, mixture = problem
    report = export_mixture(mixture, "llamafactory", tmp_path / "out")
    rows = [json.loads(line)["messages"] for line in (tmp_path / "out" / "train.jsonl").read_text().splitlines()]
    odd = [turns for turns in rows if "[odd-" in turns[-1]["content"]]
    assert len(odd) == VOLUMES["odd"][1]
    for turns in rows:
        roles = [turn["role"] for turn in turns if turn["role"] != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2), "or LLaMA-Factory drops the row"
    drawn = collections.Counter(int(tag_of(turns[-1]["content"])[5:-1]) % 5 for turns in odd)
    ends, opens, twice = drawn[0] + drawn[3], drawn[1], drawn[2]
    assert min(ends, opens, twice) > 0
    for count, words in ((ends, "go on after their last answer"), (opens, "open with the assistant"),
                         (twice, "have neighbouring turns of one role")):  # fmt: skip
        assert any(note.startswith(f"{count} rows {words}") for note in report.notes)
    export_mixture(mixture, "axolotl", tmp_path / "other")
    for line in (tmp_path / "other" / "train.jsonl").read_text().splitlines():
        assert json.loads(line)["messages"][-1]["role"] == "assistant"


def test_the_command_tells_what_the_target_will_draw(problem: tuple[str, MixtureFile], tmp_path: Path) -> None:
    model, mixture = problem
    app = Typer()
    register(app)
    place = Path(mixture.domains[0].source).parent / "mixture.json"
    command = ["export", str(place), "--to", "trl", "--out", str(tmp_path / "a"), "--model", model]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    counted = json.loads((tmp_path / "a" / "counts.json").read_text())["domains"][0]["supervised_tokens"]
    assert re.search(rf"short\s+200\s+2\.50x\s+200\s+{counted:,}\s+0\s+0", result.stdout)
    assert "Rows of more than 96 tokens are cut as in the search: the question" in " ".join(result.stdout.split())
    long = r"Note: of the tokens with loss so many go at 96 tokens a row: .*long \d+%; raise --context"
    assert re.search(long, " ".join(result.stdout.split()))
    result = CliRunner().invoke(app, [*command[:5], str(tmp_path / "b"), "--json"])
    told = json.loads(result.stdout)
    assert told["domains"][0] == {
        "name": "short", "available": 80, "wanted": 200, "draws": 200, "repeat": 2.5, "supervised_tokens": None,
    }  # fmt: skip
    assert told["counted_with"] == "the search's tokenizer"
    report = export_mixture(mixture, "parquet", tmp_path / "c", model=model)
    assert max(map(len, export_table(report).splitlines()[:9])) <= 80


def test_parquet_keeps_calls_thoughts_and_tools(tmp_path: Path) -> None:
    from ideal_proxy.data.rows import read_rows, row_keys, source_fingerprint
    from ideal_proxy.mixture.file import DomainVolume

    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    turns = [
        {"role": "user", "content": "1 + 1"}, {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "2"}, {"role": "assistant", "content": "2", "reasoning_content": "easy"},
    ]  # fmt: skip
    path = tmp_path / "tools.jsonl"
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    plain = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    path.write_text("".join(json.dumps(row) + "\n" for row in (plain, {"messages": turns, "tools": tools})))
    keys = row_keys(list(read_rows(path)))
    domain = DomainVolume(name="t", source=str(path), fingerprint=source_fingerprint(keys), available=2, rows=2)
    export_mixture(MixtureFile(domains=[domain]), "parquet", tmp_path / "out")
    rows = parquet.read_table(tmp_path / "out" / "train.parquet").to_pylist()
    (row,) = [row for row in rows if len(row["messages"]) == 4]
    assert row["messages"][1]["tool_calls"][0]["function"]["name"] == "add"
    assert row["messages"][3]["reasoning_content"] == "easy"
    assert json.loads(row["tools"]) == tools


def loaded(target: str, folder: Path, model: str, tmp_path: Path) -> dict[str, Any]:
    """What the trainer's own pipeline gives, in a process of its own."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-W", "ignore", str(LOADERS / f"load_{target}.py"), str(folder), model]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, done.stderr[-3000:]
    return dict(json.loads(lines[-1].removeprefix("RESULT ")))


@pytest.mark.parametrize(
    ("target", "package", "options"),
    [
        ("trl", "trl", {}),
        ("trl", "trl", {"packed": True}),
        ("hf", "datasets", {}),
    ],
)
def test_the_trainer_itself_draws_these_rows_and_tokens(
    tmp_path: Path, target: str, package: str, options: dict[str, Any]
) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed; .ci/run installs it without what it asks for")
    from ideal_proxy.batching import Batch

    model, path = make(tmp_path / "problem", batch=Batch(tokens=768) if options else None)
    mixture = load_mixture(path)
    report = export_mixture(mixture, target, tmp_path / "out", model=str(model))
    export_mixture(mixture, "jsonl", tmp_path / "rows")
    found = loaded(target, tmp_path / "out", str(model), tmp_path)
    lines = (tmp_path / "rows" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    assert found["times"] == collections.Counter(tag_of(json.loads(line)["messages"][0]["content"]) for line in lines)
    assert found["supervised"] == {d.domain: d.supervised_tokens for d in report.draws}
    assert np.ptp([n for tag, n in found["times"].items() if tag.startswith("[short")]) == 1, "repeats are even"


LLAMA3 = (
    "{{ '<|endoftext|>' }}{% for m in messages %}{{ '<|im_start|>' + m.role + ':' + m.content | trim + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant:' }}{% endif %}"
)
NO_EMPTY_TURN = (
    "{% for m in messages %}{% if not m.content %}{{ raise_exception('empty') }}{% endif %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TWO_BREAKS = NO_EMPTY_TURN.replace("<|im_end|>\n", "<|im_end|> \n\n")
MARKED = (  # the marks hold the line break
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content + '<|im_end|>\n' }}{% endgeneration %}{% else %}{{ m.content + '<|im_end|>\n' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def by_differences(tokenizer: Any, turns: list[dict[str, Any]], breaks: bool, weights: bool) -> list[bool]:
    """Where loss lies: what the conversation with an answer has more than the prompt before it."""
    last = max(n for n, turn in enumerate(turns) if turn["role"] == "assistant")
    said = [{"role": turn["role"], "content": turn["content"]} for turn in turns[: last + 1]]
    text = tokenizer.apply_chat_template(said, tokenize=False)
    spans = []
    for n, turn in enumerate(said):
        if turn["role"] == "assistant" and not (weights and turns[n].get("weight") == 0):
            start = len(tokenizer.apply_chat_template(said[:n], tokenize=False, add_generation_prompt=True))
            upto = tokenizer.apply_chat_template(said[: n + 1], tokenize=False)
            spans.append((start, len(upto if breaks else upto.rstrip())))
    places = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return [any(start < j and end > i for i, j in spans) for start, end in places][:CONTEXT]


def template_problem(folder: Path, model: str, jinja: str | None) -> tuple[str, MixtureFile, dict[str, Any]]:
    """Talks of which some answers carry no loss, and a model with another template."""
    from transformers import AutoTokenizer

    from ideal_proxy.data.rows import read_rows, row_keys, source_fingerprint
    from ideal_proxy.mixture.file import DomainVolume

    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = jinja
    tokenizer.save_pretrained(folder / "model")
    rows = rows_of("talk", 12) + rows_of("short", 6)
    for n, row in enumerate(rows[:12]):
        answers = [turn for turn in row["messages"] if turn["role"] == "assistant"]
        answers[-(n % 2)]["weight"] = n % 3 and 1
    path = folder / "talk.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    fingerprint = source_fingerprint(row_keys(list(read_rows(path))))
    domain = DomainVolume(name="t", source=str(path), fingerprint=fingerprint, available=18, rows=18)
    mixture = MixtureFile(domains=[domain], provenance={"proxy": {"context": CONTEXT}})
    return str(folder / "model"), mixture, {"rows": rows, "tokenizer": tokenizer}


@pytest.mark.parametrize(
    ("target", "breaks", "weights"), [("verl", True, False), ("skyrl", False, False), ("axolotl", False, True)]
)
@pytest.mark.parametrize("jinja", [LLAMA3, NO_EMPTY_TURN, TWO_BREAKS, MARKED])
def test_counts_hold_for_other_templates_and_answers_without_loss(
    problem: tuple[str, MixtureFile], tmp_path: Path, jinja: str, target: str, breaks: bool, weights: bool
) -> None:
    model, mixture, made = template_problem(tmp_path, problem[0], jinja)
    report = export_mixture(mixture, target, tmp_path / "out", model=model, text=target != "verl")
    masks = [
        by_differences(made["tokenizer"], row["messages"], breaks or jinja == MARKED, weights) for row in made["rows"]
    ]
    (draw,) = report.draws
    assert draw.count is not None
    assert draw.supervised_tokens == sum(map(sum, masks))
    assert (draw.draws, draw.count.tokens) == (sum(map(any, masks)), sum(len(mask) for mask in masks if any(mask)))


def test_a_model_without_a_template_is_handed_over_in_the_plain_one(
    problem: tuple[str, MixtureFile], tmp_path: Path
) -> None:
    model, mixture, made = template_problem(tmp_path, problem[0], None)
    for target, says in (("trl", "tokens are those of the plain one"), ("verl", "the trainer needs one of its own")):
        report = export_mixture(mixture, target, tmp_path / target, model=model)
        assert any(note.startswith("the model has no chat template") and says in note for note in report.notes)
    row = parquet.read_table(tmp_path / "trl" / "train.parquet").to_pylist()[0]
    assert made["tokenizer"].decode(row["input_ids"]).startswith("<|")


def test_rows_that_a_template_refuses_are_told_with_what_to_do(
    problem: tuple[str, MixtureFile], tmp_path: Path
) -> None:
    refuses = "{% if messages | length > 2 %}{{ raise_exception('one answer') }}{% endif %}" + NO_EMPTY_TURN
    model, mixture, _ = template_problem(tmp_path, problem[0], refuses)
    with pytest.raises(UserError, match=r"refuses \d+ of 18 rows.*without --model the rows are handed over as turns"):
        export_mixture(mixture, "verl", tmp_path / "out", model=model)
