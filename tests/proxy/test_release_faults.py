"""One test for each fault of IDEAL's published release: the right answer holds here, the faulty one would not pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from builders import collate
from tiny_llama import NAMES, tiny_domains, tiny_llama, tiny_references
from torch import Tensor, nn

from ideal_proxy.data.messages import messages_of
from ideal_proxy.data.plain import END
from ideal_proxy.data.rows import Row
from ideal_proxy.data.template import make_template
from ideal_proxy.data.tokenizer import train_tokenizer
from ideal_proxy.data.tokenizing import tokenize_rows
from ideal_proxy.gradients import influence
from ideal_proxy.gradients.curvature import LabelledLogits
from ideal_proxy.gradients.factors import KroneckerOperator
from ideal_proxy.gradients.influence import InfluenceSettings, RowBatches, mixture_factors, responses
from ideal_proxy.gradients.kfac import fit_factors
from ideal_proxy.gradients.records import one_step
from ideal_proxy.mixture.draws import domain_order, draw, training_order


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.layer = nn.Linear(5, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def forward(model: nn.Module, batch: tuple[Tensor, Tensor]) -> LabelledLogits:
    x, keys = batch
    rows = torch.arange(len(x))
    return LabelledLogits(model(x), keys % 4, rows, rows, keys)


def data(count: int = 40) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(5, 5, generator=generator, dtype=torch.float64)  # inputs with oblique principal axes
    scale = torch.tensor([3.0, 1.5, 1.0, 0.5, 0.2], dtype=torch.float64)
    return (torch.randn(count, 5, generator=generator, dtype=torch.float64) * scale) @ mixing, torch.arange(count)


def row_gradients(model: nn.Module) -> Tensor:
    """(rows, 20) empirical gradients, by autograd, one row at a time."""
    x, keys = data()
    each = [
        torch.autograd.grad(forward(model, (x[n : n + 1], keys[n : n + 1])).loss_sum(), model.layer.weight)
        for n in range(len(x))
    ]
    return torch.stack([g.flatten() for (g,) in each])


def test_the_curvature_divides_and_does_not_multiply():
    model = Linear().double()
    factors = fit_factors(model, forward, [data()], fisher="empirical")
    block = factors.block("layer")
    for place in (block.values.argmax(), (block.values + block.values.max() * (block.values < 1e-9)).argmin()):
        i, k = divmod(int(place), 5)
        vector = torch.outer(block.left[:, i], block.right[:, k])
        factor = float((factors.inverse(1e-2) @ {"layer.weight": vector})["layer.weight"].flatten() @ vector.flatten())
        assert factor == pytest.approx(1 / float(block.values[i, k] + 1e-2 * block.values.mean()), rel=1e-9)
    steep, flat = block.values.max(), block.values.mean()
    assert 1 / (steep + 1e-2 * flat) < 0.5 / flat  # so that dividing and multiplying order directions differently

    domains, references = tiny_domains(), tiny_references()
    lm = tiny_llama(torch.float64)
    settings = InfluenceSettings(factor_rows=20, shards=2)
    fitted, _ = mixture_factors(lm, domains, [8, 8, 8], settings)
    divided = responses(
        lm, domains, references, [8, 8, 8], settings=settings, operator=fitted.inverse(settings.damping)
    ).M
    fisher = KroneckerOperator(fitted, lambda values: values)  # what the release multiplies by
    multiplied = responses(lm, domains, references, [8, 8, 8], settings=settings, operator=fisher).M
    best = (divided * multiplied).sum() / (multiplied**2).sum()  # the factor that makes them most alike
    assert np.linalg.norm(divided - best * multiplied) > 0.1 * np.linalg.norm(divided)


def test_eigenvectors_are_columns():
    model = Linear().double()
    gradients = row_gradients(model)
    fisher = gradients.T @ gradients / len(gradients)
    block = fit_factors(model, forward, [data()], fisher="empirical").block("layer")

    def rebuilt(left: Tensor, right: Tensor) -> Tensor:
        basis = torch.kron(left.contiguous(), right.contiguous())
        return basis * block.values.flatten() @ basis.T

    right_way = (rebuilt(block.left, block.right) - fisher).norm() / fisher.norm()
    wrong_way = (rebuilt(block.left.T, block.right.T) - fisher).norm() / fisher.norm()
    assert right_way < 0.5 < 0.8 < wrong_way
    transformed = block.transform({"layer.weight": torch.eye(4, 5, dtype=torch.float64)}, lambda values: values)
    expected = rebuilt(block.left, block.right) @ torch.eye(4, 5, dtype=torch.float64).flatten()
    torch.testing.assert_close(transformed["layer.weight"].flatten(), expected)


def test_every_process_takes_part_and_none_is_lost(monkeypatch):
    rows = list(tiny_domains().values())
    domain = np.repeat(np.arange(3), [10, 7, 4])
    row = np.concatenate([np.arange(10), np.arange(7), np.arange(4)])
    batches = RowBatches(rows, domain, row, 30)
    expected = sorted(int(k) for _, keys in batches for k in keys)
    assert len(expected) == 21
    seen = []
    for rank in range(4):
        monkeypatch.setattr(influence, "processes", lambda rank=rank: (rank, 4))
        own = [int(k) for _, keys in batches for k in keys]
        assert 5 <= len(own) <= 6
        seen += own
    assert sorted(seen) == expected  # test_influence.py: two processes give what one gives


@pytest.mark.parametrize("words", [1, 40, 300])
def test_prompts_are_masked_by_the_template_and_the_end_of_turn_is_learnt(words):
    prompt, answer = " ".join(["why"] * words), "because it is so"
    tokenizer = train_tokenizer([prompt, answer, "abc def"], 400)
    rows = [Row(messages_of((("user", prompt), ("assistant", answer))), {}, "here:1")]
    tokens = tokenize_rows(rows, make_template(tokenizer, plain=True), 2048, None)
    supervised = tokenizer.decode(tokens.ids[tokens.supervised].tolist(), skip_special_tokens=False)
    assert supervised == answer + END
    masked = tokenizer.decode(tokens.ids[~tokens.supervised].tolist(), skip_special_tokens=False)
    assert prompt in masked
    batch = collate(tokens, [0])
    assert (batch.labels >= 0).sum() == tokens.supervised.sum()
    assert tokenizer.decode([int(batch.labels[batch.labels >= 0][-1])], skip_special_tokens=False) == END
    assert int(tokens.lengths[0]) < 128 or words == 300  # the release masked 128 tokens, answers and all


def test_eigenvalues_come_from_each_row_not_from_batch_means():
    model = Linear().double()
    x, keys = data()
    gradients = row_gradients(model).view(-1, 4, 5)
    whole = fit_factors(model, forward, [(x, keys)], fisher="empirical").block("layer")
    pieces = [(x[i : i + 8], keys[i : i + 8]) for i in range(0, len(x), 8)]
    cut = fit_factors(model, forward, pieces, fisher="empirical").block("layer")
    torch.testing.assert_close(cut.values, whole.values)
    each = whole.left.T @ gradients @ whole.right
    torch.testing.assert_close(whole.values, each.square().mean(0))
    of_means = each.view(5, 8, 4, 5).mean(1).square().mean(0)
    assert of_means.sum() < 0.5 * whole.values.sum()


def test_volumes_above_twice_the_rows_are_drawn_and_used():
    domains = tiny_domains()
    name, rows = NAMES[1], domains[NAMES[1]]
    order = domain_order(0, name, rows.keys)
    indices, passes = draw(order, 35)
    counts = np.bincount(indices, minlength=10)
    assert set(counts) == {3, 4}
    assert passes.max() == 3
    d, r = training_order(0, [name], [(rows.keys, indices, passes)])
    assert len(r) == 35
    assert np.array_equal(np.bincount(r, minlength=10), counts)
    assert not d.any()
    settings = InfluenceSettings(factor_rows=64, shards=2)
    model = tiny_llama(torch.float32)
    result = responses(model, domains, tiny_references(), [10, 35, 25], settings=settings)
    assert np.isfinite(result.M).all()
    assert result.q[1] == 0.5
    proposal = one_step(result.M, [10, 35, 25])
    assert np.abs(proposal / [10, 35, 25] - 1).max() == pytest.approx(0.15)
