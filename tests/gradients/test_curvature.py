from __future__ import annotations

import pytest
import torch
from pretrained_folder import mixtral
from tiny_lm import (
    VOCABULARY,
    WIDTH,
    batches,
    dense_gauss_newton,
    flat,
    packed,
    padded,
    row_gradients,
    tiny_model,
    tiny_rows,
)
from torch import Tensor, nn

from ideal_proxy.errors import UserError
from ideal_proxy.gradients.curvature import LabelledLogits, hash_uniform, sample_labels
from ideal_proxy.gradients.factors import Factors, KroneckerOperator, refuse_uncovered
from ideal_proxy.gradients.kfac import fit_factors
from ideal_proxy.proxy.pretrained import with_lora

LAYOUTS = [(packed, 1), (packed, 8), (packed, 99), (padded, 1), (padded, 8), (padded, 99)]


def all_parameters(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters()]


def random_vector(model: nn.Module, seed: int, *stack: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(*stack, *p.shape, generator=generator, dtype=p.dtype) for name, p in model.named_parameters()
    }


def dense_basis(factors: Factors, name: str) -> tuple[Tensor, Tensor]:
    """Columns (l·r, l·r) of the block's eigenbasis in the order of the flattened matrix, and its eigenvalues."""
    block = factors.block(name)
    left, right = (
        torch.eye(size, dtype=torch.float64) if q is None else q
        for q, size in zip((block.left, block.right), block.layer.shape, strict=True)
    )
    return torch.kron(left.contiguous(), right.contiguous()), block.values.flatten()


def as_matrix_order(factors: Factors, name: str, gradients: Tensor, names: list[str], model: nn.Module) -> Tensor:
    """(rows, l·r) columns of `gradients` that belong to the block, ordered as the flattened [weight | bias]."""
    layer = factors.block(name).layer
    parts, start = {}, 0
    shapes = {n: p.shape for n, p in model.named_parameters()}
    for n in names:
        parts[n] = gradients[:, start : start + shapes[n].numel()]
        start += shapes[n].numel()
    weight = parts[layer.weight].reshape(len(gradients), layer.shape[0], -1)
    if layer.bias is not None:
        weight = torch.cat([weight, parts[layer.bias].unsqueeze(-1)], -1)
    return weight.flatten(1)


@pytest.mark.parametrize("fisher", ["sampled", "empirical"])
@pytest.mark.parametrize("tied", [False, True])
def test_ekfac_eigenvalues_are_the_fisher_diagonal_in_its_own_basis(fisher, tied):
    model, rows = tiny_model(1, tied), tiny_rows()
    names = all_parameters(model)
    factors = fit_factors(model, packed, batches(rows, 5), fisher=fisher, seed=4)
    labels_of = (lambda output: sample_labels(output, 4)) if fisher == "sampled" else None
    gradients, count = row_gradients(model, rows, names, labels_of)
    assert factors.supervised_tokens == count
    assert factors.excluded == ()
    assert set(factors.parameters) == set(names)
    for layer in factors.layers:
        basis, values = dense_basis(factors, layer.name)
        torch.testing.assert_close(basis.T @ basis, torch.eye(len(basis), dtype=torch.float64))
        each = as_matrix_order(factors, layer.name, gradients, names, model)
        torch.testing.assert_close((each @ basis).square().sum(0) / count, values, rtol=1e-8, atol=1e-14)


def test_ekfac_is_closer_to_the_dense_fisher_than_kfac():
    model, rows = tiny_model(1), tiny_rows(24)
    names = all_parameters(model)
    gradients, count = row_gradients(model, rows, names, lambda output: sample_labels(output, 0))
    both = {method: fit_factors(model, packed, batches(rows, 6), method=method) for method in ("kfac", "ekfac")}
    errors: dict[str, list[float]] = {"kfac": [], "ekfac": []}
    for layer in both["kfac"].layers:
        each = as_matrix_order(both["kfac"], layer.name, gradients, names, model)
        fisher = each.T @ each / count
        for method, factors in both.items():
            basis, values = dense_basis(factors, layer.name)
            errors[method].append(float((basis * values @ basis.T - fisher).norm() / fisher.norm()))
    assert all(e <= k + 1e-12 for k, e in zip(errors["kfac"], errors["ekfac"], strict=True))
    assert sum(errors["ekfac"]) < 0.95 * sum(errors["kfac"])
    assert max(errors["ekfac"]) < 1.0  # better than nothing on every layer


