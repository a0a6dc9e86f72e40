"""A tiny Llama with packed attention, and three domains of hand-made token rows with masked prompts."""

from __future__ import annotations

import numpy as np
import torch

from ideal_proxy.data.tokens import TokenRows
from ideal_proxy.gradients.influence import InfluenceSettings
from ideal_proxy.proxy.model import use_packed_attention

NAMES = ("a", "b", "c")
VOCABULARY = 24
SETTINGS = InfluenceSettings(shards=4, gradient_rows=None, factor_rows=30, batch_tokens=64)
VOLUMES = np.array([12.0, 6.0, 9.0])


class ExactNorm(torch.nn.Module):
    """RMS norm in the precision of its input; transformers' own goes through float32."""

    def __init__(self, weight: torch.nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


def tiny_llama(dtype: torch.dtype, tie: bool = True, seed: int = 0):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=32, tie_word_embeddings=tie, use_cache=False,
        bos_token_id=None, eos_token_id=None, pad_token_id=None, initializer_range=0.2,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model = model.to(dtype)
    for parent in (model.model, *model.model.layers):
        for name, child in parent.named_children():
            if type(child).__name__ == "LlamaRMSNorm":
                setattr(parent, name, ExactNorm(child.weight))
    return use_packed_attention(model)


def make_rows(domain: int, rows: int, salt: int) -> TokenRows:
    """Rows of 4 to 12 tokens: a masked prompt, then an answer whose step between tokens is the domain's own."""
    random = np.random.default_rng([domain, salt])
    ids, masks = [], []
    for _ in range(rows):
        length = int(random.integers(4, 13))
        prompt = int(random.integers(1, length - 1))
        row = np.cumsum(np.full(length, domain + 1)) + random.integers(VOCABULARY)
        row = np.where(random.random(length) < 0.2, random.integers(VOCABULARY, size=length), row)
        ids.append((row % VOCABULARY).astype(np.int32))
        masks.append(np.arange(length) >= prompt)
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in ids])]).astype(np.int64)
    keys = random.integers(2**63, size=rows, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    return TokenRows(np.concatenate(ids), np.concatenate(masks), offsets, keys, np.arange(rows, dtype=np.int64))


def tiny_domains(rows: int = 10) -> dict[str, TokenRows]:
    return {name: make_rows(i, rows, 1) for i, name in enumerate(NAMES)}


def tiny_references(rows: int = 8) -> dict[str, TokenRows]:
    return {name: make_rows(i, rows, 2) for i, name in enumerate(NAMES)}
