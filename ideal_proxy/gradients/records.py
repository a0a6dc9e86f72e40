"""What every estimator of responses gives: a matrix with standard errors and its cost. No torch here.

Legend: J capabilities, D domains, S shards of rows. Responses are in nats per unit of log volume.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ideal_proxy.errors import UserError
from ideal_proxy.store import NO_ARRAYS, atomic_write_arrays

Floats = npt.NDArray[np.float64]

IDEAL_STEP = 0.15
"""Largest relative change of a volume in IDEAL's one-step proposal (arXiv 2505.12762)."""
RESOLVED = 2.0
"""Standard errors that a number must be away from 0."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What an estimate took."""

    # tokens, over all processes, that went forward and backward once; a double-backward product counts twice. Divided
    # by the tokens of a training it is the cost in proxy runs
    gradient_tokens: int
    seconds: float  # wall time

    def runs(self, training_tokens: int) -> float:
        """Cost in trainings of a proxy."""
        return self.gradient_tokens / training_tokens


@dataclass(frozen=True, slots=True)
class ResponseMatrix:
    """How each capability's reference loss answers to each domain's volume, R = M + τ qᵀ."""

    method: str  # "implicit", "first-order", "unrolled" or "finite"
    domains: tuple[str, ...]  # D names
    capabilities: tuple[str, ...]  # J names
    # (J, D) mixing response ∂L_j/∂log w_i at a fixed number of steps; its rows sum to 0. Known up to a positive factor
    # a capability for "implicit" and "first-order"
    M: Floats
    se: Floats  # (J, D) standard error of M; NaN where there is nothing to estimate it from
    q: Floats  # (D,) share of the mixture's rows
    w: Floats  # (D,) share of the mixture's supervised tokens
    cost: Cost  # what it took
    R: Floats | None = None  # (J, D) response ∂L_j/∂log v_i, where τ is known or R was measured
    tau: Floats | None = None  # (J,) ∂L_j/∂log N at fixed shares, where known
    se_R: Floats | None = None  # (J, D) standard error of R, where R was measured

    def __post_init__(self) -> None:
        shape = (len(self.capabilities), len(self.domains))
        for name in ("M", "se", "R", "se_R"):
            value = getattr(self, name)
            if value is not None and value.shape != shape:
                raise ValueError(f"{name} has shape {value.shape}; {shape} is needed (capabilities × domains)")
        if self.q.shape != shape[1:] or self.w.shape != shape[1:]:
            raise ValueError(f"q and w have shapes {self.q.shape} and {self.w.shape}; {shape[1:]} is needed")

    def with_tau(self, tau: npt.ArrayLike) -> ResponseMatrix:
        """The same responses with R = M + τ qᵀ filled in."""
        tau_J = np.asarray(tau, dtype=np.float64)
        return replace(self, tau=tau_J, R=self.M + np.outer(tau_J, self.q), se_R=self.se)

    def save(self, path: str | Path) -> None:
        """Write everything to one .npz file."""
        header = {
            "format": "ideal-proxy/responses/1",
            "method": self.method,
            "domains": self.domains,
            "capabilities": self.capabilities,
            "gradient_tokens": self.cost.gradient_tokens,
            "seconds": self.cost.seconds,
        }
        names = ("M", "se", "q", "w", "R", "tau", "se_R")
        arrays = {name: value for name in names if (value := getattr(self, name)) is not None}
        atomic_write_arrays(path, {"header": np.array(json.dumps(header)), **arrays})

    @staticmethod
    def load(path: str | Path) -> ResponseMatrix:
        """Read what `save` wrote."""
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            header = json.loads(str(arrays.pop("header")))
            cost = Cost(int(header["gradient_tokens"]), float(header["seconds"]))
            return ResponseMatrix(
                header["method"], tuple(header["domains"]), tuple(header["capabilities"]), cost=cost, **arrays
            )
        except (*NO_ARRAYS, RecursionError) as error:
            raise UserError(f"{path} does not hold responses ({error}); compute them again") from error


