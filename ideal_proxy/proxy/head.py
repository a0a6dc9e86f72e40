"""The language-model head and its loss in one pass that never holds all logits.

For a training step only Σ nll and its gradients are wanted. Logits of a few hundred labelled positions at a time are
turned into their own gradient in place (softmax minus one-hot), while they are in the cache; forward and backward
products are the same three as always, but the [L, V] arrays of log-softmax, its gradient and its zero fills (measured:
a third of a 1M proxy's step on a CPU) are never written. First derivatives only: use `label_losses` where more is
wanted.

Legend: L labelled positions, V vocabulary, d hidden width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_CHUNK_ELEMENTS = {"cpu": 1 << 19, "cuda": 1 << 27}  # logits at a time: 2 MB in a core's cache; 512 MB on a GPU
# Heads that are hidden @ weightᵀ and nothing else (no bias, scale or soft cap).
_PLAIN_HEADS = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")


def has_plain_head(model: Any) -> bool:
    """Tell whether a model is known to multiply its decoder's last hidden states by the output embedding, no more."""
    if type(model).__name__ not in _PLAIN_HEADS or type(model).__module__.split(".")[0] != "transformers":
        return False
    head = model.get_output_embeddings()
    return isinstance(head, torch.nn.Linear) and head.bias is None


class _HeadLoss(torch.autograd.Function):
    """Σ nll of (hidden, weight, targets), with both gradients formed on the way."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, scale: float, weights: Tensor | None
    ) -> Tensor:
        rows = max(256, _CHUNK_ELEMENTS.get(hidden.device.type, 1 << 22) // weight.shape[0])
        wide = torch.promote_types(hidden.dtype, torch.float32)
        total = torch.zeros((), dtype=wide, device=hidden.device)
        d_hidden = torch.empty_like(hidden)
        d_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None  # a frozen head needs none
        for first in range(0, len(hidden), rows):
            part, target = hidden[first : first + rows], targets[first : first + rows, None]
            logits = (part @ weight.T).to(wide)
            gradient = torch.softmax(logits, dim=-1)
            # log Σ exp from the likeliest token, whose probability is at least 1/V: saves a second pass of exp.
            normaliser = logits.amax(-1) - gradient.amax(-1).log()
            losses = normaliser - logits.gather(1, target).squeeze(1)
            gradient.scatter_add_(1, target, gradient.new_full(target.shape, -1.0))
            if weights is not None:
                share = weights[first : first + rows].to(wide)
                losses = losses * share
                gradient *= share[:, None]
            total += losses.sum()
            gradient = gradient.to(hidden.dtype)
            torch.mm(gradient, weight, out=d_hidden[first : first + rows])
            if d_weight is not None:
                d_weight.addmm_(gradient.T, part)
        ctx.save_for_backward(d_hidden.mul_(scale), None if d_weight is None else d_weight.mul_(scale))
        return total * scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_weight = ctx.saved_tensors
        return d_hidden * grads[0], None if d_weight is None else d_weight * grads[0], None, None, None


def head_loss(hidden: Tensor, weight: Tensor, targets: Tensor, scale: float, weights: Tensor | None = None) -> Tensor:
    """Compute scale · Σ weights · nll of targets (L,) under softmax(hidden (L, d) · weight (V, d)ᵀ), nats."""
    # Hidden and weight are of one precision, the sum is in float32 or wider, and it is differentiable once.
    loss: Tensor = _HeadLoss.apply(hidden, weight, targets, scale, weights)  # type: ignore[no-untyped-call]
    return loss
