"""Refine on known surfaces: what is learned of the full-size model; steps gain, stay inside and are taken back."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ideal_proxy.errors import UserError
from ideal_proxy.gradients.records import Cost, ResponseMatrix
from ideal_proxy.mixture.file import CapabilityResult, DomainVolume, MixtureFile, load_mixture
from ideal_proxy.proxy.records import RowLosses, TrainSettings
from ideal_proxy.response.law import Volumes
from ideal_proxy.scaleup import refine
from ideal_proxy.scaleup.full_surface import Observed, fit_surface
from ideal_proxy.scaleup.model import ModelSpec
from ideal_proxy.scaleup.refine import Arm, Refiner, RefineSettings
from ideal_proxy.scaleup.run import RunLosses, RunSettings
from ideal_proxy.scaleup.size_law import SizeSurface
from ideal_proxy.scaleup.source import Drawn
from ideal_proxy.terminal import Reporter

NAMES, TARGETS = ("maths", "code", "trust"), ("maths", "code")
AVAILABLE = np.array([4000.0, 4000.0, 4000.0])
BASE = np.array([1000.0, 1000.0, 1000.0])
CENTRE = np.array([1300.0, 1250.0, 450.0])
ROWS = 400  # reference rows of a capability


def surface(worth: list[list[float]]) -> SizeSurface:
    share = 0.5 / 5.5
    head = [np.log(share / (1 - share)), np.log(3.0), np.log(0.8), 0.0]
    theta = np.array([[*head, *np.log(row)] for row in worth])
    rng = np.random.default_rng(1)
    draws = theta + 0.05 * rng.standard_normal((48, *theta.shape))
    volumes = Volumes(1000.0, 0.0, AVAILABLE, np.full(3, 5.0))
    return SizeSurface(theta, draws, np.tile([0.0, 6.0], (2, 1)), volumes, np.full(2, 0.004))


LAW = surface([[2.0, 0.3, 0.2], [0.2, 1.0, 0.3]])
# The full-size model: trust has come to help code, and maths helps itself less than the proxies said.
TRUTH = surface([[1.2, 0.3, 0.2], [0.2, 1.0, 1.6]])


def relative(law: SizeSurface, v: np.ndarray) -> np.ndarray:
    """∂log L/∂log v, (J, D)."""
    value, slope = law.value_and_gradient(v)
    return slope * v / value[:, None]


def centred(values: np.ndarray, v: np.ndarray) -> np.ndarray:
    return values - values.sum(axis=1, keepdims=True) * v / v.sum()


def gradients(v: np.ndarray, *, noise: float = 0.0, seed: int = 0, sign: float = 1.0) -> ResponseMatrix:
    """What implicit influence gives: the true mixing response in nats, on a scale of its own a capability."""
    rng = np.random.default_rng(seed)
    nats = centred(relative(TRUTH, v), v) * TRUTH.value_and_gradient(v)[0][:, None]
    wild = sign * nats * np.array([[23.0], [35.0]]) + noise * rng.standard_normal((2, 3))
    share = v / v.sum()
    return ResponseMatrix("implicit", NAMES, TARGETS, wild, np.full((2, 3), noise), share, share, Cost(1, 1.0))


def learned(**more: Any) -> Any:
    options: dict[str, Any] = {"centre": CENTRE, "level": TRUTH.value_and_gradient(CENTRE)[0], "base": BASE}
    return fit_surface(more.pop("law", LAW), noise=np.full(2, 0.004), **options | more)


def error(found: Any) -> float:
    return float(np.abs(centred(relative(found, CENTRE), CENTRE) - centred(relative(TRUTH, CENTRE), CENTRE)).mean())


def seen_at(v: np.ndarray, noise: float = 0.002) -> Observed:
    ratio = np.log(TRUTH.value_and_gradient(v)[0] / TRUTH.value_and_gradient(CENTRE)[0])
    return Observed(v, ratio, np.full(2, noise))


def test_gradient_of_the_surface_is_exact_and_the_centre_is_what_was_seen() -> None:
    found = learned(responses=gradients(CENTRE), observed=[seen_at(BASE)])
    np.testing.assert_allclose(found.value_and_gradient(CENTRE)[0], found.level)
    v = np.array([900.0, 1500.0, 600.0])
    draws, by = found.draws_value_and_gradient(v)
    for i in range(3):
        step = np.eye(3)[i] * 1e-2
        numeric = (found.value_and_gradient(v + step)[0] - found.value_and_gradient(v - step)[0]) / 2e-2
        np.testing.assert_allclose(found.value_and_gradient(v)[1][:, i], numeric, rtol=1e-5)
        numeric = (found.draws_value_and_gradient(v + step)[0] - found.draws_value_and_gradient(v - step)[0]) / 2e-2
        np.testing.assert_allclose(by[:, :, i], numeric, rtol=1e-4)
    assert draws.std(axis=0).min() > 0


def test_gradients_of_any_scale_correct_the_law_and_noise_does_not_spoil_it() -> None:
    law = error(LAW)
    with_gradients = learned(responses=gradients(CENTRE))
    assert with_gradients.scale is not None
    assert error(with_gradients) < 0.75 * law, "half of the way, since nothing tells which of the two is wrong"
    assert "agree with the law" in with_gradients.why
    noisy = [error(learned(responses=gradients(CENTRE, noise=3.0, seed=n))) for n in range(20)]
    assert np.mean(noisy) < 1.25 * law
    turned = learned(responses=gradients(CENTRE, sign=-1.0))
    assert turned.scale is None
    assert "contradict the law" in turned.why
    assert error(turned) == pytest.approx(error(learned()), rel=1e-9)


def test_full_size_runs_correct_it_too() -> None:
    runs = [seen_at(BASE), seen_at(np.array([1000.0, 1000.0, 1000.0]) * [1.5, 0.8, 0.7])]
    both = learned(responses=gradients(CENTRE), observed=runs)
    assert error(both) < error(learned(responses=gradients(CENTRE)))
    far = TRUTH.value_and_gradient(BASE)[0] / TRUTH.value_and_gradient(CENTRE)[0]
    told = both.value_and_gradient(BASE)[0] / both.level
    np.testing.assert_allclose(told, far, atol=0.02)
    assert np.abs(told - far).max() < np.abs(learned().value_and_gradient(BASE)[0] / both.level - far).max()
    assert both.draws.std(axis=0).mean() < learned(responses=gradients(CENTRE)).draws.std(axis=0).mean()


def test_without_a_law_the_runs_set_the_scale() -> None:
    with pytest.raises(UserError, match="neither a law"):
        learned(law=None, responses=gradients(CENTRE))
    found = learned(law=None, responses=gradients(CENTRE), observed=[seen_at(BASE)])
    assert "agree with the full-size runs" in found.why
    right = np.corrcoef(
        centred(relative(found, CENTRE), CENTRE).ravel(), centred(relative(TRUTH, CENTRE), CENTRE).ravel()
    )
    assert right[0, 1] > 0.9
    assert error(found) < float(np.abs(centred(relative(TRUTH, CENTRE), CENTRE)).mean()), "better than no response"


# ------------------------------------------------------------------ the iteration, with a trainer made of the truth


@dataclass
class Bench:
    """A `Refiner` whose full-size model is TRUTH plus noise."""

    folder: Path
    noise: float = 0.0001
    constraints: dict[str, Any] = field(default_factory=dict)
    responses: Any = gradients
    trained: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)
    spoil: frozenset[str] = frozenset()

    def mixture(self) -> MixtureFile:
        limits = {"budget": "keep", "budget_unit": "tokens", "repeat_cap": 4.0} | self.constraints
        return MixtureFile(
            domains=[
                DomainVolume(
                    name=name, source="x", fingerprint="0" * 64, available=4000, rows=int(v), tokens=int(10 * v),
                    base_rows=int(b),
                )
                for name, v, b in zip(NAMES, CENTRE, BASE, strict=True)
            ],
            capabilities=[CapabilityResult(name=name) for name in TARGETS],
            provenance={"constraints": limits},
        )  # fmt: skip

    def losses(self, name: str, v: np.ndarray, seed: int) -> RunLosses:
        rng = np.random.default_rng([seed, *name.encode()])
        level = TRUTH.value_and_gradient(v)[0] * (1 + 0.01 * seed) * (1 + self.noise * rng.standard_normal(2))
        level *= 1.05 if name in self.spoil else 1.0
        after = {
            target: RowLosses(np.full(ROWS, x * 10.0), np.full(ROWS, 10))
            for target, x in zip(TARGETS, level, strict=True)
        }
        return RunLosses(after, after, {})

    def train(self, name: str, volumes: Any) -> Arm:
        v = np.asarray(volumes, dtype=float)
        self.trained.append((name, tuple(int(x) for x in v)))
        runs = tuple(self.losses(name, v, seed) for seed in range(3))
        drawn = Drawn(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), v.astype(np.int64))
        return Arm(v.astype(np.int64), runs, (self.folder,) * 3, (drawn,) * 3)

    def run(self, iterations: int, monkeypatch: pytest.MonkeyPatch, law: Any = LAW) -> dict[str, Any]:
        mixture = self.mixture()
        monkeypatch.setattr(refine, "usable_law", lambda _: law)
        monkeypatch.setattr(Refiner, "_responses", lambda _, parent, __: self.responses(parent.volumes.astype(float)))

        class Data:
            names, capabilities, domains = NAMES, TARGETS, ()
            verify = (np.arange(ROWS) % 2 == 0,) * 2

        monkeypatch.setattr(Refiner, "_tokens", lambda _: np.full(3, 10.0))
        refiner = Refiner(
            mixture=mixture, data=Data(), spec=ModelSpec(name="m"), template=None,  # type: ignore[arg-type]
            run=RunSettings(train=TrainSettings(learning_rate=1e-3, batch_rows=8), context=8, device="cpu"),
            settings=RefineSettings(iterations=iterations, step=0.15, rows=10),
            train=self.train, folder=self.folder / "refine", reporter=Reporter(quiet=True), judged={},
            first=contextlib.nullcontext,
        )  # fmt: skip
        return refiner.refine(self.train("mixture", CENTRE), self.train("base", BASE))


def truth_gain(v: Any, against: np.ndarray = CENTRE) -> float:
    ratio = TRUTH.value_and_gradient(np.asarray(v, dtype=float))[0] / TRUTH.value_and_gradient(against)[0]
    return 1 - float(ratio.mean())


def best_gain() -> float:
    """The largest true gain at the centre's total, by a grid."""
    first, second = np.meshgrid(np.arange(50, 2950, 25.0), np.arange(50, 2950, 25.0))
    grid = np.stack([first, second, 3000 - first - second], axis=-1).reshape(-1, 3)
    return max(truth_gain(v) for v in grid if v[2] > 0)


