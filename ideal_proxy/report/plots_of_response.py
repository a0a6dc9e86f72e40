"""Figures of the fitted response: curves through a mixture, and the matrix of its derivatives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from ideal_proxy.report.curves import Array, ResponseMatrix, eta, partial_losses, predict, slice_through
from ideal_proxy.report.plot_style import (
    BASE,
    BLUE,
    FONT,
    INK,
    MUTED,
    NOISE,
    PAPER,
    PROPOSAL,
    PURPLE,
    VERMILLION,
    caption,
    label,
    legend,
    new_axes,
    new_figure,
    rows_of_names,
    volume_axis,
)
from ideal_proxy.response import ResponseModel

PANELS_ACROSS = 5
MOST_ROOMY = 10  # domains up to which a matrix has room for errors in its cells


def plot_response(
    model: ResponseModel,
    capability: str,
    domain: str,
    *,
    base: Array | None = None,
    proposal: Array | None = None,
    runs: tuple[Array, Array] | None = None,
    keep: Array | None = None,
    names: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Draw one capability against one domain's volume: the fit, its band, runs, base, proposal, and where rows repeat.

    Args:
        model: the fitted response.
        capability: what is judged.
        domain: whose volume varies; the others stay (see `keep`).
        base: volumes (D,) that the solid curve goes through; default the model's base.
        proposal: volumes (D,) that a dashed curve goes through.
        runs: volumes (R, D) and losses (R, J), drawn where the fit moves them onto the solid curve.
        keep: weights (D,), tokens a row say, whose total the other domains keep in proportion; None leaves them.
        names: label axes and title; False inside a grid of panels.
        ax: axes to draw on.

    Returns:
        Axes: volume across, loss up.
    """
    ax = new_axes(4.2, 3.0, ax)
    index, j = list(model.domain_names_).index(domain), list(model.target_names_).index(capability)
    base = model_base(model) if base is None else np.asarray(base, dtype=float)
    small = eta(model)
    low, high = range_of(model, index, base, proposal, runs)
    curve = slice_through(model, base, domain, low=low, high=high, keep=keep)
    ax.fill_between(curve.volumes, curve.lower[:, j], curve.upper[:, j], color=BLUE, alpha=0.16, linewidth=0)
    ax.plot(curve.volumes, curve.mean[:, j], color=BLUE, linewidth=1.6)
    if runs is not None:
        volumes, partial = partial_losses(model, base, domain, *runs, keep=keep)
        ax.plot(volumes, partial[:, j], linestyle="none", marker=".", markersize=4.5, color=MUTED, alpha=0.8)
    if proposal is not None:
        proposal = np.asarray(proposal, dtype=float)
        other = slice_through(model, proposal, domain, low=low, high=high, keep=keep, band=False)
        ax.plot(other.volumes, other.mean[:, j], color=VERMILLION, linewidth=1.2, linestyle="--")
        there = predict(model, proposal[None], 0.0)[0][0, j]
        ax.plot([proposal[index]], [there], **PROPOSAL)
    here = predict(model, base[None], 0.0)[0][0, j]
    ax.plot([base[index]], [here], **BASE)
    volume_axis(ax, low, high, small=small, unit=model.unit, ticks=5 if names else 4)
    available = model.volumes_.available
    if available is not None and high > available[index]:
        ax.axvspan(float(available[index]), ax.get_xlim()[1], color=PURPLE, alpha=0.14, linewidth=0)
    if names:
        unit = "share" if model.unit == "share" else "rows"
        value = "loss, nats" if model.kinds_[j] == "loss" else "score"
        caption(ax, x=f"{unit} of {label(domain)}", y=value, title=label(capability))
    return ax


def response_key(*, proposal: bool = True, runs: bool = True, repeats: bool = True) -> list[Any]:
    """List what the marks of `plot_response` mean."""
    key: list[Any] = [
        Line2D([], [], color=BLUE, linewidth=1.6, marker="o", markerfacecolor=PAPER, label="fit through base"),
        Patch(color=BLUE, alpha=0.16, label="90% interval of a run"),
    ]
    if runs:
        key.append(Line2D([], [], linestyle="none", marker=".", color=MUTED, label="runs, moved along the fit"))
    if proposal:
        key.append(
            Line2D([], [], color=VERMILLION, linestyle="--", marker="D", markersize=5.5, label="through the proposal")
        )
    if repeats:
        key.append(Patch(color=PURPLE, alpha=0.14, label="rows repeat"))
    return key


