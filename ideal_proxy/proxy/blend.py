"""Weights between those of finished runs: what a training on a mixture between theirs would about have ended with.

All start from the same weights W₀, and a training moves them by about the sum of what each domain's rows do (MergeMix,
arXiv 2601.17858; DeMix, 2602.00747; OP-Mix, 2605.15220). So a mixture Σ s_k v_k of the runs' mixtures is imitated by

    W = (1 − Σ s_k) W₀ + Σ s_k W_k

Low-rank updates are averaged as what they add to a layer, B_k A_k: means of the factors would hold products of one
run's B with another's A. Side by side, [s_1 B_1 … s_K B_K] and [A_1; …; A_K] are exactly that sum, at K times the rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ideal_proxy.errors import UserError
from ideal_proxy.proxy.training import trained_parameters


def blend_weights(model: Any, parts: Sequence[tuple[Path, float]], lora_rank: int | None = None) -> None:
    """Give a model that has its first weights those between finished runs, one tensor in memory at a time."""
    from safetensors import SafetensorError, safe_open

    own = trained_parameters(model)
    rest = 1.0 - sum(share for _, share in parts)
    with torch.no_grad():
        for number, (path, share) in enumerate(parts):
            try:
                with safe_open(str(path), framework="pt") as file:
                    if set(file.keys()) != set(own):
                        raise UserError(f"{path} holds weights of another proxy; remove it and run the same command")
                    for name, parameter in own.items():
                        tensor = file.get_tensor(name).to(parameter.device)
                        if lora_rank is not None:
                            _put_beside(model, name, tensor, number, share)
                        elif number == 0:
                            parameter.mul_(rest).add_(tensor, alpha=share)
                        else:
                            parameter.add_(tensor, alpha=share)
            except (OSError, SafetensorError) as error:
                raise UserError(
                    f"the weights {path} cannot be read ({error}); remove {path.parent} and run the same command again"
                ) from error


def _put_beside(model: Any, name: str, factor: torch.Tensor, number: int, share: float) -> None:
    """Write a run's factor of a low-rank update beside those of the runs before it.

    Experts in one tensor have a factor each: A is (experts, rank, inputs), B (outputs, rank, experts). Ranks are the
    factors' own, for peft gives some layers more than others.
    """
    place, _, of = name.rpartition(".lora_")
    experts = getattr(model.get_submodule(place), "num_experts", 1)
    parameter = model.get_parameter(name)
    first = of.startswith("A")
    shape = (experts, -1, parameter.shape[1]) if first else (parameter.shape[0], -1, experts)
    part = factor.view(shape)
    rank = part.shape[1]
    parameter.view(shape)[:, number * rank : (number + 1) * rank] = part if first else share * part
