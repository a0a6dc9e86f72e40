"""Products counted from a model, against counts by hand; budgets and their sentences."""

from __future__ import annotations

import functools
import importlib
import re
import sys
import types
from pathlib import Path

import pytest
import torch
from builders import config_of

from ideal_proxy.errors import UsageError
from ideal_proxy.pipeline.overrides import override
from ideal_proxy.proxy.cost import Products, budget_hours, cost_of, count_products, worker_bytes
from ideal_proxy.proxy.model import MICRO_BATCH_TOKENS, build_proxy, proxy_shape
from ideal_proxy.sections import CostConfig
from ideal_proxy.terminal import money

ROOT = Path(__file__).resolve().parents[2]

config = functools.partial(config_of, ("lists", "facts"), ["lists"])


def llama(**changes):
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = {
        "vocab_size": 1000, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 24, "tie_word_embeddings": True,
    }  # fmt: skip
    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig(**settings | changes))


def test_a_proxy_is_counted_as_its_shape_says():
    shape = proxy_shape("1M", 4096)
    counted = count_products(build_proxy("1M", 4096, 128, 0))
    layer = 4 * shape.width**2 + 3 * shape.width * shape.hidden
    assert counted == Products(
        trained=shape.layers * layer, frozen=0, head=4096 * shape.width, head_trained=True,
        attention=shape.layers * shape.width,
    )  # fmt: skip
    norms = shape.layers * 2 * shape.width + shape.width
    assert shape.parameters == counted.trained + counted.head + norms


def test_grouped_heads_of_their_own_width_are_counted():
    layer = 64 * 96 + 2 * 64 * 48 + 96 * 64 + 3 * 64 * 96  # query, key and value, output, gated block
    assert count_products(llama()) == Products(
        trained=3 * layer, frozen=0, head=64_000, head_trained=True, attention=3 * 4 * 24
    )


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks transformers for it
def test_lora_leaves_the_base_two_products_of_three():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(llama(), LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    counted = count_products(model)
    full = count_products(llama())
    adapters = 3 * 8 * ((64 + 96) + (64 + 48))
    assert counted == Products(
        trained=adapters, frozen=full.trained, head=64_000, head_trained=False, attention=full.attention
    )
    tokens, labelled, length = 1000.0, 300.0, 50.0
    attention = 3 * full.attention * length * tokens
    assert full.training(tokens, labelled, length) == 2 * (
        3 * full.trained * tokens + attention + 3 * 64_000 * labelled
    )
    lora = 2 * ((2 * full.trained + 3 * adapters) * tokens + attention + 2 * 64_000 * labelled)
    assert counted.training(tokens, labelled, length) == lora
    judged = 2 * ((full.trained + adapters + full.attention * length) * tokens + 64_000 * labelled)
    assert counted.judging(tokens, labelled, length) == judged


def test_a_large_model_without_attention_costs_six_flops_a_parameter_and_token():
    products = Products(trained=8_000_000_000, frozen=0, head=0, head_trained=True, attention=0)
    assert products.training(1e6, 0, 100) == pytest.approx(6 * 8e9 * 1e6)
    assert products.judging(1e6, 0, 100) == pytest.approx(2 * 8e9 * 1e6)


def test_memory_follows_weights_and_micro_batch():
    small = Products(trained=10**6, frozen=0, head=10**5, head_trained=True, attention=500)
    frozen = Products(trained=0, frozen=10**6, head=10**5, head_trained=False, attention=500)
    assert worker_bytes(small, 1_100_000, 2048, 100) - worker_bytes(frozen, 1_100_000, 2048, 100) == 12 * 1.1e6
    assert worker_bytes(small, 1_100_000, 2048, 4096) > worker_bytes(small, 1_100_000, 2048, 2048)


def test_the_micro_batch_of_the_estimate_is_the_one_in_use():
    from ideal_proxy.pipeline.plan_cost import CPU_MICRO_BATCH

    assert MICRO_BATCH_TOKENS["cpu"] == CPU_MICRO_BATCH


def test_budgets():
    assert budget_hours(CostConfig(), None, 3) is None
    assert budget_hours(CostConfig(price=9.0), None, 3) is None
    assert budget_hours(CostConfig(), 5.0, 3) == (5.0, "--max-hours 5")
    assert budget_hours(CostConfig(price=2.0, max=30.0), None, 3) == (5.0, "--max-cost 30")
    assert budget_hours(CostConfig(price=2.0, max=30.0), 4.0, 3) == (4.0, "--max-hours 4")
    assert cost_of(CostConfig(price=2.0), 1800, 3) == 3.0
    assert cost_of(CostConfig(), 1800, 3) is None


@pytest.mark.parametrize(
    ("amount", "text"), [(1234.5, "1,234.50 EUR"), (0.123, "0.12 EUR"), (0.001, "under 0.01 EUR"), (1, "1.00 EUR")]
)
def test_money_is_written_short(amount, text):
    assert money(amount, "EUR") == text


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"max_cost": 3.0}, "--max-cost needs to know what a device costs: give --price"),
        ({"price": 0.0}, "--price is 0; give an amount above 0"),
        ({"price": 2.0, "max_cost": -1.0}, "--max-cost is -1; give an amount above 0"),
    ],
)
def test_wrong_amounts_are_refused(options, sentence):
    with pytest.raises(UsageError, match=sentence):
        override(config(), **options)


def test_options_enter_the_run_file():
    assert override(config(), price=2.5, max_cost=10.0).cost == CostConfig(price=2.5, max=10.0)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_the_table_in_the_docs_is_what_the_command_works_out(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks" / "speed"))
    scale_costs = importlib.import_module("scale_costs")
    options = scale_costs.parse([])
    lines = scale_costs.lay_out(scale_costs.work_out(options), options)
    assert len(lines) == 2 + 3 * 4
    text = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    assert "\n".join(lines) in text
    assert "\n".join(lines) in (ROOT / "benchmarks" / "speed" / "scale_costs.md").read_text(encoding="utf-8")


def test_the_trackers_in_the_docs_take_every_event():
    """The examples run against stand-ins of the two packages, which are not installed."""
    heard: list[dict] = []
    run = types.SimpleNamespace(log=heard.append)
    stand_ins = {
        "wandb": types.SimpleNamespace(run=None, init=lambda project: run),
        "mlflow": types.SimpleNamespace(log_metrics=heard.append),
    }
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "scale.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    for name, block in zip(stand_ins, blocks, strict=True):
        space: dict = {}
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, name, stand_ins[name])
            exec(block, space)
            space[f"to_{name}"]({"event": "round fitted", "round": 2, "proposal": {"a": 3}, "predicted_gain": 0.01})
    assert heard == [
        {"round fitted/round": 2, "round fitted/predicted_gain": 0.01},
        {"round_fitted.round": 2.0, "round_fitted.predicted_gain": 0.01},
    ]
