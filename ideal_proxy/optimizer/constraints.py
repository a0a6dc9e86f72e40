"""What a mixture must satisfy: budget, bounds, repeats, groups, trust region, protected capabilities.

Legend: D domains, J capabilities, M linear constraints. Volumes are full-size rows (or shares).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

import numpy as np

from ideal_proxy.amounts import Amount, Comparison, Unit, check_name
from ideal_proxy.domains import Domains, FloatArray, check_names
from ideal_proxy.errors import UsageError
from ideal_proxy.limits import Limits, TrustRegion, read_limits
from ideal_proxy.response import Kind

ScalarFunction = Callable[[FloatArray], tuple[float, FloatArray]]
VectorFunction = Callable[[FloatArray], tuple[FloatArray, FloatArray]]
ETA_FRACTION = 0.01
"""η as a fraction of the mean base volume: how much a volume of zero counts in logarithms."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Problem:
    """The domains and capabilities that a mixture is chosen for.

    Attributes:
        domains: names, base mixture, available rows.
        capabilities: J names.
        kinds: of each capability: `loss`, `score` or `cost`; default all losses.
    """

    domains: Domains
    capabilities: tuple[str, ...]
    kinds: tuple[Kind, ...] = ()

    def __post_init__(self) -> None:
        check_names(self.capabilities, "capability")
        if not self.kinds:
            loss: Kind = "loss"
            object.__setattr__(self, "kinds", (loss,) * len(self.capabilities))
        if len(self.kinds) != len(self.capabilities):
            raise UsageError(f"{len(self.kinds)} kinds for {len(self.capabilities)} capabilities; give one each.")


class Limit(StrEnum):
    """What kind of limit a constraint is; decisions read this, never the label."""

    BUDGET = "budget"
    BOUND = "bound"
    PIN = "pin"
    REPEAT = "repeat"
    TRUST_REGION = "trust region"
    GROUP = "group"
    PROTECTION = "protection"
    DIVERGENCE = "divergence"
    UNUSED = "unused"
    OTHER = "other"


