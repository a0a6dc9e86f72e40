"""How figures look: colours that colour-blind readers tell apart, axes for volumes, SVG that follows the page's theme.

Figures are made with matplotlib's object interface alone: no pyplot, no backend, no global state.
"""

from __future__ import annotations

import io
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from numpy.typing import NDArray

Array = NDArray[np.float64]

INK, MUTED, GRID, PAPER, NOISE = "#1a1f26", "#5f6873", "#dde1e6", "#fffffe", "#c9ced6"
BLUE, VERMILLION, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#cc79a7"
SKY, ORANGE, YELLOW = "#56b4e9", "#e69f00", "#b8a800"
CYCLE = (BLUE, VERMILLION, GREEN, PURPLE, SKY, ORANGE, YELLOW)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
THEME = {
    "ink": INK, "muted": MUTED, "grid": GRID, "paper": PAPER, "noise": NOISE, "blue": BLUE,
    "vermillion": VERMILLION, "green": GREEN, "purple": PURPLE, "sky": SKY, "orange": ORANGE, "yellow": YELLOW,
}  # fmt: skip
FONT = 9.0
LONGEST_NAME = 26
PNG_DPI = 150
PRINTED = {"pdf": (175.0, 8.0, 1.0), "column.pdf": (85.0, 7.0, 0.8)}  # millimetres, points of its type, share of height
FEW_TEXTS = 24  # in a plot; more are a table of numbers
OFTEN = 4


# Marks of the base mixture and of the proposal, in every figure.
BASE: dict[str, Any] = {
    "linestyle": "none", "marker": "o", "markersize": 6.5, "color": BLUE, "markerfacecolor": PAPER,
    "markeredgewidth": 1.5, "zorder": 4,
}  # fmt: skip
PROPOSAL: dict[str, Any] = {"linestyle": "none", "marker": "D", "markersize": 6, "color": VERMILLION, "zorder": 4}


