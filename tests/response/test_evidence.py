"""Evidence of several kinds: what a kind is worth is learned, and one that misleads has no weight."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from ideal_proxy.response.evidence import fit_kinds, told_trusts
from ideal_proxy.response.kinds import CHANGED_DATA, LARGER_SIZE, OTHER_SIZE, SMALLER_SIZE, imitated
from ideal_proxy.response.model import ResponseModel

BASE = np.array([400.0, 250.0, 300.0, 200.0])
NAMES, TARGETS = list("abcd"), ["one", "two", "three"]
WORTH = np.array([[3.0, 0.1, 0.2, 0.1], [0.1, 2.5, 0.1, 0.4], [0.2, 0.3, 1.5, 1.2]])


def truth(v):
    return np.array([0.8, 0.6, 0.9]) + 2.0 * (1.0 + (v / 300.0) ** 0.5 @ WORTH.T) ** -0.4


def runs(count, seed, noise=0.006):
    rng = np.random.default_rng(seed)
    v = BASE * np.exp(rng.uniform(-1.5, 1.5, (count, 4)))
    return v, truth(v) * np.exp(noise * rng.standard_normal((count, 3)))


def model():
    return ResponseModel(available=4 * BASE, base=BASE, n_starts=1, n_draws=32)


def together(own, other, name, kind):
    V = pd.DataFrame(np.vstack([own[0], other[0]]), columns=NAMES)
    L = pd.DataFrame(np.vstack([own[1], other[1]]), columns=TARGETS)
    fitted = model()
    trusts = fit_kinds(fitted, V, L, [""] * len(own[0]) + [name] * len(other[0]), {name: kind})
    return fitted, trusts[name]


def error(fitted):
    v, _ = runs(60, 99)
    return np.sqrt(np.mean(np.log(fitted.predict(pd.DataFrame(v, columns=NAMES)) / truth(v)) ** 2))


def shuffled(v, losses):
    return v, losses[np.random.default_rng(5).permutation(len(losses))]


def alone(own):
    return model().fit(pd.DataFrame(own[0], columns=NAMES), pd.DataFrame(own[1], columns=TARGETS))


def test_honest_earlier_runs_count_fully():
    own = runs(5, 1)
    fitted, trust = together(own, runs(30, 2), "earlier", CHANGED_DATA)
    assert trust.learned
    assert trust.factor == pytest.approx(1.0, abs=0.1)
    assert trust.weight > 0.6
    assert min(trust.explained) > 0.8
    assert error(fitted) < 0.5 * error(alone(own))
    told = f"earlier explain {trust.explained[0]:.2f} about one, {trust.explained[1]:.2f} about two, "
    assert trust.sentence("earlier", "today's runs", TARGETS).startswith(told)


@pytest.mark.parametrize("count", [6, 16])
def test_shuffled_evidence_has_no_weight(count):
    own = runs(count, 1)
    fitted, trust = together(own, shuffled(*runs(24, 2)), "earlier", CHANGED_DATA)
    assert trust.weight == 0
    assert error(fitted) == pytest.approx(error(alone(own)))
    assert trust.sentence("earlier", "today's runs", TARGETS).endswith("have no weight in the fit")


@pytest.mark.parametrize("count", [6, 14])
def test_runs_of_another_surface_have_no_weight(count):
    """They agree with one another and with nothing that the target shows."""
    own, (v, _) = runs(count, 1), runs(24, 2)
    losses = truth(v[:, [1, 2, 3, 0]] * [1.6, 0.83, 1.5, 0.5]) * np.exp(
        0.006 * np.random.default_rng(3).normal(size=(24, 3))
    )
    fitted, trust = together(own, (v, losses), "earlier", CHANGED_DATA)
    assert trust.weight == 0
    assert error(fitted) == pytest.approx(error(alone(own)))


def test_a_handful_of_runs_is_not_left_alone():
    """Shuffled evidence beside three runs stays: the fit itself says that nothing of it is known."""
    fitted, trust = together(runs(3, 1), shuffled(*runs(24, 2)), "earlier", CHANGED_DATA)
    assert trust.weight > 0
    assert fitted.known_.mean() < 0.8
    v, _ = runs(20, 98)
    assert np.ptp(np.log(fitted.predict(pd.DataFrame(v, columns=NAMES))), axis=0).max() < 0.5 * np.ptp(np.log(truth(v)))


@pytest.mark.parametrize(("s", "kind"), [(1.4, SMALLER_SIZE), (0.7, LARGER_SIZE), (0.55, OTHER_SIZE)])
def test_how_much_another_size_shows_of_every_change_is_learned(s, kind):
    """Which way s points: the kind's log changes are s times the target's, so its promises are divided by s."""
    own, (v, _) = runs(8, 1), runs(30, 2)
    rng = np.random.default_rng(4)
    theirs = 1.7 * (truth(v) / truth(BASE[None])) ** s * np.exp(0.006 * rng.standard_normal((30, 3)))
    fitted, trust = together(own, (v, theirs), "other proxies", kind)
    assert trust.factor == pytest.approx(s, rel=0.15)
    assert trust.spread < 0.1 < kind.spread
    assert error(fitted) < 0.75 * error(alone(own))
    taken_as_equal, _ = together(own, (v, theirs), "other proxies", CHANGED_DATA)
    assert error(fitted) < error(taken_as_equal)


@pytest.mark.parametrize("kind", [SMALLER_SIZE, LARGER_SIZE])
def test_before_any_run_of_the_target_changes_are_expected_by_the_prior(kind):
    v, losses = runs(30, 2)
    fitted, _ = together(runs(1, 1), (v, losses), "other proxies", kind)
    plain = alone((v, losses))
    at = [np.log(m.value_and_gradient(BASE * x)[0]) for m in (fitted, plain) for x in ([3, 0.5, 1, 1], [1, 1, 1, 1])]
    seen, theirs = at[0] - at[1], at[2] - at[3]
    assert np.abs(theirs).max() > 0.05
    assert (seen / theirs)[np.abs(theirs) > 0.02] == pytest.approx(1 / kind.factor, rel=0.15)
    assert SMALLER_SIZE.factor > LARGER_SIZE.factor >= 1, "a smaller proxy shows more of a change than the target"


def test_without_overlap_the_prior_stays_in_the_draws():
    own, (v, losses) = runs(1, 1), runs(30, 2)
    fitted, trust = together(own, (v, losses), "0.1M proxies", OTHER_SIZE)
    assert not trust.learned
    assert (trust.factor, trust.spread) == (1.0, 0.35)
    sure, _ = together(own, (v, losses), "earlier", CHANGED_DATA)

    def spread(m):
        here, there = (np.log(m.draws_value_and_gradient(x)[0]) for x in (BASE * [3, 0.5, 1, 1], BASE))
        return (here - there).std(axis=0).max()

    assert spread(fitted) > 2 * spread(sure)
    assert "too few runs of both kinds" in trust.sentence("0.1M proxies", "1M proxies", TARGETS)


def imitations(checked, *, mixed_up=False, shift=0.0, noise=0.006, anchors=8, seed=0):
    """Eight runs and 16 imitations, `checked` of them trained as well; each capability's have a level of their own."""
    (own, seen), (v, _) = runs(8, seed), runs(16, seed + 50)
    rng = np.random.default_rng(seed)
    told = truth(v) * np.exp(noise * rng.standard_normal((16, 3)) + shift * np.array([1.0, -1.0, 0.5]))
    told = told[rng.permutation(16)] if mixed_up else told
    twins = truth(v[:checked]) * np.exp(0.006 * rng.standard_normal((checked, 3)))
    trained = np.vstack([own, v[:checked]]), np.vstack([seen, twins])
    V = pd.DataFrame(np.vstack([trained[0], v]), columns=NAMES)
    L = pd.DataFrame(np.vstack([trained[1], told]), columns=TARGETS)
    fitted, place = model(), [""] * (8 + checked) + ["imitations"] * 16
    trusts = fit_kinds(fitted, V, L, place, {"imitations": imitated(anchors)}, seed_id=np.zeros(len(V)))
    return fitted, trusts["imitations"], trained


