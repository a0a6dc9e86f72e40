"""The verdict: right answers on losses whose truth is known, and an interval that holds its level."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from ideal_proxy.pipeline.outcome import _price_of_pairs
from ideal_proxy.pipeline.sequential import Spread
from ideal_proxy.pipeline.verdict import (
    IMPROVES,
    NO_BETTER,
    UNDECIDED,
    Change,
    Known,
    PairedLosses,
    Protection,
    judge,
    nothing_to_check,
    sentence,
)
from ideal_proxy.sections import CostConfig, VerifyConfig
from ideal_proxy.terminal import duration, money


def pairs(gain: float, *, seeds: int, noise: float, rows: int = 300, capabilities: int = 3, seed: int = 0):
    """Losses per row whose proposal is `gain` better, with a run effect of relative size `noise`."""
    rng = np.random.default_rng(seed)
    entries = []
    for _ in range(capabilities):
        tokens = rng.integers(5, 60, rows).astype(float)
        row = rng.gamma(20.0, 0.05, rows)
        base = tokens * row * (1 + noise * rng.normal(size=(seeds, 1)))
        proposal = tokens * row * (1 - gain) * (1 + noise * rng.normal(size=(seeds, 1)))
        entries.append(PairedLosses(base=base, proposal=proposal, tokens=tokens))
    return entries


def test_clear_gain_improves_and_the_interval_holds_the_truth():
    verdict = judge(pairs(0.05, seeds=5, noise=0.003))
    assert verdict.answer == IMPROVES
    assert verdict.gain.lower < 0.05 < verdict.gain.upper
    assert verdict.gain.value == pytest.approx(0.05, abs=0.006)
    assert verdict.pairs_needed is None


def test_swapping_base_and_proposal_turns_the_answer():
    swapped = [
        PairedLosses(base=e.proposal, proposal=e.base, tokens=e.tokens) for e in pairs(0.05, seeds=5, noise=0.003)
    ]
    assert judge(swapped).answer == NO_BETTER
    assert judge(swapped).gain.value < -0.04


def test_no_gain_measured_well_is_no_better_than_base():
    verdict = judge(pairs(0.0, seeds=8, noise=0.001))
    assert verdict.answer == NO_BETTER
    assert verdict.gain.upper < 0.005


def test_noise_is_not_enough_evidence_and_says_how_many_pairs_would_decide():
    entries = pairs(0.004, seeds=3, noise=0.03, seed=2)
    verdict = judge(entries)
    assert verdict.answer == UNDECIDED
    assert verdict.pairs_needed is None or verdict.pairs_needed > 3
    assert "keep the base" in sentence(verdict, ["a", "b", "c"], min_gain=0.005)


def test_more_looks_make_the_early_interval_wider():
    entries = pairs(0.02, seeds=4, noise=0.004)
    one, many = judge(entries), judge(entries, looks=(4, 6, 8))
    assert many.gain.upper - many.gain.lower > 1.5 * (one.gain.upper - one.gain.lower)
    assert many.level == one.level == 0.95


def test_verify_row_noise_widens_the_interval():
    few, many = (judge(_noisy_rows(rows)) for rows in (30, 3000))
    assert few.row_noise > 5 * many.row_noise
    assert few.gain.upper - few.gain.lower > many.gain.upper - many.gain.lower


def _noisy_rows(rows: int):
    rng = np.random.default_rng(1)
    tokens = np.full(rows, 10.0)
    base = np.tile(rng.gamma(2.0, 5.0, rows), (4, 1))
    proposal = base * rng.gamma(4.0, 0.25, rows)
    return [PairedLosses(base=base, proposal=proposal, tokens=tokens)]


def test_row_bootstrap_matches_the_textbook_ratio_standard_error():
    entry = _noisy_rows(2000)[0]
    verdict = judge([entry])
    base, proposal = entry.base[0], entry.proposal[0]
    ratio = proposal.sum() / base.sum()
    residual = proposal - ratio * base
    expected = residual.std(ddof=1) / np.sqrt(len(base)) / base.mean()
    assert verdict.row_noise == pytest.approx(expected, rel=0.12)


def test_a_capability_surely_above_its_tolerance_forbids_improves():
    good, bad = pairs(0.10, seeds=5, noise=0.002, capabilities=2)
    bad = PairedLosses(base=bad.base, proposal=bad.base * 1.03, tokens=bad.tokens)
    free = judge([good, bad])
    assert free.answer == IMPROVES
    assert free.changes == (Change.BETTER, Change.WORSE)
    assert free.protection == (Protection.NONE, Protection.NONE)
    verdict = judge([good, bad], tolerances=[None, 0.01])
    assert verdict.answer == NO_BETTER
    assert verdict.dropped == (1,)
    assert "safety fell" in sentence(verdict, ["math", "safety"], min_gain=0.005)
    held = judge([good, bad], tolerances=[0.01, 0.05])
    assert held.answer == IMPROVES
    assert held.protection == (Protection.HELD, Protection.HELD)
    assert judge([good, bad], tolerances=[None, 0.05], must_not_drop=[None, 0.01]).answer == NO_BETTER, "stricter holds"


def checks(truths, *, count, tolerances=None, must_not_drop=None, scatter=0.01):
    """Whole checks, look by look as the search runs them: pairs whose capabilities' ratios are `truths` on average."""
    looks, answers = (3, 5, 8), []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        noise = rng.standard_normal((2, 8, len(truths))) * scatter / 2**0.5
        for look in looks:
            losses = [
                PairedLosses(1 + noise[0, :look, j : j + 1], truth + noise[1, :look, j : j + 1], np.ones(1))
                for j, truth in enumerate(truths)
            ]
            verdict = judge(losses, tolerances=tolerances, must_not_drop=must_not_drop, looks=looks)
            if not verdict.go_on:
                break
        answers.append(verdict)
    return answers


