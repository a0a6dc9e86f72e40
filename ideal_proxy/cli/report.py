"""The commands that look at a finished search: `report` and `what-if`. Heavy imports stand inside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ideal_proxy.cli.options import Json, RunFolder


def register(app: typer.Typer) -> None:
    """Add the commands to an application."""
    app.command(epilog="Example: ideal-proxy report runs/mix")(report)
    app.command(epilog="Example: ideal-proxy what-if runs/mix --set coding=6000 --set trust=-20%")(what_if)


def report(
    run: RunFolder,
    out: Annotated[Path | None, typer.Option(help="Folder to write to; default the run directory.")] = None,
    as_json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")] = False,
) -> None:
    """Write one page, figures and all numbers of a search."""
    # That is report.html (self-contained, no network), figures/ (SVG and PNG) and report.json.
    from ideal_proxy.report import write_report
    from ideal_proxy.store import run_folder
    from ideal_proxy.terminal import Reporter

    reporter = Reporter(quiet=quiet or as_json)
    reporter.note("report: numbers, figures and the page of a search take half a minute or so")
    with reporter.work("report", 1.0) as progress:
        written = write_report(run_folder(run), out, progress=progress)
    if as_json:
        print(written.numbers.read_text(encoding="utf-8"), end="")
        return
    print(f"page     {written.page} ({written.page.stat().st_size / 1024:,.0f} KB, opens without network)")
    print(f"numbers  {written.numbers}")
    print(f"figures  {len(written.figures)} SVG and PNG files in {written.figures[0].parent}")


def what_if(
    run: RunFolder,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VOLUME",
            help="Rows (6000), a change (+500, -20%) or a share of the rows there are (30%, 2x); may repeat.",
        ),
    ] = None,
    start: Annotated[str, typer.Option("--from", help="Where the other domains start: base or proposal.")] = "base",
    keep_total: Annotated[
        bool, typer.Option("--keep-total", help="Scale the other domains to the base's tokens.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Predict the losses of a mixture of your own."""
    from ideal_proxy.pipeline import load_run
    from ideal_proxy.report import read_settings, what_if_tables
    from ideal_proxy.report import what_if as ask

    loaded = load_run(run)
    answer = ask(loaded, read_settings(changes or [], loaded.domains), start=start, keep_total=keep_total)
    print(json.dumps(answer.to_dict(), indent=1) if as_json else what_if_tables(answer))
