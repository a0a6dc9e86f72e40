"""What training and judging cost: products counted from a model's matrices, seconds from a speed, money from a price.

Every weight of a linear layer is one multiply-add a token, 2 FLOPs. A training step has three such products: forward,
gradient of the inputs, gradient of the weights; a frozen weight (the base of a LoRA) spares the third. Attention has
two products a layer, over the causal half of the pairs of a row's tokens. The head works at labelled positions only.
Embeddings, norms, softmax and the optimiser are elementwise and left out (Kaplan et al. 2020, Appendix B, counts
alike and gets 6 FLOPs a parameter and token; where the vocabulary is large against a small model that is far off).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ideal_proxy.errors import UsageError
from ideal_proxy.sections import CostConfig

TRAINED, FROZEN, JUDGED = 3, 2, 1
"""Products of a weight for a token: of a step with its own gradient, of a step without, of a forward pass alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Products:
    """The multiply-adds of one model's matrix products."""

    trained: int  # for each token, by weights that have a gradient
    frozen: int  # for each token, by weights that have none
    head: int  # for each labelled token, by the output embedding
    head_trained: bool  # whether the output embedding has a gradient
    attention: int  # for each token and token of its row: layers times the width of all heads

    def training(self, tokens: float, labelled: float, length: float) -> float:
        """Count the FLOPs of training on tokens."""
        each = TRAINED * self.trained + FROZEN * self.frozen + TRAINED * self.attention * length
        return 2.0 * (each * tokens + (TRAINED if self.head_trained else FROZEN) * self.head * labelled)

    def judging(self, tokens: float, labelled: float, length: float) -> float:
        """Count the FLOPs of a forward pass."""
        return 2.0 * JUDGED * ((self.trained + self.frozen + self.attention * length) * tokens + self.head * labelled)


def count_products(model: Any) -> Products:
    """Count the products of a model; its weights may lie on the `meta` device."""
    import torch

    head = model.get_output_embeddings()
    trained = frozen = 0
    for module in model.modules():
        if module is head or not (isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D"):
            continue
        if module.weight.requires_grad:
            trained += module.weight.numel()
        else:
            frozen += module.weight.numel()
    config = model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", None) or 0  # models without attention have none
    width = getattr(config, "head_dim", None) or config.hidden_size // max(heads, 1)
    return Products(
        trained=trained,
        frozen=frozen,
        head=0 if head is None else head.weight.numel(),
        head_trained=head is not None and bool(head.weight.requires_grad),
        attention=config.num_hidden_layers * heads * width,
    )


def run_flops(
    products: Products,
    tokens: float,
    labelled: float,
    token_pairs: float,
    judged: Iterable[tuple[NDArray[np.int64], int]] = (),
) -> float:
    """Count the FLOPs of one proxy run from what it really trained and judged."""
    total = products.training(tokens, labelled, token_pairs / tokens) if tokens else 0.0
    for lengths, supervised in judged:
        length = np.asarray(lengths, dtype=np.float64)
        total += products.judging(float(length.sum()), supervised, float(length @ length / max(length.sum(), 1)))
    return total


UTILISATION = 0.3
"""Share of a device's peak that training is taken to reach where nothing else is said."""

# Fitted on a CPU in float32 to the sizes 0.1M and 10M of `benchmarks/speed/cost_check.py`: what a worker holds before
# it has a model, and the bytes that a training step keeps of each token for each layer and unit of width.
PROCESS_BYTES = 560e6
ACTIVATION_BYTES = 130.0


def worker_bytes(products: Products, parameters: int, micro_batch_tokens: int, length: float) -> float:
    """Estimate the most memory that one worker holds on a CPU."""
    learning = products.trained + (products.head if products.head_trained else 0)
    at_once = max(float(micro_batch_tokens), length)
    # Weights in float32; gradient and AdamW's two averages for those that learn.
    return PROCESS_BYTES + 4.0 * parameters + 12.0 * learning + ACTIVATION_BYTES * at_once * products.attention


def gradient_bytes(parameters: int, capabilities: int) -> float:
    """Estimate what implicit responses hold beside the model: factors, their sums, and two gradients a capability."""
    # 13 GiB with 135M parameters and five capabilities (`benchmarks/gradients/influence_smollm2.md`)
    return (60.0 + 8.0 * capabilities) * parameters


def row_that_fits(products: Products, parameters: int, memory: float) -> int:
    """Say how many tokens a row may have for one worker in so many bytes, by the same estimate."""
    return int((memory - worker_bytes(products, parameters, 0, 0)) / (ACTIVATION_BYTES * products.attention))


@dataclass(frozen=True, slots=True, kw_only=True)
class Elsewhere:
    """Another machine that a plan is worked out for."""

    device_flops: float  # peak of one device, FLOPs a second
    utilisation: float  # share of the peak that training reaches
    devices: int  # devices side by side

    @property
    def flops_per_second(self) -> float:
        """What one device does."""
        return self.device_flops * self.utilisation


def budget_hours(cost: CostConfig, max_hours: float | None, devices: int) -> tuple[float, str] | None:
    """Say how long a search may take by the clock."""
    limits = [] if max_hours is None else [(max_hours, f"--max-hours {max_hours:g}")]
    if cost.max is not None:
        if cost.price is None:
            raise UsageError("--max-cost needs to know what a device costs: give --price, for one hour of one device")
        limits.append((cost.max / (cost.price * devices), f"--max-cost {cost.max:g}"))
    return min(limits) if limits else None


def cost_of(cost: CostConfig, seconds: float, devices: int) -> float | None:
    """Return what a time costs."""
    return None if cost.price is None else cost.price * devices * seconds / 3600