@pytest.mark.parametrize("method", ["kfac", "ekfac"])
@pytest.mark.parametrize("tied", [False, True])
def test_factors_do_not_depend_on_batches_padding_or_order(method, tied):
    model, rows = tiny_model(2, tied), tiny_rows()
    vector = random_vector(model, 5)
    expected = fit_factors(model, packed, batches(rows, 99), method=method).inverse() @ vector
    for layout, size in LAYOUTS:
        for order in (rows, rows[::-1]):
            result = fit_factors(model, layout, batches(order, size), method=method).inverse() @ vector
            for name, tensor in result.items():
                torch.testing.assert_close(tensor, expected[name], rtol=1e-7, atol=1e-9)
    other = fit_factors(model, packed, batches(rows, 99), method=method, seed=1).inverse() @ vector
    assert (other["up.weight"] - expected["up.weight"]).norm() > 1e-3 * expected["up.weight"].norm()


def test_unsupervised_rows_and_tokens_count_nowhere():
    model, rows = tiny_model(2), tiny_rows()
    vector = random_vector(model, 5)
    silent = [(ids, torch.full_like(labels, -100), key + 1) for ids, labels, key in rows[:3]]
    longer = [
        (torch.cat([ids, ids[:2]]), torch.cat([labels, torch.full_like(labels[:2], -100)]), key)
        for ids, labels, key in rows
    ]
    expected = fit_factors(model, packed, batches(rows, 4)).inverse() @ vector
    for changed in (rows + silent, longer):
        result = fit_factors(model, packed, batches(changed, 4)).inverse() @ vector
        for name, tensor in result.items():
            torch.testing.assert_close(tensor, expected[name], rtol=1e-7, atol=1e-9)


