"""Every figure as a function on fitted objects: `plot_*(…, ax=None)` draws on the axes given, or on new ones.

`run` is a finished search (`load_run`). Each function returns the axes. New axes belong to a figure of their own
(`ax.figure`), outside pyplot: in a notebook end a cell with `plot_volumes(run).figure`, or give `ax` from
`plt.subplots()`.

Legend: R runs, D domains, J capabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from ideal_proxy.report.curves import eta
from ideal_proxy.report.plot_style import (
    BASE,
    BLUE,
    CYCLE,
    FONT,
    GREEN,
    GRID,
    INK,
    MARKERS,
    MUTED,
    NOISE,
    PAPER,
    PROPOSAL,
    PURPLE,
    VERMILLION,
    caption,
    dress,
    interval,
    label,
    legend,
    new_axes,
    new_figure,
    percent_axis,
    rows_of_names,
    volume_axis,
    volume_text,
)
from ideal_proxy.report.plots_of_response import figure_responses as figure_responses
from ideal_proxy.report.plots_of_response import plot_response as plot_response
from ideal_proxy.report.plots_of_response import plot_response_matrix as plot_response_matrix
from ideal_proxy.report.plots_of_response import response_key as response_key
from ideal_proxy.response import ResponseModel

if TYPE_CHECKING:
    from ideal_proxy.optimizer import ParetoFront
    from ideal_proxy.pipeline import SearchRun

WIDE = 8.4
ROW = 0.42  # inches for a row of names
OBSERVED: dict[str, Any] = {"colour": GREEN}
PREDICTED: dict[str, Any] = {"colour": MUTED, "marker": "s", "filled": False}
ONE: dict[str, Any] = {
    "linestyle": "none", "marker": "o", "markersize": 4.5, "color": GREEN, "markerfacecolor": PAPER,
}  # fmt: skip
ABOVE: dict[str, Any] = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0)}


def plot_verdict(run: SearchRun, ax: Axes | None = None) -> Axes:
    """Draw the verified gain with its interval, the gain of every pair, the noise floor and the predicted gain."""
    ax = new_axes(WIDE, 2.2, ax)
    verdict, predicted = run.result["verdict"], run.result["predicted_gain"]
    gain = verdict["gain"]
    floor = gain["value"] - gain["lower"]
    ax.axvspan(-floor, floor, color=NOISE, alpha=0.35, linewidth=0)
    ax.axvline(0, color=MUTED, linewidth=1)
    least = run.config.objective.min_gain
    ax.axvline(least, color=MUTED, linewidth=1, linestyle=":")
    each = verdict["gains_by_seed"]
    ax.plot(each, np.full(len(each), 0.28), **ONE)
    interval(ax, 0, _bound(gain), **OBSERVED)
    interval(ax, 1, _bound(predicted), **PREDICTED)
    rows_of_names(ax, ["verified", "predicted"], 60)
    percent_axis(ax)
    caption(ax, x="relative gain in the objective against base")
    marks = [
        Line2D([], [], label="one pair", **ONE),
        Patch(color=NOISE, alpha=0.35, label="within noise"),
        Line2D([], [], color=MUTED, linestyle=":", label=f"least that counts ({least:.1%})"),
    ]
    legend(ax, marks, **ABOVE, ncols=3)
    return ax


CLEAR: dict[str, Any] = {"facecolor": PAPER, "edgecolor": "none", "alpha": 0.85, "pad": 0.4}  # behind a number
VOLUMES = {  # what plot_volumes can show: base, proposal, and how the axis is named
    "rows": ("base_rows", "proposal_rows", "rows of the full-size run"),
    "tokens": ("base_tokens", "tokens", "tokens"),
    "share": ("base_share", "share", "share of the tokens"),
    "repeat": ("base_repeat", "repeat", "passes over the domain"),
}


def plot_volumes(run: SearchRun, ax: Axes | None = None, *, what: str = "rows") -> Axes:
    """Draw every domain's volume in the base mixture and in the proposal.

    Args:
        run: a finished search.
        ax: axes to draw on.
        what: rows, tokens, share (of the tokens) or repeat.

    Returns:
        Axes: the volume across, a pair of bars a domain.
    """
    before, after, name = VOLUMES[what]
    entries = [entry | {"base_repeat": entry["base_rows"] / entry["available"]} for entry in run.result["domains"]]
    ax = new_axes(WIDE, 1.1 + 1.3 * ROW * len(entries), ax)
    base = [entry[before] for entry in entries]
    rows = [entry[after] for entry in entries]
    places = np.arange(len(entries))
    ax.barh(places - 0.19, base, height=0.34, color=BLUE, alpha=0.45, label="base")
    ax.barh(places + 0.19, rows, height=0.34, color=VERMILLION, alpha=0.85, label="proposal")
    longest = max([*base, *rows])
    limits = {"rows": [entry["available"] for entry in entries], "repeat": [1.0] * len(entries)}.get(what, [])
    near = [(place, limit) for place, limit in zip(places, limits, strict=False) if limit <= 1.5 * longest]
    if near:
        at, limit = (np.array(part, dtype=float) for part in zip(*near, strict=True))
        ax.vlines(limit, at - 0.42, at + 0.42, color=INK, linewidth=1.3, label="rows available")
        longest = max(longest, limit.max())
    away = 0.012 if what == "rows" else 0.04  # the other panels are narrow
    for place, entry, most in zip(places, entries, [*limits, *[0.0] * len(entries)], strict=False):
        change = "new" if entry["change"] is None else f"{entry['change']:+.0%}"
        more = f" ({change})" if what == "rows" else ""
        for shift, value, colour, note in ((0.2, entry[after], INK, more), (-0.18, entry[before], MUTED, "")):
            # a label that would stand on the tick of the rows there are stands behind it
            start = most if value <= most < value + 0.2 * longest else value
            ax.text(start + away * longest, place + shift, _volume(value, what) + note, va="center",
                    fontsize=FONT - 1, color=colour, bbox=CLEAR)  # fmt: skip
    ax.set_xlim(0, (1.2 if what == "rows" else 1.3) * longest)
    ax.xaxis.set_major_formatter(lambda v, _: f"{v:.0%}" if what == "share" else volume_text(v))
    rows_of_names(ax, [entry["name"] for entry in entries])
    caption(ax, x=name)
    legend(ax, **ABOVE, ncols=3)
    return ax


def figure_volumes(run: SearchRun) -> Figure:
    """Draw tokens, shares and repeats of every domain, base and proposal, side by side."""
    figure = new_figure(WIDE, 1.1 + 1.1 * ROW * len(run.result["domains"]))
    panels = figure.subplots(1, 3, sharey=True)
    for number, (panel, what) in enumerate(zip(panels, ("tokens", "share", "repeat"), strict=True)):
        dress(panel)
        plot_volumes(run, panel, what=what)
        panel.xaxis.set_major_locator(MaxNLocator(4))
        panel.get_legend().remove()
        panel.tick_params(axis="y", labelleft=number == 0)
    marks = [Patch(color=BLUE, alpha=0.45, label="base"), Patch(color=VERMILLION, alpha=0.85, label="proposal")]
    legend(figure, marks, loc="outside upper center", ncols=2)
    return figure


def _volume(value: float, what: str) -> str:
    """Write a volume beside its bar."""
    if what == "share":
        return f"{value:.1%}"
    return f"{value:.2f}×" if what == "repeat" else f"{value:,}" if what == "rows" else volume_text(value)


def plot_losses(run: SearchRun, ax: Axes | None = None) -> Axes:
    """Draw every capability's predicted and verified change of loss against base, with intervals; metrics below."""
    entries = [*run.result["capabilities"], *(_of_metric(entry) for entry in run.result["capabilities"])]
    entries = [entry for entry in entries if entry]
    ax = new_axes(WIDE, 1.2 + ROW * len(entries), ax)
    ax.axvline(0, color=MUTED, linewidth=1)
    for place, entry in enumerate(entries):
        for key, shift, look in (("verified", -0.14, OBSERVED), ("predicted", 0.14, PREDICTED)):
            value, low, high = (x - 1 for x in _bound(entry[key]))
            interval(ax, place + shift, (value, low, high), name=None if place else key, **look)
    rows_of_names(ax, [entry["name"] for entry in entries])
    percent_axis(ax)
    more = "; of a metric over its scale" if run.config.has_metrics else ""
    caption(ax, x=f"change of reference loss against base{more} (left is better)")
    legend(ax, **ABOVE, ncols=2)
    return ax


