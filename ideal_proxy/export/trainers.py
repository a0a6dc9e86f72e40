"""Export to SFT trainers' own configurations: LLaMA-Factory, ms-swift, open-instruct, TRL, axolotl.

The drawn rows are written, repeats included, and the configuration takes each once: repeats are even, and the draw is
the proxies' own. Trainers that read tokens get tokens where the model is known, cut and masked as in the search.
Nothing is pushed, tracked or launched.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from ideal_proxy.export.encoded import Encoded, Long, Reading
from ideal_proxy.export.job import ExportReport, Job, line_of, report_of, write_parquet
from ideal_proxy.export.terms import BETA1, BETA2, GRAD_CLIP, MODEL, WARMUP, WEIGHT_DECAY, Terms, counts_rows
from ideal_proxy.export.turns import Told, prompt_and_completion, records, sharegpt, with_loss_keys


def llamafactory(job: Job) -> ExportReport:
    """Write a training YAML and tokens, or turns where the model is not known or rows are packed."""
    terms, place = job.terms, job.folder.resolve()
    settings = {
        "model_name_or_path": terms.model or MODEL, "output_dir": str(place / "trained"),
        "stage": "sft", "do_train": True, "finetuning_type": "full", "dataset": "mixture", "streaming": False,
        "val_size": 0, "packing": terms.packed, "neat_packing": terms.packed, "train_on_prompt": False,
        "mask_history": False, **length(terms, "cutoff_len"), **_trainer(terms), "warmup_ratio": WARMUP,
    }  # fmt: skip
    notes: tuple[str, ...] = ()
    long: Long = "as the search"
    if job.tokens is not None and not terms.packed:  # its packing is part of the tokenising that tokens skip
        _save_to_disk(masked(job.tokens), job.work / "tokens", place.name)
        settings["tokenized_path"] = str(place / "tokens")
        files = ["tokens/", "sft.yaml"]
    else:
        told = job.write_turns(change=sharegpt)
        info = {"mixture": {
            "file_name": "train.jsonl", "formatting": "sharegpt", "columns": {"messages": "messages", "tools": "tools"},
            "tags": {
                "role_tag": "role", "content_tag": "content",
                "user_tag": "user", "assistant_tag": "assistant", "system_tag": "system",
                "observation_tag": "observation", "function_tag": "function_call",
            },
        }}  # fmt: skip
        (job.work / "dataset_info.json").write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
        settings["dataset_dir"] = str(place)
        files, long = (
            ["train.jsonl", "dataset_info.json", "sft.yaml"],
            "left out" if terms.packed else "cut turn by turn",
        )
        notes = (*told.notes(), *untrained(told), "its template is parsed from the tokenizer's, or name one: template")
    write_yaml(job, "sft.yaml", settings)
    return report_of(
        job,
        "llamafactory",
        files,
        f"llamafactory-cli train {place}/sft.yaml",
        long=long,
        notes=notes,
        reads=Reading(breaks=True, asks=True, joins=True),
    )


def ms_swift(job: Job) -> ExportReport:
    """Write turns and a script."""
    terms = job.terms
    told = job.write_turns(change=with_loss_keys)
    settings = {
        "tuner_type": "full", "split_dataset_ratio": 0, "streaming": False, "loss_scale": "default",
        "packing": terms.packed, **length(terms, "max_length"), "truncation_strategy": "left", **_trainer(terms),
        "warmup_ratio": WARMUP, "output_dir": "trained",
    }  # fmt: skip
    flash = {"attn_impl": "flash_attn"} if terms.packed else {}  # without it packing is refused
    write_script(job, "sft.sh", "swift sft", {"dataset": "train.jsonl", **settings, **flash}, model="model")
    return report_of(
        job, "ms-swift", ["sft.sh", "train.jsonl"], f"bash {job.folder.resolve()}/sft.sh{say_model(terms, '--model')}",
        long="cut at the start", notes=told.notes(), reads=Reading(breaks=True, weights=True),
    )  # fmt: skip


def open_instruct(job: Job) -> ExportReport:
    """Write turns and a script; pushing to a hub and jobs on a cluster, which are on by default there, are off."""
    terms = job.terms
    told = job.write_turns()
    step = {key: value for key, value in _trainer(terms).items() if key in OPEN_INSTRUCT}
    settings = {
        "dataset_mixer_list_splits": "train", **length(terms, "max_seq_length"), **step, "warmup_ratio": WARMUP,
        **({"packing": True} if terms.packed else {}), "output_dir": str(job.folder.resolve() / "trained"),
        "push_to_hub": False, "try_launch_beaker_eval_jobs": False, "try_auto_save_to_beaker": False,
        "with_tracking": False,
    }  # fmt: skip
    # `mean` divides a micro-batch by its own tokens, so micro-batches of one row count rows alike; `sum` counts tokens.
    if job.mixture.batch is not None:
        settings["reduce_loss"] = "mean" if counts_rows(job.mixture, "open-instruct") else "sum"
    first = {"dataset_mixer_list": [str(job.folder.resolve() / "train.jsonl"), str(job.mixture.total_rows)]}
    command = "python open_instruct/finetune.py"
    write_script(job, "sft.sh", command, first | settings, model="model_name_or_path", change=False)
    return report_of(
        job, "open-instruct", ["sft.sh", "train.jsonl"],
        f"in an open-instruct checkout: bash {job.folder.resolve()}/sft.sh{say_model(terms, '--model_name_or_path')}",
        long="cut at the end", notes=(*told.notes(), *untrained(told)), reads=Reading(),
    )  # fmt: skip


OPEN_INSTRUCT = (
    "num_train_epochs", "seed", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate",
    "lr_scheduler_type", "weight_decay",
)  # fmt: skip


def trl(job: Job) -> ExportReport:
    """Write a configuration for `trl sft --config` and tokens; where the model is not known, turns."""
    terms, place = job.terms, job.folder.resolve()
    notes: tuple[str, ...] = ()
    long: Long = "as the search"
    mask: dict[str, Any] = {"completion_only_loss": False}  # tokens bring their labels
    if job.tokens is not None:
        name, kind = "train.parquet", "parquet"
        write_parquet(job.tokens.records(), job.work / name)
    else:
        name, kind = "train.jsonl", "json"
        told = job.write_turns()
        notes, long = (*told.notes(), *untrained(told)), "cut at the end"
        if told.several or told.untrained:
            mask = {"assistant_only_loss": True}
            notes += ("assistant_only_loss needs generation marks in the chat template; --model MODEL writes tokens",)
        else:
            mask = {"completion_only_loss": True}  # which any template can: every row has one answer, at its end
            turned = job.work / ".turned"
            with open(turned, "wb") as file:
                rows = records(job.work / name, Told(), prompt_and_completion)
                file.writelines(line_of(row) for row in rows)
            turned.replace(job.work / name)
    settings = {
        "model_name_or_path": terms.model or MODEL, "output_dir": str(place / "trained"),
        "datasets": [{"path": kind, "data_files": str(place / name), "split": "train"}], **mask,
        **length(terms, "max_length"), "truncation_mode": "keep_start", "packing": terms.packed,
        **({"packing_strategy": "bfd"} if terms.packed else {}), **_trainer(terms), "warmup_steps": WARMUP,
    }  # fmt: skip
    write_yaml(job, "sft.yaml", settings)
    return report_of(
        job, "trl", [name, "sft.yaml"], f"trl sft --config {place}/sft.yaml", long=long, notes=notes, reads=Reading()
    )


def axolotl(job: Job) -> ExportReport:
    """Write a YAML, and tokens; where the model is not known, turns. De-duplication, which undoes repeats, is off."""
    terms, place = job.terms, job.folder.resolve()
    notes: tuple[str, ...] = ()
    long: Long = "as the search"
    if job.tokens is not None:
        name = "train.parquet"
        write_parquet(masked(job.tokens), job.work / name)
        source: dict[str, Any] = {"path": str(place / name), "ds_type": "parquet", "type": None}
    else:
        name, long = "train.jsonl", "cut at the end"
        told = job.write_turns()
        notes = told.notes()
        source = {
            "path": str(place / name), "ds_type": "json", "type": "chat_template", "field_messages": "messages",
            "message_property_mappings": {"role": "role", "content": "content"},
            **({"message_field_training": "weight"} if told.untrained else {}),
            "roles_to_train": ["assistant"], "train_on_eos": "turn",
        }  # fmt: skip
    settings = {
        "base_model": terms.model or MODEL, "output_dir": str(place / "trained"), "datasets": [source],
        "dataset_prepared_path": str(place / "prepared"), "val_set_size": 0, "dataset_exact_deduplication": False,
        **length(terms, "sequence_len"), "excess_length_strategy": "truncate", "min_sample_len": 1,
        "sample_packing": terms.packed, "dataloader_drop_last": False, "num_epochs": 1, "seed": terms.seed,
        **({} if terms.sequences is None else {
            "micro_batch_size": 1, "gradient_accumulation_steps": terms.sequences}),
        "optimizer": "adamw_torch", "learning_rate": terms.learning_rate, "lr_scheduler": "cosine",
        "warmup_ratio": WARMUP, "weight_decay": WEIGHT_DECAY, "adam_beta1": BETA1, "adam_beta2": BETA2,
        "max_grad_norm": GRAD_CLIP,
    }  # fmt: skip
    write_yaml(job, "axolotl.yaml", settings)
    return report_of(
        job, "axolotl", [name, "axolotl.yaml"], f"axolotl train {place}/axolotl.yaml", long=long, notes=notes
    )


def length(terms: Terms, key: str) -> dict[str, Any]:
    """Say the context under a trainer's own key, where it is known."""
    return {} if terms.context is None else {key: terms.context}


