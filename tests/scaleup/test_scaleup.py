"""Full-size SFT from a mixture file alone: same masks, sum over sum, resume, safetensors, honest comparison."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
import torch
from builders import board, collate, environment, write_rows

from ideal_proxy.batching import Batch, Loss
from ideal_proxy.data.rows import read_rows, row_keys, source_fingerprint
from ideal_proxy.data.template import make_template
from ideal_proxy.data.tokenizing import tokenize_rows
from ideal_proxy.errors import UsageError, UserError
from ideal_proxy.mixture.draws import domain_order
from ideal_proxy.mixture.file import CapabilityResult, DomainVolume, MixtureFile, load_mixture, save_mixture
from ideal_proxy.proxy.model import build_proxy, collate_across, label_losses
from ideal_proxy.proxy.records import RowLosses, TrainSettings
from ideal_proxy.proxy.training import train
from ideal_proxy.response.kinds import LARGER_SIZE, OTHER_SIZE, PRETRAINED, SMALLER_SIZE, EvidenceKind
from ideal_proxy.scaleup.model import ModelSpec, load_template
from ideal_proxy.scaleup.result import compare, scale_up_tables, size_step
from ideal_proxy.scaleup.run import RunLosses
from ideal_proxy.scaleup.source import draw_rows, proxy_setting, read_domains, read_references, tokenize_mixture
from ideal_proxy.scaleup.steps import StepSet, accumulate, check_sharded, deal
from ideal_proxy.scaleup.train import ScaleUp, scale_up
from ideal_proxy.terminal import Reporter

QUIET = Reporter(quiet=True)
TINY = ScaleUp(spec=ModelSpec(name="scratch:0.1M"), device="cpu", evaluations=2, learning_rate=5e-3)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> MixtureFile:
    """Two domains of files, one with repeats, and a third of the demo that the mixture drops."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)

    def sums(count: int) -> list[dict[str, str]]:
        pairs = rng.integers(0, 10, (count, 2))
        return [{"instruction": f"{a} + {b}", "input": "", "output": str(a + b)} for a, b in pairs]

    def echoes(count: int) -> list[dict[str, str]]:
        words = ["".join(rng.choice(list("abcdef"), rng.integers(2, 9))) for _ in range(count)]
        return [{"instruction": f"say {word}", "input": "", "output": f"{word} {word}"} for word in words]

    sources = {
        "sums": write_rows(folder / "sums.jsonl", sums(120)),
        "echo": write_rows(folder / "echo.jsonl", echoes(150)),
        "facts": "demo:facts?seed=3&rows=60",
    }
    references = {
        "sums": write_rows(folder / "sums_ref.jsonl", sums(40)),
        "echo": write_rows(folder / "echo_ref.jsonl", echoes(40)),
    }
    volumes = {"sums": (130, 30), "echo": (50, 140), "facts": (0, 10)}
    domains = []
    for name, source in sources.items():
        rows = list(read_rows(source))
        domains.append(
            DomainVolume(
                name=name,
                source=source,
                fingerprint=source_fingerprint(row_keys(rows)),
                available=len(rows),
                rows=volumes[name][0],
                base_rows=volumes[name][1],
            )
        )
    capabilities = [
        CapabilityResult(
            name=name,
            source=source,
            fingerprint=source_fingerprint(row_keys(list(read_rows(source)))),
            base_loss=2.0,
            predicted_loss=1.8,
            predicted_lower=0.2,
            predicted_upper=6.0,
        )
        for name, source in references.items()
    ]
    return MixtureFile(
        seed=5,
        domains=domains,
        capabilities=capabilities,
        provenance={
            "proxy": {"size": "0.1M", "vocabulary": 320, "context": 48, "batch_rows": 16, "learning_rate": 5e-3}
        },
    )


