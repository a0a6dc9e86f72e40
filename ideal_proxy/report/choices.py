"""Hundreds of optima of one fit, all at once: what the explorer chooses among when a wish moves.

First optima of random weightings of the capabilities: they span what can be had. Then optima of the search's own
objective under limits that lie between those, as a user's wishes do. All descend together, a step of Adam in
log-volume at a time, put back inside the linear limits after each. Protection is left out, for the sliders set it.
Where there are few optima, for with few domains many wishes have the same one, mixtures between them fill the page up.

Legend: N optima, D domains, J capabilities, M linear limits, S mixtures to start from.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ideal_proxy.optimizer import Constraints
from ideal_proxy.report.curves import Array
from ideal_proxy.response import Combination, ResponseModel, Yardstick, combine

WEIGHTINGS, WISHES = 300, 900
MOST_VALUES = 1_000_000
"""Tasks × capabilities × domains; a larger search has fewer tasks, and starts from its last runs alone."""
LEAST = 500
"""Fewer distinct optima than that: mixtures between them join, those nearest the front of what can be had."""
BETWEEN = 6000
"""Mixtures between optima that are looked at then."""
WISHED = 0.4
"""How likely another capability has a limit too."""
STEPS = 80
RATES = (0.1, 0.001)
"""Of the first and the last step, in log-volume."""
PENALTIES = (30.0, 100.0)
"""On the square of what a capability is over its limit, at the first and the last step."""
SOFT = 0.003
"""Over how much of a relative loss the worst capability is smoothed."""
AT = 2e-3
"""A volume so near to its bound is at it."""
ROUNDS = 12
"""Most corrections until the linear limits hold."""
MISSED = 1e-3
"""A linear limit may be missed by this part of what base has of it: volumes are whole rows."""


def optima(
    model: ResponseModel, constraints: Constraints, yardstick: Yardstick, starts: Array, *,
    kind: Combination = "mean", weights: Array | None = None, seed: int = 0,
) -> Array:  # fmt: skip
    """Find optima from the best of some mixtures, (N, D) whole rows, each within the linear limits."""
    rng, limits = np.random.default_rng(seed), _Limits(constraints)
    surface = _Relative(model, yardstick, constraints)
    J, D = len(surface.at_base), starts.shape[1]
    part_of = min(1.0, MOST_VALUES / (J * D * (WEIGHTINGS + WISHES)))
    weightings, count, least = (max(int(part_of * n), 8) for n in (WEIGHTINGS, WISHES, LEAST))
    weighting = _Tasks(rng.dirichlet(np.full(J, 0.5), weightings), np.full((weightings, J), np.inf), worst=False)
    start = limits.inside(starts[-max(MOST_VALUES // (J * D), 100) :])
    span = _descend(surface, limits, weighting, start)
    known = surface(span)[0]
    share = np.full(J, 1.0 / J) if kind == "worst" else combine(np.eye(J), kind, weights)
    best = known[(known @ share).argmin()]
    part, (one, other) = rng.random((count, 1)), rng.integers(len(known), size=(2, count))
    between = part * known[one] + (1 - part) * known[other]
    wish = np.where(rng.random((count, J)) < WISHED, between, np.inf)
    # One limit of each binds: it lies between the least that can be had and what the best objective leaves.
    each, bound = np.arange(count), rng.integers(J, size=count)
    wish[each, bound] = (known.min(axis=0) + rng.random((count, J)) * (best - known.min(axis=0)))[each, bound]
    wish[0] = np.inf
    wishes = _Tasks(np.broadcast_to(share, (count, J)), wish, worst=kind == "worst")
    found = limits.whole(np.vstack([span, _descend(surface, limits, wishes, np.vstack([start, span]))]))
    if (more := least - len(found)) <= 0 or not len(found):
        return found
    joined = _between(surface, limits, found, start, rng, max(int(part_of * BETWEEN), 50))
    return np.vstack([found, joined[:more]])


def _between(
    surface: _Relative, limits: _Limits, found: Array, start: Array, rng: np.random.Generator, count: int
) -> Array:
    """Mix optima with each other and with mixtures of the search; first what no optimum beats by much everywhere."""
    ends = np.log(np.vstack([found, start]) + surface.eta)
    one, other, part = (
        rng.integers(len(found), size=count),
        rng.integers(len(ends), size=count),
        rng.random(count),
    )
    mixed = limits.whole(limits.inside(np.exp(ends[one] + part[:, None] * (ends[other] - ends[one])) - surface.eta))
    mixed = mixed[~(mixed[:, None] == found).all(axis=2).any(axis=1)]
    ratio, known = surface(mixed)[0], surface(found)[0]
    behind = np.full((len(mixed), len(found)), np.inf)  # by how much the other is better in every capability
    for j in range(ratio.shape[1]):
        behind = np.minimum(behind, ratio[:, j, None] - known[:, j])
    return np.asarray(mixed[behind.max(axis=1, initial=-np.inf).argsort(kind="stable")])


@dataclass(frozen=True, slots=True)
class _Tasks:
    """What each of N mixtures shall minimise: a weighting (N, J) or the worst capability, and limits (N, J)."""

    share: Array
    limit: Array
    worst: bool

    def __call__(self, ratio: Array, penalty: float) -> tuple[Array, Array]:
        """Value every task, (N,), with the derivative by the ratios, (N, J)."""
        over, by = np.maximum(ratio - self.limit, 0.0), self.share
        if self.worst:
            soft = np.exp((ratio - ratio.max(axis=1, keepdims=True)) / SOFT)
            by = soft / soft.sum(axis=1, keepdims=True)
        return (by * ratio).sum(axis=1) + penalty * (over**2).sum(axis=1), by + 2.0 * penalty * over


class _Relative:
    """Losses against base of many mixtures, (N, J), with derivatives by log-volume, (N, J, D)."""

    def __init__(self, model: ResponseModel, yardstick: Yardstick, constraints: Constraints) -> None:
        self.model, self.yardstick, self.eta = model, yardstick, constraints.eta
        self.at_base = model.value_and_gradient(constraints.domains.base)[0]
        self.unit = (yardstick.relative(self.at_base + 1.0, self.at_base) - 1.0)[:, None]

    def __call__(self, v: Array) -> tuple[Array, Array]:
        values, by = self.model.values_and_gradients(v)
        return self.yardstick.relative(values, self.at_base), by * self.unit * (v + self.eta)[:, None]


def _descend(surface: _Relative, limits: _Limits, tasks: _Tasks, starts: Array) -> Array:
    known = surface(starts)[0]
    value_SN = np.stack([tasks(np.broadcast_to(row, tasks.share.shape), PENALTIES[1])[0] for row in known])
    value_SN[limits.missed(starts) > MISSED / 5] = np.inf
    v = starts[value_SN.argmin(axis=0)]
    found, least = v.copy(), np.full(len(v), np.inf)
    first, second = np.zeros_like(v), np.zeros((len(v), 1))
    for step in range(STEPS):
        part = step / (STEPS - 1)
        ratio, by_NJD = surface(v)
        value = np.where(limits.missed(v) > MISSED / 5, np.inf, tasks(ratio, PENALTIES[1])[0])
        found[value < least] = v[value < least]
        least = np.minimum(value, least)
        by_NJ = tasks(ratio, PENALTIES[0] ** (1 - part) * PENALTIES[1] ** part)[1]
        gradient = limits.along((by_NJ[:, None] @ by_NJD)[:, 0], v)
        first, second = 0.8 * first + 0.2 * gradient, 0.95 * second + 0.05 * (gradient**2).max(axis=1, keepdims=True)
        moved = first / (1 - 0.8 ** (step + 1)) / (np.sqrt(second / (1 - 0.95 ** (step + 1))) + 1e-12)
        rate = RATES[0] ** (1 - part) * RATES[1] ** part
        v = limits.inside((v + surface.eta) * np.exp(-rate * moved) - surface.eta)
    return np.asarray(found)


class _Limits:
    """The linear limits of a search, met by many mixtures at once."""

    def __init__(self, constraints: Constraints) -> None:
        atoms, base = constraints.atoms(), constraints.domains.base
        self.eta = constraints.eta
        self.low, self.high = np.zeros(len(base)), np.full(len(base), np.inf)
        for atom in atoms:
            if atom.index is not None:
                self.low[atom.index] = max(self.low[atom.index], atom.lower)
                self.high[atom.index] = min(self.high[atom.index], atom.upper)
        rows = [atom for atom in atoms if atom.index is None]
        size = np.array([max(float(abs(atom.weights) @ base), 1e-300) for atom in rows])
        self.rows_MD = np.array([atom.weights for atom in rows]).reshape(len(rows), len(base)) / size[:, None]
        self.least, self.most = (np.array([getattr(a, end) for a in rows]) / size for end in ("lower", "upper"))

    def whole(self, v_ND: Array) -> Array:
        """Round mixtures to rows, and keep each once that is inside still."""
        rows = np.rint(v_ND)
        return np.unique(rows[self.missed(rows) <= MISSED], axis=0)

    def missed(self, v_ND: Array) -> Array:
        """How far each mixture is outside, as a part of what base has."""
        short = self._short(v_ND)
        outside = np.maximum(np.floor(self.low) - v_ND, v_ND - np.ceil(self.high)).max(axis=1)
        return np.asarray(np.maximum(np.abs(short).max(axis=1, initial=0.0), np.where(outside > 0, np.inf, 0.0)))

    def inside(self, v_ND: Array) -> Array:
        """Put mixtures inside: factors on the volumes for the limits that are missed, then the bounds, repeatedly."""
        v, M = np.clip(v_ND, self.low, self.high), len(self.rows_MD)
        for _ in range(ROUNDS if M else 0):
            short_NM = self._short(v)
            missed = np.abs(short_NM) > 1e-9
            if not missed.any():
                break
            room = v + self.eta
            for _ in range(2):  # the second time without volumes that their bounds stop
                square_NMM = np.einsum("md,nd,kd->nmk", self.rows_MD, room, self.rows_MD)
                square_NMM = square_NMM * missed[:, :, None] * missed[:, None] + 1e-9 * np.eye(M)
                factor = np.linalg.solve(square_NMM, (short_NM * missed)[:, :, None])[:, :, 0] @ self.rows_MD
                stopped = ((v <= self.low) & (factor < 0)) | ((v >= self.high) & (factor > 0))
                room = np.where(stopped, 0.0, v + self.eta)
            v = np.clip((v + self.eta) * np.exp(np.clip(factor, -1.0, 1.0)) - self.eta, self.low, self.high)
        return v

    def along(self, slope_ND: Array, v_ND: Array) -> Array:
        """Leave of slopes by log-volume what leads along the limits that are reached, not through them."""
        reached = (v_ND @ self.rows_MD.T > self.most - MISSED) | (v_ND @ self.rows_MD.T < self.least + MISSED)
        at_low, at_high = (
            v_ND + self.eta <= (self.low + self.eta) * (1 + AT),
            v_ND + self.eta >= (self.high + self.eta) * (1 - AT),
        )
        held = np.zeros_like(at_low)
        for _ in range(3 if len(self.rows_MD) else 1):
            normal = self.rows_MD * (v_ND + self.eta)[:, None] * ~held[:, None] * reached[:, :, None]
            square = normal @ normal.transpose(0, 2, 1) + 1e-9 * np.eye(len(self.rows_MD))
            price = np.linalg.solve(square, normal @ slope_ND[:, :, None])
            left = slope_ND - (self.rows_MD * (v_ND + self.eta)[:, None] * reached[:, :, None] * price).sum(axis=1)
            held = (at_low & (left > 0)) | (at_high & (left < 0))
        return np.where(held, 0.0, left)

    def _short(self, v_ND: Array) -> Array:
        has = v_ND @ self.rows_MD.T
        return np.asarray(np.maximum(self.least - has, 0.0) + np.minimum(self.most - has, 0.0))
