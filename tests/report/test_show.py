"""What a search prints at its end: every number, who pays, what to do next, in 80 columns."""

from __future__ import annotations

import json
from pathlib import Path

import finished_run
import pytest

from ideal_proxy.errors import UserError
from ideal_proxy.pipeline.finished import load_result
from ideal_proxy.report.text import _unprotected, result_screen, result_tables, who_pays
from ideal_proxy.terminal import sentence

RUN = Path("runs/mix")


def changed(**verified: tuple[float, float, float]) -> dict:
    """A result whose capabilities were verified at other ratios."""
    result = finished_run.result(free=None)
    for entry, name in zip(result["capabilities"], verified, strict=True):
        entry |= {"name": name, "verified": dict(zip(("value", "lower", "upper"), verified[name], strict=True))}
    return result


def test_the_tables_hold_the_numbers_and_fit_80_columns():
    result = finished_run.result()
    text = result_tables(result, RUN)
    assert max(map(len, text.splitlines())) <= 80
    assert f"Verdict: {result['verdict']['sentence']}" in " ".join(text.split())
    for domain in result["domains"]:
        line = next(line for line in text.splitlines() if line.startswith(domain["name"]))
        low, high = (f"{round(end):,}" for end in domain["moves"])
        for shown in (f"{domain['base_rows']:,}", f"{domain['proposal_rows']:,}", f"{domain['share']:.1%}",
                      f"{low}-{high}"):  # fmt: skip
            assert shown in line.split()
    assert "next: ideal-proxy report runs/mix" in text
    assert "ideal-proxy apply runs/mix/mixture.json" in text


@pytest.mark.parametrize("answer", ["no better than base", "not enough evidence"])
def test_a_proposal_that_was_not_adopted_is_not_offered(answer):
    result = finished_run.result()
    result["verdict"]["answer"] = answer
    text = result_tables(result, RUN)
    assert "not adopted: the mixture file keeps the base" in text
    assert "ideal-proxy apply" not in text


def test_who_pays_is_named_only_beyond_doubt():
    assert who_pays(changed(a=(0.9, 0.8, 1.0), b=(1.03, 0.99, 1.07))) == ""
    both = changed(a=(1.1, 1.05, 1.15), b=(1.03, 1.001, 1.07))
    assert who_pays(both).startswith("the price: a (+10.0% loss, at least +5.0%), b (+3.0% loss, at least +0.1%);")
    assert "The price: a (+10.0% loss, at least +5.0%), b (+3.0%" in " ".join(result_tables(both, RUN).split())


def test_volumes_that_do_not_matter_are_named_and_a_held_one_is_one_number():
    result = finished_run.result()
    first, second, third = result["domains"]
    second["moves"] = [899.7, 900.2]
    third["moves"] = [599.6, 601.0]
    result["leeway"] |= {"open": [first["name"]], "unsettled": [third["name"]]}
    text = " ".join(result_tables(result, RUN).split())
    assert f"the volume of {first['name']} does not matter" in text
    assert f"base's volume of {third['name']} is as good" in text
    assert "0.90x 900 " in text
    assert "0.20x 600-601 " in text


def test_a_folder_without_a_result_says_which_kind_it_is(tmp_path):
    with pytest.raises(UserError, match="is no run directory"):
        load_result(tmp_path)
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(UserError, match="is not finished; run the same"):
        load_result(tmp_path)


def test_the_free_answer_stands_beside_the_protected_one_and_each_capability_says_what_is_sure():
    result = finished_run.result()
    text = result_tables(result, RUN)
    first = result["domains"][0]
    line = next(line for line in text.splitlines() if line.startswith(f"rows of {first['name']}"))
    assert line.split()[-2:] == [f"{first['proposal_rows']:,}", f"{2 * first['proposal_rows']:,}"]
    gain = result["predicted_gain"]["value"]
    assert f"{gain:+.1%}" in text
    assert "+7.7%" in text
    assert next(line for line in text.splitlines() if line.startswith("change of coding")).split()[-1] == "-10.0%"
    says = [line.split()[-1] for line in text.splitlines() if line.startswith(("coding ", "<script>")) and "[" in line]
    assert says == ["open", "better"]
    assert "free answer" not in result_tables(result | {"free": None}, RUN)


