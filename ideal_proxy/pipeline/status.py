"""`ideal-proxy status`: what a search is doing, read from its run directory without disturbing it."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from pathlib import Path
from typing import Any

from ideal_proxy.errors import UserError, cut, shortened
from ideal_proxy.pipeline.result_file import load_result
from ideal_proxy.pipeline.stage import LOWER, Stage, runs_by_stage, seconds_left, stage_at, stage_text, trained_runs
from ideal_proxy.pipeline.status_record import STATUS
from ideal_proxy.sections import size_name
from ideal_proxy.store import LOCK_FILES, is_complete, lock_holder, read_json
from ideal_proxy.terminal import count_text, duration, paragraph, program, table

SECONDS = ("train_seconds", "evaluate_seconds", "metric_seconds")
CHECKPOINT = "checkpoint.safetensors"  # as `proxy` names it, which would load torch


def read_status(run: Path) -> dict[str, Any]:
    """Find out what a search is at."""
    if not run.is_dir():
        raise UserError(f"{run} is no folder; give the run directory of `ideal-proxy search --out`")
    if not (run / "config.yaml").exists():
        if any(entry.name not in LOCK_FILES for entry in run.iterdir()):
            raise UserError(f"{run} holds no search; give the run directory of `ideal-proxy search --out`")
        return _status(run, "empty", {}, [], f"{program()} search MIX.YAML --out {run}")
    runs = finished_runs(run)
    record: dict[str, Any] = {}
    with contextlib.suppress(UserError):  # nothing rests on it; a search that goes on writes it anew
        record = read_json(run / STATUS)
    again = f"{program()} search {run / 'config.yaml'} --out {run}"
    holder = lock_holder(run)
    if (run / "result.json").exists():
        state, then, holder = "finished", f"{program()} show {run}", None
    elif holder is not None:
        state, then = "running", f"{program()} status {run}"
    else:
        state, then = "stopped" if record or runs else "planned", again
    with contextlib.suppress(LookupError, TypeError, ValueError, AttributeError, ArithmeticError):
        found = _status(run, state, record, runs, then, holder)
        status_text(found, run)  # a record that holds anything else than a search wrote is none
        return found
    return _status(run, state, {}, runs, then, holder)


def finished_runs(run: Path) -> list[dict[str, Any]]:
    """Read what every finished run left; `lower` names the size of a ladder's lower ones."""
    return [
        _record(path / "metrics.json") | {"lower": lower}
        for lower, folder in (("", run), *((place.name, place) for place in sorted(run.glob(f"{LOWER}/*"))))
        for path in sorted(folder.glob("runs/*")) if is_complete(path)
    ]  # fmt: skip


def _record(path: Path) -> dict[str, Any]:
    """Read what a run left, and refuse what tells no role."""
    record: dict[str, Any] = read_json(path)
    spec = record.get("spec")
    if not isinstance(spec, dict) or not isinstance(spec.get("role"), str):
        raise UserError(f"{path} is no record of a run; remove {path.parent} and run the same search again")
    return record


def _status(
    run: Path, state: str, record: dict[str, Any], runs: list[dict[str, Any]], then: str, holder: str | None = None
) -> dict[str, Any]:
    """Put the answer together."""
    now = time.time()
    live = state in {"running", "stopped"}
    folders = [run, *run.glob(f"{LOWER}/*")]
    working = [
        {"worker": int(number), **{k: v for k, v in at.items() if k != "since"},
         "seconds": (now if state == "running" else record["updated"]) - at["since"],
         "checkpoint": any((place / "runs" / at["run"] / CHECKPOINT).exists() for place in folders)}
        for number, at in sorted(record.get("working", {}).items(), key=lambda item: int(item[0]))
    ] if live else []  # fmt: skip
    plan = record.get("plan", [])
    since = now if state == "running" else record.get("updated", now)
    return {
        "state": state,
        "holder": holder,
        "stage": _stage(record) if live and record else None,
        "ended": record.get("ended"),
        "complete": dict(Counter(entry["spec"]["role"] for entry in runs)),
        "planned_runs": trained_runs((stage["name"], stage["runs"]) for stage in plan) or None,
        "stage_runs_done": record.get("runs_done", 0),
        "stage_runs": record.get("runs", 0),
        "working": working,
        "retried": list(record.get("retried", {}).values()),
        "failed": list(record.get("failed", {}).values()),
        "seconds_spent": record["spent_before"] + since - record["began"] if record else 0.0,
        "stage_seconds_left": record.get("seconds_left") if live else None,
        "seconds_left": whole_seconds_left(run, record, runs) if live and plan else None,
        "verdict": load_result(run)["verdict"]["sentence"] if state == "finished" else None,
        "next": then,
    }


def _stage(record: dict[str, Any]) -> str:
    """Name the stage; what another version wrote stands as it is."""
    stage, number = stage_at(record)
    return str(record["stage"]) if stage is None else stage_text(stage, number)


