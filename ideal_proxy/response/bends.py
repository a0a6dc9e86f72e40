"""What runs of another kind may be wrong by together: straight lines in log-volume that posterior draws add.

More such runs do not lessen that error, and a mixture whose predicted change is small may be wrong by it as well, so
it cannot be a factor on the changes.

Legend: N mixtures, D domains, J capabilities, S posterior draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ideal_proxy.response.law import Array

SHIFT = 0.05
"""Added to a volume before its logarithm is taken, as a part of the mean volume."""


@dataclass(frozen=True, slots=True)
class Bends:
    """Slopes of the draws (S, J, D) in log(x + shift), none at the centre; of one draw also its point's."""

    slopes_SJD: Array
    centre_D: Array
    single: bool = False

    def draw(self, number: int) -> Bends:
        """Give those of one draw."""
        return Bends(self.slopes_SJD[number : number + 1], self.centre_D, single=True)


def added(bends: Bends | None, x_ND: Array, draw: int | None = None) -> tuple[Array | float, Array | float]:
    """Give what the point, or a draw, adds at scaled volumes, (J, N), and its derivative by x, (J, N, D)."""
    if bends is None or (draw is None and not bends.single):
        return 0.0, 0.0
    slopes_JD = bends.slopes_SJD[draw or 0]
    return slopes_JD @ (np.log(x_ND + SHIFT) - bends.centre_D).T, slopes_JD[:, None, :] / (x_ND + SHIFT)


def added_by_draws(bends: Bends | None, x_D: Array, *, drawn: bool) -> tuple[Array | float, Array | float]:
    """Give what all draws, or the point, add at one mixture, (S, J), and its derivative by x, (S, J, D)."""
    if bends is None or not (drawn or bends.single):
        return 0.0, 0.0
    return bends.slopes_SJD @ (np.log(x_D + SHIFT) - bends.centre_D), bends.slopes_SJD / (x_D + SHIFT)


def to_json(bends: Bends | None) -> dict[str, Any] | None:
    """Write them as JSON values."""
    return None if bends is None else {"slopes": bends.slopes_SJD.tolist(), "centre": bends.centre_D.tolist()}


def from_json(values: dict[str, Any] | None) -> Bends | None:
    """Read what `to_json` wrote."""
    if values is None:
        return None
    return Bends(np.array(values["slopes"], dtype=float), np.array(values["centre"], dtype=float))
