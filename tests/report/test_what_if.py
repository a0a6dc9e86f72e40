"""`what-if` predicts what the model predicts, for the mixture that was meant, and says when it guesses."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import finished_run
import numpy as np
import pytest
from finished_run import BASE, CAPABILITIES, DOMAINS, PROPOSAL, TOKENS

from ideal_proxy.cli import report as cli_report
from ideal_proxy.errors import UsageError, UserError
from ideal_proxy.mixture import load_mixture
from ideal_proxy.report.curves import predict
from ideal_proxy.report.whatif import read_settings, what_if, what_if_tables


def rows(answer):
    return np.array(list(answer.rows.values()), dtype=float)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1500, 1500), ("1500", 1500), ("+500", 2500), ("-500", 1500), ("+10%", 2200), ("-20%", 1600), ("50%", 1000),
     ("2x", 4000), ("0", 0)],
)  # fmt: skip
def test_volumes_are_read_as_written(run, value, expected):
    assert what_if(run, {"coding": value}).rows["coding"] == expected


def test_changes_start_from_base_or_proposal(run):
    assert rows(what_if(run, {})) == pytest.approx(BASE)
    assert rows(what_if(run, {"coding": "+10%"}, start="proposal")) == pytest.approx([2860, *PROPOSAL[1:]])


def test_predictions_are_the_models(run):
    answer = what_if(run, {"coding": 2600, "_facts": 600})
    mean, lower, upper = predict(run.model, np.array([[2600.0, 1000.0, 600.0]]))
    for j, c in enumerate(answer.capabilities):
        assert (c.loss, c.lower, c.upper) == pytest.approx((mean[0, j], lower[0, j], upper[0, j]))
        assert c.base == pytest.approx(predict(run.model, BASE[None])[0][0, j])
        assert c.proposal == pytest.approx(predict(run.model, PROPOSAL[None])[0][0, j])
        assert c.ratio.value == pytest.approx(c.loss / c.base)
        assert c.ratio.lower < c.ratio.value < c.ratio.upper
    truth = finished_run.true_losses(np.array([2600.0, 1000.0, 600.0]))[0]
    assert [c.loss for c in answer.capabilities] == pytest.approx(truth, abs=0.04)
    assert answer.capabilities[0].loss < answer.capabilities[0].base


def test_base_gains_nothing_and_the_proposal_gains_its_own(run):
    assert what_if(run, {}).gain.value == pytest.approx(0)
    same = what_if(run, {}, start="proposal")
    assert same.gain == same.proposal_gain
    assert same.gain.value > 0


def test_a_mixture_of_ones_own_is_written_for_those_who_train(run, tmp_path, capsys):
    """A proposal that the check did not adopt can be tried so."""
    cli_report.what_if(run.folder, ["coding=900"], start="proposal", out=tmp_path / "try.json")
    mine, own = load_mixture(tmp_path / "try.json"), run.mixture
    volumes = [900, *PROPOSAL[1:]]
    assert [d.rows for d in mine.domains] == volumes
    assert [d.base_rows for d in mine.domains] == pytest.approx(BASE)
    assert [d.share for d in mine.domains] == pytest.approx(volumes * TOKENS / (volumes @ TOKENS), abs=1e-4)
    assert [d.fingerprint for d in mine.domains] == [d.fingerprint for d in own.domains]
    assert (mine.seed, mine.loss, mine.batch, mine.template) == (own.seed, own.loss, own.batch, own.template)
    assert (mine.verdict, mine.gain, mine.law) == (None, None, own.law)
    asked = what_if(run, {"coding": 900}, start="proposal")
    for c, predicted in zip(mine.capabilities, asked.capabilities, strict=True):
        assert (c.name, c.verified_loss) == (predicted.name, None)
        assert c.predicted_upper == pytest.approx(2.0 * predicted.ratio.upper)
    assert (mine.name, mine.provenance) == (f"{own.name}-what-if", own.provenance)
    assert "try.json (predicted, not checked)" in capsys.readouterr().out
    assert mine.predicted_gain == what_if(run, {"coding": 900}, start="proposal").gain.value
    with pytest.raises(UsageError, match="exists"):
        cli_report.what_if(run.folder, [], out=tmp_path / "try.json")


def test_keep_total_scales_the_domains_not_named(run):
    answer = what_if(run, {"coding": 1000}, keep_total=True)
    assert answer.rows["coding"] == 1000
    assert rows(answer) @ TOKENS == pytest.approx(BASE @ TOKENS, abs=2 * TOKENS.max())
    assert answer.rows[DOMAINS[1]] / answer.rows["_facts"] == pytest.approx(BASE[1] / BASE[2], rel=0.01)


def test_what_was_never_run_is_said(run):
    assert not what_if(run, {"coding": "+1%"}).cautions
    far = what_if(run, {"coding": 9000})
    assert any("extrapolation" in text and "coding" in text for text in far.cautions)
    assert any("repeats 4.5 times" in text for text in far.cautions)
    farther = what_if(run, {"coding": 90_000})
    assert any("--keep-total" in text for text in farther.cautions)
    text = what_if_tables(farther)
    assert text.count("Caution: ") == len(farther.cautions)
    assert max(map(len, text.splitlines())) <= 80


def test_far_outside_of_what_was_run_nothing_is_sure(run):
    """No loss below its floor, and an interval that grows with the distance and holds the edge of what was run."""
    inside = what_if(run, {"coding": 5000})
    answers = [what_if(run, {"coding": rows, "_facts": 3}) for rows in (20_000, 400_000, 10**7)]
    assert inside.beyond == 0
    assert "outside of what was run" not in what_if_tables(inside)
    assert "the fit's own prediction for the search rows" in " ".join(what_if_tables(inside).split())
    floors = run.model.floors()
    assert (floors > 0.2).all()
    assert (floors < 0.7).all()  # 0.5 in truth
    widths = [[c.ratio.upper - c.ratio.lower for c in answer.capabilities] for answer in [inside, *answers]]
    for narrow, wide in itertools.pairwise(widths):
        assert all(w > n for n, w in zip(narrow, wide, strict=True))
    assert all(w > 3 * n for n, w in zip(widths[0], widths[-1], strict=True))
    edge = what_if(run, {"coding": round(run.volumes()[:, 0].max())})
    for answer in answers:
        assert answer.beyond > 0.5
        assert any(f"{answer.beyond:.1f} times" in text for text in answer.cautions)
        for c, floor in zip(answer.capabilities, floors, strict=True):
            assert c.lower >= floor
            assert c.lower < c.loss < c.upper
        here, there = answer.capabilities[0].ratio, edge.capabilities[0].ratio
        assert here.lower <= there.value <= here.upper


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"codin": 3}, {}, "no domain 'codin'"),
        ({"coding": "many"}, {}, "write a count of rows"),
        ({"coding": "-x"}, {}, "write rows"),
        ({"coding": "-3000"}, {}, "leaves less than none"),
        ({"coding": "-nan%"}, {}, "write rows|convert"),
        ({}, {"start": "best"}, "base or proposal"),
        ({"coding": 90_000}, {"keep_total": True}, "no other domain can make up"),
        (dict.fromkeys(DOMAINS, 0), {}, "the mixture is empty"),
    ],
)
def test_wrong_questions_are_refused_in_a_sentence(run, changes, options, message):
    with pytest.raises(UsageError, match=message) as error:
        what_if(run, changes, **options)
    assert "\n" not in str(error.value)


def test_settings_may_name_any_domain():
    names = ["a", "a=b", DOMAINS[1]]
    assert read_settings(["a=b=3", "a=-2%", f"{DOMAINS[1]}=5"], names) == {"a=b": "3", "a": "-2%", DOMAINS[1]: "5"}
    for given, message in (
        (["c=3"], "no domain 'c'"),
        (["a"], "NAME=VOLUME"),
        (["a=1", "a=2"], "twice"),
    ):
        with pytest.raises(UsageError, match=message):
            read_settings(given, names)


def test_tables_fit_80_columns_and_hold_the_numbers(run):
    answer = what_if(run, {"coding": 2600})
    text = what_if_tables(answer)
    assert max(map(len, text.splitlines())) <= 80
    for c in answer.capabilities:
        assert f"{c.loss:.3f}" in text
        assert f"{c.ratio.value - 1:+.1%}" in text
    assert f"{answer.gain.value:+.2%}" in text


def test_the_command_prints_tables_or_json(run, capsys):
    cli_report.what_if(run.folder, ["coding=2600", "_facts=-20%"])
    assert "2,600" in capsys.readouterr().out
    cli_report.what_if(run.folder, ["coding=2600"], as_json=True)
    values = json.loads(capsys.readouterr().out)
    assert values["rows"] == what_if(run, {"coding": 2600}).rows
    assert [c["name"] for c in values["capabilities"]] == CAPABILITIES


def test_a_folder_without_a_search_is_refused(tmp_path):
    with pytest.raises(UserError, match="is no run directory"):
        cli_report.what_if(tmp_path, [])
    Path(tmp_path / "config.yaml").write_text("")
    with pytest.raises(UserError, match="is not finished"):
        cli_report.what_if(tmp_path, [])
