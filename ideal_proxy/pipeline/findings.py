"""What a look at the data found: what changes a result first, the rest behind it and folded together."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ideal_proxy.data import DuplicateReport, told_lines
from ideal_proxy.terminal import Reporter, count_text, paragraph

FEW_REFERENCE_ROWS = 200  # in the verify half; fewer make the verdict noisy

UNFAIR = 0.05  # of a capability's reference rows; with more of them among the training rows its loss is no judge
NO_JUDGE = "no fair judge"
MOST_WORDS = 3  # of what a source is, before its name: "reference rows of"
NOT_USED = ": not used: "
FOLDED = 3  # sources of which the same is said in a line each; more share one


class Finding(NamedTuple):
    """One thing that was found: of which source, and whether it asks for something to be done."""

    source: str
    text: str
    act: bool = False

    def __str__(self) -> str:
        return f"{self.source}: {self.text}" if self.source else self.text


def duplicate_findings(report: DuplicateReport) -> list[Finding]:
    """Say what the duplicate search found, a sentence for each capability and each pair of domains."""
    found = []
    for capability, of in report.references.items():
        equal = report.equal.get(capability, set())
        if equal:
            domains = {domain: count for (name, domain), count in report.leaks.items() if name == capability}
            found.append(Finding("", leak_text(len(equal), of, capability, domains), True))
        near = {domain: rows for (name, domain), rows in report.near.items() if name == capability}
        if near:
            count = len(report.leaked[capability] - equal)
            best = max(near.values(), key=lambda rows: rows.similarity)
            text = leak_text(count, of, capability, {d: rows.rows for d, rows in near.items()}, "nearly ")
            pair = f"most alike, {best.similarity:.0%}: {best.example[0]} and {best.example[1]}"
            found.append(Finding("", f"{text} ({pair})", True))
    if report.two_minds:
        apart = "; enable_thinking tells them apart" if report.told_apart else (
            ", and nothing tells the model which to give: give them chat_template_kwargs: {enable_thinking: false}"
        )  # fmt: skip
        rows = count_text(report.two_minds, "row")
        text = f"{rows} without thoughts ask what rows with thoughts ask too{apart}"
        found.append(Finding("", text, not report.told_apart))
    if len(report.between) > FOLDED:
        pairs = ", ".join(f"{a} and {b} {count:,}" for (a, b), count in report.between.items())
        found.append(Finding("", f"equal rows in two domains: {pairs}"))
    else:
        for (a, b), count in report.between.items():
            found.append(Finding("", f"{a} and {b} share {count_text(count, 'equal row')}"))
    within = {name: count for name, count in report.within.items() if count}
    if len(within) > FOLDED:
        found.append(Finding("", "rows that repeat another row of their domain: " + _listed(within)))
    else:
        for name, count in within.items():
            found.append(
                Finding("", f"{name}: {count:,} {'row repeats' if count == 1 else 'rows repeat'} another row of it")
            )
    return found


def leak_text(count: int, of: int, capability: str, domains: Mapping[str, int], nearly: str = "") -> str:
    """Say how many reference rows domains train on, and what that does."""
    stand = "stands" if count == 1 else "stand"
    where = f"domain {next(iter(domains))}" if len(domains) == 1 else f"domains ({_listed(domains)})"
    harm = f"its loss is {NO_JUDGE}" if count >= UNFAIR * of else "its loss is a little too good"
    return f"{count:,} of {count_text(of, 'reference row')} of {capability} {stand} {nearly}in {where}: {harm}"


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def few_references_text(rows: Mapping[str, int]) -> str:
    """Say which capabilities have few reference rows for the verdict; empty where none has."""
    few = ", ".join(f"{name} {count:,}" for name, count in rows.items() if count < FEW_REFERENCE_ROWS)
    return f"under {FEW_REFERENCE_ROWS} reference rows for the verdict, which makes it noisy: {few}" if few else ""


def told(described: Mapping[str, int], about: str = "") -> list[tuple[str, bool]]:
    """Say what a chat template made of rows; rows that it leaves out ask for something to be done."""
    return [(about + line, ": left out, " in line) for line in told_lines(described)]


def tallied(lines: Sequence[str]) -> list[tuple[str, bool]]:
    """Tell what reading a source left out because it could not be read from what it only counted."""
    return [(line, " cannot be read: " in line) for line in lines]


def tell(findings: Sequence[Finding], reporter: Reporter) -> None:
    """Write findings to the log one by one; show those that ask for something, then the others, folded."""
    for finding in findings:
        reporter.record(f"warning: {finding}" if finding.act else str(finding))
    for finding in findings:
        if finding.act:
            reporter.show(f"warning: {finding}")
    for line in folded([str(finding) for finding in findings if not finding.act]):
        reporter.show(line)


def folded(findings: Sequence[str]) -> list[str]:
    """Let findings share a line: those that say the same, and those that say it of many sources but for numbers."""
    unread = [finding for finding in findings if NOT_USED in finding]
    if len(unread) > FOLDED:
        first = findings.index(unread[0])
        findings = [finding for finding in findings if NOT_USED not in finding]
        return [*folded(findings[:first]), _not_used(unread), *folded(findings[first:])]
    alike: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for finding in findings:
        source, mark, text = finding.partition(": ")
        kind, _, name = source.rpartition(" ")
        if not mark or len(kind.split()) > MOST_WORDS:  # a sentence with a colon in it
            kind, name, text = "", "", finding
        alike.setdefault((kind, re.sub(r"[\d.,]+", "#", text)), []).append((name, text))
    lines = []
    for (kind, _), same in alike.items():
        names, texts = [name for name, _ in same], [text for _, text in same]
        if len(set(texts)) == 1:
            lines.append(f"{kind} {', '.join(names)}: {texts[0]}".strip(" ") if names[0] else texts[0])
        elif len(same) <= FOLDED or not names[0]:
            lines += [f"{kind} {name}: {text}".strip(" ") if name else text for name, text in same]
        else:
            lines.append(
                f"{kind} {names[0]}: {texts[0]} (and so, with other numbers: {', '.join(names[1:])})".strip(" ")
            )
    return lines


def _not_used(findings: Sequence[str]) -> str:
    """Name the columns that nothing reads, each once, with the domains (or capabilities) that have it."""
    found: dict[str, list[str]] = {}
    for finding in findings:
        source, _, columns = finding.partition(NOT_USED)
        name = source.rpartition(" ")[2]
        for column in re.findall(r"(?:^|, )(.+?) \([\d,]+ rows?\)", columns):
            if name not in found.setdefault(column, []):
                found[column].append(name)
    return "not used: " + ", ".join(f"{column} ({', '.join(names)})" for column, names in found.items())


def finding_lines(findings: Sequence[str], act: int) -> list[str]:
    """Lay findings out: the first `act`, then the others, folded."""
    acts, others = (["- " + line for line in part] for part in (findings[:act], folded(findings[act:])))
    return [*map(paragraph, acts), *(["Good to know:"] if acts and others else []), *map(paragraph, others)]
