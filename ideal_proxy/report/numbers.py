"""Every number that the page of a search shows, as `report.json` holds them."""

from __future__ import annotations

import math
import re
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from ideal_proxy.errors import UserError
from ideal_proxy.optimizer import ParetoFront, pareto
from ideal_proxy.pipeline import (
    STAGE_OF_ROLE,
    SearchRun,
    Stage,
    few_references_text,
    make_constraints,
    roles_when_trained,
    runs_by_stage,
    table_cost,
    trained_runs,
)
from ideal_proxy.report.curves import Array, ResponseMatrix, response_matrix, slice_through
from ideal_proxy.report.few import Few, few
from ideal_proxy.report.full_size import full_size_rows, full_size_text, scale_ups
from ideal_proxy.report.page import FORMAT
from ideal_proxy.report.steps import steps_text
from ideal_proxy.report.text import SAYS, ladder_text, reuse_text, two_answers, who_pays
from ideal_proxy.response import compare, directions

PARETO_POINTS = 9
DIGITS = 7


Front = tuple[ParetoFront, tuple[float, float]]  # with the proposal's place beside it


def collect(run: SearchRun) -> tuple[dict[str, Any], Front | None]:
    """Collect every number that the page shows."""
    result, prepared = run.result, run.prepared
    gain = result["verdict"]["gain"]
    part = few(run)
    front, front_note = _front(run, part)
    shown = shown_domains(run, part)
    kept = {name for names in shown.values() for name in names} if part.large else set(run.domains)
    share = run.base * prepared.domains.lengths
    stages = cost_stages(run)
    total_base = float(share.sum())
    numbers = {
        "format": FORMAT,
        "name": result["name"],
        "created": run.mixture.created,
        "adopted": run.adopted,
        "verdict": result["verdict"] | {"noise_floor": gain["value"] - gain["lower"]},
        "min_gain": run.config.objective.min_gain,
        "objective": run.config.objective.kind,
        "budget": {"unit": run.config.budget.unit, "mode": run.config.budget.mode},
        "predicted_gain": result["predicted_gain"],
        "noise": result["noise"],
        "domains": [entry | {"base_repeat": entry["base_rows"] / entry["available"]} for entry in result["domains"]],
        "steps": steps_text(result["steps"]) if "steps" in result else "",
        "capabilities": result["capabilities"],
        "pays": who_pays(result),
        "answers": two_answers(result),
        "says_note": SAYS,
        "optimum": result["optimum"],
        "rounds": result["rounds"],
        "shown": {"domains": part.domains, "capabilities": part.capabilities, "text": part.text},
        "curves": [_curves(run, domain) for domain in run.domains if domain in kept],
        "curves_left_out": 0 if part.large else sum(len(run.domains) - len(names) for names in shown.values()),
        "responses": {
            "at": "base",
            "unit": response_unit(run),
            "rows_added": _matrix(responses_at_base(run)),
            "same_total": _matrix(responses_at_base(run, share=share / total_base)),
        },
        "gradients": result.get("gradients"),
        "full_size": full_size_rows(found := scale_ups(run.folder)),
        "full_size_text": full_size_text(found) if found else "",
        "ladder": result.get("ladder"),
        "ladder_text": ladder_text(result.get("ladder")),
        "reuse": result.get("reuse"),
        "replay": result.get("replay", []),
        "reuse_text": reuse_text(result.get("reuse")),
        "imitated": result.get("imitated"),
        "fit": _fit(run),
        "held_out": _held_out(run, part),
        "pareto": {"note": front_note} if front is None else _pareto(run, *front),
        "cost": {
            "stages": stages.to_dict(orient="records"),
            "runs": trained_runs(zip(stages["stage"], stages["runs"].tolist(), strict=True)),
            "tokens": int(stages["tokens"].sum()),
            "seconds": float(stages["seconds"].sum()),
            "flops": float(stages["flops"].sum(skipna=False)),
            "base_tokens": total_base,
            "rounds": len(result["rounds"]),
        },
        "proxy": result["proxy"] | {"vocabulary": prepared.vocabulary, "context": prepared.context.tokens},
        "plan": run.plan,
        "learning_rate": run.rate,
        "health": _health(run),
        "warnings": result["warnings"],
        "repeat": {
            "seed": run.config.seed,
            "command": re.sub(
                r" --dry-run\b", "", run.provenance.get("command", "")
            ),  # whose plan the search then took
            "versions": run.provenance.get("versions", {}),
            "git": run.provenance.get("git"),
            "machine": run.provenance.get("machine", {}),
            "time": run.provenance.get("time", ""),
            "fingerprints": {
                kind: {entry.name: {"source": entry.source, "sha256": entry.fingerprint} for entry in entries}
                for kind, entries in (("domains", prepared.facts), ("capabilities", prepared.capabilities))
            },
        },
    }
    return _plain(numbers), front


