"""The first round on the target itself: few mixtures are trained, the anchors; others are imitated from their weights.

An anchor moves one domain up or down and lets the others make room: up is halfway from base to that domain alone, down
a share e^-spread of it (2.0 leaves 14 %), as far as bounds allow. Halfway, because models that saw one domain alone
merge badly (DeMix, arXiv 2602.00747, keeps half of general data). A mixture halfway between two anchors is imitated by
the mean of their weights. All such points mix two runs in equal shares, so what averaging does to a loss by itself is
about the same in all of them, and falls out with their level. Some are trained as well, once it is known which pairs
merge: those teach the trust.

Legend: A anchors, P pairs, R runs, D domains, J capabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from ideal_proxy.config import SearchConfig
from ideal_proxy.errors import UsageError, some
from ideal_proxy.pipeline.design import ETA_FRACTION, box, spread_mixtures, to_total
from ideal_proxy.pipeline.prepare import Prepared
from ideal_proxy.terminal import count_text, sentence

Array = NDArray[np.float64]

BLEND = 0.5  # of the way from base to a domain alone
MOVED = 0.05  # a domain that its bounds let move by less, in log volume, has no anchor there
CHECKED = 3  # mixtures that are imitated and trained, at least
EACH = 2  # imitations an anchor, by default at most
DISAGREE = 0.02  # a pair of anchors does not merge where the mean weights lose so much more than either end does
NAMED = 5  # pairs that are named


@dataclass(frozen=True, slots=True, eq=False)
class Anchors:
    """What the first round trains and imitates, in full-size rows."""

    names: tuple[str, ...]  # (A,) `coding up`, `coding down`
    mixtures: Array  # (A, D) of the anchors
    pairs: NDArray[np.int64]  # (P, 2) anchors whose mean may be imitated, the first `imitations` of them are
    volumes: Array  # (R, D) of the runs that come first: base with every seed, the anchors
    seeds: NDArray[np.int64]  # (R,) of those runs
    imitations: int  # mixtures that are imitated
    checked: int  # runs of mixtures that are imitated too

    @property
    def halfway(self) -> Array:
        """Mixtures that may be imitated, (P, D)."""
        return np.asarray(self.mixtures[self.pairs].mean(axis=1)) if len(self.pairs) else self.mixtures[:0]

    def to_check(self, merged: Sequence[int], seeds: Sequence[int]) -> list[tuple[int, int]]:
        """Order the pairs that may be trained, with a seed each: those that merge before others."""
        order = [*merged, *(p for p in range(len(self.pairs)) if p not in set(merged))]
        runs = [(p, seeds[0]) for p in order]
        # One mixture that is checked has a second seed: with base's it tells the noise of a difference.
        runs[CHECKED:CHECKED] = [(order[0], seeds[1])] if order and len(seeds) > 1 else []
        return runs

    def pair_name(self, pair: int) -> str:
        """Name a pair of anchors."""
        return " with ".join(self.names[a] for a in self.pairs[pair])


def default_runs(config: SearchConfig, prepared: Prepared) -> int:
    """Say how many runs a first round on the target has: base, both anchors of every domain, what is checked."""
    free = sum(fact.upper > fact.lower for fact in prepared.facts)
    return config.swarm.seeds + 2 * free + CHECKED + 1


def make_anchors(config: SearchConfig, prepared: Prepared, runs: int, seeds: Sequence[int]) -> Anchors:
    """Lay out the first round of a search on the target."""
    base, lower, upper = prepared.domains.base, prepared.column("lower"), prepared.column("upper")
    weights = prepared.domains.lengths if config.limits.budget_unit == "tokens" else np.ones_like(base)
    kept = config.limits.budget.kind in {"keep", "exactly"}
    found = _anchor_mixtures(base, lower, upper, weights, config.swarm.spread, kept=kept)
    if not found:
        raise UsageError(
            f"proxy.mode: target moves one domain at a time, and bounds or the budget let none move by {MOVED:.0%}; "
            "widen min, max, pinned or budget, or take mode out"
        )
    up = [(f"{prepared.domains.names[d]} {way}", v) for way, d, v in found]
    least = len(seeds) + CHECKED + sum(way == "up" for way, _, _ in found)
    if runs < least:
        raise UsageError(
            f"proxy.mode: target needs {least} runs here (base {len(seeds)} times, an anchor for every domain, "
            f"{CHECKED} mixtures that are imitated and trained), and swarm.runs is {runs}; raise it, or take mode out"
        )
    up = up[: runs - len(seeds) - CHECKED]
    names, mixtures = tuple(name for name, _ in up), np.array([v for _, v in up]).reshape(-1, len(base))
    pairs = np.array(list(combinations(range(len(up)), 2)), dtype=np.int64).reshape(-1, 2)
    most = EACH * len(up) if config.proxy.imitations is None else config.proxy.imitations
    left = runs - len(seeds) - len(up)
    if len(pairs):
        order = spread_mixtures(np.vstack([base, mixtures[pairs].mean(axis=1)]), min(len(pairs), max(most, left)))
        pairs = pairs[np.array(order, dtype=np.int64) - 1]
    volumes, drawn = np.array([base] * len(seeds) + list(mixtures)), [*seeds, *[seeds[0]] * len(up)]
    return Anchors(
        names, mixtures, pairs, volumes, np.array(drawn, dtype=np.int64), imitations=min(most, len(pairs)), checked=left
    )


def _anchor_mixtures(
    base: Array, lower: Array, upper: Array, weights: Array, spread: float, *, kept: bool
) -> list[tuple[str, int, Array]]:
    """Move each domain up, then each down: way, domain, mixture."""
    eta = ETA_FRACTION * base.mean()
    z_low, z_high = box(base, lower, upper, spread, eta)
    low, high = (np.clip(np.exp(z) - eta, lower, upper) for z in (z_low, z_high))
    total = float(weights @ base)
    found = []
    for way in ("up", "down"):
        for d in np.flatnonzero(upper > lower):
            alone = total / weights[d]
            wanted = base[d] + BLEND * (alone - base[d]) if way == "up" else np.exp(-spread) * base[d]
            at, least, most = np.clip(wanted, low[d], high[d]), low.copy(), high.copy()
            if kept:
                rest = [float(weights @ side - weights[d] * side[d]) for side in (high, low)]
                at = np.clip(at, (total - rest[0]) / weights[d], (total - rest[1]) / weights[d])
            if abs(np.log((at + eta) / (base[d] + eta))) < MOVED:
                continue
            least[d] = most[d] = at
            mixture = np.where(np.arange(len(base)) == d, at, base)
            found.append((way, int(d), to_total(mixture[None], least, most, weights, total)[0] if kept else mixture))
    return found


def disagreeing(ends_P2J: Array, middle_PJ: Array) -> NDArray[np.bool_]:
    """Tell the pairs of anchors whose mean weights are worse than both about some capability, (P,), from losses."""
    # Against the mean of both ends nothing can be said: what was trained halfway may itself lie above that.
    return np.asarray((np.log(middle_PJ / ends_P2J.max(axis=1)) > DISAGREE).any(axis=1))


def told_imitations(anchors: Anchors, mixtures: int, disagree: Sequence[str], trust: Sequence[str]) -> str:
    """Say how many mixtures were imitated, between which anchors, and what that was worth."""
    if not (mixtures or disagree):
        return f"none of {count_text(anchors.imitations, 'mixture')} could be imitated; the warnings say why"
    apart = ""
    if disagree:
        apart = f"; left out, because their mean weights lose more than either: {some(disagree, NAMED)}"
    text = f"{count_text(mixtures, 'mixture')} imitated by interpolation between {len(anchors.names)} anchors{apart}"
    return ". ".join([text, *(sentence(line).rstrip(".") for line in trust)])
