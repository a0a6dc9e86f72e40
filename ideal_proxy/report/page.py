"""The report as one HTML page: no network, readable in print, in the dark, by a screen reader and without script.

The page is made of the numbers of `report.json`, of figures and of what the explorer computes with. `templates/` lays
them out; every text from outside is escaped, and the one script is named by its hash.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
import markupsafe

from ideal_proxy.mixture import IMPROVES, NO_BETTER, UNDECIDED
from ideal_proxy.report.explorer import embed, script
from ideal_proxy.report.plot_style import THEME
from ideal_proxy.report.steps import proxy_text
from ideal_proxy.report.text import says
from ideal_proxy.terminal import change_text, count_text, duration, interval_text, number_text, sentence

FORMAT = "ideal-proxy/report/1"
MARKS = {IMPROVES: ("✓", "good"), NO_BETTER: ("=", "same"), UNDECIDED: ("?", "open")}
DARK = {
    "ink": "#e6e9ed", "muted": "#9aa4b0", "grid": "#333a43", "paper": "#171b21", "noise": "#4a525d", "blue": "#56b4e9",
    "vermillion": "#ff8c42", "green": "#2fc79b", "purple": "#e3a1c6", "sky": "#9bd3f5", "orange": "#f0b840",
    "yellow": "#e6d94a",
}  # fmt: skip
THEMES = {"light": THEME, "dark": DARK}


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One figure of the page: its name (`response-…` for curves), its title, not escaped, and the SVG element."""

    name: str
    title: str
    svg: str


def page(numbers: dict[str, Any], pictures: Sequence[Picture], explorer: dict[str, Any] | None = None) -> str:
    """Compose the page of the numbers of `report.json`, its figures, and what its explorer needs."""
    variables = {key: ";".join(f"--{n}:{c}" for n, c in theme.items()) for key, theme in THEMES.items()}
    text, digest = script()
    return _templates().get_template("page.html.jinja").render(
        numbers, explorer=explorer, explorer_json=embed(explorer), script=text, script_hash=digest,
        pictures={picture.name: picture for picture in pictures},
        mark=MARKS.get(numbers["verdict"]["answer"], ("·", "same")), **variables,
    )  # fmt: skip


def escape(text: Any) -> markupsafe.Markup:
    """Make any text safe inside HTML and its attributes: escaped, without control characters."""
    return markupsafe.escape(_printable(text))


def _templates() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("ideal_proxy.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined, finalize=_printable,
    )  # fmt: skip
    made.filters |= {
        "as": number_text, "interval": interval_text, "says": says, "change": change_text, "many": count_text,
        "sentence": sentence, "duration": duration, "proxy_text": proxy_text,
    }  # fmt: skip
    made.globals |= {"with_errors": _with_errors, "measured": _measured}
    return made


def _printable(text: Any) -> Any:
    """Drop control characters; what is marked as HTML already stays."""
    return text if hasattr(text, "__html__") else "".join(c for c in str(text) if c.isprintable() or c in " \n")


def _with_errors(found: dict[str, Any], capability: int, domains: Sequence[int]) -> list[str]:
    values, errors = found["values"][capability], found["errors"][capability]
    return [f"{values[i]:+.4f} ± {errors[i]:.4f}" for i in domains]


def _measured(found: dict[str, Any], capability: int, domains: Sequence[int]) -> list[str]:
    """Write a capability's responses that gradients measured, scaled where the fit gave a scale."""
    scale = found["scale"][capability] if found["scale"] else 1.0
    values, errors, doubts = (found[key][capability] for key in ("M", "se", "unresolved"))
    return [
        "" if values[i] is None or errors[i] is None
        else f"{scale * values[i]:+.4g} ± {scale * errors[i]:.2g}{'?' if doubts[i] else ''}"
        for i in domains
    ]  # fmt: skip
