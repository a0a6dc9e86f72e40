"""The command line: thin commands; every heavy import stands inside the command that needs it."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Annotated, Any

import typer

from ideal_proxy import __version__
from ideal_proxy.cli import influence as cli_influence
from ideal_proxy.cli import preview as cli_preview
from ideal_proxy.cli import report as cli_report
from ideal_proxy.cli import scaleup as cli_scaleup
from ideal_proxy.cli import tables as cli_tables
from ideal_proxy.cli.options import Json, Mixture, Public, Push, Quiet, RunFolder, Track, open_mixture
from ideal_proxy.errors import MOST_SEED, UsageError, UserError
from ideal_proxy.terminal import HarmlessRecord, say

app = typer.Typer(
    name="ideal-proxy",
    help="How many rows of each data set should go into this fine-tune? Small proxies answer, with error bars.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

START = (
    "Start with a folder of rows: ideal-proxy init data/ (it says what comes next). Without data: ideal-proxy search "
    "runs an embedded demo, one to three minutes."
)
WATCH_SECONDS = 2.0
ORDER = (  # of the list of commands: as a user needs them
    "init", "check", "preview", "plan", "search", "status", "show", "report", "compare", "what-if", "price", "apply",
    "export", "transfer", "scale-up", "influence", "fit", "predict", "optimize",
)  # fmt: skip


def _called(command: Any) -> str:
    """Return the name by which a registered command is called."""
    return command.name or str(command.callback.__name__).replace("_", "-")


def _version(wanted: bool) -> None:
    if wanted:
        say(f"ideal-proxy {__version__}")
        raise typer.Exit


@app.callback(epilog=START)
def root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """How many rows of each data set should go into this fine-tune? Small proxies answer, with error bars."""


@app.command(epilog="Example: ideal-proxy init data/ --out mix.yaml")
def init(
    folder: Annotated[Path, typer.Argument(help="Folder with one file or folder of rows a domain.")],
    out: Annotated[Path, typer.Option(help="The run file to write.")] = Path("mix.yaml"),
    hold_out: Annotated[
        int | None,
        typer.Option(min=1, help="Reference rows to hold out where a domain has none; at most a quarter of it."),
    ] = None,
    split_by: Annotated[
        str | None,
        typer.Option(
            metavar="HOW", help="Several domains out of one: a column, quantile:COLUMN:3, cluster:8 or cluster:8:MODEL."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing run file.")] = False,
    as_json: Json = False,
) -> None:
    """Write a commented run file for a folder of training rows."""
    from ideal_proxy.pipeline import write_run_file

    said = write_run_file(folder, out, hold_out=hold_out, split_by=split_by, force=force)
    if as_json:
        import yaml

        config = yaml.safe_load(out.read_text(encoding="utf-8"))
        said = json.dumps({"run_file": str(out), "config": config, "said": said.splitlines()}, indent=1)
    say(said)


@app.command(epilog="Example: ideal-proxy check mix.yaml")
def check(
    config: Annotated[Path, typer.Argument(metavar="MIX.YAML", help="The run file.")],
    fix: Annotated[
        bool, typer.Option("--fix", help="Write reference rows without those that stand in a domain, and a run file.")
    ] = False,
    every_row: Annotated[
        bool, typer.Option("--every-row", help="Count the tokens of every row, also of large domains.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show rows, tokens, cuts, duplicates and leaks of the data."""
    from ideal_proxy.config import load_config
    from ideal_proxy.pipeline import health_tables, mend, survey
    from ideal_proxy.terminal import Reporter

    settings = load_config(config)
    with Reporter(quiet=as_json).counted("check") as progress:
        found = survey(settings, every_row=every_row, progress=progress)
    mended = mend(found, config, settings) if fix else None
    if as_json:
        say(json.dumps(found.health | ({} if mended is None else {"mended": mended.to_json()}), indent=1))
    else:
        say(health_tables(found.health, str(config)) if mended is None else mended.text())


