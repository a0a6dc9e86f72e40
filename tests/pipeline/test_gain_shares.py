"""Who makes the gain of an objective."""

from __future__ import annotations

import numpy as np
import pytest

from ideal_proxy.config import parse_config
from ideal_proxy.pipeline.gain_shares import contributions, objective_notes
from ideal_proxy.pipeline.outcome import _unjudged

RELATIVE = np.array([0.90, 1.04, 0.98])
NAMES = ["maths", "code", "safety"]


def test_contributions_add_up_to_the_objective():
    mean = contributions(RELATIVE, "mean", [1, 1, 1])
    assert mean == pytest.approx([0.1 / 3, -0.04 / 3, 0.02 / 3])
    assert mean.sum() == pytest.approx(1 - RELATIVE.mean())
    weighted = contributions(RELATIVE, "weighted", [1, 3, 0])
    assert weighted == pytest.approx([0.1 / 4, -0.12 / 4, 0.0])
    assert contributions(RELATIVE, "mean", [1, 3, 0]) == pytest.approx(mean), "weights count under `weighted` alone"
    assert contributions(RELATIVE, "worst", [1, 1, 1]) == pytest.approx([0, -0.04, 0])


def notes(added, scored=(), losses=(1.0, 1.5, 2.0), kind="mean"):
    return objective_notes(NAMES, np.array(added), scored=list(scored), base_losses_J=np.array(losses), kind=kind)


def test_one_capability_that_decides_is_named():
    assert notes([0.03, -0.02, 0.01]) == [], "half of what moved"
    (found,) = notes([0.01, -0.05, 0.01])
    assert found.startswith("code decides the objective: 71%")
    assert notes([0.01, -0.05, 0.01], kind="worst") == []
    assert notes([0.0, 0.0, 0.0]) == []


def test_unlike_things_are_named():
    (found,) = notes([0.03, -0.02, 0.01], scored=["safety"])
    assert "losses and metrics (safety)" in found
    assert notes([0.03, -0.02, 0.01], scored=NAMES) == [], "all alike"
    (found,) = notes([0.03, -0.02, 0.01], losses=(0.1, 1.5, 0.9))
    assert "1% of maths (0.1 nats a token) counts as much as 1% of code (1.5)" in found
    assert notes([0.03, -0.02, 0.01], scored=["maths"], losses=(0.1, 1.5, 0.9))[0].startswith(
        "the objective averages l"
    )


def test_a_domain_that_shrinks_unseen_is_named():
    names = ("a", "b", "c")
    config = parse_config({
        "domains": [{"name": n, "path": "x"} for n in names], "capabilities": [{"name": "a", "path": "x"}],
    })  # fmt: skip

    def said(*changes: float) -> list[str]:
        return _unjudged(config, [{"name": n, "change": c} for n, c in zip(names, changes, strict=True)])

    assert said(-0.5, -0.05, 0.3) == [], "a is judged, b hardly changes, c grows"
    assert said(0.5, -0.4, -0.2)[0].startswith("no capability has rows of the kind of b (-40%), c (-20%), so what")
    alone = config.model_copy(update={"capabilities": (config.capabilities[0].model_copy(update={"name": "else"}),)})
    assert _unjudged(alone, [{"name": n, "change": -0.5} for n in names]) == [], "nothing says which is whose"
