"""Response matrices from one trained model (implicit, first-order).

The implicit response is IDEAL's (Ming et al., ICLR 2026, arXiv 2505.12762), by the implicit function theorem, centred
so that it is a derivative at fixed steps: M_ji = −w_i g_ref,jᵀ (F + λI)⁻¹ (g_i − ḡ). Its scale is not known (measured
19 to 35 times too large): calibrate it before use. First-order (DoGE's) puts the identity for the inverse. `unrolled`
differentiates through the training itself; `finite` is the truth that all are judged by.

Legend: J capabilities, D domains, S shards of rows, P parameters, L labels of a batch.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ideal_proxy.batching import Loss
from ideal_proxy.data import IGNORED, Batch, TokenRows
from ideal_proxy.errors import UserError
from ideal_proxy.gradients.curvature import LabelledLogits, measuring, processes, sum_over_processes, trainable
from ideal_proxy.gradients.factors import (
    DAMPING,
    Factors,
    FisherKind,
    KroneckerOperator,
    Method,
    find_layers,
    refuse_uncovered,
)
from ideal_proxy.gradients.kfac import fit_factors
from ideal_proxy.gradients.records import (
    Cost,
    Floats,
    ResponseMatrix,
    centred_responses,
    jackknife_variance,
    names_of,
    shares,
)
from ideal_proxy.mixture import apportion, domain_order, draw
from ideal_proxy.proxy import (
    batch_loss,
    collate_across,
    counted,
    is_packed,
    label_weights,
    micro_batches,
    of_rows,
    packed_logits,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class InfluenceSettings:
    """How responses are estimated from one model."""

    damping: float = DAMPING  # of the inverse, relative to each layer's mean eigenvalue
    factors: Method = "ekfac"  # "ekfac" or "kfac"
    fisher: FisherKind = "sampled"  # "sampled" labels (true Fisher) or "empirical"
    select: tuple[str, ...] | None = None  # shell patterns of module paths to use; all layers by default
    factor_rows: int = 512  # rows of the mixture that the curvature is estimated from
    gradient_rows: int | None = 400  # most rows of a domain or a capability whose gradients are taken; None for all
    shards: int = 8  # shards of rows for the jackknife
    batch_tokens: int = 2048  # most tokens of a micro-batch
    memory_bytes: int = 8 << 30  # most bytes of curvature accumulators, and of kept reference gradients, each
    seed: int = 0  # of sampled labels and of which rows are taken
    folder: Path | None = None  # where factors and gradients lie instead of in memory
    autocast: torch.dtype | None = None  # bfloat16 for the products, None for the weights' precision
    # of the training: over a step's supervised tokens, or its rows. References count tokens always
    loss: Loss = "token"

    def within(self, trainings: float, training_rows: int, sources: int) -> InfluenceSettings:
        """The same settings with rows chosen so that an implicit estimate costs a given part of a training."""
        # Counted, relative to a training's time a token: gradients 1.1, a pass for K-FAC factors 1.4, each of EK-FAC's
        # two 1.6. Measured since (`benchmarks/gradients/cost.py`) they take 1.0, and 1.3 to 1.4 for EK-FAC, so the
        # estimate costs a sixth less than is asked for. Factors get two fifths, the gradients of all sources the rest.
        passes = 3.2 if self.factors == "ekfac" else 1.4
        factor_rows = max(32, round(0.4 * trainings * training_rows / passes))
        return replace(
            self, factor_rows=factor_rows, gradient_rows=max(32, round(0.6 * trainings * training_rows / 1.1 / sources))
        )


@dataclass(frozen=True, slots=True)
class RowBatches:
    """This process's share of some rows, as micro-batches that can be gone through more than once."""

    token_rows: Sequence[TokenRows]  # one set of rows a domain
    domain: npt.NDArray[np.int64]  # (R,) which set each row is of
    row: npt.NDArray[np.int64]  # (R,) index in that set
    batch_tokens: int  # most tokens of a micro-batch

    def __iter__(self) -> Iterator[tuple[Batch, npt.NDArray[np.int64]]]:
        """Yield each micro-batch with the keys of its rows; rows are dealt out to processes like cards."""
        rank, world = processes()
        domain, row = self.domain[rank::world], self.row[rank::world]
        lengths = of_rows([rows.lengths for rows in self.token_rows], domain, row)
        for part in micro_batches(lengths, self.batch_tokens):
            keys = [self.token_rows[d].keys[r] for d, r in zip(domain[part], row[part], strict=True)]
            yield (
                collate_across(self.token_rows, domain[part], row[part]),
                np.array(keys, dtype=np.uint64).view(np.int64),
            )

    def tokens(self) -> int:
        """Tokens of one pass, over all processes."""
        return int(of_rows([rows.lengths for rows in self.token_rows], self.domain, self.row).sum())