def test_honest_imitations_count_as_their_anchors_at_most():
    errors = []
    for seed in range(3):
        fitted, trust, trained = imitations(4, shift=0.03, noise=0.004, seed=seed)
        assert trust.learned
        assert trust.factor == pytest.approx(1.0, abs=0.2)
        assert 0.25 < trust.weight <= 8 / 16
        errors.append([error(fitted), error(alone(trained))])
    assert imitations(4, anchors=2)[1].weight <= 2 / 16, "16 of them share the noise of 2 anchors"
    together, without = np.mean(errors, axis=0)
    assert together < 0.9 * without, "their level is taken out, and they tell more than the runs alone"


@pytest.mark.parametrize("checked", [3, 6])
def test_imitations_that_were_mixed_up_have_no_weight(checked):
    fitted, trust, trained = imitations(checked, mixed_up=True)
    assert (trust.weight, trust.learned) == (0.0, True)
    assert error(fitted) == pytest.approx(error(alone(trained)))


def test_imitations_that_scatter_weigh_less():
    weights = [imitations(6, noise=noise)[1].weight for noise in (0.006, 0.05)]
    assert weights[1] < 0.5 * weights[0]


def test_too_few_that_were_trained_as_well_prove_nothing():
    fitted, trust, trained = imitations(2)
    assert (trust.weight, trust.learned) == (0.0, False)
    assert error(fitted) == pytest.approx(error(alone(trained)))
    (said,) = told_trusts(fitted.fidelity_, "trained runs", TARGETS)
    assert said.startswith(
        "imitations have no weight in the fit: fewer than 3 of their mixtures are among trained runs"
    )