def test_steps_gain_keep_the_budget_and_stay_near(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tmp_path)
    found = bench.run(4, monkeypatch)
    assert found["best"] == 4
    assert [entry["accepted"] for entry in found["iterations"]] == [True] * 4
    volumes = [np.array(rows, dtype=float) for name, rows in bench.trained if name.startswith("refined")]
    gains = [truth_gain(v) for v in volumes]
    assert gains == sorted(gains)
    assert gains[-1] > 0.75 * best_gain(), "most of the way to the true optimum, which the law alone does not see"
    alone = Bench(tmp_path / "alone", responses=lambda v: gradients(v, sign=-1.0))  # left out, as they contradict
    alone.run(4, monkeypatch)
    assert max(truth_gain(v) for name, v in alone.trained if name != "base") < gains[-1]
    for before, v in zip([CENTRE, *volumes], volumes, strict=False):
        assert v.sum() == 3000, "the parent's total"
        assert np.abs(np.log(v / before)).max() < 0.15 + 1e-2
    chosen = load_mixture(tmp_path / "refine" / "mixture.json")
    assert tuple(d.rows for d in chosen.domains) == bench.trained[-1][1]
    assert chosen.domains[0].change == pytest.approx(chosen.domains[0].rows / 1000 - 1)
    first = found["iterations"][0]
    assert first["observed"]["gain_over_base"]["value"] == pytest.approx(truth_gain(volumes[0], BASE), abs=0.004)
    predicted = first["predicted"]["gain_over_parent"]
    assert predicted["lower"] < truth_gain(volumes[0]) < predicted["upper"]
    assert any(text.startswith("trust region: trust <= ") for text in first["active"])
    assert "gains +" in found["sentence"]