def _trainer(terms: Terms) -> dict[str, Any]:
    """Say epochs, seed, step, schedule and optimiser as transformers' `Trainer` names them."""
    step = (
        {}
        if terms.sequences is None
        else {"per_device_train_batch_size": 1, "gradient_accumulation_steps": terms.sequences}
    )
    return {
        "num_train_epochs": 1, "seed": terms.seed, "data_seed": terms.seed, **step,
        "learning_rate": terms.learning_rate, "lr_scheduler_type": "cosine", "weight_decay": WEIGHT_DECAY,
        "adam_beta1": BETA1, "adam_beta2": BETA2, "max_grad_norm": GRAD_CLIP, "report_to": "none", "push_to_hub": False,
    }  # fmt: skip


def untrained(told: Told) -> tuple[str, ...]:
    """Say that the target puts loss on answers that carry none."""
    return (f"{told.untrained:,} rows have an answer without loss, and here it carries loss",) if told.untrained else ()


def say_model(terms: Terms, option: str, between: str = " ") -> str:
    """Say how the user names the model, where the script does not."""
    return "" if terms.model else f" {option}{between}{MODEL}"


def masked(tokens: Encoded) -> Iterator[dict[str, Any]]:
    """Give rows an attention mask, by which some trainers know rows that are tokens already."""
    for row in tokens.records():
        yield {**row, "attention_mask": row["labels"] * 0 + 1}