def cost_stages(run: SearchRun) -> pd.DataFrame:
    """Add up the training of every stage."""
    counted = run.runs if "flops" in run.runs else run.runs.assign(flops=np.nan)
    roles = roles_when_trained(run.runs)
    frame = counted.assign(stage=[str(STAGE_OF_ROLE.get(role, role)) for role in roles])
    frame = frame[frame["role"] != "reused"]  # trained by an earlier search, or of a ladder's lower sizes
    grouped = frame.groupby("stage", sort=False).agg(
        runs=("run", "size"), tokens=("tokens", "sum"), seconds=("seconds", "sum"),
        flops=("flops", lambda column: column.sum(skipna=False)),
    )  # fmt: skip
    stages = grouped.loc[list(runs_by_stage(roles[frame.index]))].reset_index()
    if not run.result.get("ladder"):
        return stages
    own, whole = table_cost(run.runs, with_gradients=False), run.result["cost"]
    lower = {key: whole[key] - own[key] for key in ("runs", "tokens", "seconds")}
    first = pd.DataFrame([{"stage": str(Stage.LOWER_SIZES), **lower, "flops": np.nan}])
    return pd.concat([first, stages], ignore_index=True)


def keep_weights(run: SearchRun) -> Array | None:
    """Say what the search held fixed: tokens (or rows) of each row where the budget is kept, None where it is free."""
    if run.config.budget.mode != "keep":
        return None
    tokens = run.prepared.domains.lengths
    return tokens if run.config.budget.unit == "tokens" else np.ones_like(tokens)


def response_unit(run: SearchRun) -> str:
    """Name what the response matrices are in: nats, or shares of base where a metric judges."""
    return "share of base (or of a score's scale), worse is positive" if run.config.has_metrics else "nats"


def responses_at_base(run: SearchRun, *, share: Array | None = None) -> ResponseMatrix:
    """Differentiate the response at base, in a unit that all capabilities share."""
    found = response_matrix(run.model, run.base, share=share)
    if not run.config.has_metrics:
        return found
    divisor = run.yardstick.divisor(run.model.value_and_gradient(run.base)[0])
    factor = (directions(run.config.kinds) / divisor)[:, None]
    ends = np.stack([found.lower * factor, found.upper * factor])
    return ResponseMatrix(
        values=found.values * factor, errors=found.errors * abs(factor), lower=ends.min(axis=0), upper=ends.max(axis=0)
    )


def shown_domains(run: SearchRun, part: Few) -> dict[str, list[str]]:
    """Choose the domains whose curves go on the page: all, or of many those that each capability answers to most."""
    strength = np.abs(run.model.value_and_gradient(run.base)[1] * run.base)
    return {
        run.capabilities[j]: [run.domains[i] for i in sorted(np.argsort(-strength[j], kind="stable")[: part.panels])]
        for j in part.capabilities
    }


def _curves(run: SearchRun, domain: str) -> dict[str, Any]:
    index = run.domains.index(domain)
    seen = [*run.volumes()[:, index], run.base[index], run.proposal[index]]
    found: dict[str, Any] = {"domain": domain, "available": run.prepared.facts[index].available}
    for name, mixture in (("base", run.base), ("proposal", run.proposal)):
        curve = slice_through(
            run.model, mixture, domain, low=float(min(seen)), high=float(max(seen)), keep=keep_weights(run),
            band=name == "base",
        )  # fmt: skip
        found[name] = {"rows": curve.volumes, "loss": _by_name(run, curve.mean)}
        if name == "base":
            found[name] |= {"lower": _by_name(run, curve.lower), "upper": _by_name(run, curve.upper)}
    return found


