"""Export to SFT trainers' own configurations: LLaMA-Factory, ms-swift, open-instruct, TRL, axolotl, Megatron-Bridge."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import yaml

from ideal_proxy.export.formats import write_drawn_as
from ideal_proxy.export.job import ExportReport, Job, line_of, report_of
from ideal_proxy.export.terms import counts_rows, step_terms
from ideal_proxy.mixture import DomainVolume


def llamafactory(job: Job) -> ExportReport:
    """Write `dataset_info.json` with `num_samples` a set, and a training YAML.

    LLaMA-Factory takes a permutation's first rows and, beyond the set's size, draws the rest with replacement; counts
    are exact where `streaming` is off and `max_samples` unset.

    Args:
        job: mixture and folder.

    Returns:
        ExportReport: what was written.
    """
    names = job.file_names()
    info: dict[str, Any] = {}
    unsaid = 0
    for domain in job.domains:
        name = names[domain.name]
        unsaid += _write_sharegpt(job, domain, job.folder / f"{name}.jsonl")
        info[name] = {
            "file_name": f"{name}.jsonl",
            "formatting": "sharegpt",
            "columns": {"messages": "messages", "tools": "tools"},
            "tags": {
                "role_tag": "role", "content_tag": "content",
                "user_tag": "user", "assistant_tag": "assistant", "system_tag": "system",
                "observation_tag": "observation", "function_tag": "function_call",
            },
            "num_samples": domain.rows,
        }  # fmt: skip
    (job.folder / "dataset_info.json").write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
    settings = {
        "stage": "sft", "do_train": True, "dataset_dir": str(job.folder.resolve()), "dataset": ",".join(info),
        "mix_strategy": "concat", "streaming": False, "num_train_epochs": 1, "seed": job.mixture.seed,
        **_step(job, "cutoff_len"),
    }  # fmt: skip
    _write_yaml(job, "sft.yaml", settings, "add model_name_or_path, template and output_dir; leave max_samples unset")
    return report_of(
        job, "llamafactory", ["dataset_info.json", "sft.yaml", *(f"{name}.jsonl" for name in info)],
        "llamafactory-cli train sft.yaml",
        how={d.name: f"num_samples={d.rows}" for d in job.domains},
        notes=(
            *_repeats(job, "rows beyond one pass are drawn with replacement, so some repeat more often than others"),
            *([f"{unsaid:,} turns say something beside a tool call: the words are left out, its layout has no place"]
              if unsaid else []),
        ),
    )  # fmt: skip


def _write_sharegpt(job: Job, domain: DomainVolume, path: Path) -> int:
    """Write a domain's rows once each in the roles that LLaMA-Factory knows; return how many turns lose words."""
    unsaid = 0
    with open(path, "wb") as file:
        for row in job.conversations(domain):
            turns: list[dict[str, str]] = []
            for turn in row["messages"]:
                role, content = turn["role"], turn.get("content") or ""
                thoughts = turn.get("reasoning_content")
                if calls := turn.get("tool_calls"):
                    unsaid += bool(content.strip())
                    role, content = "function_call", json.dumps([c["function"] for c in calls], ensure_ascii=False)
                if role == "tool":
                    role = "observation"
                    if turns and turns[-1]["role"] == role:  # answers to calls made at once are one turn there
                        turns[-1]["content"] += "\n" + content
                        continue
                if thoughts:
                    content = f"<think>\n{thoughts}\n</think>\n\n{content}"
                turns.append({"role": role, "content": content})
            tools = row.get("tools") or ""
            if not isinstance(tools, str):
                tools = json.dumps(tools, ensure_ascii=False)
            file.write(line_of({"messages": turns, "tools": tools}))
    return unsaid


