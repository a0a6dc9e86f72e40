"""What a search leaves behind: `mixture.json`, `result.json`, `fit.json` and `runs.parquet`."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ideal_proxy.config import SearchConfig
from ideal_proxy.gradients import plain_lists, unresolved
from ideal_proxy.mixture import save_mixture
from ideal_proxy.optimizer import Limit
from ideal_proxy.pipeline.evidence import IMITATIONS
from ideal_proxy.pipeline.findings import NO_JUDGE
from ideal_proxy.pipeline.frozen import replayed
from ideal_proxy.pipeline.gain_shares import contributions, objective_notes
from ideal_proxy.pipeline.laboratory import Laboratory
from ideal_proxy.pipeline.mixture_of_search import domain_volumes, mixture_of
from ideal_proxy.pipeline.plan_cost import Plan, proxies_of
from ideal_proxy.pipeline.prepare import Prepared
from ideal_proxy.pipeline.proposal import Proposal, gradient_note, leeway_of
from ideal_proxy.pipeline.reuse import Reuse
from ideal_proxy.pipeline.rounds import ON_EDGE
from ideal_proxy.pipeline.row_record import RECORD
from ideal_proxy.pipeline.verdict import PairedScores, Verdict, ratio_bounds, score_bounds, sentence
from ideal_proxy.pipeline.weights import domain_shares, steps_taken
from ideal_proxy.proxy import cost_of
from ideal_proxy.response import directions, told_trusts
from ideal_proxy.sections import size_name
from ideal_proxy.store import MARKER, atomic_write_bytes, atomic_write_json, mark_complete
from ideal_proxy.terminal import duration, money

DECIDING = ("runs.parquet", "fit.json", "fit_losses.json", "mixture.json", "result.json", "provenance.json", RECORD,
            "config.yaml")  # fmt: skip
MANY_STEPS = 0.1  # a difference of steps that may make a gain by itself


def write_outcome(
    laboratory: Laboratory,
    proposals: list[Proposal],
    verdict: Verdict,
    check: dict[str, Any],
    reuse: Reuse | None = None,
) -> dict[str, Any]:
    """Write the result files; `result.json` last, it marks the search as finished."""
    proposal, folder = proposals[-1], laboratory.folder
    result = _result(laboratory, proposals, verdict) | {"check": check}
    if laboratory.config.freeze:
        result["replay"] = list(replayed(laboratory.config, result))
    capabilities, plan = laboratory.prepared.capability_names, laboratory.plan
    lower = {proxies_of(of.size): of.runs for of in plan.lower}
    kinds = proposal.loss_model.fidelity_
    if lower:
        own = {name: kind for name, kind in kinds.items() if name in lower}
        last = size_name(laboratory.config.swarm.sizes[-1])
        told = told_trusts(own, proxies_of(last), capabilities)
        result["ladder"] = {"lower": lower, "last": last, "cost": laboratory.lower_cost, "trust": told}
    if reuse is not None:
        gone = [*lower, IMITATIONS]
        other = {name: kind for name, kind in kinds.items() if name not in gone}
        result["reuse"] = reuse.to_json() | {"trust": told_trusts(other, "new runs", capabilities)}
    frame = laboratory.frame()
    (folder / MARKER).unlink(missing_ok=True)
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    atomic_write_bytes(folder / "runs.parquet", buffer.getvalue())
    atomic_write_json(folder / "fit.json", proposal.model.to_json())
    law = proposal.loss_model.to_json()  # what full-size runs measure: reference losses
    if laboratory.config.has_metrics:
        atomic_write_json(folder / "fit_losses.json", law)
    save_mixture(folder / "mixture.json", mixture_of(laboratory, proposal, verdict, result, law))
    atomic_write_json(folder / "result.json", result)
    mark_complete(folder, DECIDING)
    return result


def _result(laboratory: Laboratory, proposals: list[Proposal], verdict: Verdict) -> dict[str, Any]:
    """Collect every number that the terminal and the report show."""
    config, prepared, plan = laboratory.config, laboratory.prepared, laboratory.plan
    proposal = proposals[-1]
    at_base, proposed = (domain_volumes(prepared, config.seed, rows) for rows in (prepared.domains.base, proposal.rows))
    paired = laboratory.paired_losses
    pair_losses = [(_mean_loss(entry.base, entry.tokens), _mean_loss(entry.proposal, entry.tokens)) for entry in paired]
    ratios = ratio_bounds(paired, looks=plan.looks) if config.has_metrics and paired else verdict.ratios
    if not paired:  # the proposal is the base: what the fit says of it
        pair_losses = [(x, x) for x in proposal.predicted_losses.other.tolist()]
    moves = leeway_of(config, proposal, config.verify.pairs)
    parts = [[(d.rows, d.tokens, d.supervised_tokens) for d in mixture] for mixture in (at_base, proposed)]
    base_shares, shares = (domain_shares(config, *zip(*part, strict=True)) for part in parts)
    totals = [(float(sum(d[0] for d in part)), float(sum(d[1] for d in part))) for part in parts]
    steps = steps_taken(config, *totals)
    domains = [
        {
            "name": domain.name,
            "available": domain.available,
            "base_rows": domain.base_rows,
            "proposal_rows": domain.rows,
            "change": domain.change,
            "base_tokens": base.tokens,
            "tokens": domain.tokens,
            "share": domain.share,
            "base_share": base.share,
            "repeat": domain.repeat,
            "moves": [min(float(low), domain.rows), max(float(high), domain.rows)],
            "base_shares": base_share,
            "shares": share,
        }
        for base, domain, low, high, base_share, share in zip(
            at_base, proposed, moves.lower, moves.upper, base_shares, shares, strict=True
        )
    ]
    capabilities = [
        {
            "name": capability.name,
            "base_loss": pair_losses[j][0],
            "proposal_loss": pair_losses[j][1],
            "predicted": asdict(proposal.predicted_losses.ratios[j]),
            "verified": asdict(ratios[j]),
            "change": str(verdict.changes[j]),
            "protection": str(verdict.protection[j]),
            "tolerance": config.limits.tolerance(capability.name),
        }
        | _metric(config, laboratory, proposal, verdict, j)
        for j, capability in enumerate(prepared.capabilities)
    ]
    added = contributions(
        np.array([ratio.value for ratio in verdict.ratios]), config.objective.kind,
        [capability.weight for capability in config.capabilities],
    )  # fmt: skip
    for entry, share, before, base_search in zip(
        capabilities, added, proposal.evidence.losses_before, proposal.predicted_losses.other, strict=True
    ):
        entry["adds"] = float(share)
        if np.isfinite(before):
            entry["base_against_start"] = float(base_search / before)
    leaks = prepared.health["leaks"]
    text = sentence(
        verdict, prepared.capability_names, min_gain=config.objective.min_gain, judged=_judged_by(config),
        price=_price_of_pairs(config, plan, laboratory, verdict),
    )  # fmt: skip
    if abs(steps["change"]) > MANY_STEPS and verdict.pairs:
        text += (
            f" (at {abs(steps['change']):.0%} {'more' if steps['change'] > 0 else 'fewer'} optimiser steps than base)"
        )
    return {
        "name": config.name,
        "verdict": {
            "answer": verdict.answer,
            "sentence": text,
            "gain": asdict(verdict.gain),
            "gains_by_seed": list(verdict.gains_by_seed),
            "pairs": verdict.pairs,
            "pairs_needed": verdict.pairs_needed,
            "row_noise": verdict.row_noise,
            "level": verdict.level,
        },
        "predicted_gain": asdict(proposal.predicted.gain),
        "leeway": {"slack": moves.slack, "open": list(moves.open), "unsettled": list(moves.unsettled)},
        "free": _free(prepared, proposal),
        "domains": domains,
        "steps": steps,
        "capabilities": capabilities,
        "noise": dict(zip(("run", "seed"), proposal.noise, strict=True)),
        "optimum": {"scope": proposal.optimum.settled, "active": list(proposal.optimum.active)},
        "warnings": [
            *(text for text in leaks if NO_JUDGE in text),  # the verdict itself is in doubt
            *_unjudged(config, domains),
            *objective_notes(
                prepared.capability_names,
                added,
                kind=config.objective.kind,
                scored=[capability.name for capability in config.capabilities if capability.metric is not None],
                base_losses_J=np.array([losses[0] for losses in pair_losses]),
            ),
            *_cautions(steps, proposal),
            *proposal.notes,
            *(text for text in leaks if NO_JUDGE not in text),
            *prepared.health["few"],
            *laboratory.failures(),
            *_changed_scripts(laboratory),
        ],
        "rounds": [
            {"round": number, "predicted_gain": asdict(tried.predicted.gain), "rows": tried.rows.tolist()}
            for number, tried in enumerate(proposals, 1)
        ],
        "proxy": {
            "parameters": plan.parameters,
            "fraction": plan.fraction,
            "size": config.proxy.size,
            "trainable_parameters": plan.trainable_parameters,
            "model": config.proxy.model,
            "lora_rank": config.proxy.lora_rank,
        },
        "cost": laboratory.cost() | {"rounds": len(proposals)},
        "gradients": _gradients(config, laboratory, proposal),
        "imitated": _imitated(laboratory, proposal),
    }


def _imitated(laboratory: Laboratory, proposal: Proposal) -> dict[str, Any] | None:
    """Collect what was imitated by interpolation, and its trust; None where nothing was."""
    text, anchors = laboratory.told_imitations(proposal.loss_model), laboratory.anchors
    if not text or anchors is None:
        return None
    return {
        "mixtures": len(laboratory.imitated), "anchors": list(anchors.names), "disagree": list(laboratory.disagree),
        "trust": proposal.loss_model.fidelity_.get(IMITATIONS), "text": text,
    }  # fmt: skip


def _free(prepared: Prepared, proposal: Proposal) -> dict[str, Any] | None:
    """Say what the same fit proposes without protection, what that is predicted to gain, and who pays."""
    free = proposal.free
    if free is None:
        return None
    names = prepared.capability_names
    return {
        "rows": dict(zip(prepared.domains.names, (int(x) for x in free.rows), strict=True)),
        "predicted_gain": asdict(free.predicted.gain),
        "capabilities": {name: asdict(ratio) for name, ratio in zip(names, free.predicted.ratios, strict=True)},
    }


def _price_of_pairs(config: SearchConfig, plan: Plan, laboratory: Laboratory, verdict: Verdict) -> str | None:
    """Say what the pairs that would decide cost beside those that were run, and what asks for them."""
    if verdict.pairs_needed is None or not verdict.pairs:
        return None
    more = verdict.pairs_needed - verdict.pairs
    seconds = 2 * more * laboratory.seconds_of_check() / plan.workers
    cost = cost_of(config.cost, seconds, plan.devices)
    price = f"{more} more, {duration(seconds)}" + (f", {money(cost, config.cost.currency)}" if cost is not None else "")
    if verdict.pairs_needed <= config.verify.max_pairs:
        return price
    return f"{price}: verify.max_pairs: {verdict.pairs_needed} or more and the same command"


def _cautions(steps: dict[str, Any], proposal: Proposal) -> list[str]:
    """Say what a gain may rest on beside the mixture, and where the search had not seen enough."""
    said = []
    if abs(change := steps["change"]) > MANY_STEPS:
        said.append(
            f"the proposal takes {abs(change):.0%} {'more' if change > 0 else 'fewer'} optimiser steps than base, so "
            "part of the difference may come from the steps and not from the mixture; budget: {steps: keep} compares "
            "both at equal steps"
        )
    if Limit.TRUST_REGION in proposal.optimum.binding:
        said.append(f"{ON_EDGE}; --rounds allows another round")
    return said


def _unjudged(config: SearchConfig, domains: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name domains that shrink although nothing judges what they teach; where some have judges of their own."""
    judged = {number for number in config.own if number >= 0}
    shrunk = [
        f"{d['name']} ({d['change']:+.0%})"
        for i, d in enumerate(domains)
        if i not in judged and d["change"] is not None and d["change"] < -MANY_STEPS
    ]
    if not judged or not shrunk:
        return []
    named = ", ".join(shrunk) if len(shrunk) < 6 else f"{', '.join(shrunk[:4])} and {len(shrunk) - 4} others"
    return [
        f"no capability has rows of the kind of {named}, so what they lose is not seen: give them reference rows "
        "or a lower limit, if they are there for their own sake"
    ]


