"""The weights of pretrained proxies: kept once in the run directory, mapped from there by every worker.

A copy, so that a resumed search meets the same weights whatever became of the folder or the hub id, and one file, so
that the workers of a machine share its pages: the frozen base of LoRA proxies is in memory once, and full fine-tuning
copies a page when it first writes to it. The file itself is never written to again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ideal_proxy.errors import UserError
from ideal_proxy.proxy.model import use_packed_attention
from ideal_proxy.proxy.pretrained import Pretrained, empty_model, with_lora
from ideal_proxy.store import atomic_write_json, is_complete, is_whole, mark_complete, whole

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
STEP_TOKENS = {"cpu": 512, "cuda": 8192, "mps": 2048}
"""Tokens of a micro-batch: activations of some thousand numbers a layer and token must fit in memory beside others'."""


def keep_base(model: Any, source: Pretrained, folder: Path) -> str:
    """Write a model's weights and configuration, with the code that came with it where that is trusted."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = json.loads(model.config.to_json_string(use_diff=False))
    settings["architectures"] = [type(model).__name__]
    for key in ("_name_or_path", "transformers_version"):
        settings.pop(key, None)
    if source.trust_remote_code and Path(source.name).is_dir():
        for file in Path(source.name).glob("*.py"):
            shutil.copy2(file, folder / file.name)
    tensors = _tensors(model)
    atomic_write_json(folder / CONFIG, settings)
    _write(folder / WEIGHTS, tensors)
    mark_complete(folder)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].numpy().data)
    return digest.hexdigest()


def place_base(kept: Path, folder: Path, *, narrow: bool, trust_remote_code: bool = False) -> None:
    """Put the weights where the workers map them."""
    if is_whole(folder):
        return
    folder.mkdir(parents=True, exist_ok=True)
    for file in kept.iterdir():
        if file.suffix == ".py" or file.name == CONFIG:
            shutil.copy2(file, folder / file.name)
    if narrow:
        model = map_base(kept, trust_remote_code=trust_remote_code)
        chosen = _linear(model)
        _write(folder / WEIGHTS, {
            name: tensor.to(torch.bfloat16) if name in chosen else tensor for name, tensor in _tensors(model).items()
        })  # fmt: skip
    else:
        (folder / WEIGHTS).unlink(missing_ok=True)
        try:
            os.link(kept / WEIGHTS, folder / WEIGHTS)
        except OSError:  # another file system, or one without links
            with whole(folder / WEIGHTS) as part:
                shutil.copy2(kept / WEIGHTS, part)
    mark_complete(folder)


def map_base(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """Build the model around the mapped file; nothing is read before it is used."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not is_complete(folder):
        raise UserError(f"{folder} does not hold the whole base model; remove it and run the same command again")
    model = empty_model(folder, trust_remote_code=trust_remote_code)
    try:
        tensors = load_file(str(folder / WEIGHTS))
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{folder / WEIGHTS} cannot be read ({error}); remove {folder} and run the same command again"
        ) from error
    model.load_state_dict(tensors, strict=False, assign=True)
    model.tie_weights()
    left = [name for name, tensor in [*model.named_parameters(), *model.named_buffers()] if tensor.is_meta]
    if left:
        raise UserError(f"{folder / WEIGHTS} lacks {left[0]}; remove {folder} and run the same command again")
    model.config.use_cache = False
    model.train()
    return use_packed_attention(model)


def build_pretrained_proxy(folder: Path, *, lora_rank: int | None, seed: int, trust_remote_code: bool = False) -> Any:
    """Build a proxy that has seen no row."""
    model = map_base(folder, trust_remote_code=trust_remote_code)
    return model if lora_rank is None else with_lora(model, lora_rank, seed)


def trainable_parameters(model: Any) -> int:
    """Count the weights that training changes."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _tensors(model: Any) -> dict[str, Tensor]:
    """Name everything that the model's file must hold, tied tensors once."""
    found = {name: parameter.detach() for name, parameter in model.named_parameters()}
    kept = {tensor.data_ptr() for tensor in found.values()}
    for name, tensor in model.state_dict().items():  # persistent buffers
        if name not in found and tensor.data_ptr() not in kept:
            found[name] = tensor.detach()
    return {name: tensor.contiguous() for name, tensor in found.items()}


def _linear(model: Any) -> set[str]:
    """Name the weights that only linear layers use."""
    uses: dict[bool, set[int]] = {True: set(), False: set()}
    for module in model.modules():
        uses[isinstance(module, nn.Linear)] |= {id(p) for p in module.parameters(recurse=False)}
    return {name for name, parameter in model.named_parameters() if id(parameter) in uses[True] - uses[False]}


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write safetensors so that a half-written file is never taken for a whole one."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with whole(path) as part:
        try:
            save_file(tensors, str(part), metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(str(error)) from error
        shutil.copymode(path.with_name(CONFIG), part)  # safetensors writes for its owner's eyes only
