"""What each domain is of a mixture, in rows, tokens and loss, and how many optimiser steps a mixture takes.

Legend: D domains.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ideal_proxy.config import SearchConfig


def domain_shares(
    config: SearchConfig, rows_D: ArrayLike, tokens_D: ArrayLike, supervised_D: ArrayLike
) -> list[dict[str, float]]:
    """Give each domain's share of the rows, the tokens, the supervised tokens and the weight in the loss."""
    columns = {"rows": rows_D, "tokens": tokens_D, "supervised_tokens": supervised_D}
    columns["loss_weight"] = supervised_D if config.loss == "token" else rows_D
    shares = {name: np.asarray(values, dtype=float) for name, values in columns.items()}
    shares = {name: values / max(float(values.sum()), 1e-9) for name, values in shares.items()}
    return [{name: float(values[d]) for name, values in shares.items()} for d in range(len(shares["rows"]))]


def steps_taken(
    config: SearchConfig, base: tuple[float, float], proposal: tuple[float, float] | None = None
) -> dict[str, Any]:
    """Count the full-size optimiser steps of base and proposal, each given as (rows, tokens)."""
    found: dict[str, Any] = {"batch": str(config.batch), "loss": config.loss, "base": config.batch.steps(*base)}
    # What the budget holds is not what a step counts: then the proposal's steps may differ.
    limits = config.limits
    found["may_differ"] = limits.budget_unit != config.batch.unit and not config.budget.steps
    if proposal is not None:
        found["proposal"] = config.batch.steps(*proposal)
        found["change"] = found["proposal"] / max(1, found["base"]) - 1
        found["tokens_change"] = proposal[1] / max(base[1], 1e-9) - 1
    return found
