"""What there is to gain on a target: a fit of made-up target runs, and mixtures foretold from all others."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from builders import ROOT
from proof_tables import write_pool, write_predictions, write_runs

sys.path.insert(0, str(ROOT / "benchmarks"))
sys.path.insert(0, str(ROOT / "benchmarks/proof"))

import ceiling
import real
from peers.task import Task, in_the_box

from ideal_proxy.response import compare

NAMES = ("formats", "lists")  # of the demo; all formats and 0.3 of the lists are base
BASE = np.array([400.0, 400.0])
TOKENS = {"DoGE": [500.0, 300.0], "DoReMi": [500.0, 300.0], "RegMix": [310.0, 490.0], "ours": [180.0, 620.0]}


def losses(volumes, scale: float = 1.0) -> np.ndarray:
    """Lists are worth more than formats."""
    return scale * 3.0 * (1.0 + np.asarray(volumes) / 20.0) ** [-0.1, -0.3]


def record(folder, changed: dict[str, float]) -> None:
    """Write a table of proxies and two target runs of every mixture; some are changed by a factor."""
    rng = np.random.default_rng(0)
    pool = in_the_box(Task(BASE, BASE, BASE / 4.0, 2.0 * BASE), 8, 0)
    pool = np.vstack([BASE, BASE, pool])
    write_pool(
        folder, "demo", domains=NAMES, capabilities=NAMES, base_tokens=BASE.tolist(), before=[3.1, 3.1],
        volumes=pool.tolist(), seeds=[1, 2] * 5,
        losses=(losses(pool) * np.exp(0.001 * rng.standard_normal(pool.shape))).tolist(),
    )  # fmt: skip
    write_predictions(folder, "demo", mixtures={name: {"tokens": tokens} for name, tokens in TOKENS.items()})
    path = folder / "real_demo.jsonl"
    path.unlink(missing_ok=True)
    for name, tokens in {"base": BASE, **TOKENS}.items():
        runs = {
            seed: losses(tokens, 0.9) * changed.get(name, 1.0) * np.exp(0.001 * rng.standard_normal(2))
            for seed in (101, 102)
        }
        write_runs(path, {name: runs})


def recorded(folder, **changed: float) -> dict:
    """What the script finds where some mixtures' target runs are changed by a factor."""
    charged = {}

    def comparing(model, mixture, other, *, chosen=False, **options):
        charged[tuple(mixture.round(1).tolist())] = chosen
        return compare(model, mixture, other, chosen=chosen, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(real, "HERE", folder)
        patch.setattr(ceiling, "HERE", folder / "ceiling.py")
        patch.setattr("ideal_proxy.response.compare", comparing)
        record(folder, changed)
        return ceiling.one_suite("demo") | {"charged": charged}


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    return recorded(tmp_path_factory.mktemp("ceiling"))


def true_gain(tokens) -> float:
    return 100 * (1 - np.mean(losses(tokens) / losses(BASE)))


def test_a_mixture_is_foretold_without_its_own_runs_and_those_of_its_twin(told, tmp_path):
    other = recorded(tmp_path, DoGE=1.3, DoReMi=1.3)  # one mixture, found by two
    (before, seen), (after, changed) = ((of["left out"]["foretold"], of["left out"]["seen"]) for of in (told, other))
    for name in ("DoGE", "DoReMi"):
        assert before[name] == pytest.approx(true_gain(TOKENS[name]), abs=0.7)
        assert after[name] == pytest.approx(before[name], abs=1e-6)
        assert changed[name] < seen[name] - 20
    assert abs(after["RegMix"] - before["RegMix"]) > 0.1  # which had them to learn from
    assert other["left out"]["rmse"] > 10.0


def test_contenders_are_foretold_nearly_as_they_were_seen(told):
    left = told["left out"]
    assert set(left["foretold"]) == set(TOKENS)
    assert left["rmse"] < 1.0
    assert left["spearman"] > 0.9
    assert told["runs"] == 2 * (1 + len(TOKENS))
    assert told["best seen"][0] == "ours"
    assert told["best seen"][1] == pytest.approx(true_gain(TOKENS["ours"]), abs=0.5)


def test_the_best_mixture_gains_what_there_is_and_the_protected_one_raises_no_loss_by_more_than_it_may(told):
    free, protected = (np.array(told[name]["tokens"]) for name in ("free", "protected"))
    best = max(true_gain([800.0 - lists, lists]) for lists in np.linspace(100.0, 620.0, 53))
    assert [free.sum(), protected.sum()] == pytest.approx([800.0, 800.0], abs=0.2)
    assert true_gain(free) > best - 0.2
    assert 100 * told["free"]["base"][0] == pytest.approx(best, abs=1.0)
    limit = losses(BASE)[0] * 1.02
    assert losses(protected)[0] == pytest.approx(limit, rel=0.005)
    assert losses(free)[0] > limit * 1.02
    for name in ("free", "protected"):
        gain, low, high = told[name]["base"]
        assert low < gain < high


def test_what_the_fit_chose_pays_for_it_and_what_others_chose_does_not(told):
    chosen = {tuple(told[name]["tokens"]) for name in ("free", "protected")}
    assert told["charged"] == {**{tuple(tokens): False for tokens in TOKENS.values()}, **dict.fromkeys(chosen, True)}
