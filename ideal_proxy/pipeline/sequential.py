"""The mathematics of the check: pairs of runs looked at more than once, with one level for all looks.

After k pairs with mean m, the true mean lies above m − h and below m + h, each with the chance `level`, at all looks
together:

    h² = (c_k s/√k)² + (z_k r)²

s² is the variance of a pair's gain, moderated by what the swarm knows of it; r the error by the choice of verify rows,
which more pairs do not lessen. c and z are found by simulation, so that a true gain of 0 crosses a boundary by look k
with the chance (1 − level) · (pairs at k / most pairs)⁶: nearly all of it is kept for the last look.

Measured in `benchmarks/verdict/sequential.md`. Legend: K looks, P simulated paths.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

Array = NDArray[np.float64]

LEVEL = 0.95  # one-sided, over all looks
SPENDING = 6.0
MOST_DEGREES = 4.0  # what the swarm's replicates may weigh at most, as degrees of freedom
DOUBT = 9.0  # a prior that the pairs contradict loses its weight, the faster the more pairs there are
FUTILE = 0.05  # chance of success, one standard error above the estimate, below which more pairs are not run
PATHS = 200_000
MOST_PAIRS = 200


@dataclass(frozen=True, slots=True)
class Spread:
    """What is known of a pair's scatter before the check."""

    variance: Array  # of the gain of one pair; any shape, as many as there are things judged
    degrees: float  # degrees of freedom that it was measured with; 0 is nothing known

    @property
    def weight(self) -> float:
        """Degrees of freedom that it enters with."""
        return min(self.degrees, MOST_DEGREES)


UNKNOWN = Spread(np.array(1.0), 0.0)


@dataclass(frozen=True, slots=True)
class Boundary:
    """How many standard errors decide at each look."""

    looks: tuple[int, ...]  # pairs at each look, rising, (K,)
    pairs: tuple[float, ...]  # c, for the error by the pairs, (K,)
    rows: tuple[float, ...]  # z, for the error by the rows, (K,)

    def half_width(self, look: int, variance: Array | float, row_error: Array | float) -> Array:
        """Return h after a number of pairs; between looks and beyond the last, the factors of the last look passed."""
        k = max(0, int(np.searchsorted(self.looks, look, side="right")) - 1)
        return np.hypot(self.pairs[k] * np.sqrt(np.asarray(variance) / look), self.rows[k] * np.asarray(row_error))


def planned_looks(pairs: int, max_pairs: int) -> tuple[int, ...]:
    """Say after how many pairs the evidence is looked at: 3, 5 and 8 by default."""
    looks = [pairs]
    while looks[-1] < max_pairs:
        looks.append(min(max_pairs, max(looks[-1] + 1, round(1.6 * looks[-1]))))
    return tuple(looks)


def moderated(sample: Array, degrees: int, prior: Spread) -> Array:
    """Combine the variance of the pairs with the swarm's; the two count less together the more they differ."""
    if not prior.weight:
        return sample
    with np.errstate(divide="ignore", invalid="ignore"):
        agreement = np.minimum(prior.variance / sample, sample / prior.variance)
    weight = prior.weight * np.nan_to_num(agreement) ** (degrees / DOUBT)
    return np.asarray((weight * prior.variance + degrees * sample) / (weight + degrees))


@lru_cache(maxsize=64)
def boundary(looks: tuple[int, ...], degrees: float = 0.0, level: float = LEVEL) -> Boundary:
    """Find the boundaries by simulation, once for each set of looks, prior and level."""
    rng = np.random.default_rng(0)
    degrees = min(degrees, MOST_DEGREES)
    prior = Spread(rng.chisquare(degrees, PATHS) / degrees if degrees else np.array(1.0), degrees)
    total, squares, before, used = np.zeros(PATHS), np.zeros(PATHS), 0, 0.0
    alive = np.ones((2, 2, PATHS), dtype=bool)  # of pairs and of rows; each path and its mirror image
    factors: list[list[float]] = [[], []]
    for look in looks:
        new = look - before
        step = rng.standard_normal(PATHS) * math.sqrt(new)
        if before:  # the squares of two groups are joined exactly
            squares += (step / new - total / before) ** 2 * before * new / look
        if new > 1:
            squares += rng.chisquare(new - 1, PATHS)
        total += step
        before = look
        spent = (1 - level) * (look / looks[-1]) ** SPENDING
        variance = moderated(squares / (look - 1), look - 1, prior) if look > 1 else prior.variance
        for which, statistic in enumerate((total / np.sqrt(look * variance), total / math.sqrt(look))):
            both = np.stack([statistic, -statistic])
            most = max(1, round((spent - used) * 2 * PATHS))
            crossing = float(np.partition(both[alive[which]], -most)[-most])
            factors[which].append(crossing)
            alive[which] &= both < crossing
        used = spent
    return Boundary(looks, tuple(factors[0]), tuple(factors[1]))


def futile(mean: float, variance: float, row_error: float, pairs: int, edges: Boundary) -> bool:
    """Tell whether even a gain of one standard error above the estimate would hardly be proved by the last look."""
    last = edges.looks[-1]
    if pairs >= last:
        return False
    hoped = mean + math.sqrt(variance / pairs)
    expected = (pairs * mean + (last - pairs) * hoped) / last
    missing = float(edges.half_width(last, variance, row_error)) - expected
    scatter = math.sqrt(variance * (last - pairs)) / last
    return bool(norm.sf(missing / scatter) < FUTILE) if scatter else missing > 0


def pairs_that_decide(
    mean: float, variance: float, row_error: float, pairs: int, edges: Boundary, least: float
) -> int | None:
    """Smallest number of pairs that would show a gain above 0 or below the least that counts; None beyond 200."""
    for more in range(max(pairs + 1, edges.looks[-1]), MOST_PAIRS + 1):
        half = float(edges.half_width(more, variance, row_error))
        if mean - half > 0 or mean + half < least:
            return more
    return None
