"""The outer loop: warm start, learning rate, swarm, fit, optimise, check, and again until it is decided.

Every stage writes what it made before the next begins, and reads it back instead of making it again; so a killed
search goes on where it was and ends with the same numbers.

Legend: R runs, D domains, J capabilities.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ideal_proxy.config import SearchConfig, dump_config
from ideal_proxy.errors import UsageError, UserError
from ideal_proxy.hooks import OnEvent, Tracker, listeners
from ideal_proxy.mixture import load_mixture
from ideal_proxy.pipeline.claim import claim, planned_only
from ideal_proxy.pipeline.earlier_runs import FULL_SIZE
from ideal_proxy.pipeline.evidence import told_kinds
from ideal_proxy.pipeline.frozen import with_frozen_rows
from ideal_proxy.pipeline.laboratory import Laboratory
from ideal_proxy.pipeline.ladder import climb
from ideal_proxy.pipeline.opening import OPENING_SHARE, judge_pairs, verify_seeds
from ideal_proxy.pipeline.outcome import write_outcome
from ideal_proxy.pipeline.plan import check_gradients, make_plan
from ideal_proxy.pipeline.plan_cost import Plan, describe_plan
from ideal_proxy.pipeline.prepare import Prepared, load_prepared, prepare
from ideal_proxy.pipeline.proposal import Proposal, check_constraints, fit_and_propose, gradient_note, make_objective
from ideal_proxy.pipeline.rate import choose_rate
from ideal_proxy.pipeline.result_file import load_result
from ideal_proxy.pipeline.reuse import Reuse, inherited_config, make_reuse, open_heritage
from ideal_proxy.pipeline.rounds import look_ahead, next_opening, why_again
from ideal_proxy.pipeline.row_record import Heritage
from ideal_proxy.pipeline.stage import Stage, stage_text
from ideal_proxy.pipeline.status_record import StatusRecord
from ideal_proxy.pipeline.unchanged import refuse_changed_sources
from ideal_proxy.pipeline.verdict import IMPROVES, Verdict, nothing_to_check
from ideal_proxy.proxy import UTILISATION, Elsewhere, budget_hours
from ideal_proxy.store import (
    MARKER,
    MIXTURE,
    atomic_write_json,
    atomic_write_text,
    damaged_file,
    is_complete,
    lock,
    mark_again,
    read_json,
)
from ideal_proxy.terminal import Reporter, count_text, program

Array = NDArray[np.float64]

SHRINK = 0.5  # a later round explores this share of the first round's spread


def plan_search(
    config: SearchConfig,
    folder: Path,
    reporter: Reporter,
    *,
    device_flops: float | None = None,
    utilisation: float | None = None,
) -> dict[str, Any]:
    """Prepare the data and say what the search would cost."""
    if utilisation is not None and device_flops is None:
        raise UsageError("--utilisation is a share of --device-flops; give both, or neither for this machine")
    if utilisation is not None and not 0 < utilisation <= 1:
        raise UsageError(f"--utilisation is {utilisation:g}; it is a share of the peak, above 0 and at most 1")
    elsewhere = None
    if device_flops is not None:
        devices = config.cost.devices or config.swarm.workers or 1
        elsewhere = Elsewhere(device_flops=device_flops, utilisation=utilisation or UTILISATION, devices=devices)
    check_gradients(config)
    with lock(folder):
        config = inherited_config(config, folder)
        claim(config, folder, dry_run=True)
        prepared, reuse, _ = _begin(config, folder, reporter)
        plan = make_plan(config, prepared, folder / "plan.json", elsewhere, reuse.wanted if reuse else None)
        return describe_plan(config, prepared, plan) | {"elsewhere": None if elsewhere is None else asdict(elsewhere)}


def run_search(
    config: SearchConfig,
    folder: Path,
    reporter: Reporter,
    on_event: OnEvent | None = None,
    track: Sequence[str] = (),
) -> dict[str, Any]:
    """Run the whole search, or go on with one that was interrupted; `track` names tracking services that hear of it."""
    check_gradients(config)
    calls = listeners(config.tracker, track, folder, config.name, on_event)
    with Tracker(calls, reporter.note) as tracker, reporter.panel(f"search {folder}"):
        return _search(config, folder, reporter, tracker)


def _search(config: SearchConfig, folder: Path, reporter: Reporter, tracker: Tracker) -> dict[str, Any]:
    with lock(folder):
        config = inherited_config(config, folder)
        claim(config, folder)
        damaged = _damaged(folder) if is_complete(folder) else None
        if damaged == folder / "config.yaml":  # edited, and asks for the same search: perhaps for more of it
            atomic_write_text(damaged, dump_config(config))
            mark_again(damaged)
            damaged = _damaged(folder)
        if damaged is not None and folder / "prepared" in damaged.parents:
            _refuse_other_rows(folder, _begin(config, folder, reporter)[0])
        elif damaged is not None:
            reporter.note(f"{damaged} is damaged; it and the result are made anew from the finished runs")
            for name in ("result.json", MARKER):
                (folder / name).unlink(missing_ok=True)
        if (folder / "result.json").exists():
            result = load_result(folder)
            if more := _asked_more(result, config):
                reporter.note(f"{folder} is finished; going on with {more}")
                (folder / MARKER).unlink(missing_ok=True)
                atomic_write_json(folder / "result.json", result, seal=True)
                (folder / "result.json").rename(folder / f"result-{len(_earlier(folder)) + 1}.json")
                atomic_write_text(folder / "config.yaml", dump_config(config))
                _drop_report(folder, reporter)
            else:
                reporter.note(f"{folder} is finished; showing its result")
                warn_of_other_rows(folder, reporter)
                if any(is_complete(place) for place in folder.glob(f"{FULL_SIZE}/*")):
                    again = f"{program()} search RUN_FILE --reuse {folder} --out ANOTHER_FOLDER"
                    reporter.note(f"full-size runs of its mixture came since; a search that begins with them: {again}")
                return result
        log = folder / "log.txt"
        reporter.on_note = lambda text: _append(log, text)
        prepared, reuse, heritage = _begin(config, folder, reporter)
        try:
            plan = make_plan(config, prepared, folder / "plan.json", None, reuse.wanted if reuse else None)
        except UserError:
            if not (folder / "runs").exists():  # nothing was trained: another search may begin here
                log.unlink(missing_ok=True)
                planned_only(folder)
            raise
        whole = describe_plan(config, prepared, plan)
        reporter.note(
            f"{plan.runs} proxies of {plan.parameters / 1e6:.3g}M parameters{_trained(plan)} on {plan.fraction:.0%} of "
            f"the volumes, about {whole['steps_per_run']} steps each on base, {plan.workers} side by side"
        )
        if done := sum(is_complete(run) for run in (folder / "runs").glob("*")):
            reporter.note(f"going on: {count_text(done, 'run')} finished before")
        with (
            StatusRecord(folder, whole["stages"]) as record,
            Laboratory(
                config, prepared, plan, folder, reporter, record, tracker, reuse=reuse, heritage=heritage
            ) as laboratory,
        ):
            if laboratory.gradients or plan.runs <= len(config.domains) + 1:
                why = laboratory.gradients_why or ("with --reuse none are taken" if config.reuse else "by the run file")
                reporter.note(f"gradients {laboratory.gradients or 'none'} ({why})")
            check_constraints(config, prepared, laboratory.first_volumes())
            if plan.lower:
                climb(laboratory, heritage)
            laboratory.warm_start()
            laboratory.judge_reused()
            rate = choose_rate(laboratory, folder / "rate.json")
            earlier = _earlier(folder)
            proposals = _rounds(laboratory, rate, tracker, earlier)
            opening, seeds_of = next_opening(earlier, proposals[-1].rows, plan.looks, len(proposals))
            if reuse and not earlier:  # fresh seeds: those of earlier checks are in the fit
                seeds_of = reuse.inherited.seeds_of
            if opening:
                reporter.note(
                    f"the verify rows were opened before ({count_text(opening, 'time')}): this check has "
                    f"{OPENING_SHARE**opening:g} of the first one's level"
                )
            verdict = _check(laboratory, proposals[-1], rate, opening, seeds_of)
            bound = {"gain": verdict.gain.value, "lower": verdict.gain.lower, "upper": verdict.gain.upper}
            tracker.tell("verdict", answer=verdict.answer, **bound, pairs=verdict.pairs)
            record.stage(Stage.RESULT)
            reporter.doing(Stage.RESULT)
            check = {
                "opening": opening, "seeds_of": seeds_of, "looks": list(plan.looks), "rounds": config.rounds,
                "max_pairs": config.verify.max_pairs, "max_hours": config.swarm.max_hours,
            }  # fmt: skip
            result = write_outcome(laboratory, proposals, verdict, check, reuse)
    tracker.tell("search finished", **_told_result(result))
    return result


def _damaged(folder: Path) -> Path | None:
    """Return a file of a finished search, or of one of its runs, that is no longer what was written."""
    runs = [*folder.glob("runs/*"), *folder.glob("lower/*/runs/*")]  # of a ladder's sizes below the last too
    places = [folder, *sorted(run for run in runs if is_complete(run))]
    places += [folder / "prepared"] if (folder / "prepared").is_dir() else []
    return next((path for place in places if (path := damaged_file(place)) is not None), None)


def _refuse_other_rows(folder: Path, prepared: Prepared) -> None:
    """Refuse data prepared anew for a finished search that are not those of its mixture."""
    before = {domain.name: domain.fingerprint for domain in load_mixture(folder / MIXTURE).domains}
    if changed := [facts.name for facts in prepared.facts if before.get(facts.name) != facts.fingerprint]:
        (prepared.folder / MARKER).unlink()
        raise UserError(
            f"the rows of {', '.join(changed)} are no longer those of the search in {folder}, whose prepared data are "
            "damaged; put the rows back and run the same command again (its mixture.json is whole)"
        )


def warn_of_other_rows(folder: Path, reporter: Reporter) -> None:
    """Say where the data are no longer those of a finished search."""
    try:
        prepared = load_prepared(folder / "prepared")
        refuse_changed_sources(prepared.sources, prepared.health["stamps"], folder)
    except UserError as error:
        reporter.note(f"warning: the result is not of today's rows: {error} (--reuse {folder} keeps what still counts)")


def _drop_report(folder: Path, reporter: Reporter) -> None:
    """Take away the page of the result before: it would stand beside another result."""
    pages = [folder / name for name in ("report.html", "report.json") if (folder / name).exists()]
    for page in pages:
        page.unlink()
    if pages:
        reporter.note(f"the report of the earlier result was taken away; {program()} report {folder} writes it anew")


@contextlib.contextmanager
def open_laboratory(config: SearchConfig, folder: Path, reporter: Reporter) -> Iterator[Laboratory]:
    """Hold a run directory in which single mixtures are tried, without a search."""
    with lock(folder):
        config = inherited_config(config, folder)
        claim(config, folder)
        prepared, reuse, heritage = _begin(config, folder, reporter, search=False)
        plan = make_plan(config, prepared, folder / "plan.json", None, reuse.wanted if reuse else None)
        atomic_write_json(folder / "rate.json", {"learning_rate": plan.rates[0], "chosen": "inherited"}, seal=True)
        with (
            StatusRecord(folder, describe_plan(config, prepared, plan)["stages"]) as record,
            Laboratory(config, prepared, plan, folder, reporter, record, reuse=reuse, heritage=heritage) as laboratory,
        ):
            yield laboratory


def _begin(
    config: SearchConfig, folder: Path, reporter: Reporter, *, search: bool = True
) -> tuple[Prepared, Reuse | None, Heritage | None]:
    """Prepare the data, and say what carries over from the searches that are reused."""
    config = with_frozen_rows(config, folder, reporter.note)
    found = open_heritage(config, folder)
    if found is None:
        prepared = prepare(config, folder / "prepared", reporter)
        check_constraints(config, prepared)
        return prepared, None, None
    inherited, packages, heritage = found
    prepared = prepare(config, folder / "prepared", reporter, heritage)
    check_constraints(config, prepared)
    reuse = make_reuse(config, prepared, inherited, packages, folder)
    for line in reuse.lines(prepared.capability_names, search=search):
        reporter.note(line)
    return prepared, reuse, heritage


def _asked_more(result: dict[str, Any], config: SearchConfig) -> str | None:
    """Say what a run file asks of a finished search that it did not do."""
    done = result["check"]
    if config.rounds > done["rounds"]:
        return f"up to {config.rounds} rounds"
    if config.verify.max_pairs > done["max_pairs"]:
        return f"up to {config.verify.max_pairs} pairs in the check"
    hours, had = config.swarm.max_hours, done["max_hours"]
    if had is not None and (hours is None or hours > had):
        return "more time"
    return None


def _earlier(folder: Path) -> list[dict[str, Any]]:
    """Read the results that a search had before more was asked of it, oldest first."""
    paths = sorted(folder.glob("result-*.json"), key=lambda path: int(path.stem.rpartition("-")[2]))
    return [read_json(path) for path in paths]


def _rounds(laboratory: Laboratory, rate: float, tracker: Tracker, earlier: Sequence[dict[str, Any]]) -> list[Proposal]:
    """Search until the proposal lies inside what was explored, or rounds or budget are used; verify rows stay shut."""
    config, prepared, plan, reporter = laboratory.config, laboratory.prepared, laboratory.plan, laboratory.reporter
    proposals: list[Proposal] = []
    centre, outlook = prepared.domains.base, None
    started = time.monotonic()
    for number in range(plan.rounds):
        for result in earlier:
            if number == len(result["rounds"]):  # it had ended here, with a check
                first, pairs = result["check"]["seeds_of"], result["verdict"]["pairs"]
                rows = np.array([entry["proposal_rows"] for entry in result["domains"]], dtype=np.int64)
                laboratory.recall_check(rows, verify_seeds(first, pairs), rate)
        count = plan.runs if number == 0 else plan.more_runs
        spread = config.swarm.spread * SHRINK**number
        laboratory.explore(centre, spread, count, rate, number, outlook.points if outlook else None)
        if number == 0:
            laboratory.imitate(rate)
        laboratory.respond(centre, rate, number)
        evidence = laboratory.evidence()
        laboratory.record.stage(Stage.FIT, number + 1)
        reporter.doing(f"{stage_text(Stage.FIT, number + 1)} and optimum")
        proposal = fit_and_propose(
            config, prepared, evidence, seed=config.seed,
            yardstick=proposals[0].yardstick if proposals else None,
        )  # fmt: skip
        told = [*proposal.notes, *told_kinds(proposal.loss_model, prepared.capability_names)]
        told += filter(None, [laboratory.told_imitations(proposal.loss_model)])
        told += [gradient_note(proposal.model, laboratory.gradients)] if evidence.gradients else []
        for line in told:
            reporter.note(line)
        tracker.tell("round fitted", **_told_fit(number, proposal, prepared.domains.names))
        proposals.append(proposal)
        gain = proposal.predicted.gain
        reporter.note(f"round {number + 1}: predicted gain {gain.value:+.2%}")
        laboratory.watcher.best(
            f"{gain.value:+.1%} [{gain.lower:+.1%}, {gain.upper:+.1%}] predicted, round {number + 1}"
        )
        objective, proposed = make_objective(config, proposal.yardstick), proposal.rows.astype(float)
        outlook = look_ahead(proposal.model, objective, proposal.constraints, proposal.yardstick, proposed)
        before = proposals[-2].predicted.gain.value if number else -np.inf
        again = why_again(proposal.optimum, outlook, gain.value - before)
        if number + 1 == plan.rounds:
            if again is not None:
                reporter.note(f"all {count_text(plan.rounds, 'round')} used, though {again}; --rounds allows more")
            break
        if again is None:
            reporter.note(f"no further round: it may gain {outlook.hoped:.2%} more")
            break
        spent = (time.monotonic() - started) / 3600
        budget = budget_hours(config.cost, config.swarm.max_hours, plan.devices)
        if budget is not None and spent > 0.75 * budget[0]:
            reporter.note(f"no further round ({again}): {budget[1]} is nearly used")
            break
        reporter.note(f"another round: {again}")
        centre = proposed
    return proposals


def _trained(plan: Plan) -> str:
    trained = plan.trainable_parameters
    return f" ({trained / 1e6:.2g}M trained)" if trained not in (None, plan.parameters) else ""


def _told_fit(number: int, proposal: Proposal, names: Sequence[str]) -> dict[str, Any]:
    """Say to the tracker what a round's fit proposes."""
    gain = proposal.predicted.gain
    return {
        "round": number + 1, "runs": len(proposal.evidence.ids),
        "proposal": dict(zip(names, (int(x) for x in proposal.rows), strict=True)),
        "predicted_gain": gain.value, "predicted_lower": gain.lower, "predicted_upper": gain.upper,
    }  # fmt: skip


