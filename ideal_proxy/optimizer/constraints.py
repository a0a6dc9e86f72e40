"""What a mixture must satisfy: budget, bounds, repeats, groups, trust region, protected capabilities.

Legend: D domains, J capabilities, M linear constraints. Volumes are full-size rows (or shares).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ideal_proxy.amounts import Amount, Comparison, Unit, check_name
from ideal_proxy.errors import UsageError
from ideal_proxy.limits import Budget, Limits, TrustRegion, read_limits
from ideal_proxy.response import Kind

FloatArray = NDArray[np.float64]
ScalarFunction = Callable[[FloatArray], tuple[float, FloatArray]]
VectorFunction = Callable[[FloatArray], tuple[FloatArray, FloatArray]]
ETA_FRACTION = 0.01
"""η as a fraction of the mean base volume: how much a volume of zero counts in logarithms."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Problem:
    """The domains and capabilities that a mixture is chosen for.

    Attributes:
        domains: D names.
        capabilities: J names.
        base: base mixture (D,), rows or shares.
        available: rows that each domain has (D,); None in share mode or where unknown.
        tokens_per_row: mean tokens of one row (D,); None where unknown.
        unit: `rows`, or `share` for published tables with a fixed total.
        higher_is_better: True where all capabilities are scores, False where they are losses in nats.
        kinds: of each capability, where they differ; default by `higher_is_better`.
    """

    domains: tuple[str, ...]
    capabilities: tuple[str, ...]
    base: FloatArray
    available: FloatArray | None = None
    tokens_per_row: FloatArray | None = None
    unit: Literal["rows", "share"] = "rows"
    higher_is_better: bool = False
    kinds: tuple[Kind, ...] = ()

    def __post_init__(self) -> None:
        if not self.kinds:
            kind: Kind = "score" if self.higher_is_better else "loss"
            object.__setattr__(self, "kinds", (kind,) * len(self.capabilities))
        if len(self.kinds) != len(self.capabilities):
            raise UsageError(f"{len(self.kinds)} kinds for {len(self.capabilities)} capabilities; give one each.")
        for name in ("base", "available", "tokens_per_row"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, np.array(value, dtype=np.float64))
                self._check_column(name, getattr(self, name))
        for names, what in ((self.domains, "domain"), (self.capabilities, "capability")):
            if not names or len(set(names)) != len(names):
                raise UsageError(f"The {what} names must be distinct and at least one; got {list(names)}.")
        if self.base.sum() <= 0:
            raise UsageError("The base mixture is empty; give at least one domain a positive base volume.")
        if self.tokens_per_row is not None and not np.all(self.tokens_per_row > 0):
            raise UsageError("Every domain needs a positive number of tokens a row.")
        if self.unit == "share" and abs(self.base.sum() - 1) > 1e-6:
            raise UsageError(f"The base shares sum to {self.base.sum():.6g}; shares must sum to 1.")

    def _check_column(self, name: str, values: FloatArray) -> None:
        if values.shape != (len(self.domains),):
            raise UsageError(f"{name} has shape {values.shape}; one number for each domain is needed.")
        if bad := [d for d, x in zip(self.domains, values, strict=True) if not (np.isfinite(x) and x >= 0)]:
            raise UsageError(f"{name} is negative or not finite for {', '.join(bad)}.")


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
    """One linear constraint, `lower <= weights · v <= upper`, under the name that the user knows.

    Attributes:
        kind: of limit.
        label: what the user sees.
        weights: (D,).
        lower: -inf where there is none.
        upper: inf where there is none.
        index: the domain, where the constraint is a bound on one volume and `weights` is its unit vector.
        unit: for the message that says by how much it is missed.
    """

    kind: Limit
    label: str
    weights: FloatArray
    lower: float
    upper: float
    index: int | None = None
    unit: str = "rows"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Constraints:
    """Everything a mixture must satisfy.

    Attributes:
        problem: domains, capabilities, base mixture.
        budget: size of the mixture.
        budget_unit: `tokens` (default where tokens a row are known), `rows` or `share`.
        lower: least volume of a domain.
        upper: largest volume of a domain.
        pinned: domains that do not move: at the amount, or at base where it is None.
        repeat_cap: largest repeat c, v_i <= c · U_i; None for none.
        groups: linear constraints.
        must_not_drop: tolerance for each protected capability, relative to base.
        confidence: one-sided level of the upper bound for `must_not_drop`; 0.5 for the point prediction.
        trust_region: largest |log((v + η)/(v⁰ + η))|, one for all or by domain; a pair bounds the decrease and
            the increase apart; None for none.
        trust_centre: (D,) what the trust region lies around; default base.
        kl_cap: largest Kullback–Leibler divergence from base in nats; None for none.
    """

    problem: Problem
    budget: Budget = field(default_factory=Budget)
    budget_unit: Unit | None = None
    lower: Mapping[str, Amount] = field(default_factory=dict)
    upper: Mapping[str, Amount] = field(default_factory=dict)
    pinned: Mapping[str, Amount | None] = field(default_factory=dict)
    repeat_cap: float | None = 4.0
    groups: tuple[Comparison, ...] = ()
    must_not_drop: Mapping[str, float] = field(default_factory=dict)
    confidence: float = 0.9
    trust_region: TrustRegion | None = None
    trust_centre: FloatArray | None = None
    kl_cap: float | None = None

    def __post_init__(self) -> None:
        unit = self.budget_unit
        if unit is None:
            unit = self.budget.amount.unit if self.budget.amount else None
            if unit in {None, "share"}:
                unit = "rows" if self.problem.tokens_per_row is None else "tokens"
            if self.problem.unit == "share":
                unit = "share"
            object.__setattr__(self, "budget_unit", unit)
        if self.problem.unit == "share" and (unit != "share" or self.budget.kind != "keep"):
            raise UsageError("Shares always sum to one; leave the budget out for a fit of shares.")
        if self.problem.unit == "rows" and unit == "share":
            raise UsageError('The budget unit must be "tokens" or "rows" here, not "share".')
        if self.budget.amount and self.budget.amount.unit not in {None, "share", unit}:
            raise UsageError(f"The budget is in {self.budget.amount.unit} but its unit is {unit}; use one.")
        for name in {*self.lower, *self.upper, *self.pinned, *self._trust_map()}:
            check_name(name, self.problem.domains, what="domain", where="the constraints")
        for name in self.must_not_drop:
            check_name(name, self.problem.capabilities, what="capability", where="must_not_drop")
        if not 0.5 <= self.confidence < 1:
            raise UsageError(f"confidence is {self.confidence}; it must be at least 0.5 and below 1.")
        for name, value in (("repeat_cap", self.repeat_cap), ("kl_cap", self.kl_cap)):
            if value is not None and not value >= 0:
                raise UsageError(f"{name} is {value}; it must not be negative.")
        if any(not m >= 0 for pair in self._trust_map().values() for m in pair):
            raise UsageError("trust_region must not be negative.")
        self.atoms()  # what cannot be written as a linear constraint is said now, not after the fit

    @classmethod
    def from_options(cls, options: Mapping[str, Any], problem: Problem) -> Constraints:
        """Read constraints from command-line options or a YAML mapping."""
        values = read_limits(options, problem.domains, problem.capabilities)
        return cls(problem=problem, **values)

    @classmethod
    def of(cls, limits: Limits, problem: Problem, **more: Any) -> Constraints:
        """Put limits on a problem; `more` are fields that limits lack, such as the trust region."""
        return cls(problem=problem, **{key: getattr(limits, key) for key in Limits.__slots__}, **more)

    @property
    def eta(self) -> float:
        """η in rows (or share): 1 % of the mean base volume."""
        return ETA_FRACTION * float(self.problem.base.mean())

    def unit_weights(self, unit: str | None = None) -> FloatArray:
        """How much one row of each domain counts in a unit."""
        unit = unit or self.budget_unit
        if unit != "tokens":
            return np.ones(len(self.problem.domains))
        if self.problem.tokens_per_row is None:
            raise UsageError("A constraint in tokens needs the tokens a row of every domain; use rows instead.")
        return self.problem.tokens_per_row

    @property
    def budget_total(self) -> float | None:
        """The total that the budget allows, in its unit; None where it is free."""
        base_total = float(self.unit_weights() @ self.problem.base)
        if self.budget.kind == "free":
            return None
        if self.budget.amount is None:
            return base_total
        share = self.budget.amount.unit == "share"
        return self.budget.amount.value * (base_total if share else 1.0)

    @property
    def total_is_fixed(self) -> bool:
        """Whether every allowed mixture has the same total."""
        return self.budget.kind in {"keep", "exactly"}

    def atoms(self) -> list[Atom]:
        """List the linear constraints one by one."""
        return [*self._budget_atoms(), *self._bound_atoms(), *self._trust_atoms(), *self._group_atoms()]

    def _trust_map(self) -> Mapping[str, tuple[float, float]]:
        """Largest decrease and increase of each bounded domain, as logarithms."""
        if self.trust_region is None:
            return {}
        given = self.trust_region
        by_domain = given if isinstance(given, Mapping) else dict.fromkeys(self.problem.domains, given)
        return {name: m if isinstance(m, tuple) else (float(m), float(m)) for name, m in by_domain.items()}

    def _budget_atoms(self) -> list[Atom]:
        total, unit = self.budget_total, str(self.budget_unit)
        if total is None:
            return []
        if unit == "share":
            label = "shares sum to one"
        elif self.budget.kind == "keep":
            label = f"budget: keep the base total of {show(total, unit)}"
        else:
            label = f"budget: {self.budget.kind} {show(total, unit)}"
        lower = total if self.total_is_fixed else -np.inf
        return [Atom(Limit.BUDGET, label, self.unit_weights(), lower, total, unit=unit)]

    def _bound_atoms(self) -> list[Atom]:
        p, atoms = self.problem, []
        for name, amount in self.lower.items():
            atoms.append(self._amount_atom(name, amount, ">="))
        for name, amount in self.upper.items():
            atoms.append(self._amount_atom(name, amount, "<="))
        for name, pin in self.pinned.items():
            if pin is None:
                i = p.domains.index(name)
                base = float(p.base[i])
                label = f"pinned at base: {name} = {show(base, p.unit)}"
                atoms.append(Atom(Limit.PIN, label, _unit_vector(i, len(p.domains)), base, base, i, p.unit))
            else:
                atoms.append(self._amount_atom(name, pin, "=="))
        if self.repeat_cap is not None and p.available is not None:
            for i, name in enumerate(p.domains):
                label = f"repeat cap: {name} <= {self.repeat_cap:g} × {show(p.available[i], 'available rows')}"
                cap = self.repeat_cap * float(p.available[i])
                atoms.append(Atom(Limit.REPEAT, label, _unit_vector(i, len(p.domains)), -np.inf, cap, i))
        return atoms

    def _amount_atom(self, name: str, amount: Amount, sense: Literal["<=", ">=", "=="]) -> Atom:
        unit, i = amount.unit, self.problem.domains.index(name)
        if self.problem.unit == "share":
            if unit in {"rows", "tokens"}:
                raise UsageError(f"The fit is in shares; give the bound on {name} as a share, not in {unit}.")
            unit = None
        kind = Limit.PIN if sense == "==" else Limit.BOUND
        words = {"<=": "upper bound: {} <= {}", ">=": "lower bound: {} >= {}", "==": "pinned: {} = {}"}
        shown = show(amount.value, unit or self.problem.unit, amount.of)
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
            _unit_vector(i, len(self.problem.domains)),
            -np.inf if sense == "<=" else value,
            np.inf if sense == ">=" else value,
            i,
            self.problem.unit,
        )

    def _trust_atoms(self) -> list[Atom]:
        p, eta, atoms = self.problem, self.eta, []
        centre = p.base if self.trust_centre is None else self.trust_centre
        for name, (down, up) in self._trust_map().items():
            i = p.domains.index(name)
            unit_vector = _unit_vector(i, len(p.domains))
            high = (centre[i] + eta) * np.exp(up) - eta
            low = max(0.0, (centre[i] + eta) * np.exp(-down) - eta)
            if low > 0:
                label = f"trust region: {name} >= {show(low, p.unit)} (log-ratio {-down:.3g})"
                atoms.append(Atom(Limit.TRUST_REGION, label, unit_vector, float(low), np.inf, i, p.unit))
            label = f"trust region: {name} <= {show(high, p.unit)} (log-ratio {up:.3g})"
            atoms.append(Atom(Limit.TRUST_REGION, label, unit_vector, -np.inf, float(high), i, p.unit))
        return atoms

    def _group_atoms(self) -> list[Atom]:
        return [self._comparison_atom(Limit.GROUP, group, f"group: {group.text}") for group in self.groups]

    def _comparison_atom(self, kind: Limit, group: Comparison, label: str) -> Atom:
        unit: str | None = group.unit
        if self.problem.unit == "share":
            if unit in {"rows", "tokens"} or group.of:
                raise UsageError(f'The fit is in shares; write "{group.text}" in shares, not in {unit}.')
            unit = None
        elif unit is None and group.constant:
            raise UsageError(f'"{group.text}" needs a unit: "60 %", "5000 rows" or "2M tokens" after the number.')
        counted = group.of if unit == "share" else unit
        per_row = self.unit_weights(counted)
        weights = np.zeros(len(self.problem.domains))
        for name, factor in group.weights.items():
            i = self.problem.domains.index(name)
            weights[i] = factor * per_row[i]
        constant = group.constant
        if unit == "share":
            weights, constant = weights - constant * per_row, 0.0
        lower = -np.inf if group.sense == "<=" else constant
        upper = np.inf if group.sense == ">=" else constant
        return Atom(kind, label, weights, lower, upper, unit=str(counted or self.budget_unit))


def explored_region(volumes: FloatArray, problem: Problem) -> dict[str, tuple[float, float]]:
    """Find the trust region that the runs of a swarm cover, the default of a search.

    Args:
        volumes: the mixtures that were run (R, D), rows.
        problem: domains and base mixture.

    Returns:
        Largest decrease and increase of each domain, as log((v + η)/(v⁰ + η)) without its sign: no optimum lies
        above or below every volume that was run.
    """
    eta = ETA_FRACTION * problem.base.mean()
    log_ratio = np.log((np.asarray(volumes, dtype=np.float64) + eta) / (problem.base + eta))
    down, up = np.maximum(-log_ratio.min(axis=0), 0.0), np.maximum(log_ratio.max(axis=0), 0.0)
    return {name: (float(d), float(u)) for name, d, u in zip(problem.domains, down, up, strict=True)}


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
