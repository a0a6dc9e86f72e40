"""Rows that occur twice: within a domain, in two domains, and reference rows that also stand in a domain."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ideal_proxy.data.rows import Row


@dataclass(frozen=True, slots=True)
class DuplicateReport:
    """Counts of rows that are equal after white space and case are evened out.

    Attributes:
        within: for a domain, its rows that repeat an earlier row of it.
        between: for two domains (in the order given), rows of the second that stand in the first.
        leaks: for a reference set and a domain, reference rows that stand in the domain, prompt and answer.
        prompt_leaks: the same by the prompt alone; contains the leaks.
        two_minds: rows without thoughts that ask what a row with thoughts asks, in any domain.
        told_apart: whether `enable_thinking` of the chat template tells all of these from the others.
        examples: for each leak (by prompt), one reference row's place and the domain row's place.
    """

    within: dict[str, int] = field(default_factory=dict)
    between: dict[tuple[str, str], int] = field(default_factory=dict)
    leaks: dict[tuple[str, str], int] = field(default_factory=dict)
    prompt_leaks: dict[tuple[str, str], int] = field(default_factory=dict)
    examples: dict[tuple[str, str], tuple[str, str]] = field(default_factory=dict)
    two_minds: int = 0
    told_apart: bool = True

    @property
    def any(self) -> bool:
        """Whether anything was found."""
        return any(sum(counts.values()) for counts in (self.within, self.between, self.prompt_leaks))


def find_duplicates(
    domains: Mapping[str, Sequence[Row]], references: Mapping[str, Sequence[Row]] | None = None
) -> DuplicateReport:
    """Count duplicates within and between domains, and reference rows that stand in a domain.

    Args:
        domains: rows of every domain.
        references: rows of every reference set.

    Returns:
        DuplicateReport: pairs with a count of 0 are left out; every domain stands in `within`.
    """
    whole = {name: [_whole(row) for row in rows] for name, rows in domains.items()}
    sets = {name: set(marks) for name, marks in whole.items()}
    within = {name: len(marks) - len(sets[name]) for name, marks in whole.items()}
    between: dict[tuple[str, str], int] = {}
    names = list(domains)
    for n, first in enumerate(names):
        for second in names[n + 1 :]:
            both = sum(mark in sets[first] for mark in whole[second])
            if both:
                between[first, second] = both
    leaks: dict[tuple[str, str], int] = {}
    prompt_leaks: dict[tuple[str, str], int] = {}
    examples: dict[tuple[str, str], tuple[str, str]] = {}
    if references:
        prompts = {name: {prompt_mark(row): row.where for row in reversed(rows)} for name, rows in domains.items()}
        for reference, rows in references.items():
            marks = [(row.where, _whole(row), prompt_mark(row)) for row in rows]
            for domain in names:
                exact = sum(mark in sets[domain] for _, mark, _ in marks)
                asked = [(where, prompt) for where, _, prompt in marks if prompt in prompts[domain]]
                if exact:
                    leaks[reference, domain] = exact
                if asked:
                    prompt_leaks[reference, domain] = len(asked)
                    examples[reference, domain] = (asked[0][0], prompts[domain][asked[0][1]])
    return DuplicateReport(within, between, leaks, prompt_leaks, examples, *_two_minds(domains))


def _two_minds(domains: Mapping[str, Sequence[Row]]) -> tuple[int, bool]:
    """Count rows without thoughts that ask what one with thoughts asks, and see whether a setting tells them apart."""
    thinking = {prompt_mark(row) for rows in domains.values() for row in rows if thinks(row)}
    if not thinking:
        return 0, True
    others = [row for rows in domains.values() for row in rows if not thinks(row) and prompt_mark(row) in thinking]
    return len(others), all(switch(row) is False for row in others)


def switch(row: Row) -> bool | None:
    """Whether a row's settings turn thoughts on or off; None where they say nothing of it."""
    said = (row.settings.get(name) for name in ("enable_thinking", "thinking"))
    return next((value for value in said if isinstance(value, bool)), None)


def thinks(row: Row) -> bool:
    """Whether a row is of the thinking kind: by its settings, else by what its answers hold."""
    asked = switch(row)
    thoughts = any(turn.role == "assistant" and (turn.thoughts or "<think>" in turn.content) for turn in row.messages)
    return thoughts if asked is None else asked


def _whole(row: Row) -> bytes:
    said = [_even(turn.flat()) for turn in row.messages]  # with the system text: rows that differ in it are no twins
    settings = [str(sorted(row.settings.items()))] if row.settings else []
    return _mark("\x1f".join([*said, *map(str, row.tools), *settings]))


def prompt_mark(row: Row) -> bytes:
    """Fingerprint of what the assistant is asked, white space and case evened out."""
    last = max((n for n, turn in enumerate(row.messages) if turn.role == "assistant"), default=len(row.messages))
    said = (turn for turn in row.messages[:last] if turn.role != "system")
    return _mark("\x1f".join(_even(turn.flat()) for turn in said))


def _even(text: str) -> str:
    return " ".join(text.casefold().split())


def _mark(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