def plot_predicted_observed(held_out: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw predictions against observations of runs the fit did not see (`run.held_out()`), relative to base."""
    ax = new_axes(6.2, 4.2, ax)
    held_out = held_out.dropna(subset=["predicted"])  # a fit of few runs leaves none out
    unit = held_out.get("unit", held_out["base"])
    scored = not np.array_equal(unit, held_out["base"])
    x, y = (1 + (held_out[name] - held_out["base"]) / unit for name in ("predicted", "observed"))
    low, high = (float(min(x.min(), y.min())), float(max(x.max(), y.max()))) if len(x) else (1.0, 1.0)
    margin = 0.04 * (high - low or 1.0)
    ax.plot([low - margin, high + margin], [low - margin, high + margin], color=MUTED, linewidth=1)
    names = list(dict.fromkeys(held_out["capability"]))
    key = []
    for n, name in enumerate(names):
        colour, marker = CYCLE[n % len(CYCLE)], MARKERS[(n + n // len(CYCLE)) % len(MARKERS)]
        for filled in (False, True):
            rows = (held_out["capability"] == name) & ((held_out["kind"] != "left out") == filled)
            ax.plot(x[rows], y[rows], linestyle="none", marker=marker, markersize=4.5, color=colour,
                    markerfacecolor=colour if filled else PAPER, alpha=0.9)  # fmt: skip
        key.append(Line2D([], [], linestyle="none", marker=marker, color=colour, markersize=5, label=label(name)))
    key.append(Line2D([], [], linestyle="none", marker="o", color=INK, markerfacecolor=PAPER, markersize=5,
                      label="left out of the fit in turn"))  # fmt: skip
    if (held_out["kind"] != "left out").any():
        key.append(Line2D([], [], linestyle="none", marker="o", color=INK, markersize=5, label="never in the fit"))
    ax.set_xlim(low - margin, high + margin)
    ax.set_ylim(low - margin, high + margin)
    if scored:
        caption(ax, x="predicted, relative to prediction at base", y="observed, relative to prediction at base")
    else:
        caption(ax, x="predicted loss / predicted loss at base", y="observed loss / predicted loss at base")
    legend(ax, key, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return ax


def plot_pareto(front: ParetoFront, *, proposal: tuple[float, float] | None = None, ax: Axes | None = None) -> Axes:
    """Draw what one group of capabilities costs the other; `proposal` is its place in these two values."""
    ax = new_axes(5.6, 3.6, ax)
    kinds = front.optima[0].problem.kinds
    higher = "loss" not in kinds
    at_base = 0.0 if higher else 1.0
    values = front.values - at_base
    ax.axvline(0, color=GRID, linewidth=1)
    ax.axhline(0, color=GRID, linewidth=1)
    ax.plot(values[:, 0], values[:, 1], color=INK, linewidth=1.3, marker="s", markersize=4, label="Pareto front")
    ax.plot([0], [0], label="base", **BASE)
    if proposal is not None:
        ax.plot([proposal[0] - at_base], [proposal[1] - at_base], label="proposal", **PROPOSAL)
    if not higher:
        for which in ("x", "y"):
            percent_axis(ax, which)
    what = "predicted change of loss" if set(kinds) == {"loss"} else "predicted change, scaled"
    ax.margins(0.08)
    caption(ax, x=f"{_group(front.first)}: {what}", y=f"{_group(front.second)}: {what}")
    legend(ax, loc="best")
    return ax


def plot_movement(run: SearchRun, ax: Axes | None = None) -> Axes:
    """Draw how far every volume may move before the check would see it."""
    entries = run.result["domains"]
    ax = new_axes(WIDE, 1.2 + ROW * len(entries), ax)
    for place, entry in enumerate(entries):
        bound = (entry["proposal_rows"], *entry["moves"])
        name = None if place else "proposal, and what makes no difference"
        interval(ax, place, bound, colour=VERMILLION, marker="D", name=name)
        ax.plot([entry["base_rows"]], [place], label=None if place else "base", **BASE)
    every = np.array([[e["base_rows"], e["proposal_rows"], *e["moves"]] for e in entries], dtype=float)
    volume_axis(ax, float(every.min()), float(every.max()), small=eta(run.model), ticks=7)
    rows_of_names(ax, [entry["name"] for entry in entries])
    caption(ax, x="rows (equal steps are equal ratios)")
    legend(ax, **ABOVE, ncols=2)
    return ax


def plot_cost(stages: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw how many tokens each stage of the search trained on."""
    ax = new_axes(WIDE, 0.8 + ROW * len(stages), ax)
    places = np.arange(len(stages))
    tokens = stages["tokens"].to_numpy(dtype=float)
    ax.barh(places, tokens, height=0.6, color=BLUE, alpha=0.85)
    for place, (_, row) in enumerate(stages.iterrows()):
        runs = f"{row['runs']} run" + ("s" if row["runs"] != 1 else "")
        ax.text(row["tokens"] + 0.01 * tokens.max(), place, f"{volume_text(row['tokens'])} tokens, {runs}", va="center",
                fontsize=FONT - 1, color=INK)  # fmt: skip
    ax.set_xlim(0, 1.28 * tokens.max())
    ax.xaxis.set_major_formatter(lambda v, _: volume_text(v))
    rows_of_names(ax, list(stages["stage"]), 40)
    caption(ax, x="tokens trained on")
    return ax


def plot_repeats(model: ResponseModel, domain: str, *, most: float = 4.0, ax: Axes | None = None) -> Axes:
    """Draw what rows of one domain are worth once they repeat, up to `most` passes."""
    available = model.volumes_.available
    if available is None:
        raise ValueError("the model was fitted without available rows, so nothing repeats; give available=")
    ax = new_axes(5.0, 3.2, ax)
    index = list(model.domain_names_).index(domain)
    passes = np.linspace(0, most, 81)
    mixtures = np.zeros((len(passes), len(available)))
    mixtures[:, index] = passes * available[index]
    worth = model.volumes_.effective(mixtures)[0][:, index] / available[index]
    ax.plot(passes, passes, color=MUTED, linewidth=1, linestyle=":", label="if repeats were fresh rows")
    ax.plot(passes, worth, color=BLUE, linewidth=1.8, label="what they are worth")
    ax.axvspan(1, most, color=PURPLE, alpha=0.14, linewidth=0, label="rows repeat")
    known = bool(model.repeat_identified_[index])
    note = "" if known else " (not identified: no run repeats enough, this is the prior)"
    caption(ax, x="passes over the domain", y="worth, in passes of fresh rows", title=label(domain) + note)
    legend(ax, loc="upper left")
    return ax


def _of_metric(entry: dict[str, Any]) -> dict[str, Any] | None:
    """Write a metric's differences as losses are written: over its scale, 1 is base, lower is better."""
    if not (metric := entry.get("metric")):
        return None
    sign = -1.0 if metric["higher_is_better"] else 1.0
    written: dict[str, Any] = {"name": f"{entry['name']}, by its metric"}
    for key in ("predicted", "verified"):
        value, *ends = (1 + sign * x / metric["scale"] for x in _bound(metric[key]))
        written[key] = {"value": value, "lower": min(ends), "upper": max(ends)}
    return written


def _bound(entry: dict[str, float]) -> tuple[float, float, float]:
    return entry["value"], entry["lower"], entry["upper"]


def _group(names: Sequence[str]) -> str:
    return label(names[0]) if len(names) == 1 else label(", ".join(names), 44)
