"""A search with responses of its trained proxies: what they say, what the fit makes of them, stopped and resumed."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from builders import SMALL, run, without_times, write_small_search

from ideal_proxy.config import parse_config
from ideal_proxy.errors import UsageError
from ideal_proxy.gradients.records import ResponseMatrix
from ideal_proxy.pipeline.overrides import override
from ideal_proxy.pipeline.plan_cost import gradient_method

CAPABILITIES = ("strings", "formats")
SEARCH = ["search", "mix.yaml", "--gradients", "implicit", "--out"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gradients")
    write_small_search(folder, swarm={"runs": 6, "workers": 1})
    answer = run(*SEARCH, "run", cwd=folder)
    assert answer.returncode == 0, answer.stderr
    return folder, answer


def test_responses_point_from_each_domain_to_its_own_capability(finished):
    folder, _ = finished
    found = ResponseMatrix.load(folder / "run" / "responses.npz")
    assert (found.method, found.capabilities, found.domains) == ("implicit", CAPABILITIES, SMALL)
    for j, name in enumerate(CAPABILITIES):
        own = SMALL.index(name)
        assert found.M[j].argmin() == own
        assert found.M[j, own] < -2 * found.se[j, own]
        assert np.delete(found.M[j], own).max() > 0
    np.testing.assert_allclose(found.M.sum(1), 0, atol=1e-3 * np.abs(found.M).max())
    # They are of the proxies trained at base, not of any others, and were paid for.
    frame = pd.read_parquet(folder / "run" / "runs.parquet")
    estimates, design = frame[frame["role"] == "gradients"], frame[frame["role"] == "design"]
    columns = [f"rows/{name}" for name in SMALL]
    base = design[(design[columns] == estimates[columns].iloc[0]).all(axis=1)]
    assert set(estimates["seed"]) == set(base["seed"])
    result = json.loads((folder / "run" / "result.json").read_text())
    assert result["cost"]["gradient_passes"] == len(estimates) > 1
    assert 0 < result["cost"]["gradient_runs"] <= 1.6 * len(estimates)
    assert result["cost"]["runs"] + len(estimates) == len(frame)
    np.testing.assert_allclose(result["gradients"]["M"], found.M)


def test_the_terminal_says_what_they_earned(finished):
    folder, answer = finished
    result = json.loads((folder / "run" / "result.json").read_text())
    held_out = {each["trust"]: each["relative"] for each in result["gradients"]["held_out_error"]}
    assert held_out[None] == pytest.approx(1.0)
    assert len(held_out) == 5
    if result["gradients"]["used"]:
        assert held_out[result["gradients"]["trust"]] < 1
    assert f"Gradients (implicit) {'entered' if result['gradients']['used'] else 'were left out of'} the fit" in (
        " ".join(run("show", "--full", "run", cwd=folder).stdout.split())
    )
    assert all(len(line) <= 80 or line.startswith("Mixture file: /") for line in answer.stdout.splitlines())


def test_stopped_in_the_estimates_and_resumed_it_ends_with_the_same_numbers(finished):
    """As a kill leaves it: one estimate complete, of the other all but the marker, which comes last."""
    folder, _ = finished
    wanted = ResponseMatrix.load(folder / "run" / "responses.npz")
    stopped = folder / "stopped"
    shutil.copytree(folder / "run", stopped)
    for name in ("mixture.json", "result.json", "responses.npz", "runs.parquet"):
        (stopped / name).unlink()
    one = next(iter(sorted(stopped.glob("runs/*/responses.npz")))).parent
    (one / "complete").unlink()
    (one / "responses.npz").write_bytes(b"half")
    again = run(*SEARCH, "stopped", cwd=folder)
    assert again.returncode == 0, again.stderr
    assert (one / "complete").exists()
    found = ResponseMatrix.load(stopped / "responses.npz")
    np.testing.assert_array_equal(found.M, wanted.M)
    np.testing.assert_array_equal(found.se, wanted.se)
    assert without_times(stopped / "mixture.json") == without_times(folder / "run" / "mixture.json")


def test_auto_takes_gradients_where_runs_are_few():
    def method(domains: int, runs: int, gradients: str = "auto", **plan: Any) -> str:
        config = parse_config({
            "domains": [{"name": f"d{k}", "path": "x"} for k in range(domains)],
            "capabilities": [{"name": "c", "path": "x"}],
            "gradients": gradients,
        })  # fmt: skip
        plan = {
            "runs": runs,
            "parameters": 10_000_000,
            "trainable_parameters": None,
            "workers": 4,
            "memory": None,
        } | plan
        method, why = gradient_method(config, SimpleNamespace(**plan))
        assert ("GiB of memory" in why) == (not method and gradients == "auto" and runs <= domains + 1)
        return method

    assert [method(8, runs) for runs in (5, 6, 9, 10, 27)] == ["implicit", "implicit", "implicit", "", ""]
    assert method(3, 4) == "implicit"
    assert method(3, 5) == ""
    need = 2 * 10_000_000 * 68  # of the two seeds at once, with one capability
    assert method(8, 9, memory=1.01 * need) == "implicit"
    assert method(8, 9, memory=0.99 * need) == ""
    assert method(8, 9, memory=0.51 * need, workers=1) == "implicit"
    assert method(8, 9, memory=-1e9) == ""
    assert [method(8, 27, each) for each in ("none", "implicit", "unrolled")] == ["", "implicit", "unrolled"]


def test_an_unknown_method_is_refused():
    config = parse_config({
        "domains": [{"name": "d", "path": "x"}, {"name": "e", "path": "x"}],
        "capabilities": [{"name": "c", "path": "x"}],
    })  # fmt: skip
    with pytest.raises(UsageError, match="'hessian'"):
        override(config, gradients="hessian")
    assert override(config, gradients="implicit").gradients == "implicit"
