"""What every curvature estimate shares: logits with labels, sampled labels, sums over processes.

Batches are opaque here: a `Forward` turns a model and a batch into logits at the supervised positions. Vectors in
parameter space are plain dictionaries from parameter name to tensor. Shape legend: L supervised tokens (labels) of a
batch, T its tokens, B its rows, V vocabulary, P parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ideal_proxy.errors import UserError

Vector = dict[str, Tensor]

BLOCK = 64  # neighbours in the vocabulary whose probabilities are summed first where labels are sampled


@dataclass(frozen=True, slots=True)
class LabelledLogits:
    """What a forward pass says about the supervised tokens of one batch, and which row every token belongs to."""

    logits: Tensor  # (L, V) unnormalised log-probabilities at the supervised positions, rows in order
    labels: Tensor  # (L,) int64 token that each position has to predict
    label_rows: Tensor  # (L,) int64 row of the batch, 0..B-1 and never decreasing
    token_rows: Tensor  # (T,) int64 row of every position of a layer's flattened input; -1 where padded
    keys: Tensor  # (B,) int64 hash of each row: what its sampled labels are drawn from
    # (L,) what each label counts in the loss; None is 1 each. Labels of a row share 1 with the row loss
    weights: Tensor | None = None

    def count(self) -> float:
        """What the sum over the labels is divided by: their number, or that of the rows."""
        return float(len(self.labels)) if self.weights is None else float(self.weights.sum())

    def loss_sum(self, labels: Tensor | None = None) -> Tensor:
        """Sum of negative log-likelihoods, in nats, over the batch's supervised tokens."""
        logits = self.logits if self.logits.dtype == torch.float64 else self.logits.float()
        return nn.functional.cross_entropy(logits, self.labels if labels is None else labels, reduction="sum")

    def loss_gradient(self, labels: Tensor) -> Tensor:
        """Gradient of `loss_sum` by the logits: probabilities less 1 at the label, times the root of its weight."""
        # The root, because a Fisher matrix takes squares of it: Σ_l w_l g_l g_lᵀ.
        logits = self.logits.detach()
        gradient = logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
        gradient.scatter_add_(1, labels[:, None], gradient.new_full((len(labels), 1), -1.0))
        if self.weights is not None:
            gradient *= self.weights.sqrt()[:, None].to(gradient.dtype)
        return gradient.to(logits.dtype)


Forward = Callable[[nn.Module, Any], LabelledLogits]


@contextmanager
def measuring(model: nn.Module) -> Iterator[None]:
    """Evaluation mode (no dropout) inside the block; every module's own mode is put back after it."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def check_deterministic(model: nn.Module, forward: Forward, batch: Any) -> None:
    """Run one batch twice and refuse a model whose loss changes: factors and gradients would not be its own."""
    with torch.no_grad():
        first, second = (float(forward(model, batch).loss_sum()) for _ in range(2))
    if not abs(first - second) <= 1e-5 * max(1.0, abs(first)):
        raise UserError(
            f"The model gives {first:.6g} and then {second:.6g} nats for the same batch, so no gradient of it can be"
            " trusted; switch off dropout and any other randomness, and look for NaN weights."
        )


def processes() -> tuple[int, int]:
    """This process's rank and the number of processes; (0, 1) outside torch.distributed."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def sum_over_processes(*tensors: Tensor) -> None:
    """Add each tensor over all processes, in place; nothing to do in a single process."""
    if processes()[1] > 1:
        for tensor in tensors:
            if dist.get_backend() == "nccl" and not tensor.is_cuda:
                moved = tensor.cuda()
                dist.all_reduce(moved)
                tensor.copy_(moved)
            else:
                dist.all_reduce(tensor)


def hash_uniform(keys: Tensor, counters: Tensor, seed: int) -> Tensor:
    """Uniform numbers in (0, 1), (N,) float64, that depend on the row's hash, the place in it and the seed alone."""
    # Two rounds of the splitmix64 finaliser (Steele, Lea and Flood 2014) in wrapping 64-bit integers, so every machine,
    # device and batch order gives the same numbers.

    def mix(x: Tensor) -> Tensor:
        x = x + (0x9E3779B97F4A7C15 - (1 << 64))
        x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * (0xBF58476D1CE4E5B9 - (1 << 64))
        x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * (0x94D049BB133111EB - (1 << 64))
        return x ^ ((x >> 31) & ((1 << 33) - 1))

    state = mix(mix(keys ^ mix(torch.full_like(keys, seed))) + counters)
    return (((state >> 11) & ((1 << 53) - 1)).to(torch.float64) + 0.5) / float(1 << 53)


def sample_labels(output: LabelledLogits, seed: int) -> Tensor:
    """Labels drawn from the model's own distribution: what makes an outer product of gradients the true Fisher."""
    rows = output.label_rows
    ordinal = torch.arange(len(rows), device=rows.device) - torch.searchsorted(rows, rows)
    uniform = hash_uniform(output.keys[rows], ordinal, seed)
    wide = torch.float32 if output.logits.device.type == "mps" else torch.float64
    logits = output.logits.detach()
    logits = logits if logits.dtype == torch.float64 else logits.float()
    labels = torch.empty_like(output.labels)
    blocks = -(-logits.shape[1] // BLOCK)
    for chunk in range(0, len(rows), 256):  # few enough positions that their probabilities stay in the cache
        part = slice(chunk, chunk + 256)
        p = logits[part].softmax(-1)
        p = nn.functional.pad(p, (0, blocks * BLOCK - p.shape[1])).view(len(p), blocks, BLOCK)
        # The inverse of the cumulative sums, first over blocks of the vocabulary, then inside one: sums in float64
        # at a fraction of the cost of cumulating it all.
        cdf = p.sum(-1).to(wide).cumsum(-1)
        target = uniform[part, None].to(wide) * cdf[:, -1:]
        block = torch.searchsorted(cdf, target).clamp_(max=blocks - 1)
        before = torch.where(block > 0, cdf.gather(1, (block - 1).clamp(min=0)), 0.0)
        inside = p.gather(1, block[..., None].expand(-1, 1, BLOCK)).squeeze(1).to(wide).cumsum(-1)
        # A target between two roundings of one sum belongs to the block's last token that can be drawn at all.
        place = torch.searchsorted(inside, torch.minimum(target - before, inside[:, -1:]))
        labels[part] = (block * BLOCK + place).squeeze(-1)
    return labels


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that require gradients, by name; a tied parameter appears once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
