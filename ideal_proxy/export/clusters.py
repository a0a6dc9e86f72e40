"""Export to SFT trainers made for clusters: Megatron-Bridge, NeMo AutoModel, verl, SkyRL.

As in `trainers`: the drawn rows are written and taken once each. The file's step is written for one GPU.
"""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import Any

import numpy as np

from ideal_proxy.export.encoded import Reading
from ideal_proxy.export.job import ExportReport, Job, report_of, write_parquet
from ideal_proxy.export.terms import BETA1, BETA2, GRAD_CLIP, MODEL, WARMUP, WEIGHT_DECAY, Terms, counts_rows
from ideal_proxy.export.trainers import length, say_model, untrained, write_yaml
from ideal_proxy.export.turns import Told, opening_question, records


def megatron_bridge(job: Job) -> ExportReport:
    """Write turns and a Python module with a data set configuration and the step, schedule and epochs as constants."""
    terms = job.terms
    told = job.write_turns()
    steps = max(1, -(-job.mixture.total_rows // terms.rows))
    script = (
        '"""A mixture by ideal-proxy for Megatron-Bridge: every row of train.jsonl once."""\n\n'
        "from pathlib import Path\n\n"
        "from megatron.bridge.data.builders.direct_hf_sft import DirectHFSFTDatasetConfig\n"
        "from megatron.bridge.data.sources.hf import HFDatasetSourceConfig\n\n"
        "HERE = Path(__file__).resolve().parent\n"
        f"SEQ_LENGTH = {terms.context}\n"
        "# For your ConfigContainer: train.global_batch_size, train.micro_batch_size, train.train_iters (one epoch),\n"
        "# model.calculate_per_token_loss, rng.seed.\n"
        f"GLOBAL_BATCH_SIZE, MICRO_BATCH_SIZE, TRAIN_ITERS = {terms.rows}, 1, {steps}\n"
        f"PER_TOKEN_LOSS, SEED = {not counts_rows(job.mixture, 'megatron-bridge')}, {terms.seed}\n"
        "# optimizer.lr and .min_lr, .weight_decay, .adam_beta1, .adam_beta2, .clip_grad; scheduler.lr_decay_style\n"
        f"LEARNING_RATE, MIN_LEARNING_RATE, LR_DECAY_STYLE = {terms.learning_rate!r}, 0.0, 'cosine'\n"
        f"WEIGHT_DECAY, ADAM_BETAS, CLIP_GRAD = {WEIGHT_DECAY}, ({BETA1}, {BETA2}), {GRAD_CLIP}\n"
        f"LR_WARMUP_ITERS = {max(1, round(WARMUP * steps))}\n\n\n"
        "def dataset_config(seq_length: int | None = SEQ_LENGTH) -> DirectHFSFTDatasetConfig:\n"
        "    source = HFDatasetSourceConfig(\n"
        '        path_or_dataset="json", split="train", load_kwargs={"data_files": str(HERE / "train.jsonl")},\n'
        "    )\n"
        "    return DirectHFSFTDatasetConfig(\n"
        f"        seq_length=seq_length, source=source, enable_in_batch_packing={terms.packed}, dataloader_type="
        '"cyclic",\n'
        "        do_validation=False, do_test=False,\n    )\n"
    )
    (job.work / "mixture_blend.py").write_text(script, encoding="utf-8")
    return report_of(
        job, "megatron-bridge", ["mixture_blend.py", "train.jsonl"], "import dataset_config from mixture_blend.py",
        long="cut at the end", notes=(*told.notes(), *untrained(told)), reads=Reading(),
    )  # fmt: skip


def automodel(job: Job) -> ExportReport:
    """Write turns and a recipe's YAML."""
    terms, place = job.terms, job.folder.resolve()
    told = job.write_turns(change=opening_question)
    parts = "nemo_automodel.components"
    settings = {
        "recipe": {"_target_": "nemo_automodel.recipes.llm.train_ft.TrainFinetuneRecipeForNextTokenPrediction"},
        "seed": terms.seed,
        "step_scheduler": {
            "global_batch_size": terms.rows, "local_batch_size": 1, "num_epochs": 1, "ckpt_every_steps": None},
        "dist_env": {"backend": "nccl", "timeout_minutes": 10},
        "model": {
            "_target_": "nemo_automodel.NeMoAutoModelForCausalLM.from_pretrained",
            "pretrained_model_name_or_path": terms.model or MODEL,
        },
        "clip_grad_norm": {"max_norm": GRAD_CLIP},
        "distributed": {"strategy": "fsdp2", "dp_size": "none", "tp_size": 1, "cp_size": 1},
        "loss_fn": {"_target_": f"{parts}.loss.masked_ce.MaskedCrossEntropy"},
        "dataset": {
            "_target_": f"{parts}.datasets.llm.chat_dataset.ChatDataset",
            "path_or_dataset_id": str(place / "train.jsonl"), **length(terms, "seq_length"),
            "truncation": terms.context is not None, "mask_generation_prompt": True,
        },
        "packed_sequence": {"packed_sequence_size": terms.context if terms.packed else 0},
        "dataloader": {
            "_target_": "torchdata.stateful_dataloader.StatefulDataLoader", "shuffle": True,
            "collate_fn": {"_target_": f"{parts}.datasets.utils.default_collater"},
        },
        "optimizer": {
            "_target_": "torch.optim.AdamW", "lr": terms.learning_rate, "betas": [BETA1, BETA2],
            "weight_decay": WEIGHT_DECAY,
        },
        "lr_scheduler": {
            "lr_decay_style": "cosine", "min_lr": 0.0, "lr_warmup_steps": _warm_steps(terms, job.mixture.total_rows)},
        "checkpoint": {"enabled": True, "checkpoint_dir": str(place / "trained")},
    }  # fmt: skip
    write_yaml(job, "sft.yaml", settings)
    return report_of(
        job, "automodel", ["sft.yaml", "train.jsonl"], f"automodel {place}/sft.yaml", long="cut at the end",
        notes=(*told.notes(), *untrained(told)), reads=Reading(breaks=True, asks=True),
    )  # fmt: skip


def verl(job: Job) -> ExportReport:
    """Write turns as parquet and a script for verl's SFT trainer."""
    terms, place = job.terms, job.folder.resolve()
    told = Told()
    drawn = job.write_drawn(job.work / ".drawn.jsonl")
    # An answer in the first place would stand behind a default system text, on which verl would then put the loss.
    write_parquet(records(drawn, told, opening_question), job.work / "train.parquet")
    drawn.unlink()
    _write_overrides(job, "torchrun --standalone --nproc_per_node=1 -m verl.trainer.sft_trainer", {
        "model.path": terms.model, "data.train_files": str(place / "train.parquet"), "data.val_files": "null",
        "data.messages_key": "messages", "data.tools_key": "tools", "data.pad_mode": "no_padding",
        "data.truncation": "right", **length(terms, "data.max_length"),
        "data.max_token_len_per_gpu": max(8192, terms.context or 0), "data.train_batch_size": terms.rows,
        "data.micro_batch_size_per_gpu": 1, "optim.lr": terms.learning_rate, "optim.lr_scheduler_type": "cosine",
        "optim.lr_warmup_steps_ratio": WARMUP, "optim.betas": f"[{BETA1},{BETA2}]", "optim.clip_grad": GRAD_CLIP,
        "optim.weight_decay": WEIGHT_DECAY, "trainer.total_epochs": 1, "trainer.seed": terms.seed,
        "trainer.logger": "[console]", "trainer.save_freq": "after_each_epoch", "trainer.resume_mode": "disable",
        "trainer.default_local_dir": str(place / "trained"),
    })  # fmt: skip
    left = job.mixture.total_rows % terms.rows
    notes = (f"verl leaves out the last, unfilled step: {left:,} rows of an epoch",) if left else ()
    report = report_of(
        job, "verl", ["sft.sh", "train.parquet"], f"bash {place}/sft.sh{say_model(terms, 'model.path=', '')}",
        long="cut at the end", notes=(*told.notes(), *untrained(told), *notes), reads=Reading(breaks=True, asks=True),
    )  # fmt: skip
    return replace(report, left_over=left)


def skyrl(job: Job) -> ExportReport:
    """Write a script for SkyRL's SFT trainer, and tokens; where the model is not known, turns."""
    terms, place = job.terms, job.folder.resolve()
    notes: tuple[str, ...] = ()
    data: dict[str, Any] = {"pretokenized_dataset_paths": f"[{place / 'data'}]"}
    if job.tokens is not None:
        tokens = ({"input_ids": r["input_ids"], "loss_mask": (r["labels"] >= 0).astype(np.int64)}
                  for r in job.tokens.records())  # fmt: skip
        write_parquet(tokens, job.work / "data" / "train.parquet")
    else:
        told = Told()
        drawn = job.write_drawn(job.work / ".drawn.jsonl")
        write_parquet(records(drawn, told), job.work / "data" / "train.parquet")
        drawn.unlink()
        notes = (*told.notes(), *untrained(told))
        data = {
            "train_datasets": f"[{place / 'data'}]", "train_dataset_splits": "[train]", "messages_key": "messages",
            "train_on_what": "all_assistant_messages",
        }  # fmt: skip
    _write_overrides(job, "python -m skyrl.train.main_sft", {
        "strategy": "fsdp", "model.path": terms.model, **data, **length(terms, "max_length"), "num_epochs": 1,
        "batch_size": terms.rows, "micro_train_batch_size_per_gpu": 1, "placement.num_gpus_per_node": 1,
        "seed": terms.seed, "optimizer_config.lr": terms.learning_rate,
        "optimizer_config.adam_betas": f"[{BETA1},{BETA2}]", "optimizer_config.weight_decay": WEIGHT_DECAY,
        "optimizer_config.max_grad_norm": GRAD_CLIP, "optimizer_config.scheduler": "cosine",
        "optimizer_config.num_warmup_steps": _warm_steps(terms, job.mixture.total_rows), "logger": "console",
        "ckpt_path": str(place / "trained"),
    })  # fmt: skip
    return report_of(
        job, "skyrl", ["sft.sh", "data/train.parquet"], f"bash {place}/sft.sh{say_model(terms, 'model.path=', '')}",
        long="as the search" if job.tokens is not None else "cut at the end", notes=notes, reads=Reading(),
    )  # fmt: skip


def _warm_steps(terms: Terms, rows: int) -> int:
    return max(1, round(WARMUP * rows / terms.rows))


def _write_overrides(job: Job, command: str, settings: dict[str, Any]) -> None:
    """Write a script with options as KEY=VALUE."""
    words = [shlex.quote(f"{key}={value}") for key, value in settings.items() if value is not None]
    lines = [
        "#!/usr/bin/env bash",
        f"# A mixture by ideal-proxy: {job.mixture.name!r}; add your own options.",
        "set -e",
        " \\\n  ".join([command, *words, '"$@"']),
    ]
    (job.work / "sft.sh").write_text("\n".join(lines) + "\n", encoding="utf-8")
