"""Weights between those of finished runs: exact at the ends, the mean of what was learnt between them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from builders import make_context, make_rows, spec
from pretrained_folder import CONTEXT, mixtral, pretrained_folder

from ideal_proxy.errors import UserError
from ideal_proxy.proxy.base_model import build_pretrained_proxy, keep_base
from ideal_proxy.proxy.blend import blend_weights
from ideal_proxy.proxy.model import build_proxy, evaluate
from ideal_proxy.proxy.pretrained import Pretrained, load_causal_lm, with_lora
from ideal_proxy.proxy.training import save_weights
from ideal_proxy.swarm.context import MODEL
from ideal_proxy.swarm.scheduler import Swarm, warm_spec


def shaken(model, seed, path):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    save_weights(model, path)
    return model


def test_every_weight_is_averaged_about_the_start(tmp_path):
    def fresh():
        return build_proxy("0.1M", 48, 32, 0)

    start, one, two = fresh(), shaken(fresh(), 1, tmp_path / "one"), shaken(fresh(), 2, tmp_path / "two")
    end, between = fresh(), fresh()
    blend_weights(end, [(tmp_path / "two", 1.0)])
    assert all(torch.equal(a, b) for a, b in zip(end.parameters(), two.parameters(), strict=True))
    blend_weights(between, [(tmp_path / "one", 0.25), (tmp_path / "two", 0.5)])
    for w, a, b, c in zip(*(m.parameters() for m in (between, start, one, two)), strict=True):
        torch.testing.assert_close(w, 0.25 * a + 0.25 * b + 0.5 * c)
    with pytest.raises(UserError, match="cannot be read"):
        blend_weights(fresh(), [(tmp_path / "none", 1.0)])


def test_low_rank_updates_are_averaged_as_products(tmp_path):
    pytest.importorskip("peft")
    folder = pretrained_folder(tmp_path / "tiny", steps_tokens=500)
    source = Pretrained(name=str(folder))
    keep_base(load_causal_lm(source, context=CONTEXT, packed=False), source, tmp_path / "kept")

    def proxy(rank):
        return build_pretrained_proxy(tmp_path / "kept", lora_rank=rank, seed=0)

    def update(model):
        layer = model.get_base_model().get_submodule("model.layers.1.mlp.up_proj")
        return layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight

    one, two = shaken(proxy(4), 1, tmp_path / "one"), shaken(proxy(4), 2, tmp_path / "two")
    between, end, rows = proxy(8), proxy(4), make_rows(20, 2, 0)
    blend_weights(between, [(tmp_path / "one", 0.25), (tmp_path / "two", 0.75)], 4)
    torch.testing.assert_close(update(between), 0.25 * update(one) + 0.75 * update(two))
    factors = proxy(4)
    with torch.no_grad():
        for p, a, b in zip(*(m.parameters() for m in (factors, one, two)), strict=True):
            p.copy_(0.25 * a + 0.75 * b)
    assert not torch.allclose(update(between), update(factors), atol=1e-3), "the mean of the factors is another thing"
    blend_weights(end, [(tmp_path / "two", 1.0)], 4)
    assert evaluate(end, rows).loss_sum.tolist() == evaluate(two, rows).loss_sum.tolist()


def test_experts_in_one_tensor_are_averaged_each(tmp_path):
    """Peft keeps their updates in one tensor, with twice the rank where two layers are one."""
    pytest.importorskip("peft")

    def proxy(rank):
        return with_lora(mixtral(), rank, 0)

    ends = [shaken(proxy(2), seed, tmp_path / name) for seed, name in ((1, "one"), (2, "two"))]
    between = proxy(4)
    blend_weights(between, [(tmp_path / "one", 0.25), (tmp_path / "two", 0.75)], 2)
    whole = [model.merge_and_unload().state_dict() for model in (between, *ends)]
    for name, tensor in whole[0].items():
        torch.testing.assert_close(tensor, 0.25 * whole[1][name] + 0.75 * whole[2][name])
    one, two = (ended["model.layers.0.mlp.experts.down_proj"] for ended in whole[1:])
    assert not torch.allclose(one, two)


def test_an_imitation_is_its_anchor_at_the_ends_and_near_a_training_halfway(tmp_path):
    context = make_context(tmp_path / "context", warm_tokens=8000)
    ends = [
        dataclasses.replace(spec(name, rows, learning_rate=2e-3), save_model=True)
        for name, rows in (("twos", (200, 40)), ("fives", (40, 200)))
    ]
    shares = {"end": (("fives", 1.0),), "halfway": (("twos", 0.5), ("fives", 0.5))}
    blends = [spec(name, (120, 120), role="imitated", blend=blend) for name, blend in shares.items()]
    with Swarm(context, tmp_path, workers=1) as swarm:
        swarm.run([warm_spec(context, 0)])
        trained = swarm.run([*ends, spec("between", (120, 120), learning_rate=2e-3)]).results
        found = swarm.run(blends).results
    assert found["end"].metrics["steps"] == 0
    losses = {
        name: np.array([run.losses[reference].mean for reference in context.references])
        for name, run in (trained | found).items()
    }
    for reference in context.references:
        assert np.array_equal(found["end"].losses[reference].loss_sum, trained["fives"].losses[reference].loss_sum)
    far = np.abs(np.log(losses["twos"] / losses["fives"])).max()
    assert np.abs(np.log(losses["halfway"] / losses["between"])).max() < 0.25 * far
    assert not (tmp_path / "runs" / "halfway" / MODEL).exists()
