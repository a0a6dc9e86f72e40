"""Attention over rows laid end to end, through transformers' public attention interface.

A micro-batch is one sequence [1, T] of whole rows without padding, so every linear layer works on real tokens only.
Rows are kept apart here and nowhere else: tokens are copied into a few padded blocks [rows, heads, longest, d] of
rows of similar length, plain causal attention runs on each block, and the outputs are copied back. Padding stands
behind the row, so under a causal mask no real token ever sees it, and no mask is needed. A dense block-diagonal
mask would cost T² instead (measured: it eats on a CPU what packing saves).

Legend: T tokens of the micro-batch, B rows, H query heads, K key heads, d width of a head.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

PACKED = "ideal_proxy_packed"
# A block of one more row length costs about as much as this many padded tokens in kernel launches and copies.
_BLOCK_COST_TOKENS = {"cpu": 256, "cuda": 16384, "mps": 16384}


@dataclass(frozen=True, slots=True)
class Block:
    """Rows that attend in one padded batch."""

    rows: int  # number of rows B
    longest: int  # length of the longest of them, tokens
    # (B · longest,) index of the flat token that each padded place holds; None where the rows are adjacent and of one
    # length, so that a view serves
    take: Tensor | None
    first: int  # index of the block's first flat token
    tokens: int  # number of flat tokens of the block, which are adjacent


@dataclass(frozen=True, slots=True)
class RowLayout:
    """Where the rows of a flat micro-batch lie, and the blocks they attend in."""

    blocks: tuple[Block, ...]  # the padded blocks, covering the rows in order
    back: Tensor | None  # (T,) index into the blocks' padded places, laid end to end, of each flat token
    longest: int  # length of the longest row, tokens


def row_layout(starts: NDArray[np.int64], device: torch.device) -> RowLayout:
    """Group adjacent rows of similar length into padded blocks, given each row's first place and the end (B + 1,)."""
    # Rows should come sorted by length; any order is correct. Boundaries minimise padded tokens plus a fixed cost a
    # block, by dynamic programming over the rows.
    lengths = np.diff(starts)
    cuts = _cut(lengths, _BLOCK_COST_TOKENS.get(device.type, 16384))
    blocks: list[Block] = []
    back = np.empty(int(starts[-1]), dtype=np.int64)
    padded = 0
    for low, high in itertools.pairwise(cuts):
        block_lengths = lengths[low:high]
        longest = int(block_lengths.max())
        rows, first, end = high - low, int(starts[low]), int(starts[high])
        place = np.arange(longest)
        # A padded place repeats the row's last token: finite values that no real token attends to.
        take = (starts[low:high, None] + np.minimum(place, block_lengths[:, None] - 1)).ravel()
        inside = (place < block_lengths[:, None]).ravel()
        back[first:end] = padded + np.flatnonzero(inside)
        padded += rows * longest
        whole = bool(inside.all())
        blocks.append(Block(rows, longest, None if whole else torch.from_numpy(take).to(device), first, end - first))
    dense = all(block.take is None for block in blocks)
    return RowLayout(tuple(blocks), None if dense else torch.from_numpy(back).to(device), int(lengths.max()))


def _cut(lengths: NDArray[np.int64], block_cost: int) -> list[int]:
    """Return the row boundaries of the blocks: least padded tokens plus `block_cost` a block."""
    count = len(lengths)
    best = np.zeros(count + 1)
    come_from = np.zeros(count + 1, dtype=np.int64)
    for high in range(1, count + 1):
        longest = np.maximum.accumulate(lengths[:high][::-1])[::-1]  # of rows low..high-1
        cost = best[:high] + longest * np.arange(high, 0, -1) + block_cost
        come_from[high] = int(cost.argmin())
        best[high] = cost[come_from[high]]
    cuts = [count]
    while cuts[-1] > 0:
        cuts.append(int(come_from[cuts[-1]]))
    return cuts[::-1]


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    rows_layout: RowLayout | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend causally within each row of a flat micro-batch."""
    if attention_mask is not None:
        raise ValueError(f"{PACKED} attention takes rows_layout, not a mask (in {type(module).__name__})")
    options: dict[str, Any] = {
        "is_causal": True, "scale": scaling, "dropout_p": dropout, "enable_gqa": query.shape[1] != key.shape[1],
    }  # fmt: skip
    if rows_layout is None:
        return scaled_dot_product_attention(query, key, value, **options).transpose(1, 2), None
    if sliding_window is not None and sliding_window < rows_layout.longest:
        raise ValueError(
            f"a row of {rows_layout.longest} tokens is longer than the sliding window of {sliding_window}; "
            "use the padded path"
        )
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))  # (T, heads, d)
    outputs: list[Tensor] = []
    for block in rows_layout.blocks:
        padded = [
            (x[block.first : block.first + block.tokens] if block.take is None else x.index_select(0, block.take))
            .view(block.rows, block.longest, x.shape[1], x.shape[2])
            .transpose(1, 2)
            for x in (query, key, value)
        ]
        out = scaled_dot_product_attention(padded[0], padded[1], padded[2], **options).transpose(
            1, 2
        )  # (B, longest, H, d)
        outputs.append(out.reshape(block.rows * block.longest, out.shape[2], out.shape[3]))
    flat = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    if rows_layout.back is not None:
        flat = flat.index_select(0, rows_layout.back)
    return flat.unsqueeze(0), None


def register_packed_attention() -> None:
    """Make `ideal_proxy_packed` known to transformers (idempotent)."""
    from transformers import AttentionInterface

    AttentionInterface.register(PACKED, packed_attention)