def new_axes(width: float = 7.2, height: float = 3.6, ax: Axes | None = None) -> Axes:
    """Return axes to draw on."""
    if ax is None:
        ax = new_figure(width, height).add_subplot()
    dress(ax)
    return ax


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure that no global registry knows."""
    return Figure(figsize=(width, height), layout="constrained", facecolor=PAPER)


def dress(ax: Axes) -> None:
    """Give axes the house style: no box, quiet grid, small type."""
    ax.set_facecolor("none")
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color(MUTED)
        ax.spines[side].set_linewidth(0.8)
    ax.tick_params(labelsize=FONT - 1, colors=MUTED, labelcolor=INK, width=0.8)
    ax.grid(True, color=GRID, linewidth=0.6)
    ax.set_axisbelow(True)


def label(text: str, longest: int = LONGEST_NAME) -> str:
    """Make a name safe for a figure: cut in the middle, without mathematics, and kept in legends."""
    clean = " ".join("".join(c if c.isprintable() else " " for c in text).split()) or "·"
    if len(clean) > longest:  # names often differ at their ends: "wiki part 1", "wiki part 2"
        tail = (longest - 1) // 3
        clean = f"{clean[: longest - 1 - tail].rstrip()}…{clean[len(clean) - tail :].lstrip()}"
    clean = clean.replace("$", r"\$")
    return "\u200b" + clean if clean.startswith("_") else clean


def volume_text(value: float, unit: str = "rows") -> str:
    """Write a volume in few characters."""
    if unit == "share":
        return f"{value:.3g}" if 0 < value < 0.01 else f"{value:.0%}"
    for size, mark in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{mark}"
    return f"{value:.3g}"


def volume_axis(
    ax: Axes, low: float, high: float, *, small: float, unit: str = "rows", ticks: int = 5, which: str = "x"
) -> None:
    """Scale an axis by log(v + η), η being `small`: equal steps are equal ratios, and zero has a place."""
    floor = -small * (1 - 1e-9)

    def forward(v: Any) -> Any:
        return np.log(np.maximum(v, floor) + small)

    def backward(z: Any) -> Any:
        return np.exp(np.minimum(z, 60.0)) - small

    axis = ax.xaxis if which == "x" else ax.yaxis
    (ax.set_xscale if which == "x" else ax.set_yscale)("function", functions=(forward, backward))
    z_low, z_high = float(forward(low)), float(forward(high))
    margin = 0.04 * max(z_high - z_low, 0.1)
    shown = float(backward(z_low - margin)), float(backward(z_high + margin))
    (ax.set_xlim if which == "x" else ax.set_ylim)(*shown)
    axis.set_major_locator(FixedLocator(_nice_volumes(shown[0], shown[1], forward, ticks)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda v, _: volume_text(v, unit)))


def _nice_volumes(low: float, high: float, forward: Any, ticks: int) -> list[float]:
    """Choose round volumes that stand well apart."""
    powers = range(-6, 13)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        values = [s * 10.0**p for p in powers for s in steps if max(low, 0) <= s * 10.0**p <= high]
        if low <= 0:
            values = [0.0, *values]
        least = (forward(high) - forward(low)) / (ticks + 0.5)
        kept: list[float] = []
        for value in values:
            if not kept or forward(value) - forward(kept[-1]) >= least:
                kept.append(value)
        if len(values) <= ticks or steps == (1,):
            break
    if len(kept) < 2:
        kept = [max(low, 0.0), high]
        kept = [float(f"{v:.2g}") for v in kept]
    return kept


def percent_axis(ax: Axes, which: str = "x") -> None:
    """Label an axis of relative changes in signed per cent."""
    axis = ax.xaxis if which == "x" else ax.yaxis
    axis.set_major_formatter(FuncFormatter(lambda v, _: "0%" if abs(v) < 1e-9 else f"{100 * v:+.3g}%"))


def interval(
    ax: Axes,
    place: float,
    bound: tuple[float, float, float],
    *,
    colour: str,
    marker: str = "o",
    filled: bool = True,
    name: str | None = None,
) -> Any:
    """Draw an estimate with its interval on a horizontal line."""
    value, low, high = bound
    ax.plot([low, high], [place, place], color=colour, linewidth=2.2, solid_capstyle="butt", alpha=0.75)
    (line,) = ax.plot(
        [value], [place], linestyle="none", marker=marker, markersize=7, color=colour,
        markerfacecolor=colour if filled else PAPER, markeredgewidth=1.5, label=name, zorder=3,
    )  # fmt: skip
    return line


def rows_of_names(ax: Axes, names: Sequence[str], longest: int = LONGEST_NAME) -> None:
    """Write names down the left side, the first one on top."""
    ax.set_yticks(range(len(names)), [label(name, longest) for name in names])
    ax.set_ylim(len(names) - 0.45, -0.55)
    ax.tick_params(axis="y", length=0, labelsize=FONT)
    ax.grid(False, axis="y")


def caption(ax: Axes, *, x: str = "", y: str = "", title: str = "") -> None:
    """Name the axes in the house type."""
    if x:
        ax.set_xlabel(x, fontsize=FONT, color=INK)
    if y:
        ax.set_ylabel(y, fontsize=FONT, color=INK)
    if title:
        ax.set_title(title, fontsize=FONT + 1, color=INK, loc="left")


def legend(target: Axes | Figure, handles: Sequence[Any] | None = None, **options: Any) -> None:
    """Add a legend in the house type."""
    options = {
        "frameon": False, "fontsize": FONT - 0.5, "labelcolor": INK, "columnspacing": 1.2, "handletextpad": 0.5,
    } | options  # fmt: skip
    if handles is not None:
        options["handles"] = list(handles)
    target.legend(**options)


def settle(figure: Figure) -> None:
    """Lay a figure out once and for all, so that writing it in several formats does not repeat it."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


def _canvas(kind: Any, figure: Figure) -> Any:
    """Give a figure a canvas that writes it at once, where `savefig` would draw it twice."""
    return kind(figure)


