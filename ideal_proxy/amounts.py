"""How constraints are written: `5,000 rows`, `2M tokens`, `60 %`, `coding + mathematics <= 60 %`."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from ideal_proxy.errors import UsageError, some

Unit = Literal["rows", "tokens", "share"]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]

_NUMBER = r"[+-]?(?:\d[\d,_]*(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?"  # two loops over digits in a row would be quadratic
_AMOUNT = re.compile(
    rf"^(?P<number>{_NUMBER})\s*(?P<factor>[kKMGB](?![A-Za-z]))?\s*"
    r"(?P<unit>%|percent|rows?|tokens?)?(?:\s+of\s+(?P<of>rows|tokens))?$"
)
_FACTORS = {"k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9}
_COMPARATOR = re.compile(r"(<=|>=|==|≤|≥|=|<|>)")
_TERM = re.compile(rf"^(?:(?P<factor>{_NUMBER})\s*\*\s*)?(?P<name>.+)$")
_QUOTED = re.compile(r"\"[^\"]*\"|'[^']*'")


@dataclass(frozen=True, slots=True)
class Amount:
    """A number with its unit."""

    value: Annotated[Number, Field(ge=0)]  # rows, tokens, or a fraction of the total (0.6 for `60 %`)
    unit: Unit | None  # `rows`, `tokens` or `share`; None where the text gave none
    of: Literal["rows", "tokens"] | None = None  # what a share is a share of; None for the unit of the budget


@dataclass(frozen=True, slots=True)
class Comparison:
    """A linear constraint as it was written: `left <= right`."""

    text: str  # what the user wrote
    sense: Literal["<=", ">=", "=="]  # `<=`, `>=` or `==`
    weights: Mapping[str, Number] = field(default_factory=dict)  # factor of each domain, everything moved to the left
    constant: Number = 0.0  # the number on the right, in `unit`
    unit: Unit | None = None  # the unit of the constant; None where there is none (`coding >= 2 * mathematics`)
    of: Literal["rows", "tokens"] | None = None  # what a share is a share of; None for the unit of the budget


def check_name(name: str, known: Sequence[str], *, what: str, where: str) -> str:
    """Return a known name, or say which known one is nearest."""
    if name in known:
        return name
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    hint = f'; did you mean "{near[0]}"?' if near else ";"
    raise UsageError(f'Unknown {what} "{name}" in {where}{hint} The {what} names are: {some(known, 12)}.')


def parse_amount(value: Any, *, where: str) -> Amount:
    """Read a number, or a text such as `5000 rows`, `2M tokens`, `60 %` or `60 % of rows`; `where` names its option."""
    if isinstance(value, Amount):
        return value
    amount = _try_amount(str(value)) if not isinstance(value, bool) else None
    if amount is None:
        raise UsageError(
            f"{where}: cannot read {value!r} as an amount; write a number with its unit, "
            'for example "5000 rows", "2M tokens" or "60 %".'
        )
    if not 0 <= amount.value < float("inf"):
        raise UsageError(f"{where}: {value!r} is out of range; amounts are finite and not negative.")
    return amount


def parse_fraction(value: Any, *, where: str) -> float:
    """Read a fraction: `0.01` or `1 %`."""
    amount = parse_amount(value, where=where)
    if amount.unit not in {None, "share"} or amount.of is not None:
        raise UsageError(f'{where}: {value!r} must be a fraction such as 0.01 or "1 %".')
    return amount.value


def parse_comparison(text: str, known: Sequence[str]) -> Comparison:
    """Read a linear constraint such as `coding + mathematics <= 60 %` or `coding >= 2 * mathematics`."""
    # Names that hold `+`, `*` or a comparison sign are put in quotes. Of what is read all domains stand on the left.
    where = f'the group constraint "{text}"'
    masked = _QUOTED.sub(lambda m: "\0" * len(m.group()), text)
    signs = list(_COMPARATOR.finditer(masked))
    if len(signs) != 1:
        raise UsageError(
            f"{where} needs exactly one of <=, >= and =, and has {len(signs)}; "
            'write it like "coding + mathematics <= 60 %".'
        )
    sign = signs[0]
    sense: Literal["<=", ">=", "=="] = "<=" if sign.group() in "<=≤" and sign.group() != "=" else "=="
    if sign.group() in {">=", ">", "≥"}:
        sense = ">="
    weights: dict[str, float] = {}
    amounts: list[Amount] = []
    sides = ((slice(0, sign.start()), 1.0), (slice(sign.end(), None), -1.0))
    for side, direction in sides:
        for term in _split_terms(text[side], masked[side]):
            amount = None if term in known else _try_amount(term)
            if amount is not None:
                amounts.append(Amount(-direction * amount.value, amount.unit, amount.of))
                continue
            factor, names = _read_term(term, known, where)
            for name in names:
                weights[name] = weights.get(name, 0.0) + direction * factor
    if not any(weights.values()):
        raise UsageError(f"{where} names no domain, so it constrains nothing; remove it or name one.")
    units = {(a.unit, a.of) for a in amounts if a.value or a.unit}
    if len(units) > 1:
        raise UsageError(f"{where} mixes units; use one of rows, tokens and % in one constraint.")
    unit, of = units.pop() if units else (None, None)
    constant = sum(a.value for a in amounts)
    if not all(map(math.isfinite, (constant, *weights.values()))):
        raise UsageError(f"{where} holds a number that is not finite; write a smaller one.")
    return Comparison(text.strip(), sense, weights, constant, unit, of)


def _try_amount(text: str) -> Amount | None:
    match = _AMOUNT.match(" ".join(text.split()))
    if match is None or (match["of"] and match["unit"] not in {"%", "percent"}):
        return None
    number = float(match["number"].replace(",", "").replace("_", ""))
    number *= _FACTORS.get(match["factor"] or "", 1.0)
    of: Literal["rows", "tokens"] | None = None
    if match["of"]:
        of = "rows" if match["of"] == "rows" else "tokens"
    unit: Unit | None = None
    if match["unit"] in {"%", "percent"}:
        number, unit = number / 100.0, "share"
    elif match["unit"]:
        unit = "rows" if match["unit"].startswith("row") else "tokens"
    return Amount(number, unit, of)


def _split_terms(text: str, masked: str) -> list[str]:
    terms, begin = [], 0
    for place, character in enumerate(masked):
        # The sign of an exponent (1e+6) belongs to its number.
        if character == "+" and not re.fullmatch(r"\d[eE]\+\d", masked[max(0, place - 2) : place + 2]):
            terms.append(text[begin:place])
            begin = place + 1
    terms.append(text[begin:])
    return [term.strip() for term in terms]


def parts_of(name: str, known: Sequence[str]) -> list[str]:
    """The domain itself, or the parts of the domain: maths stands for all of maths/easy, maths/hard."""
    return [name] if name in known else [other for other in known if other.startswith(f"{name}/")]


def _read_term(term: str, known: Sequence[str], where: str) -> tuple[float, list[str]]:
    if parts := parts_of(term, known):
        return 1.0, parts
    match = _TERM.match(term)
    if match is None:
        raise UsageError(f'{where} has an empty term; write it like "coding + mathematics <= 60 %".')
    name = match["name"].strip()
    if len(name) > 1 and name[0] == name[-1] and name[0] in "\"'":
        name = name[1:-1]
    factor = float((match["factor"] or "1").replace(",", "").replace("_", ""))
    return factor, parts_of(name, known) or [check_name(name, known, what="domain", where=where)]
