"""A tiny float64 causal model with every layer kind, rows with masked labels, and dense matrices by other means."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ideal_proxy.gradients.curvature import LabelledLogits

VOCABULARY, WIDTH = 11, 6


class TinyNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width).mul(0.2).add(1.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


class TinyLM(nn.Module):
    """Embedding, one attention layer, one MLP, norms; the mask (…, T, T) says which token sees which."""

    def __init__(self, tied: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.norm = TinyNorm(WIDTH)
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH, bias=i > 0) for i in range(3))
        self.o = nn.Linear(WIDTH, WIDTH, bias=False)
        self.last = nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 7), nn.Linear(7, WIDTH, bias=False)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, ids: Tensor, mask: Tensor, keep: Tensor) -> Tensor:
        x = self.embed(ids)
        h = self.norm(x)
        scores = self.q(h) @ self.k(h).transpose(-1, -2) / WIDTH**0.5
        x = x + self.o(scores.masked_fill(~mask, -torch.inf).softmax(-1) @ self.v(h))
        x = x + self.drop(self.down(torch.tanh(self.up(self.last(x)))))
        return self.head(x.flatten(0, 1)[keep])


def tiny_model(seed: int = 0, tied: bool = False) -> TinyLM:
    torch.manual_seed(seed)
    return TinyLM(tied).double()


Row = tuple[Tensor, Tensor, int]  # ids (T,), labels (T,) already shifted with -100 where masked, key


def tiny_rows(count: int = 12, seed: int = 1) -> list[Row]:
    """Rows of 3 to 7 tokens; the prompt and the last position are masked, and some rows end in unsupervised tokens."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for index in range(count):
        length = 3 + index % 5
        ids = torch.randint(VOCABULARY, (length,), generator=generator)
        labels = torch.cat([ids[1:], torch.tensor([-100])])
        labels[: index % 3] = -100
        if index % 4 == 3:
            labels[-2:] = -100
        labels[min(index % 3, length - 3)] = ids[1]
        rows.append((ids, labels, 7919 * index + 13))
    return rows


def packed(model: nn.Module, rows: Sequence[Row]) -> LabelledLogits:
    """Rows end to end, [1, T], kept apart by the mask; the head sees supervised positions only."""
    ids = torch.cat([ids for ids, _, _ in rows])
    labels = torch.cat([labels for _, labels, _ in rows])
    row = torch.cat([torch.full_like(ids, i) for i, (ids, _, _) in enumerate(rows)])
    keep = (labels >= 0).nonzero().squeeze(-1)
    mask = (row[:, None] == row[None]) & torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
    return LabelledLogits(model(ids[None], mask[None], keep), labels[keep], row[keep], row, _keys(rows))


def padded(model: nn.Module, rows: Sequence[Row]) -> LabelledLogits:
    """Rows padded on the right to one length, [B, T]; padding is token 0."""
    longest = 2 + max(len(ids) for ids, _, _ in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    labels = torch.full_like(ids, -100)
    row = torch.full_like(ids, -1)
    for i, (row_ids, row_labels, _) in enumerate(rows):
        ids[i, : len(row_ids)], labels[i, : len(row_ids)], row[i, : len(row_ids)] = row_ids, row_labels, i
    keep = (labels.flatten() >= 0).nonzero().squeeze(-1)
    mask = torch.ones(longest, longest, dtype=torch.bool).tril().expand(len(rows), -1, -1)
    row = row.flatten()
    return LabelledLogits(model(ids, mask, keep), labels.flatten()[keep], row[keep], row, _keys(rows))


def _keys(rows: Sequence[Row]) -> Tensor:
    return torch.tensor([key for _, _, key in rows])


def batches(rows: Sequence[Row], size: int) -> list[list[Row]]:
    return [list(rows[i : i + size]) for i in range(0, len(rows), size)]


def flat(vector: dict[str, Tensor], names: Sequence[str]) -> Tensor:
    return torch.cat([vector[name].flatten() for name in names])


def dense_gauss_newton(model: nn.Module, logits_LV: Tensor, names: Sequence[str]) -> Tensor:
    """(1/L) Σ_l J_lᵀ (diag p − p pᵀ) J_l, each Jacobian from one backward pass a logit."""
    parameters = [dict(model.named_parameters())[name] for name in names]
    size = sum(p.numel() for p in parameters)
    total = torch.zeros(size, size, dtype=torch.float64)
    for logits in logits_LV:
        grads = [torch.autograd.grad(z, parameters, retain_graph=True, materialize_grads=True) for z in logits]
        jacobian = torch.stack([torch.cat([g.flatten() for g in each]) for each in grads])
        p = logits.detach().softmax(-1)
        total += jacobian.T @ (torch.diag(p) - torch.outer(p, p)) @ jacobian
    return total / len(logits_LV)


def row_gradients(model: nn.Module, rows: Sequence[Row], names: Sequence[str], labels_of=None) -> tuple[Tensor, int]:
    """(rows, P) gradient of each row's summed loss, each row alone, and the number of labels."""
    parameters = [dict(model.named_parameters())[name] for name in names]
    gradients, count = [], 0
    for row in rows:
        output = packed(model, [row])
        loss = output.loss_sum(None if labels_of is None else labels_of(output))
        each = torch.autograd.grad(loss, parameters, materialize_grads=True)
        gradients.append(torch.cat([g.flatten() for g in each]))
        count += len(output.labels)
    return torch.stack(gradients), count
