from __future__ import annotations

import copy
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from builders import environment
from forked import Forked
from tiny_llama import NAMES, SETTINGS, VOLUMES, tiny_domains, tiny_llama, tiny_references
from torch import Tensor

from ideal_proxy.data.tokens import TokenRows
from ideal_proxy.errors import UserError
from ideal_proxy.gradients.curvature import trainable
from ideal_proxy.gradients.factors import Layer
from ideal_proxy.gradients.finite import finite_responses
from ideal_proxy.gradients.influence import InfluenceSettings, mixture_factors, responses
from ideal_proxy.gradients.records import ResponseMatrix, one_step
from ideal_proxy.gradients.unrolled import unrolled_responses
from ideal_proxy.mixture.draws import domain_order
from ideal_proxy.proxy.model import collate_across, evaluate, label_losses
from ideal_proxy.proxy.records import TrainSettings, learning_rates
from ideal_proxy.proxy.training import train


def mean_gradient(model, rows: TokenRows) -> Tensor:
    """Mean gradient per supervised token by transformers' own path: one unpacked row at a time, labels as data."""
    plain = copy.deepcopy(model)
    plain.set_attn_implementation("sdpa")
    count = 0
    for n in range(len(rows)):
        span = slice(rows.offsets[n], rows.offsets[n + 1])
        ids = torch.from_numpy(rows.ids[span].astype(np.int64))[None]
        logits = plain(input_ids=ids).logits[0, :-1]
        wanted = torch.from_numpy(rows.supervised[span][1:])
        loss = torch.nn.functional.cross_entropy(logits[wanted], ids[0, 1:][wanted], reduction="sum")
        loss.backward()
        count += int(wanted.sum())
    return torch.cat([p.grad.flatten() for p in plain.parameters()]) / count


def by_hand(model, operator, domains, references, w) -> np.ndarray:
    """−w_i g_refᵀ P (g_i − ḡ), everything in flat vectors."""
    names = list(trainable(model))
    sizes = {name: p.shape for name, p in trainable(model).items()}

    def apply(flat: Tensor) -> Tensor:
        if operator is None:
            return flat
        parts = flat.split([sizes[name].numel() for name in names])
        product = operator @ {name: part.view(sizes[name]) for name, part in zip(names, parts, strict=True)}
        return torch.cat([product[name].flatten() for name in names])

    g = [mean_gradient(model, rows) for rows in domains.values()]
    mean = sum(share * each for share, each in zip(w, g, strict=True))
    matrix = [
        [-share * float(mean_gradient(model, rows) @ apply(each - mean)) for share, each in zip(w, g, strict=True)]
        for rows in references.values()
    ]
    return np.array(matrix)


@pytest.fixture(scope="module")
def model():
    return tiny_llama(torch.float64)


