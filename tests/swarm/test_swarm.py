"""Many proxies: same bits with any number of workers, through kills, failures, Ctrl-C and resumes."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from builders import ROOT, SPECS, VOCABULARY, gone, make_context, make_rows, run_swarm, same, spec
from forked import Forked

from ideal_proxy.errors import UserError
from ideal_proxy.proxy.model import proxy_shape
from ideal_proxy.store import is_complete
from ideal_proxy.swarm.context import RunSpec, draw_run, load_context, load_result
from ideal_proxy.swarm.scheduler import Swarm, SwarmEvent, warm_spec


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference: one worker, nothing goes wrong."""
    folder = tmp_path_factory.mktemp("alone")
    context = make_context(folder / "context")
    with Swarm(context, folder, workers=1) as swarm:
        assert not swarm.run([warm_spec(context, 0)]).failures
        assert not swarm.run(SPECS).failures
    return folder


def test_the_products_of_a_run_are_counted_row_by_row(alone: Path) -> None:
    context = load_context(alone / "context")
    shape = proxy_shape("0.1M", VOCABULARY)
    layers = shape.layers * (4 * shape.width**2 + 3 * shape.width * shape.hidden)

    def forward(length: int, labels: int) -> int:
        return 2 * (layers * length + shape.layers * shape.width * length**2 + VOCABULARY * shape.width * labels)

    judged = sum(
        forward(int(length), int(labels))
        for name in context.references
        for length, labels in zip(
            context.reference_rows(name).lengths, context.reference_rows(name).supervised_tokens, strict=True
        )
    )
    assert load_result(alone, "nothing").metrics["flops"] == pytest.approx(judged, rel=1e-12)
    domains = context.domain_rows()
    trained = sum(
        3 * forward(int(domains[d].lengths[r]), int(domains[d].supervised_tokens[r]))
        for d, r in zip(*draw_run(context, domains, SPECS[0]), strict=True)
    )
    assert load_result(alone, "few-twos").metrics["flops"] == pytest.approx(trained + judged, rel=1e-12)
    warm = load_result(alone, "warm").metrics
    assert warm["supervised_tokens"] == warm["tokens"] - warm["rows"]  # it learns all but a row's first token