def whole_seconds_left(run: Path, record: dict[str, Any], runs: list[dict[str, Any]]) -> float:
    """Estimate the whole search at most: what this stage needs still, and the later ones at the speed measured."""
    workers = int(read_json(run / "plan.json")["workers"]) if (run / "plan.json").exists() else 1
    of_size: dict[str, list[dict[str, Any]]] = {"": []}
    for entry in runs:  # a size has a speed of its own; only the lower ones of a ladder are named
        of_size.setdefault(entry["lower"], []).append(entry)
    costs: dict[str, float] = {}
    lower_done = lower_planned = 0.0
    for planned in record["plan"]:
        done = of_size.get(size := size_name(planned["size"]) if "size" in planned else "", [])
        # Gradients cost more a token, so products are counted where the runs have them.
        unit = "flops" if all(entry.get("flops") for entry in done) else "tokens"
        amount = sum(entry[unit] for entry in done)
        spent = sum(entry.get(part, 0.0) for entry in done for part in SECONDS)
        at_once = 1 if Stage(planned["name"]).alone else workers
        seconds = planned[unit] * spent / amount / at_once if amount else float(planned["seconds"])
        costs[planned["name"]] = costs.get(planned["name"], 0.0) + seconds
        if size:
            lower_planned += seconds
            lower_done += min(amount / max(planned[unit], 1e-9), 1.0) * seconds
    return seconds_left(record, costs, lower_done / lower_planned if lower_planned else 0.0)


def status_text(status: dict[str, Any], run: Path) -> str:
    """Lay out what a search is at, in 80 columns."""
    state = status["state"]
    lines = [f"{run}: {_state(status)}"]
    if state == "empty":
        return "\n".join([*lines, f"Begin one: {status['next']}"])
    if status["working"]:
        title = "Running now" if state == "running" else "Was running"
        rows = [
            (_worker(at), shortened(at["run"]), shortened(at["role"]),
             f"{at['step']:,} of {at['steps']:,}" if at["steps"] else "-",
             "-" if at["loss"] is None else f"{at['loss']:.3f}", duration(at["seconds"]),
             *(() if state == "running" else ("yes" if at["checkpoint"] else "no",)))
            for at in status["working"]
        ]  # fmt: skip
        header = ("worker", "run", "role", "step", "loss", "for", *(() if state == "running" else ("checkpoint",)))
        lines += ["", table(title, header, rows, left=3)]
    counts = runs_by_stage(Counter(status["complete"]).elements())
    complete = trained_runs(counts.items())
    roles = ", ".join(f"{name} {count}" for name, count in counts.items())
    most = f" of {status['planned_runs']} at most" if status["planned_runs"] and state != "finished" else ""
    lines += ["", paragraph(f"Done: {count_text(complete, 'run')}{most}{f' ({roles})' if roles else ''}.")]
    if status["stage_runs"] and state in {"running", "stopped"}:
        lines.append(f"This stage: {status['stage_runs_done']} of {status['stage_runs']} runs.")
    for kind, word in (("retried", "Tried again"), ("failed", "Failed twice, left out")):
        lines += [paragraph(cut(f"{word}: run {at['run']} ({at['role']}): {at['message']}")) for at in status[kind]]
    lines.append(paragraph(cut(_time(status))))
    if status["verdict"]:
        lines.append(paragraph(f"Verdict: {status['verdict']}."))
    label = {"running": "Look again", "finished": "The result"}.get(state, "Go on")
    lines.append(f"{label}: {status['next']}")
    return "\n".join(lines)


def _worker(at: dict[str, Any]) -> str:
    """Name a worker: its number, and its machine where that is another one."""
    return f"{at['worker']} {at.get('host', '').partition('.')[0][:12]}".strip()


def _state(status: dict[str, Any]) -> str:
    """Say the state in a few words."""
    stage = f", {cut(status['stage'], 200)}" if status["stage"] else ""
    how = {None: "it was killed", "Ctrl-C": "by Ctrl-C or a signal"}.get(status["ended"], "an error, see below")
    return {
        "empty": "no search yet",
        "planned": "planned, nothing trained yet",
        "running": f"running{stage} ({status['holder']})",
        "stopped": f"stopped{stage} ({how})",
        "finished": "finished",
    }[str(status["state"])]


def _time(status: dict[str, Any]) -> str:
    """Say what time was spent and what is left."""
    text = f"Time: {duration(status['seconds_spent'])} spent"
    if status["stage_seconds_left"] is not None:
        text += f", about {duration(status['stage_seconds_left'])} left of this stage"
    if status["seconds_left"] is not None:
        text += f", {duration(status['seconds_left'])} of the whole search at most"
    if status["state"] == "stopped" and status["ended"] not in {None, "Ctrl-C"}:
        text += f". It stopped with: {status['ended']}"
    return text + "."