@pytest.mark.parametrize("method", ["implicit", "first-order"])
def test_responses_are_the_formula_on_unpacked_rows(model, method):
    domains, references = tiny_domains(), tiny_references()
    factors, _ = mixture_factors(model, domains, VOLUMES, SETTINGS)
    operator = factors.inverse(SETTINGS.damping) if method == "implicit" else None
    result = responses(model, domains, references, VOLUMES, method=method, settings=SETTINGS, operator=operator)
    w = VOLUMES * [rows.supervised_tokens.mean() for rows in domains.values()]
    np.testing.assert_allclose(result.w, w / w.sum())
    np.testing.assert_allclose(result.q, VOLUMES / 27)
    expected = by_hand(model, operator, domains, references, w / w.sum())
    np.testing.assert_allclose(result.M, expected, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(result.M.sum(1), 0, atol=1e-12)
    assert result.domains == NAMES
    tokens = sum(int(rows.lengths.sum()) for rows in (*domains.values(), *references.values()))
    assert result.cost.gradient_tokens == tokens


def test_implicit_computes_its_own_curvature_and_counts_it(model):
    domains, references = tiny_domains(), tiny_references()
    factors, tokens = mixture_factors(model, domains, VOLUMES, SETTINGS)
    given = responses(
        model, domains, references, VOLUMES, settings=SETTINGS, operator=factors.inverse(SETTINGS.damping)
    )
    alone = responses(model, domains, references, VOLUMES, settings=SETTINGS)
    np.testing.assert_allclose(alone.M, given.M, rtol=1e-9)
    assert alone.cost.gradient_tokens == given.cost.gradient_tokens + tokens
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@pytest.mark.parametrize("change", [{"memory_bytes": 1}, {"batch_tokens": 1}, {"batch_tokens": 9999}, {"folder": True}])
def test_responses_do_not_depend_on_batches_memory_or_disk(model, change, tmp_path):
    domains, references = tiny_domains(), tiny_references()
    expected = responses(model, domains, references, VOLUMES, settings=SETTINGS)
    if "folder" in change:
        change = {"folder": tmp_path}
    changed = InfluenceSettings(**{"shards": 4, "gradient_rows": None, "factor_rows": 30, "batch_tokens": 64, **change})
    result = responses(model, domains, references, VOLUMES, settings=changed)
    np.testing.assert_allclose(result.M, expected.M, rtol=1e-7, atol=1e-12)
    np.testing.assert_allclose(result.se, expected.se, rtol=1e-7)


def test_rows_can_be_chosen_by_cost():
    settings = InfluenceSettings().within(1.5, 4000, 10)
    assert 3.2 * settings.factor_rows + 1.1 * 10 * settings.gradient_rows == pytest.approx(1.5 * 4000, rel=0.01)
    assert InfluenceSettings().within(1.5, 10, 10).gradient_rows == 32


def test_an_unpacked_model_gives_the_same(model):
    domains, references = tiny_domains(), tiny_references()
    expected = responses(model, domains, references, VOLUMES, settings=SETTINGS)
    plain = copy.deepcopy(model)
    plain.set_attn_implementation("sdpa")
    result = responses(plain, domains, references, VOLUMES, settings=SETTINGS)
    np.testing.assert_allclose(result.M, expected.M, rtol=1e-6, atol=1e-11)


def test_standard_errors_are_a_jackknife_over_shards_of_rows(model):
    domains, references = tiny_domains(), tiny_references()
    settings = replace(SETTINGS, shards=3)
    factors, _ = mixture_factors(model, domains, VOLUMES, settings)
    operator = factors.inverse()
    tokens = VOLUMES * [rows.supervised_tokens.mean() for rows in domains.values()]

    def estimate(domains, references):
        return responses(
            model, domains, references, VOLUMES, settings=settings, operator=operator, supervised_tokens=tokens
        )

    full = estimate(domains, references)
    variance = np.zeros_like(full.M)
    for source in (domains, references):
        for number, (name, rows) in enumerate(source.items()):
            order = domain_order(0, name, rows.keys)
            left_out = []
            for s in range(3):
                rest = np.setdiff1d(np.arange(len(rows)), order[s::3])
                changed = {**source, name: rows.select(rest)}
                left_out.append((estimate(changed, references) if source is domains else estimate(domains, changed)).M)
            values = np.array(left_out)
            part = 2 / 3 * np.square(values - values.mean(0)).sum(0)
            if source is references:
                others = np.delete(part, number, 0)
                np.testing.assert_allclose(others, 0, atol=1e-20)
            variance += part
    np.testing.assert_allclose(full.se, np.sqrt(variance), rtol=1e-6)
    assert (full.se > 0).all()


def test_capabilities_with_fewer_rows_than_shards_still_get_errors(model):
    domains, references = tiny_domains(), tiny_references()
    few = {**references, "b": references["b"].select([0, 1, 2])}
    full = responses(model, domains, references, VOLUMES, method="first-order", settings=SETTINGS)
    result = responses(model, domains, few, VOLUMES, method="first-order", settings=SETTINGS)
    np.testing.assert_allclose(result.se[[0, 2]], full.se[[0, 2]], rtol=1e-9)
    assert np.isfinite(result.se[1]).all()
    one = {**references, "b": references["b"].select([0])}
    result = responses(model, domains, one, VOLUMES, method="first-order", settings=SETTINGS)
    assert np.isnan(result.se[1]).all()
    assert np.isfinite(result.se[0]).all()


class DensePseudoInverse:
    """(Gauss–Newton)⁺ of one weight, made outside the package; stands where a Kronecker operator would."""

    def __init__(self, name: str, matrix: Tensor) -> None:
        self.matrix = torch.linalg.pinv(matrix, rtol=1e-10, hermitian=True)
        self.factors = self
        self.layers = (Layer(name, "linear", name, None, (1, 1), (), (True, True)),)

    def layerwise(self, stack):
        (name,) = self.layers[0].parameters
        flat = stack[name].flatten(1)
        yield {name: (flat @ self.matrix).view_as(stack[name])}


@pytest.mark.parametrize("kind", ["token", "row"])
def test_implicit_is_the_derivative_of_the_optimum(kind):
    """Softmax regression on fixed features: its Hessian is the Gauss–Newton matrix, and the optimum can be re-found."""
    torch.manual_seed(0)
    model = tiny_llama(torch.float64, tie=False)
    for name, p in model.named_parameters():
        p.requires_grad_(name == "lm_head.weight")
    domains, references = tiny_domains(rows=20), tiny_references()
    features, labels = {}, {}
    kept = []
    hook = model.lm_head.register_forward_hook(lambda m, inputs, output: kept.append(inputs[0].detach()[0]))
    for group in (domains, references):
        for rows in group.values():
            batch = collate_across([rows], np.zeros(len(rows), dtype=np.int64), np.arange(len(rows)))
            label_losses(model, batch)
            features[id(rows)], labels[id(rows)] = kept[-1], torch.from_numpy(batch.labels[batch.labels >= 0])
    hook.remove()

    def loss(weight: Tensor, rows: TokenRows) -> Tensor:
        return torch.nn.functional.cross_entropy(features[id(rows)] @ weight.T, labels[id(rows)])

    shape = model.lm_head.weight.shape
    ridge = 1e-2  # a little pull to the origin, in the training and in the curvature, makes the optimum unique

    def optimum(log_w: np.ndarray, start: Tensor) -> tuple[Tensor, Tensor]:
        w = torch.from_numpy(tokens * np.exp(log_w))
        w = w / w.sum()
        x = torch.cat([features[id(rows)] for rows in domains.values()])
        y = torch.nn.functional.one_hot(torch.cat([labels[id(rows)] for rows in domains.values()]), len(start))
        each = torch.cat([
            s * torch.from_numpy(np.repeat(1.0 / len(r) / counts, counts))
            if kind == "row"
            else (s / len(labels[id(r)])).expand(len(labels[id(r)]))
            for s, r in zip(w, domains.values(), strict=True)
            for counts in [r.supervised_tokens]
        ])
        weight = start
        while True:
            p = (x @ weight.T).softmax(-1)
            gradient = (each[:, None] * (p - y)).T @ x + ridge * weight
            output = torch.diag_embed(p) - p[:, :, None] * p[:, None]
            curved = torch.einsum("lvu,lab->vaub", output, each[:, None, None] * x[:, :, None] * x[:, None])
            hessian = curved.reshape(shape.numel(), -1) + ridge * torch.eye(shape.numel(), dtype=p.dtype)
            if gradient.norm() < 1e-11:
                break
            weight = weight - torch.linalg.solve(hessian, gradient.flatten()).view(shape)
        return weight, hessian

    tokens = np.array([float(len(r) if kind == "row" else r.supervised_tokens.sum()) for r in domains.values()])
    best, hessian = optimum(np.zeros(3), torch.zeros(shape, dtype=torch.float64))
    step, truth = 1e-4, np.zeros((3, 3))
    for i in range(3):
        unit = step * np.eye(3)[i]
        up, down = optimum(unit, best)[0], optimum(-unit, best)[0]
        truth[:, i] = [float(loss(up, r) - loss(down, r)) / (2 * step) for r in references.values()]
    with torch.no_grad():
        model.lm_head.weight.copy_(best)
    result = responses(
        model, domains, references, [20, 20, 20], settings=replace(SETTINGS, loss=kind),
        operator=DensePseudoInverse("lm_head.weight", hessian),
    )  # fmt: skip
    np.testing.assert_allclose(result.M, truth, rtol=1e-5, atol=1e-8)
    assert np.abs(truth).max() > 0.01


def test_two_processes_give_what_one_gives(tmp_path):
    command = [sys.executable, "-m", "influence_worker", str(tmp_path)]
    store = str(tmp_path / "store")
    ranks = [Forked(command, env=environment(RANK=str(rank), STORE=store)) for rank in range(2)]
    assert [process.wait(240) for process in ranks] == [0, 0]
    for dtype, tolerance in ((torch.float64, 1e-8), (torch.float32, 1e-3)):
        alone = responses(tiny_llama(dtype), tiny_domains(), tiny_references(), VOLUMES, settings=SETTINGS)
        both = [ResponseMatrix.load(tmp_path / f"{rank}-{dtype}.npz") for rank in range(2)]
        assert np.array_equal(both[0].M, both[1].M)
        scale = np.abs(alone.M).max()
        assert np.abs(both[0].M - alone.M).max() <= tolerance * scale
        np.testing.assert_allclose(both[0].se, alone.se, rtol=max(tolerance, 1e-6) * 10)
        assert both[0].cost.gradient_tokens == alone.cost.gradient_tokens
    shares = json.loads((tmp_path / "labels.json").read_text())
    assert min(shares) > 0.3 * sum(shares)  # both did their part


TRAIN = TrainSettings(learning_rate=3e-3, batch_rows=6, weight_decay=0.05, grad_clip=0.6, warmup_fraction=0.2)


def training_rows(domains) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(3)
    domain = random.integers(len(domains), size=27)
    return domain, random.integers(10, size=27)


def test_curvature_of_the_row_loss_is_the_mean_over_rows(model):
    """What a row adds is its own Fisher matrix per supervised token, however long it is."""
    domains = tiny_domains()
    rows = next(iter(domains.values()))
    kinds = ("token", "row")
    whole = {kind: fisher_of(model, rows, kind)["model.norm"] for kind in kinds}
    alone = [fisher_of(model, rows.select([n]), "token")["model.norm"] for n in range(len(rows))]
    assert len(set(rows.supervised_tokens)) > 1
    torch.testing.assert_close(whole["row"], sum(alone) / len(rows), rtol=1e-9, atol=0)
    assert not torch.allclose(whole["row"], whole["token"], rtol=1e-3)


def fisher_of(model, rows, kind) -> dict[str, Tensor]:
    settings = replace(SETTINGS, loss=kind, factor_rows=len(rows))
    factors, _ = mixture_factors(model, {"only": rows}, [len(rows)], settings)
    return {layer.name: factors.block(layer.name).values for layer in factors.layers if layer.kind == "norm"}


def train_weighted(log_w: np.ndarray, domains, domain, row, kind="token"):
    """Plain torch: AdamW on Σ ω nll / Σ ω of each step, and the final reference losses."""
    model = tiny_llama(torch.float64)
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(TRAIN.beta1, TRAIN.beta2), foreach=False)
    rates = learning_rates(TRAIN, 5)
    rows = list(domains.values())
    for step in range(5):
        total, weight = 0.0, 0.0
        for d, r in zip(domain[6 * step : 6 * step + 6], row[6 * step : 6 * step + 6], strict=True):
            span = slice(rows[d].offsets[r], rows[d].offsets[r + 1])
            ids = torch.from_numpy(rows[d].ids[span].astype(np.int64))[None]
            mask = torch.from_numpy(rows[d].supervised[span][1:])
            logits = model(input_ids=ids).logits[0, :-1][mask]
            each = torch.nn.functional.cross_entropy(logits, ids[0, 1:][mask], reduction="none")
            total += np.exp(log_w[d]) * (each.mean() if kind == "row" else each.sum())
            weight += np.exp(log_w[d]) * (1 if kind == "row" else int(mask.sum()))
        (total / weight).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), TRAIN.grad_clip)
        for group in optimizer.param_groups:
            group["lr"] = rates[step]
        optimizer.step()
        optimizer.zero_grad()
    return model, np.array([evaluate(model, rows).mean for rows in tiny_references().values()])


