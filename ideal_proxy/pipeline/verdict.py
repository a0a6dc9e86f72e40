"""The verdict: does the proposal beat the base on rows and seeds that the search never saw?

Legend: S fresh seeds (pairs), J capabilities, N_j verify rows of capability j. Formulas: `pipeline/sequential` and
`docs/how-it-works.md`, section 6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ideal_proxy.mixture import IMPROVES as IMPROVES
from ideal_proxy.mixture import NO_BETTER as NO_BETTER
from ideal_proxy.mixture import UNDECIDED as UNDECIDED
from ideal_proxy.pipeline.sequential import (
    LEVEL,
    MOST_PAIRS,
    UNKNOWN,
    Boundary,
    Spread,
    boundary,
    futile,
    moderated,
    pairs_that_decide,
)
from ideal_proxy.proxy import Items, RowLosses
from ideal_proxy.response import Bound, Combination, Yardstick, combine

Array = NDArray[np.float64]


class Change(StrEnum):
    """What the check says of one capability, all capabilities and looks together at one level."""

    BETTER = "surely better"
    WORSE = "surely worse"
    OPEN = "open"


class Protection(StrEnum):
    """What the check says of one capability's tolerance."""

    NONE = "not protected"
    HELD = "within tolerance"
    BROKEN = "surely above tolerance"
    OPEN = "not proven"


@dataclass(frozen=True, slots=True)
class PairedLosses:
    """What one capability's verify rows cost in every pair."""

    base: Array  # nats summed over each row's supervised tokens, shape (S, N_j)
    proposal: Array  # the same after training on the proposal, shape (S, N_j)
    tokens: Array  # supervised tokens of each row, shape (N_j,)

    @classmethod
    def of(cls, base: Sequence[RowLosses], proposal: Sequence[RowLosses]) -> PairedLosses:
        """Put together what the runs of the pairs lost on the same rows."""
        sums = [np.stack([run.loss_sum for run in runs]) for runs in (base, proposal)]
        return cls(sums[0], sums[1], base[0].tokens.astype(np.float64))


@dataclass(frozen=True, slots=True)
class PairedScores:
    """What one capability's metric gave in every pair; where it says what each item gave, items tell noise too."""

    base: Array  # the score after training on the base, shape (S,)
    proposal: Array  # after training on the proposal, shape (S,)
    items: Array | None = None  # proposal less base of every item, shape (S, N); None where seeds alone tell the noise
    clusters: NDArray[np.int64] | None = None  # (N,) number of each item's cluster

    @classmethod
    def of(cls, base: Sequence[Scored], proposal: Sequence[Scored]) -> PairedScores:
        """Put together what runs of pairs gave; items count where all runs have the same."""
        before, after = (np.array([run.score for run in side], dtype=np.float64) for side in (base, proposal))
        found = [run.items for run in (*base, *proposal)]
        first = found[0]
        if first is None or any(items is None or items.ids != first.ids for items in found) or len(first.ids) < 2:
            return cls(before, after)
        scores = np.stack([items.scores for items in found if items is not None])
        clusters = np.unique(first.clusters, return_inverse=True)[1].reshape(-1).astype(np.int64)
        return cls(before, after, items=scores[len(base) :] - scores[: len(base)], clusters=clusters)


class Scored(NamedTuple):
    """What a metric gave for one run."""

    score: float
    items: Items | None


