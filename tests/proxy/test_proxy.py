"""One proxy: packed equals unpacked, sum over sum, learning, determinism, resume."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from ideal_proxy.batching import Batch, Loss, step_bounds
from ideal_proxy.data.tokens import IGNORED, TokenRows
from ideal_proxy.errors import UsageError, UserError
from ideal_proxy.proxy import model as models
from ideal_proxy.proxy import training
from ideal_proxy.proxy.attention import row_layout
from ideal_proxy.proxy.head import has_plain_head, head_loss
from ideal_proxy.proxy.model import SIZES

VOCABULARY = 64


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_rows(count: int, seed: int = 0, longest: int = 30, step: int = 3) -> TokenRows:
    """Rows with a learnable rule: the answer's next token is the last one plus `step`, modulo the vocabulary."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(4, longest + 1, count)
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    ids = np.concatenate([(rng.integers(VOCABULARY) + step * np.arange(n)) % VOCABULARY for n in lengths])
    position = np.concatenate([np.arange(n) for n in lengths])
    return TokenRows(
        ids=ids.astype(np.int32), supervised=position >= np.repeat(np.maximum(1, lengths // 3), lengths),
        offsets=offsets, keys=rng.integers(0, 2**63, count).astype(np.uint64), source_index=np.arange(count),
    )  # fmt: skip


def tiny(seed: int = 0) -> Any:
    return models.build_proxy("0.1M", VOCABULARY, 64, seed)


def batch_of(rows: TokenRows, indices: list[int] | range) -> Any:
    index = np.array(list(indices))
    return models.collate_across([rows], np.zeros(len(index), dtype=np.int64), index)


def in_order(count: int) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros(count, dtype=np.int64), np.arange(count)


@pytest.mark.parametrize("size", sorted(SIZES))
@pytest.mark.parametrize("vocabulary", [1024, 4096])
def test_the_size_dial_hits_its_size_and_counts_its_parameters(size: str, vocabulary: int) -> None:
    shape = models.proxy_shape(size, vocabulary)
    # 0.1M parameters with 4,096 tokens are at the floor of the width.
    assert 0.75 < shape.parameters / SIZES[size][0] < (1.6 if size == "0.1M" else 1.25)
    if size in {"0.1M", "1M"}:
        model = models.build_proxy(size, vocabulary, 32, 0)
        assert sum(p.numel() for p in model.parameters()) == shape.parameters


def test_an_unknown_size_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"'2M'.*0\.1M"):
        models.proxy_shape("2M", 64)


def test_initial_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one = tiny(3).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    two, other = tiny(3).state_dict(), tiny(4).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_layout_covers_every_token_once() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        lengths = rng.integers(1, 400, rng.integers(1, 20))
        if rng.random() < 0.7:
            lengths.sort()
        starts = np.concatenate(([0], np.cumsum(lengths)))
        layout = row_layout(starts, torch.device("cpu"))
        assert sum(block.rows for block in layout.blocks) == len(lengths)
        flat = torch.cat([
            torch.arange(b.first, b.first + b.tokens) if b.take is None else b.take for b in layout.blocks
        ])
        found = flat if layout.back is None else flat[layout.back]
        assert torch.equal(found, torch.arange(int(starts[-1])))


@pytest.mark.parametrize("order", ["sorted", "as they come"])
def test_packed_equals_one_row_at_a_time(order: str) -> None:
    rows = make_rows(9, longest=60)
    model = tiny()
    index = np.argsort(rows.lengths) if order == "sorted" else np.arange(9)
    packed = models.label_losses(model, batch_of(rows, index))
    alone = torch.cat([plain_losses(model, rows, int(i)) for i in index])
    assert packed.shape == alone.shape
    assert torch.allclose(packed, alone, atol=1e-5)
    packed_gradient = torch.autograd.grad(packed.sum(), list(model.parameters()))
    alone_gradient = torch.autograd.grad(alone.sum(), list(model.parameters()))
    for one, two in zip(packed_gradient, alone_gradient, strict=True):
        assert torch.allclose(one, two, atol=1e-5 * float(two.abs().max()) + 1e-7)


@pytest.mark.parametrize("loss", ["token", "row"])
def test_the_fused_head_gives_the_same_loss_and_gradient(loss: Loss) -> None:
    rows = make_rows(9, longest=60)
    model = tiny()
    batch = batch_of(rows, range(9))
    each = models.label_losses(model, batch)
    if loss == "row":
        each = torch.stack([part.mean() for part in each.split(rows.supervised_tokens.tolist())])
    plain = each.sum() * 0.01
    fused = models.batch_loss(model, batch, 0.01, loss=loss)
    assert fused.item() == pytest.approx(plain.item(), rel=1e-6)
    wanted = torch.autograd.grad(plain, list(model.parameters()))
    for one, two in zip(torch.autograd.grad(3 * fused, list(model.parameters())), wanted, strict=True):
        assert torch.allclose(one, 3 * two, atol=1e-5 * float(two.abs().max()) + 1e-8)


@pytest.mark.parametrize(("positions", "dtype"), [(1, torch.float32), (700, torch.float32), (700, torch.float64)])
def test_the_fused_heads_chunks_cover_every_position(positions: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(positions, 8, generator=generator, dtype=dtype, requires_grad=True)
    weight = torch.randn(3000, 8, generator=generator, dtype=dtype, requires_grad=True)
    targets = torch.randint(0, 3000, (positions,), generator=generator)
    plain = torch.nn.functional.cross_entropy(hidden @ weight.T, targets, reduction="sum")
    fused = head_loss(hidden, weight, targets, 1.0)
    exact = dtype == torch.float64  # nothing in between is rounded to float32
    assert fused.item() == pytest.approx(plain.item(), rel=1e-13 if exact else 1e-5)
    wanted = torch.autograd.grad(plain, [hidden, weight])
    for one, two in zip(torch.autograd.grad(fused, [hidden, weight]), wanted, strict=True):
        assert torch.allclose(one, two, rtol=1e-11 if exact else 1e-5, atol=1e-11 if exact else 1e-4)


def test_only_heads_known_to_be_plain_are_fused() -> None:
    from transformers import GraniteConfig, GraniteForCausalLM

    assert has_plain_head(tiny())
    config = GraniteConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=4, logits_scaling=7.0,
    )  # fmt: skip
    scaled = models.use_packed_attention(GraniteForCausalLM(config))
    assert not has_plain_head(scaled)
    batch = batch_of(make_rows(4), range(4))
    loss = models.batch_loss(scaled, batch, 1.0)
    assert loss.item() == pytest.approx(models.label_losses(scaled, batch).sum().item())


def plain_losses(model: Any, rows: TokenRows, index: int) -> torch.Tensor:
    """The independent way: eager attention, one row, all logits, shifted labels."""
    first, end = int(rows.offsets[index]), int(rows.offsets[index + 1])
    ids = torch.from_numpy(rows.ids[first:end].astype(np.int64))
    model.set_attn_implementation("eager")
    logits = model(input_ids=ids[None]).logits[0]
    model.set_attn_implementation("ideal_proxy_packed")
    nll = -torch.log_softmax(logits[:-1].double(), -1)[torch.arange(len(ids) - 1), ids[1:]]
    return nll[torch.from_numpy(rows.supervised[first + 1 : end])].float()


def test_rows_do_not_see_each_other() -> None:
    rows = make_rows(6)
    model = tiny()
    changed = dataclasses.replace(rows, ids=rows.ids.copy())
    changed.ids[: int(rows.offsets[1])] = 7
    before, after = models.evaluate(model, rows), models.evaluate(model, changed)
    assert np.array_equal(before.loss_sum[1:], after.loss_sum[1:])
    assert abs(before.loss_sum[0] - after.loss_sum[0]) > 0.1


def test_a_model_without_packed_attention_is_fed_padded_rows() -> None:
    rows = make_rows(7)
    model = tiny()
    packed = models.label_losses(model, batch_of(rows, range(7)))
    model.set_attn_implementation("sdpa")
    assert not models.is_packed(model)
    assert torch.allclose(packed, models.label_losses(model, batch_of(rows, range(7))), atol=1e-5)


def test_a_sliding_window_keeps_its_own_attention() -> None:
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=8, max_position_embeddings=64,
    )  # fmt: skip
    windowed = models.use_packed_attention(MistralForCausalLM(config))
    assert not models.is_packed(windowed)
    config.sliding_window = None
    grouped = models.use_packed_attention(MistralForCausalLM(config))
    assert models.is_packed(grouped)
    rows = make_rows(5)
    packed = models.label_losses(grouped, batch_of(rows, range(5)))
    alone = torch.cat([plain_losses(grouped, rows, i) for i in range(5)])
    assert torch.allclose(packed, alone, atol=1e-5)


