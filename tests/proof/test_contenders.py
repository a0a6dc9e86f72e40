"""The proof's contenders read one table: each proposes what its peer makes of it, and ours pays for choosing."""

from __future__ import annotations

import itertools
import json
import sys

import numpy as np
import pytest
from builders import ROOT
from proof_tables import write_pool

sys.path.insert(0, str(ROOT / "benchmarks"))
sys.path.insert(0, str(ROOT / "benchmarks/proof"))

import real
from peers import admire, fixed, olmix, ours, regmix
from peers.task import Runs, Task, in_the_box

from ideal_proxy.response.gradient_rows import Responses

DOMAINS, CAPABILITIES = ("formats", "lists", "facts"), ("facts", "lists", "formats")
BASE = np.array([500.0, 300.0, 100.0])  # of the demo's lists 0.3 is base, of its facts 0.1, of all else everything
TASK = Task(BASE, np.array([500.0, 1000.0, 1000.0]), BASE / np.e**2, np.array([2000.0, 300 * np.e**2, 100 * np.e**2]))
BEFORE = [3.2, 3.4, 3.1]
GRADIENTS = {
    "matrix": [[0.10, 0.06, -0.16], [0.12, -0.14, 0.02], [-0.13, 0.10, 0.03]], "error": [[0.01] * 3] * 3,
    "share": [5 / 9, 3 / 9, 1 / 9],
}  # fmt: skip


def recorded_runs() -> Runs:
    volumes = np.vstack([BASE, BASE, in_the_box(TASK, 16, 0)]).round(1)
    own = volumes[:, [2, 1, 0]]
    noise = 0.01 * np.random.default_rng(1).standard_normal(own.shape)
    losses = 3.0 * (1 + own / 50.0) ** [-0.1, -0.1, -0.15] * np.exp(noise)
    return Runs(volumes, losses.round(5), np.arange(len(own)) % 2 + 1)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The mixtures that `real.py` makes of a recorded table; the table; and what trained proxies of its own."""
    pytest.importorskip("lightgbm")
    folder, runs = tmp_path_factory.mktemp("proof"), recorded_runs()
    write_pool(
        folder, "demo", domains=DOMAINS, capabilities=CAPABILITIES, base_tokens=BASE.tolist(), before=BEFORE,
        volumes=runs.volumes.tolist(), losses=runs.losses.tolist(), seeds=runs.seeds.tolist(),
    )  # fmt: skip
    trained = {"DoReMi": [400.0, 300.0, 200.0], "OP-Mix": [300.0, 500.0, 100.0], real.RESPONSES: GRADIENTS}
    (folder / "real_demo_online.json").write_text(json.dumps(trained), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(real, "HERE", folder)
        return *real.mixtures("demo"), runs


PEERS = {
    "all rows once": lambda runs: fixed.rows_once(TASK),
    "equal rows": lambda runs: fixed.equal_rows(TASK),
    "temperature 2": lambda runs: fixed.temperature(TASK),
    "best of random": lambda runs: runs.volumes[(runs.losses / runs.losses.mean(axis=0)).mean(axis=1).argmin()],
    "RegMix": lambda runs: regmix.propose(TASK, runs, 0),
    "RegMix, mixtures in the box": lambda runs: regmix.propose_in_the_box(TASK, runs, 0),
    "Olmix, KL 0.05": lambda runs: olmix.propose(TASK, runs, 0, kl=0.05),
    "Olmix, KL 0.005": lambda runs: olmix.propose(TASK, runs, 0, kl=0.005),
    "GP, lowest mean": lambda runs: admire.propose(TASK, runs, 0),
    "DoReMi": lambda runs: np.array([400.0, 300.0, 200.0]),
    "OP-Mix": lambda runs: np.array([300.0, 500.0, 100.0]),
    "ours": lambda runs: our_best(runs),
    "ours, protected": lambda runs: our_best(runs, protect=0.02),
    "ours, with gradients": lambda runs: our_best(runs, responses=Responses(BASE, *map(np.array, GRADIENTS.values()))),
}


def our_best(runs: Runs, protect: float | None = None, **more) -> np.ndarray:
    fitting = {"own": np.array([2, 1, 0]), "baseline_loss": np.array(BEFORE), **more}
    return ours.Ours(protect=protect, fitting=fitting).propose(TASK, runs, 0)[1]


@pytest.mark.parametrize("name", PEERS)
def test_each_contender_proposes_what_its_peer_makes_of_the_table(made, name):
    mixtures, _, _, runs = made
    assert mixtures[name] == pytest.approx(PEERS[name](runs), rel=1e-6)


def test_no_contender_is_left_out_and_no_two_are_the_same(made):
    mixtures, task, _, _ = made
    assert set(mixtures) == set(PEERS)
    for part in ("base", "available", "lower", "upper"):
        assert getattr(task, part) == pytest.approx(getattr(TASK, part))
    for one, two in itertools.combinations({"base": BASE, **mixtures}.values(), 2):
        assert np.abs(one - two).max() > 1.0


def test_our_fit_is_told_which_domain_is_a_capability_s_own():
    told = real.fitting_of({"domains": DOMAINS, "capabilities": ("facts", "lists", "sums"), "before": BEFORE})
    assert told["own"].tolist() == [2, 1, -1]
    assert told["baseline_loss"].tolist() == BEFORE


class Doubtful:
    """A fit that promises 0.8 of base's loss at twice the volume, with an error as large as that gain."""

    residual_scale_ = np.array([1e-9])

    def value_and_gradient(self, v):
        return np.array([1.0 - 0.2 * (v[0] - 1.0)]), None

    def draws_value_and_gradient(self, v):
        return self.value_and_gradient(v)[0] + 0.2 * (v[0] - 1.0) * np.array([[1.0], [-1.0]] * 50), None


@pytest.mark.parametrize(
    ("name", "gain"),
    [("ours", 0.1), ("ours, protected", 0.1), ("ours, with gradients", 0.1), ("RegMix", 0.2), ("DoReMi", 0.2)],
)
def test_what_our_own_fit_chose_is_promised_less_and_what_others_chose_in_full(name, gain):
    task = Task(np.ones(1), np.ones(1), np.ones(1), 2 * np.ones(1))
    told = real.predicted(Doubtful(), task, np.array([2.0]), name, 3, ["facts"], (0.5, 0.0, 0.0))
    assert told["proxy_gain"][0] == pytest.approx(gain)
    assert told["gain"][0] == pytest.approx(gain / 2)  # the step in size takes half
    assert told["ratios"]["facts"][0] == pytest.approx(np.sqrt(0.8), abs=1e-5)