def label_logits(
    model: nn.Module,
    batch: tuple[Batch, npt.NDArray[np.int64]],
    *,
    autocast: torch.dtype | None = None,
    loss: Loss = "token",
) -> LabelledLogits:
    """Logits at the supervised positions of packed (or padded) rows with the row of every token: a `Forward`."""
    rows, keys = batch
    device = next(model.parameters()).device

    def to(array: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    keep = np.flatnonzero(rows.labels != IGNORED)
    row = np.repeat(np.arange(len(rows.rows)), np.diff(rows.starts))
    with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
        if is_packed(model):
            logits, token_rows = packed_logits(model, rows, keep, device), row
        else:
            shape = (len(rows.rows), int(np.diff(rows.starts).max()))
            ids, mask, padded_rows = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.full(shape, -1)
            place = (row, rows.position_ids)
            ids[place], mask[place], padded_rows[place] = rows.input_ids, 1, row
            output = model(input_ids=to(ids), attention_mask=to(mask), use_cache=False)
            logits = output.logits[to(row[keep]), to(rows.position_ids[keep])]
            token_rows = padded_rows.ravel()
    weights = label_weights(rows, loss)
    return LabelledLogits(
        logits, to(rows.labels[keep]), to(row[keep]), to(token_rows), to(keys),
        None if weights is None else to(weights.astype(np.float32) if device.type == "mps" else weights),
    )  # fmt: skip


def mixture_factors(
    model: nn.Module, domains: Mapping[str, TokenRows], volumes: npt.ArrayLike, settings: InfluenceSettings
) -> tuple[Factors, int]:
    """Factors of the curvature of the mixture's own training loss."""
    taken = apportion(volumes, min(settings.factor_rows, int(np.ceil(np.sum(volumes)))))
    picks = [
        draw(domain_order(settings.seed, name, rows.keys), int(count))[0]
        for (name, rows), count in zip(domains.items(), taken, strict=True)
    ]
    domain = np.repeat(np.arange(len(picks)), [len(pick) for pick in picks])
    batches = RowBatches(list(domains.values()), domain, np.concatenate(picks), settings.batch_tokens)

    def forward(model: nn.Module, batch: Any) -> LabelledLogits:
        return label_logits(model, batch, autocast=settings.autocast, loss=settings.loss)

    factors = fit_factors(
        model, forward, batches, method=settings.factors, fisher=settings.fisher, select=settings.select,
        seed=settings.seed, memory_bytes=settings.memory_bytes,
        folder=settings.folder / "factors" if settings.folder is not None else None,
    )  # fmt: skip
    return factors, factors.passes * batches.tokens()


class _Gradients:
    """Summed gradients of shards of rows, of this process's share of them."""

    def __init__(self, model: nn.Module, names: Sequence[str], settings: InfluenceSettings) -> None:
        named = trainable(model)
        self.model, self.settings = model, settings
        self.parameters = {name: named[name] for name in names}
        self.dtype = torch.float64 if next(model.parameters()).dtype == torch.float64 else torch.float32
        self.tokens = 0

    def shards(self, name: str, rows: TokenRows) -> list[RowBatches]:
        """Rows in hash order, dealt out to shards."""
        order = domain_order(self.settings.seed, name, rows.keys)[: self.settings.gradient_rows]
        count = min(self.settings.shards, len(order))
        parts = [order[shard::count] for shard in range(count)]
        return [RowBatches([rows], np.zeros_like(part), part, self.settings.batch_tokens) for part in parts]

    def sum(self, batches: RowBatches, loss: Loss = "token") -> tuple[dict[str, Tensor], int]:
        """Gradient of the summed loss of this process's share, and what it is divided by: its labels, or its rows."""
        total = {name: torch.zeros_like(p, dtype=self.dtype) for name, p in self.parameters.items()}
        labels = 0
        self.tokens += batches.tokens()
        for batch, _ in batches:
            value = batch_loss(self.model, batch, 1.0, autocast=self.settings.autocast, loss=loss)
            parts = torch.autograd.grad(value, list(self.parameters.values()), materialize_grads=True)
            for name, part in zip(self.parameters, parts, strict=True):
                total[name] += part
            labels += counted(batch, loss)
        return total, labels

    def stack(self, what: str, count: int) -> dict[str, Tensor]:
        """Zeros for `count` gradients: in memory, or in one file a parameter where a folder is given."""
        folder = self.settings.folder
        if folder is None:
            return {n: p.new_zeros((count, *p.shape), dtype=self.dtype) for n, p in self.parameters.items()}
        place = folder / f"{what}-{processes()[0]}"
        place.mkdir(parents=True, exist_ok=True)
        files = {}
        for name, parameter in self.parameters.items():
            path, size = place / f"{name}.bin", count * parameter.numel()
            path.unlink(missing_ok=True)
            flat = torch.from_file(str(path), shared=True, size=size, dtype=self.dtype)
            files[name] = flat.view(count, *parameter.shape)
        return files

    def bytes(self) -> int:
        """Bytes of one gradient."""
        return sum(p.numel() for p in self.parameters.values()) * (8 if self.dtype == torch.float64 else 4)


def _inner(stack: Mapping[str, Tensor], vector: Mapping[str, Tensor]) -> Floats:
    """(n,) inner products of a stack of n vectors with one."""
    total = sum(
        torch.mv(stack[n].flatten(1), v.flatten().to(stack[n].device)).double().cpu() for n, v in vector.items()
    )
    assert isinstance(total, Tensor)
    return np.asarray(total.numpy())


def _apply(operator: KroneckerOperator | None, stack: dict[str, Tensor]) -> None:
    """Replace a stack of vectors by the operator's products, one vector and layer at a time; None is the identity."""
    if operator is not None:
        for k in range(len(next(iter(stack.values())))):
            one = {name: vectors[k : k + 1] for name, vectors in stack.items()}
            for part in operator.layerwise(one):
                for name, value in part.items():
                    one[name].copy_(value)


def responses(
    model: nn.Module,
    domains: Mapping[str, TokenRows],
    references: Mapping[str, TokenRows],
    volumes: npt.ArrayLike,
    *,
    method: str = "implicit",
    settings: InfluenceSettings | None = None,
    supervised_tokens: npt.ArrayLike | None = None,
    operator: KroneckerOperator | None = None,
) -> ResponseMatrix:
    """Mixing responses of all capabilities to all domains from one model, in one pass over their rows."""
    # Cost: one gradient of the domains' and the capabilities' rows, plus two gradients of `factor_rows` rows for EK-
    # FAC. The reference rows are gone through twice only where their shards' gradients do not fit in `memory_bytes`.
    # Memory beside the model: J + D gradients and the factors, all of it on disk where a folder is given. Standard
    # errors are a delete-one jackknife over shards of domain and reference rows with the curvature held fixed. Under
    # torch.distributed each process takes its share of the rows and all get the same answer. `volumes` are (D,) rows;
    # `operator` stands in the inverse's place.
    started = time.monotonic()
    settings = settings or InfluenceSettings()
    if method not in ("implicit", "first-order"):
        raise UserError(f"the method {method!r} is not known here; choose implicit or first-order")
    domain_names, capability_names = names_of(list(domains)), names_of(list(references))
    volumes_D = np.asarray(volumes, dtype=np.float64)
    if volumes_D.shape != (len(domains),):
        raise UserError(f"{volumes_D.size} volumes for {len(domains)} domains; give one for each")
    for name, rows in (*domains.items(), *references.items()):
        if not len(rows):
            raise UserError(f"{name} has no rows, so it has no gradient; give it rows or leave it out")
    if settings.loss == "row":
        supervised_tokens = volumes_D  # a row's loss weighs 1, whatever its length
    if supervised_tokens is None:
        supervised_tokens = volumes_D * [rows.supervised_tokens.mean() for rows in domains.values()]
    q_D, w_D = shares(volumes_D, supervised_tokens)

    curvature_tokens = 0
    if operator is None and settings.select is None:
        refuse_uncovered(model)
    if method == "implicit" and operator is None:
        factors, curvature_tokens = mixture_factors(model, domains, volumes_D, settings)
        operator = factors.inverse(settings.damping)
    covered = operator.factors.layers if operator is not None else find_layers(model, settings.select)[0]
    gradients = _Gradients(model, [name for layer in covered for name in layer.parameters], settings)
    with measuring(model):
        inner_JD, variance_JD, left_out_JSD = _inner_products(gradients, operator, domains, references)
    M, se = centred_responses(inner_JD, w_D, variance_JD, left_out_JSD)
    cost = Cost(curvature_tokens + gradients.tokens, time.monotonic() - started)
    return ResponseMatrix(method, domain_names, capability_names, M, se, q_D, w_D, cost)


def _inner_products(
    gradients: _Gradients,
    operator: KroneckerOperator | None,
    domains: Mapping[str, TokenRows],
    references: Mapping[str, TokenRows],
) -> tuple[Floats, Floats, list[Floats]]:
    """c (J, D), its variance from each domain's rows (J, D), and J times c without a shard of reference rows (S, D)."""
    reference_shards = [gradients.shards(name, rows) for name, rows in references.items()]
    domain_shards = [gradients.shards(name, rows) for name, rows in domains.items()]
    S = max(len(parts) for parts in (*reference_shards, *domain_shards))
    J, D = len(reference_shards), len(domain_shards)
    labels_JS, labels_DS = np.zeros((J, S)), np.zeros((D, S))
    inner_DSJ, inner_JSD = np.zeros((D, S, J)), np.zeros((J, S, D))

    kept: dict[tuple[int, int], dict[str, Tensor]] = {}
    keep = gradients.bytes() * sum(map(len, reference_shards)) <= gradients.settings.memory_bytes
    reference_stack = gradients.stack("references", J)
    for j, parts in enumerate(reference_shards):
        for s, part in enumerate(parts):
            gradient, labels_JS[j, s] = gradients.sum(part)
            for name, value in gradient.items():
                reference_stack[name][j] += value.to(reference_stack[name].device)
            if keep:
                kept[j, s] = gradient
    _finish(reference_stack, labels_JS)
    _apply(operator, reference_stack)

    domain_stack = gradients.stack("domains", D)
    for i, parts in enumerate(domain_shards):
        for s, part in enumerate(parts):
            gradient, labels_DS[i, s] = gradients.sum(part, gradients.settings.loss)
            inner_DSJ[i, s] = _inner(reference_stack, gradient)
            for name, value in gradient.items():
                domain_stack[name][i] += value.to(domain_stack[name].device)
    reference_stack.clear()  # J gradients that are no longer needed
    _finish(domain_stack, labels_DS)
    _apply(operator, domain_stack)

    for j, parts in enumerate(reference_shards):
        for s, part in enumerate(parts):
            gradient = kept[j, s] if keep else gradients.sum(part)[0]
            inner_JSD[j, s] = _inner(domain_stack, gradient)
    for array in (inner_DSJ, inner_JSD):
        _sum_array(array)

    inner_JD = (inner_DSJ.sum(1) / labels_DS.sum(1)[:, None]).T
    variance_JD = np.empty((J, D))
    for i, parts in enumerate(domain_shards):
        variance_JD[:, i] = jackknife_variance(_left_out(inner_DSJ[i], labels_DS[i], len(parts)))
    left_out = [_left_out(inner_JSD[j], labels_JS[j], len(parts)) for j, parts in enumerate(reference_shards)]
    return inner_JD, variance_JD, left_out


def _left_out(inner: Floats, labels: Floats, shards: int) -> Floats:
    """(shards, n) ratio of sums without each shard."""
    if shards < 2:
        return np.empty((0, inner.shape[1]))
    rest = labels.sum() - labels[:shards]
    return np.asarray((inner.sum(0) - inner[:shards]) / rest[:, None])


def _finish(stack: dict[str, Tensor], labels: Floats) -> None:
    """Turn sums of this process into means per supervised token over all processes, in place."""
    _sum_array(labels)
    sum_over_processes(*stack.values())
    count = labels.sum(1)
    if not (count > 0).all():
        raise UserError("a domain or capability has rows without a supervised token; give it rows with an answer")
    for value in stack.values():
        value /= torch.as_tensor(count, dtype=value.dtype, device=value.device).view(-1, *[1] * (value.dim() - 1))


def _sum_array(array: Floats) -> None:
    tensor = torch.from_numpy(array)
    sum_over_processes(tensor)
