"""A fit's input in the law's units: losses standardised, volumes scaled, gradient rows centred.

Legend: R runs, D domains, J capabilities.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ideal_proxy.response.gradient_rows import GradientRows, Responses
from ideal_proxy.response.inputs import BadInput, Runs
from ideal_proxy.response.law import Array, Volumes
from ideal_proxy.response.law_fit import BASELINE_NATS, RHO_PRIOR, LawData
from ideal_proxy.response.relative import Kind, directions

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Standardised:
    """The data of a fit, and how its losses came about: sign · loss = location + scale · y, each (J,)."""

    data: LawData
    location_J: Array
    scale_J: Array
    sign_J: Array


def standardise(
    runs: Runs, kinds: Sequence[Kind], *, share: bool, available: Any, base: Any, baseline_loss: Any, responses: Any
) -> Standardised:
    """Bring losses to one unit, and volumes to the law's."""
    seen = runs.weight_JR > 0
    J, D = len(seen), runs.v_RD.shape[1]
    sign, plain = directions(kinds), np.array([kind == "loss" for kind in kinds])
    if (runs.loss_JR[plain][seen[plain]] < 0).any():
        log.warning('Some losses are negative: they are fitted as scores of the other sign; see kind="score".')
    y = sign[:, None] * runs.loss_JR
    total = runs.weight_JR.sum(axis=1)
    mean = (runs.weight_JR * y).sum(axis=1) / total
    spread = np.sqrt((runs.weight_JR * (y - mean[:, None]) ** 2).sum(axis=1) / total)
    spread = np.where(spread > 1e-12 * (1.0 + np.abs(mean)), spread, np.maximum(np.abs(mean), 1.0))
    low = np.where(seen, y, np.inf).min(axis=1)
    width = np.maximum(np.where(seen, y, -np.inf).max(axis=1) - low, 1e-3 * spread)
    affine = (low <= 0) | ~plain
    location = np.where(affine, mean, 0.0)
    floor = np.where(affine, low - 3.0 * width, 0.0)
    bounds = np.column_stack([floor, low - 1e-3 * width])
    bounds = (bounds - location[:, None]) / spread[:, None]
    available = None if available is None else np.asarray(available, dtype=float)
    if available is not None and (available.shape != (D,) or not (available > 0).all()):
        raise BadInput(f"available must be {D} positive row counts, one a domain; got {available.tolist()}.")
    base = base if base is not None else available
    base = runs.v_RD.mean(axis=0) if base is None else np.asarray(base, dtype=float)
    if base.shape != (D,) or not (base > 0).any():
        raise BadInput(f"base must be {D} volumes, one a domain, at least one positive; got {base.tolist()}.")
    volumes = Volumes(
        1.0 if share else float(base[base > 0].mean()),
        0.0 if share else 0.1 * float(base.sum()),
        None if share else available,
        np.full(D, RHO_PRIOR[0]),
    )
    baseline = np.full(J, np.nan) if baseline_loss is None else np.asarray(baseline_loss, dtype=float).reshape(-1)
    if baseline.shape != (J,):
        raise BadInput(f"baseline_loss has {baseline.size} values and there are {J} capabilities: give one each.")
    y = np.where(seen, (y - location[:, None]) / spread[:, None], 0.0)
    # A score has no nats: its Z, one noisy measurement, is known to about the spread between runs.
    unit_nats = np.where(plain, spread, BASELINE_NATS)
    data = LawData(
        y,
        runs.weight_JR,
        runs.v_RD,
        volumes,
        bounds,
        unit_nats,
        (sign * baseline - location) / spread,
        runs.seed_R,
        1.0 if share else float(base.sum()) / volumes.scale,
    )
    rows = _gradient_rows(responses, volumes, sign / spread, share=share, kinds=kinds)
    return Standardised(replace(data, gradients=rows), location, spread, sign)


def _gradient_rows(
    responses: Any, volumes: Volumes, unit_J: Array, *, share: bool, kinds: Sequence[Kind]
) -> tuple[GradientRows, ...]:
    given = [] if responses is None else responses if isinstance(responses, (list, tuple)) else [responses]
    if given and (share or set(kinds) != {"loss"}):
        raise BadInput(
            "responses are derivatives of losses by rows and cannot enter a fit of "
            f"{'shares' if share else 'scores'}; leave them out."
        )
    J, D = len(unit_J), len(volumes.rho)
    rows = []
    for r in given:
        values = Responses(**r) if isinstance(r, dict) else r
        v = np.asarray(values.volumes, dtype=float)
        matrix, error = np.asarray(values.matrix, dtype=float), np.asarray(values.error, dtype=float)
        part = np.asarray(values.share, dtype=float)
        if matrix.shape != (J, D) or error.shape != (J, D) or v.shape != (D,) or part.shape != (D,):
            raise BadInput(
                f"responses need a matrix and errors of shape {(J, D)}, volumes and share of shape {(D,)}; "
                f"got {matrix.shape}, {error.shape}, {v.shape}, {part.shape}."
            )
        u, du_dv, _ = volumes.effective(v[None])
        unit = unit_J[:, None]
        centred = matrix - part * np.nansum(matrix, axis=1, keepdims=True)
        rows.append(GradientRows(u[0], du_dv[0] * v, part / part.sum(), centred * unit, error * abs(unit)))
    return tuple(rows)


def own_domains(own: Any, capabilities: list[str], domains: list[str]) -> np.ndarray:
    """Number of each capability's own domain, (J,); -1 for none."""
    J, D = len(capabilities), len(domains)
    if own is None:
        place = {name: i for i, name in enumerate(domains)}
        return np.array([place.get(name, -1) for name in capabilities])
    given = np.asarray(own)
    if given.shape != (J,) or not np.issubdtype(given.dtype, np.integer) or (given < -1).any() or (given >= D).any():
        raise BadInput(
            f"own must be {J} numbers of domains, one a capability, from 0 to {D - 1} or -1 for none; got {own!r}."
        )
    return given