def test_damaged_token_rows_are_written_anew(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    files = [*sorted((tmp_path / "domains").rglob("*.npy")), tmp_path / "references" / "0000" / "meta.json"]
    sound = [path.read_bytes() for path in files]
    for path, content in zip(files, sound, strict=True):
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        make_context(tmp_path)
        assert path.read_bytes() == content
    assert len(context.domain_rows()) == len(context.domains)


def test_the_numbers_mean_something(alone: Path) -> None:
    warm, nothing = load_result(alone, "warm"), load_result(alone, "nothing")
    assert np.array_equal(warm.losses["twos"].loss_sum, nothing.losses["twos"].loss_sum)
    few_twos, few_fives = load_result(alone, "few-twos"), load_result(alone, "few-fives")
    assert few_twos.losses["fives"].mean < few_fives.losses["fives"].mean - 0.2
    assert few_fives.losses["twos"].mean < few_twos.losses["twos"].mean - 0.2
    assert few_twos.losses["fives"].mean < nothing.losses["fives"].mean - 0.5
    again, few = load_result(alone, "again"), load_result(alone, "few-fives")
    assert not np.array_equal(again.losses["twos"].loss_sum, few.losses["twos"].loss_sum)
    assert few.metrics["steps"] == 23  # 360 rows in steps of 16
    assert few.losses["twos"].tokens.sum() == make_rows(30, 2, 2).supervised.sum()


def test_kills_and_failures_cost_only_their_own_runs(alone: Path, tmp_path: Path) -> None:
    context = make_context(tmp_path / "context")
    killed: list[str] = []
    events: list[SwarmEvent] = []

    def on_event(event: SwarmEvent) -> None:
        events.append(event)
        if event.kind == "step" and event.run == "few-fives" and not killed:
            killed.append(event.run)
            os.kill(event.pid, signal.SIGKILL)

    bad = spec("diverges", (40, 40), learning_rate=1e30)
    with Swarm(context, tmp_path, workers=2, checkpoint_seconds=0.0) as swarm:
        swarm.run([warm_spec(context, 0)])
        outcome = swarm.run([*SPECS, bad], on_event=on_event)
    assert killed == ["few-fives"]
    assert list(outcome.failures) == ["diverges"]
    assert "smaller learning rate" in outcome.failures["diverges"]
    assert list(outcome.results) == [s.id for s in SPECS]
    for run in SPECS:
        assert same(alone, tmp_path, run.id)
    # A killed worker costs no more than the steps since the last checkpoint, here one.
    last = max(e.done for e in events[: [e.kind for e in events].index("retried")] if e.run == "few-fives")
    assert load_result(tmp_path, "few-fives").metrics["steps_resumed"] >= last - 1
    assert all(e.loss is None or 0 < e.loss < 5 for e in events)
    losses = [e.loss for e in events if e.kind == "step" and e.run == "few-twos" and e.done == e.steps]
    assert losses == pytest.approx(load_result(tmp_path, "few-twos").metrics["train_loss"][-1:], abs=1e-6)
    assert {e.worker for e in events if e.kind == "started"} == {0, 1}
    retried = [event.run for event in events if event.kind == "retried"]
    assert sorted(retried) == ["diverges", "few-fives"]
    assert not is_complete(tmp_path / "runs" / "diverges")
    # Long runs first; the estimate exists and reaches nothing left.
    assert [e.run for e in events if e.kind == "started"][:2] == ["again", "few-fives"]
    assert events[-1].runs_done == events[-1].runs == 5
    assert events[-1].fraction == pytest.approx(1.0)
    assert any(event.seconds_left for event in events if event.kind == "step")
    fractions = [event.fraction for event in events if event.kind == "finished"]
    assert fractions == sorted(fractions)


def test_complete_runs_are_skipped_and_never_mistaken(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = load_context(alone / "context")
    events: list[SwarmEvent] = []
    with monkeypatch.context() as without:
        without.delattr("ideal_proxy.swarm.local.LocalPool._start")  # no worker is needed
        outcome = run_swarm(SPECS, context, alone, on_event=events.append)
    assert [event.kind for event in events] == ["skipped"] * len(SPECS)
    assert set(outcome.results) == {s.id for s in SPECS}
    with pytest.raises(UserError, match="holds another run"):
        run_swarm([dataclasses.replace(SPECS[0], seed=7)], context, alone)
    with pytest.raises(UserError, match="same id"):
        run_swarm([SPECS[0], SPECS[0]], context, alone)
    with pytest.raises(UserError, match="not complete"):
        load_result(alone, "unknown")


def test_ctrl_c_saves_a_checkpoint_and_the_next_call_goes_on(alone: Path, tmp_path: Path) -> None:
    context = make_context(tmp_path / "context")
    pids: list[int] = []

    def interrupt(event: SwarmEvent) -> None:
        pids.append(event.pid)
        if event.kind == "step" and event.run == "few-fives":
            raise KeyboardInterrupt

    shutil.copytree(alone / "runs" / "warm", tmp_path / "runs" / "warm")
    with pytest.raises(KeyboardInterrupt):
        run_swarm([SPECS[1]], context, tmp_path, workers=1, on_event=interrupt)
    assert (tmp_path / "runs" / "few-fives" / "checkpoint.safetensors").is_file()
    assert all(gone(pid) for pid in pids if pid)
    outcome = run_swarm([SPECS[1]], context, tmp_path, workers=1)
    assert outcome.results["few-fives"].metrics["steps_resumed"] > 0
    assert same(alone, tmp_path, "few-fives")


SCRIPT = """
import sys
from ideal_proxy.swarm.context import RunSpec, load_context
from ideal_proxy.swarm.scheduler import Swarm
context = load_context(sys.argv[1])
spec = RunSpec(id="long", rows=(20000, 0), volumes=(1, 1), seed=0, role="design", learning_rate=1e-3)
with Swarm(context, sys.argv[2], workers=1) as swarm:
    swarm.run([spec], on_event=lambda e: print(e.kind, e.pid, flush=True))
"""


def test_no_worker_outlives_a_killed_parent(tmp_path: Path) -> None:
    make_context(tmp_path / "context", warm=False)
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "context"), str(tmp_path)],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as parent:  # fmt: skip
        assert parent.stdout is not None
        line = parent.stdout.readline()
        while not line.startswith("step"):
            line = parent.stdout.readline()
            assert line
        worker = int(line.split()[1])
        assert not gone(worker)
        parent.kill()
    deadline = time.monotonic() + 10
    while not gone(worker):
        assert time.monotonic() < deadline, "the worker lives on"
        time.sleep(0.05)


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    make_context(tmp_path / "context", warm=False)
    with Forked(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "context"), str(tmp_path)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as parent:  # fmt: skip
        assert parent.stdout is not None
        while not (line := parent.stdout.readline()).startswith("step"):
            assert line
        worker = int(line.split()[1])
        os.kill(worker, signal.SIGSTOP)  # a worker that cannot save: the first Ctrl-C waits for it
        parent.send_signal(signal.SIGINT)
        time.sleep(1.0)
        assert parent.poll() is None
        parent.send_signal(signal.SIGINT)
        assert parent.wait(3) != 0
    assert gone(worker)


def test_draws_are_nested_and_stay_in_what_a_proxy_sees(tmp_path: Path) -> None:
    context = make_context(tmp_path / "context")
    rows = context.domain_rows()
    small = draw_run(context, rows, spec("a", (50, 30)))
    large = draw_run(context, rows, spec("b", (80, 30)))
    twice = draw_run(context, rows, spec("c", (400, 0)))
    kept = {tuple(pair) for pair in np.stack(small, 1).tolist()}
    assert len(kept) == 80
    assert kept < {tuple(pair) for pair in np.stack(large, 1).tolist()}
    assert len(np.unique(twice[1])) == 200  # of 220: the first 200 of the permutation, each twice
    assert np.bincount(twice[1])[np.unique(twice[1])].tolist() == [2] * 200
    inside = [pair for pair in np.stack(large, 1).tolist() if tuple(pair) in kept]
    assert inside == np.stack(small, 1).tolist()  # the same order


def test_a_context_is_kept_or_refused(tmp_path: Path) -> None:
    context = make_context(tmp_path / "context")
    again = load_context(tmp_path / "context")
    assert again == context
    assert make_context(tmp_path / "context") == context
    with pytest.raises(UserError, match="other data or settings"):
        make_context(tmp_path / "context", init_seed=1)
    with pytest.raises(UserError, match=r"'twos'.* 500 rows but only 220"):
        make_context(tmp_path / "other", available=(500, 200))
    assert json.loads(json.dumps(SPECS[0].to_json())) == SPECS[0].to_json()
    assert RunSpec.from_json(json.loads(json.dumps(SPECS[0].to_json()))) == SPECS[0]