@pytest.fixture(scope="module")
def unrolled():
    domains = tiny_domains()
    model = tiny_llama(torch.float64)
    order = training_rows(domains)
    result = unrolled_responses(
        model, order, domains, tiny_references(), TRAIN, of="weights", shards=4, batch_tokens=40
    )
    return model, result


def test_unrolled_equals_finite_differences_of_weighted_losses(unrolled):
    domains = tiny_domains()
    domain, row = training_rows(domains)
    step = 1e-6
    truth = np.zeros((3, 3))
    for i in range(3):
        up, down = (train_weighted(sign * step * np.eye(3)[i], domains, domain, row)[1] for sign in (1, -1))
        truth[:, i] = (up - down) / (2 * step)
    M = unrolled[1].M
    assert np.abs(M - truth).max() <= 1e-4 * np.abs(truth).max()
    np.testing.assert_allclose(M, truth, rtol=1e-3, atol=1e-4 * np.abs(truth).max())
    np.testing.assert_allclose(M.sum(1), 0, atol=1e-9)
    assert (np.linalg.norm(truth, axis=1) > 1e-4).all()


def test_unrolled_follows_the_row_loss():
    domains = tiny_domains()
    order = training_rows(domains)
    settings = replace(TRAIN, loss="row")
    found = unrolled_responses(
        tiny_llama(torch.float64), order, domains, tiny_references(), settings, of="weights", shards=1, batch_tokens=40
    )
    step, i = 1e-6, 1
    up, down = (train_weighted(sign * step * np.eye(3)[i], domains, *order, "row")[1] for sign in (1, -1))
    np.testing.assert_allclose(found.M[:, i], (up - down) / (2 * step), rtol=1e-3)
    np.testing.assert_allclose(found.w, found.q)


