"""Train one proxy on one mixture: loss and rows of a step are the target trainer's, however they are split or packed.

Models, losses and evaluation live in `model`. Legend: R rows of the
run in training order, S optimiser steps.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from ideal_proxy.data import TokenRows
from ideal_proxy.errors import UserError
from ideal_proxy.mixture import domain_order, training_order
from ideal_proxy.proxy.model import batch_loss, collate_across, micro_batches, normaliser, tokens_at_once
from ideal_proxy.proxy.records import TrainLog, TrainSettings, learning_rates, of_rows
from ideal_proxy.store import atomic_write_bytes

CHECKPOINT = "checkpoint.safetensors"


class TrainingStopped(Exception):
    """The training was asked to stop; its checkpoint stands where it was given a folder."""


def train(
    model: Any,
    order: tuple[NDArray[np.int64], NDArray[np.int64]],
    token_rows: Sequence[TokenRows],
    settings: TrainSettings,
    *,
    every_token: bool = False,
    checkpoint_dir: str | Path | None = None,
    checkpoint_seconds: float = 60.0,
    on_step: Callable[[int, int, Tensor], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> TrainLog:
    """Train a model in place on rows in a given order; with a checkpoint folder it goes on to the same bits."""
    # The order (domain (R,) and row (R,)) and the rows' lengths decide which rows share a step
    # (`TrainSettings.bounds`), and its loss is taken over all of them, however they are split into micro-batches.
    # `on_step` hears (steps done, steps in all, loss in nats; reading it waits for the device), `should_stop` is asked
    # after each step.
    domain_R, row_R = (np.asarray(part, dtype=np.int64) for part in order)
    if not len(domain_R):
        raise UserError("a proxy run has no row to train on; give at least one domain a volume above 0")
    device = next(model.parameters()).device
    length_R = of_rows([rows.lengths for rows in token_rows], domain_R, row_R)
    bounds = settings.bounds(length_R)
    steps = len(bounds) - 1
    rates = learning_rates(settings, steps)
    optimizer = adamw(model, settings)
    checkpoint = Path(checkpoint_dir) / CHECKPOINT if checkpoint_dir is not None else None
    identity = _identity(model, domain_R, row_R, token_rows, settings, every_token) if checkpoint else ""
    done, losses = _resume(model, optimizer, checkpoint, identity) if checkpoint else (0, [])
    resumed = done
    limit = tokens_at_once(settings.micro_batch_tokens, device)
    trainable = [p for p in model.parameters() if p.requires_grad]
    autocast = torch.bfloat16 if settings.dtype == "bfloat16" else None
    model.train()
    started = saved = time.monotonic()
    for step in range(done, steps):
        here = slice(bounds[step], bounds[step + 1])
        domains, rows = domain_R[here], row_R[here]
        batches = [
            collate_across(token_rows, domains[part], rows[part], every_token=every_token)
            for part in micro_batches(length_R[here], limit)
        ]
        scale = 1.0 / normaliser(batches, settings.loss)
        total: Tensor | None = None
        for batch in batches:
            loss = batch_loss(model, batch, scale, autocast=autocast, loss=settings.loss)
            loss.backward()  # type: ignore[no-untyped-call]
            total = loss.detach() if total is None else total + loss.detach()
        assert total is not None
        losses.append(total)
        for group in optimizer.param_groups:
            group["lr"] = float(rates[step])
        torch.nn.utils.clip_grad_norm_(trainable, settings.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if on_step is not None:
            on_step(step + 1, steps, total)
        stop = should_stop is not None and step + 1 < steps and should_stop()
        if checkpoint and step + 1 < steps and (stop or time.monotonic() - saved >= checkpoint_seconds):
            _save(model, optimizer, checkpoint, identity, step + 1, losses)
            saved = time.monotonic()
        if stop:
            raise TrainingStopped
    values = _values(losses)
    if checkpoint:
        checkpoint.unlink(missing_ok=True)
    tokens = int(length_R.sum())
    supervised = tokens - len(length_R)  # a row's first token has no label
    if not every_token:
        supervised = int(of_rows([rows.supervised_tokens for rows in token_rows], domain_R, row_R).sum())
    return TrainLog(
        values, rates, len(row_R), tokens, supervised, int(length_R @ length_R), time.monotonic() - started, resumed
    )


def warm_start(
    model: Any,
    names: Sequence[str],
    token_rows: Sequence[TokenRows],
    settings: TrainSettings,
    *,
    seed: int,
    tokens_per_domain: int | None = None,
    checkpoint_dir: str | Path | None = None,
    checkpoint_seconds: float = 60.0,
    on_step: Callable[[int, int, Tensor], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> TrainLog:
    """Teach a fresh proxy the language of the domains: the mean loss of every token of reserved rows."""
    # Each domain gives as many tokens: by default the mean of what they have, but none more than four times over.
    settings = dataclasses.replace(settings, loss="token")
    sizes = [int(rows.offsets[-1]) for rows in token_rows]
    if min(sizes) == 0:
        raise UserError(
            f"domain {names[sizes.index(0)]!r} has no row reserved for the warm start; give it more rows, or a larger "
            "warm_fraction"
        )
    goal = tokens_per_domain or min(sum(sizes) // len(sizes), 4 * min(sizes))
    parts = []
    for name, rows in zip(names, token_rows, strict=True):
        turn = domain_order(seed, name, rows.keys)
        passes = -(-goal // int(rows.offsets[-1]))
        indices = np.tile(turn, passes)
        count = int(np.searchsorted(np.cumsum(np.asarray(rows.lengths)[indices]), goal)) + 1
        indices = indices[:count]
        parts.append((rows.keys, indices, np.arange(len(indices)) // len(turn)))
    order = training_order(seed, list(names), parts)
    return train(
        model, order, token_rows, settings,
        every_token=True, checkpoint_dir=checkpoint_dir, checkpoint_seconds=checkpoint_seconds,
        on_step=on_step, should_stop=should_stop,
    )  # fmt: skip


def save_weights(model: Any, path: str | Path) -> None:
    """Write a proxy's weights as safetensors, atomically, tied tensors once; of a LoRA only what it trains."""
    from safetensors.torch import save

    own = trained_parameters(model)
    atomic_write_bytes(path, save({name: p.detach().cpu().contiguous() for name, p in own.items()}))


