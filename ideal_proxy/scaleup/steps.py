"""One optimiser step of the full-size run: which rows it takes, how processes share them, and its gradient.

Which rows share a step never depends on the number of processes or on what fits a micro-batch, and the loss is taken
over all of them, as for the proxies. Legend: R rows, S steps, B rows of a step.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from ideal_proxy.batching import Loss
from ideal_proxy.data import IGNORED, Batch, TokenRows
from ideal_proxy.errors import UserError
from ideal_proxy.proxy import (
    TrainSettings,
    batch_loss,
    collate_across,
    label_losses,
    label_weights,
    micro_batches,
    of_rows,
)
from ideal_proxy.scaleup.source import Drawn

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Step:
    """One optimiser step as one process sees it."""

    batches: tuple[Batch, ...]  # this process's micro-batches; as many in every process
    # what the sum over its labels is divided by: the step's supervised tokens, or its rows, over all processes
    normaliser: int
    loss: Loss = "token"  # whether each supervised token counts alike, or each row


class StepSet(Dataset[Step]):
    """The steps of a run, in order."""

    def __init__(
        self,
        drawn: Drawn,
        token_rows: Sequence[TokenRows],
        settings: TrainSettings,
        *,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.drawn = drawn
        self.token_rows = token_rows
        self.settings = settings
        self.rank = rank
        self.world = world
        self._lengths = of_rows([rows.lengths for rows in token_rows], *drawn.order)
        self._labels = of_rows([rows.supervised_tokens for rows in token_rows], *drawn.order)
        self._bounds = settings.bounds(self._lengths)

    def __len__(self) -> int:
        """Return the number of steps S."""
        return len(self._bounds) - 1

    def __getitem__(self, index: int) -> Step:
        """Return step `index`; the last one may have fewer rows."""
        here = slice(self._bounds[index], self._bounds[index + 1])
        limit, loss = self.settings.micro_batch_tokens or 0, self.settings.loss
        domains, rows = self.drawn.domain[here], self.drawn.row[here]
        lengths, labels = self._lengths[here], self._labels[here]
        parts = [[dealt[part] for part in micro_batches(lengths[dealt], limit)] for dealt in deal(lengths, self.world)]
        mine = parts[self.rank]
        batches = [collate_across(self.token_rows, domains[part], rows[part]) for part in mine]
        # Every process runs as many forward passes, or collectives would wait for ever: some run a row without labels.
        for _ in range(max(map(len, parts)) - len(mine)):
            shortest = np.array([int(lengths.argmin())])
            silent = collate_across(self.token_rows, domains[shortest], rows[shortest])
            batches.insert(0, replace(silent, labels=np.full_like(silent.labels, IGNORED)))
        return Step(tuple(batches), max(1, int(labels.sum() if loss == "token" else np.count_nonzero(labels))), loss)


def deal(lengths: Ints, world: int) -> list[Ints]:
    """Deal the rows of a step to the processes, so that all have about as many tokens."""
    if world == 1:
        return [np.arange(len(lengths), dtype=np.int64)]
    order = np.argsort(-lengths, kind="stable")
    turn = np.arange(len(order)) % (2 * world)
    owner = np.minimum(turn, 2 * world - 1 - turn)  # back and forth
    return [order[owner == rank] for rank in range(world)]


class _Wrapped:
    """What `label_losses` needs of a wrapped model: the wrapper's call, the model's configuration."""

    def __init__(self, wrapper: Any, inner: Any) -> None:
        self.config = inner.config
        self.parameters = wrapper.parameters
        self._wrapper = wrapper

    def __call__(self, **inputs: Any) -> Any:
        return self._wrapper(**inputs)


def accumulate(
    model: Any,
    inner: Any,
    step: Step,
    *,
    world: int,
    backward: Callable[[Tensor], None],
    no_sync: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    autocast: torch.dtype | None = None,
) -> Tensor:
    """Add the gradient of one step, however its rows are split."""
    total: Tensor | None = None
    scale = world / step.normaliser
    seen = _Wrapped(model, inner)
    for number, batch in enumerate(step.batches):
        last = number == len(step.batches) - 1
        with contextlib.nullcontext() if last else no_sync():
            if model is inner:  # a wrapper's gradients are only right through its own call
                loss = batch_loss(model, batch, scale, autocast=autocast, loss=step.loss)
            else:
                losses, weights = label_losses(seen, batch), label_weights(batch, step.loss)
                loss = (losses if weights is None else losses * torch.from_numpy(weights).to(losses)).sum() * scale
            backward(loss)
        total = loss.detach() if total is None else total + loss.detach()
    assert total is not None
    return total


def sharding_asked() -> bool:
    """Tell whether `accelerate launch` was told to shard with FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() in {"1", "true", "yes"}


def check_sharded(model: Any, *, wanted: bool) -> None:
    """Refuse to train on whole copies where sharding was asked for."""
    # accelerate ignores FSDP on a CPU without a word
    if not wanted:
        return
    from torch.distributed.tensor import DTensor

    if not any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        raise UserError(
            "FSDP2 was asked for, but the parameters are not sharded: accelerate shards on accelerators only, with "
            "fsdp_version 2; use the shipped ideal_proxy/scaleup/fsdp2.yaml on GPUs, or launch without FSDP"
        )