def test_labels_are_the_supervised_tokens_but_a_rows_first() -> None:
    rows = make_rows(4)
    batch = batch_of(rows, [2, 0])
    for place, row in enumerate([2, 0]):
        first, end = int(rows.offsets[row]), int(rows.offsets[row + 1])
        labels = batch.labels[batch.starts[place] : batch.starts[place + 1]]
        wanted = np.where(rows.supervised[first + 1 : end], rows.ids[first + 1 : end], IGNORED)
        assert labels[:-1].tolist() == wanted.tolist()
        assert labels[-1] == IGNORED
    every = models.collate_across([rows], np.zeros(2, dtype=np.int64), np.array([2, 0]), every_token=True)
    assert int((every.labels == IGNORED).sum()) == 2


def test_evaluation_does_not_depend_on_the_batch() -> None:
    rows = make_rows(25, longest=50)
    model = tiny()
    whole = models.evaluate(model, rows, batch_tokens=100_000)
    single = models.evaluate(model, rows, batch_tokens=1)
    assert whole.loss_sum.dtype == np.float64
    assert np.allclose(whole.loss_sum, single.loss_sum, rtol=1e-5)
    assert np.array_equal(whole.tokens, single.tokens)
    assert np.array_equal(whole.tokens, rows.supervised_tokens)
    assert whole.mean == pytest.approx(whole.loss_sum.sum() / whole.tokens.sum())
    assert model.training