def train_with_rows_in_the_squares(log_w: np.ndarray, domains, domain, row):
    """AdamW by hand: from the third step on, squares see the root of the weights, so that they count half."""
    model = tiny_llama(torch.float64)
    parameters, rows = list(model.parameters()), list(domains.values())
    mean, square = ([torch.zeros_like(p) for p in parameters] for _ in range(2))

    def gradient(step: int, weights: np.ndarray) -> list[torch.Tensor]:
        total, weight = 0.0, 0.0
        for d, r in zip(domain[6 * step : 6 * step + 6], row[6 * step : 6 * step + 6], strict=True):
            span = slice(rows[d].offsets[r], rows[d].offsets[r + 1])
            ids = torch.from_numpy(rows[d].ids[span].astype(np.int64))[None]
            mask = torch.from_numpy(rows[d].supervised[span][1:])
            logits = model(input_ids=ids).logits[0, :-1][mask]
            total += weights[d] * torch.nn.functional.cross_entropy(logits, ids[0, 1:][mask], reduction="sum")
            weight += weights[d] * int(mask.sum())
        return list(torch.autograd.grad(total / weight, parameters))

    for step, rate in enumerate(learning_rates(TRAIN, 5)):
        by_weights = gradient(step, np.exp(log_w))
        squared = gradient(step, np.exp(log_w / 2)) if step >= 2 else by_weights
        norm = torch.sqrt(sum(g.square().sum() for g in squared))
        clip = min(1.0, TRAIN.grad_clip / (float(norm) + 1e-6))
        with torch.no_grad():
            for k, p in enumerate(parameters):
                mean[k] = TRAIN.beta1 * mean[k] + (1 - TRAIN.beta1) * clip * by_weights[k]
                square[k] = TRAIN.beta2 * square[k] + (1 - TRAIN.beta2) * (clip * squared[k]).square()
                p *= 1 - float(rate) * (0.05 if p.ndim >= 2 else 0.0)
                root = (square[k] / (1 - TRAIN.beta2 ** (step + 1))).sqrt() + 1e-8
                p -= float(rate) * mean[k] / (1 - TRAIN.beta1 ** (step + 1)) / root
    return np.array([evaluate(model, rows).mean for rows in tiny_references().values()])


