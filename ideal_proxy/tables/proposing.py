"""From a fit of published tables to a mixture file: the same optimiser, without data behind it.

Legend: D domains, J capabilities.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ideal_proxy.config import read_yaml
from ideal_proxy.domains import Domains
from ideal_proxy.errors import UsageError, UserError, shortened
from ideal_proxy.limits import Limits, read_limits
from ideal_proxy.mixture import CapabilityResult, DomainVolume, MixtureFile
from ideal_proxy.optimizer import (
    Constraints,
    Objective,
    Optimum,
    Problem,
    explored_region,
    optimize,
    pareto,
    round_volumes,
)
from ideal_proxy.provenance import provenance
from ideal_proxy.response import ResponseModel
from ideal_proxy.store import read_json
from ideal_proxy.tables.columns import without_prefix
from ideal_proxy.tables.reading import read_available
from ideal_proxy.tables.sheet import read_cells, to_numbers
from ideal_proxy.terminal import paragraph, table

Array = NDArray[np.float64]

EXPLORED = "explored"  # beside the model in fit.json: the volumes that the fitted runs cover
NO_DATA = "0" * 64


def with_explored(model: ResponseModel, volumes: Array) -> dict[str, Any]:
    """Write a model for `fit.json` with the region that its runs cover."""
    return model.to_json() | {
        EXPLORED: {
            "runs": len(volumes),
            "mean": volumes.mean(axis=0).tolist(),
            "low": volumes.min(axis=0).tolist(),
            "high": volumes.max(axis=0).tolist(),
        }
    }


def load_fit(path: Path) -> tuple[ResponseModel, dict[str, Any]]:
    """Read `fit.json`."""
    document = read_json(path)
    if not isinstance(document, dict) or "format" not in document:
        raise UserError(f"{path} holds no fit; `ideal-proxy fit` and `ideal-proxy search` write one")
    explored = document.pop(EXPLORED, {})
    try:
        model = ResponseModel.from_json(document)
        if explored:
            volumes = np.array([explored[key] for key in ("mean", "low", "high")], dtype=float)
            if volumes.shape != (3, len(model.domain_names_)) or not np.isfinite(volumes).all():
                raise ValueError(f"{EXPLORED} is not of its domains")
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise UserError(f"{path} holds no whole fit ({shortened(str(error), 160)}); fit again") from error
    return model, explored


def table_problem(
    model: ResponseModel, explored: Mapping[str, Any], *, base: Path | None, tokens_per_row: Path | None
) -> Problem:
    """State a fit of tables as a problem for the optimiser."""
    names = list(model.domain_names_)
    available = None if model.available is None else np.asarray(model.available, dtype=float)
    if base is not None:
        start = _read_base(base, names)
    elif available is not None:
        start = available
    elif explored:
        start = np.array(explored["mean"])
    else:
        raise UsageError("this fit tells no base mixture; give one with --base BASE.csv (domain, volume)")
    if model.unit == "share":
        start = start / start.sum()
    domains = Domains(
        names=tuple(names),
        base=start,
        available=available,
        tokens_per_row=None if tokens_per_row is None else read_available(tokens_per_row, names),
        unit=model.unit,  # type: ignore[arg-type]
    )
    return Problem(domains=domains, capabilities=tuple(model.target_names_), kinds=model.kinds_)


def _read_base(path: Path, names: Sequence[str]) -> Array:
    """Read base volumes, a line a domain (name, volume); domains that are not named are zero."""
    try:
        cells = read_cells(path)
        values = to_numbers(cells.iloc[:, 1:2], str(path)).iloc[:, 0]
    except (UserError, IndexError) as error:
        raise UsageError(f"cannot read base volumes from {path} ({error}); write columns domain, volume") from error
    volumes = {without_prefix(name, "train_"): float(v) for name, v in zip(cells.iloc[:, 0], values, strict=True)}
    unknown = [name for name in volumes if name not in names]
    if unknown or not sum(volumes.values()) > 0 or min(volumes.values()) < 0:
        what = f"unknown domain {unknown[0]!r}" if unknown else "volumes must be at least 0 and not all 0"
        raise UsageError(f"{path}: {what}; the domains are {', '.join(names)}")
    return np.array([volumes.get(name, 0.0) for name in names])


def by_short_names(given: list[str] | None, known: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Take NAME or NAME=VALUE by whole words that only one name has, `github` for `the_pile_github`; also say which."""
    # Columns of published tables carry what all of them share (RegMix: metric/the_pile_arxiv_val_loss).
    named, taken = [], {}
    for entry in given or ():
        name, equals, value = entry.partition("=")
        inside = [full for full in known if f"_{_words(name)}_" in f"_{_words(full)}_"]
        if name not in known and len(inside) == 1:
            taken[name] = inside[0]
        named.append(f"{taken.get(name, name)}{equals}{value}")
    return named, taken


