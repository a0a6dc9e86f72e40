"""The commands on tables of runs from anywhere: `fit`, `predict` and `optimize`. Heavy imports stand inside them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from ideal_proxy.cli.options import Json
from ideal_proxy.errors import MOST_SEED
from ideal_proxy.terminal import say

Fit = Annotated[Path, typer.Argument(metavar="FIT.JSON", help="What `fit` wrote, or the run directory of a search.")]


def register(app: typer.Typer) -> None:
    """Add the commands to an application."""
    app.command(epilog="Example: ideal-proxy fit --ratios mixtures.csv --metrics losses.csv --out fit.json")(fit)
    app.command(epilog="Example: ideal-proxy predict fit.json --ratios new.csv --out predicted.csv")(predict)
    app.command(epilog="Example: ideal-proxy optimize fit.json --upper 'github=30 %' --out mixture.json")(optimize)


def fit(
    ratios: Annotated[Path, typer.Option(help="CSV: a row a run, a column a domain.")],
    metrics: Annotated[Path, typer.Option(help="CSV: a row a run, a column a loss or score.")],
    out: Annotated[Path, typer.Option(help="The fit to write.")] = Path("fit.json"),
    unit: Annotated[str | None, typer.Option(help="share or rows; default by looking.")] = None,
    available: Annotated[Path | None, typer.Option(help="CSV of the rows each domain has.")] = None,
    maximize: Annotated[bool, typer.Option("--maximize", help="Metrics are scores: higher is better.")] = False,
    add_runs: Annotated[
        list[Path] | None, typer.Option(help="CSV of further runs, with a fidelity column; may repeat.")
    ] = None,
    own: Annotated[
        list[str] | None, typer.Option(metavar="METRIC=DOMAIN", help="A metric's own domain; default: of its name.")
    ] = None,
    domain: Annotated[
        list[str] | None, typer.Option(help="A column of the ratios that is a domain; default: those that sum to 1.")
    ] = None,
    metric: Annotated[list[str] | None, typer.Option(help="A column of the metrics; default: all of results.")] = None,
    partial: Annotated[bool, typer.Option("--partial", help="Go on with runs that are in both tables.")] = False,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Seed of starts and folds.")] = 0,
    as_json: Json = False,
) -> None:
    """Fit the response law to tables of runs."""
    import logging

    from ideal_proxy.store import atomic_write_json
    from ideal_proxy.tables import (
        fit_table,
        fit_tables,
        join_tables,
        read_metrics,
        read_ratios,
        read_runs,
        with_explored,
    )

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    mixtures, losses = read_ratios(ratios, domain or (), unit=unit), read_metrics(metrics, metric or ())
    joined = join_tables(mixtures, losses, partial=partial)
    domains, names = [str(c) for c in joined.ratios.columns], [str(c) for c in joined.metrics.columns]
    further = [read_runs(path, domains, names) for path in add_runs or []]
    model = fit_tables(
        joined,
        unit=unit,
        available=available,
        maximize=maximize,
        add_runs=further,
        random_state=seed,
        own=own or (),
    )
    document = with_explored(model, joined.ratios.to_numpy(dtype=float))
    atomic_write_json(out, document)
    say(json.dumps({"fit": str(out), "diagnostics": document["diagnostics"]}) if as_json else fit_table(model))
    say(f"{len(joined.ratios)} runs, {len(domains)} domains, {len(names)} metrics: {out}", file=sys.stderr)


def predict(
    fitted: Fit,
    ratios: Annotated[Path, typer.Option(help="CSV of mixtures, as for `fit`; a column `run` or `index` names them.")],
    out: Annotated[Path | None, typer.Option(help="CSV to write; default stdout.")] = None,
    level: Annotated[float, typer.Option(min=0.5, max=0.999, help="Of the intervals.")] = 0.9,
    fidelity: Annotated[str | None, typer.Option(help="Predict runs of this added fidelity.")] = None,
    as_json: Json = False,
) -> None:
    """Predict the metrics of new mixtures, with intervals."""
    from ideal_proxy.store import atomic_write_text
    from ideal_proxy.tables import load_fit, predict_table, read_ratios, without_formulas

    model, _ = load_fit(_fit_file(fitted))
    mixtures = read_ratios(ratios, list(model.domain_names_), unit=model.unit)
    frame = predict_table(model, mixtures, level=level, fidelity=fidelity)
    text = without_formulas(frame).to_csv(index=False)
    if out is not None:
        atomic_write_text(out, text)
        say(f"{len(frame)} mixtures predicted: {out}", file=sys.stderr)
    if as_json or out is None:
        say(frame.to_json(orient="records", indent=1) + "\n" if as_json else text, end="")


def optimize(
    fitted: Fit,
    out: Annotated[Path, typer.Option(help="The mixture file to write.")] = Path("mixture.json"),
    base: Annotated[Path | None, typer.Option(help="CSV of base volumes (domain, volume).")] = None,
    tokens_per_row: Annotated[Path | None, typer.Option(help="CSV of the tokens a row of each domain.")] = None,
    objective: Annotated[str, typer.Option(help="mean, weighted or worst.")] = "mean",
    weight: Annotated[list[str] | None, typer.Option(metavar="NAME=W", help="For weighted; may repeat.")] = None,
    upper_confidence: Annotated[float | None, typer.Option(help="Optimise the upper bound at this level.")] = None,
    budget: Annotated[str | None, typer.Option(help="keep, 'at most 2M tokens', 'exactly 9000 rows', free.")] = None,
    budget_unit: Annotated[str | None, typer.Option(help="tokens or rows.")] = None,
    lower: Annotated[list[str] | None, typer.Option(metavar="NAME=AMOUNT", help="Least volume; may repeat.")] = None,
    upper: Annotated[list[str] | None, typer.Option(metavar="NAME=AMOUNT", help="Largest volume; may repeat.")] = None,
    pinned: Annotated[list[str] | None, typer.Option("--pin", metavar="NAME", help="Keep at base; may repeat.")] = None,
    max_repeat: Annotated[str | None, typer.Option(help="Largest repeat, or none; default 4.")] = None,
    must_not_drop: Annotated[
        list[str] | None, typer.Option(metavar="NAME=TOL", help="Capability to protect; may repeat.")
    ] = None,
    trust_region: Annotated[
        str | None, typer.Option(help="Largest |log change|, or none; default what the runs cover.")
    ] = None,
    group: Annotated[list[str] | None, typer.Option(help="Such as 'code + math <= 60 %'; may repeat.")] = None,
    kl: Annotated[float, typer.Option(min=0.0, help="Weight of a KL divergence to base.")] = 0.0,
    kl_cap: Annotated[float | None, typer.Option(min=0.0, help="Largest KL divergence from base.")] = None,
    constraints: Annotated[Path | None, typer.Option(help="YAML of constraints; options go first.")] = None,
    pareto: Annotated[str | None, typer.Option(metavar="A:B", help="Print the front between groups, as a,b:c.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Seed of the starts.")] = 0,
    as_json: Json = False,
) -> None:
    """Find the best volumes under constraints."""
    from ideal_proxy.errors import UsageError
    from ideal_proxy.mixture import save_mixture
    from ideal_proxy.optimizer import Objective
    from ideal_proxy.tables import (
        by_short_names,
        front_table,
        load_fit,
        optimise_table,
        optimum_table,
        table_constraints,
        table_mixture,
        table_problem,
    )

    model, explored = load_fit(_fit_file(fitted))
    search = None
    if base is None and tokens_per_row is None and (folder := _fit_file(fitted).parent / "config.yaml").exists():
        from ideal_proxy.pipeline import load_run, make_constraints

        run = load_run(folder.parent)
        search = make_constraints(run.config, run.prepared, run.volumes())
        say("note: the search's own limits hold, but where an option says otherwise", file=sys.stderr)
    problem = search.problem if search else table_problem(model, explored, base=base, tokens_per_row=tokens_per_row)
    taken: dict[str, str] = {}
    domains, metrics = problem.domains.names, problem.capabilities
    for given, known in ((lower, domains), (upper, domains), (pinned, domains), (must_not_drop, metrics),
                         (weight, metrics)):  # fmt: skip
        if given:
            given[:], short = by_short_names(given, known)
            taken |= short
    for name, full in taken.items():
        say(f"note: {name} is taken for {full}", file=sys.stderr)
    options = {
        "budget": budget, "budget_unit": budget_unit, "lower": lower, "upper": upper, "pinned": pinned,
        "repeat_cap": max_repeat, "must_not_drop": must_not_drop, "trust_region": trust_region, "groups": group,
        "kl_cap": kl_cap,
    }  # fmt: skip
    limits = table_constraints(options, constraints, problem, explored, search)
    weights = None
    try:
        if weight:
            weights = {name: float(value) for name, _, value in (entry.partition("=") for entry in weight)}
    except ValueError as error:
        raise UsageError(f"--weight must be NAME=NUMBER, got {', '.join(weight or [])}") from error
    if objective not in {"mean", "weighted", "worst"}:
        raise UsageError(f"--objective is {objective!r}; choose mean, weighted or worst")
    goal = Objective(
        kind=objective, weights=weights, upper_confidence=upper_confidence, kl_penalty=kl,  # type: ignore[arg-type]
    )  # fmt: skip
    optimum, volumes = optimise_table(model, goal, limits, seed=seed)
    save_mixture(out, table_mixture(out.stem, model, optimum, volumes))
    say(json.dumps(optimum.to_dict(), indent=1) if as_json else optimum_table(optimum, volumes))
    if pareto is not None:
        first, colon, second = pareto.partition(":")
        if not colon:
            raise UsageError(f"--pareto is {pareto!r}; write two groups of capabilities, as a,b:c")
        say("\n" + front_table(model, limits, first.split(","), second.split(",")))
    say(f"mixture file: {out}", file=sys.stderr)


def _fit_file(place: Path) -> Path:
    """Return a fit, whether it is named itself or by the run directory, or its mixture.json, of the search it is of."""
    from ideal_proxy.store import run_folder

    folder = run_folder(place)
    return folder / "fit.json" if folder.is_dir() else place
