"""Which mixtures a swarm tries: space-filling in log-volume inside the bounds, around a centre.

The coordinate of a domain is z = log(v + η), η = 1 % of the centre's mean volume, so that zero has a place. Points are
taken one after another: each is the one of the next few of a scrambled Sobol sequence that lies farthest from all
points before it (maximin among low-discrepancy candidates: no corner heaping, no near-repeats). The first k runs of a
longer design are therefore the runs of a shorter one.

Legend: R runs, P points, D domains, S seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import qmc

from ideal_proxy.errors import UsageError

Array = NDArray[np.float64]

ETA_FRACTION = 0.01
CANDIDATES = 16  # Sobol points looked at for each design point
TOTAL_TOLERANCE = 1e-9


def make_design(
    centre: ArrayLike,
    *,
    spread: float,
    lower: ArrayLike,
    upper: ArrayLike,
    seeds: Sequence[int],
    count: int | None = None,
    weights: ArrayLike | None = None,
    total: float | None = None,
    existing: ArrayLike | None = None,
    replicates: int = 1,
    random_state: int = 0,
) -> tuple[Array, NDArray[np.int64]]:
    """Lay out the runs of one round."""
    # First the centre with every seed, then a first point with every seed (so the noise that seeds share and the
    # noise of one run can be told apart), then new points with the seeds in turn.
    middle, low, high = (np.asarray(x, dtype=np.float64) for x in (centre, lower, upper))
    per_row = np.ones_like(middle) if weights is None else np.asarray(weights, dtype=np.float64)
    _check(middle, low, high, per_row, spread, total)
    eta = ETA_FRACTION * middle.mean()
    z_low, z_high = box(middle, low, high, spread, eta)
    runs = 3 * (len(middle) + 1) if count is None else count
    volumes, drawn_seeds = [], []
    for seed in seeds:
        volumes.append(middle)
        drawn_seeds.append(int(seed))
    points = _points(middle, z_low, z_high, eta, per_row, total, existing, max(0, runs), random_state)
    for number, point in enumerate(points):
        here = [seeds[(number + k) % len(seeds)] for k in range(len(seeds) if number < replicates else 1)]
        for seed in here:
            volumes.append(point)
            drawn_seeds.append(int(seed))
    return np.array(volumes)[:runs], np.array(drawn_seeds[:runs], dtype=np.int64)


def make_later_design(
    centre: Array, base: Array, wanted: Array, *, seeds: Sequence[int], count: int, **options: Any
) -> tuple[Array, NDArray[np.int64]]:
    """Lay out a later round: centre and base with its seeds, mixtures that are wanted, points that fill the region."""
    # Every gain is told against base: where the fit misses base, it misses all gains by as much. So base is run anew.
    at_base = 0 if np.array_equal(centre, base) else min(len(seeds), max(0, (count - len(seeds)) // 2))
    volumes, drawn = make_design(centre, seeds=seeds, count=count - at_base, replicates=0, **options)
    points = len(volumes) - len(seeds)
    some = wanted[: max(0, min(points, (points + at_base + 1) // 2))]
    volumes[len(volumes) - len(some) :] = some
    return np.vstack([volumes, np.tile(base, (at_base, 1))]), np.append(
        drawn, np.array(seeds[:at_base], dtype=np.int64)
    )


def spread_mixtures(volumes: Array, count: int = 2) -> list[int]:
    """Choose runs whose mixtures lie far from the centre and from each other, for a learning-rate sweep."""
    logs = np.log(volumes + max(ETA_FRACTION * volumes[0].mean(), 1e-12))
    chosen = [0]
    while len(chosen) <= count:
        distance = np.min([np.linalg.norm(logs - logs[k], axis=1) for k in chosen], axis=0)
        if distance.max() <= 0:
            break
        chosen.append(int(distance.argmax()))
    return chosen[1:]


def _points(
    middle: Array,
    z_low: Array,
    z_high: Array,
    eta: float,
    per_row: Array,
    total: float | None,
    existing: ArrayLike | None,
    count: int,
    random_state: int,
) -> list[Array]:
    """Take `count` points one after another, each the farthest of the next `CANDIDATES` of the sequence."""
    moving = np.flatnonzero(z_high > z_low)
    if not len(moving) or not count:
        return []
    width = (z_high - z_low)[moving]
    sequence = qmc.Sobol(len(moving), rng=np.random.default_rng([random_state, len(moving)]))
    power = int(np.ceil(np.log2(count * CANDIDATES)))
    unit = sequence.random_base2(power)
    before = [middle] if existing is None else [middle, *np.asarray(existing, dtype=np.float64)]
    taken = [(np.log(v + eta) - z_low)[moving] / width for v in before]
    points: list[Array] = []
    for k in range(count):
        z = np.repeat(z_low[None], CANDIDATES, axis=0)
        z[:, moving] += unit[k * CANDIDATES : (k + 1) * CANDIDATES] * width
        volumes = np.maximum(np.exp(z) - eta, 0.0)
        if total is not None:
            volumes = to_total(volumes, np.exp(z_low) - eta, np.exp(z_high) - eta, per_row, total)
        places = (np.log(volumes + eta) - z_low)[:, moving] / width
        nearest = np.linalg.norm(places[:, None] - np.array(taken)[None], axis=-1).min(axis=1)
        best = int(nearest.argmax())
        points.append(volumes[best])
        taken.append(places[best])
    return points


def box(middle: Array, low: Array, high: Array, spread: float, eta: float) -> tuple[Array, Array]:
    """Return the sides of the design's box in z."""
    z = np.log(middle + eta)
    z_low, z_high = z - spread, z + spread
    # Around zero a factor of e^spread of almost nothing would explore nothing.
    positive = middle[middle > 0].mean()
    z_high = np.where(middle > 0, z_high, np.log(positive + eta))
    z_low = np.maximum(z_low, np.log(low + eta))
    z_high = np.minimum(z_high, np.log(high + eta))
    return np.minimum(z_low, z_high), z_high


