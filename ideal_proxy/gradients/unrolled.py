"""Responses by differentiating through every optimiser step of a training: exact, for small proxies.

The step's loss is Σ_l ω_l u_l nll_l / Σ_l ω_l u_l over its labels, with ω one weight for each shard of each domain, all
1; u is 1, or with the row loss 1 over the labels of the row.
M_ji = Σ_s ∂L_j/∂ω_is is then the derivative at fixed steps (reverse replay; Maclaurin et al. 2015, Engstrom et al.
2025). The training is run forward once with about √T checkpoints of its T steps, and backward segment by segment.
Attention runs on the math kernel, which has the double backward that flash attention lacks.

Weights are not rows. AdamW divides a step by the root of its mean square gradient, and most of that square is the noise
of a batch's few rows. With a weight of 1 + ε its rows' part of that noise grows by 2ε, with a share ε more rows by ε
only: doubling the weight of a row that resembles no other changes nothing, a second such row does. So derivatives by
weights are too small for rows (1.27 times on the demo). `of="rows"`, the default, lets a change of the mixture reach
the mean square, and the norm that clips, by half, and stays exact in how the parameters of one step act on the next. In
the first two steps a mean square has no noise to speak of (the first step is a sign), so they count by weights.

Legend: T steps, P parameters, J capabilities, D domains, S shards of a domain.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ideal_proxy.data import IGNORED, Batch, TokenRows
from ideal_proxy.errors import UserError
from ideal_proxy.gradients.curvature import measuring, trainable
from ideal_proxy.gradients.records import Cost, Floats, ResponseMatrix, names_of, shares
from ideal_proxy.proxy import (
    TrainSettings,
    collate_across,
    label_losses,
    label_weights,
    learning_rates,
    micro_batches,
    of_rows,
)

EPSILON = 1e-8  # AdamW's own
FIRST_NOISY = 2  # from this step on a mean square gradient holds the noise of a batch


@dataclass(slots=True)
class _Replay:
    """One training as a function of flat parameters, AdamW moments and shard weights."""

    model: nn.Module
    domain: npt.NDArray[np.int64]
    row: npt.NDArray[np.int64]
    shard: npt.NDArray[np.int64]
    token_rows: Sequence[TokenRows]
    settings: TrainSettings
    batch_tokens: int
    parameters: list[nn.Parameter] = field(init=False)
    decay: Tensor = field(init=False)
    rates: Floats = field(init=False)
    lengths: npt.NDArray[np.int64] = field(init=False)
    bounds: npt.NDArray[np.int64] = field(init=False)
    tokens: int = 0

    def __post_init__(self) -> None:
        self.parameters = list(trainable(self.model).values())
        decayed = [torch.full_like(p, float(p.ndim >= 2)).flatten() for p in self.parameters]
        self.decay = torch.cat(decayed) * self.settings.weight_decay
        self.lengths = of_rows([rows.lengths for rows in self.token_rows], self.domain, self.row)
        self.bounds = self.settings.bounds(self.lengths)
        self.rates = learning_rates(self.settings, len(self.bounds) - 1)

    def start(self) -> Tensor:
        """(3, P) parameters and both moments before the first step."""
        flat = torch.cat([p.detach().flatten() for p in self.parameters])
        return torch.stack([flat, torch.zeros_like(flat), torch.zeros_like(flat)])

    def put(self, flat: Tensor) -> None:
        """Write flat parameters into the model."""
        with torch.no_grad():
            start = 0
            for p in self.parameters:
                p.copy_(flat[start : start + p.numel()].view_as(p))
                start += p.numel()

    def batches(self, step: int) -> Iterator[tuple[Batch, Tensor, Tensor]]:
        """A step's micro-batches, with the shard of every label and what it counts."""
        here = slice(self.bounds[step], self.bounds[step + 1])
        domain, row, shard = self.domain[here], self.row[here], self.shard[here]
        for part in micro_batches(self.lengths[here], self.batch_tokens):
            batch = collate_across(self.token_rows, domain[part], row[part])
            of_token = np.repeat(shard[part], np.diff(batch.starts))
            of_label = torch.from_numpy(of_token[batch.labels != IGNORED]).to(self.decay.device)
            counts = label_weights(batch, self.settings.loss)
            yield (
                batch,
                of_label,
                self.decay.new_ones(len(of_label)) if counts is None else self.decay.new_tensor(counts),
            )

    def gradient(self, step: int, weights: Tensor) -> Tensor:
        """(P,) gradient of the step's weighted loss at the model's own parameters."""
        parts = list(self.batches(step))
        whole = sum((weights[of_label] * counts).sum() for _, of_label, counts in parts)
        total = torch.zeros_like(self.decay)
        for batch, of_label, counts in parts:
            loss = (weights[of_label] * counts * label_losses(self.model, batch)).sum() / whole
            self.tokens += len(batch.input_ids)
            total += _flat(torch.autograd.grad(loss, self.parameters, materialize_grads=True))
        return total

    def products(self, step: int, weights: Tensor, direction: Tensor, of_rows: Tensor | None) -> tuple[Tensor, Tensor]:
        """Derivatives of direction (J, P) · gradient by parameters (J, P) and of `of_rows` · gradient by weights."""
        parts = list(self.batches(step))
        by_parameters, by_weights = torch.zeros_like(direction), direction.new_zeros(len(direction), len(weights))
        omega = weights.detach().requires_grad_()
        each_costs = 2 if of_rows is None else 3
        for batch, of_label, counts in parts:
            whole = sum((omega[shard] * count).sum() for _, shard, count in parts)
            loss = (omega[of_label] * counts * label_losses(self.model, batch)).sum() / whole
            self.tokens += len(batch.input_ids) * (1 + each_costs * len(direction))
            slope = _flat(torch.autograd.grad(loss, self.parameters, create_graph=True, materialize_grads=True))
            for j, each in enumerate(direction):
                keep = j + 1 < len(direction)
                if of_rows is not None:
                    (by_omega,) = torch.autograd.grad(slope, omega, of_rows[j], retain_graph=True)
                wanted = [*self.parameters, omega] if of_rows is None else self.parameters
                back = torch.autograd.grad(slope, wanted, each, retain_graph=keep, materialize_grads=True)
                by_parameters[j] += _flat(back[: len(self.parameters)])
                by_weights[j] += back[-1] if of_rows is None else by_omega
        return by_parameters, by_weights

    def update(self, step: int, state: Tensor, gradient: Tensor, *, of_rows: bool = False) -> Tensor:
        """(3, P) after one step of AdamW, as `proxy.train` takes it; `of_rows` halves the derivative of squares."""
        theta, mean, square = state
        s, rate = self.settings, float(self.rates[step])
        squared = 0.5 * (gradient + gradient.detach()) if of_rows and step >= FIRST_NOISY else gradient
        clip = (s.grad_clip / (squared.norm() + 1e-6)).clamp(max=1.0)
        mean = s.beta1 * mean + (1 - s.beta1) * clip * gradient
        square = s.beta2 * square + (1 - s.beta2) * (clip * squared).square()
        seen = square > 0  # the square root has no derivative at 0; a parameter never touched stays where it is
        root = torch.where(seen, torch.where(seen, square, 1.0).sqrt(), 0.0) / math.sqrt(1 - s.beta2 ** (step + 1))
        theta = theta * (1 - rate * self.decay)
        theta = theta - rate / (1 - s.beta1 ** (step + 1)) * mean / (root + EPSILON)
        return torch.stack([theta, mean, square])

    def step(self, step: int, state: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The state after a step, and the step's gradient."""
        self.put(state[0])
        gradient = self.gradient(step, weights)
        with torch.no_grad():
            return self.update(step, state, gradient), gradient

    def reverse(
        self, step: int, state: Tensor, gradient: Tensor, weights: Tensor, adjoint: Tensor, *, of_rows: bool
    ) -> tuple[Tensor, Tensor]:
        """Pull the adjoint (J, 3, P) back through one step: the new adjoint, and ∂/∂ω (J, D·S) of this step."""
        state, gradient = state.detach().requires_grad_(), gradient.detach().requires_grad_()
        after = self.update(step, state, gradient)
        by_state, by_gradient = torch.empty_like(adjoint), torch.empty_like(adjoint[:, 0])
        for j, each in enumerate(adjoint):
            by_state[j], by_gradient[j] = torch.autograd.grad(after, (state, gradient), each, retain_graph=True)
        halved: Tensor | None = None
        if of_rows and step >= FIRST_NOISY:
            after, halved = self.update(step, state, gradient, of_rows=True), torch.empty_like(by_gradient)
            for j, each in enumerate(adjoint):
                (halved[j],) = torch.autograd.grad(after, gradient, each, retain_graph=True)
        self.put(state[0].detach())
        through, by_weights = self.products(step, weights, by_gradient, halved)
        by_state[:, 0] += through
        return by_state, by_weights


def unrolled_responses(
    model: nn.Module,
    order: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]],
    domains: Mapping[str, TokenRows],
    references: Mapping[str, TokenRows],
    settings: TrainSettings,
    *,
    of: Literal["rows", "weights"] = "rows",
    shards: int = 8,
    batch_tokens: int = 2048,
) -> ResponseMatrix:
    """Mixing responses through a whole training from given weights, which it repeats; the model ends trained."""
    # Cost: two trainings, and one double-backward product for each capability and step: about 3 + 2J trainings by
    # weights, 3 + 3J by rows. Memory: about 7√T·P numbers and the graph of one micro-batch. Standard errors come from
    # the shards of training rows, which are differentiated apart at no cost; the error of the reference rows themselves
    # is not in them, nor the seed's noise. `order` is domain (R,) and row (R,); `of` rows is what more rows of a domain
    # do, of weights the exact derivative by weights of the rows' losses.
    started = time.monotonic()
    domain_R, row_R = (np.asarray(part, dtype=np.int64) for part in order)
    if not len(row_R):
        raise UserError("a training without rows has no responses; give at least one domain a volume above 0")
    if settings.dtype != "float32":
        raise UserError(f"unrolled responses in {settings.dtype} would not be exact; train in float32 for them")
    token_rows, names = list(domains.values()), names_of(list(domains))
    D = len(names)
    rank = [np.argsort(np.argsort(rows.keys, kind="stable"), kind="stable") for rows in token_rows]
    shard_R = domain_R * shards + of_rows(rank, domain_R, row_R) % shards
    supervised_R = of_rows([rows.supervised_tokens for rows in token_rows], domain_R, row_R)
    counts = np.bincount(domain_R, minlength=D)
    labels = np.bincount(domain_R, weights=supervised_R, minlength=D)
    q_D, w_D = shares(counts, counts if settings.loss == "row" else labels)

    replay = _Replay(model, domain_R, row_R, shard_R, token_rows, settings, batch_tokens)
    weights = torch.ones(D * shards, dtype=replay.decay.dtype, device=replay.decay.device)
    steps = len(replay.rates)
    segment = math.isqrt(steps - 1) + 1
    with measuring(model), sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
        state, checkpoints = replay.start(), list[Tensor]()
        for step in range(steps):
            if step % segment == 0:
                checkpoints.append(state)
            state, _ = replay.step(step, state, weights)
        final = state[0]
        replay.put(final)
        adjoint = torch.zeros(len(references), *state.shape, dtype=state.dtype, device=state.device)
        for j, rows in enumerate(references.values()):
            adjoint[j, 0] = _reference_gradient(replay, rows)
        slopes = weights.new_zeros(len(references), len(weights))
        for first in range((steps - 1) // segment * segment, -1, -segment):
            trail = []
            state = checkpoints.pop()
            for step in range(first, min(first + segment, steps)):
                after, gradient = replay.step(step, state, weights)
                trail.append((step, state, gradient))
                state = after
            for step, before, gradient in reversed(trail):
                adjoint, by_weights = replay.reverse(step, before, gradient, weights, adjoint, of_rows=of == "rows")
                slopes += by_weights
        replay.put(final)
    slopes_JDS = slopes.double().cpu().numpy().reshape(len(references), D, shards)
    M, se = slopes_JDS.sum(-1), _shard_errors(slopes_JDS)
    cost = Cost(replay.tokens, time.monotonic() - started)
    return ResponseMatrix("unrolled", names, names_of(list(references)), M, se, q_D, w_D, cost)


def _shard_errors(slopes_JDS: Floats) -> Floats:
    """Jackknife error of a sum of shards: √(S/(S−1) Σ_s (m_s − mean)²)."""
    count = slopes_JDS.shape[-1]
    if count < 2:
        return np.full(slopes_JDS.shape[:-1], np.nan)
    deviation = slopes_JDS - slopes_JDS.mean(-1, keepdims=True)
    return np.asarray(np.sqrt(count / (count - 1) * np.square(deviation).sum(-1)))


def _reference_gradient(replay: _Replay, rows: TokenRows) -> Tensor:
    """(P,) gradient of the reference loss, sum over sum."""
    total, labels = torch.zeros_like(replay.decay), 0
    for part in micro_batches(rows.lengths, replay.batch_tokens):
        batch = collate_across([rows], np.zeros_like(part), part)
        losses = label_losses(replay.model, batch)
        total += _flat(torch.autograd.grad(losses.sum(), replay.parameters, materialize_grads=True))
        labels += len(losses)
        replay.tokens += len(batch.input_ids)
    return total / labels


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])