def _words(name: str) -> str:
    return "_".join(re.findall(r"[^\W_]+", name.lower()))


def table_constraints(
    options: Mapping[str, Any],
    file: Path | None,
    problem: Problem,
    explored: Mapping[str, Any],
    search: Constraints | None = None,
) -> Constraints:
    """Merge constraints from a YAML file and from options, options first; of a search's fit its own stand behind."""
    merged: dict[str, Any] = {}
    if file is not None:
        try:
            merged = read_yaml(file, "file of constraints") or {}
        except OSError as error:
            raise UsageError(f"cannot read constraints from {file}: {error.strerror}") from error
        if not isinstance(merged, dict):
            raise UsageError(f"{file} must be a mapping, such as 'upper: {{coding: 40 %}}'")
    merged |= {key: value for key, value in options.items() if value not in (None, [], ())}
    if search is not None:
        values = read_limits(merged, problem.domains.names, problem.capabilities)
        kept = {key: getattr(search.limits, key) for key in Limits.__slots__ if key in values}
        given = {key: old | values.pop(key) if isinstance(old, dict) else values.pop(key) for key, old in kept.items()}
        if "groups" in given:
            given["groups"] = (*search.limits.groups, *given["groups"])
        if "budget" in given:
            given.setdefault("budget_unit", None)
        return replace(search, problem=problem, limits=replace(search.limits, **given), **values)
    if "trust_region" not in merged and explored:
        region = explored_region(np.array([explored["low"], explored["high"]]), problem.domains)
        merged["trust_region"] = {name: bounds for name, bounds in region.items() if any(bounds)}
    return Constraints.from_options(merged, problem)


def optimise_table(
    model: ResponseModel, objective: Objective, constraints: Constraints, *, seed: int = 0
) -> tuple[Optimum, Array]:
    """Optimise, and round to whole rows where volumes are rows."""
    optimum = optimize(model, objective, constraints, random_state=seed)
    if model.unit == "share":
        return optimum, optimum.volumes
    return optimum, round_volumes(optimum.volumes, constraints).astype(float)