def test_training_learns_the_rule() -> None:
    rows, held_out = make_rows(1280), make_rows(40, seed=1)
    model = tiny()
    before = models.evaluate(model, held_out).mean
    log = training.train(model, in_order(1280), [rows], training.TrainSettings(learning_rate=1e-2))
    after = models.evaluate(model, held_out).mean
    assert before == pytest.approx(np.log(VOCABULARY), abs=0.3)
    assert after < 0.5
    assert len(log.losses) == 40
    assert log.losses[0] == pytest.approx(before, abs=0.3)
    assert log.losses[-1] < 0.5
    assert log.rows == 1280
    assert log.tokens == rows.offsets[-1]
    assert log.supervised_tokens == rows.supervised_tokens.sum()


@pytest.mark.parametrize("loss", ["token", "row"])
@pytest.mark.parametrize("packed", [True, False])
def test_a_steps_loss_is_the_same_however_it_is_split_and_packed(loss: Loss, packed: bool) -> None:
    rows = make_rows(24, longest=60)
    whole, split, reference = tiny(), tiny(), tiny()
    if not packed:
        split.set_attn_implementation("sdpa")
    settings = training.TrainSettings(
        batch_rows=24, micro_batch_tokens=100_000, grad_clip=1e9, warmup_fraction=0.0, loss=loss
    )
    one = training.train(whole, in_order(24), [rows], settings)
    two = training.train(split, in_order(24), [rows], dataclasses.replace(settings, micro_batch_tokens=64))
    losses = models.evaluate(reference, rows)
    sum_over_sum, mean_of_means = losses.mean, float((losses.loss_sum / losses.tokens).mean())
    assert abs(sum_over_sum - mean_of_means) > 1e-4
    assert one.losses[0] == pytest.approx(sum_over_sum if loss == "token" else mean_of_means, rel=1e-5)
    assert two.losses[0] == pytest.approx(one.losses[0], rel=1e-5)
    for a, b in zip(whole.parameters(), split.parameters(), strict=True):
        # Adam's first step is the gradient's sign: compare where rounding cannot flip it.
        assert float((a - b).detach().abs().median()) < 1e-6


