"""Rows that occur twice: within a domain, in two domains, and reference rows that also stand in a domain."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import xxhash
from numpy.typing import NDArray

from ideal_proxy.data.messages import Row
from ideal_proxy.data.near_duplicates import NearDuplicateFinder

Marks = NDArray[np.uint64]
BLOCK = 1 << 20  # fingerprints looked up at once


@dataclass(frozen=True, slots=True)
class NearRows:
    """Reference rows of one set that are like rows of one domain."""

    rows: int  # how many, those that are equal left out
    example: tuple[str, str]  # places of the pair that is most alike: the reference row, the domain's row
    similarity: float  # of that pair, between 0 and 1


@dataclass(frozen=True, slots=True)
class DuplicateReport:
    """Counts of rows that are equal after white space and case are evened out."""

    within: dict[str, int] = field(default_factory=dict)  # for a domain, its rows that repeat an earlier row of it
    # for two domains (in the order given), rows of the second that stand in the first
    between: dict[tuple[str, str], int] = field(default_factory=dict)
    # for a reference set and a domain, reference rows that stand in the domain, prompt and answer
    leaks: dict[tuple[str, str], int] = field(default_factory=dict)
    prompt_leaks: dict[tuple[str, str], int] = field(default_factory=dict)  # the same by the prompt alone
    # for each leak (by prompt), one reference row's place and the domain row's place
    examples: dict[tuple[str, str], tuple[str, str]] = field(default_factory=dict)
    # for a reference set and a domain, reference rows that are like rows of the domain; as far as looked for
    near: dict[tuple[str, str], NearRows] = field(default_factory=dict)
    # for a reference set, the numbers of its rows that stand in a domain, equal or nearly
    leaked: dict[str, set[int]] = field(default_factory=dict)
    equal: dict[str, set[int]] = field(default_factory=dict)  # of these, those that are equal to a row of a domain
    references: dict[str, int] = field(default_factory=dict)  # rows of every reference set
    two_minds: int = 0  # rows without thoughts that ask what a row with thoughts asks, in any domain
    told_apart: bool = True  # whether `enable_thinking` of the chat template tells all of these from the others

    @property
    def any(self) -> bool:
        """Whether anything was found."""
        return any(sum(counts.values()) for counts in (self.within, self.between, self.prompt_leaks))


def find_duplicates(
    domains: Mapping[str, Sequence[Row]], references: Mapping[str, Sequence[Row]] | None = None
) -> DuplicateReport:
    """Count duplicates within and between domains, and reference rows that stand in a domain."""
    finder = DuplicateFinder(list(domains), references or {})
    for name, rows in domains.items():
        for row in rows:
            finder.add(name, row)
    return finder.report()


class DuplicateFinder:
    """Takes rows of domains one by one, of which it keeps eight or sixteen bytes each; says what occurs twice."""

    def __init__(self, domains: Sequence[str], references: Mapping[str, Sequence[Row]], *, near: bool = False) -> None:
        said = {name: [_Said(row) for row in rows] for name, rows in references.items()}
        self._near = NearDuplicateFinder({n: [row.text for row in rows] for n, rows in said.items()}) if near else None
        self._references = {name: [(row.where, row.whole, row.prompt) for row in rows] for name, rows in said.items()}
        self._asked = {prompt for rows in self._references.values() for _, _, prompt in rows}
        self._whole = {name: array("Q") for name in domains}
        self._places: dict[str, dict[int, str]] = {
            name: {} for name in domains
        }  # by domain: the first row that asks what a reference row asks
        self._thinking, self._others, self._off = array("Q"), array("Q"), bytearray()

    def add(self, domain: str, row: Row) -> int:
        """Look at one row of a domain, and return the fingerprint of all that it says."""
        said = _Said(row)
        self._whole[domain].append(said.whole)
        if said.prompt in self._asked:
            self._places[domain].setdefault(said.prompt, row.where)
        if thinks(row):
            self._thinking.append(said.prompt)
        else:
            self._others.append(said.prompt)
            self._off.append(switch(row) is False)
        if self._near is not None:
            self._near.add(domain, row.where, said.text)
        return said.whole

    def report(self) -> DuplicateReport:
        """Say what was found."""
        marks = {name: np.frombuffer(found, dtype=np.uint64) for name, found in self._whole.items()}
        for found in marks.values():
            found.sort()  # in place, for a copy of the marks of fifty million rows is large
        report = DuplicateReport({name: int((found[1:] == found[:-1]).sum()) for name, found in marks.items()})
        names = list(marks)
        for n, first in enumerate(names):
            for second in names[n + 1 :]:
                if both := sum(int(part.sum()) for part in _among(marks[second], marks[first])):
                    report.between[first, second] = both
        for reference, rows in self._references.items():
            report.references[reference] = len(rows)
            whole = np.array([whole for _, whole, _ in rows], dtype=np.uint64)
            for domain in names:
                exact = np.flatnonzero(np.concatenate([*_among(whole, marks[domain]), []])).tolist()
                asked = [(where, prompt) for where, _, prompt in rows if prompt in self._places[domain]]
                if exact:
                    report.leaks[reference, domain] = len(exact)
                    report.leaked.setdefault(reference, set()).update(exact)
                    report.equal.setdefault(reference, set()).update(exact)
                if asked:
                    report.prompt_leaks[reference, domain] = len(asked)
                    report.examples[reference, domain] = (asked[0][0], self._places[domain][asked[0][1]])
                self._add_near(report, reference, domain, set(exact))
        thinking = np.frombuffer(self._thinking, dtype=np.uint64)
        thinking.sort()
        both, apart, off = 0, True, np.frombuffer(self._off, dtype=np.bool_)
        for n, twin in enumerate(_among(np.frombuffer(self._others, dtype=np.uint64), thinking)):
            both += int(twin.sum())
            apart = apart and bool(off[n * BLOCK : n * BLOCK + len(twin)][twin].all())
        return replace(report, two_minds=both, told_apart=apart)

    def _add_near(self, report: DuplicateReport, reference: str, domain: str, exact: set[int]) -> None:
        """Add the near-duplicates of one reference set in one domain; equal rows are none."""
        if self._near is None:
            return
        self._near.finish()
        found = {n: row for (name, n, where), row in self._near.found.items() if (name, where) == (reference, domain)}
        found = {n: found[n] for n in sorted(found.keys() - exact)}
        if found:
            n = max(found, key=lambda n: found[n].similarity)
            place = self._references[reference][n][0]
            report.near[reference, domain] = NearRows(len(found), (place, found[n].where), found[n].similarity)
            report.leaked.setdefault(reference, set()).update(found)


def _among(values: Marks, ordered: Marks) -> Iterator[NDArray[np.bool_]]:
    """Say of values, a block at a time, which are among others that are in order."""
    for first in range(0, len(values), BLOCK):
        part = values[first : first + BLOCK]
        place = np.searchsorted(ordered, part)
        yield np.isin(part, ordered[:0]) if not len(ordered) else ordered[np.minimum(place, len(ordered) - 1)] == part


def switch(row: Row) -> bool | None:
    """Whether a row's settings turn thoughts on or off; None where they say nothing of it."""
    said = (row.settings.get(name) for name in ("enable_thinking", "thinking"))
    return next((value for value in said if isinstance(value, bool)), None)


