"""The verdict: does the proposal beat the base on rows and seeds that the search never saw?

Legend: S fresh seeds (pairs), J capabilities, N_j verify rows of capability j. Formulas:
`docs/how-it-works.md`, section 6.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ideal_proxy.response import Bound, Combination, Yardstick, combine

Array = NDArray[np.float64]

IMPROVES = "improves"
NO_BETTER = "no better than base"
UNDECIDED = "not enough evidence"
LEVEL = 0.95  # one-sided, before it is divided over looks and rounds
BOOTSTRAP = 400
MOST_PAIRS = 200


@dataclass(frozen=True, slots=True)
class PairedLosses:
    """What one capability's verify rows cost in every pair.

    Attributes:
        base: nats summed over each row's supervised tokens, shape (S, N_j).
        proposal: the same after training on the proposal, shape (S, N_j).
        tokens: supervised tokens of each row, shape (N_j,).
    """

    base: Array
    proposal: Array
    tokens: Array


@dataclass(frozen=True, slots=True)
class PairedScores:
    """What one capability's metric gave in every pair; it has no rows to resample, so seeds alone tell its noise.

    Attributes:
        base: the score after training on the base, shape (S,).
        proposal: after training on the proposal, shape (S,).
    """

    base: Array
    proposal: Array


@dataclass(frozen=True, slots=True)
class Verdict:
    """The decision and everything it rests on.

    Attributes:
        answer: `improves`, `no better than base` or `not enough evidence`.
        gain: relative gain in the objective, proposal against base.
        ratios: for each capability L_j(proposal) / L_j(base), with intervals; for scores relative as `relative` says.
        gains_by_seed: G_s, shape (S,).
        pairs: number of pairs S.
        pairs_needed: pairs that would decide at the present estimates, None when decided or beyond 200.
        row_noise: standard error of the gain from the choice of verify rows; a metric adds none.
        dropped: protected capabilities whose whole interval lies beyond their tolerance.
        level: the one-sided level used at this look.
    """

    answer: str
    gain: Bound
    ratios: tuple[Bound, ...]
    gains_by_seed: tuple[float, ...]
    pairs: int
    pairs_needed: int | None
    row_noise: float
    dropped: tuple[int, ...]
    level: float


def planned_looks(pairs: int, max_pairs: int) -> tuple[int, ...]:
    """Say after how many pairs the evidence is looked at."""
    return tuple(sorted({pairs, (pairs + max_pairs) // 2, max_pairs}))


def judge(
    losses: Sequence[PairedLosses | PairedScores],
    *,
    yardstick: Yardstick | None = None,
    kind: Combination = "mean",
    weights: Sequence[float] | None = None,
    tolerances: Sequence[float | None] | None = None,
    min_gain: float = 0.005,
    looks: int = 1,
    rounds: int = 1,
    seed: int = 0,
) -> Verdict:
    """Judge the proposal against the base from paired runs."""
    pairs = losses[0].base.shape[0]
    if pairs < 2:
        raise ValueError(f"a verdict needs at least 2 pairs, got {pairs}")
    level = 1 - (1 - LEVEL) / (looks * rounds)
    stick = yardstick or Yardstick.of_losses(len(losses))
    base_SJ, proposal_SJ = (np.stack([_totals(e, side) for e in losses], axis=1) for side in ("base", "proposal"))
    ratios_SJ = stick.relative(proposal_SJ, base_SJ)
    gains_S = 1 - combine(ratios_SJ, kind, weights)
    resampled_BSJ = _bootstrap_ratios(losses, ratios_SJ, seed)
    row_noise = float((1 - combine(resampled_BSJ, kind, weights)).mean(axis=1).std(ddof=1))
    gain = _bound(gains_S, row_noise, level)
    row_noise_J = resampled_BSJ.mean(axis=1).std(axis=0, ddof=1)
    bounds = tuple(_bound(ratios_SJ[:, j], float(row_noise_J[j]), level) for j in range(len(losses)))
    tolerances = tolerances or [None] * len(losses)
    dropped = tuple(
        j
        for j, tolerance in enumerate(tolerances)
        if tolerance is not None and bounds[j].lower > stick.allowance(tolerance, base_SJ.mean(axis=0), j)
    )
    if gain.lower > 0 and not dropped:
        answer = IMPROVES
    elif gain.upper < min_gain or (gain.lower > 0 and dropped):
        answer = NO_BETTER
    else:
        answer = UNDECIDED
    return Verdict(
        answer=answer,
        gain=gain,
        ratios=bounds,
        gains_by_seed=tuple(float(g) for g in gains_S),
        pairs=pairs,
        pairs_needed=_pairs_needed(gains_S, row_noise, level, min_gain) if answer == UNDECIDED else None,
        row_noise=row_noise,
        dropped=dropped,
        level=level,
    )


def ratio_bounds(losses: Sequence[PairedLosses], *, level: float, seed: int = 0) -> tuple[Bound, ...]:
    """Bound the ratios of losses by themselves, as `judge` bounds them: for losses that a metric stands before."""
    ratios_SJ = np.stack([_totals(e, "proposal") / _totals(e, "base") for e in losses], axis=1)
    noise_J = _bootstrap_ratios(losses, ratios_SJ, seed).mean(axis=1).std(axis=0, ddof=1)
    return tuple(_bound(ratios_SJ[:, j], float(noise_J[j]), level) for j in range(len(losses)))


def score_bounds(scores: PairedScores, *, level: float) -> Bound:
    """Bound the difference of a score, proposal less base, in its own unit."""
    return _bound(scores.proposal - scores.base, 0.0, level)


def _totals(entry: PairedLosses | PairedScores, side: Literal["base", "proposal"]) -> Array:
    """Return what each pair gave, shape (S,): nats over all rows, or the score."""
    values: Array = getattr(entry, side)
    return values.sum(axis=1) if isinstance(entry, PairedLosses) else values


def _bootstrap_ratios(losses: Sequence[PairedLosses | PairedScores], ratios_SJ: Array, seed: int) -> Array:
    """Resample verify rows, the same for base and proposal and for every pair; shape (B, S, J)."""
    rng = np.random.default_rng(seed)
    columns = []
    for j, entry in enumerate(losses):
        if isinstance(entry, PairedScores):
            columns.append(np.tile(ratios_SJ[:, j], (BOOTSTRAP, 1)))
            continue
        rows = entry.tokens.shape[0]
        counts_BN = rng.multinomial(rows, np.full(rows, 1 / rows), size=BOOTSTRAP).astype(float)
        columns.append((counts_BN @ entry.proposal.T) / (counts_BN @ entry.base.T))
    return np.stack(columns, axis=2)


def _bound(values_S: Array, row_noise: float, level: float) -> Bound:
    """t interval over seeds, widened by the noise of the verify rows (the two are independent)."""
    pairs = values_S.size
    half = _half_width(float(values_S.std(ddof=1)), pairs, row_noise, level)
    mean = float(values_S.mean())
    return Bound(mean, mean - half, mean + half)


def _half_width(spread: float, pairs: int, row_noise: float, level: float) -> float:
    over_seeds = float(stats.t.ppf(level, pairs - 1)) * spread / math.sqrt(pairs)
    over_rows = float(stats.norm.ppf(level)) * row_noise
    return math.hypot(over_seeds, over_rows)


def _pairs_needed(gains_S: Array, row_noise: float, level: float, min_gain: float) -> int | None:
    """Smallest number of pairs that would decide if mean and spread stayed as they are."""
    mean, spread = float(gains_S.mean()), float(gains_S.std(ddof=1))
    for pairs in range(gains_S.size + 1, MOST_PAIRS + 1):
        half = _half_width(spread, pairs, row_noise, level)
        if mean - half > 0 or mean + half < min_gain:
            return pairs
    return None


def sentence(
    verdict: Verdict, capabilities: Sequence[str], *, min_gain: float, judged: str = "on unseen reference rows"
) -> str:
    """Say the verdict in one sentence."""
    gain = verdict.gain
    interval = f"{gain.value:+.2%} [{gain.lower:+.2%}, {gain.upper:+.2%}] over {verdict.pairs} pairs"
    if verdict.answer == IMPROVES:
        return f"improves: the objective gains {interval} of fresh runs {judged}"
    if verdict.dropped:
        names = ", ".join(capabilities[j] for j in verdict.dropped)
        return f"no better than base: {names} fell beyond the tolerance, though the objective gains {interval}"
    if verdict.answer == NO_BETTER:
        return f"no better than base: the gain is {interval}, below the {min_gain:.1%} that counts; keep the base"
    more = (
        f"about {verdict.pairs_needed} pairs would decide"
        if verdict.pairs_needed is not None
        else f"more than {MOST_PAIRS} pairs would be needed, or more verify rows"
    )
    return f"not enough evidence: the gain is {interval}; {more}; keep the base"