def _told_result(result: dict[str, Any]) -> dict[str, Any]:
    """Say to the tracker how the search ended."""
    adopted = result["verdict"]["answer"] == IMPROVES
    kept = "proposal_rows" if adopted else "base_rows"
    rows = {entry["name"]: entry[kept] for entry in result["domains"]}
    return {"sentence": result["verdict"]["sentence"], "rows": rows, "adopted": adopted}


def _check(laboratory: Laboratory, proposal: Proposal, rate: float, opening: int, seeds_of: int) -> Verdict:
    """Open the verify rows, once: train base and proposal on fresh seeds, first few, then more while it is worth it."""
    config, plan, reporter = laboratory.config, laboratory.plan, laboratory.reporter
    if laboratory.is_base(proposal.rows):
        return nothing_to_check(len(config.capabilities))
    verdict: Verdict | None = None
    for look in plan.looks:
        pairs = laboratory.pairs(proposal.rows, verify_seeds(seeds_of, look), rate)
        verdict = judge_pairs(config, plan, pairs, proposal.yardstick, proposal.known, opening)
        if not verdict.go_on:
            break
        reporter.note(f"{verdict.answer} after {look} pairs ({verdict.gain.value:+.2%}); training more")
        laboratory.watcher.best(f"{verdict.gain.value:+.1%} after {look} pairs of fresh runs; more are trained")
    assert verdict is not None
    return verdict


def _append(path: Path, text: str) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