def thinks(row: Row) -> bool:
    """Whether a row is of the thinking kind: by its settings, else by what its answers hold."""
    asked = switch(row)
    thoughts = any(turn.role == "assistant" and (turn.thoughts or "<think>" in turn.content) for turn in row.messages)
    return thoughts if asked is None else asked


class _Said:
    """What a row says, white space and case evened out: its text, and fingerprints of all of it and of its prompt."""

    __slots__ = ("prompt", "text", "where", "whole")

    def __init__(self, row: Row) -> None:
        said = [
            _even(turn.flat()) for turn in row.messages
        ]  # with the system text: rows that differ in it are no twins
        settings = [str(sorted(row.settings.items()))] if row.settings else []
        self.where = row.where
        self.whole = _mark("\x1f".join([*said, *map(str, row.tools), *settings]))
        self.prompt = _asked(row, said)
        self.text = "\x1f".join(text for text, turn in zip(said, row.messages, strict=True) if turn.role != "system")


def prompt_mark(row: Row) -> int:
    """Fingerprint of what the assistant is asked, white space and case evened out."""
    return _asked(row, [_even(turn.flat()) for turn in row.messages])


def _asked(row: Row, said: Sequence[str]) -> int:
    last = max((n for n, turn in enumerate(row.messages) if turn.role == "assistant"), default=len(said))
    return _mark("\x1f".join(said[n] for n in range(last) if row.messages[n].role != "system"))


def _even(text: str) -> str:
    return " ".join(text.casefold().split())


def _mark(text: str) -> int:
    return xxhash.xxh3_64_intdigest(text.encode())
