"""DoGE (Fan et al., arXiv 2310.15393): weights by how a domain's gradient agrees with the gradient that is wanted.

At each step of one proxy, with gradients g_i of the domains and G of what is to be learned (the mean over the
capabilities' reference rows: the out-of-domain variant),

    W_i = ⟨g_i, G⟩,     α ← α_i exp(η_t W_i / μ) / Σ_k …

where η_t is the step's learning rate; the proxy then takes a step on Σ α_i g_i. The answer is the mean of α.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from peers.task import Array

BREGMAN = 0.01  # μ


def step(alpha: Array, agreement: Array, rate: float, bregman: float = BREGMAN) -> Array:
    """One step of mirror descent with the entropy as its mirror."""
    logs = np.log(alpha) + rate * agreement / bregman
    grown = np.exp(logs - logs.max())
    return grown / grown.sum()


def weights(domains: int, rates: Array, agreement_at: Callable[[int, Array], Array]) -> Array:
    """The mean of the weights; `agreement_at` takes a step with weights α and tells ⟨g_i, G⟩ (D,)."""
    alpha, total = np.full(domains, 1.0 / domains), np.zeros(domains)
    for number, rate in enumerate(rates):
        alpha = step(alpha, agreement_at(number, alpha), float(rate))
        total += alpha
    return total / len(rates)
