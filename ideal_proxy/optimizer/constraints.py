"""What a mixture must satisfy: budget, bounds, repeats, groups, trust region, protected capabilities.

Legend: D domains, J capabilities, M linear constraints. Volumes are full-size rows (or shares).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ideal_proxy.amounts import Amount, Comparison, Unit, check_name, parse_amount, parse_comparison, parse_fraction
from ideal_proxy.errors import UsageError
from ideal_proxy.response import Kind

FloatArray = NDArray[np.float64]
ScalarFunction = Callable[[FloatArray], tuple[float, FloatArray]]
VectorFunction = Callable[[FloatArray], tuple[FloatArray, FloatArray]]
TrustRegion = float | tuple[float, float] | Mapping[str, float | tuple[float, float]]
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


@dataclass(frozen=True, slots=True, eq=False)
class Atom:
    """One linear constraint, `lower <= weights · v <= upper`, under the name that the user knows.

    Attributes:
        label: what the user sees.
        weights: (D,).
        lower: -inf where there is none.
        upper: inf where there is none.
        index: the domain, where the constraint is a bound on one volume and `weights` is its unit vector.
        unit: for the message that says by how much it is missed.
    """

    label: str
    weights: FloatArray
    lower: float
    upper: float
    index: int | None = None
    unit: str = "rows"


@dataclass(frozen=True, slots=True)
class Budget:
    """How large the mixture may be.

    Attributes:
        kind: `keep` the base total, `exactly` or `at most` an amount, or `free`.
        amount: for `exactly` and `at most`; a share is one of the base total.
    """

    kind: Literal["keep", "exactly", "at most", "free"] = "keep"
    amount: Amount | None = None


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
        """Read constraints from command-line options or a YAML mapping.

        Args:
            options: keys are this class's fields; values may be texts (`budget: at most 2M tokens`,
                `lower: {coding: 5 %}` or `["coding=5 %"]`, `must_not_drop: [safety]` or `{safety: 1 %}`,
                `groups: ["coding + mathematics <= 60 %"]`, `pinned: [safety]`). None means not given.
            problem: the domains and capabilities.

        Returns:
            The constraints.

        Raises:
            UsageError: an unknown key, domain or capability, or a value that cannot be read.
        """
        known = [f.name for f in fields(cls) if f.name != "problem"]
        read: dict[str, Callable[[Any], Any]] = {
            "budget": _read_budget,
            "lower": lambda x: _read_amounts(x, "lower"),
            "upper": lambda x: _read_amounts(x, "upper"),
            "pinned": lambda x: _read_amounts(x, "pinned", bare=True),
            "groups": lambda x: tuple(
                parse_comparison(text, problem.domains) for text in ([x] if isinstance(x, str) else x)
            ),
            "must_not_drop": lambda x: _read_tolerances(x, problem.capabilities),
            "trust_region": _read_trust_region,
            "repeat_cap": lambda x: _read_number(x, "repeat_cap"),
            "kl_cap": lambda x: _read_number(x, "kl_cap"),
            "confidence": lambda x: parse_fraction(x, where="confidence"),
            "budget_unit": _read_unit,
        }
        values: dict[str, Any] = {}
        for key, value in options.items():
            check_name(key, known, what="constraint", where="the constraints")
            if value is not None:
                values[key] = read[key](value)
        return cls(problem=problem, **values)

    @property
    def eta(self) -> float:
        """η in rows (or share): 1 % of the mean base volume."""
        return ETA_FRACTION * float(self.problem.base.mean())

    def unit_weights(self, unit: str | None = None) -> FloatArray:
        """How much one row of each domain counts in a unit.

        Args:
            unit: `rows`, `tokens` or `share`; None for the unit of the budget.

        Returns:
            Weights (D,): tokens a row, or ones.

        Raises:
            UsageError: tokens are asked for, and the tokens a row are not known.
        """
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
        """List the linear constraints one by one.

        Returns:
            The constraints under the names that users see; volumes are not negative besides.
        """
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
        return [Atom(label, self.unit_weights(), lower, total, unit=unit)]

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
                atoms.append(Atom(label, _unit_vector(i, len(p.domains)), base, base, i, p.unit))
            else:
                atoms.append(self._amount_atom(name, pin, "=="))
        if self.repeat_cap is not None and p.available is not None:
            for i, name in enumerate(p.domains):
                label = f"repeat cap: {name} <= {self.repeat_cap:g} × {show(p.available[i], 'available rows')}"
                cap = self.repeat_cap * float(p.available[i])
                atoms.append(Atom(label, _unit_vector(i, len(p.domains)), -np.inf, cap, i))
        return atoms

    def _amount_atom(self, name: str, amount: Amount, sense: Literal["<=", ">=", "=="]) -> Atom:
        unit, i = amount.unit, self.problem.domains.index(name)
        if self.problem.unit == "share":
            if unit in {"rows", "tokens"}:
                raise UsageError(f"The fit is in shares; give the bound on {name} as a share, not in {unit}.")
            unit = None
        words = {"<=": "upper bound: {} <= {}", ">=": "lower bound: {} >= {}", "==": "pinned: {} = {}"}
        shown = show(amount.value, unit or self.problem.unit, amount.of)
        if unit == "share":
            text = words[sense].format(name, shown)
            return self._comparison_atom(Comparison(text, sense, {name: 1.0}, amount.value, unit, amount.of), text)
        per_row = float(self.unit_weights(unit or "rows")[i])
        value = amount.value / per_row
        return Atom(
            words[sense].format(name, shown),
            _unit_vector(i, len(self.problem.domains)),
            -np.inf if sense == "<=" else value,
            np.inf if sense == ">=" else value,
            i,
            self.problem.unit,
        )

    def _trust_atoms(self) -> list[Atom]:
        p, eta, atoms = self.problem, self.eta, []
        for name, (down, up) in self._trust_map().items():
            i = p.domains.index(name)
            unit_vector = _unit_vector(i, len(p.domains))
            high = (p.base[i] + eta) * np.exp(up) - eta
            low = max(0.0, (p.base[i] + eta) * np.exp(-down) - eta)
            if low > 0:
                label = f"trust region: {name} >= {show(low, p.unit)} (log-ratio {-down:.3g})"
                atoms.append(Atom(label, unit_vector, float(low), np.inf, i, p.unit))
            label = f"trust region: {name} <= {show(high, p.unit)} (log-ratio {up:.3g})"
            atoms.append(Atom(label, unit_vector, -np.inf, float(high), i, p.unit))
        return atoms

    def _group_atoms(self) -> list[Atom]:
        return [self._comparison_atom(group, f"group: {group.text}") for group in self.groups]

    def _comparison_atom(self, group: Comparison, label: str) -> Atom:
        unit: str | None = group.unit
        if self.problem.unit == "share":
            if unit in {"rows", "tokens"} or group.of:
                raise UsageError(f'The fit is in shares; write "{group.text}" in shares, not in {unit}.')
            unit = None
        elif unit is None and group.constant:
            raise UsageError(f'"{group.text}" needs a unit: "60 %", "5000 rows" or "2M tokens" after the number.')
        kind = group.of if unit == "share" else unit
        per_row = self.unit_weights(kind)
        weights = np.zeros(len(self.problem.domains))
        for name, factor in group.weights.items():
            i = self.problem.domains.index(name)
            weights[i] = factor * per_row[i]
        constant = group.constant
        if unit == "share":
            weights, constant = weights - constant * per_row, 0.0
        lower = -np.inf if group.sense == "<=" else constant
        upper = np.inf if group.sense == ">=" else constant
        return Atom(label, weights, lower, upper, unit=str(kind or self.budget_unit))


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
    """Write an amount as users read it.

    Args:
        value: the number.
        unit: `rows`, `tokens`, `share` or any word that follows the number.
        of: what a share is a share of.

    Returns:
        Such as `5,000 rows` or `60 %`.
    """
    if unit == "share":
        return f"{100 * value:.6g} %" + (f" of {of}" if of else "")
    digits = 0 if abs(value) >= 100 or value == round(value) else 2
    return f"{value:,.{digits}f} {unit}"


def _unit_vector(index: int, size: int) -> FloatArray:
    vector = np.zeros(size)
    vector[index] = 1.0
    return vector


def _pairs(value: Any, where: str, *, bare: bool) -> dict[str, Any]:
    """Read a mapping, or a list of `name=amount`, into a mapping; bare names get None."""
    if isinstance(value, Mapping):
        return {str(k): v for k, v in value.items()}
    items: Sequence[Any] = [value] if isinstance(value, str) else list(value)
    result: dict[str, Any] = {}
    for item in items:
        name, sign, amount = str(item).rpartition("=")
        if not sign:
            name, amount = str(item), None  # type: ignore[assignment]
            if not bare:
                raise UsageError(f'{where}: cannot read "{item}"; write name=amount, like "coding=5000 rows".')
        if name.strip() in result:
            raise UsageError(f'{where} names "{name.strip()}" twice; keep one.')
        result[name.strip()] = amount
    return result


def _read_amounts(value: Any, where: str, *, bare: bool = False) -> dict[str, Amount | None]:
    pairs = _pairs(value, where, bare=bare)
    return {
        name: None if bare and amount is None else parse_amount(amount, where=f"{where} of {name}")
        for name, amount in pairs.items()
    }


def _read_tolerances(value: Any, capabilities: Sequence[str]) -> dict[str, float]:
    if value in ("all", ["all"]):
        return dict.fromkeys(capabilities, 0.0)
    pairs = _pairs(value, "must_not_drop", bare=True)
    return {
        name: 0.0 if tol is None else parse_fraction(tol, where=f"must_not_drop of {name}")
        for name, tol in pairs.items()
    }


def _read_trust_region(value: Any) -> TrustRegion | None:
    if isinstance(value, Mapping):
        return {str(k): _read_trust_bound(v, f"trust_region of {k}") for k, v in value.items()}
    return _read_number(value, "trust_region")


def _read_number(value: Any, where: str) -> float | None:
    if value in ("none", "off"):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        raise UsageError(f'{where} is {value!r}; it must be a number, or "none" to switch it off.') from None


def _read_unit(value: Any) -> str:
    if value not in ("tokens", "rows", "share"):
        raise UsageError(f'budget_unit is {value!r}; it must be "tokens" or "rows".')
    return str(value)


def _read_budget(value: Any) -> Budget:
    if isinstance(value, Budget):
        return value
    text = str(value).strip()
    if text == "keep":
        return Budget("keep")
    if text == "free":
        return Budget("free")
    kind: Literal["exactly", "at most"] = "exactly" if text.startswith("exactly") else "at most"
    amount = parse_amount(text.removeprefix(kind).strip(), where="budget")
    if amount.of:
        raise UsageError(f"budget: write {text!r} without its last words; use budget_unit to choose the unit.")
    return Budget(kind, amount)


def _read_trust_bound(value: Any, where: str) -> float | tuple[float, float]:
    if isinstance(value, list | tuple):
        if len(value) != 2:
            raise UsageError(f"{where} has {len(value)} numbers; give one, or two: largest decrease, largest increase.")
        return (_read_number(value[0], where) or 0.0, _read_number(value[1], where) or 0.0)
    return _read_number(value, where) or 0.0
