"""What a mixture must satisfy, as numbers with units; texts are read here once, at the edge of the program.

The run file, the options of a command and a mixture file say it; the optimiser takes it as it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter

from ideal_proxy.amounts import (
    Amount,
    Comparison,
    Unit,
    check_name,
    parse_amount,
    parse_comparison,
    parse_fraction,
    parts_of,
)
from ideal_proxy.errors import UsageError, shortened

Read = TypeVar("Read", Amount, "Budget", Comparison)
PROTECT = 0.02  # no capability may lose more, unless the user says so
TrustRegion = float | tuple[float, float] | Mapping[str, float | tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Budget:
    """How large the mixture may be."""

    # `keep` the base total, `exactly` or `at most` an amount, or `free`
    kind: Literal["keep", "exactly", "at most", "free"] = "keep"
    amount: Amount | None = None  # for `exactly` and `at most`; a share is one of the base total


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of a search, whatever is optimised under them; `Constraints` puts them on a problem."""

    budget: Budget = field(default_factory=Budget)  # size of the mixture
    budget_unit: Unit | None = None  # `tokens`, `rows` or `share`; None where nothing says it
    lower: Mapping[str, Amount] = field(default_factory=dict)  # least volume of a domain
    upper: Mapping[str, Amount] = field(default_factory=dict)  # largest volume of a domain
    # domains that do not move: at the amount, or at base where it is None
    pinned: Mapping[str, Amount | None] = field(default_factory=dict)
    repeat_cap: float | None = 4.0  # largest repeat; None for none
    groups: tuple[Comparison, ...] = ()  # linear constraints
    # tolerance of each capability that has to be proved not to drop, relative to base; for a score a share of its scale
    must_not_drop: Mapping[str, float] = field(default_factory=dict)
    # largest rise that the others may show; where both are given, the stricter holds
    protect: Mapping[str, float] = field(default_factory=dict)

    def tolerance(self, capability: str) -> float | None:
        """Return the strictest tolerance of a capability; None where it is free."""
        given = (limit.get(capability) for limit in (self.protect, self.must_not_drop))
        return min((told for told in given if told is not None), default=None)

    def to_json(self) -> dict[str, Any]:
        """Return numbers with their units, as a mixture file keeps them; `from_json` gives equal limits."""
        return asdict(self) | {"groups": [asdict(group) for group in self.groups]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], domains: Sequence[str], capabilities: Sequence[str]) -> Limits:
        """Read what a mixture file keeps, also the texts of earlier versions."""
        known = {key: value[key] for key in cls.__slots__ if value.get(key) is not None}
        read = read_limits(known, domains, capabilities)
        if isinstance(value.get("budget"), Mapping) and value.get("repeat_cap") is None:
            read["repeat_cap"] = None  # said, not left out as in the files of earlier versions
        return cls(**read)


def read_limits(options: Mapping[str, Any], domains: Sequence[str], capabilities: Sequence[str]) -> dict[str, Any]:
    """Read limits, a trust region, `kl_cap` and `confidence` from options or a file as numbers with units."""
    # Values may be texts (`budget: at most 2M tokens`, `lower: {coding: 5 %}` or `["coding=5 %"]`, `pinned: [safety]`,
    # `must_not_drop: [safety]` or `{safety: 1 %}`, `groups: ["a + b <= 60 %"]`) or read already; None is not given.
    read: dict[str, Callable[[Any], Any]] = {
        "budget": _read_budget,
        "budget_unit": _read_unit,
        "lower": lambda x: _read_amounts(x, "lower"),
        "upper": lambda x: _read_amounts(x, "upper"),
        "pinned": lambda x: _read_amounts(x, "pinned", bare=True),
        "repeat_cap": lambda x: _read_number(x, "repeat_cap"),
        "groups": lambda x: tuple(_read_group(group, domains) for group in ([x] if isinstance(x, str) else x)),
        "must_not_drop": lambda x: _read_tolerances(x, capabilities),
        "protect": lambda x: _read_tolerances(x, capabilities),
        "confidence": lambda x: parse_fraction(x, where="confidence"),
        "trust_region": _read_trust_region,
        "kl_cap": lambda x: _read_number(x, "kl_cap"),
    }
    values: dict[str, Any] = {}
    for key, value in options.items():
        check_name(str(key), list(read), what="constraint", where="the constraints")
        if value is not None:
            try:
                values[key] = read[key](value)
            except (TypeError, ValueError, LookupError, AttributeError) as error:
                raise UsageError(
                    f"{key} is {shortened(repr(value))}, which cannot be read; write a constraint like "
                    '"upper: {coding: 40 %}", "pinned: [safety]" or "groups: [coding + mathematics <= 60 %]".'
                ) from error
    _spread_over_parts(values, domains)
    return values