def to_total(volumes: Array, low: Array, high: Array, per_row: Array, total: float) -> Array:
    """Scale mixtures (P, D) by one factor each, held inside the box, so that their totals are right; by bisection."""
    low, high = np.maximum(low, 0.0), np.maximum(high, 0.0)
    positive = np.maximum(volumes, 1e-9 * max(float(volumes.max()), 1e-300))
    left, right = np.full(len(volumes), -60.0), np.full(len(volumes), 60.0)
    for _ in range(100):
        factor = 0.5 * (left + right)
        short = np.clip(positive * np.exp(factor)[:, None], low, high) @ per_row < total
        left, right = np.where(short, factor, left), np.where(short, right, factor)
    return np.asarray(np.clip(positive * np.exp(right)[:, None], low, high), dtype=np.float64)


def _check(middle: Array, low: Array, high: Array, per_row: Array, spread: float, total: float | None) -> None:
    """Refuse arguments that do not go together."""
    if not np.isfinite(middle).all() or (middle < 0).any() or middle.sum() <= 0:
        raise UsageError("the centre of a design must be rows of at least 0, above 0 for some domain")
    if (low < 0).any() or (low > high).any():
        at = int(np.flatnonzero((low < 0) | (low > high))[0])
        raise UsageError(f"domain {at + 1}: no volume lies between the bounds {low[at]:g} and {high[at]:g} rows")
    if total is None:
        return
    z_low, z_high = box(middle, low, high, spread, ETA_FRACTION * middle.mean())
    eta = ETA_FRACTION * middle.mean()
    least, most = (float(per_row @ np.maximum(np.exp(z) - eta, 0.0)) for z in (z_low, z_high))
    if not least * (1 - TOTAL_TOLERANCE) <= total <= most * (1 + TOTAL_TOLERANCE):
        raise UsageError(
            f"no mixture inside the bounds and the spread has a total of {total:g}; it can be {least:g} to {most:g}"
        )