def bent(v, seed):
    """What a small size shows: 0.75 of every log change, and a smooth error of its own, a fifth of the changes."""
    rng = np.random.default_rng([seed, 7])
    changes, h = np.log(truth(v) / truth(BASE[None])), np.log(v / BASE)
    own = h @ rng.normal(size=(4, 3))
    own *= 0.2 * changes.std(axis=0) / own.std(axis=0)
    return 1.7 * truth(BASE[None]) * np.exp(0.75 * changes + own + 0.01 * rng.standard_normal(changes.shape))


def inside(fitted, seed):
    """The share of true changes against base in the 90 % intervals of the draws."""
    v, _ = runs(12, 300 + seed)
    base = np.log(fitted.draws_value_and_gradient(BASE)[0])
    held = []
    for mixture in v:
        low, high = np.quantile(np.log(fitted.draws_value_and_gradient(mixture)[0]) - base, [0.05, 0.95], axis=0)
        change = np.log(truth(mixture[None])[0] / truth(BASE[None])[0])
        held.append((low <= change) & (change <= high))
    return float(np.mean(held))


def test_a_ladder_adds_to_its_large_runs_and_says_how_sure_it_is():
    """Six large runs with and without 36 small ones; intervals as of twelve large ones; shuffled ones are nothing."""
    errors, held, factors = [], [], []
    for seed in range(4):
        (v, losses), (small, _) = runs(12, 10 + seed, noise=0.01), runs(36, 20 + seed)
        few, shown = (v[:6], losses[:6]), bent(small, seed)
        fitted, trust = together(few, (small, shown), "0.1M proxies", SMALLER_SIZE)
        assert 0 < trust.weight < 0.5
        assert 0.1 < trust.error < 0.4
        whole = alone((v, losses))
        errors.append((error(fitted), error(alone(few))))
        held.append((inside(fitted, seed), inside(whole, seed)))
        factors.append(trust.factor)
        _, mixed = together((v, losses), (small, shown[np.random.default_rng(seed).permutation(36)]), "k", SMALLER_SIZE)
        assert mixed.weight == 0
    ladder, six = np.mean(errors, axis=0)
    assert ladder < 0.95 * six
    assert np.mean(held, axis=0)[0] > max(0.8, np.mean(held, axis=0)[1] - 0.05)
    assert np.mean(factors) == pytest.approx(0.75, abs=0.2)


def test_what_small_runs_are_wrong_by_together_is_in_the_draws_everywhere():
    """Also where nothing is predicted to change; kept in the file, exact in its derivatives, the same draw by draw."""
    (v, losses), (small, _) = runs(6, 10, noise=0.01), runs(36, 20)
    fitted, trust = together((v, losses), (small, bent(small, 0)), "0.1M proxies", SMALLER_SIZE)
    mixture = BASE * [1.5, 0.7, 1.2, 0.6]
    values, by = fitted.draws_value_and_gradient(mixture)
    step = 1e-4 * BASE[1] * np.eye(4)[1]
    ahead, behind = (fitted.draws_value_and_gradient(mixture + side * step)[0] for side in (1, -1))
    assert by[:, :, 1] == pytest.approx((ahead - behind) / (2 * step[1]), rel=1e-4, abs=1e-9)
    again = ResponseModel.from_json(fitted.to_json())
    assert again.draws_value_and_gradient(mixture)[0] == pytest.approx(values, rel=1e-12)
    one = fitted.draw(5)
    assert one.value_and_gradient(mixture)[0] == pytest.approx(values[5], rel=1e-12)
    assert one.value_and_gradient(mixture)[1] == pytest.approx(by[5], rel=1e-12)
    many, many_by = one.values_and_gradients(np.array([mixture, BASE]))
    assert many[0] == pytest.approx(values[5], rel=1e-12)
    assert many_by[0] == pytest.approx(by[5], rel=1e-12)
    without = ResponseModel.from_json(fitted.to_json())
    without.bends_ = None

    assert trust.error > 0.1
    assert (values.std(axis=0) > 1.05 * without.draws_value_and_gradient(mixture)[0].std(axis=0)).all()
    assert fitted.draws_value_and_gradient(BASE)[0] == pytest.approx(without.draws_value_and_gradient(BASE)[0])