def _spread_over_parts(values: dict[str, Any], domains: Sequence[str]) -> None:
    """A bound of a domain that was split bounds the sum of its parts; pinning it without an amount pins each."""
    groups = []
    senses: dict[str, Literal["<=", ">=", "=="]] = {"lower": ">=", "upper": "<=", "pinned": "=="}
    for key, sense in senses.items():
        for name in [n for n in values.get(key, {}) if n not in domains and parts_of(n, domains)]:
            amount = values[key].pop(name)
            if amount is None:
                values[key] |= dict.fromkeys(parts_of(name, domains))
            else:
                weights = dict.fromkeys(parts_of(name, domains), 1.0)
                text = f"{name} {sense} {amount.value:g}"
                groups.append(Comparison(text, sense, weights, amount.value, amount.unit, amount.of))
    if groups:
        values["groups"] = (*values.get("groups", ()), *groups)


def _read_group(value: Any, domains: Sequence[str]) -> Comparison:
    if isinstance(value, Comparison):
        return value
    if not isinstance(value, Mapping):
        return parse_comparison(str(value), domains)
    for name in value["weights"]:
        check_name(name, domains, what="domain", where=f'the group constraint "{value["text"]}"')
    return _checked(Comparison, value)


def _checked(kind: type[Read], value: Mapping[str, Any]) -> Read:
    """Read what `Limits.to_json` wrote, or anybody in its place."""
    return TypeAdapter(kind).validate_python(asdict(kind(**value)))


def _read_amount(value: Any, where: str) -> Amount:
    return _checked(Amount, value) if isinstance(value, Mapping) else parse_amount(value, where=where)


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
        name: None if bare and amount is None else _read_amount(amount, f"{where} of {name}")
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


def plain_protection(value: Any) -> Any:
    """Turn `2%` into 0.02, alone or in a mapping by name; `none` stays."""
    if isinstance(value, Mapping):
        return {str(name): plain_protection(told) for name, told in value.items()}
    told = _read_tolerance(value, "protect")
    return "none" if told is None else told


def read_protection(value: Any, capabilities: Sequence[str]) -> dict[str, float]:
    """Read `2 %`, `none`, or a mapping by name in which `none` lifts one and the default holds for the rest."""
    if not isinstance(value, Mapping):
        told = _read_tolerance(value, "protect")
        return {} if told is None else dict.fromkeys(capabilities, told)
    found = dict.fromkeys(capabilities, PROTECT)
    for name, given in value.items():
        check_name(str(name), capabilities, what="capability", where="protect")
        told = _read_tolerance(given, f"protect of {name}")
        if told is None:
            del found[str(name)]
        else:
            found[str(name)] = told
    return found


def _read_tolerance(value: Any, where: str) -> float | None:
    if value in ("none", "off") or value is None:
        return None
    told = parse_fraction(value, where=where)
    if not 0 <= told <= 1:
        raise UsageError(f'{where} is {value!r}; give a share from 0 to 1 (0.02 is 2 %), or "none" to lift it.')
    return told


def _read_trust_region(value: Any) -> TrustRegion | None:
    if isinstance(value, Mapping):
        return {str(k): _read_trust_bound(v, f"trust_region of {k}") for k, v in value.items()}
    return _read_number(value, "trust_region")


def _read_number(value: Any, where: str) -> float | None:
    if value in ("none", "off"):
        return None
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        if not isinstance(value, bool) and 0 <= (number := float(value)) < float("inf"):
            return number
    raise UsageError(f'{where} is {value!r}; it must be a number, not negative, or "none" to switch it off.')


def _read_unit(value: Any) -> str:
    if value not in ("tokens", "rows", "share"):
        raise UsageError(f'budget_unit is {value!r}; it must be "tokens" or "rows".')
    return str(value)


def _read_budget(value: Any) -> Budget:
    if isinstance(value, Budget):
        return value
    if isinstance(value, Mapping):
        amount = value.get("amount")
        return _checked(Budget, {**value, "amount": None if amount is None else _read_amount(amount, "budget")})
    text = str(value).strip()
    if text == "keep":
        return Budget("keep")
    if text == "free":
        return Budget("free")
    kind: Literal["exactly", "at most"] = "exactly" if text.startswith("exactly") else "at most"
    given = parse_amount(text.removeprefix(kind).strip(), where="budget")
    if given.of:
        raise UsageError(f"budget: write {text!r} without its last words; use budget_unit to choose the unit.")
    return Budget(kind, given)


def _read_trust_bound(value: Any, where: str) -> float | tuple[float, float]:
    if isinstance(value, list | tuple):
        if len(value) != 2:
            raise UsageError(f"{where} has {len(value)} numbers; give one, or two: largest decrease, largest increase.")
        return (_read_number(value[0], where) or 0.0, _read_number(value[1], where) or 0.0)
    return _read_number(value, where) or 0.0