def _mean_loss(sums_SN: NDArray[np.float64], tokens_N: NDArray[np.float64]) -> float:
    """Return nats per supervised token over all pairs."""
    return float(sums_SN.mean(0).sum() / tokens_N.sum())


def _metric(
    config: SearchConfig, laboratory: Laboratory, proposal: Proposal, verdict: Verdict, j: int
) -> dict[str, Any]:
    """Collect what a capability's metric gave, in its own unit; nothing where its loss is what judges."""
    metric = config.capabilities[j].metric
    if metric is None:
        return {}
    sign, scale = float(directions(config.kinds)[j]), float(proposal.yardstick.scale[j])
    at_base = proposal.predicted.other[j : j + 1]
    scores = laboratory.paired_scores.get(j, PairedScores(at_base, at_base))
    return {
        "metric": {
            "command": metric.command,
            "python": metric.python,
            "named": metric.named,
            "higher_is_better": metric.higher_is_better,
            "scale": scale,
            "noise": float(np.asarray(proposal.model.residual_scale_)[j]),
            "base_spread": float(scores.base.std(ddof=1)) if len(scores.base) > 1 else 0.0,
            "base": float(scores.base.mean()),
            "proposal": float(scores.proposal.mean()),
            "before_sft": _known(proposal.evidence.values_before[j]),
            "predicted_base": float(proposal.predicted.other[j]),
            "predicted": asdict(score_bounds(proposal.predicted.ratios[j], scale, sign)),
            "verified": asdict(score_bounds(verdict.ratios[j], scale, sign)),
        }
    }


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _judged_by(config: SearchConfig) -> str:
    """Say what the check judged by."""
    if not config.has_metrics:
        return "on unseen reference rows"
    whole = all(capability.metric is not None for capability in config.capabilities)
    return "by the metrics" if whole else "by the metrics and on unseen reference rows"


