"""Another round is run where it is worth it, and a finished search goes on when more is asked of it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ideal_proxy.config import load_config
from ideal_proxy.domains import Domains
from ideal_proxy.limits import Limits
from ideal_proxy.optimizer import Constraints, Limit, Objective, Problem, optimize
from ideal_proxy.pipeline.rounds import DRAWS, LEARNED, LEAST, Outlook, look_ahead, next_opening, why_again
from ideal_proxy.response import ResponseModel, Yardstick
from ideal_proxy.store import read_json
from tests.builders import config_of, run

CENTRES = np.array([[90.0, 110.0], [120.0, 80.0], [100.0, 100.0], [100.0, 100.0]])
HERE = np.array([100.0, 100.0])


class Bowl:
    """A draw of a response of two capabilities, least at a place of its own: L = 1 + |v − c|² / 10⁴."""

    residual_scale_ = np.full(2, 0.01)
    is_convex_ = np.array([True, True])

    def __init__(self, centre: np.ndarray) -> None:
        self.centre = centre

    def value_and_gradient(self, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        away = v - self.centre
        return np.full(2, 1 + away @ away / 1e4), np.tile(2 * away / 1e4, (2, 1))

    def draws_value_and_gradient(self, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        value_J, by_JD = self.value_and_gradient(v)
        return value_J[None], by_JD[None]


class Bowls:
    n_draws = len(CENTRES)

    def draw(self, number: int) -> Bowl:
        return Bowl(CENTRES[number])


def constraints(base: np.ndarray) -> Constraints:
    domains = Domains(names=("a", "b"), base=base, available=np.full(2, 500.0))
    problem = Problem(domains=domains, capabilities=("a", "b"), kinds=())
    limits = Limits(upper={}, budget=config_of(["a", "b"], ["a"], budget={"mode": "free"}).limits.budget)
    return Constraints(problem=problem, limits=limits, trust_region=None)


def optimum(*binding: Limit) -> Any:
    return SimpleNamespace(binding=binding)


def test_the_regret_is_what_draws_would_gain_by_their_own_choice() -> None:
    base = np.array([150.0, 50.0])
    model: Any = Bowls()
    found = look_ahead(model, Objective(), constraints(base), Yardstick.of_losses(2), HERE)
    worst = ((base - CENTRES) ** 2).sum(axis=1) / 1e4 + 1
    lost = ((HERE - CENTRES) ** 2).sum(axis=1) / 1e4 / worst
    assert found.regret == pytest.approx(lost.mean(), abs=1e-5)
    assert found.points[0] == pytest.approx(CENTRES[1], abs=0.5), "the draw that loses most comes first"
    assert found.points[1] == pytest.approx(CENTRES[0], abs=0.5)
    assert why_again(optimum(), found) == f"knowing the response better may gain {LEARNED * lost.mean():.1%} more"


def test_a_round_that_promises_nothing_is_not_run() -> None:
    little = Outlook(0.9 * LEAST / LEARNED, np.zeros((0, 2)))
    assert why_again(optimum(), little) is None
    edge = why_again(optimum(Limit.TRUST_REGION), little)
    assert edge == "the proposal sits on the edge of what the swarm explored"
    assert why_again(optimum(Limit.TRUST_REGION), little, gained=2 * LEAST) == edge
    assert why_again(optimum(Limit.TRUST_REGION), little, gained=0.5 * LEAST) is None, "the last round brought nothing"


def result(opening: int, seeds: int, rows: list[int], rounds: int, looks: list[int]) -> dict[str, Any]:
    return {
        "check": {"opening": opening, "seeds_of": seeds, "looks": looks},
        "domains": [{"proposal_rows": n} for n in rows], "rounds": [{}] * rounds,
    }  # fmt: skip


def test_every_new_look_at_the_verify_rows_is_counted() -> None:
    rows = np.array([5, 7])
    assert next_opening([], rows, (3, 5), 1) == (0, 0)
    first = result(0, 0, [5, 7], 1, [3, 5])
    assert next_opening([first], rows, (3, 5), 1) == (0, 0), "nothing new is looked at"
    assert next_opening([first], rows, (3, 5, 8), 1) == (1, 0), "more pairs of the same check"
    assert next_opening([first], rows, (3, 5), 2) == (1, 1), "the fit has seen the runs of the check before"
    assert next_opening([first], rows + 1, (3, 5), 1) == (1, 1), "another proposal has fresh seeds"
    second = result(1, 0, [5, 7], 1, [3, 5, 8])
    assert next_opening([first, second], rows + 1, (3, 5), 2) == (2, 2)


def test_a_finished_search_goes_on_when_more_is_asked_of_it(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole / "run", folder)
    shutil.copy(whole / "mix.yaml", tmp_path)
    before = json.loads((folder / "result.json").read_text())
    assert (before["cost"]["rounds"], before["check"]["opening"]) == (1, 0)
    shown = run("search", "mix.yaml", "--out", "run", cwd=tmp_path)
    assert "is finished; showing its result" in shown.stderr
    assert not list(folder.glob("result-*.json"))
    (folder / "report.html").write_text("of the first result")
    more = run("search", "mix.yaml", "--out", "run", "--rounds", "2", "--workers", "1", cwd=tmp_path)
    assert more.returncode == 0, more.stderr
    assert "is finished; going on with up to 2 rounds" in more.stderr
    assert "the report of the earlier result was taken away" in more.stderr
    assert not (folder / "report.html").exists(), "it would stand beside another result"
    after = json.loads((folder / "result.json").read_text())
    assert read_json(folder / "result-1.json") == before
    assert load_config(folder / "config.yaml").rounds == 2
    if after["cost"]["rounds"] == 1:  # one was enough: the same answer, and nothing was looked at again
        assert "no further round" in more.stderr
        assert after["verdict"] == before["verdict"]
        return
    assert after["rounds"][0] == before["rounds"][0], "the first round stays as it was"
    assert (after["check"]["opening"], after["verdict"]["level"]) == (1, 0.975)
    assert "the verify rows were opened before (1 time)" in more.stderr
    runs = len(list((folder / "runs").iterdir()))
    again = run("search", "mix.yaml", "--out", "run", "--rounds", "2", "--workers", "1", cwd=tmp_path)
    assert "showing its result" in again.stderr
    assert len(list((folder / "runs").iterdir())) == runs


def test_rounds_stop_where_more_runs_would_gain_nothing() -> None:
    """A flat response stops after few runs, a steep one that few runs tell goes on, and stops when many told it."""
    base, centre = np.array([150.0, 50.0]), np.array([60.0, 140.0])

    def outlook(steep: float, count: int, noise: float) -> Outlook:
        rng = np.random.default_rng(3)
        v = base * np.exp(rng.uniform(-1.5, 1.5, (count, 2)))
        x = v / centre
        losses = 1.0 + steep * np.stack([(1.0 + x[:, 0]) ** -0.5, (1.0 + 2.0 * x[:, 1]) ** -0.5], axis=1)
        losses *= np.exp(noise * rng.standard_normal(losses.shape))
        model = ResponseModel(base=base, n_starts=1, n_draws=DRAWS).fit(v, losses)
        limits = replace(constraints(base), trust_region=1.5)
        found = optimize(model, Objective(), limits, n_starts=1)
        return look_ahead(model, Objective(), limits, Yardstick.of_losses(2), found.volumes)

    flat, steep, told = outlook(0.0, 8, 0.001), outlook(2.0, 8, 0.03), outlook(2.0, 60, 0.001)
    assert why_again(optimum(), flat) is None
    assert why_again(optimum(), steep) is not None
    assert steep.regret > 4 * told.regret
    assert why_again(optimum(), told) is None