@dataclass(frozen=True, slots=True)
class Known:
    """What the swarm's replicates tell of the scatter of a pair, before the check."""

    gain: Spread = UNKNOWN  # of the objective
    ratios: Spread = UNKNOWN  # of every capability's ratio; its variance has shape (J,)

    def of(self, j: int) -> Spread:
        """Return what is known of one capability."""
        variance = self.ratios.variance
        return Spread(variance[j] if variance.ndim else variance, self.ratios.degrees)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The decision and everything it rests on."""

    answer: str  # `improves`, `no better than base` or `not enough evidence`
    gain: Bound  # relative gain in the objective, proposal against base
    # for each capability L_j(proposal) / L_j(base), with intervals that hold for all of them together; for scores
    # relative as `relative` says
    ratios: tuple[Bound, ...]
    changes: tuple[Change, ...]  # of each capability
    protection: tuple[Protection, ...]  # of each capability
    lacking: tuple[int, ...]  # capabilities whose `must_not_drop` is neither proved nor broken
    gains_by_seed: tuple[float, ...]  # G_s, shape (S,)
    pairs: int  # number of pairs S
    pairs_needed: int | None  # pairs that would decide at the present estimates, None when decided or beyond 200
    row_noise: float  # standard error of the gain from the choice of verify rows, and of a metric's items
    level: float  # the one-sided level over all looks
    go_on: bool  # whether the next look is worth its pairs

    @property
    def dropped(self) -> tuple[int, ...]:
        """Protected capabilities that are surely above their tolerance."""
        return tuple(j for j, found in enumerate(self.protection) if found is Protection.BROKEN)

    @property
    def unproven(self) -> tuple[int, ...]:
        """Protected capabilities of which the check can say neither."""
        return tuple(j for j, found in enumerate(self.protection) if found is Protection.OPEN)


@dataclass(frozen=True, slots=True)
class _Estimate:
    """A mean over pairs with its two errors."""

    mean: float
    variance: float
    row_error: float
    pairs: int

    @classmethod
    def of(cls, values_S: Array, row_error: float, known: Spread) -> _Estimate:
        sample = np.array(values_S.var(ddof=1))
        return cls(float(values_S.mean()), float(moderated(sample, len(values_S) - 1, known)), row_error, len(values_S))

    def bound(self, edges: Boundary) -> Bound:
        half = float(edges.half_width(self.pairs, self.variance, self.row_error))
        return Bound(self.mean, self.mean - half, self.mean + half)


def judge(
    losses: Sequence[PairedLosses | PairedScores],
    *,
    yardstick: Yardstick | None = None,
    kind: Combination = "mean",
    weights: Sequence[float] | None = None,
    tolerances: Sequence[float | None] | None = None,
    must_not_drop: Sequence[float | None] | None = None,
    min_gain: float = 0.005,
    looks: tuple[int, ...] | None = None,
    known: Known | None = None,
    level: float = LEVEL,
) -> Verdict:
    """Judge the proposal against the base from paired runs."""
    count, pairs = len(losses), losses[0].base.shape[0]
    if pairs < 2:
        raise ValueError(f"a verdict needs at least 2 pairs, got {pairs}")
    looks, known = looks or (pairs,), known or Known()
    tolerances, proofs = tolerances or [None] * count, must_not_drop or [None] * count
    stick = yardstick or Yardstick.of_losses(count)
    base_SJ, proposal_SJ = (np.stack([_totals(e, side) for e in losses], axis=1) for side in ("base", "proposal"))
    ratios_SJ = stick.relative(proposal_SJ, base_SJ)
    gains_S = 1 - combine(ratios_SJ, kind, weights)
    share_SJ = np.eye(count)[ratios_SJ.argmax(axis=1)] if kind == "worst" else _linear(kind, weights, ratios_SJ)
    row_noise = float(np.sqrt(sum(_row_error(e, share_SJ[:, j], stick.scale[j]) ** 2 for j, e in enumerate(losses))))
    gain = _Estimate.of(gains_S, row_noise, known.gain)
    ratios = [
        _Estimate.of(ratios_SJ[:, j], _row_error(entry, np.ones(pairs), stick.scale[j]), known.of(j))
        for j, entry in enumerate(losses)
    ]
    edges = boundary(looks, known.gain.weight, level)
    alone = boundary(looks, known.ratios.weight, level)
    together = boundary(looks, known.ratios.weight, 1 - (1 - level) / count)
    bounds = tuple(ratio.bound(together) for ratio in ratios)
    uppers = [ratio.bound(alone).upper for ratio in ratios]
    base_J = base_SJ.mean(axis=0)
    allowed = [None if told is None else 1 + told for told in tolerances]
    proved = [None if told is None else stick.allowance(told, base_J, j) for j, told in enumerate(proofs)]
    strictest = [min((x for x in both if x is not None), default=None) for both in zip(allowed, proved, strict=True)]
    protection = tuple(_protection(b.lower, u, s) for b, u, s in zip(bounds, uppers, strictest, strict=True))
    lacking = tuple(
        j for j, most in enumerate(proved)
        if most is not None and protection[j] is not Protection.BROKEN and uppers[j] > most
    )  # fmt: skip
    bound = gain.bound(edges)
    if Protection.BROKEN in protection or bound.upper < min_gain:
        answer = NO_BETTER
    else:
        answer = IMPROVES if bound.lower > 0 and not lacking else UNDECIDED
    needed, hopeless = None, False
    if answer == UNDECIDED:
        wanted = [] if bound.lower > 0 else [(gain.mean, gain, edges, min_gain)]
        wanted += [((proved[j] or 1.0) - ratios[j].mean, ratios[j], alone, -np.inf) for j in lacking]
        found = [pairs_that_decide(m, e.variance, e.row_error, pairs, edge, least) for m, e, edge, least in wanted]
        needed = None if None in found else max(x for x in found if x is not None)
        hopeless = any(futile(m, e.variance, e.row_error, pairs, edge) for m, e, edge, _ in wanted)
    doubtful = any(
        state is Protection.OPEN and ratio.mean > (most or np.inf)
        for state, ratio, most in zip(protection, ratios, strictest, strict=True)
    )
    return Verdict(
        answer=answer,
        gain=bound,
        ratios=bounds,
        changes=tuple(Change.BETTER if b.upper < 1 else Change.WORSE if b.lower > 1 else Change.OPEN for b in bounds),
        protection=protection,
        lacking=lacking,
        gains_by_seed=tuple(float(g) for g in gains_S),
        pairs=pairs,
        pairs_needed=needed,
        row_noise=row_noise,
        level=level,
        go_on=pairs < looks[-1] and (not hopeless if answer == UNDECIDED else answer == IMPROVES and doubtful),
    )


def nothing_to_check(count: int) -> Verdict:
    """Judge a proposal that is the base itself: no pair is run, for a mixture is never compared with itself."""
    same = Bound(1.0, 1.0, 1.0)
    return Verdict(
        answer=NO_BETTER, gain=Bound(0.0, 0.0, 0.0), ratios=(same,) * count, changes=(Change.OPEN,) * count,
        protection=(Protection.NONE,) * count, lacking=(), gains_by_seed=(), pairs=0, pairs_needed=None,
        row_noise=0.0, level=LEVEL, go_on=False,
    )  # fmt: skip


def _linear(kind: Combination, weights: Sequence[float] | None, ratios_SJ: Array) -> Array:
    """Weight of every capability in the objective, in every pair."""
    unit = np.eye(ratios_SJ.shape[1])
    return np.broadcast_to(combine(unit, kind, weights), ratios_SJ.shape)


def _protection(lower: float, upper: float, allowed: float | None) -> Protection:
    """Compare a capability's bounds with its strictest tolerance."""
    if allowed is None:
        return Protection.NONE
    if lower > allowed:
        return Protection.BROKEN
    return Protection.HELD if upper <= allowed else Protection.OPEN


