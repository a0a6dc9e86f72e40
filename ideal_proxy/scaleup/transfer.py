"""Volume transfer: from the mixture that the proxies found to the volumes of the full-size run.

`share` keeps the shares of rows, `repeat` keeps how often each domain is gone through, `law` optimises again at the
full budget, where repeats saturate and early gains are used up. Legend: D domains, J capabilities, S posterior draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from ideal_proxy.constraints import Constraints, Problem
from ideal_proxy.errors import UsageError
from ideal_proxy.mixture import apportion
from ideal_proxy.mixture_file import DomainVolume, MixtureFile
from ideal_proxy.objective import Objective, ResponseSurface
from ideal_proxy.optimize import optimize
from ideal_proxy.rounding import round_volumes
from ideal_proxy.terminal import Reporter

Mode = Literal["share", "repeat", "law"]
Array = NDArray[np.float64]
LEVEL = 0.9
FAR = 4.0  # times the base total: beyond it the law is told to be extrapolating


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """Volumes at full size, with what the law expects of them.

    Attributes:
        mode: how they were found.
        rows: (D,) full-size rows.
        base_rows: (D,) the base mixture scaled to the same total.
        ratio: (J,) predicted L_j(v)/L_j(base) there; None without a law.
        lower: (J,) of its 90 % interval for one run.
        upper: (J,) of the same.
        base_losses: (J,) predicted losses of the scaled base.
        notes: what a user must know.
    """

    mode: Mode
    rows: NDArray[np.int64]
    base_rows: NDArray[np.int64]
    ratio: Array | None = None
    lower: Array | None = None
    upper: Array | None = None
    base_losses: Array | None = None
    notes: tuple[str, ...] = ()


def transfer_volumes(
    mode: str,
    *,
    domains: Sequence[str],
    capabilities: Sequence[str],
    rows: Array,
    base: Array,
    available: Array,
    total: int | None,
    full_available: Array | None = None,
    law: ResponseSurface | None = None,
    objective: Objective | None = None,
    repeat_cap: float = 4.0,
    lower: Array | None = None,
    upper: Array | None = None,
    random_state: int = 0,
) -> Transfer:
    """Carry volumes to another total or to other available rows.

    Args:
        mode: share, repeat or law.
        domains: D names.
        capabilities: J names.
        rows: (D,) volumes that the search found.
        base: (D,) base volumes.
        available: (D,) rows that the domains had in the search.
        total: rows of the full-size run; None keeps the sum that the mode gives (repeat), or the found total.
        full_available: (D,) rows that the domains have at full size; default as in the search.
        law: the response there; needed by `law`, used by the others to predict.
        objective: what `law` minimises; default the mean of the ratios.
        repeat_cap: `law` uses no domain more than so many times over.
        lower: (D,) fewest rows, for `law`.
        upper: (D,) most rows, for `law`.
        random_state: of the optimiser's starts.

    Returns:
        Transfer: whole rows that sum to the total exactly.

    Raises:
        UsageError: an unknown mode, no law where one is needed, or a total that the caps make impossible.
    """
    if mode not in get_args(Mode):
        raise UsageError(f"--transfer is {mode!r}; it must be share, repeat or law")
    rows, base, available = (np.asarray(part, dtype=float) for part in (rows, base, available))
    full = available if full_available is None else np.asarray(full_available, dtype=float)
    notes: list[str] = []
    scaled_base = base if base.sum() > 0 else available
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
            raise UsageError("--transfer law needs the law in the mixture file, and there is none; use share or repeat")
        size = int(rows.sum()) if total is None else int(total)
        room = float(np.minimum(repeat_cap * full, np.inf if upper is None else upper).sum())
        if size > room:
            raise UsageError(
                f"{size:,} rows are more than {room:,.0f}, all domains {repeat_cap:g} times over; lower the total, "
                "raise max_repeat or add rows"
            )
        problem = Problem(
            domains=tuple(domains), capabilities=tuple(capabilities), available=full,
            base=scaled_base * size / scaled_base.sum(),
        )  # fmt: skip
        options: dict[str, Any] = {"budget": f"exactly {size} rows", "budget_unit": "rows", "repeat_cap": repeat_cap}
        for name, bound in (("lower", lower), ("upper", upper)):
            if bound is not None:
                options[name] = {d: f"{int(b)} rows" for d, b in zip(domains, bound, strict=True)}
        constraints = Constraints.from_options(options, problem)
        starts = [rows * size / rows.sum()] if rows.sum() > 0 else []
        best = optimize(law, objective or Objective(), constraints, random_state=random_state, starts=starts)
        found = round_volumes(best.volumes, constraints)
        notes.append(str(best.message))
    base_rows = apportion(scaled_base, size)
    over = [d for d, v, u in zip(domains, found, full, strict=True) if v > repeat_cap * u + 1]
    if over:
        notes.append(
            f"{', '.join(over)}: more than {repeat_cap:g} times over; the law was not asked, consider --transfer law"
        )
    grown = size / scaled_base.sum()
    if grown > FAR or grown < 1 / FAR:
        notes.append(
            f"the total is {grown:.2g} times the base that the proxies stood for: predictions are extrapolated"
        )
    if law is None:
        return Transfer(mode=mode, rows=found, base_rows=base_rows, notes=tuple(notes))  # type: ignore[arg-type]
    ratio, half, base_losses = predict_ratio(law, found.astype(float), base_rows.astype(float))
    return Transfer(
        mode=mode, rows=found, base_rows=base_rows, ratio=ratio, lower=ratio - half, upper=ratio + half,  # type: ignore[arg-type]
        base_losses=base_losses, notes=tuple(notes),
    )  # fmt: skip


def predict_ratio(law: ResponseSurface, v: Array, base: Array) -> tuple[Array, Array, Array]:
    """Predict losses relative to base, with the half-width of the 90 % interval for one pair of runs.

    Args:
        law: the response.
        v: (D,) rows.
        base: (D,) rows.

    Returns:
        tuple: ratios (J,), half-widths (J,), and the losses at base (J,) in nats.
    """
    here, there = law.value_and_gradient(v)[0], law.value_and_gradient(base)[0]
    draws_SJ = law.draws_value_and_gradient(v)[0] / law.draws_value_and_gradient(base)[0]
    run_J = np.asarray(law.residual_scale_, dtype=float) / there * np.sqrt(2.0)
    half = float(norm.ppf(0.5 + LEVEL / 2)) * np.hypot(draws_SJ.std(axis=0), run_J)
    return here / there, half, there


def transfer_mixture(mixture: MixtureFile, mode: str, total: int | None, reporter: Reporter) -> MixtureFile:
    """Carry a mixture file to another total, predictions included.

    Args:
        mixture: the file; its law is used where it has one.
        mode: share, repeat or law.
        total: rows of the full-size run.
        reporter: for notes.

    Returns:
        MixtureFile: with new volumes and predictions; what was verified at the old volumes is left out.

    Raises:
        UsageError: as for `transfer_volumes`, or the law is not over the file's domains.
    """
    law: Any = None
    if mixture.law is not None:
        from ideal_proxy.fit import ResponseModel

        law = ResponseModel.from_json(mixture.law)
        if list(law.domain_names_) != [d.name for d in mixture.domains] or law.unit != "rows":
            raise UsageError("the law in the mixture file is not over its domains in rows; search again, or use share")
    column = {key: np.array([getattr(d, key) for d in mixture.domains], dtype=float) for key in _COLUMNS}
    moved = transfer_volumes(
        mode,
        domains=[d.name for d in mixture.domains],
        capabilities=[c.name for c in mixture.capabilities],
        rows=column["rows"],
        base=column["base_rows"],
        available=column["available"],
        total=total,
        law=law,
        objective=_objective(mixture),
        random_state=mixture.seed,
    )
    for note in moved.notes:
        reporter.note(note)
    if mixture.verdict not in (None, "improves"):
        reporter.note(f"the search's verdict was {mixture.verdict!r}: these volumes rest on the law alone")
    return _with_volumes(mixture, moved)


_COLUMNS = ("rows", "base_rows", "available")


def _with_volumes(mixture: MixtureFile, moved: Transfer) -> MixtureFile:
    """Put the volumes and what is predicted of them into the file."""
    per_row = [d.tokens / d.rows if d.rows else None for d in mixture.domains]
    known = all(rate is not None or not v for rate, v in zip(per_row, moved.rows, strict=True))
    amounts = [float(v) * (rate or 0.0) if known else float(v) for v, rate in zip(moved.rows, per_row, strict=True)]
    domains = []
    for d, v, base, amount in zip(mixture.domains, moved.rows, moved.base_rows, amounts, strict=True):
        kept = {key: getattr(d, key) for key in ("name", "source", "format", "fingerprint", "available")}
        supervised = round(d.supervised_tokens / d.rows * int(v)) if d.rows else 0
        domains.append(
            DomainVolume(
                **kept,
                rows=int(v), base_rows=int(base), tokens=round(amount) if known else 0, supervised_tokens=supervised,
                share=amount / max(sum(amounts), 1e-12), repeat=float(v / d.available) if d.available else 0.0,
                change=float(v / base - 1) if base else None,
            )
        )  # fmt: skip
    capabilities = []
    for j, capability in enumerate(mixture.capabilities):
        told: dict[str, Any] = {key: getattr(capability, key) for key in ("name", "source", "format", "fingerprint")}
        if moved.ratio is not None and moved.base_losses is not None:
            assert moved.lower is not None
            assert moved.upper is not None
            base_loss = float(moved.base_losses[j])
            told |= {
                "base_loss": base_loss,
                "predicted_loss": float(moved.ratio[j]) * base_loss,
                "predicted_lower": float(moved.lower[j]) * base_loss,
                "predicted_upper": float(moved.upper[j]) * base_loss,
            }
        capabilities.append(type(capability)(**told))
    history = {
        "mode": moved.mode, "from_rows": {d.name: d.rows for d in mixture.domains}, "total": int(moved.rows.sum()),
        "notes": list(moved.notes),
    }  # fmt: skip
    return mixture.model_copy(
        update={
            "domains": domains, "capabilities": capabilities, "constraints_active": [], "verdict": None,
            "verdict_text": None, "gain": None, "gain_lower": None, "gain_upper": None,
            "provenance": {**mixture.provenance, "transfer": history},
        }
    )  # fmt: skip


def _objective(mixture: MixtureFile) -> Objective:
    """Read what the search minimised from the file; default the mean."""
    found = mixture.provenance.get("objective")
    if not isinstance(found, dict):
        return Objective()
    weights = found.get("weights") if found.get("kind") == "weighted" else None
    return Objective(kind=found.get("kind", "mean"), weights=weights)
