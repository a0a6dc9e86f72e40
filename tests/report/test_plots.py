"""Figures show the numbers they are given, at the places where they belong."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import finished_run
import numpy as np
import pandas as pd
import pytest
from finished_run import AVAILABLE, BASE, CAPABILITIES, DOMAINS, PROPOSAL, TOKENS
from matplotlib.axes import Axes
from matplotlib.collections import FillBetweenPolyCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from ideal_proxy.domains import Domains
from ideal_proxy.optimizer.constraints import Constraints, Problem
from ideal_proxy.optimizer.front import pareto
from ideal_proxy.report import plots
from ideal_proxy.report.curves import (
    move,
    partial_losses,
    predict,
    response_matrix,
    slice_through,
)
from ideal_proxy.report.plot_style import NOISE, THEME, inline_svg, label, png_bytes, svg_text, volume_axis, volume_text
from ideal_proxy.response import compare
from ideal_proxy.response.model import ResponseModel


@pytest.fixture(scope="module")
def shares():
    rng = np.random.default_rng(1)
    v = pd.DataFrame(rng.dirichlet([1.0, 1.0, 1.0], 12), columns=list("abc"))
    losses = 3 - np.sqrt(v[["a", "b"]].to_numpy())
    return ResponseModel(unit="share", process="never", harm="never", n_starts=1, n_draws=8).fit(v, losses)


def test_figures_touch_no_global_state():
    code = (  # reading the backend would choose one
        "import sys, matplotlib as m; look = lambda: {k: m.rcParams[k] for k in m.rcParams if k != 'backend'}; "
        "before = look(); import ideal_proxy.report.plots; "
        "from ideal_proxy.report.plot_style import new_axes, svg_text; svg_text(new_axes().figure); "
        "print('matplotlib.pyplot' in sys.modules, look() == before)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert answer.stdout.split() == ["False", "True"]


# ---------------------------------------------------------------- numbers behind the figures


def test_move_keeps_the_total_of_the_weights(run):
    moved = move(run.model, BASE, 1, np.array([0.0, 500.0, 2000.0]), keep=TOKENS)
    assert moved[:, 1] == pytest.approx([0, 500, 2000])
    assert moved @ TOKENS == pytest.approx(np.full(3, BASE @ TOKENS))
    assert moved[:, 0] / moved[:, 2] == pytest.approx(np.full(3, BASE[0] / BASE[2]))
    assert move(run.model, BASE, 1, np.array([700.0]))[0] == pytest.approx([2000, 700, 300])
    assert len(move(run.model, BASE, 1, np.array([1.0, 1e9]), keep=TOKENS)) == 1, "a volume beyond the total is cut"


def test_shares_keep_their_sum(shares):
    here = np.full(3, 1 / 3)
    curve = slice_through(shares, here, "b", low=0.0, high=0.9)
    assert curve.mixtures.sum(axis=1) == pytest.approx(np.ones(len(curve.volumes)))
    assert curve.volumes[0] == pytest.approx(0, abs=1e-9)
    assert curve.volumes[-1] == pytest.approx(0.9)


def test_a_slice_is_the_model_along_a_line(run):
    curve = slice_through(run.model, BASE, DOMAINS[0], low=500, high=4000)
    for k in (0, 17, -1):
        mean, lower, upper = predict(run.model, np.array([[curve.volumes[k], *BASE[1:]]]))
        assert np.array([curve.mean[k], curve.lower[k], curve.upper[k]]) == pytest.approx(
            np.vstack([mean, lower, upper])
        )
    assert np.all(np.diff(curve.mean[:, 0]) < 0), "more coding lowers the coding loss"


def test_a_run_on_the_slice_is_drawn_as_observed(run):
    volumes = np.array([[900.0, *BASE[1:]], [1500.0, 500.0, 100.0]])
    observed = np.array([[1.0, 2.0], [1.1, 2.1]])
    x, partial = partial_losses(run.model, BASE, DOMAINS[0], volumes, observed)
    assert x == pytest.approx([900, 1500])
    assert partial[0] == pytest.approx(observed[0]), "it differs from base in this domain alone"
    expected = observed[1] + (
        predict(run.model, np.array([[1500.0, *BASE[1:]]]))[0] - predict(run.model, volumes[1:])[0]
    )
    assert partial[1] == pytest.approx(expected[0])


def test_responses_equal_finite_differences(run):
    matrix = response_matrix(run.model, BASE)
    step = 1e-5
    for i in range(3):
        up, down = BASE.copy(), BASE.copy()
        up[i] *= np.exp(step)
        down[i] *= np.exp(-step)
        finite = (run.model.value_and_gradient(up)[0] - run.model.value_and_gradient(down)[0]) / (2 * step)
        # At exactly the available rows the law has a kink; the difference averages both sides.
        assert matrix.values[:, i] == pytest.approx(finite, abs=2e-3)
    assert (matrix.errors > 0).all()
    assert matrix.values[0, 0] < -3 * matrix.errors[0, 0]
    assert not matrix.within_noise[0, 0]
    assert ((matrix.lower < matrix.values) & (matrix.values < matrix.upper)).all()


def test_mixing_responses_sum_to_zero(run):
    share = BASE * TOKENS / (BASE @ TOKENS)
    assert response_matrix(run.model, BASE, share=share).values.sum(axis=1) == pytest.approx([0, 0], abs=1e-9)


def test_against_base(run):
    found = compare(run.model, PROPOSAL, BASE, pairs=3)
    truth = finished_run.true_losses(PROPOSAL)[0] / finished_run.true_losses(BASE)[0]
    assert all(r.lower < t < r.upper for r, t in zip(found.ratios, truth, strict=True))
    assert found.gain.value == pytest.approx(1 - np.mean([r.value for r in found.ratios]))
    assert compare(run.model, PROPOSAL, BASE, pairs=12).gain.upper < found.gain.upper, "more pairs, narrower"


# ---------------------------------------------------------------- figures


def lines(ax: Axes, marker: str | None = None):
    return [line for line in ax.lines if marker is None or line.get_marker() == marker]


@pytest.mark.parametrize("name", ["plot_verdict", "plot_volumes", "plot_losses", "plot_movement"])
def test_figures_of_a_run_draw_where_told(run, name):
    given = Figure().add_subplot()
    assert getattr(plots, name)(run, ax=given) is given
    assert given.lines or given.patches
    assert getattr(plots, name)(run).figure is not given.figure


def test_volumes_are_bars_of_rows(run):
    ax = plots.plot_volumes(run)
    widths = [patch.get_width() for patch in ax.patches]
    assert widths == pytest.approx([*BASE, *PROPOSAL])
    texts = [text.get_text() for text in ax.texts]
    assert "2,600 (+30%)" in texts
    assert "600 (+100%)" in texts


def test_volumes_are_drawn_as_tokens_shares_and_repeats(run):
    entries = run.result["domains"]
    expected = {
        "tokens": ([e["base_tokens"] for e in entries], [e["tokens"] for e in entries]),
        "share": ([e["base_share"] for e in entries], [e["share"] for e in entries]),
        "repeat": ([e["base_rows"] / e["available"] for e in entries], [e["repeat"] for e in entries]),
    }
    figure = plots.figure_volumes(run)
    assert [ax.get_xlabel() for ax in figure.axes] == ["tokens", "share of the tokens", "passes over the domain"]
    for ax, (base, proposal) in zip(figure.axes, expected.values(), strict=True):
        assert [bar.get_width() for bar in ax.patches] == pytest.approx([*base, *proposal])


def test_losses_stand_at_their_ratios(run):
    ax = plots.plot_losses(run)
    drawn = {m: [line.get_xdata()[0] for line in lines(ax, m)] for m in ("o", "s")}
    entries = run.result["capabilities"]
    assert drawn["o"] == pytest.approx([e["verified"]["value"] - 1 for e in entries])
    assert drawn["s"] == pytest.approx([e["predicted"]["value"] - 1 for e in entries])
    spans = [tuple(line.get_xdata()) for line in ax.lines if line.get_linewidth() == 2.2]
    assert spans[0] == pytest.approx((entries[0]["verified"]["lower"] - 1, entries[0]["verified"]["upper"] - 1))


def test_verdict_shades_the_noise_floor(run):
    ax = plots.plot_verdict(run)
    gain = run.result["verdict"]["gain"]
    floor = gain["value"] - gain["lower"]
    box = next(p for p in ax.patches if to_hex(p.get_facecolor()) == NOISE)
    assert box.get_x() == pytest.approx(-floor)
    assert box.get_width() == pytest.approx(2 * floor)
    each = next(line for line in lines(ax, "o") if len(line.get_xdata()) == 3)
    assert list(each.get_xdata()) == run.result["verdict"]["gains_by_seed"]


def test_response_marks_base_proposal_band_and_repeats(run):
    ax = plots.plot_response(
        run.model, CAPABILITIES[0], DOMAINS[0], base=BASE, proposal=PROPOSAL, runs=(run.volumes(), run.losses())
    )
    mean, lower, upper = predict(run.model, np.stack([BASE, PROPOSAL]))
    (base,), (proposal,) = lines(ax, "o"), lines(ax, "D")
    assert base.get_xydata()[0] == pytest.approx([BASE[0], mean[0, 0]])
    assert proposal.get_xydata()[0] == pytest.approx([PROPOSAL[0], mean[1, 0]])
    curve = ax.lines[0].get_xydata()
    assert np.interp(BASE[0], *curve.T) == pytest.approx(mean[0, 0], abs=2e-3)
    band = next(c for c in ax.collections if isinstance(c, FillBetweenPolyCollection))
    path = band.get_paths()[0].vertices
    near = path[np.argsort(np.abs(path[:, 0] - BASE[0]))[:2]]
    assert near[:, 1].min() < mean[0, 0] < near[:, 1].max()
    assert np.ptp(near[:, 1]) == pytest.approx(upper[0, 0] - lower[0, 0], rel=0.05)
    (runs,) = lines(ax, ".")
    assert len(runs.get_xdata()) == len(run.fitted())
    repeats = ax.patches[-1]
    assert repeats.get_x() == pytest.approx(AVAILABLE[0])


def test_a_grid_has_a_panel_for_every_domain(run):
    figure = plots.figure_responses(run.model, CAPABILITIES[1], base=BASE, proposal=PROPOSAL)
    panels = [ax for ax in figure.axes if ax.axison]
    assert [ax.get_xlabel() for ax in panels] == [label(name, 22) for name in DOMAINS]
    assert len({ax.get_ylim() for ax in panels}) == 1


def test_matrix_greys_what_is_within_noise(run):
    matrix = response_matrix(run.model, BASE)
    ax = plots.plot_response_matrix(matrix, DOMAINS, CAPABILITIES, per=0.1)
    grey = [to_hex(patch.get_facecolor()) == NOISE for patch in ax.patches]
    assert grey == matrix.within_noise.ravel().tolist()
    assert not all(grey)
    texts = [t.get_text() for t in ax.texts]
    shown = np.array([float(t) for t in texts[0::2]]).reshape(2, 3)
    assert shown == pytest.approx(matrix.values * np.log(1.1), abs=1e-3)
    errors = np.array([float(t.removeprefix("± ")) for t in texts[1::2]]).reshape(2, 3)
    assert errors == pytest.approx(matrix.errors * np.log(1.1), abs=1e-3)


def test_a_matrix_of_many_domains_stays_legible():
    from ideal_proxy.report.curves import ResponseMatrix

    values = np.full((2, 24), -0.1)
    matrix = ResponseMatrix(values=values, errors=0 * values + 0.01, lower=values - 0.02, upper=values + 0.02)
    ax = plots.plot_response_matrix(matrix, [f"domain number {i}" for i in range(24)], ["a", "b"])
    assert len(ax.texts) == 48, "values without errors"
    assert ax.figure.get_figwidth() < 20


def test_held_out_compares_what_the_fit_did_not_see(run):
    table = run.held_out()
    assert set(table["kind"]) == {"left out", "fresh"}
    fresh = table[table["kind"] == "fresh"]
    assert len(fresh) == 12
    assert np.abs(fresh["predicted"] - fresh["observed"]).max() < 0.1
    left = table[table["kind"] == "left out"]
    assert np.corrcoef(left["observed"], left["predicted"])[0, 1] > 0.9
    assert not np.allclose(left["predicted"], predict(run.model, run.volumes())[0].T.ravel()), "not the fit's own"
    ax = plots.plot_predicted_observed(table)
    drawn = np.vstack([line.get_xydata() for line in ax.lines[1:]])
    assert len(drawn) == len(table)
    assert sorted(drawn[:, 1]) == pytest.approx(sorted(table["observed"] / table["base"]))


def test_pareto_runs_from_one_end_to_the_other(run):
    problem = Problem(
        domains=Domains(names=tuple(DOMAINS), base=BASE, available=AVAILABLE, tokens_per_row=TOKENS),
        capabilities=tuple(CAPABILITIES),
    )
    front = pareto(
        run.model,
        Constraints(problem=problem, trust_region=0.5),
        CAPABILITIES[0],
        CAPABILITIES[1],
        points=3,
        n_starts=1,
    )
    ax = plots.plot_pareto(front, proposal=(0.95, 1.02))
    line = next(line for line in ax.lines if line.get_label() == "Pareto front")
    assert line.get_xydata() == pytest.approx(front.values - 1)
    (proposal,) = lines(ax, "D")
    assert proposal.get_xydata()[0] == pytest.approx([-0.05, 0.02])


def test_movement_shows_what_makes_no_difference(run):
    ax = plots.plot_movement(run)
    spans = [tuple(line.get_xdata()) for line in ax.lines if line.get_linewidth() == 2.2]
    assert spans == [tuple(e["moves"]) for e in run.result["domains"]]


def test_repeats_are_worth_less_and_less(run):
    ax = plots.plot_repeats(run.model, DOMAINS[1])
    worth = ax.lines[1].get_xydata()
    rho = run.model.volumes_.rho[1]
    assert np.interp(1.0, *worth.T) == pytest.approx(1.0)
    assert np.interp(3.0, *worth.T) == pytest.approx(1 + rho * (1 - np.exp(-2 / rho)), rel=1e-3)


def test_repeats_need_available_rows(shares):
    with pytest.raises(ValueError, match="without available rows"):
        plots.plot_repeats(shares, "a")


def test_cost_is_a_bar_a_stage():
    stages = pd.DataFrame({"stage": ["swarm", "check"], "runs": [4, 1], "tokens": [900, 100], "seconds": [9.0, 1.0]})
    ax = plots.plot_cost(stages)
    assert [p.get_width() for p in ax.patches] == [900, 100]
    assert [t.get_text() for t in ax.texts] == ["900 tokens, 4 runs", "100 tokens, 1 run"]


# ---------------------------------------------------------------- style


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("plain", "plain"),
        ("a$b$c", r"a\$b\$c"),
        ("_x", "\u200b_x"),
        ("x" * 40, "x" * 17 + "…" + "x" * 8),
        ("a domain with a long name 7", "a domain with a l…g name 7"),
        ("a\nb", "a b"),
        ("\x00", "·"),
    ],
)
def test_labels_show_names_as_they_are(name, shown):
    assert label(name) == shown


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (950, "950"), (2400, "2.4k"), (1_250_000, "1.25M"), (3e9, "3G")])
def test_volumes_are_short(value, text):
    assert volume_text(value) == text


def test_shares_are_per_cent():
    assert volume_text(0.25, "share") == "25%"


@pytest.mark.parametrize(("low", "high"), [(0, 5000), (40, 700), (1000, 1100), (3, 3e7), (0.0, 1.0)])
def test_volume_axis_has_ticks_inside(low, high):
    ax = Figure().add_subplot()
    volume_axis(ax, low, high, small=0.01 * high)
    left, right = ax.get_xlim()
    ticks = [t for t in ax.get_xticks() if left <= t <= right]
    assert 2 <= len(ticks) <= 6
    assert left <= low
    assert right >= high


def test_svg_is_equal_for_equal_figures_and_keeps_its_numbers(run):
    matrix = response_matrix(run.model, BASE)
    first, again = (svg_text(plots.plot_response_matrix(matrix, DOMAINS, CAPABILITIES).figure) for _ in range(2))
    assert first == again
    ET.fromstring(first)
    for text in plots.plot_response_matrix(matrix, DOMAINS, CAPABILITIES).texts:
        assert f">{text.get_text()}<" in first
    assert "&lt;script&gt;" in first
    assert png_bytes(plots.plot_repeats(run.model, DOMAINS[0]).figure).startswith(b"\x89PNG")


def test_inline_svg_follows_the_theme_and_shares_no_ids(run):
    text = svg_text(plots.plot_movement(run).figure)
    one, two = (inline_svg(text, name, "a title") for name in ("one", "two"))
    assert not [colour for colour in THEME.values() if colour in one]
    assert "var(--blue)" in one
    assert "<title>a title</title>" in one
    ids = [{e.attrib["id"] for e in ET.fromstring(s).iter() if "id" in e.attrib} for s in (one, two)]
    assert ids[0]
    assert not ids[0] & ids[1]
    with pytest.raises(ValueError, match="not an SVG"):
        inline_svg("<svg >", "x", "y")


def test_a_fit_that_left_no_run_out_is_drawn_without_points(run):
    held_out = run.held_out().assign(predicted=np.nan)
    ax = plots.plot_predicted_observed(held_out)
    assert not any(len(line.get_xdata()) for line in ax.lines[1:])
    assert np.isfinite(ax.get_xlim()).all()
