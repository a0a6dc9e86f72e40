"""What pydantic says of a wrong file, as one sentence in the words of that file."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from ideal_proxy.errors import shortened

MOST_CHARACTERS = 900  # of a sentence; a file may hold values and keys of any length


def first_problem(
    error: ValidationError, model: type[BaseModel], raw: Mapping[str, Any], missing: str = "add it"
) -> str:
    """Turn pydantic's first complaint about what a file holds into one sentence with the place and the cure."""
    return shortened(_first_problem(error, model, raw, missing), MOST_CHARACTERS)


def _first_problem(error: ValidationError, model: type[BaseModel], raw: Mapping[str, Any], missing: str) -> str:
    problems = error.errors()
    places = [problem["loc"] for problem in problems]
    problems = [p for p in problems if not any(q[: len(p["loc"])] == p["loc"] != q for q in places)]  # the innermost
    first = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    place = repr(".".join(str(part) for part in first["loc"]) or "the file")
    if first["type"] == "extra_forbidden":
        known = _known_keys(model, first["loc"])
        close = difflib.get_close_matches(str(first["loc"][-1]), known, n=1, cutoff=0.5)
        cure = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"
        return f"unknown key {place}; {cure}"
    if first["type"] == "missing":
        parent = _parent(first["loc"], raw)
        if parent:
            return (
                f"{parent} is no domain but the parent of some; a limit on all of them is written as "
                f"constraints: {{groups: ['{parent} <= 60%']}}"
            )
        return f"{place} is missing; {missing}"
    if not first["loc"]:  # a check of the whole file names the keys itself
        return _plain(first)
    others = len({problem["loc"] for problem in problems}) - 1
    return f"{place}{_named(first['loc'], raw)}: {_plain(first)}{f' (and {others} more)' if others else ''}"


def _named(place: tuple[int | str, ...], raw: Mapping[str, Any]) -> str:
    """Name the domain or capability that a place such as domains.3.base lies in."""
    if len(place) > 2 and isinstance(place[1], int):
        with contextlib.suppress(KeyError, IndexError, TypeError):
            return f" ({raw[str(place[0])][place[1]]['name']})"
    return ""


def _parent(place: tuple[int | str, ...], raw: Mapping[str, Any]) -> str:
    """Name the domain without a path whose parts are domains of their own, such as maths of maths/high."""
    if place[-1] == "path":
        with contextlib.suppress(KeyError, IndexError, TypeError, AttributeError):
            entries = raw[str(place[0])]
            name = str(entries[place[1]]["name"])
            return name if any(str(entry.get("name")).startswith(f"{name}/") for entry in entries) else ""
    return ""


JARGON = (
    ("Input should be", "must be"),
    ("String should match pattern", "must match the pattern"),
    ("a valid ", "a "),
    ("a integer", "a whole number"),
    (", unable to parse string as a number", ""),
    (", unable to parse string as an integer", ""),
    (", got a number with a fractional part", ""),
)


def _plain(problem: Any) -> str:
    """Say what pydantic complains of in the words of the run file."""
    kind, value, field = problem["type"], problem.get("input"), problem["loc"][-1] if problem["loc"] else ""
    got = shortened(repr(value))
    if kind == "too_short":
        return f"needs at least {problem['ctx']['min_length']}, has {problem['ctx']['actual_length']}"
    if kind in {"tuple_type", "list_type"}:
        return f"must be a list, one '- ' a line, got {got}"
    if kind in {"model_type", "dict_type", "model_attributes_type"}:
        return f"must be a block of 'key: value' lines, got {got}"
    if kind == "string_pattern_mismatch" and field == "name":
        return f"a name has 1 to 80 characters and no slash (but a domain's part: maths/high), got {got}"
    if kind == "string_too_short":
        return "must not be empty"
    if kind == "string_type":
        return f"must be text, got {got}; put it in quotes" if value is not None else "must be text, is empty"
    message = str(problem["msg"]).removeprefix("Value error, ")
    for jargon, plain in JARGON:
        message = message.replace(jargon, plain)
    message = message[0].lower() + message[1:]
    quoted = field not in {"", "domains", "capabilities", "verify", "swarm"}  # there the sentence says it all
    return f"{message}, got {got}" if quoted else message


def _known_keys(model: Any, place: tuple[int | str, ...]) -> list[str]:
    """Return the keys allowed where the unknown one stood."""
    for part in place[:-1]:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        arguments = getattr(annotation, "__args__", None)
        model = arguments[0] if arguments else annotation
    return list(model.model_fields)
