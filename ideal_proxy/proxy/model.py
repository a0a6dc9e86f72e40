"""One proxy model: built from a size dial, fed rows laid end to end, judged per supervised token.

Legend: T tokens of a micro-batch, B rows, L labelled positions, N rows of a set, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from ideal_proxy.batching import Loss
from ideal_proxy.data import IGNORED, Batch, TokenRows
from ideal_proxy.errors import UsageError
from ideal_proxy.proxy.attention import PACKED, register_packed_attention, row_layout
from ideal_proxy.proxy.head import has_plain_head, head_loss
from ideal_proxy.proxy.records import RowLosses

SIZES: dict[str, tuple[int, int]] = {
    "0.1M": (100_000, 2),
    "1M": (1_000_000, 4),
    "3M": (3_000_000, 4),
    "10M": (10_000_000, 6),
}
"""Size dial: parameters aimed at, embeddings included, and layers."""

# Tokens of a micro-batch: enough to fill the products, few enough that activations stay in the cache (CPU) or in
# memory (GPU). Fixed per kind of device, not timed, so that a run's sums do not depend on what else ran beside it.
MICRO_BATCH_TOKENS = {"cpu": 2048, "cuda": 65536, "mps": 8192}


@dataclass(frozen=True, slots=True)
class ProxyShape:
    """What a size and a vocabulary come to."""

    layers: int  # decoder layers
    width: int  # hidden size d
    heads: int  # attention heads, of width 16 or 32
    hidden: int  # inner width of the feed-forward block
    parameters: int  # all of them, tied embeddings counted once


def proxy_shape(size: str, vocab_size: int) -> ProxyShape:
    """Derive depth and width from the size dial."""
    if size not in SIZES:
        raise UsageError(f"proxy size {size!r} is not known; choose one of {', '.join(SIZES)}")
    target, layers = SIZES[size]
    # A layer has 4 d² in attention and 3 · d · (8/3)d = 8 d² in the gated feed-forward block (8/3 keeps that at the
    # 8 d² of a plain block of inner width 4d), and tied embeddings V·d. So 12·layers·d² + V·d = target gives d.
    # Depth stays low: at equal parameters few wide layers run faster, and 2 layers already form induction heads.
    squares = 12 * layers
    exact = (-vocab_size + (vocab_size**2 + 4 * squares * target) ** 0.5) / (2 * squares)
    # Multiples of 32 keep rows of every matrix on whole cache lines and heads at width 32 (16 below 64); a floor of
    # 32 keeps a model with a large vocabulary able to tell its tokens apart.
    step = 16 if exact < 64 else 32
    width = max(32, round(exact / step) * step)
    head = 16 if width < 64 else 32
    hidden = round(8 * width / 3 / 16) * 16
    parameters = layers * (4 * width**2 + 3 * width * hidden + 2 * width) + width + vocab_size * width
    return ProxyShape(layers, width, width // head, hidden, parameters)


def build_proxy(size: str, vocab_size: int, context: int, seed: int) -> Any:
    """Build a fresh proxy with tied embeddings and packed attention; torch's global random state is left alone."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = proxy_shape(size, vocab_size)
    config = LlamaConfig(
        vocab_size=vocab_size, hidden_size=shape.width, intermediate_size=shape.hidden,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.heads,
        max_position_embeddings=context, tie_word_embeddings=True, use_cache=False,
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.train()
    return use_packed_attention(model)


def use_packed_attention(model: Any) -> Any:
    """Switch a transformers causal LM to packed attention where it can serve it."""
    register_packed_attention()
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = base.config
    windowed = getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if getattr(base, "_supports_attention_backend", False) and not windowed and kinds == {"full_attention"}:
        base.set_attn_implementation(PACKED)
    return model


def is_packed(model: Any) -> bool:
    """Tell whether a model takes rows laid end to end."""
    return bool(getattr(model.config, "_attn_implementation", None) == PACKED)


def collate_across(
    token_rows: Sequence[TokenRows],
    domain: NDArray[np.int64],
    row: NDArray[np.int64],
    *,
    every_token: bool = False,
) -> Batch:
    """Lay rows of several domains end to end."""
    spans = [
        (int(d), int(token_rows[d].offsets[r]), int(token_rows[d].offsets[r + 1]))
        for d, r in zip(domain, row, strict=True)
    ]
    starts = np.concatenate(([0], np.cumsum([end - first for _, first, end in spans]))).astype(np.int64)
    ids = np.concatenate([token_rows[d].ids[first:end] for d, first, end in spans]).astype(np.int64)
    labels = np.full(len(ids), IGNORED, dtype=np.int64)
    labels[:-1] = ids[1:]
    if not every_token:
        supervised = np.concatenate([token_rows[d].supervised[first:end] for d, first, end in spans])
        labels[:-1][~supervised[1:]] = IGNORED
    labels[starts[1:] - 1] = IGNORED  # a row's last token has no next one
    positions = np.arange(len(ids)) - np.repeat(starts[:-1], np.diff(starts))
    return Batch(ids, positions, labels, starts, np.asarray(row, dtype=np.int64))


def tokens_at_once(given: int | None, device: torch.device) -> int:
    """Most tokens of a micro-batch: as given, or as the device takes them."""
    return given or MICRO_BATCH_TOKENS.get(device.type, 8192)


def micro_batches(lengths: NDArray[np.int64], limit_tokens: int) -> Iterator[NDArray[np.int64]]:
    """Split rows into micro-batches of neighbours in length."""
    order = np.argsort(lengths, kind="stable")
    # Evened out: the same number of micro-batches as a greedy fill, of about equal size.
    total = int(lengths.sum())
    parts = max(1, -(-total // limit_tokens))
    goal = total / parts
    current: list[int] = []
    tokens = 0
    for index in order:
        length = int(lengths[index])
        if current and (tokens + length > limit_tokens or tokens >= goal):
            yield np.array(current, dtype=np.int64)
            current, tokens = [], 0
        current.append(int(index))
        tokens += length
    if current:
        yield np.array(current, dtype=np.int64)


def label_losses(model: Any, batch: Batch, *, autocast: torch.dtype | None = None) -> Tensor:
    """Negative log-likelihood of every labelled token (L,), nats in float32 or wider; rows do not see each other."""
    # Only labelled positions reach the language-model head. Differentiable as often as the attention kernel is.
    device = next(model.parameters()).device
    keep = np.flatnonzero(batch.labels != IGNORED)
    with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
        logits = (packed_logits if is_packed(model) else _padded_logits)(model, batch, keep, device)
    if logits.dtype in {torch.bfloat16, torch.float16}:
        logits = logits.float()
    return cross_entropy(logits, _to(batch.labels[keep], device), reduction="none")


def packed_logits(model: Any, batch: Batch, keep: NDArray[np.int64], device: torch.device) -> Tensor:
    """Run rows end to end, and return (L, V) logits at the positions to keep."""
    logits: Tensor = model(**_flat(batch, device), logits_to_keep=_to(keep, device)).logits
    return logits.squeeze(0)


def _flat(batch: Batch, device: torch.device) -> dict[str, Any]:
    """What a model with packed attention is given."""
    return {
        "input_ids": _to(batch.input_ids, device)[None], "position_ids": _to(batch.position_ids, device)[None],
        "rows_layout": row_layout(batch.starts, device), "use_cache": False,
    }  # fmt: skip


def label_weights(batch: Batch, loss: Loss) -> NDArray[np.float64] | None:
    """Weight of every label (L,) in the sum that `normaliser` divides: labels of a row share 1; None is 1 each."""
    if loss == "token":
        return None
    row = _row_of_label(batch)
    return np.asarray(1.0 / np.bincount(row)[row]) if len(row) else np.zeros(0)


def _row_of_label(batch: Batch) -> NDArray[np.int64]:
    """The row (L,) that each label is of."""
    return np.searchsorted(batch.starts, np.flatnonzero(batch.labels != IGNORED), side="right") - 1


def counted(batch: Batch, loss: Loss) -> int:
    """What a batch adds to the divisor of its step's loss: its supervised tokens, or its rows that have one."""
    row = _row_of_label(batch)
    return len(row if loss == "token" else np.unique(row))


def normaliser(batches: Sequence[Batch], loss: Loss) -> int:
    """What the weighted sum over a step's labels is divided by."""
    return max(1, sum(counted(batch, loss) for batch in batches))


def batch_loss(
    model: Any, batch: Batch, scale: float, *, autocast: torch.dtype | None = None, loss: Loss = "token"
) -> Tensor:
    """Compute scale · Σ weight · nll of a training step's micro-batch, by the fastest path that the model allows."""
    device = next(model.parameters()).device
    share = label_weights(batch, loss)
    weights = None if share is None else _to(share.astype(np.float32) if device.type == "mps" else share, device)
    whole = model
    if hasattr(model, "get_base_model"):  # LoRA stands inside the layers; the decoder and the head are the base's own
        model = model.get_base_model()
    if not (is_packed(model) and has_plain_head(model)):
        losses = label_losses(whole, batch, autocast=autocast)
        return (losses if weights is None else losses * weights.to(losses.dtype)).sum() * scale
    keep = np.flatnonzero(batch.labels != IGNORED)
    with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
        hidden = model.get_decoder()(**_flat(batch, device)).last_hidden_state
    labelled = hidden.squeeze(0).index_select(0, _to(keep, device))
    weight = model.get_output_embeddings().weight
    if autocast is not None:
        labelled, weight = labelled.to(autocast), weight.to(autocast)
    return head_loss(labelled, weight, _to(batch.labels[keep], device), scale, weights)


def _padded_logits(model: Any, batch: Batch, keep: NDArray[np.int64], device: torch.device) -> Tensor:
    """Run rows padded to the longest, and return (L, V) logits at the labelled positions."""
    lengths = np.diff(batch.starts)
    longest = int(lengths.max())
    row = np.repeat(np.arange(len(lengths)), lengths)
    ids = np.zeros((len(lengths), longest), dtype=np.int64)
    mask = np.zeros((len(lengths), longest), dtype=np.int64)
    ids[row, batch.position_ids] = batch.input_ids
    mask[row, batch.position_ids] = 1
    columns, at = np.unique(batch.position_ids[keep], return_inverse=True)
    output = model(
        input_ids=_to(ids, device), attention_mask=_to(mask, device), use_cache=False,
        logits_to_keep=_to(columns, device),
    )  # fmt: skip
    logits: Tensor = output.logits
    if logits.shape[1] != len(columns):  # a model that ignores logits_to_keep
        at = batch.position_ids[keep]
    return logits[_to(row[keep], device), _to(at, device)]


def _to(array: NDArray[Any], device: torch.device) -> Tensor:
    """Move a host array to the device without waiting for it."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def evaluate(
    model: Any,
    token_rows: TokenRows,
    *,
    batch_tokens: int | None = None,
    autocast: torch.dtype | None = None,
) -> RowLosses:
    """Measure the loss of every row, in their order, by any transformers causal LM; its training mode is restored."""
    limit = tokens_at_once(batch_tokens, next(model.parameters()).device)
    count = len(token_rows)
    sums = np.zeros(count)
    tokens = np.zeros(count, dtype=np.int64)
    parts: list[tuple[NDArray[np.int64], NDArray[np.int64], Tensor]] = []
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for part in micro_batches(token_rows.lengths, limit):
            batch = collate_across([token_rows], np.zeros(len(part), dtype=np.int64), part)
            parts.append((part, _row_of_label(batch), label_losses(model, batch, autocast=autocast)))
    if was_training:
        model.train()
    for part, row_of_label, losses in parts:  # read back once all is queued
        values = losses.double().cpu().numpy()
        sums[part] = np.bincount(row_of_label, weights=values, minlength=len(part))
        tokens[part] = np.bincount(row_of_label, minlength=len(part))
    return RowLosses(sums, tokens)