def _changed_scripts(laboratory: Laboratory) -> list[str]:
    """Warn where runs were scored by more than one version of a script."""
    return [
        f"the metric of {name} was changed during the search ({len(versions)} versions of its script): start anew with "
        "another --out if that moves its scores"
        for name, versions in laboratory.scripts().items()
        if len(versions) > 1
    ]


def _gradients(config: SearchConfig, laboratory: Laboratory, proposal: Proposal) -> dict[str, Any] | None:
    """Collect the measured responses at base and what they did to the fit; None where none were asked for."""
    if config.gradients == "none":
        return None
    found: dict[str, Any] = {"setting": config.gradients, "method": laboratory.gradients or None}
    if not laboratory.responses or not proposal.evidence.gradients:
        return found | {"note": f"No gradients: {laboratory.gradients_why or 'no estimate succeeded'}"}
    model, (_, matrix) = proposal.model, laboratory.responses[0]
    used = bool(np.isfinite(model.trust_))
    return found | {
        "note": gradient_note(model, laboratory.gradients),
        "used": used,
        "trust": float(model.trust_) if used else None,
        "held_out_error": [
            {"trust": trust if np.isfinite(trust) else None, "relative": float(np.sqrt(error))}
            for trust, error in model.trust_errors_.items()
        ],
        "centres": len(proposal.evidence.gradients),
        "scale": model.response_scale_.tolist() if used else None,
        "M": plain_lists(matrix.M),
        "se": plain_lists(matrix.se),
        "unresolved": unresolved(matrix.M, matrix.se).tolist(),
    }