@pytest.mark.parametrize("columns", [60, 80, 160])
def test_one_screen_holds_verdict_volumes_gains_prices_and_what_next(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("NO_COLOR", "1")
    result = changed(coding=(0.9, 0.8, 0.95), tools=(1.1, 1.05, 1.15))
    result["warnings"] = ["first", "second", "third"]
    text = result_screen(result, RUN)
    lines = text.splitlines()
    assert max(map(len, lines)) <= columns
    assert len(lines) <= (30 if columns == 60 else 26)
    assert "\x1b" not in text
    flat = " ".join(text.split())
    assert result["verdict"]["sentence"] in flat
    for entry in result["domains"]:
        assert f"{entry['proposal_rows']:,}" in flat
    assert "The price: tools (+10.0% loss" in flat
    assert flat.index("Warning: first.") < flat.index("Warning: second.")
    assert "third" not in flat
    assert "1 warning more" in flat
    assert "ideal-proxy apply runs/mix/mixture.json" in flat
    result["verdict"]["answer"] = "no better than base"
    assert "ideal-proxy apply" not in result_screen(result, RUN)


def test_one_screen_names_the_domains_that_move_most_and_counts_the_rest():
    result = finished_run.result(free=None)
    one = result["domains"][0]
    result["domains"] = [one | {"name": f"d{k}", "share": 0.3 + 0.01 * k, "base_share": 0.3} for k in range(14)]
    text = result_screen(result, RUN)
    shown = [line.split()[0] for line in text.splitlines() if line[:1] == "d" and line[1:2].isdigit()]
    assert shown == [f"d{k}" for k in range(4, 14)]
    assert "4 lines more" in " ".join(text.split())


def test_the_answer_without_protection_names_who_pays_most():
    free = {
        "predicted_gain": {"value": 0.0753},
        "capabilities": {"a": {"value": 0.7}, "b": {"value": 1.182}, "c": {"value": 1.01}},
    }
    assert _unprotected(free).startswith("Without protection +7.5% is predicted, b at +18.2%;")
    assert sentence("") == ""
    assert sentence("the price: x") == "The price: x."


def test_what_is_judged_by_a_score_shows_its_score_on_the_first_screen():
    result = changed(coding=(0.9, 0.8, 0.95), tools=(1.1, 1.05, 1.15))
    bounds = {"value": 0.043, "lower": 0.0004, "upper": 0.09}
    result["capabilities"][1]["metric"] = {
        "base": 0.412, "proposal": 0.455, "predicted": bounds, "verified": bounds, "scale": 0.5, "noise": 0.01,
        "higher_is_better": True, "named": "exact_match",
    }  # fmt: skip
    lines = result_screen(result, RUN).splitlines()
    assert max(map(len, lines)) <= 80
    head = next(n for n, line in enumerate(lines) if line.startswith("Scores, which judge here"))
    shown = next(line for line in lines[head:] if line.startswith("tools"))
    assert shown.split()[1:4] == ["0.412", "0.455", "+0.043"]
    assert not [line for line in lines[:head] if line.startswith("tools ") and "+10.0%" in line]
    assert [line for line in lines[:head] if line.startswith("coding ") and "-10.0%" in line]


def test_no_change_has_no_sign():
    flat = result_screen(changed(coding=(0.99996, 0.9, 1.00004), tools=(1.00003, 0.99, 1.1)), RUN)
    assert "+0.0%" not in flat
    assert "-0.0%" not in flat


def test_a_search_of_another_version_is_told_by_what_it_lacks(tmp_path):
    for lacks in ("steps", "check"):
        found = finished_run.result()
        del found[lacks]
        (tmp_path / "result.json").write_text(json.dumps(found))
        with pytest.raises(UserError, match=rf"of another version \(it lacks '{lacks}'\)"):
            load_result(tmp_path)
    found = finished_run.result()
    del found["domains"][1]["moves"]
    (tmp_path / "result.json").write_text(json.dumps(found))
    with pytest.raises(UserError, match="'moves'"):
        load_result(tmp_path)
