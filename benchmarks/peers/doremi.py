"""DoReMi (Xie et al., arXiv 2305.10429): robust weights of groups, from losses in excess of a reference model's.

A small reference model is trained on base. A proxy is trained while the weights α of the domains follow

    λ_i = max(mean over the step's tokens of domain i of (loss of proxy − loss of reference), 0)
    α ← α_i exp(η λ_i) / Σ_k α_k exp(η λ_k),  then  (1 − c) α + c / D

with η = 1 and c = 0.001; the proxy's loss weighs domain i by α_i. The answer is the mean of α over the steps.
The paper clips each token instead; on `unseen` 0.03 % of the tokens would move by that.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from peers.task import Array

RATE, SMOOTHING = 1.0, 1e-3


def step(alpha: Array, excess: Array, rate: float = RATE, smoothing: float = SMOOTHING) -> Array:
    """One step of exponentiated gradient ascent on the excess losses (D,)."""
    grown = alpha * np.exp(rate * np.maximum(excess, 0.0))
    return (1.0 - smoothing) * grown / grown.sum() + smoothing / len(alpha)


def weights(domains: int, steps: int, excess_at: Callable[[int, Array], Array]) -> Array:
    """The mean of the weights over a training; `excess_at` takes a step with weights α and tells the excess losses."""
    alpha, total = np.full(domains, 1.0 / domains), np.zeros(domains)
    for number in range(steps):
        alpha = step(alpha, excess_at(number, alpha))
        total += alpha
    return total / steps