def ms_swift(job: Job) -> ExportReport:
    """Write a script with `path#N` a set, which takes whole passes and a remainder."""
    names = job.file_names()
    sets = []
    for domain in job.domains:
        job.write_whole(domain, job.folder / "data" / f"{names[domain.name]}.jsonl")
        sets.append(f"data/{names[domain.name]}.jsonl#{domain.rows}")
    options = [
        "--split_dataset_ratio 0",
        "--streaming false",
        "--num_train_epochs 1",
        f"--data_seed {job.mixture.seed}",
        *(f"--{key} {str(value).lower()}" for key, value in _step(job, "max_length").items()),
    ]
    _write_script(job, "sft.sh", "swift sft", ["--dataset " + " ".join(shlex.quote(s) for s in sets), *options])
    return report_of(
        job, "ms-swift", ["sft.sh", "data/"], "bash sft.sh --model MODEL",
        how={d.name: s for d, s in zip(job.domains, sets, strict=True)},
    )  # fmt: skip


def open_instruct(job: Job) -> ExportReport:
    """Write a script with `--dataset_mixer_list PATH ROWS …`; a whole number is rows, `1.0` would be all of a set."""
    names = job.file_names()
    pairs = []
    for domain in job.domains:
        path = f"data/{names[domain.name]}.jsonl"
        job.write_whole(domain, job.folder / path)
        pairs.append(f'"$HERE"/{path} {domain.rows}')
    options = ["--dataset_mixer_list " + " ".join(pairs), "--dataset_mixer_list_splits train"]
    options += ["--num_train_epochs 1", f"--seed {job.mixture.seed}"]
    options += [f"--{key} {value}" for key, value in _step(job, "max_seq_length").items() if value is not False]
    # `mean` divides a micro-batch by its own tokens, so micro-batches of one row count rows alike; `sum` counts tokens.
    if job.mixture.batch is not None:
        options.append(f"--reduce_loss {'mean' if counts_rows(job.mixture, 'open-instruct') else 'sum'}")
    _write_script(job, "sft.sh", "python open_instruct/finetune.py", options, change=False)
    return report_of(
        job, "open-instruct", ["sft.sh", "data/"],
        f"in an open-instruct checkout: bash {job.folder.resolve()}/sft.sh --model_name_or_path MODEL",
        how={d.name: str(d.rows) for d in job.domains},
    )  # fmt: skip


def trl(job: Job) -> ExportReport:
    """Write the exact rows and a configuration for `trl sft --config` that takes them all."""
    path = write_drawn_as(job, job.folder / "train.jsonl")
    settings = {
        "datasets": [{"path": "json", "data_files": str(path.resolve()), "split": "train"}],
        "num_train_epochs": 1, "assistant_only_loss": True, "seed": job.mixture.seed,
        **_step(job, "max_length"),
    }  # fmt: skip
    _write_yaml(job, "sft.yaml", settings, "add model_name_or_path and output_dir")
    return report_of(
        job, "trl", ["train.jsonl", "sft.yaml"], "trl sft --config sft.yaml --model_name_or_path MODEL", exact=False,
        how={d.name: "in train.jsonl" for d in job.domains},
        notes=("TRL's `fraction` cannot say counts nor repeat rows, so the exact rows are written and taken whole",),
    )  # fmt: skip


def axolotl(job: Job) -> ExportReport:
    """Write the exact rows and a YAML that takes them all, with de-duplication off."""
    path = write_drawn_as(job, job.folder / "train.jsonl")
    settings = {
        "datasets": [{
            "path": str(path.resolve()), "ds_type": "json", "type": "chat_template", "field_messages": "messages",
            "message_property_mappings": {"role": "role", "content": "content"},
            "roles_to_train": ["assistant"], "train_on_eos": "turn",
        }],
        "val_set_size": 0, "dataset_exact_deduplication": False, "num_epochs": 1, "seed": job.mixture.seed,
        **_step(job, "sequence_len", packing="sample_packing", one="micro_batch_size"),
    }  # fmt: skip
    _write_yaml(job, "axolotl.yaml", settings, "add base_model and output_dir; de-duplication would undo the repeats")
    return report_of(
        job, "axolotl", ["train.jsonl", "axolotl.yaml"], "axolotl train axolotl.yaml", exact=False,
        how={d.name: "in train.jsonl" for d in job.domains},
        notes=("axolotl cannot say counts nor repeat rows, so the exact rows are written and taken whole",),
    )  # fmt: skip