def test_unrolled_rows_count_half_in_the_squares_that_divide_a_step(unrolled):
    domains = tiny_domains()
    domain, row = training_rows(domains)
    step = 1e-6
    truth = np.zeros((3, 3))
    for i in range(3):
        losses = [train_with_rows_in_the_squares(s * step * np.eye(3)[i], domains, domain, row) for s in (1, -1)]
        truth[:, i] = (losses[0] - losses[1]) / (2 * step)
    model = tiny_llama(torch.float64)
    result = unrolled_responses(model, (domain, row), domains, tiny_references(), TRAIN, shards=4, batch_tokens=40)
    assert np.abs(result.M - truth).max() <= 1e-4 * np.abs(truth).max()
    assert np.abs(result.M - unrolled[1].M).max() > 0.05 * np.abs(truth).max()  # and it is another derivative
    np.testing.assert_allclose(result.M.sum(1), 0, atol=1e-9)


def test_unrolled_repeats_the_training_that_proxies_get(unrolled):
    domains = tiny_domains()
    model = tiny_llama(torch.float64)
    log = train(model, training_rows(domains), list(domains.values()), TRAIN)
    for mine, theirs in zip(unrolled[0].parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-8)  # the fused kernel keeps its step in float32
    assert len(log.losses) == 5
    result = unrolled[1]
    assert result.cost.runs(log.tokens) == pytest.approx(2 + 1 + 2 * 3, rel=0.5)
    assert (result.se > 0).all()
    counts = np.bincount(training_rows(domains)[0], minlength=3)
    np.testing.assert_allclose(result.q, counts / counts.sum())


