"""`ideal-proxy check`: what the data looks like before anything is trained."""

from __future__ import annotations

import contextlib
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ideal_proxy.config import ProxyConfig, SearchConfig, rows_of
from ideal_proxy.data import (
    CUT_SHARE,
    ChatTemplate,
    Context,
    Limit,
    TokenRows,
    choose_context,
    domain_tokenizer,
    find_duplicates,
    likely_format,
    make_template,
    read_rows,
    read_sources,
    rows_by_name,
    tally_lines,
    tokenize_rows,
    told_lines,
)
from ideal_proxy.errors import UserError
from ideal_proxy.pipeline.encoding import encode, row_limit
from ideal_proxy.pipeline.prepare import FEW_ROWS, cut_text, duplicate_lines, few_rows_text, proxy_tokenizer
from ideal_proxy.terminal import paragraph, table


def check_sources(config: SearchConfig) -> dict[str, Any]:
    """Read and tokenise every source and collect its health."""
    # What is wrong with the model is told before any row is read.
    tokenizer = None if config.proxy.model is None else proxy_tokenizer(config, [])
    domains, references = read_sources(config)
    if tokenizer is None:
        tokenizer = proxy_tokenizer(config, [source.rows for source in domains.values()])
    template = make_template(tokenizer)
    encoded = encode(config, template, *rows_by_name(domains, references))
    health: dict[str, Any] = {
        "context": encoded.context.tokens, "context_reason": encoded.context.reason, "model": config.proxy.model,
        "domains": [], "capabilities": [],
    }  # fmt: skip
    for kind, entries, sources, made in (
        ("domains", config.domains, domains, encoded.domains),
        ("capabilities", config.capabilities, references, encoded.references),
    ):
        for entry in entries:
            source = sources[entry.name]
            tokens = made[entry.name]
            described = _describe(entry.name, tokens) | {"format": source.format.split()[0].partition(":")[0]}
            if tokens.cut_share > CUT_SHARE:
                described["too_much_cut"] = cut_text(tokens, encoded.context)
            if kind == "domains":
                described["base"] = config.base.epochs * rows_of(
                    getattr(entry, "base", None), len(tokens), default=len(tokens), what=f"base of {entry.name}"
                )
                described["few"] = len(tokens) < FEW_ROWS
            health[kind].append(described)
    health["findings"] = tally_lines(domains, references)
    health["findings"] += duplicate_lines(find_duplicates(*rows_by_name(domains, references)))
    for kind, which in (("domains", "domain"), ("capabilities", "reference rows of")):
        for described in health[kind]:
            health["findings"] += [
                f"{which} {described['name']}: {text}" for text in _findings(described, health, config)
            ]
    return health


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


def _findings(described: dict[str, Any], health: dict[str, Any], config: SearchConfig) -> list[str]:
    """Say what is wrong with one source's rows."""
    found = []
    if described["truncated"]:
        cut = f", {described['answers_cut']:,} also of the answer" if described["answers_cut"] else ""
        found.append(
            f"{described['truncated']:,} longer than {health['context']} tokens (proxy.context): they lose prompt "
            f"from the left{cut}"
        )
    if described.get("few"):
        found.append(few_rows_text(described["rows"]))
    if "too_much_cut" in described and not config.proxy.allow_truncation:
        found.append(described["too_much_cut"])
    found += told_lines(described["told"])
    return found


def health_tables(health: dict[str, Any]) -> str:
    """Lay out the health of the data."""
    header = ("rows", "tokens", "supervised", "median", "longest", "cut")
    lines = []
    for title, kind, more in (("Domains", "domains", ("base",)), ("Capabilities", "capabilities", ())):
        rows = [
            (
                entry["name"], entry["format"], *(f"{entry[name]:,}" for name in more), f"{entry['rows']:,}",
                f"{entry['tokens']:,}", f"{entry['supervised_tokens']:,}", f"{entry['median']:,}",
                f"{entry['longest']:,}", f"{entry['truncated']:,}",
            )
            for entry in health[kind]
        ]  # fmt: skip
        lines += [table(title, ("name", "format", *more, *header), rows, left=2), ""]
    findings = [paragraph(f"- {line}") for line in health["findings"]] or ["- no duplicates, no leaks, nothing cut"]
    whose = "the proxies' model" if health.get("model") else "a tokenizer trained on these domains"
    context = paragraph(f"Context: {health['context']:,} tokens, {health['context_reason']}.")
    return "\n".join([*lines, context, "", f"Found (tokens of {whose}):", *findings])


def _describe(name: str, tokens: TokenRows) -> dict[str, Any]:
    return {
        "name": name,
        "rows": len(tokens),
        "tokens": int(tokens.lengths.sum()),
        "supervised_tokens": int(tokens.supervised_tokens.sum()),
        "median": int(np.median(tokens.lengths)) if len(tokens) else 0,
        "longest": int(tokens.lengths.max()) if len(tokens) else 0,
        "truncated": tokens.truncated,
        "answers_cut": tokens.answers_cut,
        "dropped": tokens.dropped,
        "refused": tokens.refused,
        "told": tokens.told,
        "supervised_cut": tokens.supervised_cut,
    }