def svg_text(figure: Figure) -> str:
    """Render a figure as SVG with text that stays text; equal figures give equal bytes."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "ideal-proxy"}):
        _canvas(FigureCanvasSVG, figure).print_svg(buffer, metadata={"Date": None})
    # Two decimals of a place; numbers in texts stay as they are.
    places = re.compile(r' (?:d|x|y|transform)="[^"]*"')
    return places.sub(lambda found: re.sub(r"(\d\.\d\d)\d+", r"\1", found[0]), buffer.getvalue())


def png_bytes(figure: Figure) -> bytes:
    """Render a figure as PNG."""
    buffer, before = io.BytesIO(), figure.dpi
    figure.dpi = PNG_DPI
    _canvas(FigureCanvasAgg, figure).print_png(buffer, metadata={"Software": None})
    figure.dpi = before
    return buffer.getvalue()


def _needs_width(figure: Figure) -> bool:
    """Whether a column is too narrow: for several panels, a table of numbers or a long key beside the plot."""
    first = figure.axes[0]
    key = first.get_legend()
    return bool(len(figure.axes) > 1 or first.images or len(first.texts) > FEW_TEXTS or (
        key is not None and len(key.get_texts()) > 4
    ))  # fmt: skip


def pdf_files(figure: Figure) -> dict[str, bytes]:
    """Lay a figure out anew for paper, and render it as PDF with text that stays text: by suffix, see PRINTED."""
    written = [(text, float(text.get_fontsize())) for text in figure.findobj(Text)]
    width, height = figure.get_size_inches()
    files = {}
    for suffix, (millimetres, points, share) in PRINTED.items():
        if suffix != "pdf" and _needs_width(figure):
            continue
        for text, size in written:
            text.set_fontsize(size * points / FONT)
        figure.set_size_inches(min(millimetres / 25.4, width), share * height)
        figure.set_layout_engine("constrained")
        settle(figure)
        buffer = io.BytesIO()
        with mpl.rc_context({"pdf.fonttype": 42}):
            _canvas(FigureCanvasPdf, figure).print_pdf(buffer, metadata={"CreationDate": None})
        files[suffix] = buffer.getvalue()
    return files


def inline_svg(text: str, name: str, title: str) -> str:
    """Turn an SVG document into an element of a page that scales, follows the theme, and is read aloud by its title."""
    # Every id begins with the name, which must be unique on the page; the title is escaped already.
    body = text[text.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.S)
    body = re.sub(r"<!--.*?-->", "", body, flags=re.S)
    body = body.replace("xlink:href", "href")
    used = set(re.findall(r'href="#([^"]+)"', body)) | set(re.findall(r"url\(#([^)]+)\)", body))
    body = re.sub(r' id="([^"]+)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", body)
    body = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", body)
    for variable, colour in THEME.items():
        body = body.replace(colour, f"var(--{variable})")
    body = re.sub(r"font: ([\d.]+)px [^;\"]+", r"font: \1px var(--font)", body)
    body, classes = _classes(re.sub(r"\n\s*", "\n", body), f"s{zlib.crc32(name.encode()):x}-")
    head = re.match(r"<svg[^>]*>", body)
    box = re.search(r'viewBox="([^"]+)"', head[0]) if head else None
    if head is None or box is None:
        raise ValueError("not an SVG document")
    width = float(box[1].split()[2])
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box[1]}" role="img" aria-label="{title}" '
        f'style="max-width:{1.333 * width:.0f}px"><title>{title}</title>'
    )
    return opening + classes + body[head.end() :].strip()


def _classes(body: str, prefix: str) -> tuple[str, str]:
    """Say styles that stand often once: a run's mark is short then, and pages of many runs stay small."""
    counts = Counter(re.findall(r' style="([^"]*)"', body))
    names = {style: f"{prefix}{k}" for k, (style, count) in enumerate(counts.most_common()) if count > OFTEN}
    body = re.sub(r' style="([^"]*)"', lambda m: f' class="{names[m[1]]}"' if m[1] in names else m[0], body)
    rules = "".join(f".{name}{{{style}}}" for style, name in names.items())
    return body, f"<style>{rules}</style>" if rules else ""