def _by_name(run: SearchRun, values: Array) -> dict[str, Array]:
    return {name: values[:, j] for j, name in enumerate(run.capabilities)}


def _matrix(matrix: ResponseMatrix) -> dict[str, Any]:
    return {
        "values": matrix.values,
        "errors": matrix.errors,
        "lower": matrix.lower,
        "upper": matrix.upper,
        "within_noise": matrix.within_noise.tolist(),
    }


def _fit(run: SearchRun) -> list[dict[str, Any]]:
    unit = run.yardstick.divisor(run.model.value_and_gradient(run.base)[0])
    return [
        asdict(entry) | {"relative_error": entry.error / one, "relative_noise": entry.noise / one}
        for entry, one in zip(run.model.diagnostics_, unit, strict=True)
    ]


def _held_out(run: SearchRun, shown: Few) -> dict[str, Any]:
    table = run.held_out()
    summary = []
    for kind, part in table.groupby("kind", sort=False):
        error = (part["observed"] - part["predicted"]) / part["unit"]
        runs = part["run"].nunique()
        summary.append({
            "kind": kind,
            "runs": runs,
            "error": math.sqrt(float((error**2).mean())),
            "bias": float(error.mean()),
        })
    return {"summary": summary, "runs": shown.held_out(run).to_dict(orient="records")}


def _front(run: SearchRun, part: Few) -> tuple[Front | None, str]:
    """Trace the front between those that the proposal helps and those that it costs most."""
    if part.large:
        return None, "with so many domains and capabilities it takes long; `ideal_proxy.pareto` traces it"
    if len(run.capabilities) < 2:
        return None, "there is only one capability"
    stick = run.yardstick
    ratios = compare(run.model, run.proposal, run.base, pairs=run.config.verify.pairs, yardstick=stick).ratios
    scale = {name: float(x) for name, x in zip(run.capabilities, stick.scale, strict=True) if np.isfinite(x)} or None
    second = [name for name, r in zip(run.capabilities, ratios, strict=True) if r.value > 1]
    if not second or len(second) == len(ratios):
        second = [run.capabilities[int(np.argmax([r.value for r in ratios]))]]
    first = [name for name in run.capabilities if name not in second]
    constraints = make_constraints(run.config, run.prepared, run.volumes())
    try:
        front = pareto(run.model, constraints, first, second, points=PARETO_POINTS, n_starts=2, scale=scale)
    except UserError as error:
        return None, str(error)
    shift = 0.0 if stick.is_loss.any() else 1.0  # a front of scores alone is told from 0
    value = {name: ratio.value - shift for name, ratio in zip(run.capabilities, ratios, strict=True)}
    return (front, (float(np.mean([value[n] for n in first])), float(np.mean([value[n] for n in second])))), ""


def _pareto(run: SearchRun, front: ParetoFront, place: tuple[float, float]) -> dict[str, Any]:
    return {
        "first": list(front.first),
        "second": list(front.second),
        "proposal": list(place),
        "points": [
            {
                "first": float(front.values[k, 0]),
                "second": float(front.values[k, 1]),
                "rows": dict(zip(run.domains, np.rint(optimum.volumes).astype(int).tolist(), strict=True)),
            }
            for k, optimum in enumerate(front.optima)
        ],
    }


def _health(run: SearchRun) -> dict[str, Any]:
    domains = [asdict(entry) for entry in run.prepared.facts]
    capabilities = [asdict(entry) for entry in run.prepared.capabilities]
    findings = [line for key in ("duplicates", "left_out") for line in run.prepared.health.get(key, [])]
    context = run.prepared.context.tokens
    for entry in (*domains, *capabilities):
        if entry.get("truncated"):
            findings.append(
                f"{entry['name']}: {entry['truncated']:,} rows are longer than {context} tokens and were cut"
            )
        if entry.get("dropped"):
            findings.append(f"{entry['name']}: {entry['dropped']:,} rows have no answer token and were dropped")
    few = few_references_text({entry["name"]: entry["verify_rows"] for entry in capabilities})
    findings += [few] if few else []
    return {"domains": domains, "capabilities": capabilities, "findings": findings}


def _plain(value: Any) -> Any:
    """Turn arrays into lists, round numbers to what they mean, and numbers that JSON lacks into null."""
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return value
