"""Scores item by item: lm-eval on a folder of tasks, and our own on reference rows, against hand-made answers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import write_rows
from pretrained_folder import pretrained_folder

from ideal_proxy.config import parse_config
from ideal_proxy.data.rows import read_rows
from ideal_proxy.data.template import make_template
from ideal_proxy.errors import UsageError, UserError
from ideal_proxy.proxy.metric import MetricSpec, measure
from ideal_proxy.proxy.process import written_out

NAMES = ("strings", "formats")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrained_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def loaded(model: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return (
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval(),
        AutoTokenizer.from_pretrained(model),
    )


def spec(**settings: Any) -> MetricSpec:
    fields = {"key": "verify-0", "capability": "facts", "split": settings.pop("split", "verify")}
    kind = "harness" if "lm_eval" in settings else "built_in"
    return MetricSpec(**fields, **{kind: json.dumps(settings)})


def keys_of(path: str) -> list[int]:
    return [row.key for row in read_rows(path)]


def items_of(found: Any) -> dict[str, float]:
    return dict(zip(found.items["ids"], found.items["scores"], strict=True))


def logp(loaded: tuple[Any, Any], prompt: str, answer: str) -> float:
    """Log-probability of an answer and its end after a prompt, token by token, in the pretrained folder's template."""
    model, tokenizer = loaded
    head = tokenizer(f"<|user|>\n{prompt}<|end|><|assistant|>\n", add_special_tokens=False)["input_ids"]
    body = tokenizer(f"{answer}<|end|>", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([head + body])).logits[0].double().log_softmax(-1)
    return float(sum(logits[len(head) - 1 + n, token] for n, token in enumerate(body)))


def test_choice_is_the_right_answers_share_of_probability(model: Path, loaded: Any, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"colour of {name} ?", "completion": "red", "choices": ["red", "blue", "green"], "family": n % 2}
        for n, name in enumerate(("rikiba", "rizode", "fana", "tulo"))
    ]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    found = measure(spec(score="choice", path=path, cluster="family"), model, seed=0, keys=keys_of(path))
    wanted = []
    for row in rows:
        each = np.array([logp(loaded, row["prompt"], choice) for choice in row["choices"]])
        wanted.append(np.exp(each[0]) / np.exp(each).sum())
    by_key = dict(zip((f"{key:016x}" for key in keys_of(path)), wanted, strict=True))
    assert items_of(found) == pytest.approx(by_key, rel=1e-4)
    assert found.score == pytest.approx(np.mean(wanted), rel=1e-4)
    assert sorted(found.items["clusters"]) == ["0", "0", "1", "1"]
    few = measure(spec(score="choice", path=path, limit=2), model, seed=0, keys=keys_of(path)[:3])
    assert len(few.items["ids"]) == 2


def test_loss_counts_what_is_marked_and_rows_that_succeeded(model: Path, loaded: Any, tmp_path: Path) -> None:
    rows = [
        {"prompt": "add", "completion": "the answer is 12 .", "key": "12", "success": True},
        {"prompt": "take", "completion": "so it is 7 , 7", "key": ["7"], "success": True},
        {"prompt": "fail", "completion": "no 3", "key": "3", "success": False},
    ]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    one = spec(score="loss", path=path, marks="key", where="success")
    found = measure(one, model, seed=0, keys=keys_of(path))
    assert len(found.items["ids"]) == 2
    template = make_template(loaded[1])
    for row in list(read_rows(path))[:2]:
        rendered = template.render_row(row)
        ((ids, _, places),) = template.tokens_with_places([(rendered.text, rendered.spans)])
        with torch.no_grad():
            logits = loaded[0](input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
        part = row.raw["key"] if isinstance(row.raw["key"], str) else row.raw["key"][0]
        starts = [n for n in range(rendered.spans[-1][0], len(rendered.text)) if rendered.text.startswith(part, n)]
        marked = [n for n, (first, end) in enumerate(places) if any(first < s + len(part) and end > s for s in starts)]
        loss = -float(np.mean([float(logits[n - 1, ids[n]]) for n in marked]))
        assert items_of(found)[f"{row.key:016x}"] == pytest.approx(loss, rel=1e-4)
    with pytest.raises(UserError, match="needs the column 'nowhere'"):
        measure(spec(score="loss", path=path, where="nowhere"), model, seed=0, keys=keys_of(path))


def greedy(loaded: Any, prompt: str, most: int) -> str:
    """Answer token by token, without a cache and without `generate`."""
    model, tokenizer = loaded
    ids = tokenizer(f"<|user|>\n{prompt}<|end|><|assistant|>\n", add_special_tokens=False)["input_ids"]
    end = tokenizer("<|end|>", add_special_tokens=False)["input_ids"][-1]
    head = len(ids)
    with torch.no_grad():
        for _ in range(most):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] in {end, tokenizer.eos_token_id}:
                break
    return tokenizer.decode([t for t in ids[head:] if t not in {end, tokenizer.eos_token_id}], skip_special_tokens=True)


def test_exact_match_is_of_greedy_answers(model: Path, loaded: Any, tmp_path: Path) -> None:
    prompts = [row.prompt for row in read_rows("demo:facts?rows=12&seed=7")]
    said = {prompt: greedy(loaded, prompt, 8) for prompt in prompts}
    rows = [
        {"prompt": prompt, "completion": f" {text}  " if n % 2 and text.split() else f"{text} no"}
        for n, (prompt, text) in enumerate(said.items())
    ]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    found = measure(spec(score="exact_match", path=path, max_new_tokens=8), model, seed=0, keys=keys_of(path))
    wanted = {f"{row.key:016x}": float(n % 2) for n, row in enumerate(read_rows(path)) if said[row.prompt].split()}
    assert {name: items_of(found)[name] for name in wanted} == wanted
    assert set(wanted.values()) == {0.0, 1.0}