@app.command(
    epilog="Example: ideal-proxy search mix.yaml --max-hours 2 --out runs/mix   (stopped? the same command goes on)"
)
def search(
    config: Annotated[
        Path | None, typer.Argument(metavar="MIX.YAML", help="The run file; none: the embedded demo.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run directory; default runs/NAME.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    rounds: Annotated[int | None, typer.Option(min=1, max=10, help="Most rounds; a finished search goes on.")] = None,
    runs: Annotated[int | None, typer.Option(min=4, help="Proxies of the first round.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes side by side.")] = None,
    engine: Annotated[str | None, typer.Option(help="local; ray: a Ray cluster that runs; slurm: a job a run.")] = None,
    max_hours: Annotated[float | None, typer.Option(min=0.0, help="Compute budget in hours.")] = None,
    price: Annotated[float | None, typer.Option(help="Price of one hour of one device.")] = None,
    max_cost: Annotated[float | None, typer.Option(help="Most money; shrinks the search as --max-hours does.")] = None,
    device_flops: Annotated[
        float | None,
        typer.Option(help="With --dry-run: plan for another machine whose devices peak at so many FLOP/s."),
    ] = None,
    utilisation: Annotated[
        float | None, typer.Option(help="Share of --device-flops that training reaches; default 0.3.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=MOST_SEED, help="Seed of data order and design.")] = None,
    gradients: Annotated[
        str | None, typer.Option(help="auto, implicit, unrolled or none: responses of trained proxies in the fit.")
    ] = None,
    sizes: Annotated[
        str | None, typer.Option(help="A ladder: sizes, such as 0.1M,1M, or models of a family; the last is checked.")
    ] = None,
    multiples: Annotated[
        int | None,
        typer.Option("--round", min=1, help="Propose multiples of so many rows where that costs nothing seen."),
    ] = None,
    reuse: Annotated[
        list[Path] | None, typer.Option(help="Run directory of an earlier search whose runs count; may be repeated.")
    ] = None,
    track: Track = None,
    null: Annotated[bool, typer.Option("--null", hidden=True, help="The demo in which nothing can be gained.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Find a mixture: train proxies, fit, optimise, verify."""
    from ideal_proxy.config import load_config
    from ideal_proxy.data import demo_config
    from ideal_proxy.pipeline import override, plan_search, run_search
    from ideal_proxy.report import plan_tables, result_screen
    from ideal_proxy.terminal import Reporter

    settings = demo_config(seed or 0, null=null) if config is None else load_config(config)
    settings = override(
        settings, rounds=rounds, runs=runs, max_hours=max_hours, seed=seed, workers=workers, gradients=gradients,
        price=price, max_cost=max_cost, engine=engine, sizes=sizes,
        multiples=multiples, reuse=reuse or (),
    )  # fmt: skip
    if not dry_run and (device_flops is not None or utilisation is not None):
        raise UsageError("--device-flops and --utilisation plan for another machine; use them with --dry-run")
    folder = out or Path("runs") / settings.name
    reporter = Reporter(quiet=quiet or as_json)
    if dry_run:
        plan = plan_search(settings, folder, reporter, device_flops=device_flops, utilisation=utilisation)
        say(json.dumps(plan, indent=1) if as_json else plan_tables(plan))
        return
    result = run_search(settings, folder, reporter, track=track or ())
    say(json.dumps(result, indent=1) if as_json else result_screen(result, folder))


@app.command(epilog="Example: ideal-proxy plan mix.yaml --model HuggingFaceTB/SmolLM2-135M --max-hours 6")
def plan(
    config: Annotated[Path, typer.Argument(metavar="MIX.YAML", help="The run file.")],
    model: Annotated[str | None, typer.Option(help="The model that will be trained: folder or hub id.")] = None,
    max_hours: Annotated[float | None, typer.Option(min=0.0, help="Compute budget in hours.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare ways to search by cost and by what is known of them."""
    from ideal_proxy.config import load_config
    from ideal_proxy.pipeline import compare_ways, recommend, ways_text
    from ideal_proxy.terminal import Reporter

    ways = compare_ways(load_config(config), model, max_hours, Reporter(quiet=quiet or as_json))
    chosen, why = recommend(ways)
    if as_json:
        told = {"ways": [way.to_json() for way in ways], "take": chosen.name, "why": why, "set": chosen.lines}
        say(json.dumps(told, indent=1))
    else:
        say(ways_text(ways, chosen, why, config))


@app.command(epilog="Example: ideal-proxy show runs/mix")
def show(
    run: RunFolder,
    full: Annotated[bool, typer.Option("--full", help="Every number, not one screen.")] = False,
    as_json: Json = False,
) -> None:
    """Print the result of a search again."""
    from ideal_proxy.pipeline import load_result
    from ideal_proxy.report import result_screen, result_tables
    from ideal_proxy.store import run_folder

    run = run_folder(run)
    result = load_result(run)
    lay_out = result_tables if full else result_screen
    say(json.dumps(result, indent=1) if as_json else lay_out(result, run))


@app.command(epilog="Example: ideal-proxy status runs/mix")
def status(
    run: RunFolder,
    as_json: Json = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Look again every two seconds until it ends.")] = False,
) -> None:
    """Show what a search is at: running, done, failed, time left."""
    import time

    from ideal_proxy.pipeline import read_status, status_text
    from ideal_proxy.store import run_folder

    run = run_folder(run)
    while True:
        found = read_status(run)
        text = json.dumps(found, indent=None if watch else 1) if as_json else status_text(found, run)
        over = watch and not as_json and sys.stdout.isatty()
        if over:
            print("\x1b[H\x1b[2J", end="")
        say(text)
        sys.stdout.flush()
        if not watch or found["state"] != "running":
            return
        time.sleep(WATCH_SECONDS)


@app.command(epilog="Example: ideal-proxy apply runs/mix/mixture.json --out data/mixed")
def apply(
    mixture: Mixture,
    out: Annotated[Path, typer.Option(help="Folder for the rows and their manifest.")],
    shards: Annotated[int, typer.Option(min=1, help="Number of JSONL files.")] = 1,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Write file I of N alone, counted from 0: one a reader.")
    ] = None,
    base: Annotated[bool, typer.Option("--base", help="Write the base mixture instead of the proposal.")] = False,
    chat: Annotated[bool, typer.Option("--chat", help="Rewrite every row as chat messages.")] = False,
    as_is: Annotated[
        bool, typer.Option("--as-is", help="Keep every row as it is, also where their columns differ.")
    ] = False,
    source: Annotated[
        list[str] | None, typer.Option(metavar="NAME=PATH", help="Where a domain's rows lie now; may repeat.")
    ] = None,
    index: Annotated[
        Path | None, typer.Option(help="Folder to keep the sources' indexes in; default: in the run directory.")
    ] = None,
    push_to_hub: Push = None,
    public: Public = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write the exact rows of a mixture, in training order."""
    from ideal_proxy.mixture import apply_mixture, base_of, index_folder, shard_numbers
    from ideal_proxy.report import applied_table, applied_values
    from ideal_proxy.terminal import Reporter

    if chat and as_is:
        raise UsageError("--chat rewrites rows and --as-is keeps them; leave one out")
    loaded, folder, sources = open_mixture(mixture, source)
    loaded = base_of(loaded) if base else loaded
    number, shards = shard_numbers(shard, shards)
    with Reporter(quiet=quiet or as_json).counted("apply") as progress:
        applied = apply_mixture(
            loaded, out, shards=shards, shard=number, row_format="chat" if chat else "as-is" if as_is else "auto",
            sources=sources, index=index or index_folder(folder), progress=progress,
        )  # fmt: skip
    values = applied_values(loaded, applied)
    if not as_json:
        say(applied_table(values))
    if push_to_hub is not None:
        from ideal_proxy.export import data_card, licences_of, push

        card = data_card(loaded, licences_of(loaded, folder, sources))
        values["hub"] = push(out, push_to_hub, "dataset", card, public=public, files=["train*.jsonl"])
        say(f"uploaded: {values['hub']}", file=sys.stderr)
    if as_json:
        say(json.dumps(values, indent=1))


cli_influence.register(app)
cli_preview.register(app)
cli_report.register(app)
cli_scaleup.register(app)
cli_tables.register(app)
app.registered_commands.sort(key=lambda command: ORDER.index(_called(command)) if _called(command) in ORDER else 99)


def _stop_by_signals() -> None:
    """Answer Ctrl-C at once, and let a batch system's SIGTERM and a closed terminal's SIGHUP do what it does."""
    # Where nobody has set them, that is.
    if threading.current_thread() is threading.main_thread():
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, _stopping)
        for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
            if signal.getsignal(number) == signal.SIG_DFL:  # `nohup` has SIGHUP ignored
                signal.signal(number, _stopping)


def _stopping(number: int, frame: Any) -> None:
    """Say that a signal came, for workers take seconds to end, and do what Python does with Ctrl-C."""
    signal.signal(number, signal.default_int_handler)  # said once
    with contextlib.suppress(OSError):
        os.write(2, b"stopping\n")  # within a signal's handler print may not be entered again
    signal.default_int_handler(number, frame)


def main(**options: Any) -> None:
    """Run the application; a user's error is one sentence on stderr and exit code 1 or 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a letter shows a ? in its place
    logging.setLogRecordFactory(HarmlessRecord)
    _stop_by_signals()
    try:
        try:
            app(prog_name=options.get("prog_name", "ideal-proxy"))
        finally:
            if sys.stdout is not None:  # a closed one is None
                sys.stdout.flush()
    except UnicodeEncodeError as error:
        part = error.object[max(0, error.start - 20) : error.end + 20].rpartition("\0")[2]
        say(
            f"error: {part!a} is no text in {sys.getfilesystemencoding()}, in which this system names files: set "
            "PYTHONUTF8=1, or rename the file",
            file=sys.stderr,
        )
        sys.exit(UserError.exit_code)
    except UserError as error:
        say(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except SystemExit as stop:
        if stop.code == 130:  # Ctrl-C, as Typer hands it on
            more = " with --resume" if sys.argv[1:2] == ["scale-up"] else ""
            with contextlib.suppress(OSError):  # a terminal that was closed
                say(f"stopped; run the same command again{more} to go on where it was", file=sys.stderr)
        raise
    except MemoryError:
        say("error: this machine's memory is full; free some, or give the search less", file=sys.stderr)
        sys.exit(UserError.exit_code)
    except BrokenPipeError:  # the reader of our output went away, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:  # no permission, a name too long, a full disk: whatever was being read or written
        where = f"{error.filename}: " if error.filename else ""
        say(f"error: {where}{error.strerror or error}; mend that and run the same command again", file=sys.stderr)
        with contextlib.suppress(OSError):  # what a full device did not take
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(UserError.exit_code)


if __name__ == "__main__":
    main()
