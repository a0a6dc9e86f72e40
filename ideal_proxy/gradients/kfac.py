"""Estimating K-FAC and EK-FAC factors from data, by hooks on the layers that `factors.py` describes.

Only tokens that a loss reaches count, so padding, prompts after the last label and other rows of a pack change
nothing. Memory is at most `memory_bytes` of accumulators, plus the model and one batch: a 1B model with the default
8 GiB is done in a few passes. The finished blocks hold, per parameter of a layer, one eigenvalue and (l² + r²)/(l·r)
floats of eigenvectors; in a folder they cost no memory at all. Legend: l, r a block's sides, n active tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ideal_proxy.errors import UserError
from ideal_proxy.gradients.curvature import (
    Forward,
    LabelledLogits,
    check_deterministic,
    measuring,
    processes,
    sample_labels,
    sum_over_processes,
)
from ideal_proxy.gradients.factors import MAX_DENSE, Block, Factors, FisherKind, Layer, Method, find_layers


@dataclass(slots=True)
class _Accumulator:
    """Sums for one layer: first its two sides, then, in their eigenbasis, its eigenvalues."""

    layer: Layer
    dtype: torch.dtype
    device: torch.device
    sides: dict[str, list[Tensor]] = field(default_factory=dict)  # role -> [left, right, n tokens]
    left: Tensor | None = None
    right: Tensor | None = None
    values: Tensor | None = None
    pending: list[tuple[str, Tensor, Tensor, Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        def zeros(side: int) -> Tensor:
            size = self.layer.shape[side]
            shape = (size, size) if self.layer.dense[side] else (size,)
            return torch.zeros(shape, dtype=self.dtype, device=self.device)

        if self.layer.kind != "norm":
            count = torch.zeros((), dtype=torch.float64, device=self.device)
            self.sides = {role: [zeros(0), zeros(1), count.clone()] for _, role in self.layer.modules}
        else:  # a diagonal needs no eigenbasis first
            self.values = torch.zeros(self.layer.shape, dtype=self.dtype, device=self.device)

    def covariance(self, role: str, inputs: Tensor, gradients: Tensor) -> None:
        """Add active tokens: inputs (n, r) or token ids (n,), gradients (n, l), or (n, r) for an embedding."""
        left, right, count = self.sides[role]
        if role == "embedding":
            left.index_add_(0, inputs, torch.ones(len(inputs), dtype=self.dtype, device=self.device))
            _add_side(right, gradients)
        else:
            _add_side(left, gradients)
            _add_side(right, inputs)
        count += len(inputs)

    def finish_sides(self, supervised_tokens: Tensor, method: Method) -> None:
        """Turn the sums into eigenvectors, and into K-FAC's eigenvalues where those are asked for."""
        if self.layer.kind != "norm":
            for role, (left, right, count) in self.sides.items():
                inputs, outputs = (left, right) if role == "embedding" else (right, left)
                inputs /= count.clamp(min=1).to(self.dtype)
                outputs /= supervised_tokens.to(self.dtype)
            pairs = [(left, right) for left, right, _ in self.sides.values()]
            total_left = pairs[0][0]  # a tied block's left side is diagonal, so it needs no common eigenvectors
            total_right = sum((right * _trace(left) for left, right in pairs), torch.zeros_like(pairs[0][1]))
            self.left = _eigenvectors(total_left)
            self.right = _eigenvectors(total_right if len(pairs) > 1 else pairs[0][1])
            if method == "kfac":
                self.values = sum(
                    (torch.outer(_in_basis(left, self.left), _in_basis(right, self.right)) for left, right in pairs),
                    torch.zeros(self.layer.shape, dtype=self.dtype, device=self.device),
                )
            self.sides = {}
        if self.values is None:
            self.values = torch.zeros(self.layer.shape, dtype=self.dtype, device=self.device)

    def eigenvalues(self, role: str, inputs: Tensor, gradients: Tensor, rows: Tensor) -> None:
        """Add the square of each row's whole gradient in the eigenbasis; a tied block waits for both uses."""
        self.pending.append((role, inputs, gradients, rows))
        if len(self.pending) == len(self.layer.modules):
            self.flush()

    def flush(self) -> None:
        """Square and add what has been recorded for the batch so far."""
        assert self.values is not None
        parts = [self._rotated(*part) for part in self.pending]
        self.pending = []
        if not parts:
            return
        if len(parts) == 1 and parts[0][0] == "embedding":
            _, ids, gradients, rows = parts[0]
            pair, inverse = torch.unique(rows * self.layer.shape[0] + ids, return_inverse=True)
            summed = gradients.new_zeros(len(pair), gradients.shape[1]).index_add_(0, inverse, gradients)
            self.values.index_add_(0, pair % self.layer.shape[0], summed.square())
            return
        if self.layer.kind == "norm":
            _, inputs, gradients, rows = parts[0]
            each = gradients.unsqueeze(-1) * inputs  # (n, d, 1 or 2)
            present, inverse = torch.unique(rows, return_inverse=True)
            summed = each.new_zeros(len(present), *each.shape[1:]).index_add_(0, inverse, each)
            self.values += summed.square().sum(0)
            return
        by_row: dict[int, list[tuple[str, Tensor, Tensor]]] = {}
        for role, inputs, gradients, rows in parts:
            for row, inside in _runs(rows):
                by_row.setdefault(row, []).append((role, inputs[inside], gradients[inside]))
        for uses in by_row.values():
            uses.sort(key=lambda use: use[0], reverse=True)  # the product first, then what an embedding adds to it
            gradient: Tensor | None = None
            for role, inputs, gradients in uses:
                if role == "linear":
                    gradient = gradients.T @ inputs if gradient is None else gradient.addmm_(gradients.T, inputs)
                else:
                    gradient = gradients.new_zeros(self.layer.shape) if gradient is None else gradient
                    gradient.index_add_(0, inputs, gradients)
            assert gradient is not None
            self.values.addcmul_(gradient, gradient)

    def _rotated(
        self, role: str, inputs: Tensor, gradients: Tensor, rows: Tensor
    ) -> tuple[str, Tensor, Tensor, Tensor]:
        if role == "embedding":
            return role, inputs, gradients if self.right is None else gradients @ self.right, rows
        gradients = gradients if self.left is None else gradients @ self.left
        return role, inputs if self.right is None else inputs @ self.right, gradients, rows


