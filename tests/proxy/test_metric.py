"""Metrics on their own: commands and functions that read a real model, and every way in which they can fail."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from builders import ROOT, TESTS, make_context, spec, write_rows

from ideal_proxy.config import parse_config
from ideal_proxy.data.tokenizer import train_tokenizer
from ideal_proxy.errors import UsageError, UserError
from ideal_proxy.pipeline.overrides import override
from ideal_proxy.proxy.metric import MetricSpec, export_model, measure, parse_score
from ideal_proxy.proxy.model import build_proxy
from ideal_proxy.proxy.process import ProgramStopped
from ideal_proxy.store import is_complete
from ideal_proxy.swarm.context import load_result
from ideal_proxy.swarm.scheduler import Swarm, warm_spec

HERE = str(TESTS)
COUNT = (  # reads the weights, so that only the right model gives the right answer
    "import json, os, sys; from safetensors.numpy import load_file; "
    "w = load_file(os.path.join(sys.argv[1], 'model.safetensors'))['model.norm.weight']; "
)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["one two three four"] * 3, 270)


@pytest.fixture(scope="module")
def exported(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("model") / "exported"
    model = build_proxy("0.1M", len(tokenizer), 32, 7)
    model.model.norm.weight.data.fill_(1.25)
    export_model(model, tokenizer, folder)
    return folder


def command(code: str, **changes: Any) -> MetricSpec:
    """A metric whose command runs some Python; `{model}` is its first argument."""
    quoted = code.replace("'", "'\"'\"'")
    fields = {
        "key": "search-0",
        "capability": "coding",
        "split": "search",
        "command": f"python -c '{quoted}' {{model}}",
    }
    return MetricSpec(**{**fields, **changes})


def function(name: str, **changes: Any) -> MetricSpec:
    fields = {"key": "search-0", "capability": "coding", "split": "verify", "folder": HERE}
    return MetricSpec(**{**fields, "python": f"metric_functions:{name}", **changes})


def test_a_command_is_given_the_model_the_split_and_the_seed(exported):
    code = COUNT + (
        "print('loading'); print(json.dumps({'score': float(w.sum()) + int(os.environ['IDEAL_PROXY_SEED']) * 1000"
        " + (os.environ['IDEAL_PROXY_SPLIT'] == 'verify') * 100, 'items': 3})); print()"
    )
    found = measure(command(code, split="verify"), exported, seed=2)
    width = json.loads((exported / "config.json").read_text())["hidden_size"]
    assert found.score == pytest.approx(1.25 * width + 2000 + 100)
    assert 0 < found.seconds < 60


def test_the_command_runs_in_its_folder_with_this_interpreter_and_its_script_is_known(tmp_path, exported):
    (tmp_path / "score.py").write_text("import sys; print(len(sys.executable) + float(sys.argv[2] == 'search'))\n")
    metric = command("", command="python score.py {model} {split}", folder=str(tmp_path))
    first = measure(metric, exported, seed=0)
    bindir = Path(sys.executable).parent
    assert first.score == len(str(bindir / "python")) + 1
    (tmp_path / "score.py").write_text("print(1)\n")
    second = measure(metric, exported, seed=0)
    assert second.score == 1
    assert first.script
    assert first.script != second.script


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "import sys; print('cannot read item 7', file=sys.stderr); sys.exit(3)",
            "exit status 3; its last words: cannot",
        ),
        ("import os; os.kill(os.getpid(), 9)", "ended with signal 9"),
        ("pass", "printed nothing"),
        ("print('accuracy: 0.4')", "ended with the line 'accuracy: 0.4'"),
        ("print('NaN')", "gave nan; the score must be a finite number"),
        ("print('9' * 400)", "gave an integer beyond every float; the score must be a finite number"),
        ("print('[' * 60000)", "its last line must be"),
        ("print('Infinity')", "gave inf"),
        ("print('true')", "must be a JSON number"),
        ("print('[1, 2]')", "must be a JSON number"),
        ("print('{\"accuracy\": 0.4}')", "needs the key `score`"),
    ],
)
def test_a_command_that_fails_is_one_sentence(exported, code, message):
    with pytest.raises(UserError) as caught:
        measure(command(code), exported, seed=0)
    assert message in str(caught.value)
    assert str(caught.value).startswith("the metric of coding (python -c ")
    assert "\n" not in str(caught.value)


def test_a_command_that_is_not_there(exported):
    with pytest.raises(UserError, match=r"cannot be started \(No such file or directory: nowhere-to-be-found\)"):
        measure(command("", command="nowhere-to-be-found {model}"), exported, seed=0)
    with pytest.raises(UserError, match="put its quotes right"):
        measure(command("", command="python 'x {model}"), exported, seed=0)


def test_a_command_is_ended_when_it_takes_too_long_and_so_is_what_it_started(exported, tmp_path):
    pid = tmp_path / "pid"
    code = (
        "import subprocess, sys, time; p = subprocess.Popen(['sleep', '60']); "
        f"open({str(pid)!r}, 'w').write(str(p.pid)); print('at item 2', file=sys.stderr); time.sleep(60)"
    )
    started = time.monotonic()
    with pytest.raises(UserError, match=r"longer than 1 s and was ended; its last words: at item 2; raise metric.time"):
        measure(command(code, timeout_seconds=1.0), exported, seed=0)
    assert time.monotonic() - started < 20
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and Path(f"/proc/{pid.read_text()}").exists():
        state = Path(f"/proc/{pid.read_text()}/stat").read_text().split()[2]
        if state == "Z":
            break
        time.sleep(0.05)
    else:
        assert not Path(f"/proc/{pid.read_text()}").exists()


def test_a_command_stops_when_it_is_told_to(exported):
    with pytest.raises(ProgramStopped):
        measure(command("import time; time.sleep(60)"), exported, seed=0, should_stop=lambda: True)


def test_a_function_gets_the_model_and_leaves_the_random_states_alone(exported, tmp_path):
    import torch

    (tmp_path / "colorsys.py").write_text(
        "raise ImportError('a file beside a metric took a standard module's place')\n"
    )
    (tmp_path / "helper.py").write_text("PART = 1000\n")
    (tmp_path / "scored.py").write_text(
        "import colorsys, random, numpy, torch, helper\n"
        "def norm(model, tokenizer, split):\n"
        "    assert not model.training and not torch.is_grad_enabled() and tokenizer.eos_token == '<|end|>'\n"
        "    assert model.config.eos_token_id == tokenizer.eos_token_id and model.config.use_cache\n"
        "    ids = tokenizer('one two', return_tensors='pt').input_ids\n"
        "    assert model.generate(ids, max_new_tokens=2).shape[1] > ids.shape[1]\n"
        "    return model.model.norm.weight.sum() + helper.PART * (split == 'verify')\n"
        "def draws(model, tokenizer, split):\n"
        "    return {'score': float(torch.rand(1)) + random.random() + numpy.random.rand()}\n"
    )
    width = json.loads((exported / "config.json").read_text())["hidden_size"]
    metric = function("", python="scored:norm", folder=str(tmp_path))
    assert measure(metric, exported, seed=0).score == pytest.approx(1.25 * width + 1000)
    before = torch.random.get_rng_state()
    draws = function("", python="scored:draws", folder=str(tmp_path))
    first, again, other = (measure(draws, exported, seed=seed).score for seed in (3, 3, 4))
    assert first == again != other
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken", "failed: ZeroDivisionError: no items were judged"),
        ("wrong", "returned 'good'"),
        ("nothing_there", "cannot be imported"),
        ("HERE", "is no function"),
    ],
)
def test_a_function_that_fails_is_one_sentence(exported, name, message):
    with pytest.raises(UserError, match=message):
        measure(function(name), exported, seed=0)


def test_a_function_that_takes_too_long(exported):
    started = time.monotonic()
    with pytest.raises(UserError, match=r"took longer than 0\.2 s"):
        measure(function("slow", timeout_seconds=0.2), exported, seed=0)
    assert time.monotonic() - started < 20


@pytest.mark.parametrize(("text", "score"), [("3", 3.0), ("x\n 0.25 \n\n", 0.25), ('{"score": -1e-3}', -0.001)])
def test_scores_are_read(text, score):
    assert parse_score(text, "it")[0] == score


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ({}, "give one of command, python, lm_eval, score and reported"),
        ({"command": "score", "python": "a:b"}, "give one of command, python, lm_eval, score and reported"),
        ({"command": "python score.py"}, r"must hold \{model\}"),
        ({"python": "score.py"}, r"package\.module:function"),
        ({"python": "a:b", "scale": 0}, "noise, base or a number above 0"),
        ({"python": "a:b", "timeout": 3}, "did you mean 'timeout_seconds'"),
    ],
)
def test_the_run_file_says_what_is_wrong(metric, message):
    with pytest.raises(UsageError, match=message):
        config(metric)


def config(metric: dict[str, Any], **changes: Any):
    return parse_config({
        "domains": [{"name": "a", "path": "a"}, {"name": "b", "path": "b"}],
        "capabilities": [{"name": "a", "path": "a", "metric": metric}],
        **changes,
    })


def test_gradients_are_of_losses():
    with pytest.raises(UsageError, match="a is judged by a metric"):
        config({"python": "a:b"}, gradients="implicit")
    with pytest.raises(UsageError, match="derivatives of losses"):
        override(config({"python": "a:b"}), gradients="unrolled")


def test_metrics_run_beside_the_run_file(tmp_path):
    (tmp_path / "mix.yaml").write_text(
        "domains: [{name: a, path: a}, {name: b, path: b}]\n"
        "capabilities: [{name: a, path: a, metric: {command: 'python score.py {model}'}}]\n"
    )
    from ideal_proxy.config import load_config

    metric = load_config(tmp_path / "mix.yaml").capabilities[0].metric
    assert metric is not None
    assert metric.folder == str(tmp_path)


def test_the_example_of_the_page_counts_right_answers(tmp_path):
    """The page's own script and command, on a proxy that was taught the answers."""
    from ideal_proxy.data.rows import read_rows
    from ideal_proxy.data.template import make_template
    from ideal_proxy.data.tokenizing import tokenize_rows
    from ideal_proxy.proxy.records import TrainSettings
    from ideal_proxy.proxy.training import train

    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    run_file, script = (re.search(rf"```{kind}\n(.*?)```", page, re.DOTALL)[1] for kind in ("yaml", "python"))  # type: ignore[index]
    (tmp_path / "score.py").write_text(script, encoding="utf-8")
    rows = [{"prompt": f"{n} + {n}", "completion": f"{2 * n}"} for n in range(12)]
    reference = tmp_path / "data" / "maths.reference.jsonl"
    write_rows(reference, rows)
    taught = train_tokenizer([f"{n} + {n}" for n in range(24)] * 3, 270)
    tokens = tokenize_rows(list(read_rows(str(reference))), make_template(taught), 32)
    model = build_proxy("0.1M", len(taught), 32, 7)
    given = parse_config({
        "domains": [{"name": "a", "path": "a"}, {"name": "b", "path": "b"}],
        **yaml.safe_load(run_file),
    })
    metric = given.capabilities[0].metric
    assert metric is not None
    assert metric.command is not None
    spec = command("", command=metric.command, folder=str(tmp_path))
    order = np.concatenate([np.random.default_rng(k).permutation(12) for k in range(80)])
    train(model, (np.zeros(len(order), dtype=int), order), [tokens], TrainSettings(learning_rate=1e-2, batch_rows=12))
    export_model(model, taught, tmp_path / "taught")
    # It learnt all twelve answers; the page now asks for others in some, and judges one half of them.
    for n in (0, 3, 4, 7, 9):
        rows[n]["completion"] = "none"
    write_rows(reference, rows)
    half = [row for row in rows if hashlib.sha256(row["prompt"].encode()).digest()[0] % 2 == 1]
    right = sum(row["completion"] != "none" for row in half)
    assert 0 < right < len(half) < 12
    found = measure(dataclasses.replace(spec, split="verify"), tmp_path / "taught", seed=0)
    assert found.score == pytest.approx(right / len(half))