def _save_to_disk(rows: Iterator[dict[str, Any]], folder: Path, fingerprint: str) -> None:
    """Write rows as the folder that `datasets.load_from_disk` reads."""
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    spool = folder.with_name(f".{folder.name}.parquet")
    write_parquet(rows, spool)
    folder.mkdir()
    name = "data-00000-of-00001.arrow"
    source = parquet.ParquetFile(spool)
    with arrow.OSFile(str(folder / name), "wb") as sink, arrow.ipc.new_stream(sink, source.schema_arrow) as writer:
        for batch in source.iter_batches():
            writer.write_batch(batch)
    source.close()
    spool.unlink()
    state: dict[str, Any] = {
        "_data_files": [{"filename": name}], "_fingerprint": fingerprint, "_format_columns": None,
        "_format_kwargs": {}, "_format_type": None, "_output_all_columns": False, "_split": "train",
    }  # fmt: skip
    (folder / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")
    (folder / "dataset_info.json").write_text("{}", encoding="utf-8")


def write_yaml(job: Job, name: str, settings: dict[str, Any]) -> None:
    """Write settings as YAML under a comment that says what is to be filled in."""
    comment = "" if job.terms.model else f" Put your model where {MODEL} stands."
    text = f"# A mixture by ideal-proxy: {job.mixture.name!r}.{comment}\n" + yaml.safe_dump(settings, sort_keys=False)
    (job.work / name).write_text(text, encoding="utf-8")


def write_script(
    job: Job, name: str, command: str, settings: dict[str, Any], *, model: str, change: bool = True
) -> None:
    """Write a shell script that calls the trainer with options."""
    if job.terms.model:
        settings = {model: job.terms.model, **settings}
    lines = [
        "#!/usr/bin/env bash",
        f"# A mixture by ideal-proxy: {job.mixture.name!r}; add your own options.",
        "set -e",
    ]
    if change:
        lines.append('cd "$(dirname "$0")"')
    lines.append(" \\\n  ".join([command, *(_option(key, value) for key, value in settings.items()), '"$@"']))
    (job.work / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _option(key: str, value: Any) -> str:
    words = value if isinstance(value, list) else [str(value).lower() if isinstance(value, bool) else str(value)]
    return " ".join([f"--{key}", *(shlex.quote(word) for word in words)])
