"""Objective and constraints of a mixture file, made ready for the optimiser at full size.

Legend: D domains.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ideal_proxy.amounts import Unit
from ideal_proxy.domains import Domains
from ideal_proxy.limits import Budget, Limits
from ideal_proxy.mixture import MixtureFile, reading_part
from ideal_proxy.optimizer import Constraints, Objective, Problem

Array = NDArray[np.float64]


def file_objective(mixture: MixtureFile) -> Objective:
    """Read what the search minimised; the mean where the file does not say."""
    found = mixture.provenance.get("objective")
    if not isinstance(found, dict):
        return Objective()
    with reading_part("provenance.objective"):
        return Objective(
            kind=found.get("kind", "mean"),
            weights=found.get("weights") if found.get("kind") == "weighted" else None,
            upper_confidence=found.get("upper_confidence"),
            kl_penalty=float(found.get("kl") or 0.0),
        )


def file_limits(mixture: MixtureFile) -> Limits:
    """Read the run file's limits; without them only the default repeat cap holds."""
    found = mixture.provenance.get("constraints")
    if not isinstance(found, dict):
        return Limits()
    with reading_part("provenance.constraints"):
        return Limits.from_json(found, [d.name for d in mixture.domains], [c.name for c in mixture.capabilities])


def file_constraints(mixture: MixtureFile, problem: Problem, budget: Budget, unit: Unit, **more: Any) -> Constraints:
    """Put the run file's limits on a full-size problem, whose base is what must-not-drop and pins refer to."""
    limits = file_limits(mixture)
    # A tolerance of a score says nothing of a loss, by which full-size runs are judged.
    scores = {c.name for c in mixture.capabilities if c.metric is not None}
    # A share without a unit of its own is one of the search's budget, whatever unit the full-size total is given in.
    of = compared_unit(limits, problem.domains)
    limits = replace(
        limits, budget=budget, budget_unit=unit,
        must_not_drop={name: told for name, told in limits.must_not_drop.items() if name not in scores},
        protect={name: told for name, told in limits.protect.items() if name not in scores},
        groups=tuple(replace(g, of=of) if g.unit == "share" and g.of is None else g for g in limits.groups),
    )  # fmt: skip
    return Constraints(problem=problem, limits=limits, **more)


def compared_unit(limits: Limits, domains: Domains) -> Literal["rows", "tokens"]:
    """Say what two mixtures have as much of when they are compared: what the search's budget counts, where known."""
    return "tokens" if limits.budget_unit == "tokens" and domains.tokens_per_row is not None else "rows"


def tokens_per_row(mixture: MixtureFile, measured: Array | None = None) -> Array | None:
    """Give every domain's tokens a row, in the proxies' tokenizer where the file tells them."""
    if "tokens_per_row" in mixture.provenance:
        with reading_part("provenance.tokens_per_row"):
            return np.array([float(mixture.provenance["tokens_per_row"][d.name]) for d in mixture.domains])
    told = np.array([d.tokens / d.rows if d.rows and d.tokens else np.nan for d in mixture.domains])
    missing = np.isnan(told)
    if missing.any():
        if measured is None:
            return None
        scale = float(np.mean(told[~missing] / measured[~missing])) if not missing.all() else 1.0
        told[missing] = scale * measured[missing]
    return told