def test_rows_of_a_step_come_from_the_order_alone() -> None:
    rows = make_rows(64)
    order = in_order(64)
    swapped = (order[0], np.concatenate([order[1][:32][::-1], order[1][32:]]))
    moved = (order[0], np.roll(order[1], 1))
    base, same, other = tiny(), tiny(), tiny()
    settings = training.TrainSettings(micro_batch_tokens=128)
    one = training.train(base, order, [rows], settings)
    two = training.train(same, swapped, [rows], settings)
    three = training.train(other, moved, [rows], settings)
    assert np.allclose(one.losses, two.losses, rtol=1e-6)
    assert not np.allclose(one.losses, three.losses, rtol=1e-6)


def test_steps_of_tokens_are_cut_where_rows_begin() -> None:
    lengths = np.array([30, 30, 50, 10, 250, 20, 30, 80])  # begin at 0 30 60 110 120 370 390 420
    assert step_bounds(lengths, Batch(tokens=100)).tolist() == [0, 3, 5, 7, 8]
    assert step_bounds(lengths, Batch(rows=3)).tolist() == [0, 3, 6, 8]
    rng = np.random.default_rng(0)
    for _ in range(20):
        lengths = rng.integers(1, 300, rng.integers(1, 400))
        bounds = step_bounds(lengths, Batch(tokens=1000))
        tokens = np.add.reduceat(lengths, bounds[:-1])
        assert bounds[-1] == len(lengths)
        assert (np.diff(bounds) > 0).all()
        assert tokens.max() < 1300
        assert abs(len(tokens) - Batch(tokens=1000).steps(len(lengths), lengths.sum())) <= 1


def test_ten_steps_give_these_losses() -> None:
    """Any later change of training shows here. In float64, so that machines agree; rows of two domains, two lengths."""
    rows = [make_rows(60, longest=40), make_rows(40, seed=1, step=5)]
    rng = np.random.default_rng(3)
    domain = rng.integers(0, 2, 80)
    order = domain, rng.integers(0, 40, 80)
    golden = {
        "token": [
            4.195084809, 3.976075445, 3.764076208, 3.706628722, 3.506134234, 3.455168137, 3.565487872, 3.347754029,
            3.512170873, 3.438649677,
        ],
        "row": [
            4.198575563, 3.986962664, 3.755463579, 3.761830755, 3.558780841, 3.495936308, 3.676765554, 3.482557414,
            3.54896534, 3.508287184,
        ],
        "tokens": [
            4.194482871, 4.06532183, 3.613616871, 3.815629052, 3.494158906, 3.562739812, 3.558104933, 3.438163563,
            3.483084229, 3.485962916,
        ],
    }  # fmt: skip
    for name, change in (("token", {}), ("row", {"loss": "row"}), ("tokens", {"batch_tokens": 170})):
        settings = training.TrainSettings(learning_rate=5e-3, batch_rows=8, micro_batch_tokens=128, **change)  # type: ignore[arg-type]
        found = training.train(tiny().double(), order, rows, settings).losses[:10]
        assert found == pytest.approx(golden[name], abs=1e-6), name


class Killed(Exception):
    """Stands for a process that died."""


def test_a_killed_training_resumes_with_the_same_bits(tmp_path: Any) -> None:
    rows = [make_rows(100), make_rows(60, seed=1, step=5)]
    rng = np.random.default_rng(2)
    order = (rng.integers(0, 2, 190), rng.integers(0, 60, 190))
    settings = training.TrainSettings(learning_rate=3e-3)
    whole, resumed, without = tiny(), tiny(), tiny()
    log = training.train(whole, order, rows, settings)
    assert len(log.losses) == 6

    def die(done: int, *_: Any) -> None:
        if done == 4:
            raise Killed

    partly = tiny()
    with pytest.raises(Killed):
        training.train(partly, order, rows, settings, checkpoint_dir=tmp_path, checkpoint_seconds=0, on_step=die)
    other = training.train(without, order, rows, training.TrainSettings(learning_rate=2e-3), checkpoint_dir=None)
    again = training.train(resumed, order, rows, settings, checkpoint_dir=tmp_path)
    assert again.steps_resumed == 3
    assert np.array_equal(again.losses, log.losses)
    assert not np.array_equal(again.losses, other.losses)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not (tmp_path / training.CHECKPOINT).exists()


