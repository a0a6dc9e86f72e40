"""What an optimisation gives: the best mixture found, how good it is, and how that was proved."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ideal_proxy.domains import FloatArray
from ideal_proxy.optimizer.constraints import Limit, Problem

REPORT_CONFIDENCE = 0.9
SETTLED = 1e-5  # a slope of the objective so small is none


class Message(StrEnum):
    """How an optimisation ended; the values are what users read."""

    GLOBAL = "This mixture is the global optimum of the fitted problem."
    GLOBAL_BASE = "The base mixture is the global optimum of the fitted problem: nothing allowed beats it."
    LOCAL = (
        "This mixture is the best found from several starts; the fitted problem is not convex, "
        "so a better one may exist."
    )
    LOCAL_BASE = "No start found a mixture that the fit predicts to beat the base mixture."
    NOT_SOLVED = (
        "The solver stopped before it could prove that it had found an optimum; treat this mixture as an approximation "
        "and try more starts."
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Optimum:
    """The best mixture found and how good it is.

    Attributes:
        problem: domains, capabilities, base mixture.
        volumes: (D,), rows or shares, not rounded.
        objective: value there; for losses 1 is base.
        base_objective: value at base.
        losses: predicted losses or scores (J,).
        base_losses: predicted at base (J,).
        relative: L_j(v)/L_j(v⁰) (J,); for scores the signed difference over the scale.
        relative_upper: one-sided 90 % upper bounds of `relative` (J,).
        active: constraints that hold with equality, as users know them.
        binding: kinds of the active constraints.
        kkt_residual: optimality residual from the derivatives at the point alone.
        gap: the optimum is at most this far below `objective`; None where the problem is not convex.
        convex: whether the fitted problem is certified convex.
        starts: how many starts were tried.
        message: what users read.
        rows: (D,) the volumes as whole rows, where they were rounded; they add up as the budget says.
    """

    problem: Problem
    volumes: FloatArray
    objective: float
    base_objective: float
    losses: FloatArray
    base_losses: FloatArray
    relative: FloatArray
    relative_upper: FloatArray
    active: tuple[str, ...]
    binding: frozenset[Limit]
    kkt_residual: float
    gap: float | None
    convex: bool
    starts: int
    message: Message
    rows: NDArray[np.int64] | None = None

    @property
    def scope(self) -> str:
        """`global optimum`, or `best of k starts`."""
        if self.message in {Message.GLOBAL, Message.GLOBAL_BASE}:
            return "global optimum"
        return f"best of {self.starts} start{'s' if self.starts != 1 else ''}"

    @property
    def settled(self) -> str:
        """`scope`, with how nearly nothing better is left near it."""
        near = "nothing better near it" if self.kkt_residual < SETTLED else "something a little better may lie near it"
        return f"{self.scope}, {near} (slope {self.kkt_residual:.0e})"

    @property
    def predicted_gain(self) -> float:
        """Objective at base minus objective here; optimistic, because it was selected."""
        return self.base_objective - self.objective

    def to_dict(self) -> dict[str, Any]:
        """Write the result for a file.

        Returns:
            Numbers, texts and lists only.
        """
        names, targets = self.problem.domains.names, self.problem.capabilities
        return {
            "volumes": dict(zip(names, self.volumes.tolist(), strict=True)),
            "objective": self.objective,
            "base_objective": self.base_objective,
            "predicted_gain": self.predicted_gain,
            "losses": dict(zip(targets, self.losses.tolist(), strict=True)),
            "base_losses": dict(zip(targets, self.base_losses.tolist(), strict=True)),
            "relative": dict(zip(targets, self.relative.tolist(), strict=True)),
            "relative_upper": dict(zip(targets, self.relative_upper.tolist(), strict=True)),
            "active": list(self.active),
            "kkt_residual": self.kkt_residual,
            "gap": self.gap,
            "scope": self.scope,
            "message": str(self.message),
        }