class OneLayer(nn.Module):
    """Logits = fixed · tanh-free map of one linear layer: its Fisher matrix is A ⊗ B when its weight is zero."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 3)
        self.register_buffer("fixed", torch.randn(5, 3))
        with torch.no_grad():
            self.layer.weight.zero_()
            self.layer.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) @ self.fixed.T


def one_layer_forward(model: nn.Module, batch: tuple[Tensor, Tensor]) -> LabelledLogits:
    x, labels = batch
    rows = torch.arange(len(x))
    return LabelledLogits(model(x), labels, rows, rows, rows)


@pytest.mark.parametrize("method", ["kfac", "ekfac"])
def test_undamped_inverse_is_the_inverse_where_the_factors_are_exact(method):
    model = OneLayer().double()
    inputs = torch.randn(9, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    # every input with every label: output gradients are independent of inputs, so F = A ⊗ B, and it is the Gauss–Newton
    data = (inputs.repeat_interleave(5, 0), torch.arange(5).repeat(9))
    factors = fit_factors(model, one_layer_forward, [data], method=method, fisher="empirical")
    names = ["layer.weight", "layer.bias"]
    vector = random_vector(model, 2)
    dense = dense_gauss_newton(model, model(data[0]), names)
    assert torch.linalg.cond(dense) < 1e5
    solved = torch.linalg.solve(dense, flat(vector, names))
    torch.testing.assert_close(flat(factors.inverse(0.0) @ vector, names), solved, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(
        flat(KroneckerOperator(factors, lambda values: values) @ vector, names), dense @ flat(vector, names)
    )
    damped = dense + 0.3 * dense.diagonal().mean() * torch.eye(15, dtype=torch.float64)
    solved = torch.linalg.solve(damped, flat(vector, names))
    torch.testing.assert_close(flat(factors.inverse(0.3) @ vector, names), solved)


def test_kfac_is_exact_for_one_datum():
    model, rows = tiny_model(4), [(torch.tensor([3]), torch.tensor([5]), 1)]
    names = all_parameters(model)
    gradients, count = row_gradients(model, rows, names)
    factors = fit_factors(model, packed, [rows], method="kfac", fisher="empirical")
    for name in ("embed", "v", "o", "up", "down"):
        each = as_matrix_order(factors, name, gradients, names, model)
        basis, values = dense_basis(factors, name)
        torch.testing.assert_close(basis * values @ basis.T, each.T @ each / count, rtol=1e-8, atol=1e-12)


def test_inverse_works_on_a_stack_and_is_symmetric():
    model, rows = tiny_model(1, tied=True), tiny_rows()
    inverse = fit_factors(model, packed, batches(rows, 6)).inverse(1e-3)
    stack = random_vector(model, 1, 3)
    each = [inverse @ {name: tensor[i] for name, tensor in stack.items()} for i in range(3)]
    for name, tensor in (inverse @ stack).items():
        torch.testing.assert_close(tensor, torch.stack([one[name] for one in each]))
    first = {name: tensor[0] for name, tensor in stack.items()}
    second = {name: tensor[1] for name, tensor in stack.items()}
    names = list(first)
    crossed = [float(flat(a, names) @ flat(b, names)) for a, b in ((first, each[1]), (second, each[0]))]
    assert crossed[0] == pytest.approx(crossed[1], rel=1e-9)


def test_factors_on_disk_in_many_passes_equal_factors_in_memory(tmp_path):
    model, rows = tiny_model(1), tiny_rows()
    vector = random_vector(model, 6)
    expected = fit_factors(model, packed, batches(rows, 4)).inverse() @ vector
    written = fit_factors(model, packed, batches(rows, 4), memory_bytes=1, folder=tmp_path)
    assert len(list(tmp_path.glob("*.pt"))) == len(written.layers) == 10
    result = written.inverse() @ vector
    assert set(result) == set(expected)
    for name, tensor in result.items():
        torch.testing.assert_close(tensor, expected[name])


def test_layer_selection_covers_only_what_matches():
    model, rows = tiny_model(1), tiny_rows()
    factors = fit_factors(model, packed, [rows], select=["up", "do*"])
    assert factors.parameters == ("up.weight", "up.bias", "down.weight")
    assert "embed.weight" in factors.excluded
    everything = fit_factors(model, packed, [rows])
    for name in ("up", "down"):
        torch.testing.assert_close(factors.block(name).values, everything.block(name).values)
    with pytest.raises(UserError, match="No trainable layer matches"):
        fit_factors(model, packed, [rows], select=["nothing*"])
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_a_vocabulary_side_and_a_long_side_keep_only_the_diagonal():
    model, rows = tiny_model(1), tiny_rows()
    factors = fit_factors(model, packed, [rows], max_dense=6)
    assert factors.block("head").left is None
    assert factors.block("embed").left is None
    assert factors.block("up").left is None  # 7 outputs
    assert factors.block("up").right is None  # 6 inputs and the bias
    assert factors.block("o").left is not None
    assert factors.block("norm").values.shape == (WIDTH, 1)
    assert factors.block("last").values.shape == (WIDTH, 2)


def test_a_model_that_is_not_deterministic_is_refused():
    model = tiny_model(1)

    def noisy(model: nn.Module, batch: list) -> LabelledLogits:
        output = packed(model, batch)
        return LabelledLogits(
            nn.functional.dropout(output.logits, 0.5), output.labels, output.label_rows, output.token_rows, output.keys
        )

    with pytest.raises(UserError, match="for the same batch"):
        fit_factors(model, noisy, [tiny_rows()])
    model.drop.p = 0.5
    model.train()
    fit_factors(model, packed, [tiny_rows()])  # dropout itself is switched off while measuring
    assert model.training


def test_rows_without_labels_are_refused():
    silent = [(ids, torch.full_like(labels, -100), key) for ids, labels, key in tiny_rows(2)]
    with pytest.raises(UserError, match="no supervised token"):
        fit_factors(tiny_model(1), packed, [silent])


def test_negative_or_missing_damping_of_a_singular_layer_is_refused():
    factors = fit_factors(tiny_model(1), packed, [tiny_rows(2)])
    vector = random_vector(tiny_model(1), 0)
    with pytest.raises(UserError, match="damping is -1"):
        factors.inverse(-1.0)
    with pytest.raises(UserError, match="singular"):
        _ = factors.inverse(0.0) @ vector


@pytest.mark.parametrize("vocabulary", [1, 5, 64, 65, 300])
def test_sampled_labels_are_the_inverse_of_the_cumulative_probabilities(vocabulary):
    generator = torch.Generator().manual_seed(vocabulary)
    logits = 4 * torch.randn(600, vocabulary, generator=generator, dtype=torch.float64)
    logits[::3, : vocabulary // 2] = -torch.inf  # whole blocks of the vocabulary that cannot be drawn
    rows = torch.arange(200).repeat_interleave(3)
    output = LabelledLogits(logits, torch.zeros_like(rows), rows, rows, torch.arange(200) * 31)
    uniform = hash_uniform(torch.arange(200).repeat_interleave(3) * 31, torch.arange(3).repeat(200), 5)
    plain = (logits.softmax(-1).cumsum(-1) < uniform[:, None]).sum(-1)
    labels = sample_labels(output, 5)
    assert torch.equal(labels, plain)
    assert torch.isfinite(logits[torch.arange(600), labels]).all()
    narrow = sample_labels(LabelledLogits(logits.float(), output.labels, rows, rows, output.keys), 5)
    assert (narrow != plain).sum() <= 1  # a draw on the very edge may fall to the other side in float32
    gradient = output.loss_gradient(labels)
    wanted = logits.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(LabelledLogits(wanted, labels, rows, rows, output.keys).loss_sum(), wanted)
    torch.testing.assert_close(gradient, wanted)


def test_sampled_labels_follow_the_models_distribution_and_the_row():
    logits = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    count = 20_000
    rows = torch.arange(count).repeat_interleave(2)
    output = LabelledLogits(logits.expand(2 * count, -1), torch.zeros_like(rows), rows, rows, torch.arange(count) * 977)
    labels = sample_labels(output, 0)
    frequency = torch.bincount(labels, minlength=VOCABULARY) / len(labels)
    torch.testing.assert_close(frequency.double(), logits.softmax(-1), atol=0.01, rtol=0)
    first, second = labels[::2], labels[1::2]
    together = (first == second).double().mean()  # two positions of a row are independent
    assert abs(together - logits.softmax(-1).square().sum()) < 0.012
    assert (sample_labels(output, 1) != labels).double().mean() > 0.5
    uniform = hash_uniform(torch.arange(count), torch.zeros(count, dtype=torch.int64), 3)
    assert abs(uniform.mean() - 0.5) < 0.01
    assert uniform.min() > 0
    assert uniform.max() < 1


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2, n_positions=32))


def test_a_model_whose_weights_lie_in_unknown_layers_is_refused():
    """Half of a GPT-2 is Conv1D, whose gradients a response would leave out in silence."""
    with pytest.raises(UserError, match=r"gradients reach \d\d% of the weights that are trained of a GPT2LMHeadModel"):
        refuse_uncovered(gpt2())
    refuse_uncovered(tiny_model(1))
    pytest.importorskip("peft")
    refuse_uncovered(with_lora(gpt2(), 2, 0))


def test_updates_of_experts_in_one_tensor_are_unseen():
    pytest.importorskip("peft")
    with pytest.raises(UserError, match=r"of a PeftModelForCausalLM, not .*mlp.*lora_A"):
        refuse_uncovered(with_lora(mixtral(), 2, 0))