def figure_responses(
    model: ResponseModel,
    capability: str,
    *,
    domains: Sequence[str] | None = None,
    base: Array | None = None,
    proposal: Array | None = None,
    runs: tuple[Array, Array] | None = None,
    keep: Array | None = None,
) -> Figure:
    """Draw one capability against every domain, a panel each on one scale; arguments as of `plot_response`."""
    chosen = list(model.domain_names_) if domains is None else list(domains)
    across = min(PANELS_ACROSS, len(chosen))
    down = -(-len(chosen) // across)
    figure = new_figure(max(5.5, 2.05 * across), 1.9 * down + 0.55)
    panels = figure.subplots(down, across, sharey=True, squeeze=False)
    for number, panel in enumerate(panels.ravel()):
        if number >= len(chosen):
            panel.set_axis_off()
            continue
        plot_response(
            model, capability, chosen[number], base=base, proposal=proposal, runs=runs, keep=keep, names=False, ax=panel
        )
        caption(panel, x=label(chosen[number], 22))
        if number % across == 0:
            judged = model.kinds_[list(model.target_names_).index(capability)]
            caption(panel, y=f"{label(capability, 18)}\n{'loss, nats' if judged == 'loss' else 'score'}")
    key = response_key(
        proposal=proposal is not None, runs=runs is not None, repeats=model.volumes_.available is not None
    )
    legend(figure, key, loc="outside lower center", ncols=3)
    return figure


def plot_response_matrix(
    matrix: ResponseMatrix,
    domains: Sequence[str],
    capabilities: Sequence[str],
    *,
    per: float = 0.1,
    unit: str = "nats",
    ax: Axes | None = None,
) -> Axes:
    """Draw what more of each domain does to each capability; cells within noise are greyed.

    Args:
        matrix: responses ∂L/∂log v with errors, (J, D).
        domains: D names.
        capabilities: J names.
        per: the change that cells show, as a relative increase of the volume; 0.1 shows the effect of 10 % more rows.
        unit: of the capabilities.
        ax: axes to draw on.

    Returns:
        Axes: domains across, capabilities down.
    """
    J, D = matrix.values.shape
    roomy = D <= MOST_ROOMY
    ax = new_axes(max(4.0, 1.9 + (1.06 if roomy else 0.62) * D), 1.3 + (0.56 if roomy else 0.36) * J, ax)
    factor = float(np.log1p(per))
    values, errors = matrix.values * factor, matrix.errors * factor
    largest = float(np.abs(values).max()) or 1.0
    digits = max(2, int(np.ceil(-np.log10(largest))) + (2 if roomy else 1))
    for j in range(J):
        for i in range(D):
            noise = bool(matrix.within_noise[j, i])
            strength = abs(values[j, i]) / largest
            face, alpha = (NOISE, 0.35) if noise else (BLUE if values[j, i] < 0 else VERMILLION, 0.1 + 0.5 * strength)
            ax.add_patch(Rectangle((i - 0.5, j - 0.5), 1, 1, facecolor=face, alpha=alpha, linewidth=0))
            colour, size = MUTED if noise else INK, FONT if roomy else FONT - 2
            up = 0.12 if roomy else 0.0
            ax.text(i, j - up, f"{values[j, i]:+.{digits}f}", ha="center", va="center", fontsize=size, color=colour)
            if roomy:
                error = f"± {errors[j, i]:.{digits}f}"
                ax.text(i, j + 0.24, error, ha="center", va="center", fontsize=FONT - 2, color=colour)
    ax.set_xlim(-0.5, D - 0.5)
    ax.set_xticks(range(D), [label(name, 16) for name in domains])
    if max(len(label(name, 16)) for name in domains) > (13 if roomy else 6):
        for tick in ax.get_xticklabels():
            tick.set(rotation=30, horizontalalignment="right", rotation_mode="anchor")
    ax.tick_params(axis="x", length=0, labelsize=FONT)
    rows_of_names(ax, capabilities)
    ax.set_ylim(J - 0.5, -0.5)
    ax.grid(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_visible(False)
    caption(ax, x="domain", y="capability", title=f"change in {unit} from {per:.0%} more rows")
    return ax


def model_base(model: ResponseModel) -> Array:
    """Return the base that the model was given, or the mean mixture's scale where it has none."""
    for given in (model.base, model.available):
        if given is not None:
            return np.asarray(given, dtype=float)
    D = len(model.domain_names_)
    return np.full(D, 1 / D if model.unit == "share" else float(model.volumes_.scale))


def range_of(
    model: ResponseModel, index: int, base: Array, proposal: Array | None, runs: tuple[Array, Array] | None
) -> tuple[float, float]:
    """Say which volumes of a domain a curve covers: what was run, base and proposal."""
    seen = [float(base[index])]
    if proposal is not None:
        seen.append(float(proposal[index]))
    if runs is not None:
        seen += [float(runs[0][:, index].min()), float(runs[0][:, index].max())]
    if len(set(seen)) == 1:
        seen += [seen[0] / 4, max(4 * seen[0], 100 * eta(model))]
    low, high = min(seen), max(seen)
    return low, min(high, 0.999) if model.unit == "share" else high
