"""Distance from base in one unit: losses as ratios, scores as differences over a scale, so that one mean holds both.

A value of 1 is base and lower is better, whatever the capability is judged by:

    loss    L / L(base)
    score   1 + (S(base) − S) / scale      higher is better
    cost    1 + (S − S(base)) / scale      lower is better, any affine scale

Legend: J capabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ideal_proxy.errors import UserError

Array = NDArray[np.float64]
Kind = Literal["loss", "score", "cost"]
KINDS: tuple[Kind, ...] = ("loss", "score", "cost")


def directions(kinds: Sequence[str]) -> Array:
    """Say which way is worse."""
    return np.array([-1.0 if kind == "score" else 1.0 for kind in kinds])


@dataclass(frozen=True, slots=True, eq=False)
class Yardstick:
    """What each capability is measured in."""

    kinds: tuple[Kind, ...]  # of the J capabilities
    scale: Array  # shape (J,), what counts as much as a loss doubled, in the capability's own unit

    @classmethod
    def of_losses(cls, count: int) -> Yardstick:
        """Return the one of J losses."""
        loss: Kind = "loss"
        return cls((loss,) * count, np.full(count, np.nan))

    def __post_init__(self) -> None:
        for kind, scale in zip(self.kinds, self.scale, strict=True):
            if kind != "loss" and not (np.isfinite(scale) and scale > 0):
                raise UserError(f"a score has the scale {scale}; it must be a number above 0, give one")

    @property
    def is_loss(self) -> NDArray[np.bool_]:
        """Whether each capability is a loss, shape (J,)."""
        return np.array([kind == "loss" for kind in self.kinds])

    def divisor(self, base: Array) -> Array:
        """Return what a difference from base is divided by."""
        return np.where(self.is_loss, base, self.scale)

    def relative(self, values: Array, base: Array) -> Array:
        """Compare values with base; 1 is base, lower is better."""
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = values / base
        differences = 1.0 + directions(self.kinds) * (values - base) / self.scale
        return np.where(self.is_loss, ratio, differences)

    def absolute(self, relative: Array, base: Array) -> Array:
        """Turn relative values back into losses or scores."""
        scores = base + directions(self.kinds) * (relative - 1.0) * self.scale
        return np.where(self.is_loss, relative * base, scores)

    def allowance(self, tolerance: float, base: Array, j: int) -> float:
        """Give the largest relative value that a protected capability may have."""
        if self.kinds[j] == "loss":
            return 1.0 + tolerance
        return float(1.0 + tolerance * abs(base[j]) / self.scale[j])
