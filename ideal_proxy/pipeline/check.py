"""`ideal-proxy check`: what the data looks like before anything is trained."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ideal_proxy.config import SearchConfig, rows_of
from ideal_proxy.data import (
    CUT_SHARE,
    TO_INSTALL,
    TOKENIZER_ROWS,
    ChatTemplate,
    Context,
    DuplicateFinder,
    DuplicateReport,
    Limit,
    ReadSource,
    Row,
    TokenRows,
    can_look,
    choose_context,
    domain_tokenizer,
    likely_format,
    make_template,
    open_source,
    read_rows,
    read_source,
    read_sources,
    rows_by_name,
    tokenize_rows,
)
from ideal_proxy.errors import UserError
from ideal_proxy.pipeline.encoding import encode, row_limit
from ideal_proxy.pipeline.findings import Finding, duplicate_findings, few_references_text, finding_lines, tallied, told
from ideal_proxy.pipeline.prepare import FEW_ROWS, cut_text, few_rows_text, proxy_tokenizer
from ideal_proxy.sections import ProxyConfig
from ideal_proxy.terminal import count_text, paragraph, step, table

COUNTED_ROWS, LEAST_COUNTED = 50_000, 5_000  # rows of all domains that are tokenised, and of each at least


def check_sources(config: SearchConfig) -> dict[str, Any]:
    """Read every source and collect its health."""
    return survey(config).health


class Survey(NamedTuple):
    """What a look at every source found: its health as JSON has it, what occurs twice, and the reference rows."""

    health: dict[str, Any]
    duplicates: DuplicateReport
    references: dict[str, ReadSource]


def survey(
    config: SearchConfig, *, every_row: bool = False, progress: Callable[[str, int, int], None] | None = None
) -> Survey:
    """Read every source once and collect its health; of large sources some rows are tokenised, unless `every_row`."""
    # What is wrong with the model is told before any row is read.
    tokenizer = None if config.proxy.model is None else proxy_tokenizer(config, [])
    references = {entry.name: read_source(entry, config) for entry in config.capabilities}
    finder = DuplicateFinder(
        [entry.name for entry in config.domains], {name: part.rows for name, part in references.items()},
        near=can_look(),
    )  # fmt: skip
    most = sys.maxsize if every_row else max(LEAST_COUNTED, COUNTED_ROWS // len(config.domains))
    domains, samples = {}, {}
    for number, domain in enumerate(config.domains):
        if progress is not None:
            progress("domains", number, len(config.domains))
        reader, sample = open_source(domain, config), RowSample(most, TOKENIZER_ROWS if tokenizer is None else 0)
        for _, row in reader:
            sample.add(row, finder.add(domain.name, row))
        samples[domain.name] = sample
        domains[domain.name] = ReadSource(sample.rows, reader.format, reader.tally)
    if tokenizer is None:
        tokenizer = proxy_tokenizer(config, [sample.first for sample in samples.values()])
    for sample in samples.values():
        sample.first.clear()
    template = make_template(tokenizer)
    encoded = encode(config, template, *rows_by_name(domains, references))
    report = finder.report()
    health: dict[str, Any] = {
        "context": encoded.context.tokens, "context_reason": encoded.context.reason, "model": config.proxy.model,
        "domains": [], "capabilities": [],
    }  # fmt: skip
    findings = duplicate_findings(report)
    for kind, entries, sources, made, which in (
        ("domains", config.domains, domains, encoded.domains, "domain"),
        ("capabilities", config.capabilities, references, encoded.references, "reference rows of"),
    ):
        for entry in entries:
            source, tokens = sources[entry.name], made[entry.name]
            described = _describe(entry.name, tokens, source.tally.rows, len(source.rows))
            described["format"] = source.format.split()[0].partition(":")[0]
            if tokens.cut_share > CUT_SHARE:
                described["too_much_cut"] = cut_text(tokens, encoded.context)
            if kind == "domains":
                described["base"] = config.base.epochs * rows_of(
                    getattr(entry, "base", None), described["rows"], default=described["rows"],
                    what=f"base of {entry.name}",
                )  # fmt: skip
                described["few"] = described["rows"] < FEW_ROWS
            health[kind].append(described)
            findings += [
                Finding(f"{which} {entry.name}", text, act)
                for text, act in _findings(described, source, health, config)
            ]
    findings.sort(key=lambda finding: not finding.act)
    health["findings"], health["act"] = list(map(str, findings)), sum(finding.act for finding in findings)
    health["few_references"] = few_references_text({e["name"]: e["rows"] // 2 for e in health["capabilities"]})
    health["leaks"] = [
        {"capability": c, "domain": d, "rows": count, "of": report.references[c]}
        for (c, d), count in report.leaks.items()
    ]
    health["near_duplicates"] = None if not can_look() else [
        {"capability": c, "domain": d, "rows": near.rows, "of": report.references[c], "example": list(near.example),
         "similarity": round(near.similarity, 4)}
        for (c, d), near in report.near.items()
    ]  # fmt: skip
    health["leaked"] = {capability: len(rows) for capability, rows in report.leaked.items()}
    return Survey(health, report, references)


class RowSample:
    """Rows of one source: all, or of more than `most` those with the smallest fingerprints; and its first ones."""

    def __init__(self, most: int, first: int) -> None:
        self.first: list[Row] = []
        self._most, self._first, self._number = most, first, 0
        self._kept: list[tuple[int, int, Row]] = []
        self._below = 1 << 64

    def add(self, row: Row, mark: int) -> None:
        """Take a row with its fingerprint."""
        if len(self.first) < self._first:
            self.first.append(row)
        if mark < self._below:
            self._kept.append((mark, self._number, row))
            if len(self._kept) > 2 * self._most:
                self._cut()
        self._number += 1

    def _cut(self) -> None:
        self._kept.sort(key=lambda kept: kept[:2])
        del self._kept[self._most :]
        self._below = self._kept[-1][0]

    @property
    def rows(self) -> list[Row]:
        """The rows in the order of the source."""
        if len(self._kept) > self._most:
            self._cut()
        return [row for _, _, row in sorted(self._kept, key=lambda kept: kept[1])]


PREVIEW_ROWS = 2_000  # of each source, by which `preview` tells where rows will be cut


def preview_sources(
    source: SearchConfig | str, model: str | None
) -> tuple[ChatTemplate, dict[str, tuple[str, str]], Context]:
    """Return the template that writes the rows, path and format of every domain, and the context."""
    from ideal_proxy.proxy import Pretrained, load_tokenizer

    if isinstance(source, SearchConfig):
        sources = {entry.name: (entry.path, entry.format) for entry in source.domains}
        judged = [(entry.path, entry.format) for entry in source.capabilities]
        given = source.proxy.context
    else:
        sources, judged = {Path(source).name.split(".")[0] or source: (source, likely_format(source))}, []
        given = None
    if model is not None:
        tokenizer = load_tokenizer(Pretrained(name=model))
    elif isinstance(source, SearchConfig):
        scratch = source.proxy.model is None  # whose tokenizer is trained on the rows
        domains, _ = read_sources(source) if scratch else ({}, {})
        tokenizer = proxy_tokenizer(source, [part.rows for part in domains.values()])
    else:
        vocabulary = ProxyConfig().vocabulary
        assert vocabulary is not None
        tokenizer = domain_tokenizer([list(read_rows(source, format=next(iter(sources.values()))[1]))], vocabulary)
    template = make_template(tokenizer)
    if given is not None:
        return template, sources, Context(given)
    limit = row_limit(source) if isinstance(source, SearchConfig) else Limit()
    tokens = {}
    for n, (path, form) in enumerate([*sources.values(), *judged]):
        with contextlib.suppress(UserError):  # what is wrong with its rows is shown row by row
            some = islice(read_rows(path, format=form, max_bad=-1), PREVIEW_ROWS)
            tokens[str(n)] = tokenize_rows(some, template)
    return template, sources, choose_context(tokens, limit, template.tokenizer.bos_token_id)


def _findings(
    described: dict[str, Any], source: ReadSource, health: dict[str, Any], config: SearchConfig
) -> list[tuple[str, bool]]:
    """Say what is wrong with one source's rows, and whether something is to be done about it."""
    found = []
    about = "about " if described["counted"] < source.tally.rows else ""
    if "too_much_cut" in described and not config.proxy.allow_truncation:
        found.append((described["too_much_cut"], True))
    if described.get("few"):
        found.append((few_rows_text(described["rows"]), True))
    found += tallied(source.tally.lines())
    if described["truncated"]:
        lose = "loses" if described["truncated"] == 1 else "lose"
        cut = f", {described['answers_cut']:,} also of the answer" if described["answers_cut"] else ""
        found.append((
            f"{about}{count_text(described['truncated'], 'row')} longer than {health['context']} tokens "
            f"(proxy.context) {lose} prompt from the left{cut}", False
        ))  # fmt: skip
    return found + told(described["told"], about)