def _runs(rows: Tensor) -> list[tuple[int, slice]]:
    """Where each row's tokens stand, in stretches of one row."""
    values, counts = torch.unique_consecutive(rows, return_counts=True)
    ends = counts.cumsum(0).tolist()
    return [(row, slice(start, end)) for row, start, end in zip(values.tolist(), [0, *ends], ends, strict=False)]


def _add_side(side: Tensor, vectors: Tensor) -> None:
    if side.dim() == 2:
        side.addmm_(vectors.T, vectors)
        return
    for start in range(0, len(vectors), 256):  # squares that stay in the cache
        side += vectors[start : start + 256].square().sum(0)


def _trace(side: Tensor) -> Tensor:
    return side.diagonal().sum() if side.dim() == 2 else side.sum()


def _eigenvectors(side: Tensor) -> Tensor | None:
    if side.dim() == 1:
        return None
    matrix = side.cpu() if side.device.type == "mps" else side
    vectors: Tensor = torch.linalg.eigh(matrix.double()).eigenvectors
    return vectors.to(side)


def _in_basis(side: Tensor, basis: Tensor | None) -> Tensor:
    if side.dim() == 1:
        return side
    assert basis is not None
    return ((side @ basis) * basis).sum(0).clamp_(min=0)


@contextmanager
def _recording(
    model: nn.Module, layers: Sequence[Layer], record: Callable[[Layer, str, Tensor, Tensor], None]
) -> Iterator[None]:
    """Call `record(layer, role, inputs, output gradients)` in every backward pass; weights themselves get no gradient.

    Inputs are (tokens, r) with the bias's column of ones, token ids (tokens,), or a norm's (tokens, l, 1 or 2).
    """
    modules = dict(model.named_modules())
    frozen = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def hook_for(layer: Layer, role: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        def forward_hook(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
            if not torch.is_grad_enabled():
                return
            if not output.requires_grad:
                output.requires_grad_()  # nothing before it needs a gradient: the backward pass ends here
            given = arguments[0].detach()

            def gradient_hook(gradient: Tensor) -> None:
                record(layer, role, _layer_inputs(module, layer, role, given), gradient.flatten(0, -2))

            output.register_hook(gradient_hook)  # type: ignore[no-untyped-call]

        return forward_hook

    handles = [
        modules[path].register_forward_hook(hook_for(layer, role)) for layer in layers for path, role in layer.modules
    ]
    try:
        for parameter in frozen:
            parameter.requires_grad_(False)
        with torch.enable_grad():
            yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
        for handle in handles:
            handle.remove()


def _layer_inputs(module: nn.Module, layer: Layer, role: str, given: Tensor) -> Tensor:
    if role == "embedding":
        return given.flatten()
    if role == "linear":
        flat = given.flatten(0, -2)
        return flat if layer.bias is None else torch.cat([flat, flat.new_ones(len(flat), 1)], -1)
    weight = module.weight
    assert isinstance(weight, Tensor)
    scale = {"weight": torch.ones_like(weight)}, {"weight": torch.zeros_like(weight)}
    ones, zeros = (torch.func.functional_call(module, s, (given,)).flatten(0, -2) for s in scale)
    columns = [ones - zeros]  # affine in the weight, so this is its derivative, also for norms that store weight − 1
    if layer.bias is not None:
        columns.append(torch.ones_like(columns[0]))
    return torch.stack(columns, -1)


def _rows_of(role: str, tokens: int, output: LabelledLogits) -> Tensor:
    """Row of every position a layer saw: all tokens, or only the supervised ones where the head skips the rest."""
    if tokens == len(output.token_rows):
        return output.token_rows
    if tokens == len(output.label_rows):
        return output.label_rows
    if role == "norm" and tokens % len(output.token_rows) == 0:  # one norm for every attention head
        return output.token_rows.repeat_interleave(tokens // len(output.token_rows))
    raise UserError(
        f"A layer saw {tokens} positions where the batch has {len(output.token_rows)} tokens and"
        f" {len(output.label_rows)} labels; layers that regroup tokens have no factors, leave them out by selection."
    )


def _active(gradients: Tensor, rows: Tensor) -> Tensor:
    """Return which tokens a loss reaches: not padding, and a gradient above rounding beside its row's largest."""
    # Some gradients are 0 only up to rounding (a query that sees one token), so a plain `!= 0` would be chance.
    rounding = {torch.float64: 1e-10, torch.float32: 1e-5}.get(gradients.dtype, 0.0)
    size = torch.maximum(gradients.amax(-1), -gradients.amin(-1)).masked_fill(rows < 0, 0)
    place = rows.clamp(min=0)
    largest = size.new_zeros(int(place.max()) + 1).scatter_reduce(0, place, size, "amax")
    return (size > rounding * largest[place]).nonzero().squeeze(-1)


def _accumulate(
    model: nn.Module,
    forward: Forward,
    batches: Iterable[Any],
    accumulators: Mapping[str, _Accumulator],
    fisher: FisherKind,
    seed: int,
    eigenvalues: bool,
    drawn: dict[bytes, Tensor],  # sampled labels by what a batch holds, for the passes that follow
) -> Tensor:
    """One pass over the data for one group of layers; returns the supervised tokens seen by this process."""
    current: list[LabelledLogits] = []

    def record(layer: Layer, role: str, inputs: Tensor, gradients: Tensor) -> None:
        accumulator = accumulators[layer.name]
        rows = _rows_of(role, len(gradients), current[0])
        active = _active(gradients, rows)
        if role != "embedding":
            inputs = inputs.to(accumulator.dtype)
        if len(active) < len(gradients):
            inputs, gradients, rows = inputs[active], gradients[active], rows[active]
        gradients = gradients.to(accumulator.dtype)
        if eigenvalues or layer.kind == "norm":
            accumulator.eigenvalues(role, inputs, gradients, rows)
        else:
            accumulator.covariance(role, inputs, gradients)

    wanted = [a.layer for a in accumulators.values()]
    count = torch.zeros((), dtype=torch.float64)
    with _recording(model, wanted, record):
        for batch in batches:
            output = forward(model, batch)
            if not len(output.labels):
                continue
            current[:] = [output]
            labels = output.labels
            if fisher == "sampled":
                content = torch.cat([output.keys, output.labels]).cpu().numpy().tobytes()
                if content not in drawn:
                    drawn[content] = sample_labels(output, seed)
                labels = drawn[content]
            count += output.count()
            if output.logits.requires_grad:
                torch.autograd.backward(output.logits, output.loss_gradient(labels))
            for accumulator in accumulators.values():
                if accumulator.pending:
                    accumulator.flush()
    return count


def fit_factors(
    model: nn.Module,
    forward: Forward,
    batches: Iterable[Any],
    *,
    method: Method = "ekfac",
    fisher: FisherKind = "sampled",
    select: Sequence[str] | None = None,
    seed: int = 0,
    max_dense: int = MAX_DENSE,
    memory_bytes: int = 8 << 30,
    folder: Path | None = None,
) -> Factors:
    """Estimate the Fisher matrix of the mean loss per supervised token, F = (1/N) Σ_rows G_row G_rowᵀ, in blocks."""
    # EK-FAC (George et al. 2018) takes K-FAC's eigenvectors and corrects the eigenvalues with each row's own gradient,
    # never a batch's mean. Cost: one gradient of the data for K-FAC, two for EK-FAC, times the number of layer groups
    # that `memory_bytes` forces. Under torch.distributed every process gives its own batches and gets the same factors.
    # "sampled" labels are drawn from the model by row hash (true Fisher), "empirical" ones are the data's.
    layers, excluded = find_layers(model, select, max_dense)
    parameter = next(model.parameters())
    dtype = torch.float64 if parameter.dtype == torch.float64 else torch.float32
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    factors = Factors(layers, excluded, folder)
    drawn: dict[bytes, Tensor] = {}
    with measuring(model):
        for batch in batches:
            check_deterministic(model, forward, batch)
            break
        for group in _groups(layers, memory_bytes // (8 if dtype == torch.float64 else 4)):
            accumulators = {layer.name: _Accumulator(layer, dtype, parameter.device) for layer in group}
            count = _accumulate(model, forward, batches, accumulators, fisher, seed, False, drawn)
            sides = [t for a in accumulators.values() for side in a.sides.values() for t in side]
            diagonals = [a.values for a in accumulators.values() if a.values is not None]
            sum_over_processes(count, *sides, *diagonals)
            if not count > 0:
                raise UserError("The rows given for the curvature have no supervised token; give rows with an answer.")
            for accumulator in accumulators.values():
                accumulator.finish_sides(count, method)
            for value in diagonals:
                value /= count.to(value.dtype)
            corrected = {n: a for n, a in accumulators.items() if method == "ekfac" and a.layer.kind != "norm"}
            if corrected:
                _accumulate(model, forward, batches, corrected, fisher, seed, True, drawn)
                values = [a.values for a in corrected.values() if a.values is not None]
                sum_over_processes(*values)
                for value in values:
                    value /= count.to(value.dtype)
            for accumulator in accumulators.values():
                assert accumulator.values is not None
                factors.put(Block(accumulator.layer, accumulator.left, accumulator.right, accumulator.values))
            factors.supervised_tokens = int(count)
            factors.passes += 2 if corrected else 1
    if folder is not None and processes()[1] > 1:
        dist.barrier()  # the files are process 0's
    return factors


def _groups(layers: Sequence[Layer], floats: int) -> Iterator[list[Layer]]:
    group: list[Layer] = []
    for layer in layers:
        if group and sum(member.floats() for member in group) + layer.floats() > floats:
            yield group
            group = []
        group.append(layer)
    yield group