def ratio_bounds(
    losses: Sequence[PairedLosses], *, looks: tuple[int, ...] | None = None, known: Known | None = None
) -> tuple[Bound, ...]:
    """Bound the ratios of losses by themselves, as `judge` bounds them: for losses that a metric stands before."""
    return judge(losses, looks=looks, known=known).ratios


def score_bounds(bound: Bound, scale: float, sign: float) -> Bound:
    """Turn a relative value with its bounds back into a difference of the score, proposal less base."""
    ends = sorted(sign * scale * (x - 1.0) for x in (bound.lower, bound.upper))
    return Bound(sign * scale * (bound.value - 1.0), *ends)


def _totals(entry: PairedLosses | PairedScores, side: Literal["base", "proposal"]) -> Array:
    """Return what each pair gave, shape (S,): nats over all rows, or the score."""
    values: Array = getattr(entry, side)
    return values.sum(axis=1) if isinstance(entry, PairedLosses) else values


def _row_error(entry: PairedLosses | PairedScores, share_S: Array, scale: float) -> float:
    """Standard error, by the choice of rows or items, of a mean of relative values; they are the same in all pairs."""
    if isinstance(entry, PairedScores):
        if entry.items is None or entry.clusters is None:
            return 0.0
        pairs, items = entry.items.shape
        if not entry.items.any():  # that nothing changed in so few items is no proof: one more might have
            return float(np.abs(share_S).mean() / abs(scale) / (pairs * items))
        mean_N = (share_S[:, None] * entry.items).mean(axis=0) / scale
        sums_C = np.bincount(entry.clusters, weights=mean_N - mean_N.mean())  # of a cluster, about the mean
        return float(np.sqrt((sums_C**2).sum() * len(sums_C) / max(1, len(sums_C) - 1))) / len(mean_N)
    base_S1, proposal_S1 = entry.base.sum(axis=1, keepdims=True), entry.proposal.sum(axis=1, keepdims=True)
    each_N = (share_S[:, None] * (entry.proposal - proposal_S1 / base_S1 * entry.base) / base_S1).mean(axis=0)
    rows = len(each_N)
    return float(np.sqrt((each_N**2).sum() * rows / max(1, rows - 1)))


def sentence(
    verdict: Verdict,
    capabilities: Sequence[str],
    *,
    min_gain: float,
    judged: str = "on unseen reference rows",
    price: str | None = None,
) -> str:
    """Say the verdict in one sentence; `price` is what the pairs that would decide cost."""
    if not verdict.pairs:
        return "no better than base: the proposal is the base itself, so there was nothing to check; keep the base"
    gain = verdict.gain
    interval = f"{gain.value:+.2%} [{gain.lower:+.2%}, {gain.upper:+.2%}] over {verdict.pairs} pairs"
    if verdict.answer == IMPROVES:
        said = f"improves: the objective gains {interval} of fresh runs {judged}"
        open_ones = ", ".join(capabilities[j] for j in verdict.unproven)
        return said + (f"; not proven to stay within tolerance: {open_ones}" if open_ones else "")
    if verdict.dropped:
        names = ", ".join(capabilities[j] for j in verdict.dropped)
        return f"no better than base: {names} fell beyond the tolerance, while the objective gains {interval}"
    if verdict.answer == NO_BETTER:
        return f"no better than base: the gain is {interval}, below the {min_gain:.1%} that counts; keep the base"
    more = (
        f"about {verdict.pairs_needed} pairs would decide{f' ({price})' if price else ''}"
        if verdict.pairs_needed is not None
        else f"more than {MOST_PAIRS} pairs would be needed, or more verify rows"
    )
    names = ", ".join(capabilities[j] for j in verdict.lacking)
    lacking = f", and that {names} did not drop is not proved" if names else ""
    return f"not enough evidence: the gain is {interval}{lacking}; {more}; keep the base"
