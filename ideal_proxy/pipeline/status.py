"""`ideal-proxy status`: what a search is at, read from its run directory without disturbing it."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

from ideal_proxy.errors import UserError
from ideal_proxy.pipeline.status_record import STATUS
from ideal_proxy.store import is_complete, lock_holder, read_json
from ideal_proxy.terminal import duration, paragraph, table

CHECKPOINT = "checkpoint.safetensors"  # as `proxy` names it, which would load torch


def read_status(run: Path) -> dict[str, Any]:
    """Find out what a search is at.

    Args:
        run: its run directory.

    Returns:
        dict: JSON-ready. `state` is "empty", "planned", "running", "stopped" or "finished"; `complete` counts finished
            runs by role; `working` holds what runs now, or ran when the search stopped; `failed` and `retried` say
            why; `seconds_left` is an estimate of the whole search at most, None where there is no ground for one;
            `next` says what to do.

    Raises:
        UserError: the folder does not exist or holds something else.
    """
    if not run.is_dir():
        raise UserError(f"{run} is no folder; give the run directory of `ideal-proxy search --out`")
    if not (run / "config.yaml").exists():
        if any(entry.name != "lock" for entry in run.iterdir()):
            raise UserError(f"{run} holds no search; give the run directory of `ideal-proxy search --out`")
        return _status(run, "empty", {}, [], f"ideal-proxy search MIX.YAML --out {run}")
    runs = [read_json(path / "metrics.json") for path in sorted(run.glob("runs/*")) if is_complete(path)]
    record = read_json(run / STATUS) if (run / STATUS).exists() else {}
    again = f"ideal-proxy search {run / 'config.yaml'} --out {run}"
    if (run / "result.json").exists():
        return _status(run, "finished", record, runs, f"ideal-proxy show {run}")
    if (holder := lock_holder(run)) is not None:
        return _status(run, "running", record, runs, f"ideal-proxy status {run}", holder=holder)
    return _status(run, "stopped" if record or runs else "planned", record, runs, again)


def _status(
    run: Path, state: str, record: dict[str, Any], runs: list[dict[str, Any]], then: str, holder: str | None = None
) -> dict[str, Any]:
    """Put the answer together."""
    now = time.time()
    live = state in {"running", "stopped"}
    working = [
        {"worker": int(number), **{k: v for k, v in at.items() if k != "since"},
         "seconds": (now if state == "running" else record["updated"]) - at["since"],
         "checkpoint": (run / "runs" / at["run"] / CHECKPOINT).exists()}
        for number, at in sorted(record.get("working", {}).items(), key=lambda item: int(item[0]))
    ] if live else []  # fmt: skip
    plan = record.get("plan", [])
    since = now if state == "running" else record.get("updated", now)
    return {
        "state": state,
        "holder": holder,
        "stage": record.get("stage") if live else None,
        "ended": record.get("ended"),
        "complete": dict(Counter(entry["spec"]["role"] for entry in runs)),
        "planned_runs": sum(stage["runs"] for stage in plan) or None,
        "stage_runs_done": record.get("runs_done", 0),
        "stage_runs": record.get("runs", 0),
        "working": working,
        "retried": list(record.get("retried", {}).values()),
        "failed": list(record.get("failed", {}).values()),
        "seconds_spent": record["spent_before"] + since - record["began"] if record else 0.0,
        "stage_seconds_left": record.get("seconds_left") if live else None,
        "seconds_left": _seconds_left(record, runs, workers=_workers(run)) if live and plan else None,
        "verdict": read_json(run / "result.json")["verdict"]["sentence"] if state == "finished" else None,
        "next": then,
    }


def _workers(run: Path) -> int:
    return int(read_json(run / "plan.json")["workers"]) if (run / "plan.json").exists() else 1


def _seconds_left(record: dict[str, Any], runs: list[dict[str, Any]], *, workers: int) -> float:
    """Estimate the whole search at most: what this stage needs still, and the later ones at the speed measured."""
    planned = {stage["name"]: stage for stage in record["plan"]}
    trained = sum(entry["tokens"] for entry in runs)
    parts = ("train_seconds", "evaluate_seconds", "metric_seconds")
    seconds = sum(entry.get(part, 0.0) for entry in runs for part in parts)
    name = record["stage"]
    number, _, part = name.removeprefix("round ").partition(": ")
    order = ["warm start", "zero rows", "learning rate", "swarm", "check"]
    order = [stage for stage in order if stage in planned or stage == name]
    here = {"fit": "swarm", "result": "check"}.get(part or name, part or name)
    at = order.index(here) if here in order else -1
    left = 0.0
    for later in order[at + 1 :]:
        left += _stage_seconds(planned[later], trained, seconds, workers)
    rounds = planned.get("more rounds")
    if rounds is not None:
        begun = int(number) - 1 if part else 0  # of the further rounds, which are alike
        share = max(0.0, 1.0 - begun / rounds["rounds"])
        left += share * _stage_seconds(rounds, trained, seconds, workers)
    return float(left + (record["seconds_left"] or 0.0))


def _stage_seconds(stage: dict[str, Any], trained: int, seconds: float, workers: int) -> float:
    """Scale a stage's planned time to the speed measured over the finished runs, where there are any."""
    if not trained:
        return float(stage["seconds"])
    return float(stage["tokens"] * seconds / trained / (1 if stage["name"] in {"warm start", "zero rows"} else workers))


def status_text(status: dict[str, Any], run: Path) -> str:
    """Lay out what a search is at, in 80 columns.

    Args:
        status: from `read_status`.
        run: the run directory.

    Returns:
        str: state, what runs, what is done, what failed, time left, and how to go on.
    """
    state = status["state"]
    lines = [f"{run}: {_state(status)}"]
    if state == "empty":
        return "\n".join([*lines, f"Begin one: {status['next']}"])
    if status["working"]:
        title = "Running now" if state == "running" else "Was running"
        rows = [
            (_worker(at), at["run"], at["role"], f"{at['step']:,} of {at['steps']:,}" if at["steps"] else "-",
             "-" if at["loss"] is None else f"{at['loss']:.3f}", duration(at["seconds"]),
             *(() if state == "running" else ("yes" if at["checkpoint"] else "no",)))
            for at in status["working"]
        ]  # fmt: skip
        header = ("worker", "run", "role", "step", "loss", "for", *(() if state == "running" else ("checkpoint",)))
        lines += ["", table(title, header, rows, left=3)]
    complete = sum(status["complete"].values())
    roles = ", ".join(f"{count} {role}" for role, count in sorted(status["complete"].items()))
    most = f" of {status['planned_runs']} at most" if status["planned_runs"] and state != "finished" else ""
    lines += ["", paragraph(f"Done: {complete} runs{most}{f' ({roles})' if roles else ''}.")]
    if status["stage_runs"] and state in {"running", "stopped"}:
        lines.append(f"This stage: {status['stage_runs_done']} of {status['stage_runs']} runs.")
    for kind, word in (("retried", "Tried again"), ("failed", "Failed twice, left out")):
        lines += [paragraph(f"{word}: run {at['run']} ({at['role']}): {at['message']}") for at in status[kind]]
    lines.append(paragraph(_time(status)))
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
    stage = f", {status['stage']}" if status["stage"] else ""
    how = {None: "it was killed", "Ctrl-C": "by Ctrl-C"}.get(status["ended"], "an error, see below")
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
