"""`scale-up`: the full-size SFT of a mixture, its baseline and their comparison, from the mixture file alone."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ideal_proxy.batching import Loss
from ideal_proxy.data import ChatTemplate, told_lines
from ideal_proxy.errors import UsageError, UserError, shortened
from ideal_proxy.gradients import IDEAL_STEP
from ideal_proxy.hooks import check_service
from ideal_proxy.mixture import IMPROVES, MixtureFile, reading_part
from ideal_proxy.provenance import provenance
from ideal_proxy.proxy import TrainSettings, pick_device
from ideal_proxy.response import OTHER_SIZE, PRETRAINED
from ideal_proxy.scaleup.evidence import keep_as_evidence
from ideal_proxy.scaleup.guard import guard, skipped
from ideal_proxy.scaleup.model import ModelSpec, load_template, make_start
from ideal_proxy.scaleup.refine import Arm, Refiner, RefineSettings
from ideal_proxy.scaleup.result import FORMAT, compare, judged_rows, size_step
from ideal_proxy.scaleup.run import RunLosses, RunSettings, run_training
from ideal_proxy.scaleup.scores import measure_arms, read_metrics
from ideal_proxy.scaleup.source import (
    Drawn,
    ScaleData,
    draw_rows,
    proxy_setting,
    read_domains,
    read_references,
    tokenize_mixture,
)
from ideal_proxy.scaleup.transfer import usable_law
from ideal_proxy.store import atomic_write_json, lock, read_either, strangers
from ideal_proxy.terminal import Reporter

SEED_STEP = 100_003  # between the seeds of repeated runs; far from the swarm's, which count up from the search's
OPTIONS = "options.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleUp:
    """What `scale-up` was asked for. None means: choose."""

    spec: ModelSpec  # which model
    baseline: bool = False  # train base beside the mixture
    seeds: int = 1  # runs of each
    seed: int | None = None  # of the first run; default the mixture's, which draws the rows that `apply` writes
    fraction: float = 1.0  # share of the volumes to train on
    learning_rate: float | None = None  # peak rate
    batch_rows: int | None = None  # rows of an optimiser step
    batch_tokens: int | None = None  # its tokens, where it counts those
    loss: Loss | None = None  # over a step's supervised tokens, or its rows; default the search's
    context: int | None = None  # longest row, tokens
    dtype: str = "auto"  # auto, float32 or bfloat16
    device: str = "auto"  # auto, cpu, cuda or mps
    packed: bool = True  # rows laid end to end where the model can
    evaluations: int = 4  # reference losses measured during training
    save_seconds: float = 600.0  # time between checkpoints
    save_steps: int | None = None  # a checkpoint every so many steps as well
    keep_models: bool = True  # write the trained models; of the first seed always
    resume: bool = False  # go on in a folder that holds this very scale-up
    track: tuple[str, ...] = ()  # tracking services that each training logs to, of `ideal_proxy.hooks.SERVICES`
    refine: int = 0  # iterations of `refine.Refiner` after the first mixture
    refine_step: float = IDEAL_STEP  # largest |log change| of a volume in one of them
    refine_rows: int = 400  # most rows of each source whose gradients are taken
    metrics: str | None = None  # run file whose metrics judge instead of the losses


def scale_up(
    mixture: MixtureFile, wanted: ScaleUp, out: Path, reporter: Reporter, *, folder: Path | None = None
) -> dict[str, Any]:
    """Train a model on a mixture at full size, with its baseline where asked, and compare with the prediction."""
    wanted.spec.check()
    _check(wanted, mixture)
    metrics = None if wanted.metrics is None else read_metrics(Path(wanted.metrics), mixture)
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    proxies = proxy_setting(mixture)
    device = pick_device(wanted.device).type
    context = wanted.context or proxies.context
    rate = wanted.learning_rate or wanted.spec.learning_rate(proxies)
    dtype = wanted.dtype if wanted.dtype != "auto" else "bfloat16" if device == "cuda" else "float32"
    settings = RunSettings(
        train=TrainSettings(
            learning_rate=rate,
            batch_rows=wanted.batch_rows or proxies.batch_rows,
            batch_tokens=wanted.batch_tokens or (None if wanted.batch_rows else proxies.batch_tokens),
            loss=wanted.loss or proxies.loss,
            dtype=dtype,
        ),
        context=context,
        device=device,
        packed=wanted.packed,
        evaluations=wanted.evaluations,
        save_seconds=wanted.save_seconds,
        keep_model=wanted.keep_models,
        track=wanted.track,
    )
    whose = "given" if wanted.learning_rate else "the search's own" if rate == proxies.learning_rate else "by default"
    reporter.note(f"peak learning rate {rate:g} ({whose})")
    step, rank = size_step(mixture, wanted.spec, wanted.fraction), proxies.lora_rank
    if step is OTHER_SIZE and rank is not None and wanted.spec.lora is None:
        reporter.note(f"the search trained LoRA of rank {rank}, this trains every weight; --lora {rank} does as it did")
    if step is PRETRAINED:
        reporter.note(
            f"warning: the proxies were trained from scratch and {wanted.spec.name} is pretrained, of which they say "
            "little; --baseline compares, and a search with `proxy: {mode: target, model: ...}` asks the model itself"
        )
    same = all(domain.rows == domain.base_rows for domain in mixture.domains)
    baseline = wanted.baseline and not same
    if wanted.baseline and same:
        reporter.note("the mixture is the base itself, so there is nothing to compare: base is not trained again")
    with _held(out):
        settings = _freeze(out, mixture, wanted, settings, reporter)
        domains = read_domains(mixture, folder)
        references = read_references(mixture, folder)
        with _first():
            template = load_template(wanted.spec, proxies, domains, out)
            data = tokenize_mixture(mixture, template, context, domains, references, out / "tokens")
        del domains, references
        searched = (mixture.template or {}).get("identity")
        if wanted.spec.scratch is not None and proxies.model is None and searched not in (None, template.identity):
            reporter.note("the tokenizer trained here is not the search's (other library version or vocabulary)")
        for name, rows in zip(data.names, data.domains, strict=True):
            if rows.truncated:
                reporter.note(
                    f"{name}: {rows.truncated:,} of {len(rows):,} rows were cut to {context} tokens (--context)"
                )
            for line in told_lines(rows.told):
                reporter.note(f"warning: {name}: {line}")
        with _first(), reporter.work("warm start", 1.0 if wanted.spec.scratch else 0.0) as update:
            start = make_start(
                wanted.spec, template, proxies, data.names, data.domains, out, context=context, device=device,
                dtype=settings.train.dtype, on_step=lambda done, steps, _: update(done / steps),
            )  # fmt: skip
        seeds = [
            (wanted.seed if wanted.seed is not None else mixture.seed) + SEED_STEP * n for n in range(wanted.seeds)
        ]
        # Reserved rows are in the full-size draw; a fraction leaves them out, as a proxy does.
        exclude = proxies.warm_fraction if wanted.spec.scratch is not None and wanted.fraction < 1 else 0.0

        def train(arm: str, volumes: Sequence[int]) -> Arm:
            found: list[tuple[RunLosses, Path, Drawn]] = []
            for seed in seeds:
                place = out / "runs" / f"{arm}-{seed}"
                drawn = draw_rows(data.names, data.domains, volumes, seed, fraction=wanted.fraction, exclude=exclude)
                keep = replace(settings, keep_model=settings.keep_model or seed == seeds[0])
                run = run_training(
                    place, wanted.spec, template, data, drawn, keep, reporter, seed=seed, start=start,
                    label=f"{arm}, seed {seed}", save_steps=wanted.save_steps,
                )  # fmt: skip
                found.append((run, place, drawn))
            runs, folders, draws = zip(*found, strict=True)
            return Arm(np.asarray(volumes, dtype=np.int64), runs, folders, draws)

        arms = {"mixture": train("mixture", [d.rows for d in mixture.domains])}
        if baseline:
            arms["base"] = train("base", [d.base_rows for d in mixture.domains])
        judged = _judged_by(mixture)
        base = arms.get("base")
        scores = None
        if metrics is not None and _main():
            trained = {name: (arm.runs, arm.folders) for name, arm in arms.items()}
            scores = measure_arms(metrics, mixture, data, trained, seeds, device, reporter)
        result = compare(
            mixture, arms["mixture"].runs, base.runs if base else None, data.verify, scores=scores,
            step=step, **judged,
        )  # fmt: skip
        if base is not None and _main() and result["gain"]["answer"] == IMPROVES:
            result["guard"] = _look_at_answers(wanted, data, arms, template, device, reporter)
        if wanted.refine:
            refiner = Refiner(
                mixture=mixture, data=data, spec=wanted.spec, template=template, run=settings,
                settings=RefineSettings(iterations=wanted.refine, step=wanted.refine_step, rows=wanted.refine_rows),
                train=train, folder=out / "refine", reporter=reporter, judged=judged, first=_first, main=_main(),
            )  # fmt: skip
            result["refine"] = refiner.refine(arms["mixture"], base)
        first = arms["mixture"].runs[0].log
        result = {
            "format": FORMAT,
            "mixture": mixture.name,
            "model": wanted.spec.name,
            "parameters": first["parameters"],
            "trainable_parameters": first["trainable_parameters"],
            "is_base": same,
            "seeds": seeds,
            "fraction": wanted.fraction,
            "rows": sum(first["rows"].values()),
            "tokens": sum(first["tokens"].values()),
            "steps": first["steps"],
            "volumes": first["rows"],
            "base_volumes": base.runs[0].log["rows"] if base else None,
            "seconds": sum(run.log["seconds"] for arm in arms.values() for run in arm.runs),
            "peak_memory_bytes": max(run.log.get("peak_memory_bytes", 0) for run in arms["mixture"].runs),
            "settings": asdict(settings),
            "gain": None,
            **result,
            "provenance": provenance(),
        }
        if _main():
            atomic_write_json(out / "result.json", result)
            kept = folder and keep_as_evidence(
                folder, out, data, arms, seeds, wanted.spec.name, wanted.fraction, exclude
            )
            if kept:
                reporter.note(f"kept as evidence in {kept}: a search with --reuse {folder} begins with it")
    return result


def _look_at_answers(
    wanted: ScaleUp, data: ScaleData, arms: dict[str, Arm], template: ChatTemplate, device: str, reporter: Reporter
) -> dict[str, Any]:
    """Compare answers of base and proposal, of the first seed, before a gain is believed."""
    if wanted.spec.scratch is not None:
        return skipped("a model from scratch has no answers to speak of")
    before, after = (arms[arm].folders[0] / "model" for arm in ("base", "mixture"))
    unseen = [rows.select(judged_rows(mask)) for rows, mask in zip(data.references, data.verify, strict=True)]
    with reporter.work("answers", 0.0):
        return guard(before, after, unseen, data.capabilities, template, device)


def _check(wanted: ScaleUp, mixture: MixtureFile) -> None:
    """Refuse wrong options before any work."""
    for service in wanted.track:
        check_service(service, "--track")
    if wanted.device.partition(":")[0] not in {"auto", "cpu", "cuda", "mps"}:
        raise UsageError(f"--device is {wanted.device!r}; it must be auto, cpu, cuda or mps")
    if wanted.seeds < 1:
        raise UsageError(f"--seeds is {wanted.seeds}; it must be at least 1")
    if not 0 < wanted.fraction <= 1:
        raise UsageError(f"--fraction is {wanted.fraction}; it must lie above 0 and at most at 1")
    if wanted.loss not in (None, "token", "row"):
        raise UsageError(f"--loss is {wanted.loss!r}; it must be token or row")
    if wanted.batch_rows and wanted.batch_tokens:
        raise UsageError("a step counts rows or tokens: give either --batch-rows or --batch-tokens")
    if not mixture.capabilities:
        raise UsageError("the mixture file names no capability, so nothing can be measured; add one with its source")
    if wanted.refine < 0 or not 0 < wanted.refine_step <= 2 or wanted.refine_rows < 2:
        raise UsageError("--refine must be at least 0, --refine-step above 0 and at most 2, --refine-rows at least 2")
    if wanted.refine and not wanted.baseline and usable_law(mixture) is None:
        raise UsageError("--refine needs a law in the mixture file, or --baseline, to set the scale of the gradients")
    if wanted.baseline and not any(domain.base_rows for domain in mixture.domains):
        raise UsageError("--baseline needs base_rows in the mixture file, and all are 0; add them, or leave it out")


def _freeze(out: Path, mixture: MixtureFile, wanted: ScaleUp, settings: RunSettings, reporter: Reporter) -> RunSettings:
    """Write what was chosen once; a resumed scale-up takes it up and refuses other options."""
    path, copy = out / OPTIONS, out / "options.copy.json"
    asked = {
        "mixture": {
            "name": mixture.name,
            "seed": mixture.seed,
            "domains": [[d.name, d.source, d.fingerprint, d.rows, d.base_rows] for d in mixture.domains],
            "capabilities": [[c.name, c.source] for c in mixture.capabilities],
        },
        "wanted": {key: value for key, value in asdict(wanted).items() if key not in _FREE},
    }
    asked = json.loads(json.dumps(asked))  # as it is read back
    if not path.exists():
        if strangers(out, [copy.name]) and not (out / "runs").exists():
            raise UsageError(f"{out} is not empty and holds no scale-up; choose another --out")
        if _main():
            for place in (copy, path):
                atomic_write_json(place, {**asked, "settings": asdict(settings)}, seal=True)
        return settings
    frozen = read_either(path, copy)
    if not wanted.resume and _main():
        raise UsageError(f"{out} holds a scale-up already; --resume goes on with it, or choose another --out")
    for part in ("mixture", "wanted"):
        old, new = frozen[part], asked[part]
        differing = [key for key in new if key in old and new[key] != old[key]]
        if differing:
            name = "the mixture file's " + differing[0] if part == "mixture" else "--" + differing[0].replace("_", "-")
            raise UsageError(
                f"{out} was begun with another {name} ({shortened(repr(old.get(differing[0])))}, now "
                f"{shortened(repr(new[differing[0]]))}); resume with the same options, or choose another --out"
            )
    reporter.note(f"going on with the scale-up in {out}")
    return replace(
        settings,
        train=TrainSettings(**frozen["settings"]["train"]),
        **{key: frozen["settings"][key] for key in ("context", "device", "packed", "evaluations")},
    )


_FREE = frozenset({  # may change on resume
    "resume", "track", "save_seconds", "save_steps", "seeds", "baseline", "keep_models", "refine", "refine_step",
    "refine_rows", "metrics",
})  # fmt: skip


def _judged_by(mixture: MixtureFile) -> dict[str, Any]:
    """Read from the file what the search minimised and least gain; what it does not say is left out."""
    found = mixture.provenance.get("objective")
    told = dict(found) if isinstance(found, dict) else {}
    with reading_part("provenance.objective"):
        if "min_gain" in told:
            told["min_gain"] = float(told["min_gain"] or 0.0)
        if told.get("kind", "mean") == "mean":
            told = {"min_gain": told.get("min_gain")}
        elif isinstance(weights := told.get("weights"), dict):
            told["weights"] = [float(weights.get(capability.name, 0.0)) for capability in mixture.capabilities]
    return {key: told[key] for key in ("kind", "weights", "min_gain") if told.get(key)}


def _main() -> bool:
    return int(os.environ.get("RANK", "0")) == 0


@contextlib.contextmanager
def _held(out: Path) -> Iterator[None]:
    """Hold the folder's lock in the first process only."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {out}: {error.strerror}; choose another --out") from error
    if not _main():
        yield
        return
    with lock(out):
        yield


@contextlib.contextmanager
def _first() -> Iterator[None]:
    """Let the first process do what all need, and the others find it done."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    from accelerate import PartialState

    with PartialState(cpu=not torch.cuda.is_available()).main_process_first():
        yield
