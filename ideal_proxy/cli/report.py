"""The commands that look at a finished search: `report` and `what-if`. Heavy imports stand inside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ideal_proxy.cli.options import Json, RunFolder
from ideal_proxy.terminal import say, step


def register(app: typer.Typer) -> None:
    """Add the commands to an application."""
    app.command(epilog="Example: ideal-proxy report runs/mix")(report)
    app.command(epilog="Example: ideal-proxy price runs/mix --add data/legal.jsonl --rows 1000")(price)
    app.command(epilog="Example: ideal-proxy compare runs/mix runs/mix2")(compare)
    app.command(epilog="Example: ideal-proxy what-if runs/mix --set coding=6000 --set trust=-20%")(what_if)


def report(
    run: RunFolder,
    out: Annotated[Path | None, typer.Option(help="Folder to write to; default the run directory.")] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Only report.md: a mixture card for a pull request or a paper.")
    ] = False,
    pdf: Annotated[
        bool, typer.Option("--pdf", help="Every figure as PDF too: 175 mm wide, simple ones also 85 mm.")
    ] = False,
    as_json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")] = False,
) -> None:
    """Write one page, figures and all numbers of a search."""
    # That is report.html (self-contained, no network), figures/ (SVG and PNG) and report.json.
    from ideal_proxy.pipeline import load_run
    from ideal_proxy.report import mixture_card, write_report
    from ideal_proxy.store import atomic_write_text, run_folder
    from ideal_proxy.terminal import Reporter

    if markdown:
        path = (out or run_folder(run)) / "report.md"
        text = mixture_card(load_run(run))
        atomic_write_text(path, text)
        say(json.dumps({"markdown": str(path), "text": text}) if as_json else f"card     {path}")
        return
    reporter = Reporter(quiet=quiet or as_json)
    reporter.note("report: numbers, figures and the page of a search take half a minute or so")
    with reporter.work("report", 1.0) as progress:
        written = write_report(run_folder(run), out, progress=progress, pdf=pdf)
    if as_json:
        say(written.numbers.read_text(encoding="utf-8"), end="")
        return
    say(f"page     {written.page} ({written.page.stat().st_size / 1024:,.0f} KB, opens without network)")
    say(f"numbers  {written.numbers}")
    kinds = "SVG, PNG and PDF" if pdf else "SVG and PNG"
    say(f"figures  {len(written.figures)} {kinds} files in {written.figures[0].parent}")


def price(
    run: RunFolder,
    add: Annotated[list[str], typer.Option(help="File, glob, folder or hub id of a set that is in no mixture yet.")],
    name: Annotated[list[str] | None, typer.Option(help="Its name; default that of the file.")] = None,
    rows: Annotated[int, typer.Option(min=1, help="So many rows in place of as many tokens of base.")] = 1000,
    runs: Annotated[int, typer.Option(min=0, help="Train so many proxies with it; 0 takes gradients alone.")] = 0,
    out: Annotated[Path | None, typer.Option(help="With --runs: their run directory; default runs/price-NAME.")] = None,
    form: Annotated[str, typer.Option("--format", help="auto, alpaca, chat or prompt.")] = "auto",
    as_json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")] = False,
) -> None:
    """Say what a set is worth before it is in any mixture."""
    # From gradients of stored base proxies on its rows, or from a few runs beside the earlier ones.
    from ideal_proxy.pipeline import load_run, names_of_sources, price_by_gradients, price_by_runs
    from ideal_proxy.terminal import Reporter, paragraph

    reporter, loaded, found = Reporter(quiet=quiet or as_json), load_run(run), []
    for source, called in zip(add, names_of_sources(add, name or []), strict=True):
        told: dict[str, Any] = {"name": called, "rows": rows, "form": form, "reporter": reporter}
        if runs:
            place = out or Path("runs") / f"price-{called}"
            found.append(price_by_runs(loaded, source, runs=runs, out=place, **told))
        else:
            found.append(price_by_gradients(loaded, source, **told))
    for one in found if not as_json else ():
        say(paragraph(f"{one.sentence()}."))
    if as_json:
        say(json.dumps([one.to_dict() for one in found], indent=1))


def compare(
    first: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    second: Annotated[Path, typer.Argument(metavar="RUN", help="Another one.")],
    as_json: Json = False,
) -> None:
    """Lay the results of two searches side by side."""
    from ideal_proxy.pipeline import load_run
    from ideal_proxy.report import comparison_tables, comparison_values

    runs = load_run(first), load_run(second)
    say(json.dumps(comparison_values(*runs), indent=1) if as_json else comparison_tables(*runs))


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
    out: Annotated[
        Path | None,
        typer.Option(metavar="MIXTURE.JSON", help="Also write it as a mixture file, for apply, export and scale-up."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Predict the losses of a mixture of your own."""
    from ideal_proxy.errors import UsageError
    from ideal_proxy.mixture import save_mixture
    from ideal_proxy.pipeline import load_run
    from ideal_proxy.report import mixture_of, read_settings, what_if_tables
    from ideal_proxy.report import what_if as ask

    if out is not None and out.exists():
        raise UsageError(f"{out} exists; give another name")
    loaded = load_run(run)
    answer = ask(loaded, read_settings(changes or [], loaded.domains), start=start, keep_total=keep_total)
    if out is not None:
        save_mixture(out, mixture_of(loaded, answer))
    say(json.dumps(answer.to_dict(), indent=1) if as_json else what_if_tables(answer))
    if out is not None and not as_json:
        say(f"Mixture file: {out} (predicted, not checked)")
        say(step("next: ", f"apply {out} --out DIR"))
