"""Who makes the objective's gain, and what to know of an objective before its mean is believed.

Legend: J capabilities. Relative values: 1 is base, lower is better.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

DECIDES = 0.6  # of all that moved, for better or worse
FEW = 3  # with fewer capabilities one always makes much of the gain
UNLIKE = 10.0  # times the loss of another capability


def contributions(
    relative_J: Array, kind: Literal["mean", "weighted", "worst"] | str, weights_J: Sequence[float]
) -> Array:
    """Split the objective's gain: what each capability adds to it, shape (J,); below 0 it takes away."""
    gains_J = 1.0 - np.asarray(relative_J, dtype=float)
    if kind == "worst":
        return np.where(np.arange(len(gains_J)) == int(np.argmin(gains_J)), gains_J, 0.0)
    weights = np.asarray(weights_J, dtype=float) if kind == "weighted" else np.ones(len(gains_J))
    return np.asarray(weights / weights.sum() * gains_J)


def objective_notes(
    names: Sequence[str], added_J: Array, *, scored: Sequence[str], base_losses_J: Array, kind: str
) -> list[str]:
    """Warn where one capability decides, or where it averages unlike things; metrics judge those `scored`."""
    if kind == "worst":
        return []
    notes, moved = [], np.abs(added_J)
    j = int(np.argmax(moved))
    if len(names) >= FEW and moved.sum() > 0 and moved[j] / moved.sum() > DECIDES:
        notes.append(
            f"{names[j]} decides the objective: {moved[j] / moved.sum():.0%} of all that changed, for better or worse, "
            "is its own; give weights (objective.kind: weighted) if it should not"
        )
    if scored and len(scored) < len(names):
        notes.append(
            f"the objective averages losses and metrics ({', '.join(scored)}): a metric's whole `scale` counts as much "
            "as a loss halved or doubled; set scale or weights if that is not what you mean"
        )
    losses = {name: x for name, x in zip(names, base_losses_J, strict=True) if name not in scored and x > 0}
    if losses and max(losses.values()) > UNLIKE * min(losses.values()):
        low, high = min(losses, key=losses.__getitem__), max(losses, key=losses.__getitem__)
        notes.append(
            f"the objective averages unlike losses: 1% of {low} ({losses[low]:.3g} nats a token) counts as much as 1% "
            f"of {high} ({losses[high]:.3g})"
        )
    return notes