@pytest.fixture(scope="module")
def done(mixture: MixtureFile, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("scale") / "out"
    return out, scale_up(mixture, replace(TINY, baseline=True, seeds=2), out, QUIET)


def averaged_backward(loss: torch.Tensor, world: int) -> None:
    (loss / world).backward()


def encoded(mixture: MixtureFile, folder: Path):  # type: ignore[no-untyped-def]
    setting = proxy_setting(mixture)
    domains, references = read_domains(mixture), read_references(mixture)
    template = load_template(TINY.spec, setting, domains, folder)
    return template, tokenize_mixture(mixture, template, setting.context, domains, references)


def test_the_file_alone_says_how_the_proxies_were_trained(mixture: MixtureFile) -> None:
    setting = proxy_setting(mixture)
    assert (setting.vocabulary, setting.context, setting.batch_rows, setting.seed) == (320, 48, 16, 5)
    assert proxy_setting(MixtureFile(domains=mixture.domains)).context == 512


def test_labels_equal_the_proxies(mixture: MixtureFile, tmp_path: Path) -> None:
    template, data = encoded(mixture, tmp_path)
    rows = list(read_rows(mixture.domains[1].source))
    proxy_rows = tokenize_rows(rows, make_template(template.tokenizer), 48, None)
    drawn = draw_rows(["echo"], [data.domains[1]], [20], 0)
    step = StepSet(drawn, [data.domains[1]], step_of(20, 10_000))[0]
    expected = collate(proxy_rows, step.batches[0].rows)
    np.testing.assert_array_equal(step.batches[0].labels, expected.labels)
    np.testing.assert_array_equal(step.batches[0].input_ids, expected.input_ids)
    answer = template.tokenizer.decode(expected.labels[expected.labels >= 0])
    first = rows[int(step.batches[0].rows[0])]
    assert answer.startswith(first.messages[-1].content), "loss lies on the answer, not on the prompt"
    assert step.normaliser == int((expected.labels >= 0).sum())


def test_draw_is_exact_and_a_fraction_keeps_repeats(mixture: MixtureFile, tmp_path: Path) -> None:
    _, data = encoded(mixture, tmp_path)
    volumes = [domain.rows for domain in mixture.domains]
    full = draw_rows(data.names, data.domains, volumes, 5)
    assert np.bincount(full.domain, minlength=3).tolist() == volumes
    counts = np.bincount(full.row[full.domain == 0], minlength=120)
    assert counts.min() == 1
    assert counts.max() == 2
    assert (counts == 2).sum() == 10
    part = draw_rows(data.names, data.domains, volumes, 5, fraction=0.5)
    assert part.volumes.tolist() == [65, 25, 0]
    order = domain_order(5, "sums", data.domains[0].keys)
    assert set(part.row[part.domain == 0].tolist()) == set(order[:60].tolist()), "the first half of the permutation"
    assert np.bincount(part.row[part.domain == 0]).max() == 2, "130 of 120 rows repeat, so 65 of 60 do"


def step_of(rows: int, micro_batch_tokens: int, loss: Loss = "token") -> TrainSettings:
    return TrainSettings(batch_rows=rows, micro_batch_tokens=micro_batch_tokens, loss=loss)


@pytest.mark.parametrize("kind", ["token", "row"])
@pytest.mark.parametrize("packed", [True, False])
def test_a_steps_gradient_is_the_same_however_it_is_split(
    mixture: MixtureFile, tmp_path: Path, packed: bool, kind: Loss
) -> None:
    """One process, two, three with unequal numbers of micro-batches: Σ nll / Σ tokens, or the mean of rows' means."""
    template, data = encoded(mixture, tmp_path)
    drawn = draw_rows(data.names, data.domains, [9, 8, 0], 1)
    model = build_proxy("0.1M", len(template.tokenizer), 48, 0)
    if not packed:
        model.set_attn_implementation("sdpa")
    whole = StepSet(drawn, data.domains, step_of(17, 100_000, kind))[0]
    assert len(whole.batches) == 1
    rows = [
        label_losses(model, collate_across(data.domains, *one)) for one in zip(*map(singles, drawn.order), strict=True)
    ]
    loss = torch.cat(rows).mean() if kind == "token" else torch.stack([row.mean() for row in rows]).mean()
    loss.backward()
    expected = [p.grad.clone() for p in model.parameters()]
    for world, limit in ((1, 60), (2, 60), (3, 40), (20, 500)):
        model.zero_grad()
        parts = [
            StepSet(drawn, data.domains, step_of(17, limit, kind), rank=rank, world=world)[0] for rank in range(world)
        ]
        assert len({len(part.batches) for part in parts}) == 1
        totals = []
        for part in parts:
            backward = partial(averaged_backward, world=world)
            totals.append(accumulate(model, model, part, world=world, backward=backward))
        assert float(sum(totals) / world) == pytest.approx(loss.item(), rel=1e-5)
        for parameter, wanted in zip(model.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, wanted, atol=2e-6, rtol=1e-4)


def singles(values: np.ndarray) -> list[np.ndarray]:
    return list(values[:, None])


@pytest.mark.parametrize(
    ("kind", "batch"), [("row", Batch(rows=16)), ("token", Batch(tokens=300)), ("row", Batch(tokens=300))]
)
def test_the_full_size_run_takes_the_proxies_steps(
    mixture: MixtureFile, tmp_path: Path, done: tuple[Path, dict], kind: Loss, batch: Batch
) -> None:
    """The mixture file alone says loss and batch; the curve of scale-up is that of `proxy.train`."""
    from ideal_proxy.proxy.training import load_weights

    told = mixture.model_copy(update={"loss": kind, "batch": batch, "epochs": 3})
    result = scale_up(told, TINY, tmp_path / "out", QUIET)
    template, data = encoded(mixture, done[0])
    drawn = draw_rows(data.names, data.domains, [d.rows for d in mixture.domains], 5)
    model = build_proxy("0.1M", len(template.tokenizer), 48, 5)
    load_weights(model, tmp_path / "out" / "start" / "weights.safetensors")
    settings = TrainSettings(learning_rate=5e-3, batch_rows=batch.rows or 1, batch_tokens=batch.tokens, loss=kind)
    log = train(model, drawn.order, data.domains, settings)
    curve = json.loads((tmp_path / "out" / "runs" / "mixture-5" / "log.json").read_text())["curve"]
    np.testing.assert_allclose([loss for _, loss in curve], log.losses, rtol=2e-4)
    tokens = sum(int(rows.lengths[drawn.row[drawn.domain == d]].sum()) for d, rows in enumerate(data.domains))
    assert result["steps"] == len(log.losses)
    assert abs(result["steps"] - batch.steps(180, tokens)) <= (0 if batch.rows else 1)
    assert result["rows"] == 180, "epochs are in the volumes already"


def test_a_mean_of_batch_means_would_be_caught(mixture: MixtureFile, tmp_path: Path) -> None:
    template, data = encoded(mixture, tmp_path)
    drawn = draw_rows(data.names, data.domains, [9, 8, 0], 1)
    model = build_proxy("0.1M", len(template.tokenizer), 48, 0)
    parts = StepSet(drawn, data.domains, step_of(17, 60))[0].batches
    assert len(parts) > 1
    sums = torch.stack([label_losses(model, part).sum() for part in parts])
    tokens = torch.tensor([(part.labels >= 0).sum() for part in parts])
    assert abs(((sums / tokens).mean() - sums.sum() / tokens.sum()).item()) > 1e-3


def test_rows_are_dealt_evenly_and_once() -> None:
    lengths = np.random.default_rng(0).integers(1, 400, 61)
    for world in (1, 2, 5):
        dealt = deal(lengths, world)
        assert sorted(np.concatenate(dealt).tolist()) == list(range(61))
        loads = [int(lengths[part].sum()) for part in dealt]
        assert max(loads) - min(loads) <= 2 * lengths.max()


def test_trainer_follows_the_proxies_own_training(
    mixture: MixtureFile, tmp_path: Path, done: tuple[Path, dict]
) -> None:
    """Same start, same rows, same optimiser: the curve of `Trainer` is the curve of `proxy.train`."""
    out, result = done
    template, data = encoded(mixture, out)
    drawn = draw_rows(data.names, data.domains, [d.rows for d in mixture.domains], 5)
    model = build_proxy("0.1M", len(template.tokenizer), 48, 5)
    from ideal_proxy.proxy.training import load_weights

    load_weights(model, out / "start" / "weights.safetensors")
    log = train(model, drawn.order, data.domains, TrainSettings(learning_rate=5e-3, batch_rows=16))
    curve = json.loads((out / "runs" / "mixture-5" / "log.json").read_text())["curve"]
    assert [step for step, _ in curve] == list(range(1, 13))
    np.testing.assert_allclose([loss for _, loss in curve], log.losses, rtol=2e-4)
    assert result["steps"] == 12


def test_result_is_measured_not_assumed(mixture: MixtureFile, done: tuple[Path, dict]) -> None:
    out, result = done
    by_name = {entry["name"]: entry for entry in result["capabilities"]}
    assert result["rows"] == 180
    assert result["volumes"] == {"sums": 130, "echo": 50, "facts": 0}
    assert result["base_volumes"] == {"sums": 30, "echo": 140, "facts": 10}
    assert by_name["sums"]["after"] < by_name["sums"]["before"]
    assert by_name["sums"]["ratio"]["value"] < 1 < by_name["echo"]["ratio"]["value"], "more rows of a domain help it"
    assert by_name["sums"]["predicted"] == {"value": 0.9, "lower": 0.1, "upper": 3.0}
    assert by_name["sums"]["inside"] is True
    assert result["gain"]["pairs"] == 2
    assert result["gain"]["lower"] < result["gain"]["value"] < result["gain"]["upper"]
    with np.load(out / "runs" / "mixture-5" / "after.npz") as arrays:
        assert arrays["tokens_0"].sum() > 0
    assert json.loads((out / "result.json").read_text())["capabilities"] == result["capabilities"]
    text = scale_up_tables(result, "out")
    assert all(len(line) <= 80 for line in text.splitlines() if "Gain" not in line and "written" not in line), text
    log = json.loads((out / "runs" / "base-5" / "log.json").read_text())
    assert log["during"][0]["step"] == 4
    assert log["during"][-1]["sums"] != log["during"][0]["sums"]


def test_from_pretrained_loads_what_was_trained(mixture: MixtureFile, done: tuple[Path, dict], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out, result = done
    folder = out / "runs" / "mixture-5" / "model"
    assert (folder / "model.safetensors").exists()
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = tokenize_rows(list(read_rows(mixture.capabilities[0].source)), make_template(tokenizer), 48, None)
    losses = torch.cat([label_losses(model, collate(rows, [n])) for n in range(len(rows))])
    with np.load(out / "runs" / "mixture-5" / "after.npz") as arrays:
        after = arrays["loss_sum_0"].sum() / arrays["tokens_0"].sum()
    assert losses.mean().item() == pytest.approx(after, rel=1e-5)
    seeds = [entry["after_all_rows"] for entry in result["capabilities"]]
    assert seeds[0] != pytest.approx(after, rel=1e-5), "the mean over two seeds is not the first"


def test_changed_data_is_refused(mixture: MixtureFile, tmp_path: Path) -> None:
    source = Path(mixture.domains[0].source)
    lines = source.read_text().splitlines()
    copy = tmp_path / "sums.jsonl"
    copy.write_text("\n".join([lines[1], lines[0], *lines[2:]]) + "\n")
    domains = [mixture.domains[0].model_copy(update={"source": "sums.jsonl"}), *mixture.domains[1:]]
    moved = mixture.model_copy(update={"domains": domains})
    with pytest.raises(UserError, match=r"domain sums: the rows in .*sums\.jsonl are not those"):
        scale_up(moved, TINY, tmp_path / "out", QUIET, folder=tmp_path)
    copy.write_text(source.read_text())
    assert [len(rows) for rows in read_domains(moved, tmp_path)] == [120, 150, 60]


def test_wrong_options_are_refused_before_any_work(
    mixture: MixtureFile, tmp_path: Path, done: tuple[Path, dict]
) -> None:
    out, _ = done
    with pytest.raises(UsageError, match=r"choose scratch: and one of 0\.1M"):
        scale_up(mixture, replace(TINY, spec=ModelSpec(name="scratch:7B")), tmp_path / "a", QUIET)
    with pytest.raises(UsageError, match="--fraction is 0"):
        scale_up(mixture, replace(TINY, fraction=0.0), tmp_path / "a", QUIET)
    with pytest.raises(UsageError, match="--resume goes on with it"):
        scale_up(mixture, TINY, out, QUIET)
    with pytest.raises(UsageError, match="begun with another --learning-rate"):
        scale_up(mixture, replace(TINY, learning_rate=1e-3, resume=True), out, QUIET)
    other = mixture.model_copy(update={"seed": 6})
    with pytest.raises(UsageError, match="another the mixture file's seed"):
        scale_up(other, replace(TINY, resume=True), out, QUIET)
    with pytest.raises(UsageError, match="there is no such folder"):
        scale_up(mixture, replace(TINY, spec=ModelSpec(name=str(tmp_path / "no/such"))), tmp_path / "b", QUIET)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no model"):
        scale_up(mixture, replace(TINY, spec=ModelSpec(name=str(tmp_path / "empty"))), tmp_path / "c", QUIET)


def test_a_finished_scale_up_is_not_trained_again(mixture: MixtureFile, done: tuple[Path, dict]) -> None:
    out, result = done
    weights = out / "runs" / "mixture-5" / "model" / "model.safetensors"
    stamp = weights.stat().st_mtime_ns
    again = scale_up(mixture, replace(TINY, baseline=True, seeds=2, resume=True), out, QUIET)
    assert again["capabilities"] == result["capabilities"]
    assert weights.stat().st_mtime_ns == stamp


def test_a_training_logs_to_tensorboard(mixture: MixtureFile, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed (pip install tensorboard)")
    with pytest.raises(UsageError, match="--track is 'neptune'; choose wandb, mlflow, trackio or tensorboard"):
        scale_up(mixture, replace(TINY, track=("neptune",)), tmp_path / "out", QUIET)
    assert not (tmp_path / "out").exists()
    scale_up(mixture, replace(TINY, fraction=0.2, track=("tensorboard",)), tmp_path / "out", QUIET)
    log = json.loads((tmp_path / "out" / "runs" / "mixture-5" / "log.json").read_text())
    (events,) = (tmp_path / "out" / "runs" / "mixture-5").rglob("events.*")
    seen = board(events.parent)
    assert log["curve"] == [[step, pytest.approx(value, rel=1e-6)] for step, value in seen["train/loss"]]
    assert log["during"][0]["sums"] == pytest.approx(seen["eval/sums"][0][1], rel=1e-6)


def test_refine_takes_up_a_finished_scale_up(mixture: MixtureFile, tmp_path: Path, done: tuple[Path, dict]) -> None:
    """The full-size model's own gradients give the next mixture; it is trained, judged, and never made twice."""
    out = tmp_path / "out"
    shutil.copytree(done[0], out)
    wanted = replace(TINY, baseline=True, seeds=2, resume=True, refine=1, refine_rows=40)
    found = scale_up(mixture, wanted, out, QUIET)
    assert found["capabilities"] == done[1]["capabilities"], "the first mixture is not trained again"
    told = found["refine"]["iterations"][0]
    rows = told["rows"]
    assert sum(rows.values()) == 180, "at the parent's total"
    assert rows["facts"] <= 2, "a dropped domain stays dropped"
    change = np.log([rows["sums"] / 130, rows["echo"] / 50])
    assert 0.05 < np.abs(change).max() < 0.15 + 0.03
    assert told["gradients"]["why"].startswith("the gradients agree with the full-size runs")
    assert told["gradients"]["seeds"] == 2
    logs = [json.loads((out / "runs" / f"refined-1-{seed}" / "log.json").read_text()) for seed in found["seeds"]]
    assert [log["rows"] for log in logs] == [rows, rows]
    before = [entry["after"] for entry in found["capabilities"]]
    ratios = [told["observed"]["losses"][c["name"]] / x for c, x in zip(found["capabilities"], before, strict=True)]
    assert found["refine"]["best"] in {0, 1}
    assert told["observed"]["gain_over_parent"]["value"] == pytest.approx(1 - np.mean(ratios), abs=2e-3)
    refined = load_mixture(out / "refine" / "1" / "mixture.json")
    assert refined.provenance["refine"][0]["observed"] == told["observed"]
    assert [d.rows for d in refined.domains] == list(rows.values())
    text = scale_up_tables(found, "out")
    assert "Refine: gain in %" in text
    assert all(len(line) <= 80 for line in text.splitlines()), text
    weights = out / "runs" / "refined-1-5" / "model" / "model.safetensors"
    stamp = weights.stat().st_mtime_ns, (out / "refine" / "responses-0.npz").stat().st_mtime_ns
    again = scale_up(mixture, wanted, out, QUIET)
    assert again["refine"] == found["refine"]
    assert (weights.stat().st_mtime_ns, (out / "refine" / "responses-0.npz").stat().st_mtime_ns) == stamp
    with pytest.raises(UsageError, match="begun with another --refine-step"):
        scale_up(mixture, replace(wanted, refine_step=0.3), out, QUIET)
    with pytest.raises(UsageError, match="needs a law in the mixture file, or --baseline"):
        scale_up(mixture, replace(wanted, baseline=False), tmp_path / "x", QUIET)


DIE_AT_STEP_8 = """
import os, signal, sys
from pathlib import Path
from ideal_proxy.mixture import load_mixture
from ideal_proxy.scaleup import run
from ideal_proxy.scaleup.model import ModelSpec
from ideal_proxy.scaleup.train import ScaleUp, scale_up
from ideal_proxy.terminal import Reporter

def die(self, args, state, control, **_):
    if state.global_step == 8:
        os.kill(os.getpid(), signal.SIGKILL)

run._Watch.on_step_begin = die
wanted = ScaleUp(
    spec=ModelSpec(name="scratch:0.1M"), device="cpu", evaluations=2, learning_rate=5e-3, save_steps=3,
)
scale_up(load_mixture(sys.argv[1]), wanted, Path(sys.argv[2]), Reporter(quiet=True))
"""


def test_killed_run_goes_on_with_the_same_curve(mixture: MixtureFile, tmp_path: Path, done: tuple[Path, dict]) -> None:
    """kill -9 after a checkpoint, in its own process; --resume ends with what the unbroken run ends with."""
    save_mixture(tmp_path / "mixture.json", mixture)
    out = tmp_path / "broken"
    command = [sys.executable, "-c", DIE_AT_STEP_8, str(tmp_path / "mixture.json"), str(out)]
    killed = forked.run(command, env=environment(), timeout=600)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    run_folder = out / "runs" / "mixture-5"
    assert (run_folder / "checkpoint-6").is_dir()
    half = run_folder / "checkpoint-9"  # as a kill in the middle of writing leaves it
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    scale_up(mixture, replace(TINY, save_steps=3, resume=True), out, QUIET)
    whole, resumed = (json.loads((folder / "runs" / "mixture-5" / "log.json").read_text()) for folder in (done[0], out))
    assert (whole["resumed_at_step"], resumed["resumed_at_step"]) == (0, 6)
    assert len(whole["curve"]) == len(resumed["curve"]) == 12
    np.testing.assert_allclose(resumed["curve"], whole["curve"], rtol=1e-5)
    with np.load(done[0] / "runs/mixture-5/after.npz") as old, np.load(run_folder / "after.npz") as new:
        np.testing.assert_allclose(new["loss_sum_1"], old["loss_sum_1"], rtol=1e-5)
    assert not list(run_folder.glob("checkpoint-*"))


def test_lora_of_a_pretrained_folder_resumes_too(
    mixture: MixtureFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("peft")
    from ideal_proxy.scaleup import run

    template, _ = encoded(mixture, tmp_path / "enc")
    folder = tmp_path / "pretrained"
    build_proxy("0.1M", len(template.tokenizer), 64, 3).save_pretrained(folder)
    template.tokenizer.save_pretrained(folder)
    wanted = replace(
        TINY, spec=ModelSpec(name=str(folder), lora=4), save_steps=2, context=48, fraction=0.4, evaluations=0
    )
    told: list[str] = []
    hears = Reporter(quiet=True)
    monkeypatch.setattr(hears, "note", told.append)
    whole = scale_up(mixture, wanted, tmp_path / "whole", hears)
    assert "trained from scratch" in " ".join(told)  # what such proxies promise says little of a pretrained model
    assert whole["step"] == {"factor": 0.5, "spread": 0.5, "error": 1.0}

    class Stop(Exception):
        pass

    def stop(self, args, state, control, **_):  # type: ignore[no-untyped-def]
        if state.global_step == 3:
            raise Stop

    with monkeypatch.context() as patched:
        patched.setattr(run._Watch, "on_step_begin", stop, raising=False)
        with pytest.raises(Stop):
            scale_up(mixture, wanted, tmp_path / "broken", QUIET)
    resumed = scale_up(mixture, replace(wanted, resume=True), tmp_path / "broken", QUIET)
    log = json.loads((tmp_path / "broken" / "runs" / "mixture-5" / "log.json").read_text())
    assert log["resumed_at_step"] == 2
    assert log["trainable_parameters"] < log["parameters"] / 2
    for old, new in zip(whole["capabilities"], resumed["capabilities"], strict=True):
        assert new["after"] == pytest.approx(old["after"], rel=1e-5)
        assert new["after"] != pytest.approx(new["before"], rel=1e-4)
    from transformers import AutoModelForCausalLM

    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "broken" / "runs" / "mixture-5" / "model")
    before = AutoModelForCausalLM.from_pretrained(folder)
    assert sum(p.numel() for p in merged.parameters()) == sum(p.numel() for p in before.parameters())
    change = [not torch.equal(a, b) for a, b in zip(merged.parameters(), before.parameters(), strict=True)]
    assert any(change), "the merged model holds what was trained"
    assert (tmp_path / "broken/runs/mixture-5/model/adapter/adapter_model.safetensors").exists()
    refined = replace(wanted, resume=True, baseline=True, refine=1, refine_rows=16)
    told = scale_up(mixture, refined, tmp_path / "whole", QUIET)["refine"]["iterations"][0]
    assert sum(told["rows"].values()) == 180
    with np.load(tmp_path / "whole" / "refine" / "responses-0.npz") as file:
        assert np.abs(file["M"][:, :2]).min() > 0, "responses through the adapter"
        np.testing.assert_allclose(file["M"].sum(axis=1), 0, atol=1e-6 * np.abs(file["M"]).max())


def test_bf16_gradient_checkpointing_and_padding_agree_with_plain(mixture: MixtureFile, tmp_path: Path) -> None:
    small = mixture.model_copy(
        update={"domains": [d.model_copy(update={"rows": min(d.rows, 24)}) for d in mixture.domains]}
    )
    base = replace(TINY, evaluations=0, keep_models=False)
    variants = {
        "plain": base,
        "checkpointing": replace(base, spec=ModelSpec(name="scratch:0.1M", gradient_checkpointing=True)),
        "padded": replace(base, packed=False),
        "bf16": replace(base, dtype="bfloat16"),
    }
    after = {}
    for name, wanted in variants.items():
        result = scale_up(small, wanted, tmp_path / name, QUIET)
        after[name] = np.array([entry["after"] for entry in result["capabilities"]])
    np.testing.assert_allclose(after["checkpointing"], after["plain"], rtol=1e-5)
    np.testing.assert_allclose(after["padded"], after["plain"], rtol=1e-3)
    np.testing.assert_allclose(after["bf16"], after["plain"], rtol=3e-2)
    assert not np.array_equal(after["bf16"], after["plain"])


def fake(losses: list[float], tokens: int = 10, rows: int = 8) -> RunLosses:
    found = {
        name: RowLosses(np.full(rows, loss * tokens), np.full(rows, tokens))
        for name, loss in zip("ab", losses, strict=True)
    }
    return RunLosses(found, found, {})


def test_a_prediction_is_carried_to_another_size(tmp_path: Path) -> None:
    def step(model: str, proxy: Any, lora: int | None = None, share: float | None = None, **more: Any) -> Any:
        domains = [DomainVolume(name="a", source="x", fingerprint="0" * 64, available=1, rows=1)]
        told = MixtureFile(domains=domains, provenance={"proxy": proxy, **more}, proxy_fraction=share)
        return size_step(told, ModelSpec(name=model, lora=lora), 0.5)

    assert step("scratch:10M", {"size": "1M"}) is LARGER_SIZE
    assert step("org/large", {"size": "1M"}) is PRETRAINED
    assert step("org/large", {"model": "org/small"}) is LARGER_SIZE
    assert step("scratch:0.1M", {"size": "1M"}) is SMALLER_SIZE
    assert step("org/large", {"model": "/disk/large", "lora_rank": 8}) is OTHER_SIZE, "LoRA's changes for all weights'"
    assert step("org/large", {"model": "/disk/large", "lora_rank": 8}, lora=8) is None
    for place, text in (("a/final", "{}"), ("b/final", '{"layers": 30}'), ("c/final", "{}")):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "config.json").write_text(text)
    at = [str(tmp_path / place / "final") for place in "abc"]
    assert step(at[1], {"model": at[0]}) is LARGER_SIZE, "folders of one name may hold models of two sizes"
    assert step(at[2], {"model": at[0]}) is None
    assert step("scratch:1M", {"size": "1M"}) is None
    assert step("scratch:1M", {"size": "1M"}, share=0.5) is None
    assert step("scratch:1M", {"size": "1M"}, share=0.2) is OTHER_SIZE, "another share of the rows"
    assert step("org/large", {"model": "/disk/large"}, share=0.2) is OTHER_SIZE
    assert step("scratch:1M", "1M") is step("scratch:1M", {"size": "1M"}, transfer=[1]) is None
    assert step("scratch:1M", {}) is None, "somebody's table of runs may be of any size"
    assert step("scratch:10M", {"size": "1M"}, transfer={"at_full_size": True}) is None


def test_comparison_is_relative_to_base() -> None:
    mixture = MixtureFile(
        domains=[DomainVolume(name="a", source="x", fingerprint="0" * 64, available=1, rows=1)],
        capabilities=[
            CapabilityResult(name="a", base_loss=2.0, predicted_loss=1.8, predicted_lower=1.7, predicted_upper=1.9),
            CapabilityResult(name="b", base_loss=1.0, predicted_loss=1.0, predicted_lower=0.98, predicted_upper=1.02),
        ],
    )
    verify = [np.arange(8) >= 4] * 2
    # The larger model's losses are half the proxies'; only ratios can be compared.
    result = compare(mixture, [fake([0.9, 0.6])], [fake([1.0, 0.5])], verify)
    first, second = result["capabilities"]
    assert first["ratio"]["value"] == pytest.approx(0.9)
    assert first["inside"] is True
    assert second["ratio"]["value"] == pytest.approx(1.2)
    assert second["inside"] is False
    assert second["error"] == pytest.approx(0.2)
    assert result["inside"] == {"count": 1, "of": 2}
    assert result["gain"]["value"] == pytest.approx(1 - (0.9 + 1.2) / 2)
    worst = compare(mixture, [fake([0.9, 0.6])], [fake([1.0, 0.5])], verify, kind="worst")
    assert worst["gain"]["value"] == pytest.approx(-0.2)
    larger = compare(mixture, [fake([0.9, 0.6])], [fake([1.0, 0.5])], verify, step=LARGER_SIZE)
    first, second = (entry["predicted"] for entry in larger["capabilities"])
    change = np.log(0.9)
    assert np.log(first["value"]) == pytest.approx(change)
    z, alone = 1.6448536, 0.3 * abs(change) / np.sqrt(2)  # of two capabilities one changes
    fit = np.log(1.7 / 1.8) / z
    wide = np.sqrt(fit**2 + (0.3**2 + 0.55**2) * change**2 + alone**2)
    assert np.log(first["lower"] / first["value"]) == pytest.approx(-z * wide, rel=1e-6)
    assert np.log(second["upper"]) == pytest.approx(np.hypot(np.log(1.02), z * alone), rel=1e-6)
    assert larger["step"] == {"factor": 1.0, "spread": 0.63, "error": 0.3}
    other = compare(mixture, [fake([0.9, 0.6])], [fake([1.0, 0.5])], verify, step=EvidenceKind(0.8, 0.3, False))
    assert np.log(other["capabilities"][0]["predicted"]["value"]) == pytest.approx(0.8 * change)
    unpaired = compare(mixture, [fake([0.9, 0.6])], None, verify)
    assert [entry["inside"] for entry in unpaired["capabilities"]] == [None, None]
    assert "gain" not in unpaired


def test_sharding_that_did_not_happen_is_an_error() -> None:
    model = build_proxy("0.1M", 300, 16, 0)
    check_sharded(model, wanted=False)
    with pytest.raises(UserError, match="parameters are not sharded"):
        check_sharded(model, wanted=True)


def test_cpu_launch_with_fsdp_is_refused(mixture: MixtureFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match="FSDP2 was asked for"):
        scale_up(mixture, replace(TINY, evaluations=0), tmp_path / "out", QUIET)


def test_command_prints_results_on_stdout_only(
    mixture: MixtureFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hub_stub import make_hub
    from typer import Typer
    from typer.testing import CliRunner

    from ideal_proxy.cli.scaleup import register

    app = Typer()
    register(app)
    path = tmp_path / "mixture.json"
    small = [d.model_copy(update={"rows": d.rows // 8, "base_rows": d.base_rows // 8}) for d in mixture.domains]
    save_mixture(path, mixture.model_copy(update={"domains": small}))
    options = ["scale-up", str(path), "--model", "scratch:0.1M", "--device", "cpu", "--evaluations", "0", "--baseline"]
    hub = make_hub(monkeypatch, tmp_path / "hub")
    result = CliRunner().invoke(app, [*options, "--json", "--push-to-hub", "me/model"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["rows"] == 22
    assert (found["hub"], hub.private) == ("hub://model/me/model", {("model", "me/model"): True})
    pushed, seed = tmp_path / "hub/model/me/model", found["seeds"][0]
    kept = tmp_path / "scale-up-scratch-0.1M" / "runs" / f"mixture-{seed}" / "model" / "model.safetensors"
    assert (pushed / "model.safetensors").read_bytes() == kept.read_bytes()
    card = (pushed / "README.md").read_text(encoding="utf-8")
    entry = found["capabilities"][0]
    assert f"| {entry['before']:.4f} | {entry['after']:.4f} | {entry['base_after']:.4f} |" in card
    assert found["gain"]["sentence"] in card
    assert str(tmp_path) not in card
    assert found["gain"]["pairs"] == 1
    assert "interval needs --seeds" in found["gain"]["sentence"]
    assert (tmp_path / "scale-up-scratch-0.1M" / "result.json").exists()
    moved = CliRunner().invoke(
        app, [*options[:-1], "--transfer", "share", "--total-rows", "44", "--out", str(tmp_path / "twice"), "--json"]
    )
    assert moved.exit_code == 0, moved.output
    assert json.loads(moved.stdout)["volumes"] == {"sums": 32, "echo": 12, "facts": 0}
    alone = CliRunner().invoke(app, [*options, "--total-rows", "44"])
    assert isinstance(alone.exception, UsageError)


@pytest.mark.slow
def test_smollm2_from_gguf_for_a_few_steps(mixture: MixtureFile, tmp_path: Path) -> None:
    """A real pretrained model (135M, quantised) reads its own chat template, trains packed, and gets better."""
    from pretrained_folder import smollm2

    folder, file = smollm2()
    small = [d.model_copy(update={"rows": min(d.rows, 32)}) for d in mixture.domains]
    wanted = ScaleUp(
        spec=ModelSpec(name=str(folder), gguf=file),
        device="cpu",
        evaluations=0,
        batch_rows=8,
        context=128,
        learning_rate=1e-4,
    )
    result = scale_up(mixture.model_copy(update={"domains": small}), wanted, tmp_path / "out", QUIET)
    assert result["parameters"] > 1.3e8
    assert all(entry["after"] < entry["before"] - 0.1 for entry in result["capabilities"])
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "runs" / "mixture-5" / "model")