def load_weights(model: Any, path: str | Path) -> None:
    """Read weights that `save_weights` wrote into a proxy of the same shape."""
    from safetensors.torch import load_file

    tensors = load_file(str(path))
    own = trained_parameters(model)
    if {n: tuple(t.shape) for n, t in tensors.items()} != {n: tuple(p.shape) for n, p in own.items()}:
        raise UserError(f"{path} holds weights of another proxy; remove it and run the same command again")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(tensors[name])


def trained_parameters(model: Any) -> dict[str, torch.nn.Parameter]:
    """Name the parameters that training changes; a frozen base is the same in every run."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def adamw(model: Any, settings: TrainSettings) -> torch.optim.AdamW:
    """Return AdamW with decay on matrices only; the fused kernel, one pass over the weights, where there is one."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    fused = parameters[0].device.type in {"cpu", "cuda", "mps"}
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=settings.learning_rate, betas=(settings.beta1, settings.beta2), fused=fused,
    )  # fmt: skip


def _identity(
    model: Any,
    domain_R: NDArray[np.int64],
    row_R: NDArray[np.int64],
    token_rows: Sequence[TokenRows],
    settings: TrainSettings,
    every_token: bool,
) -> str:
    """Return a fingerprint of what a training depends on, so that no other run's checkpoint is taken up.

    A frozen base is left out: all runs of a folder share it, and the folder's settings hold its fingerprint.
    """
    digest = hashlib.sha256(json.dumps([dataclasses.asdict(settings), every_token]).encode())
    digest.update(domain_R.tobytes())
    digest.update(row_R.tobytes())
    for rows in token_rows:
        digest.update(np.ascontiguousarray(rows.keys).tobytes())
    for parameter in trained_parameters(model).values():
        digest.update(parameter.detach().cpu().contiguous().float().numpy().data)
    return digest.hexdigest()


def _save(model: Any, optimizer: torch.optim.AdamW, path: Path, identity: str, done: int, losses: list[Tensor]) -> None:
    """Write the state after `done` steps; safetensors, never pickle."""
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {"losses": torch.from_numpy(_values(losses))}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            state = optimizer.state[parameter]
            tensors[f"weight.{name}"] = parameter.detach().cpu().contiguous()
            tensors[f"mean.{name}"] = state["exp_avg"].cpu().contiguous()
            tensors[f"square.{name}"] = state["exp_avg_sq"].cpu().contiguous()
    told = {"identity": identity, "done": str(done)}
    atomic_write_bytes(path, save(tensors, metadata={**told, "checksum": _checksum(tensors, told)}))


def _checksum(tensors: Mapping[str, Tensor], told: Mapping[str, str]) -> str:
    """Return a hash of all that a checkpoint holds; safetensors has none."""
    digest = xxhash.xxh3_128(json.dumps([told["identity"], told["done"]]).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _resume(model: Any, optimizer: torch.optim.AdamW, path: Path, identity: str) -> tuple[int, list[Tensor]]:
    """Take up a checkpoint of this very training; any other, a damaged one or none means starting at step 0."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return 0, []
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("identity") != identity:
                return 0, []
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError):
        return 0, []
    if metadata.get("checksum") != _checksum(tensors, metadata):
        return 0, []
    done = int(metadata["done"])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            parameter.copy_(tensors[f"weight.{name}"])
            optimizer.state[parameter] = {
                "step": torch.tensor(float(done), device=parameter.device),
                "exp_avg": tensors[f"mean.{name}"].to(parameter.device),
                "exp_avg_sq": tensors[f"square.{name}"].to(parameter.device),
            }
    return done, list(tensors["losses"].unbind())


def _values(losses: list[Tensor]) -> NDArray[np.float64]:
    """Read the losses back from the device in one go, and refuse a training that diverged."""
    values: NDArray[np.float64] = torch.stack([loss.double().cpu() for loss in losses]).numpy()
    if not np.isfinite(values).all():
        at = int(np.flatnonzero(~np.isfinite(values))[0]) + 1
        raise UserError(f"the loss is not finite at step {at}; choose a smaller learning rate")
    return values