def test_a_capability_three_percent_worse_hardly_ever_passes_and_the_default_names_it():
    found = checks([0.90, 1.03], count=200, must_not_drop=[None, 0.01])
    assert sum(v.answer == IMPROVES for v in found) <= 10
    found = checks([0.90, 1.03], count=200, tolerances=[0.02, 0.02])
    assert all(v.answer != IMPROVES or v.unproven == (1,) for v in found)
    assert sum(v.dropped == (1,) for v in found) > 40  # 1 % above the tolerance at 1 % scatter


def test_a_capability_that_did_not_fall_is_proved():
    found = checks([0.95, 1.0], count=200, must_not_drop=[None, 0.02])
    assert sum(v.answer == IMPROVES for v in found) >= 180


def test_what_is_not_proved_is_named_and_asks_for_more_pairs():
    found = checks([0.95, 1.01], count=60, must_not_drop=[None, 0.01])
    lacking = [v for v in found if v.lacking]
    assert len(lacking) > 40
    for verdict in lacking:
        assert verdict.answer == UNDECIDED
        assert "that safety did not drop is not proved" in sentence(verdict, ["math", "safety"], min_gain=0.005)


def test_open_capabilities_are_called_so_in_all_but_five_percent_of_families():
    wrong = sum(set(v.changes) != {Change.OPEN} for v in checks([1.0] * 4, count=200))
    assert wrong <= 2 * 0.05 * 200 + 9  # both sides, three standard deviations


def test_a_hopeless_check_ends_early_and_a_mixture_is_never_compared_with_itself():
    ended = checks([1.02, 1.01], count=40)
    assert np.mean([v.pairs for v in ended]) < 5
    assert not any(v.answer == IMPROVES for v in ended)
    same = nothing_to_check(3)
    assert same.answer == NO_BETTER
    assert "the proposal is the base itself" in sentence(same, ["a", "b", "c"], min_gain=0.005)


def test_what_the_swarm_knows_of_the_scatter_narrows_the_interval():
    entries = pairs(0.02, seeds=3, noise=0.004)
    spread = np.var(judge(entries).gains_by_seed, ddof=1)
    known = Known(Spread(np.array(spread), 4.0), Spread(np.full(3, spread), 4.0))
    without, with_it = judge(entries), judge(entries, known=known)
    assert with_it.gain.upper - with_it.gain.lower < 0.8 * (without.gain.upper - without.gain.lower)
    wild = Known(Spread(np.array(100 * spread), 4.0))
    assert judge(entries, known=wild).gain.lower < with_it.gain.lower


def test_worst_and_weighted_objectives():
    good, bad = pairs(0.10, seeds=5, noise=0.001, capabilities=2)
    bad = PairedLosses(base=bad.base, proposal=bad.base * 1.02, tokens=bad.tokens)
    assert judge([good, bad], kind="worst").gain.value == pytest.approx(-0.02, abs=0.003)
    weighted = judge([good, bad], kind="weighted", weights=[3, 1])
    assert weighted.gain.value == pytest.approx(0.75 * 0.10 - 0.25 * 0.02, abs=0.003)


def test_a_null_rarely_improves_and_the_interval_covers():
    improved = covered = 0
    for seed in range(200):
        verdict = judge(pairs(0.0, seeds=3, noise=0.004, rows=60, capabilities=1, seed=seed))
        improved += verdict.answer == IMPROVES
        covered += verdict.gain.lower <= 0 <= verdict.gain.upper
    assert improved <= 18  # 5 % of 200 and three standard deviations
    assert 170 <= covered <= 199  # 90 % two-sided


def test_a_single_pair_is_no_check():
    with pytest.raises(ValueError, match="at least 2 pairs"):
        judge(pairs(0.0, seeds=1, noise=0.1))


def test_pairs_that_would_decide_are_priced():
    verdict = judge(pairs(0.004, seeds=3, noise=0.01, seed=2))
    assert verdict.answer == UNDECIDED
    assert verdict.pairs_needed is not None
    plan = SimpleNamespace(workers=2, devices=1)
    lab = SimpleNamespace(
        config=SimpleNamespace(cost=CostConfig(price=3.0, currency="EUR"), verify=VerifyConfig(max_pairs=3)),
        plan=plan, seconds_of_check=lambda: 60.0,
    )  # fmt: skip
    more = verdict.pairs_needed - 3
    price = _price_of_pairs(lab.config, plan, lab, verdict)
    cost = f"{more} more, {duration(60.0 * more)}, {money(more / 20, 'EUR')}"  # a minute is 5 cents
    assert price == f"{cost}: verify.max_pairs: {verdict.pairs_needed} or more and the same command"
    assert f"about {verdict.pairs_needed} pairs would decide ({price})" in sentence(
        verdict, ["a", "b", "c"], min_gain=0.005, price=price
    )
    lab.config.verify = VerifyConfig(max_pairs=verdict.pairs_needed)
    assert _price_of_pairs(lab.config, plan, lab, verdict) == cost, "they are allowed already"
