"""One of two gloo processes: trains a tiny model with FSDP2, then with DDP, and writes the whole weights (rank 0).

Run as `python sharded_worker.py RANK WORLD STORE OUT`; accelerate ignores FSDP on a CPU, so `fully_shard` is called
here itself, on the very steps and gradients of the scale-up.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from ideal_proxy.batching import Loss
from ideal_proxy.data.tokens import TokenRows
from ideal_proxy.proxy.model import build_proxy
from ideal_proxy.proxy.records import TrainSettings
from ideal_proxy.scaleup.source import draw_rows
from ideal_proxy.scaleup.steps import StepSet, accumulate, check_sharded

VOCABULARY, BATCH_ROWS, MICRO_TOKENS = 300, 24, 90


def rows(count: int, seed: int) -> TokenRows:
    """Random rows of unequal lengths, the second half of each supervised."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(4, 40, count)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    place = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    return TokenRows(
        ids=rng.integers(0, VOCABULARY, offsets[-1]).astype(np.int32),
        supervised=place >= np.repeat(lengths // 2, lengths),
        offsets=offsets,
        keys=rng.integers(0, 2**63, count).astype(np.uint64),
        source_index=np.arange(count),
    )


def steps(rank: int, world: int, loss: Loss = "token") -> StepSet:
    domains = [rows(40, 1), rows(30, 2)]
    drawn = draw_rows(["a", "b"], domains, [37, 45], 7)
    settings = TrainSettings(batch_rows=BATCH_ROWS, micro_batch_tokens=MICRO_TOKENS, loss=loss)
    return StepSet(drawn, domains, settings, rank=rank, world=world)


def train(model, inner, plan: StepSet, world: int, no_sync) -> list[float]:  # type: ignore[no-untyped-def]
    """Four steps of clipped AdamW; returns this process's part of each step's loss."""
    # A large ε: at the default, a gradient of nothing but rounding would move its weight by a whole learning rate.
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-3)
    losses = []
    for index in range(len(plan)):
        loss = accumulate(
            model,
            inner,
            plan[index],
            world=world,
            backward=torch.Tensor.backward,
            no_sync=no_sync,
        )
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def whole(model) -> dict[str, torch.Tensor]:  # type: ignore[no-untyped-def]
    parts = model.named_parameters()
    return {n: (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone() for n, p in parts}


def main(rank: int, world: int, store: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    found = {}
    losses: tuple[Loss, ...] = ("token", "row")
    for loss in losses:
        plan = steps(rank, world, loss)
        model = build_proxy("0.1M", VOCABULARY, 64, 0)
        for layer in model.model.layers:
            fully_shard(layer)
        fully_shard(model)
        check_sharded(model, wanted=True)
        assert all(isinstance(p, DTensor) for p in model.parameters()), "every parameter is a DTensor"
        local = sum(p.to_local().numel() for p in model.parameters())
        assert local < 0.6 * sum(p.numel() for p in model.parameters()), "each process holds about half"

        @contextlib.contextmanager
        def keep_local(model=model):  # type: ignore[no-untyped-def]
            model.set_requires_gradient_sync(False)
            yield
            model.set_requires_gradient_sync(True)

        found[f"fsdp {loss} losses"] = train(model, model, plan, world, keep_local)
        found[f"fsdp {loss}"] = whole(model)
        plain = build_proxy("0.1M", VOCABULARY, 64, 0)
        wrapped = torch.nn.parallel.DistributedDataParallel(plain)
        found[f"ddp {loss} losses"] = train(wrapped, plain, plan, world, wrapped.no_sync)
        found[f"ddp {loss}"] = whole(plain)
    torch.save(found, Path(out) / f"rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