def health_tables(health: dict[str, Any], run_file: str = "mix.yaml") -> str:
    """Lay out the health of the data."""
    header = ("rows", "tokens", "supervised", "median", "longest", "cut")
    lines = []
    for title, kind, more in (("Domains", "domains", ("base",)), ("Capabilities", "capabilities", ())):
        rows = [
            (
                entry["name"], entry["format"], *(f"{entry[name]:,}" for name in more), f"{entry['rows']:,}",
                f"{entry['tokens']:,}", f"{entry['supervised_tokens']:,}", f"{entry['median']:,}",
                f"{'>' * bool(entry['truncated'])}{entry['longest']:,}", f"{entry['truncated']:,}",
            )
            for entry in health[kind]
        ]  # fmt: skip
        lines += [table(title, ("name", "format", *more, *header), rows, left=2), ""]
    whose = "the proxies' model" if health.get("model") else "a tokenizer trained on these domains"
    text = f"Context: {health['context']:,} tokens, {health['context_reason']}."
    sampled = [entry["counted"] for entry in health["domains"] if entry["counted"] < entry["read"]]
    if sampled:
        text += f" Tokens of larger domains are estimated from {max(sampled):,} rows of each; --every-row counts all."
    lines += [paragraph(text), ""]
    notes = [f"- {health['few_references']}"] if health["few_references"] else []
    notes += [] if health["near_duplicates"] is not None else [
        f"Near-duplicates of reference rows were not looked for; to have them found: {TO_INSTALL}"
    ]  # fmt: skip
    nothing = "- no duplicates, no leaks, nothing cut"
    said = finding_lines(health["findings"], health["act"]) or [nothing]
    lines += [f"Found (tokens of {whose}):", *said, *map(paragraph, notes)]
    if health["leaked"]:
        lines += [step("Mend: ", f"check {run_file} --fix", "writes the reference sets without them")]
    return "\n".join(lines)


def _describe(name: str, tokens: TokenRows, read: int, counted: int) -> dict[str, Any]:
    """Describe a source of `read` rows by the tokens of `counted` of them."""
    share = read / max(counted, 1)

    def scaled(count: int) -> int:
        return round(count * share)

    return {
        "name": name,
        "rows": scaled(len(tokens)),
        "read": read,
        "counted": counted,
        "tokens": scaled(int(tokens.lengths.sum())),
        "supervised_tokens": scaled(int(tokens.supervised_tokens.sum())),
        "median": int(np.median(tokens.lengths)) if len(tokens) else 0,
        "longest": int(tokens.lengths.max()) if len(tokens) else 0,
        "truncated": scaled(tokens.truncated),
        "answers_cut": scaled(tokens.answers_cut),
        "dropped": scaled(tokens.dropped),
        "refused": scaled(tokens.refused),
        "told": {what: scaled(count) for what, count in tokens.told.items()},
        "supervised_cut": scaled(tokens.supervised_cut),
    }
