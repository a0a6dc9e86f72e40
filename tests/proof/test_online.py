"""Contenders that train proxies of their own move towards the domain that is wanted: proxies of seconds."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from builders import ROOT, VOCABULARY, make_rows

sys.path.insert(0, str(ROOT / "benchmarks"))
sys.path.insert(0, str(ROOT / "benchmarks/proof"))

import online
from peers.task import Task
from safetensors.torch import save_file

from ideal_proxy.proxy import model as proxies
from ideal_proxy.proxy.records import TrainSettings
from ideal_proxy.proxy.training import train
from ideal_proxy.swarm.context import MODEL


class Tiny:
    """Two domains, twos and fives, and a reference model that has learned one of them."""

    base = np.array([180.0, 180.0])
    settings = TrainSettings(learning_rate=5e-3, batch_rows=16)

    def __init__(self, learned: int = 0, wanted: int = 0) -> None:
        self.domains = {"twos": make_rows(200, 2, 0), "fives": make_rows(200, 5, 1)}
        self.references = {"wanted": make_rows(40, (2, 5)[wanted], 2)}
        self.learned = learned

    def start(self):
        return proxies.build_proxy("0.1M", VOCABULARY, 32, 0)

    def base_model(self, seed):
        model, rows = self.start(), np.tile(np.arange(200), 2)
        train(model, (np.full(400, self.learned), rows), list(self.domains.values()), self.settings)
        return model


@pytest.mark.parametrize("learned", [0, 1])
def test_doremi_gives_more_to_the_domain_on_which_the_proxy_is_behind_its_reference(learned):
    shares = online.doremi(Tiny(learned))
    assert shares.sum() == pytest.approx(1.0)
    assert shares[learned] > 0.6
    assert (shares > 0).all()


@pytest.mark.parametrize("wanted", [0, 1])
def test_doge_gives_more_to_the_domain_whose_gradient_is_that_of_the_reference_rows(wanted):
    shares = online.doge(Tiny(wanted=wanted))
    assert shares.sum() == pytest.approx(1.0)
    assert shares[wanted] > 0.6


def test_doremi_s_proxy_learns_each_domain_by_its_weight(monkeypatch):
    """Losses that do not move: by hand, one domain is 1 nat behind, and the proxy's gradient is the weighted sum."""
    weight, seen = torch.nn.Parameter(torch.ones(())), []
    losses = {"proxy": torch.tensor([2.0, 1.0, 1.0]), "reference": torch.tensor([1.0, 1.0, 3.0])}

    class Stepper:
        rows, steps, model = [0, 1, 2], 2, "proxy"

        def __init__(self, problem, seed):
            pass

        def batches(self, rows):
            return rows

        def loss(self, model, batch):
            return weight * losses[model][batch]

        def apply(self, number):
            seen.append(float(weight.grad))
            weight.grad = None

    monkeypatch.setattr(online, "Stepper", Stepper)
    problem = SimpleNamespace(base_model=lambda seed: SimpleNamespace(eval=lambda: "reference"))
    shares = online.doremi(problem)
    first = np.array([np.e, 1.0, 1.0]) / (np.e + 2.0)
    second = np.array([np.e**2, 1.0, 1.0]) / (np.e**2 + 2.0)
    assert shares == pytest.approx((first + second) / 2, abs=2e-3)  # smoothing of a thousandth
    assert seen == pytest.approx([4 / 3, 1 + first[0]], abs=2e-3)


class Memory(torch.nn.Module):
    """A model whose weights are the rows that it was trained on."""

    def __init__(self, rows):
        super().__init__()
        self.rows = torch.nn.Parameter(torch.tensor(rows, dtype=torch.float64))


def test_op_mix_asks_the_blend_that_stands_for_a_mixture(tmp_path, monkeypatch):
    """Blended memories are the mixtures themselves; only the first domain helps, and the last hurts."""
    base, asked = np.array([100.0, 100.0, 100.0]), []

    def spec(rows, seed):
        return SimpleNamespace(id="-".join(f"{n:g}" for n in rows))

    def losses(runs):
        for rows, seed in runs:
            place = tmp_path / "runs" / spec(rows, seed).id / MODEL
            place.parent.mkdir(parents=True, exist_ok=True)
            save_file({"rows": torch.tensor(rows, dtype=torch.float64)}, place)

    def evaluate(model, part):
        rows = model.rows.detach().numpy().copy()
        asked.append(rows)
        return SimpleNamespace(mean=1.0 + np.exp(-4.0 * rows[0] / 300.0) + rows[2] / 300.0)

    monkeypatch.setattr(proxies, "evaluate", evaluate)
    problem = SimpleNamespace(
        run_dir=tmp_path, spec=spec, losses=losses, start=lambda: Memory([0.0, 0.0, 0.0]), references={"one": None}
    )  # fmt: skip
    task = Task(base, 3 * base, base / 4, 3 * base)
    found = online.op_mix(SimpleNamespace(problem=problem, task=task, rows=np.round))
    assert found.sum() == pytest.approx(300.0)
    assert found[0] > 150.0
    assert found[2] < 60.0
    assert np.sum(asked, axis=1) == pytest.approx(300.0, abs=2.0)
    first = np.array(asked[:9])  # from little of the first domain to much of it, in equal steps
    assert first[:, 0] == pytest.approx(np.linspace(30.0, 250.0, 9), abs=1.0)
