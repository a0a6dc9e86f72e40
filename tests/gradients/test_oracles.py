"""Our curvature against other people's: kronfluence's EK-FAC and curvlinops' Gauss–Newton, where they are installed.

Both pull torchvision, which can replace a CPU build of torch, so they are installed without their dependencies:
`pip install --no-deps kronfluence curvlinops-for-pytorch linear-operator jaxtyping wadler-lindig einconv`. curvlinops'
own EK-FAC ignores label masks and is no oracle. Reached (float64): 1e-14 in eigenvalues and inverse products, 1e-15 in
Gauss–Newton products.
"""

from __future__ import annotations

import pytest
import torch
from tiny_lm import dense_gauss_newton
from torch import Tensor, nn

from ideal_proxy.gradients.curvature import LabelledLogits
from ideal_proxy.gradients.kfac import fit_factors

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

VOCABULARY, WIDTH, ROWS, LENGTH = 9, 5, 12, 6


class Tokenwise(nn.Module):
    """Every token by itself, so that the tokens a loss reaches are the labelled ones for every implementation."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 7), nn.Linear(7, VOCABULARY, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        return self.down(torch.tanh(self.up(self.embed(ids))))


def problem() -> tuple[Tokenwise, Tensor, Tensor]:
    torch.manual_seed(3)
    model = Tokenwise().double()
    ids = torch.randint(VOCABULARY, (ROWS, LENGTH))
    labels = torch.randint(VOCABULARY, (ROWS, LENGTH))
    for row in range(ROWS):
        labels[row, : 1 + row % 4] = -100  # prompts of several lengths
    return model, ids, labels


def forward(model: nn.Module, batch: tuple[Tensor, Tensor]) -> LabelledLogits:
    ids, labels = batch
    keep = (labels.flatten() >= 0).nonzero().squeeze(-1)
    row = torch.arange(len(ids)).repeat_interleave(ids.shape[1])
    logits = model(ids).flatten(0, 1)[keep]
    return LabelledLogits(logits, labels.flatten()[keep], row[keep], row, torch.arange(len(ids)))


def test_ekfac_equals_kronfluence_on_masked_labels(tmp_path):
    kronfluence = pytest.importorskip("kronfluence", reason="kronfluence is not installed")
    from kronfluence.arguments import FactorArguments

    model, ids, labels = problem()

    class Task(kronfluence.Task):
        def compute_train_loss(self, batch, model, sample=False):
            assert not sample
            return nn.functional.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten(), reduction="sum")

        def compute_measurement(self, batch, model):
            return self.compute_train_loss(batch, model)

        def get_influence_tracked_modules(self):
            return ["up", "down"]

        def get_attention_mask(self, batch):
            return (batch[1] >= 0).long()

    task = Task()
    theirs = kronfluence.prepare_model(model=Tokenwise().double(), task=task)
    theirs.load_state_dict(
        {k.replace(".weight", ".original_module.weight").replace(".bias", ".original_module.bias")
         if not k.startswith("embed") else k: v for k, v in model.state_dict().items()}, strict=False,
    )  # fmt: skip
    analyzer = kronfluence.Analyzer(
        "oracle", theirs, task, cpu=True, output_dir=str(tmp_path), disable_tqdm=True, disable_model_save=True
    )
    double = torch.float64
    arguments = FactorArguments(
        strategy="ekfac", use_empirical_fisher=True, activation_covariance_dtype=double, lambda_dtype=double,
        gradient_covariance_dtype=double, per_sample_gradient_dtype=double, eigendecomposition_dtype=double,
    )  # fmt: skip
    data = torch.utils.data.TensorDataset(ids, labels)
    analyzer.fit_all_factors("f", data, factor_args=arguments, per_device_batch_size=5, overwrite_output_dir=True)
    basis, lambdas = analyzer.load_eigendecomposition("f"), analyzer.load_lambda_matrices("f")

    parts = [(ids[i : i + 5], labels[i : i + 5]) for i in range(0, ROWS, 5)]
    factors = fit_factors(model, forward, parts, fisher="empirical", select=("up", "down"))
    inverse, count = factors.inverse(0.1), int((labels >= 0).sum())
    assert factors.supervised_tokens == count
    for name in ("up", "down"):
        block = factors.block(name)
        values = lambdas["lambda_matrix"][name] / lambdas["num_lambda_processed"][name] * ROWS / count
        torch.testing.assert_close(block.values, values, rtol=1e-10, atol=1e-14)
        vector = {k: torch.randn_like(p) for k, p in model.named_parameters() if k.startswith(name)}
        matrix = vector[f"{name}.weight"]
        if name == "up":
            matrix = torch.cat([matrix, vector["up.bias"][:, None]], 1)
        left, right = basis["gradient_eigenvectors"][name], basis["activation_eigenvectors"][name]
        wanted = left @ ((left.T @ matrix @ right) / (values + 0.1 * values.mean())) @ right.T
        full = {k: torch.zeros_like(p) for k, p in model.named_parameters()} | vector
        got = inverse @ full
        ours = got[f"{name}.weight"] if name == "down" else torch.cat([got["up.weight"], got["up.bias"][:, None]], 1)
        torch.testing.assert_close(ours, wanted, rtol=1e-10, atol=1e-12)
        assert wanted.abs().max() > 0.1


def test_the_dense_gauss_newton_that_tests_use_equals_curvlinops():
    curvlinops = pytest.importorskip("curvlinops", reason="curvlinops is not installed", exc_type=ImportError)
    model, ids, labels = problem()
    names = [name for name, _ in model.named_parameters()]
    count = int((labels >= 0).sum())

    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: Tensor) -> Tensor:
            return self.model(ids).flatten(0, 1)

    loss = nn.CrossEntropyLoss(reduction="sum", ignore_index=-100)
    operator = curvlinops.GGNLinearOperator(
        Flat(), loss, list(model.parameters()), [(ids, labels.flatten())],
        check_deterministic=False, batch_size_fn=len, num_data=ROWS,
    )  # fmt: skip
    torch.manual_seed(5)
    vector = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    flat = torch.cat([vector[name].flatten() for name in names])
    wanted = (operator @ flat) / count
    got = dense_gauss_newton(model, model(ids)[labels >= 0], names) @ flat
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)
    assert wanted.norm() > 0.1