def table_mixture(name: str, model: ResponseModel, optimum: Optimum, volumes: Array) -> MixtureFile:
    """Write the optimum as a mixture file; it names no data, so it is for reading and `what-if`, not for `apply`."""
    problem = optimum.problem
    share = model.unit == "share"
    weights = np.ones_like(volumes) if problem.domains.tokens_per_row is None else problem.domains.tokens_per_row
    shares = volumes * weights / float((volumes * weights).sum())
    value, lower, upper = (np.asarray(part).reshape(-1) for part in _interval(model, volumes))
    base = model.value_and_gradient(problem.domains.base)[0]
    available = np.zeros_like(volumes) if problem.domains.available is None else problem.domains.available
    return MixtureFile(
        name=name,
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        domains=[
            DomainVolume(
                name=domain,
                source="",
                fingerprint=NO_DATA,
                available=0 if share else int(max(available[i], volumes[i])),
                rows=0 if share else int(volumes[i]),
                share=float(shares[i]),
                repeat=0.0 if share or not available[i] else float(volumes[i] / available[i]),
                base_rows=0 if share else int(problem.domains.base[i]),
                change=float(volumes[i] / problem.domains.base[i] - 1) if problem.domains.base[i] else None,
            )
            for i, domain in enumerate(problem.domains.names)
        ],
        capabilities=[
            CapabilityResult(
                name=capability,
                base_loss=float(base[j]),
                predicted_loss=float(value[j]),
                predicted_lower=float(lower[j]),
                predicted_upper=float(upper[j]),
            )
            for j, capability in enumerate(problem.capabilities)
        ],
        constraints_active=list(optimum.active),
        predicted_gain=float(optimum.predicted_gain),
        provenance=provenance() | {"optimum": optimum.to_dict(), "data": "published tables; no rows behind it"},
        law=model.to_json(),
    )


def _interval(model: ResponseModel, volumes: Array) -> Any:
    """Predict one mixture with the 90 % interval of one new run."""
    named = hasattr(model, "feature_names_in_")
    return model.predict(
        pd.DataFrame(volumes[None], columns=model.domain_names_) if named else volumes[None], return_interval=0.9
    )


def fit_table(model: ResponseModel) -> str:
    """Say for each metric how well the fit does on runs that it did not see."""
    rows = []
    for name, diagnosis in zip(model.target_names_, model.diagnostics_, strict=True):
        weights = diagnosis.weights
        rows.append((
            name, f"{diagnosis.rank_correlation:.3f}", f"{diagnosis.error:.4g}", f"{diagnosis.noise:.4g}",
            f"{weights[0]:.0%}", "check" if diagnosis.warning else "",
        ))  # fmt: skip
    return table(
        "Cross-validated inside the fitted runs",
        ("metric", "rank corr.", "error", "noise", "law alone", ""), rows,
    )  # fmt: skip


def optimum_table(optimum: Optimum, volumes: Array) -> str:
    """Lay out an optimum of tables."""
    problem = optimum.problem
    share = problem.domains.unit == "share"

    def show(x: float) -> str:
        return f"{x:.1%}" if share else f"{x:,.0f}"

    domains = [(name, show(problem.domains.base[i]), show(volumes[i])) for i, name in enumerate(problem.domains.names)]
    capabilities = [
        (name, f"{optimum.base_losses[j]:.4g}", f"{optimum.losses[j]:.4g}", f"{optimum.relative[j]:.4f}")
        for j, name in enumerate(problem.capabilities)
    ]
    relative = "difference / scale" if "loss" not in problem.kinds else "against base"
    active = ", ".join(optimum.active) or "none"
    return "\n".join([
        table("Volumes", ("domain", "base", "optimum"), domains),
        "",
        table("Predicted (optimistic: it was selected)", ("capability", "base", "optimum", relative), capabilities),
        "",
        paragraph(optimum.settled),
        paragraph(f"active: {active}"),
    ])  # fmt: skip


def front_table(model: ResponseModel, constraints: Constraints, first: Sequence[str], second: Sequence[str]) -> str:
    """Trace the Pareto front between two groups of capabilities."""
    front = pareto(model, constraints, first, second)
    names = constraints.domains.names
    share = model.unit == "share"
    rows = []
    for value, optimum in zip(front.values, front.optima, strict=True):
        largest = np.argsort(-optimum.volumes)[:3]
        shown = ", ".join(f"{names[i]} {optimum.volumes[i]:{'.0%' if share else ',.0f'}}" for i in largest)
        rows.append((f"{value[0]:.4f}", f"{value[1]:.4f}", shown))
    title = f"Pareto front, loss against base: A = {' + '.join(first)}, B = {' + '.join(second)}"
    return table(title, ("A", "B", "largest volumes"), rows, left=0)