@dataclass(frozen=True, slots=True, eq=False)
class Atom:
    """One linear constraint, `lower <= weights · v <= upper`, under the name that the user knows."""

    kind: Limit  # of limit
    label: str  # what the user sees
    weights: FloatArray  # (D,)
    lower: float  # -inf where there is none
    upper: float  # inf where there is none
    # the domain, where the constraint is a bound on one volume and `weights` is its unit vector
    index: int | None = None
    unit: str = "rows"  # for the message that says by how much it is missed


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Constraints:
    """Everything a mixture must satisfy.

    Attributes:
        problem: domains, capabilities, base mixture.
        limits: what the user set.
        confidence: one-sided level of the upper bound for `must_not_drop`; 0.5 for the point prediction.
        trust_region: largest |log((v + η)/(v⁰ + η))|, one for all or by domain; a pair bounds the decrease and
            the increase apart; None for none.
        trust_centre: (D,) what the trust region lies around; default base.
        kl_cap: largest Kullback–Leibler divergence from base in nats; None for none.

    Raises:
        UsageError: an unknown name, a unit that does not fit, or a number out of range.
    """

    problem: Problem
    limits: Limits = field(default_factory=Limits)
    confidence: float = 0.9
    trust_region: TrustRegion | None = None
    trust_centre: FloatArray | None = None
    kl_cap: float | None = None

    def __post_init__(self) -> None:
        limits, domains, unit = self.limits, self.domains, self.budget_unit
        if domains.unit == "share" and (unit != "share" or limits.budget.kind != "keep"):
            raise UsageError("Shares always sum to one; leave the budget out for a fit of shares.")
        if domains.unit == "rows" and unit == "share":
            raise UsageError('The budget unit must be "tokens" or "rows" here, not "share".')
        if limits.budget.amount and limits.budget.amount.unit not in {None, "share", unit}:
            raise UsageError(f"The budget is in {limits.budget.amount.unit} but its unit is {unit}; use one.")
        for name in {*limits.lower, *limits.upper, *limits.pinned, *self._trust_map()}:
            check_name(name, domains.names, what="domain", where="the constraints")
        for where in ("must_not_drop", "protect"):
            for name in getattr(limits, where):
                check_name(name, self.problem.capabilities, what="capability", where=where)
        if not 0.5 <= self.confidence < 1:
            raise UsageError(f"confidence is {self.confidence}; it must be at least 0.5 and below 1.")
        for name, value in (("repeat_cap", limits.repeat_cap), ("kl_cap", self.kl_cap)):
            if value is not None and not value >= 0:
                raise UsageError(f"{name} is {value}; it must not be negative.")
        if any(not m >= 0 for pair in self._trust_map().values() for m in pair):
            raise UsageError("trust_region must not be negative.")
        self.atoms()  # what cannot be written as a linear constraint is said now, not after the fit

    @classmethod
    def from_options(cls, options: Mapping[str, Any], problem: Problem) -> Constraints:
        """Read constraints from command-line options or a YAML mapping."""
        values = read_limits(options, problem.domains.names, problem.capabilities)
        limits = Limits(**{key: values.pop(key) for key in Limits.__slots__ if key in values})
        return cls(problem=problem, limits=limits, **values)

    @property
    def domains(self) -> Domains:
        """The problem's domains."""
        return self.problem.domains

    @property
    def budget_unit(self) -> Unit:
        """What the budget counts: as the limits say, else by its amount, else tokens where they are known."""
        limits, domains = self.limits, self.domains
        if limits.budget_unit is not None:
            return limits.budget_unit
        if domains.unit == "share":
            return "share"
        unit = limits.budget.amount.unit if limits.budget.amount else None
        if unit is None or unit == "share":
            return "rows" if domains.tokens_per_row is None else "tokens"
        return unit

    @property
    def eta(self) -> float:
        """η in rows (or share): 1 % of the mean base volume."""
        return ETA_FRACTION * float(self.domains.base.mean())

    def unit_weights(self, unit: str | None = None) -> FloatArray:
        """How much one row of each domain counts in a unit."""
        unit = unit or self.budget_unit
        if unit != "tokens":
            return np.ones(len(self.domains))
        return self.domains.lengths

    @property
    def budget_total(self) -> float | None:
        """The total that the budget allows, in its unit; None where it is free."""
        base_total = float(self.unit_weights() @ self.domains.base)
        if self.limits.budget.kind == "free":
            return None
        if self.limits.budget.amount is None:
            return base_total
        share = self.limits.budget.amount.unit == "share"
        return self.limits.budget.amount.value * (base_total if share else 1.0)

    @property
    def total_is_fixed(self) -> bool:
        """Whether every allowed mixture has the same total."""
        return self.limits.budget.kind in {"keep", "exactly"}

    def atoms(self) -> list[Atom]:
        """List the linear constraints one by one."""
        groups = (self._comparison_atom(Limit.GROUP, group, f"group: {group.text}") for group in self.limits.groups)
        return [*self._budget_atoms(), *self._bound_atoms(), *self._trust_atoms(), *groups]

    def _trust_map(self) -> Mapping[str, tuple[float, float]]:
        """Largest decrease and increase of each bounded domain, as logarithms."""
        if self.trust_region is None:
            return {}
        given = self.trust_region
        by_domain = given if isinstance(given, Mapping) else dict.fromkeys(self.domains.names, given)
        return {name: m if isinstance(m, tuple) else (float(m), float(m)) for name, m in by_domain.items()}

    def _budget_atoms(self) -> list[Atom]:
        total, unit = self.budget_total, str(self.budget_unit)
        if total is None:
            return []
        if unit == "share":
            label = "shares sum to one"
        elif self.limits.budget.kind == "keep":
            label = f"budget: keep the base total of {show(total, unit)}"
        else:
            label = f"budget: {self.limits.budget.kind} {show(total, unit)}"
        lower = total if self.total_is_fixed else -np.inf
        return [Atom(Limit.BUDGET, label, self.unit_weights(), lower, total, unit=unit)]

    def _bound_atoms(self) -> list[Atom]:
        p, atoms = self.domains, []
        for name, amount in self.limits.lower.items():
            atoms.append(self._amount_atom(name, amount, ">="))
        for name, amount in self.limits.upper.items():
            atoms.append(self._amount_atom(name, amount, "<="))
        for name, pin in self.limits.pinned.items():
            if pin is None:
                i = p.names.index(name)
                base = float(p.base[i])
                label = f"pinned at base: {name} = {show(base, p.unit)}"
                atoms.append(Atom(Limit.PIN, label, _unit_vector(i, len(p)), base, base, i, p.unit))
            else:
                atoms.append(self._amount_atom(name, pin, "=="))
        if self.limits.repeat_cap is not None and p.available is not None:
            for i, name in enumerate(p.names):
                label = f"repeat cap: {name} <= {self.limits.repeat_cap:g} × {show(p.available[i], 'available rows')}"
                cap = self.limits.repeat_cap * float(p.available[i])
                atoms.append(Atom(Limit.REPEAT, label, _unit_vector(i, len(p)), -np.inf, cap, i))
        return atoms

    def _amount_atom(self, name: str, amount: Amount, sense: Literal["<=", ">=", "=="]) -> Atom:
        unit, i = amount.unit, self.domains.names.index(name)
        if self.domains.unit == "share":
            if unit in {"rows", "tokens"}:
                raise UsageError(f"The fit is in shares; give the bound on {name} as a share, not in {unit}.")
            unit = None
        kind = Limit.PIN if sense == "==" else Limit.BOUND
        words = {"<=": "upper bound: {} <= {}", ">=": "lower bound: {} >= {}", "==": "pinned: {} = {}"}
        shown = show(amount.value, unit or self.domains.unit, amount.of)
        if unit == "share":
            text = words[sense].format(name, shown)
            return self._comparison_atom(
                kind, Comparison(text, sense, {name: 1.0}, amount.value, unit, amount.of), text
            )
        per_row = float(self.unit_weights(unit or "rows")[i])
        value = amount.value / per_row
        return Atom(
            kind,
            words[sense].format(name, shown),
            _unit_vector(i, len(self.domains)),
            -np.inf if sense == "<=" else value,
            np.inf if sense == ">=" else value,
            i,
            self.domains.unit,
        )

    def _trust_atoms(self) -> list[Atom]:
        p, eta, atoms = self.domains, self.eta, []
        centre, where = (p.base, "base") if self.trust_centre is None else (self.trust_centre, "the start")
        for name, (down, up) in self._trust_map().items():
            i = p.names.index(name)
            unit_vector = _unit_vector(i, len(p))
            high = (centre[i] + eta) * np.exp(up) - eta
            low = max(0.0, (centre[i] + eta) * np.exp(-down) - eta)
            if low > 0:
                label = f"trust region: {name} >= {show(low, p.unit)} ({np.exp(-down):.2g} times {where})"
                atoms.append(Atom(Limit.TRUST_REGION, label, unit_vector, float(low), np.inf, i, p.unit))
            label = f"trust region: {name} <= {show(high, p.unit)} ({np.exp(up):.2g} times {where})"
            atoms.append(Atom(Limit.TRUST_REGION, label, unit_vector, -np.inf, float(high), i, p.unit))
        return atoms

    def _comparison_atom(self, kind: Limit, group: Comparison, label: str) -> Atom:
        unit: str | None = group.unit
        if self.domains.unit == "share":
            if unit in {"rows", "tokens"} or group.of:
                raise UsageError(f'The fit is in shares; write "{group.text}" in shares, not in {unit}.')
            unit = None
        elif unit is None and group.constant:
            raise UsageError(f'"{group.text}" needs a unit: "60 %", "5000 rows" or "2M tokens" after the number.')
        counted = group.of if unit == "share" else unit
        per_row = self.unit_weights(counted)
        weights = np.zeros(len(self.domains))
        for name, factor in group.weights.items():
            i = self.domains.names.index(name)
            weights[i] = factor * per_row[i]
        constant = group.constant
        if unit == "share":
            weights, constant = weights - constant * per_row, 0.0
        lower = -np.inf if group.sense == "<=" else constant
        upper = np.inf if group.sense == ">=" else constant
        return Atom(kind, label, weights, lower, upper, unit=str(counted or self.budget_unit))


def explored_region(volumes: FloatArray, domains: Domains) -> dict[str, tuple[float, float]]:
    """Find the trust region that a swarm (R, D) covers: largest decrease and increase of log((v + η)/(v⁰ + η))."""
    eta = ETA_FRACTION * domains.base.mean()
    log_ratio = np.log((np.asarray(volumes, dtype=np.float64) + eta) / (domains.base + eta))
    down, up = np.maximum(-log_ratio.min(axis=0), 0.0), np.maximum(log_ratio.max(axis=0), 0.0)
    return {name: (float(d), float(u)) for name, d, u in zip(domains.names, down, up, strict=True)}


def show(value: float, unit: str, of: str | None = None) -> str:
    """Write an amount as users read it."""
    if unit == "share":
        return f"{100 * value:.6g} %" + (f" of {of}" if of else "")
    digits = 0 if abs(value) >= 100 or value == round(value) else 2
    return f"{value:,.{digits}f} {unit}"


def _unit_vector(index: int, size: int) -> FloatArray:
    vector = np.zeros(size)
    vector[index] = 1.0
    return vector
