"""Volume transfer: from the mixture that the proxies found to the volumes of the full-size run.

`share` keeps the shares of rows, `repeat` keeps how often each domain is gone through, `law` optimises again at the
full budget, where repeats saturate and early gains are used up. Legend: D domains, J capabilities, S posterior draws.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ideal_proxy.amounts import Amount
from ideal_proxy.data import read_rows, row_keys, source_fingerprint
from ideal_proxy.domains import Domains
from ideal_proxy.errors import UsageError, UserError
from ideal_proxy.limits import Budget, Limits
from ideal_proxy.mixture import DomainVolume, MixtureFile, apportion, kept_base, reading_part, resolve, with_shares
from ideal_proxy.optimizer import Constraints, Objective, Problem, ResponseSurface, optimize, round_volumes
from ideal_proxy.response import Prediction, compare
from ideal_proxy.scaleup.limits import compared_unit, file_constraints, file_limits, file_objective, tokens_per_row
from ideal_proxy.terminal import Reporter, table

Mode = Literal["share", "repeat", "law"]
Array = NDArray[np.float64]
FAR = 4.0  # times the base total: beyond it the law is told to be extrapolating
PASSES, NEAR = 3, 2e-3  # of the law's optimum, whose tokens say how large base is; relative change that ends them


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """Volumes at full size, with what the law expects of them."""

    mode: Mode  # how they were found
    rows: NDArray[np.int64]  # (D,) full-size rows
    base_rows: NDArray[np.int64]  # (D,) the base mixture scaled to the same total in the unit compared by
    predicted: Prediction | None = None  # against the scaled base, intervals for one pair of runs; None without a law
    notes: tuple[str, ...] = ()  # what a user must know


def transfer_volumes(
    mode: str,
    rows: Array,
    domains: Domains,
    capabilities: Sequence[str],
    *,
    total: int | None,
    full_available: Array | None = None,
    law: ResponseSurface | None = None,
    objective: Objective | None = None,
    limits: Callable[[Problem, int], Constraints] | None = None,
    repeat_cap: float = 4.0,
    random_state: int = 0,
    unit: Literal["rows", "tokens"] = "rows",
) -> Transfer:
    """Carry volumes to another total or to other available rows, beside a base that has as much of the unit."""
    if mode not in get_args(Mode):
        raise UsageError(f"the mode of transfer is {mode!r}; it must be share, repeat or law")
    available, base_total = domains.supply, float(domains.base.sum())
    full = available if full_available is None else np.asarray(full_available, dtype=float)
    notes: list[str] = []
    if mode == "repeat":
        repeats = np.divide(rows, available, out=np.zeros_like(rows), where=available > 0)
        wanted = repeats * full
        size = round(float(wanted.sum())) if total is None else int(total)
        if total is not None and abs(size - wanted.sum()) > 0.5:
            notes.append(
                f"the same repeats would be {wanted.sum():,.0f} rows; "
                f"all are scaled by {size / wanted.sum():.3f} to the total"
            )
        found = apportion(wanted, size)
    elif mode == "share":
        size = int(rows.sum()) if total is None else int(total)
        found = apportion(rows, size)
    else:
        if law is None:
            raise UsageError("mode law needs the law in the mixture file, and there is none; use share or repeat")
        size = int(rows.sum()) if total is None else int(total)
        room = float((repeat_cap * full).sum())
        if size > room:
            raise UsageError(
                f"{size:,} rows are more than {room:,.0f}, all domains {repeat_cap:g} times over; lower the total, "
                "raise max_repeat or add rows"
            )
        starts = [rows * size / rows.sum()] if rows.sum() > 0 else []
        beside = _beside(domains, starts[0] if starts else domains.base * size / base_total, unit)
        for _ in range(PASSES):
            there = replace(domains, base=beside, available=full)
            problem = Problem(domains=there, capabilities=tuple(capabilities))
            if limits is not None:
                constraints = limits(problem, size)
            else:
                constraints = Constraints(
                    problem=problem, limits=Limits(budget=_exactly(size), budget_unit="rows", repeat_cap=repeat_cap)
                )
            best = optimize(law, objective or Objective(), constraints, random_state=random_state, starts=starts)
            found = round_volumes(best.volumes, constraints)
            beside = _beside(domains, found, unit)
            if np.allclose(beside, there.base, rtol=NEAR):
                break
        notes.append(str(best.message))
    base_rows = apportion(domains.base, round(float(_beside(domains, found, unit).sum())))
    over = [d for d, v, u in zip(domains.names, found, full, strict=True) if v > repeat_cap * u + 1]
    if over:
        hint = "there is no law here to judge that" if law is None else "the law was not asked, consider mode law"
        notes.append(f"{', '.join(over)}: more than {repeat_cap:g} times over; {hint}")
    grown = size / base_total
    if grown > FAR or grown < 1 / FAR:
        notes.append(
            f"the total is {grown:.2g} times the base that the proxies stood for: predictions are extrapolated"
        )
    predicted = None if law is None else compare(law, found.astype(float), base_rows.astype(float), pairs=1)
    return Transfer(mode=mode, rows=found, base_rows=base_rows, predicted=predicted, notes=tuple(notes))  # type: ignore[arg-type]


def _beside(domains: Domains, rows: Array | NDArray[np.int64], unit: str) -> Array:
    """Scale the base to the total that these rows have in a unit."""
    each = domains.lengths if unit == "tokens" else np.ones(len(domains))
    return np.asarray(domains.base * (each @ rows) / (each @ domains.base))


def _exactly(rows: int) -> Budget:
    return Budget("exactly", Amount(float(rows), "rows"))


def transfer_mixture(
    mixture: MixtureFile,
    mode: str,
    total: int | None,
    reporter: Reporter,
    *,
    full_available: Array | None = None,
    law: ResponseSurface | None = None,
) -> MixtureFile:
    """Carry a mixture file to another total or to other available rows, predictions included."""
    domains = replace(mixture.over, tokens_per_row=tokens_per_row(mixture))
    at_full_size = law is not None  # searches at several sizes say what this one shows
    full = domains.supply if full_available is None else np.asarray(full_available, dtype=float)
    if law is None and mixture.law is not None and (law := usable_law(mixture, full)) is None:
        raise UsageError("the law in the mixture file is not over its domains in rows; search again, or use share")
    searched = file_limits(mixture)
    cap = searched.repeat_cap
    with reading_part("law"):
        moved = transfer_volumes(
            mode, np.array([d.rows for d in mixture.domains], dtype=float), domains,
            [c.name for c in mixture.capabilities], total=total, full_available=full, law=law,
            objective=file_objective(mixture),
            limits=lambda problem, size: file_constraints(mixture, problem, _exactly(size), "rows"),
            repeat_cap=float(cap) if cap else 4.0, random_state=mixture.seed,
            unit=compared_unit(searched, domains),
        )  # fmt: skip
    for note in moved.notes:
        reporter.note(note)
    if scores := [c.name for c in mixture.capabilities if c.metric is not None]:
        reporter.note(f"{', '.join(scores)}: judged by reference loss here, not by the metric")
    if kept := kept_base(mixture):
        reporter.note(f"{kept}; the volumes made of them rest on the law alone")
    history = {
        "mode": moved.mode, "from_rows": {d.name: d.rows for d in mixture.domains}, "total": int(moved.rows.sum()),
        "notes": list(moved.notes), "at_full_size": at_full_size,
    }  # fmt: skip
    return with_volumes(
        mixture, moved.rows, moved.base_rows, moved.predicted, available=full, provenance={"transfer": history}
    )


def carry(
    mixture: MixtureFile,
    mode: str,
    total: int | None,
    reporter: Reporter,
    *,
    data: dict[str, str] | None = None,
    law: Callable[[Array], ResponseSurface] | None = None,
    folder: Path | None = None,
) -> MixtureFile:
    """Carry a mixture file to full size, where domains may have other rows than in the search."""
    found = {}
    for name, path in (data or {}).items():
        rows = list(read_rows(resolve(path, folder), format="auto", max_bad=-1))
        if not rows:
            raise UserError(f"--data {name}={path}: there are no rows; give a file, a glob or a folder with rows")
        fingerprint = source_fingerprint(row_keys(rows))
        found[name] = {"source": path, "format": "auto", "fingerprint": fingerprint, "left_out": []}, len(rows)
    full = np.array([found[d.name][1] if d.name in found else d.available for d in mixture.domains], dtype=float)
    moved = transfer_mixture(
        mixture, mode, total, reporter, full_available=full, law=None if law is None else law(full)
    )
    domains = [d.model_copy(update=found[d.name][0]) if d.name in found else d for d in moved.domains]
    return moved.model_copy(update={"domains": domains})


def usable_law(mixture: MixtureFile, available: Array | None = None) -> Any:
    """Read the response law from a mixture file where there is one that full-size runs can be compared with."""
    from ideal_proxy.response import ResponseModel

    if mixture.law is None:
        return None
    with reading_part("law"):
        law = ResponseModel.from_json(mixture.law)
        if not _fits(law, mixture):
            return None
    if available is not None and law.volumes_.available is not None:
        law.volumes_ = replace(law.volumes_, available=np.asarray(available, dtype=float))
    return law


def _fits(law: Any, mixture: MixtureFile) -> bool:
    names = [d.name for d in mixture.domains], [c.name for c in mixture.capabilities]
    return (list(law.domain_names_), list(law.target_names_)) == names and law.unit == "rows" and law.kind == "loss"


def with_volumes(
    mixture: MixtureFile,
    rows: NDArray[np.int64],
    base_rows: NDArray[np.int64],
    predicted: Prediction | None,
    *,
    available: Array | None = None,
    active: Sequence[str] = (),
    provenance: dict[str, Any],
) -> MixtureFile:
    """Write a mixture file with other volumes; what was verified at the old ones is left out."""
    full = [d.available for d in mixture.domains] if available is None else [int(u) for u in available]
    per_row = [d.tokens / d.rows if d.rows else None for d in mixture.domains]
    known = all(rate is not None or not v for rate, v in zip(per_row, rows, strict=True))
    domains: list[DomainVolume] = []
    for d, v, base, rate, has in zip(mixture.domains, rows, base_rows, per_row, full, strict=True):
        told = {
            "available": has, "rows": int(v), "base_rows": int(base),
            "tokens": round(float(v) * (rate or 0.0)) if known else 0,
            "supervised_tokens": round(d.supervised_tokens / d.rows * int(v)) if d.rows else 0,
        }  # fmt: skip
        domains.append(DomainVolume.model_validate(d.model_dump() | told))
    capabilities = []
    for j, capability in enumerate(mixture.capabilities):
        verified = [key for key in type(capability).model_fields if key.startswith("verified")]
        numbers: dict[str, Any] = dict.fromkeys((*_PREDICTED, *verified))
        if capability.metric is not None:
            numbers["metric"] = capability.metric.model_copy(update=dict.fromkeys(_SCORED))
        if predicted is not None:
            level, ratio = float(predicted.other[j]), predicted.ratios[j]
            values = (level, ratio.value * level, ratio.lower * level, ratio.upper * level)
            numbers |= dict(zip(_PREDICTED, values, strict=True))
        capabilities.append(capability.model_copy(update=numbers))
    return mixture.model_copy(
        update={
            "domains": with_shares(domains), "capabilities": capabilities, "constraints_active": list(active),
            "verdict": None, "verdict_text": None, "gain": None, "gain_lower": None, "gain_upper": None,
            "predicted_gain": None,
            "provenance": {**mixture.provenance, **provenance},
        }
    )  # fmt: skip


_SCORED = ("base_score", "score", "predicted_change", "verified_change", "verified_lower", "verified_upper")
_PREDICTED = ("base_loss", "predicted_loss", "predicted_lower", "predicted_upper")


def transfer_tables(before: MixtureFile, after: MixtureFile) -> str:
    """Lay out a transfer in 80 columns."""
    rows = [
        (old.name, f"{old.rows:,}", f"{new.rows:,}", f"{new.share:.1%}", f"{new.available:,}", f"{new.repeat:.2f}x")
        for old, new in zip(before.domains, after.domains, strict=True)
    ]
    told = after.provenance["transfer"]
    parts = [
        table(
            f"Volumes at {after.total_rows:,} rows (transfer by {told['mode']})",
            ("domain", "search", "full size", "share", "available", "repeat"),
            rows,
        )
    ]
    known = [c for c in after.capabilities if c.predicted_loss is not None and c.base_loss]
    if known:
        cells = []
        for c in known:
            level = c.base_loss or 1.0
            change, low, high = (
                (x or 0.0) / level - 1 for x in (c.predicted_loss, c.predicted_lower, c.predicted_upper)
            )
            cells.append((c.name, f"{change:+.1%}", f"[{low:+.1%}, {high:+.1%}]"))
        parts.append(table("Predicted loss against base", ("capability", "change", "90 % interval"), cells))
    return "\n\n".join(parts)