def test_another_runs_or_a_broken_checkpoint_is_not_taken_up(tmp_path: Any) -> None:
    rows = [make_rows(100)]

    def die(done: int, *_: Any) -> None:
        if done == 2:
            raise Killed

    settings = training.TrainSettings()
    with pytest.raises(Killed):
        training.train(tiny(), in_order(96), rows, settings, checkpoint_dir=tmp_path, checkpoint_seconds=0, on_step=die)
    kept = (tmp_path / training.CHECKPOINT).read_bytes()
    log = training.train(tiny(seed=1), in_order(96), rows, settings, checkpoint_dir=tmp_path)
    assert log.steps_resumed == 0
    flipped = bytearray(kept)
    flipped[-len(kept) // 3] ^= 0x40  # one bit of a weight: still a valid file
    for content, resumed in ((kept[: len(kept) // 2], 0), (bytes(flipped), 0), (kept, 1)):
        (tmp_path / training.CHECKPOINT).write_bytes(content)
        assert training.train(tiny(), in_order(96), rows, settings, checkpoint_dir=tmp_path).steps_resumed == resumed


def test_divergence_and_empty_runs_are_told_in_a_sentence() -> None:
    rows = [make_rows(64)]
    with pytest.raises(UserError, match="no row to train on"):
        training.train(tiny(), in_order(0), rows, training.TrainSettings())
    model = tiny()
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(UserError, match=r"not finite at step 1; choose a smaller"):
        training.train(model, in_order(64), rows, training.TrainSettings())


def test_the_schedule_warms_up_over_the_runs_own_steps_and_ends_near_zero() -> None:
    rates = training.learning_rates(training.TrainSettings(learning_rate=1.0, warmup_fraction=0.1), 100)
    assert rates[:10] == pytest.approx(np.arange(1, 11) / 10)
    assert rates.argmax() == 9
    assert (np.diff(rates[10:]) < 0).all()
    assert 0 < rates[-1] < 1e-3
    assert training.learning_rates(training.TrainSettings(), 1)[0] > 0


def test_warm_start_takes_equal_tokens_of_every_domain() -> None:
    small, large = make_rows(30), make_rows(300, seed=1, step=5)
    model = tiny()
    before = [models.evaluate(model, rows).mean for rows in (small, large)]
    log = training.warm_start(
        model, ["small", "large"], [small, large], training.TrainSettings(learning_rate=3e-3), seed=0,
        tokens_per_domain=2000,
    )  # fmt: skip
    assert abs(log.tokens - 4000) < 2 * 60
    after = [models.evaluate(model, rows).mean for rows in (small, large)]
    assert all(b < a - 0.2 for a, b in zip(before, after, strict=True))
    empty = small.select(np.arange(0))
    with pytest.raises(UserError, match="'none' has no row reserved"):
        training.warm_start(model, ["small", "none"], [small, empty], training.TrainSettings(), seed=0)


def test_weights_go_through_a_file(tmp_path: Any) -> None:
    model, other = tiny(0), tiny(1)
    training.save_weights(model, tmp_path / "weights.safetensors")
    training.load_weights(other, tmp_path / "weights.safetensors")
    rows = make_rows(5)
    assert np.array_equal(models.evaluate(model, rows).loss_sum, models.evaluate(other, rows).loss_sum)
    with pytest.raises(UserError, match="another proxy"):
        training.load_weights(models.build_proxy("0.1M", 80, 64, 0), tmp_path / "weights.safetensors")
