"""The input of a fit: checked, with one row for each distinct run.

Legend: N rows given, R distinct runs, D domains, J capabilities.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ideal_proxy.errors import UserError
from ideal_proxy.response.law import Array
from ideal_proxy.response.relative import KINDS, Kind

SHARE_TOLERANCE = 0.02
"""Published tables round shares to three digits; a row may sum to one within this and is then normalised."""


class BadInput(UserError, ValueError):
    """A table that cannot be fitted; also a ValueError, which scikit-learn's callers expect."""


@dataclass(frozen=True, slots=True)
class Runs:
    """Distinct runs."""

    v_RD: Array  # (R, D) volumes
    loss_JR: Array  # (J, R) weighted mean loss of each run, 0 where missing
    weight_JR: Array  # (J, R) weights, mean one over the runs present, 0 where missing
    seed_R: np.ndarray  # (R,) index of the seed


def check_kind(kind: Any) -> None:
    """Refuse what is no kind of capability."""
    if set([kind] if isinstance(kind, str) else kind) - set(KINDS):
        raise BadInput(f"kind is {kind!r} and must be one of {', '.join(KINDS)}, or a list of them, one a capability.")


def kinds_of(kind: Any, count: int) -> tuple[Kind, ...]:
    """Write a model's `kind` out."""
    given: Any = [kind] * count if isinstance(kind, str) else kind
    kinds: tuple[Kind, ...] = tuple(given)
    if len(kinds) != count:
        raise BadInput(f"kind has {len(kinds)} entries and there are {count} capabilities: give one each, or one.")
    return kinds


def check_volumes(v_ND: Array, unit: str) -> Array:
    """Check volumes, and make shares sum to one exactly."""
    if (v_ND < 0).any():
        row, column = np.argwhere(v_ND < 0)[0]
        raise BadInput(
            f"Negative values in data: row {row}, column {column} is {v_ND[row, column]:g}, "
            "but a volume is zero or more; correct the table."
        )
    if unit != "share":
        return v_ND
    total = v_ND.sum(axis=1)
    wrong = np.flatnonzero(np.abs(total - 1.0) > SHARE_TOLERANCE)
    if len(wrong):
        shown = ", ".join(str(i) for i in wrong[:5]) + (", …" if len(wrong) > 5 else "")
        raise BadInput(
            f"The shares of {len(wrong)} of {len(total)} rows do not sum to one (rows {shown}; row {wrong[0]} sums to "
            f'{total[wrong[0]]:.4g}): correct them, or use unit="rows" if these are volumes.'
        )
    return np.asarray(v_ND / total[:, None])


def distinct_runs(v_ND: Array, loss_NJ: Array, run_id: Any, seed_id: Any, sample_weight: Any, names: list[str]) -> Runs:
    """Average the rows of one run, weighted; only distinct run ids are replicates."""
    N = len(loss_NJ)
    if np.isinf(loss_NJ).any():
        row, j = np.argwhere(np.isinf(loss_NJ))[0]
        raise BadInput(
            f"Capability {names[j]!r} is infinite in row {row} ({int(np.isinf(loss_NJ).sum())} values in all): "
            "leave a value empty where a run has none."
        )
    weight = np.ones(N) if sample_weight is None else np.asarray(sample_weight, dtype=float)
    for name, values in (("run_id", run_id), ("seed_id", seed_id), ("sample_weight", weight)):
        if values is not None and np.shape(values) != (N,):
            raise BadInput(f"{name} has shape {np.shape(values)} where {(N,)} is needed: give one value a row.")
    if (weight < 0).any() or not np.isfinite(weight).all() or not (weight > 0).any():
        raise BadInput("sample_weight must be finite, zero or more, and positive somewhere: correct the weights.")
    _, first, run = np.unique(
        np.arange(N) if run_id is None else np.asarray(run_id), return_index=True, return_inverse=True
    )
    order = np.argsort(first)
    run = np.argsort(order)[run]
    first = first[order]
    if run_id is not None:
        apart = np.abs(v_ND - v_ND[first][run]).max(axis=1) > 1e-9 * (1.0 + np.abs(v_ND).max())
        if apart.any():
            row = int(np.flatnonzero(apart)[0])
            raise BadInput(
                f"Run {np.asarray(run_id)[row]!r} appears with two different mixtures: give each run an id of its own."
            )
    seed = np.zeros(N, dtype=np.int64) if seed_id is None else np.unique(np.asarray(seed_id), return_inverse=True)[1]
    if (seed != seed[first][run]).any():
        row = int(np.flatnonzero(seed != seed[first][run])[0])
        raise BadInput(f"Run {np.asarray(run_id)[row]!r} appears with two seeds: give each run an id of its own.")
    member = np.zeros((N, len(first)))
    member[np.arange(N), run] = weight
    present = np.isfinite(loss_NJ)
    weight_JR = present.T.astype(float) @ member
    filled = np.where(present, loss_NJ, 0.0)
    loss_JR = np.divide(filled.T @ member, weight_JR, out=np.zeros_like(weight_JR), where=weight_JR > 0)
    seen = weight_JR > 0
    if not seen.any(axis=1).all():
        j = int(np.flatnonzero(~seen.any(axis=1))[0])
        raise BadInput(f"Capability {names[j]!r} has no value in any run: leave that column out.")
    weight_JR = weight_JR / (weight_JR.sum(axis=1) / seen.sum(axis=1))[:, None]
    kept = seen.any(axis=0)
    return Runs(v_ND[first][kept], loss_JR[:, kept], weight_JR[:, kept], seed[first][kept])