def test_unrolled_refuses_what_would_not_be_exact():
    domains = tiny_domains()
    model = tiny_llama(torch.float32)
    with pytest.raises(UserError, match="bfloat16"):
        unrolled_responses(model, training_rows(domains), domains, tiny_references(), TrainSettings(dtype="bfloat16"))
    empty = np.zeros(0, dtype=np.int64)
    with pytest.raises(UserError, match="without rows"):
        unrolled_responses(model, (empty, empty), domains, tiny_references(), TRAIN)


def surface(volumes: np.ndarray, seed: int) -> np.ndarray:
    """Two capabilities' losses with known derivatives; a seed moves all runs of it alike and slopes a little."""
    a = np.array([[0.5, 0.1, 0.02], [0.05, 0.3, 0.4]])
    shares = volumes / volumes.sum()
    noise = 0.03 * seed
    return 2.0 + noise + 3.0 * (1 + a @ np.sqrt(volumes)) ** -0.4 + (0.3 + noise) * (shares**2) @ a.T


def run_surface(specs) -> np.ndarray:
    return np.array([surface(volumes, seed) for volumes, seed in specs])


def test_finite_differences_measure_both_derivatives_and_their_identity():
    volumes = np.array([400.0, 100.0, 900.0])
    result = finite_responses(run_surface, NAMES, ("x", "y"), volumes, seeds=(0, 1, 2), step=0.01, tokens_per_run=7)
    q = volumes / volumes.sum()
    assert result.R is not None
    assert result.tau is not None
    step = 1e-6
    for i in range(3):
        factor = np.exp(step * np.eye(3)[i])
        exact = [(surface(volumes * factor, s) - surface(volumes / factor, s)) / (2 * step) for s in (0, 1, 2)]
        np.testing.assert_allclose(result.R[:, i], np.mean(exact, 0), rtol=1e-3)
        np.testing.assert_allclose(result.se_R[:, i], np.std(exact, 0, ddof=1) / np.sqrt(3), rtol=1e-2)
    np.testing.assert_allclose(result.R, result.M + np.outer(result.tau, q), atol=2e-5)
    np.testing.assert_allclose(result.M.sum(1), 0, atol=2e-5)
    assert np.abs(result.M).max() > 0.01
    assert result.cost.gradient_tokens == 7 * 3 * 14
    again = result.with_tau(result.tau)
    np.testing.assert_allclose(again.R, result.R, atol=2e-5)


def test_one_seed_has_no_standard_error():
    result = finite_responses(run_surface, NAMES, ("x", "y"), [1.0, 2.0, 3.0])
    assert np.isnan(result.se).all()
    with pytest.raises(UserError, match="positive step"):
        finite_responses(run_surface, NAMES, ("x", "y"), [1.0, 2.0, 3.0], step=0.0)


def test_a_small_step_moves_against_the_sum_of_responses():
    response = np.array([[-0.3, 0.1, 0.0], [-0.1, 0.1, 0.0]])
    np.testing.assert_allclose(one_step(response, [100, 100, 50]), [115, 92.5, 50])
    np.testing.assert_allclose(one_step(response, [100, 100, 50], 0.3), [130, 85, 50])
    np.testing.assert_allclose(one_step(0 * response, [100, 100, 50]), [100, 100, 50])
    with pytest.raises(UserError, match="below 1"):
        one_step(response, [1, 1, 1], 1.0)
    with pytest.raises(UserError, match="not finite"):
        one_step(response * np.nan, [1, 1, 1])


def test_records_survive_the_disk(tmp_path, unrolled):
    result = unrolled[1].with_tau([0.1, -0.2, 0.3])
    result.save(tmp_path / "r.npz")
    loaded = ResponseMatrix.load(tmp_path / "r.npz")
    assert loaded.method == "unrolled"
    assert loaded.cost == result.cost
    for name in ("M", "se", "R", "tau", "q", "w", "se_R"):
        assert np.array_equal(getattr(loaded, name), getattr(result, name))
    (tmp_path / "r.npz").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="does not hold responses"):
        ResponseMatrix.load(tmp_path / "r.npz")


def test_users_mistakes_are_named(model):
    domains, references = tiny_domains(), tiny_references()
    with pytest.raises(UserError, match="method 'exact'"):
        responses(model, domains, references, VOLUMES, method="exact")
    with pytest.raises(UserError, match="2 volumes for 3 domains"):
        responses(model, domains, references, [1, 2])
    with pytest.raises(UserError, match="no rows"):
        responses(model, {**domains, "a": domains["a"].select([])}, references, VOLUMES)
    with pytest.raises(UserError, match="above 0"):
        responses(model, domains, references, [0, 0, 0])
