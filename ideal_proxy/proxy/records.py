"""What goes into the training of a proxy and what comes out of it; numpy only, so that callers need no torch.

Legend: N rows of a set, S optimiser steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ideal_proxy.batching import BATCH_ROWS, Batch, Ints, Loss, step_bounds
from ideal_proxy.errors import UserError
from ideal_proxy.store import NO_ARRAYS, atomic_write_arrays

RATES = {  # peak learning rates worth trying, rising, by the size of a scratch proxy
    "0.1M": (3e-3, 6e-3, 1.2e-2),
    "1M": (1e-3, 2e-3, 4e-3),
    "3M": (7e-4, 1.4e-3, 2.8e-3),
    "10M": (4e-4, 8e-4, 1.6e-3),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """How a proxy is trained."""

    learning_rate: float = 1e-3  # peak rate of AdamW
    batch_rows: int = BATCH_ROWS  # rows of an optimiser step; unused where batch_tokens is given
    batch_tokens: int | None = None  # tokens of an optimiser step; None counts rows
    # of a step: "token" is the mean over its supervised tokens, "row" the mean over its rows of each row's mean
    loss: Loss = "token"
    warmup_fraction: float = 0.05  # share of the steps with a rising rate; the rest falls to zero by a cosine
    weight_decay: float = 0.01  # decoupled decay of the matrices (vectors are not decayed)
    beta1: float = 0.9  # AdamW's decay of the mean gradient
    beta2: float = 0.98  # AdamW's decay of the mean square gradient
    grad_clip: float = 1.0  # largest norm of a step's gradient
    dtype: str = "float32"  # "float32" or "bfloat16": precision of the products; weights and optimiser stay in float32
    # tokens of a micro-batch; default by device. It moves rounding only, never the step's loss
    micro_batch_tokens: int | None = None

    def bounds(self, lengths_R: Ints) -> Ints:
        """First row of every optimiser step, (S + 1,), of rows in training order."""
        return step_bounds(lengths_R, self.batch)

    @property
    def batch(self) -> Batch:
        """What fills a step."""
        return Batch(rows=self.batch_rows) if self.batch_tokens is None else Batch(tokens=self.batch_tokens)


@dataclass(frozen=True, slots=True)
class TrainLog:
    """What a finished training did."""

    losses: NDArray[np.float64]  # (S,) the loss of each step's rows, before the step, nats
    learning_rates: NDArray[np.float64]  # (S,) rate of each step
    rows: int  # rows trained on, repeats counted
    tokens: int  # their tokens
    supervised_tokens: int  # their labelled tokens
    token_pairs: int  # pairs of tokens of one row, Σ of squared lengths
    seconds: float  # wall time of the steps done by this process
    steps_resumed: int  # steps taken over from a checkpoint


@dataclass(frozen=True, slots=True)
class RowLosses:
    """Losses of a set of rows, row by row, so that any statistic can be formed later."""

    loss_sum: NDArray[np.float64]  # (N,) float64, nats summed over the row's supervised tokens
    tokens: NDArray[np.int64]  # (N,) int64, supervised tokens of the row

    def select(self, rows: NDArray[np.bool_]) -> RowLosses:
        """Take some of the rows."""
        return RowLosses(self.loss_sum[rows], self.tokens[rows])

    @property
    def mean(self) -> float:
        """Reference loss: nats per supervised token, sum over sum; NaN where there is no token."""
        total = int(self.tokens.sum())
        return float(self.loss_sum.sum()) / total if total else float("nan")


def write_row_losses(path: Path, losses: Mapping[str, RowLosses]) -> None:
    """Write the loss of every row of some sets."""
    sums = {f"loss_sum_{n}": found.loss_sum for n, found in enumerate(losses.values())}
    tokens = {f"tokens_{n}": found.tokens for n, found in enumerate(losses.values())}
    atomic_write_arrays(path, {"names": np.array(list(losses)), **sums, **tokens})


def read_row_losses(path: Path, names: Sequence[str]) -> dict[str, RowLosses]:
    """Read what `write_row_losses` wrote of these sets."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if "names" in arrays and arrays["names"].tolist() != list(names):
                raise UserError(f"{path} holds other capabilities than {', '.join(names)}; choose another --out")
            return {name: RowLosses(arrays[f"loss_sum_{n}"], arrays[f"tokens_{n}"]) for n, name in enumerate(names)}
    except NO_ARRAYS as error:
        raise UserError(f"{path} is damaged ({error}); remove it and run the same command again") from error


def of_rows(values: Sequence[Ints], domain_R: Ints, row_R: Ints) -> Ints:
    """Look up a number of every row (R,), given one array a domain."""
    found = np.zeros(len(row_R), dtype=np.int64)
    for d, of_domain in enumerate(values):
        here = domain_R == d
        found[here] = of_domain[row_R[here]]
    return found


def learning_rates(settings: TrainSettings, steps: int) -> NDArray[np.float64]:
    """Return the schedule over a run's own steps (S,): linear warm-up, then a cosine to zero; all rates positive."""
    step = np.arange(steps)
    warm = max(1, math.ceil(settings.warmup_fraction * steps)) if settings.warmup_fraction > 0 else 0
    rise = (step + 1) / max(warm, 1)
    fall = 0.5 * (1 + np.cos(np.pi * (step - warm + 0.5) / max(steps - warm, 1)))
    return np.asarray(settings.learning_rate * np.where(step < warm, rise, fall), dtype=np.float64)