def megatron_bridge(job: Job) -> ExportReport:
    """Write a Python configuration with `source_weights`, the number of passes over each source."""
    names = job.file_names()
    sources, weights = [], []
    for domain in job.domains:
        path = f"data/{names[domain.name]}.jsonl"
        job.write_whole(domain, job.folder / path)
        sources.append(
            "        HFDatasetSourceConfig("
            f'path_or_dataset="json", load_kwargs={{"data_files": str(HERE / {path!r})}}),'
        )
        weights.append(passes(domain))
    script = (
        '"""A mixture by ideal-proxy for Megatron-Bridge; source_weights are passes over each source, in rows."""\n\n'
        "from pathlib import Path\n\n"
        "from megatron.bridge.data.builders.direct_hf_sft import DirectHFSFTDatasetConfig\n"
        "from megatron.bridge.data.sources.hf import HFDatasetSourceConfig\n\n"
        "HERE = Path(__file__).resolve().parent\n"
        f"SOURCE_WEIGHTS = {json.dumps(weights)}\n"
        f"{_megatron_step(job)}\n\n"
        "def dataset_config(seq_length: int) -> DirectHFSFTDatasetConfig:\n"
        "    sources = [\n" + "\n".join(sources) + "\n    ]\n"
        "    return DirectHFSFTDatasetConfig(\n"
        "        seq_length=seq_length, source=sources, source_weights=SOURCE_WEIGHTS,\n"
        f"        blend_seed={job.mixture.seed}, do_validation=False, do_test=False,\n    )\n"
    )
    (job.folder / "mixture_blend.py").write_text(script, encoding="utf-8")
    return report_of(
        job, "megatron-bridge", ["mixture_blend.py", "data/"], "import dataset_config from mixture_blend.py",
        how={d.name: f"{w:.6f} passes" for d, w in zip(job.domains, weights, strict=True)},
        notes=("needs a Megatron-Bridge whose DirectHFSFTDatasetConfig takes source_weights (2026)",),
    )  # fmt: skip


def passes(domain: DomainVolume) -> float:
    """Write a count as passes, so that it is exact whether the target rounds the remainder up or to the nearest row."""
    whole, rest = divmod(domain.rows, domain.available)
    return float(whole) if rest == 0 else (domain.rows - 0.25) / domain.available


def _step(
    job: Job, length: str, *, packing: str = "packing", one: str = "per_device_train_batch_size"
) -> dict[str, Any]:
    """Say an optimiser step in the trainer's own options; nothing where the mixture file does not say it."""
    terms = step_terms(job.mixture)
    if terms is None:
        return {}
    told = {one: 1, "gradient_accumulation_steps": terms.sequences, packing: terms.packed is not None}
    return told if terms.packed is None else told | {length: terms.packed}


def _megatron_step(job: Job) -> str:
    """Write the step as constants for the training configuration, which this script does not hold."""
    terms = step_terms(job.mixture)
    if terms is None:
        return ""
    return (
        "# For your ConfigContainer: train.global_batch_size, train.micro_batch_size, model.calculate_per_token_loss\n"
        f"GLOBAL_BATCH_SIZE, MICRO_BATCH_SIZE, PER_TOKEN_LOSS = {terms.sequences}, 1, "
        f"{not counts_rows(job.mixture, 'megatron-bridge')}\n"
    )


def _repeats(job: Job, text: str) -> tuple[str, ...]:
    return (text,) if any(domain.rows > domain.available for domain in job.domains) else ()


def _write_yaml(job: Job, name: str, settings: dict[str, Any], comment: str) -> None:
    text = f"# A mixture by ideal-proxy: {job.mixture.name!r}; {comment}.\n" + yaml.safe_dump(settings, sort_keys=False)
    (job.folder / name).write_text(text, encoding="utf-8")


def _write_script(job: Job, name: str, command: str, options: list[str], *, change: bool = True) -> None:
    lines = [
        "#!/usr/bin/env bash",
        f"# A mixture by ideal-proxy: {job.mixture.name!r}; add your own options.",
        "set -e",
    ]
    lines.append('HERE="$(cd "$(dirname "$0")" && pwd)"')
    if change:
        lines.append('cd "$HERE"')
    lines.append(" \\\n  ".join([command, *options, '"$@"']))
    (job.folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
