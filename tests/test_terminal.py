"""Tables and prose at any width: nothing is wider than the terminal, no number is cut, and what comes next is named."""

from __future__ import annotations

import io
import re
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from ideal_proxy import terminal

NAMES = ["arithmetic", "数学", "a-domain-with-a-name-of-many-many-letters-and-more", "x"]
HEADER = ("domain", "base", "proposal", "supervised tokens", "interval", "moves")
ROWS = [(name, "2,400", "+256%", "1,234,567,890", "[-18.2%, -4.1%]", "2,671-3,126") for name in NAMES]


@pytest.mark.parametrize("columns", [40, 60, 80, 200])
def test_a_table_fits_and_cuts_no_number(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    text = terminal.table("Volumes of the run", HEADER, ROWS)
    lines = text.splitlines()
    assert max(map(cell_len, lines)) <= min(columns, 80)
    for cell in ROWS[0][1:]:
        assert sum(cell in line for line in lines) == len(ROWS), cell
    assert text.count("数学") == sum(line.startswith("domain") for line in lines)
    said = terminal.paragraph("The gain is +8.80% [+4.31%, +13.30%] over 5 pairs of fresh runs on unseen rows.")
    assert "[+4.31%, +13.30%]" in said
    assert max(map(cell_len, said.splitlines())) <= min(columns, 80)


def test_a_table_that_fits_is_as_it_always_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert (
        terminal.table("T", ("name", "rows"), [("a", "1,200"), ("bcd", "3")])
        == "T\nname   rows\na     1,200\nbcd       3"
    )
    assert terminal.table("", ("name", "rows"), []) == "name  rows"


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)  # a machine full of other work
@given(
    st.lists(st.lists(st.integers(0, 10**12), min_size=5, max_size=5), min_size=1, max_size=4),
    st.integers(30, 90),
)
def test_every_number_stands_whole_at_any_width(rows: list[list[int]], columns: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", str(columns))
        text = terminal.table("", tuple("abcdef"), [("row", *map(str, row)) for row in rows])
    assert sorted(w for w in text.split() if w.isdigit()) == sorted(str(n) for row in rows for n in row)
    assert max(map(len, text.splitlines())) <= columns


@pytest.mark.parametrize(
    ("called", "named"),
    [
        ("cli.py", "python3 cli.py"), ("/opt/x/ideal_proxy/cli/__main__.py", "python3 -m ideal_proxy.cli"),
        ("/nowhere/bin/ideal-proxy", "/nowhere/bin/ideal-proxy"), ("/usr/bin/pytest", "ideal-proxy"),
    ],
)  # fmt: skip
def test_what_comes_next_is_called_as_the_user_called_us(
    monkeypatch: pytest.MonkeyPatch, called: str, named: str
) -> None:
    monkeypatch.setattr(sys, "argv", [called, "init"])
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("COLUMNS", raising=False)
    assert terminal.step("next: ", "check mix.yaml") == f"next: {named} check mix.yaml"
    assert terminal.step("next: ", "check " + "x" * 60, "see it").splitlines()[1] == "      (see it)"


def test_what_is_shown_as_zero_has_no_sign() -> None:
    assert [terminal.signed(value, ".1%") for value in (-0.0002, 0.0002, -0.0006, 0.012)] == [
        "0.0%",
        "0.0%",
        "-0.1%",
        "+1.2%",
    ]
    assert terminal.interval_text({"lower": 0.9998, "upper": 1.02}, "+.1%", less=1) == "[0.0%, +2.0%]"
    assert terminal.interval_text({"lower": 1.0, "upper": 2.0}, ".1f") == "[1.0, 2.0]"


def panel_on(columns: int, **environ: str) -> tuple[terminal.Reporter, io.StringIO]:
    """A reporter on a terminal of so many columns."""
    reporter, screen = terminal.Reporter(), io.StringIO()
    environ = {"TERM": "xterm-256color", **environ}
    reporter.console = Console(file=screen, force_terminal=True, width=columns, _environ=environ, highlight=False)
    return reporter, screen


@pytest.mark.parametrize("columns", [60, 80, 120, 160])
def test_one_panel_says_what_goes_on(columns: int) -> None:
    reporter, screen = panel_on(columns)
    with reporter.panel("search runs/[x]"):
        reporter.fact("time", "3 min so far, at most 12 min left")
        reporter.fact("best so far", "+3.1% against base, one run alone: noise included")
        reporter.fact("best so far", "+2.4% [+1.0%, +3.8%] predicted, round 1")
        with reporter.work("round 1: swarm", 1.0) as update:
            update(0.43, "9 of 18 runs", 100.0)
            reporter.note("learning rate 0.006 for the whole search")
            drawn = Console(file=io.StringIO(), width=columns, color_system=None)
            drawn.print(reporter._drawn())
    lines = drawn.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert {cell_len(line) for line in lines} == {min(columns, 80)}
    text = re.sub(r"[│\s]+", " ", "\n".join(lines))
    for said in ("search runs/[x]", "round 1: swarm", "43%", "9 of 18 runs", "3 min so far", "predicted, round 1"):
        assert said in text, said
    assert "one run alone" not in text, "a fact replaces the one before"
    assert "learning rate 0.006" in screen.getvalue(), "notes stay above the panel"
    assert screen.getvalue().endswith(("\x1b[1A\x1b[2K", "\x1b[?25h")), "the panel goes when the work is done"


def test_no_colour_and_no_panel_where_they_are_not_wanted() -> None:
    reporter, screen = panel_on(80, NO_COLOR="1")
    with reporter.panel("x"), reporter.work("y", 1.0) as update:
        update(0.5)
    assert not re.search(r"\x1b\[(\d+;)*[34]\d", screen.getvalue())
    for environ in ({"TERM": "dumb"},):
        reporter, screen = panel_on(80, **environ)
        with reporter.panel("x"), reporter.work("y", 1.0):
            reporter.fact("time", "now")
            reporter.note("a line")
        assert screen.getvalue() == "a line\n"