def test_pass_at_k_is_unbiased(model: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [{"prompt": "colour of fana ?", "completion": "red"}])
    (tmp_path / "checks.py").write_text(
        "seen = []\ndef every_fourth(answer, row):\n    assert row['completion'] == 'red'\n"
        "    seen.append(answer)\n    return len(seen) % 4 == 0\n"
    )
    metric = spec(score="pass@2", path=path, check="checks:every_fourth", samples=8, max_new_tokens=6, temperature=1.5)
    metric = dataclasses.replace(metric, folder=str(tmp_path))
    import sys

    sys.path.append(str(tmp_path))
    try:
        found = measure(metric, model, seed=0, keys=keys_of(path))
        import checks  # type: ignore[import-not-found]

        assert len(set(checks.seen)) > 1  # sampled, not one answer eight times
    finally:
        sys.path.remove(str(tmp_path))
    assert found.score == pytest.approx(1 - (6 * 5) / (8 * 7))  # two of eight right


TASK = """
task: colours
dataset_path: json
dataset_kwargs:
  data_files: {{test: {path}}}
output_type: multiple_choice
test_split: test
doc_to_text: "colour of {{{{name}}}} ?"
doc_to_target: "{{{{answer}}}}"
doc_to_choice: [red, blue, green]
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
  - metric: acc_norm
    aggregation: mean
    higher_is_better: true
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    path = folder / "colours.jsonl"
    names = [f"name{n}" for n in range(40)]
    write_rows(path, [{"name": name, "answer": n % 3, "form": n // 4} for n, name in enumerate(names)])
    (folder / "colours.yaml").write_text(TASK.format(path=path))
    return folder


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra: lm-eval)")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("offline")
@pytest.mark.filterwarnings("ignore")
def test_lm_eval_judges_a_folder_of_tasks_item_by_item(model: Path, loaded: Any, tasks: Path) -> None:
    settings = {"lm_eval": "colours", "tasks": str(tasks), "value": "acc", "cluster": "form"}
    halves = {split: measure(spec(split=split, **settings), model, seed=0) for split in ("search", "verify")}
    ids = {split: set(found.items["ids"]) for split, found in halves.items()}
    assert not ids["search"] & ids["verify"]
    assert len(ids["search"] | ids["verify"]) == 40
    for split, found in halves.items():
        other = halves["verify" if split == "search" else "search"]
        assert not set(found.items["clusters"]) & set(other.items["clusters"])  # a template stands on one side
        for name, score in items_of(found).items():
            number = int(name)
            lm, tokenizer = loaded
            head = tokenizer(f"colour of name{number} ?")["input_ids"]
            each = []
            for choice in ("red", "blue", "green"):
                whole = tokenizer(f"colour of name{number} ? {choice}")["input_ids"]
                with torch.no_grad():
                    logits = lm(input_ids=torch.tensor([whole])).logits[0].double().log_softmax(-1)
                each.append(sum(float(logits[n - 1, whole[n]]) for n in range(len(head), len(whole))))
            assert score == float(int(np.argmax(each)) == number % 3)
    few = measure(spec(**settings, limit=5), model, seed=0)
    assert len(few.items["ids"]) == 5
    assert set(few.items["ids"]) < ids["verify"]


@pytest.mark.usefixtures("offline")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lm_eval": "colours"}, r"name one of the task's numbers with metric\.value: 'acc,none', 'acc_norm,none'"),
        ({"lm_eval": "colours", "value": "acc", "higher_is_better": False}, "lm-eval says higher_is_better: true"),
        ({"lm_eval": "shades"}, "lm-eval cannot load the task"),
        ({"lm_eval": "colours", "value": "acc", "cluster": "template"}, "have no key 'template'"),
    ],
)
def test_a_task_that_cannot_be_judged_is_one_sentence(model: Path, tasks: Path, settings: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        measure(spec(tasks=str(tasks), limit=3, **settings), model, seed=0)


def test_what_the_run_file_may_say_of_a_score() -> None:
    def metric(**settings: Any) -> Any:
        named = {
            "domains": [{"name": n, "path": f"demo:{n}"} for n in NAMES],
            "capabilities": [{"name": "a", "path": "demo:strings", "metric": settings}],
        }
        return parse_config(named).capabilities[0].metric

    assert not metric(score="loss").higher_is_better
    assert metric(lm_eval="gsm8k", shots=0, limit=200).settings(("lm_eval", "shots", "limit")) == {
        "lm_eval": "gsm8k", "shots": 0, "limit": 200,
    }  # fmt: skip
    for settings, message in (
        ({"lm_eval": "gsm8k", "score": "choice"}, "give one of command, python, lm_eval, score"),
        ({"score": "accuracy"}, "score"),
        ({"score": "choice", "shots": 3}, "shots is not for score"),
        ({"python": "a:b", "limit": 3}, "limit is not for python"),
    ):
        with pytest.raises(UsageError, match=message):
            metric(**settings)


def test_values_are_filled_in_once() -> None:
    assert written_out("a {x} {y}", {"x": "{y}", "y": 2}, "it") == ["a", "{y}", "2"]