def test_noise_for_gradients_would_not_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same law and runs with the gradients of other domains gain less in the first step."""
    first: dict[str, float] = {}
    for name, order in (("true", [0, 1, 2]), ("shuffled", [2, 0, 1])):

        def moved(v: np.ndarray, order: list[int] = order) -> ResponseMatrix:
            found = gradients(v)
            return ResponseMatrix(
                "implicit", NAMES, TARGETS, found.M[:, order], found.se, found.q, found.w, found.cost
            )  # fmt: skip

        bench = Bench(tmp_path / name, responses=moved)
        bench.run(1, monkeypatch)
        first[name] = truth_gain(bench.trained[-1][1])
    assert first["true"] > first["shuffled"] + 0.003


def test_the_files_limits_hold_in_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {
        "groups": ["trust <= 25 %"], "must_not_drop": {"maths": 0.02}, "lower": {"code": "980 rows"},
    }  # fmt: skip
    bench = Bench(tmp_path, constraints=limits)
    bench.run(3, monkeypatch)
    assert len(bench.trained) > 2
    for name, rows in bench.trained:
        if name.startswith("refined"):
            assert rows[2] <= 0.25 * 3000 + 1
            assert rows[1] >= 980
    pinned = Bench(tmp_path / "pinned", constraints={"upper": {"trust": "450 rows"}, "lower": {"trust": "450 rows"}})
    pinned.run(2, monkeypatch)
    assert {rows[2] for name, rows in pinned.trained if name != "base"} == {450}


def test_a_step_that_did_not_gain_is_taken_back_and_the_region_halved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path, spoil=frozenset({"refined-1"}))
    found = bench.run(2, monkeypatch)
    one, two = found["iterations"]
    assert not one["accepted"]
    assert one["trust_region"] == 0.15
    assert two["trust_region"] == 0.075
    assert two["parent"]["iteration"] == 0
    history = load_mixture(tmp_path / "refine" / "2" / "mixture.json").provenance["refine"]
    assert [entry["iteration"] for entry in history] == [1, 2], "the file tells of the rejected step too"
    assert history[0]["observed"]["gain_over_parent"]["upper"] < 0
    all_bad = Bench(tmp_path / "bad", spoil=frozenset({"refined-1", "refined-2"}))
    found = all_bad.run(2, monkeypatch)
    assert found["best"] == 0
    assert "none of 2 iteration(s) gained" in found["sentence"]
    assert [d.rows for d in load_mixture(tmp_path / "bad" / "refine" / "mixture.json").domains] == CENTRE.tolist()


def test_where_no_step_is_allowed_the_iteration_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = {"lower": {n: f"{v:.0f} rows" for n, v in zip(NAMES, CENTRE, strict=True)}}
    bench = Bench(tmp_path, constraints=held)
    found = bench.run(3, monkeypatch)
    assert found["iterations"] == []
    assert [name for name, _ in bench.trained] == ["mixture", "base"]
    assert "none was trained" in found["sentence"]
    again = Bench(tmp_path / "none", constraints={"groups": ["trust <= 1 %"]})
    assert again.run(1, monkeypatch)["iterations"] == []


def test_a_killed_iteration_goes_on_with_the_same_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Bench(tmp_path / "whole")
    expected = whole.run(3, monkeypatch)
    broken = Bench(tmp_path / "broken")
    with monkeypatch.context() as patch:
        train = broken.train

        def die(name: str, volumes: Any) -> Arm:
            if name == "refined-2":
                raise KeyboardInterrupt
            return train(name, volumes)

        patch.setattr(broken, "train", die)
        with pytest.raises(KeyboardInterrupt):
            broken.run(3, monkeypatch)
    stamp = (tmp_path / "broken/refine/2/mixture.json").read_bytes()
    found = broken.run(3, monkeypatch)
    assert [e["rows"] for e in found["iterations"]] == [e["rows"] for e in expected["iterations"]]
    assert stamp != b""
    assert found["best"] == expected["best"]
