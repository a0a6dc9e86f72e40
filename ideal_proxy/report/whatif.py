"""`ideal-proxy what-if`: what the fit predicts for a mixture of one's own, against base and proposal.

Legend: D domains, J capabilities.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ideal_proxy.config import rows_of
from ideal_proxy.errors import UsageError
from ideal_proxy.mixture import CapabilityResult, MixtureFile, with_shares
from ideal_proxy.pipeline import SearchRun
from ideal_proxy.report.curves import Array, predict
from ideal_proxy.response import Bound, compare
from ideal_proxy.terminal import interval_text, paragraph, signed, table

BEYOND = 1.01  # a volume so much outside of what was run is an extrapolation
FAR = 0.1  # half-widths of what was run
LEAST_WIDTH = 0.3  # of what was run, in log-volume: a domain that hardly moved says little of what lies beyond
MOVED = 0.02  # a change of the total that is worth a word
# What a mixture file of one's own keeps of the search's; it was never checked, so no verdict.
MIXTURE = {
    "format", "name", "created", "seed", "key_version", "loss", "batch", "epochs", "domains", "template", "provenance",
    "proxy_fraction",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """What the fit says of one capability."""

    name: str  # the capability
    base: float  # loss at base, nats per supervised token; of a capability that a metric judges its score, as below
    proposal: float  # loss at the proposal
    loss: float  # loss at the mixture asked about
    lower: float  # lower end of the 90 % interval of one run's loss there
    upper: float  # upper end
    ratio: Bound  # loss over loss at base, with the 90 % interval for the mean over the check's first pairs
    kind: str = "loss"  # loss, score (higher is better) or cost (lower is better)


@dataclass(frozen=True, slots=True, kw_only=True)
class WhatIf:
    """The answer."""

    rows: dict[str, int]  # full-size rows asked about, by domain
    base: dict[str, int]  # rows of the base mixture
    proposal: dict[str, int]  # rows of the search's proposal
    repeat: dict[str, float]  # passes over each domain
    tokens: int  # tokens of the mixture
    base_tokens: int  # tokens of the base mixture
    capabilities: tuple[Predicted, ...]  # predictions, J of them
    gain: Bound  # relative gain in the objective against base, predicted
    proposal_gain: Bound  # the same of the proposal
    # how far outside of what was run, in half-widths of what was run (log-volumes); 0 inside. Intervals are wider by so
    # much
    beyond: float
    cautions: tuple[str, ...]  # why the prediction may be off, a sentence each

    def to_dict(self) -> dict[str, Any]:
        """Write the answer for a file."""
        return asdict(self)


def what_if(
    run: SearchRun,
    changes: Mapping[str, int | str],
    *,
    start: str = "base",
    keep_total: bool = False,
) -> WhatIf:
    """Predict the losses of a mixture of one's own.

    Args:
        run: a finished search.
        changes: volume by domain: rows (6000), a change ('+500', '-20%') from the start, or, as in the run file, a
            share or multiple of the rows there are ('30%', '2x').
        start: volumes of the domains not named: `base` or `proposal`.
        keep_total: scale the domains not named so that the tokens stay those of the base mixture.

    Returns:
        WhatIf: predictions with intervals.

    Raises:
        UsageError: an unknown domain or start, a volume that cannot be read, or a total that cannot be kept.
    """
    if start not in ("base", "proposal"):
        raise UsageError(f"the start is {start!r}; give base or proposal")
    rows = (run.base if start == "base" else run.proposal).copy()
    for name, value in changes.items():
        if name not in run.domains:
            raise UsageError(f"there is no domain {name!r}; this search has {', '.join(run.domains)}")
        index = run.domains.index(name)
        rows[index] = _volume(value, int(rows[index]), run.prepared.facts[index].available, name)
    if keep_total:
        rows = _keep_total(run, rows, set(changes))
    if not rows.any():
        raise UsageError("the mixture is empty; give at least one domain rows")
    base = run.base
    options: dict[str, Any] = {
        "pairs": run.config.verify.pairs,
        "kind": run.config.objective.kind,
        "weights": np.array([capability.weight for capability in run.config.capabilities]),
        "yardstick": run.yardstick,
    }
    edge, beyond = _edge(run, rows)
    asked, at_edge = (compare(run.model, v, base, **options) for v in (rows, edge))
    mean, lower, upper = predict(run.model, np.stack([rows, base, run.proposal, edge]))
    if beyond:  # what is predicted beyond the runs may not be there, and what is known at their edge fades
        half = np.hypot((upper[0] - lower[0]) / 2 * (1 + beyond), mean[0] - mean[3])
        lower[0], upper[0] = mean[0] - half, mean[0] + half
        least = run.model.floors() / np.where(np.isfinite(run.model.floors()), mean[1], 1.0)  # of a ratio
        parts = zip(asked.ratios, at_edge.ratios, least, strict=True)
        asked = replace(
            asked,
            ratios=tuple(_wider(here, there, beyond, low, np.inf) for here, there, low in parts),
            gain=_wider(asked.gain, at_edge.gain, beyond, -np.inf, 1 - float(least.min())),
        )
    mean, lower = (np.maximum(part, run.model.floors()) for part in (mean, lower))
    tokens = run.prepared.domains.lengths
    return WhatIf(
        rows=_named(run, rows),
        base=_named(run, base),
        proposal=_named(run, run.proposal),
        repeat={d.name: float(v / d.available) for d, v in zip(run.prepared.facts, rows, strict=True)},
        tokens=round(float(rows @ tokens)),
        base_tokens=round(float(base @ tokens)),
        capabilities=tuple(
            Predicted(
                name=name,
                base=float(mean[1, j]),
                proposal=float(mean[2, j]),
                loss=float(mean[0, j]),
                lower=float(lower[0, j]),
                upper=float(upper[0, j]),
                ratio=asked.ratios[j],
                kind=run.config.kinds[j],
            )
            for j, name in enumerate(run.capabilities)
        ),
        gain=asked.gain,
        proposal_gain=compare(run.model, run.proposal, base, **options).gain,
        beyond=beyond,
        cautions=tuple(_cautions(run, rows, beyond)),
    )


def mixture_of(run: SearchRun, answer: WhatIf) -> MixtureFile:
    """Make the mixture asked about a mixture file, which `apply`, `export` and `scale-up` read; it has no verdict."""
    lengths = run.prepared.domains.lengths
    domains = [
        domain.model_copy(update={
            "rows": rows, "tokens": round(rows * float(length)),
            "supervised_tokens": round(rows * fact.supervised_per_row), "base_rows": answer.base[domain.name],
        })
        for domain, rows, length, fact in zip(
            run.mixture.domains, answer.rows.values(), lengths, run.prepared.facts, strict=True
        )
    ]  # fmt: skip
    asked = {predicted.name: predicted for predicted in answer.capabilities}
    capabilities = [
        CapabilityResult(
            name=told.name, source=told.source, format=told.format, fingerprint=told.fingerprint,
            base_loss=told.base_loss, **_predicted(told.base_loss, asked[told.name]),
        )
        for told in run.mixture.capabilities
    ]  # fmt: skip
    kept = {name: getattr(run.mixture, name) for name in (*MIXTURE, "law")}
    own = {
        "name": f"{run.mixture.name}-what-if", "domains": with_shares(domains), "capabilities": capabilities,
        "predicted_gain": answer.gain.value,
    }  # fmt: skip
    return MixtureFile(**kept | own)


def _predicted(base: float | None, asked: Predicted) -> dict[str, Any]:
    """Give the losses predicted at the mixture asked about, beside the loss that base was seen to have."""
    if base is None or asked.kind != "loss":
        return {}
    return {f"predicted_{end}": getattr(asked.ratio, name) * base
            for end, name in (("loss", "value"), ("lower", "lower"), ("upper", "upper"))}  # fmt: skip


def read_settings(given: Sequence[str], domains: Sequence[str]) -> dict[str, str]:
    """Read options of the form NAME=VOLUME."""
    changes: dict[str, str] = {}
    for option in given:
        fitting = [name for name in domains if option.startswith(f"{name}=")]
        name = max(fitting, key=len, default=None)
        if name is None:
            before, equals, _ = option.partition("=")
            if equals:
                raise UsageError(f"--set {option}: there is no domain {before!r}; this search has {', '.join(domains)}")
            raise UsageError(f"--set {option!r} must be NAME=VOLUME, such as {domains[0]}=6000 or {domains[0]}=-20%")
        if name in changes:
            raise UsageError(f"--set names {name} twice; give one volume a domain")
        changes[name] = option[len(name) + 1 :]
    return changes


def what_if_tables(answer: WhatIf) -> str:
    """Lay out the answer in 80 columns."""
    domains = [
        (
            name, f"{answer.base[name]:,}", f"{answer.proposal[name]:,}", f"{rows:,}",
            signed(rows / answer.base[name] - 1, ".0%") if answer.base[name] else "new", f"{answer.repeat[name]:.2f}x",
        )
        for name, rows in answer.rows.items()
    ]  # fmt: skip
    capabilities = [
        (
            c.name if c.kind == "loss" else f"{c.name} ({c.kind})",
            f"{c.base:.3f}", f"{c.proposal:.3f}", f"{c.loss:.3f}", f"{c.lower:.3f}-{c.upper:.3f}",
            signed(c.ratio.value - 1, ".1%"), interval_text(asdict(c.ratio), "+.1%", less=1),
        )
        for c in answer.capabilities
    ]  # fmt: skip
    gain, proposal = answer.gain, answer.proposal_gain
    return "\n".join([
        table("Rows", ("domain", "base", "proposal", "yours", "change", "repeat"), domains),
        "",
        table(
            "Predicted loss, nats (90% of single runs; against base: 90% of means)"
            if all(c.kind == "loss" for c in answer.capabilities)
            else "Predicted losses, nats, and scores (90% of single runs; change: 90% of means)",
            ("capability", "base", "proposal", "yours", "one run", "change", "interval"), capabilities,
        ),
        "",
        paragraph(
            f"Objective: {signed(gain.value, '.2%')} {interval_text(asdict(gain))} against base; "
            f"proposal {signed(proposal.value, '.2%')}."
        ),
        paragraph(
            "All of this is the fit's own prediction for the search rows. What `show` promises of the proposal is "
            "corrected for having been selected, and what it verifies is measured on other rows: small changes may "
            "differ in sign."
        ),
        f"Tokens: {answer.tokens:,} ({signed(answer.tokens / answer.base_tokens - 1, '.1%')} against base).",
        *([paragraph("A score's change is its difference from base over its scale, worse is positive.")]
          if any(c.kind != "loss" for c in answer.capabilities) else []),
        *(paragraph(f"Caution: {text}.") for text in answer.cautions),
    ])  # fmt: skip


def _volume(value: int | str, start: int, available: int, name: str) -> float:
    text = str(value).strip()
    if text[:1] not in ("+", "-"):
        return float(rows_of(value, available, default=start, what=f"the volume of {name}"))
    try:
        rows = round(start * (1 + float(text[:-1]) / 100)) if text.endswith("%") else start + int(text)
    except (ValueError, OverflowError) as error:
        raise UsageError(
            f"the volume of {name} is {value!r}; write rows (6000), a change ('+500', '-20%') or a share of the rows "
            "there are ('30%', '2x')"
        ) from error
    if rows < 0:
        raise UsageError(f"{name} has {start:,} rows at the start, so {value} leaves less than none; take fewer away")
    return float(rows)


def _keep_total(run: SearchRun, rows: Array, named: set[str]) -> Array:
    """Scale the domains that were not named so that the tokens are those of base."""
    tokens = run.prepared.domains.lengths
    free = np.array([name not in named for name in run.domains])
    room = float(run.base @ tokens) - float((rows * tokens)[~free].sum())
    others = float((rows * tokens)[free].sum())
    if room < 0 or (others == 0 and abs(room) > tokens.max()):
        raise UsageError(
            f"the domains named take {'more' if room < 0 else 'other'} tokens than the base mixture has, and no other "
            "domain can make up for it; change fewer domains, or leave out --keep-total"
        )
    scaled = rows.copy()
    scaled[free] = np.rint(rows[free] * (room / others)) if others else rows[free]
    return scaled


def _named(run: SearchRun, rows: Array) -> dict[str, int]:
    return {name: round(float(v)) for name, v in zip(run.domains, rows, strict=True)}


def _edge(run: SearchRun, rows: Array) -> tuple[Array, float]:
    """The mixture next to this one inside what was run, and how far off that is in half-widths of what was run."""
    ran = np.vstack([run.volumes(), run.base, run.proposal])
    low, high = ran.min(axis=0), ran.max(axis=0)
    edge = np.clip(rows, low / BEYOND, high * BEYOND)
    least = np.maximum(1.0, 1e-3 * float(run.base.max()))  # a volume below it counts as that much
    away = np.abs(np.log(np.maximum(rows, least) / np.maximum(edge, least)))
    width = np.maximum(np.log(np.maximum(high, least) / np.maximum(low, least)) / 2, LEAST_WIDTH)
    return edge, float(np.max(away / width))


def _wider(bound: Bound, edge: Bound, beyond: float, low: float, high: float) -> Bound:
    """Widen an interval outside of what was run: by the distance, and by all that changes from the edge to there."""
    half = float(np.hypot((bound.upper - bound.lower) / 2 * (1 + beyond), bound.value - edge.value))
    return Bound(bound.value, max(low, bound.value - half), min(high, bound.value + half))


def _cautions(run: SearchRun, rows: Array, beyond: float) -> list[str]:
    """Say where the prediction leaves what was run."""
    found = []
    ran = np.vstack([run.volumes(), run.base])
    low, high = ran.min(axis=0), ran.max(axis=0)
    if beyond > FAR:
        found.append(
            f"this lies outside of what was run, {beyond:.1f} times as far from its edge as its middle is: the fit "
            "guesses there, so intervals are wider by that; a search with wider bounds would know"
        )
    for name, v, least, most in zip(run.domains, rows, low, high, strict=True):
        if v * BEYOND < least or v > most * BEYOND:
            found.append(f"{name} was run from {least:,.0f} to {most:,.0f} rows; {v:,.0f} is an extrapolation")
    tokens = run.prepared.domains.lengths
    totals = ran @ tokens
    total, at_base = float(rows @ tokens), float(run.base @ tokens)
    if total > float(totals.max()) * (1 + MOVED) or total * (1 + MOVED) < float(totals.min()):
        found.append(
            f"the total is {total / at_base - 1:+.1%} tokens against base and no run had such a total; "
            "--keep-total scales the other domains"
        )
    for domain, v in zip(run.prepared.facts, rows, strict=True):
        most = run.config.constraints.max_repeat
        if v > most * domain.available:
            found.append(f"{domain.name} repeats {v / domain.available:.1f} times, more than max_repeat {most:g}")
    return found
