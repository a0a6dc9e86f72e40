"""`ideal-proxy report`: every number of a search as JSON, every figure as SVG and PNG, and one page that holds both.

Legend: D domains, J capabilities.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ideal_proxy.errors import UserError
from ideal_proxy.pipeline import SearchRun, load_run
from ideal_proxy.report import plots
from ideal_proxy.report.explorer import explorer
from ideal_proxy.report.few import evenly, few
from ideal_proxy.report.numbers import (
    Front,
    collect,
    cost_stages,
    keep_weights,
    response_unit,
    responses_at_base,
    shown_domains,
)
from ideal_proxy.report.page import Picture, escape, page
from ideal_proxy.report.plot_style import inline_svg, pdf_files, png_bytes, settle, svg_text
from ideal_proxy.store import atomic_write_bytes, atomic_write_json, atomic_write_text
from ideal_proxy.terminal import Update


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was written."""

    page: Path  # the self-contained HTML page
    numbers: Path  # the JSON file with every number shown
    figures: tuple[Path, ...]  # SVG and PNG files, PDF where asked for


def write_report(
    run: SearchRun | str | Path, out: str | Path | None = None, *, progress: Update | None = None, pdf: bool = False
) -> Report:
    """Write `report.html`, `report.json` and `figures/` for a finished search.

    Args:
        run: the search, or its run directory.
        out: folder to write to; default the run directory.
        progress: told the share that is done and what comes next.
        pdf: write every figure as PDF too, 175 mm wide, and plots of one panel as `NAME.column.pdf`, 85 mm wide.

    Returns:
        Report: the files.

    Raises:
        UserError: the search is not finished, or the disk is full.
    """
    run = run if isinstance(run, SearchRun) else load_run(run)
    folder = Path(out) if out is not None else run.folder
    if out is None and (folder / "figures").is_symlink():  # a stranger's run directory would have them written anywhere
        raise UserError(f"{folder / 'figures'} is a link; remove it, or name a folder to write to with --out")
    tell = progress or (lambda *_: None)
    tell(0.02, "numbers of the page")
    numbers, front = collect(run)
    pictures, files = [], []
    for count, (name, title, figure, shown) in enumerate(figures(run, front)):
        tell(0.3 + 0.7 * count / (count + 4), f"figure {name}")
        settle(figure)
        text = svg_text(figure)
        for suffix, content in _rendered(figure, text, pdf=pdf).items():
            files.append(folder / "figures" / f"{name}.{suffix}")
            atomic_write_bytes(files[-1], content)
        if shown:
            pictures.append(Picture(name=name, title=title, svg=inline_svg(text, name, escape(title))))
    atomic_write_json(folder / "report.json", numbers)
    atomic_write_text(folder / "report.html", page(numbers, pictures, explorer(run)))
    return Report(page=folder / "report.html", numbers=folder / "report.json", figures=tuple(files))


def _rendered(figure: Figure, svg: str, *, pdf: bool) -> dict[str, bytes]:
    files = {"svg": svg.encode(), "png": png_bytes(figure)}
    return files | (pdf_files(figure) if pdf else {})


def figures(run: SearchRun, front: Front | None) -> Iterator[tuple[str, str, Figure, bool]]:
    """Draw every figure of the report, of a large search less."""
    model, base, part = run.model, run.base, few(run)
    narrow = part.of(run)
    yield "verdict", "Gain, verified and predicted", _of(plots.plot_verdict(run)), True
    yield "volumes", "Rows of each domain, base and proposal", _of(plots.plot_volumes(narrow)), True
    yield "shares", "Tokens, shares and repeats of each domain, base and proposal", plots.figure_volumes(narrow), True
    yield "losses", "Change of each capability's loss against base", _of(plots.plot_losses(narrow)), True
    keep = keep_weights(run)
    runs = run.at_size().iloc[evenly(len(run.at_size()), part.marks)]
    observed = (run.volumes(runs), run.values(runs))
    for capability, shown in shown_domains(run, part).items():
        j = run.capabilities.index(capability)
        for name, domains, on_page in _panel_groups(run.domains, shown)[: 1 if part.large else None]:
            which = "every domain" if len(domains) == len(run.domains) else "the domains it answers to most"
            which = which if on_page else "further domains"
            figure = plots.figure_responses(
                model, capability, domains=domains, base=base, proposal=run.proposal, runs=observed, keep=keep
            )
            yield (
                f"response-{j + 1:02d}-{_slug(capability)}{name}",
                f"{capability} against {which}",
                figure,
                on_page,
            )
    share = base * run.prepared.domains.lengths
    for name, title, matrix in (
        ("responses", "Response: rows added, the others stay", responses_at_base(run)),
        ("mixing", "Response at the same number of steps", responses_at_base(run, share=share / share.sum())),
    ):
        matrix = matrix.part(part.capabilities, part.domains)
        drawn = plots.plot_response_matrix(matrix, *part.names(run), unit=response_unit(run))
        yield name, title, _of(drawn), True
    drawn = plots.plot_predicted_observed(part.held_out(run))
    yield "held-out", "Predicted and observed losses of runs not fitted", _of(drawn), True
    yield "movement", "How far volumes may move", _of(plots.plot_movement(narrow)), True
    if front is not None:
        drawn = plots.plot_pareto(front[0], proposal=front[1])
        yield "pareto", "What one group of capabilities costs the other", _of(drawn), True
    yield "cost", "Tokens trained on, by stage", _of(plots.plot_cost(cost_stages(run))), True


def _panel_groups(domains: list[str], shown: list[str]) -> list[tuple[str, list[str], bool]]:
    """Split a capability's panels into what the page shows and the rest, 25 a figure."""
    rest = [name for name in domains if name not in shown]
    groups = [("", shown, True)]
    return groups + [(f"-more-{k // 25 + 1}", rest[k : k + 25], False) for k in range(0, len(rest), 25)]


def _of(ax: Any) -> Figure:
    figure: Figure = ax.figure
    return figure


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower()[:40] or "capability"