def mean_over_seeds(parts: Sequence[ResponseMatrix], capabilities: Sequence[str] | None = None) -> ResponseMatrix:
    """Average responses of proxies that differ in their seed; the capabilities may get other names."""
    # The seeds judge on much the same rows, so the errors by shards of rows are not divided by √S; the spread over
    # seeds is, and joins them.
    first, M = parts[0], np.array([part.M for part in parts])
    variance = np.mean([np.square(part.se) for part in parts], axis=0)
    if len(parts) > 1:
        variance = variance + M.var(axis=0, ddof=1) / len(parts)
    cost = Cost(sum(part.cost.gradient_tokens for part in parts), sum(part.cost.seconds for part in parts))
    return replace(
        first, capabilities=tuple(capabilities or first.capabilities), M=M.mean(axis=0), se=np.sqrt(variance), cost=cost
    )


def shares(rows: npt.ArrayLike, supervised_tokens: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Shares of the mixture by rows (what fills a step) and by supervised tokens (what fills its loss)."""
    parts = []
    for what, value in (("rows", rows), ("supervised tokens", supervised_tokens)):
        numbers = np.asarray(value, dtype=np.float64)
        if not numbers.sum() > 0 or (numbers < 0).any():
            raise UserError(f"the mixture's {what} are {numbers.tolist()}; give at least one domain a volume above 0")
        parts.append(numbers / numbers.sum())
    return parts[0], parts[1]


def jackknife_variance(left_out: Floats) -> Floats:
    """Delete-one jackknife variance (Efron and Stein 1981), (S − 1)/S · Σ_s (θ_s − mean)²."""
    count = len(left_out)
    if count < 2:
        return np.full(left_out.shape[1:], np.nan)
    deviation = left_out - left_out.mean(0)
    return np.asarray((count - 1) / count * np.square(deviation).sum(0))


def centred_responses(
    inner_JD: Floats, w_D: Floats, domain_variance_JD: Floats, left_out_JSD: Sequence[Floats]
) -> tuple[Floats, Floats]:
    """Mixing responses M_ji = −w_i (c_ji − Σ_k w_k c_jk) and their standard errors from inner products."""

    def mixing(inner: Floats) -> Floats:
        return np.asarray(-w_D * (inner - (inner @ w_D)[..., None]))

    from_k = w_D[:, None] * (np.eye(len(w_D)) - w_D)  # (i, k): how M_ji moves with c_jk
    of_references = np.stack([jackknife_variance(mixing(left_out_SD)) for left_out_SD in left_out_JSD])
    variance = domain_variance_JD @ np.square(from_k).T + of_references
    return mixing(inner_JD), np.sqrt(variance)


def one_step(response: npt.ArrayLike, volumes: npt.ArrayLike, largest: float = IDEAL_STEP) -> Floats:
    """IDEAL's proposal: v_i (1 − m A_i / max|A|), A_i = Σ_j R_ji (Ming et al., ICLR 2026, equation for β)."""
    # Responses are (J, D), R where it is known, else M; volumes (D,) in any unit. Nothing moves where all A are 0.
    response_JD = np.asarray(response, dtype=np.float64)
    if not 0 <= largest < 1:
        raise UserError(f"the largest relative step is {largest}; it must be at least 0 and below 1")
    if not np.isfinite(response_JD).all():
        raise UserError("the responses are not finite, so no volume can be proposed; look for NaN losses or weights")
    total = response_JD.sum(0)
    scale = np.abs(total).max(initial=0.0)
    return np.asarray(
        np.asarray(volumes, dtype=np.float64) * (1 - (largest * total / scale if scale > 0 else 0 * total))
    )


def unresolved(values: Floats, errors: Floats) -> npt.NDArray[np.bool_]:
    """Tell which numbers cannot be told from 0."""
    return np.asarray(~(np.abs(values) > RESOLVED * errors))


def plain_lists(values: Floats | None) -> Any:
    """Turn an array into what JSON takes."""
    if values is None:
        return None
    return json.loads(json.dumps(values.tolist()).replace("NaN", "null"))


def names_of(values: Sequence[str]) -> tuple[str, ...]:
    """Names as a tuple, refused where one stands twice."""
    if len(set(values)) != len(values):
        raise UserError(f"the names {list(values)} are not distinct; give each domain and capability its own")
    return tuple(values)
