"""One full-size training in its own folder: checkpoints, resume, the model, and what it measured.

A run's folder holds `checkpoint-*/` while it trains, then `model/`, `losses.npz`, `log.json` and the marker. Legend: J
capabilities, N_j reference rows, S steps.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from ideal_proxy.data import ChatTemplate, TokenRows
from ideal_proxy.errors import UserError
from ideal_proxy.hooks import PROJECT
from ideal_proxy.proxy import (
    RowLosses,
    TrainSettings,
    of_rows,
    peak_memory,
    quiet_libraries,
    read_row_losses,
    save_model,
    tokens_at_once,
    write_row_losses,
)
from ideal_proxy.scaleup.model import ModelSpec, load_model
from ideal_proxy.scaleup.source import Drawn, ScaleData
from ideal_proxy.scaleup.steps import StepSet, sharding_asked
from ideal_proxy.scaleup.trainer import MixtureTrainer, reference_losses
from ideal_proxy.store import atomic_write_json, is_whole, mark_complete, read_json, save_pretrained
from ideal_proxy.terminal import Reporter, Update

CHECKPOINTS_KEPT = 2
POINTS_OF_CURVE = 1000  # the loss is logged at most so often


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """How a full-size run trains and what it keeps."""

    train: TrainSettings  # optimiser, schedule and batches, the proxies' own class
    context: int  # longest row, tokens
    device: str  # cpu, cuda or mps
    packed: bool = True  # rows laid end to end where the model can; otherwise padded within a micro-batch
    evaluations: int = 4  # reference losses measured during training, besides before and after
    save_seconds: float = 600.0  # time between checkpoints, roughly; 0 keeps none
    keep_model: bool = True  # write the trained model
    track: tuple[str, ...] = ()  # tracking services to log to


@dataclass(frozen=True, slots=True)
class RunLosses:
    """What a finished run measured, row by row."""

    before: dict[str, RowLosses]  # by capability, before training
    after: dict[str, RowLosses]  # by capability, after it
    log: dict[str, Any]  # curve and facts of the run, as `log.json` has them


class _Watch(TrainerCallback):
    """Marks whole checkpoints, tells progress, and asks for a checkpoint when the time has come."""

    def __init__(self, update: Update, before: str, save_seconds: float) -> None:
        self._update = update
        self._before = before
        self._seconds = save_seconds
        self._saved = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        self._update(state.global_step, self._before)
        due = self._seconds > 0 and time.monotonic() - self._saved >= self._seconds
        if due and state.global_step < state.max_steps and args.world_size == 1:
            control.should_save = True
        return control

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        self._saved = time.monotonic()
        if state.is_world_process_zero:
            mark_complete(Path(args.output_dir) / f"checkpoint-{state.global_step}")
        return control


def run_training(
    folder: Path,
    spec: ModelSpec,
    template: ChatTemplate,
    data: ScaleData,
    drawn: Drawn,
    settings: RunSettings,
    reporter: Reporter,
    *,
    seed: int,
    start: Path | None = None,
    label: str = "training",
    save_steps: int | None = None,
) -> RunLosses:
    """Train one model on one draw, or go on from its last whole checkpoint, or return what a finished run measured."""
    if is_whole(folder, reporter.note):
        return _load(folder, data)
    references = dict(zip(data.capabilities, data.references, strict=True))
    model = load_model(spec, template, context=settings.context, seed=seed, packed=settings.packed, start=start)
    count = len(settings.train.bounds(of_rows([rows.lengths for rows in data.domains], *drawn.order))) - 1
    arguments = _arguments(folder, settings, count, seed, save_steps)
    if arguments.n_gpu > 1:
        raise UserError(
            f"{arguments.n_gpu} GPUs are visible to one process; start with `accelerate launch` to use them all, or "
            "set CUDA_VISIBLE_DEVICES=0"
        )
    device = arguments.device
    train = replace(settings.train, micro_batch_tokens=tokens_at_once(settings.train.micro_batch_tokens, device))
    steps = StepSet(
        drawn,
        data.domains,
        train,
        rank=arguments.process_index,
        world=arguments.world_size,
    )
    before = _before(folder, model.to(device), references, train, main=arguments.process_index == 0)
    found = _last_checkpoint(folder)
    started = time.monotonic()
    with reporter.work(label, len(steps)) as update:
        shown = "  ".join(f"{name} {losses.mean:.3f}" for name, losses in list(before.items())[:3])
        watch = _Watch(update, f"before: {shown}", settings.save_seconds)
        trainer = MixtureTrainer(model, arguments, steps, train, references, [watch], sharded=sharding_asked())
        trainer.remove_callback(PrinterCallback)
        with quiet_libraries(), _room_for(folder):
            trainer.train(resume_from_checkpoint=str(found) if found else None)
    if "wandb" in settings.track:  # transformers leaves its run open, and the next training would log into it
        import wandb

        wandb.finish()
    after = trainer.row_losses()
    for name, losses in after.items():
        if not np.isfinite(losses.mean):
            raise UserError(f"the loss of {name} is not finite after training; choose a smaller --learning-rate")
    log = _log(trainer, drawn, data, steps, time.monotonic() - started, found)
    _keep(folder, trainer, template, settings, before, after, log)
    return RunLosses(before, after, log)


def _arguments(folder: Path, settings: RunSettings, steps: int, seed: int, save_steps: int | None) -> TrainingArguments:
    """Turn our settings into Trainer's: an item is a step, so no batching, accumulation or shuffling of its own."""
    if save_steps is None and settings.save_seconds > 0 and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        save_steps = max(1, steps // 10)  # clocks of several processes differ, and all must save the same step
    every = max(1, steps // (settings.evaluations + 1)) if settings.evaluations else 0
    return TrainingArguments(
        output_dir=str(folder), num_train_epochs=1, per_device_train_batch_size=1, gradient_accumulation_steps=1,
        learning_rate=settings.train.learning_rate, max_grad_norm=settings.train.grad_clip,
        bf16=settings.train.dtype == "bfloat16", use_cpu=settings.device == "cpu", seed=seed, data_seed=seed,
        logging_strategy="steps", logging_steps=max(1, steps // POINTS_OF_CURVE), logging_first_step=True,
        logging_nan_inf_filter=False, eval_strategy="steps" if every else "no", eval_steps=every or None,
        save_strategy="steps" if save_steps else "no", save_steps=save_steps or 500,
        save_total_limit=CHECKPOINTS_KEPT, report_to=list(settings.track) or "none", run_name=folder.name,
        project=PROJECT, disable_tqdm=True, remove_unused_columns=False, dataloader_pin_memory=False,
        log_level="error", log_level_replica="error", average_tokens_across_devices=False,
    )  # fmt: skip


def _before(
    folder: Path,
    model: Any,
    references: dict[str, TokenRows],
    train: TrainSettings,
    *,
    main: bool,
) -> dict[str, RowLosses]:
    """Measure the references before training; once, so that a resumed run has them too."""
    path = folder / "before.npz"
    if path.exists():
        try:
            return read_row_losses(path, list(references))
        except UserError as error:
            if "is damaged" not in str(error):
                raise
    found = reference_losses(model, references, train)
    if main:
        write_row_losses(path, found)
    return found


def _last_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint whose marker stands; half-written ones are thrown away."""
    whole: list[tuple[int, Path]] = []
    for path in folder.glob("checkpoint-*"):
        number = path.name.removeprefix("checkpoint-")
        if number.isdigit() and is_whole(path):
            whole.append((int(number), path))
        else:
            shutil.rmtree(path, ignore_errors=True)
    return max(whole)[1] if whole else None


def _log(
    trainer: MixtureTrainer, drawn: Drawn, data: ScaleData, steps: StepSet, seconds: float, found: Path | None
) -> dict[str, Any]:
    history = trainer.state.log_history
    curve = [(int(entry["step"]), float(entry["loss"])) for entry in history if "loss" in entry]
    during = [
        {"step": int(entry["step"]), **{name: entry[f"eval_{name}"] for name in data.capabilities}}
        for entry in history
        if all(f"eval_{name}" in entry for name in data.capabilities) and data.capabilities
    ]
    tokens = [int(rows.lengths[drawn.row[drawn.domain == d]].sum()) for d, rows in enumerate(data.domains)]
    inner = trainer.accelerator.unwrap_model(trainer.model)
    return {
        "rows": {name: int(count) for name, count in zip(data.names, drawn.volumes, strict=True)},
        "tokens": dict(zip(data.names, tokens, strict=True)),
        "steps": len(steps),
        "parameters": sum(p.numel() for p in inner.parameters()),
        "trainable_parameters": sum(p.numel() for p in inner.parameters() if p.requires_grad),
        "processes": trainer.args.world_size,
        "device": str(trainer.args.device),
        "seconds": round(seconds, 3),
        "peak_memory_bytes": peak_memory(trainer.args.device),
        "resumed_at_step": int(found.name.removeprefix("checkpoint-")) if found else 0,
        "curve": curve,
        "during": during,
    }


def _keep(
    folder: Path,
    trainer: MixtureTrainer,
    template: ChatTemplate,
    settings: RunSettings,
    before: dict[str, RowLosses],
    after: dict[str, RowLosses],
    log: dict[str, Any],
) -> None:
    """Write the model and what was measured; the marker comes last, then the checkpoints go."""
    if settings.keep_model:
        if trainer.is_fsdp_enabled:
            trainer.save_model(str(folder / "model"))  # a collective call
            if trainer.args.process_index == 0:
                save_pretrained(template.tokenizer, folder / "model")
        elif trainer.args.process_index == 0:
            with _room_for(folder):
                save_model(trainer.accelerator.unwrap_model(trainer.model), template.tokenizer, folder / "model")
    if trainer.args.process_index == 0:
        write_row_losses(folder / "after.npz", after)
        write_row_losses(folder / "before.npz", before)
        atomic_write_json(folder / "log.json", log)
        files = (str(path.relative_to(folder)) for path in sorted(folder.rglob("*")))
        mark_complete(folder, [name for name in files if not name.startswith("checkpoint-")])  # they go now
        for path in folder.glob("checkpoint-*"):
            shutil.rmtree(path, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()


@contextlib.contextmanager
def _room_for(folder: Path) -> Iterator[None]:
    """Turn a full disk into one sentence; the last whole checkpoint stays."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"cannot write to {folder}: {reason}; make room and run the same command with --resume"
        ) from error


def _load(folder: Path, data: ScaleData) -> RunLosses:
    names = list(data.capabilities)
    return RunLosses(
        read_row_losses(folder / "before.npz", names),
        read_row_losses(folder / "after.npz", names),
        read_json(folder / "log.json"),
    )