# ---------------------------------------------------------------- in a swarm


@pytest.fixture(scope="module")
def swarm_folder(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("metric-swarm")
    context = make_context(folder / "swarm")
    tokenizer.save_pretrained(str(folder / "swarm" / "tokenizer"))
    with Swarm(context, folder, workers=1) as swarm:
        assert not swarm.run([warm_spec(context, 0)]).failures
        yield folder, context, swarm


def counted(folder: Path, *, fail: str = "") -> MetricSpec:
    """A metric that writes down each call and gives the norm of the model's embeddings."""
    code = (
        "import json, os, sys; from safetensors.numpy import load_file; "
        f"open({str(folder / 'calls')!r}, 'a').write(os.environ['IDEAL_PROXY_CAPABILITY'] + '\\n'); {fail} "
        "w = load_file(os.path.join(sys.argv[1], 'model.safetensors'))['model.embed_tokens.weight']; "
        "print(json.dumps(float((w.astype('float64') ** 2).sum())))"
    )
    return command(code)


def test_a_run_is_measured_once_and_its_model_goes(swarm_folder, tmp_path):
    folder, _, swarm = swarm_folder
    metric = counted(tmp_path)
    other = dataclasses.replace(metric, key="search-1", capability="safety", keep_model=False)
    runs = [spec("measured", (40, 200), metrics=(metric, other)), spec("far", (200, 40), metrics=(metric,))]
    results = swarm.run(runs).results
    assert (tmp_path / "calls").read_text().split() == ["coding", "coding", "safety"]
    assert results["measured"].scores["search-0"] == results["measured"].scores["search-1"]
    assert results["measured"].scores["search-0"] != results["far"].scores["search-0"] > 0
    assert results["far"].seconds > results["far"].metrics["metric_seconds"] > 0
    assert sorted(path.name for path in (folder / "runs" / "far").iterdir()) == [
        "complete", "metrics.json", "row_losses.npz",
    ]  # fmt: skip
    plain = swarm.run([spec("plain", (40, 200))]).results["plain"]
    assert plain.losses["twos"].mean == results["measured"].losses["twos"].mean  # a metric changes nothing else
    assert not swarm.run(runs).failures
    assert len((tmp_path / "calls").read_text().split()) == 3
    with pytest.raises(UserError, match="holds another run"):
        swarm.run([dataclasses.replace(runs[0], metrics=(counted(tmp_path / "x"),))])


def test_a_kept_model_loads(swarm_folder, tmp_path):
    from transformers import AutoModelForCausalLM

    folder, _, swarm = swarm_folder
    metric = dataclasses.replace(counted(tmp_path), keep_model=True)
    score = swarm.run([spec("kept", (40, 40), metrics=(metric,))]).results["kept"].scores["search-0"]
    model = AutoModelForCausalLM.from_pretrained(folder / "runs" / "kept" / "exported")
    assert float((model.model.embed_tokens.weight.detach().double() ** 2).sum()) == pytest.approx(score, rel=1e-6)


def test_a_failing_metric_is_tried_twice_then_reported_and_never_costs_the_training_again(swarm_folder, tmp_path):
    folder, _, swarm = swarm_folder
    told: list[str] = []
    once = f"p = {str(tmp_path / 'again')!r}; e = os.path.exists(p); open(p, 'w').close(); e or sys.exit('gone');"
    always = "sys.exit('no items');"
    runs = [
        spec("recovers", (40, 80), metrics=(counted(tmp_path, fail=once),)),
        spec("fails", (80, 40), metrics=(counted(tmp_path, fail=always),)),
    ]
    outcome = swarm.run(runs, on_event=lambda event: told.append(f"{event.kind} {event.run}"))
    assert list(outcome.results) == ["recovers"]
    assert outcome.failures["fails"].endswith("ended with exit status 1; its last words: no items")
    assert told.count("retried recovers") == told.count("retried fails") == told.count("failed fails") == 1
    steps = [entry for entry in told if entry == "step fails"]
    assert len(steps) < 2 * 8  # the second time only the metric ran
    trained = folder / "runs" / "fails" / "trained.json"
    assert trained.exists()
    losses = json.loads(trained.read_text())["metrics"]["train_loss"]
    mended = dataclasses.replace(runs[1], metrics=(dataclasses.replace(runs[1].metrics[0], timeout_seconds=9.0),))
    (folder / "runs" / "fails" / "scores.json").write_text(
        json.dumps({"run": json.loads(trained.read_text())["run"], "scores": {
            "search-0": {"score": 5.0, "seconds": 1.0, "script": ""}}})
    )  # fmt: skip
    begun: list[str] = []
    result = swarm.run([mended], on_event=lambda event: begun.append(event.kind)).results["fails"]
    assert result.scores == {"search-0": 5.0}  # what was measured before a stop is not measured again
    assert "step" not in begun
    assert result.metrics["train_loss"] == losses
    assert is_complete(folder / "runs" / "fails")


def test_a_worker_killed_in_the_middle_of_a_metric_loses_no_training(swarm_folder, tmp_path):
    folder, _, swarm = swarm_folder
    code = (
        f"p = {str(tmp_path / 'killed')!r}\nif not os.path.exists(p): open(p, 'w').close(); os.kill(os.getppid(), 9)\n"
    )
    told: list[str] = []
    (tmp_path / "score.py").write_text(
        "import json, os, sys\nfrom safetensors.numpy import load_file\n" + code
        + "w = load_file(os.path.join(sys.argv[1], 'model.safetensors'))['model.embed_tokens.weight']\n"
        "print(float((w.astype('float64') ** 2).sum()))\n"
    )  # fmt: skip
    metric = command("", command="python score.py {model}", folder=str(tmp_path))
    outcome = swarm.run([spec("killed", (60, 200), metrics=(metric,))], on_event=lambda e: told.append(e.kind))
    assert not outcome.failures
    assert told.count("retried") == 1
    after = told[told.index("retried") :]
    assert "step" not in after
    twin = swarm.run([spec("twin", (60, 200), metrics=(counted(tmp_path),))]).results["twin"]
    found = load_result(folder, "killed")
    assert found.scores["search-0"] == pytest.approx(twin.scores["search-0"], rel=1e-12)
    assert found.losses["fives"].mean == twin.losses["fives"].mean
