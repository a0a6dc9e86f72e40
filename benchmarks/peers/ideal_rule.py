"""IDEAL's own rule (Ming et al., arXiv 2505.12762), twice: β from influence at the mixture trained last, at most 0.15.

    A_i = Σ_j R_ji,   v_i ← v_i (1 − 0.15 A_i / max_k |A_k|)

R is the response of reference loss j to domain i. The paper's inverse curvature is ours (K-FAC); its release computes
a product with it instead. Each round costs the training of a model, and its gradients.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from peers.task import Array, Task

STEP, ROUNDS = 0.15, 2


def step(volumes: Array, response_JD: Array, largest: float = STEP) -> Array:
    total = response_JD.sum(axis=0)
    scale = np.abs(total).max(initial=0.0)
    return volumes * (1.0 - largest * total / scale) if scale > 0 else volumes.copy()


def search(task: Task, responses_at: Callable[[Array], Array], rounds: int = ROUNDS) -> Array:
    """The mixture after some rounds; `responses_at` trains at volumes (D,) and tells R (J, D)."""
    volumes = task.base.copy()
    for _ in range(rounds):
        volumes = task.within(step(volumes, responses_at(volumes)))
    return volumes
