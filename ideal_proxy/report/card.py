"""A search's result as Markdown for a pull request or a paper, and two searches side by side."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ideal_proxy.pipeline import SearchRun
from ideal_proxy.report.full_size import HEADER, full_size_rows, full_size_text, scale_ups
from ideal_proxy.report.steps import proxy_text
from ideal_proxy.report.text import says, who_pays
from ideal_proxy.terminal import change_text, harmless, interval_text, paragraph, sentence, table


def mixture_card(run: SearchRun) -> str:
    """Write data, volumes, verdict, prediction, limits and command of a search as Markdown."""
    result, verdict = run.result, run.result["verdict"]
    prepared = {fact.name: fact for fact in run.prepared.facts}
    volumes = [
        (
            entry["name"], Path(prepared[entry["name"]].source).name, prepared[entry["name"]].fingerprint[:16],
            f"{entry['available']:,}", f"{entry['base_rows']:,}", f"{entry['proposal_rows']:,}",
            change_text(entry["change"]), f"{entry['share']:.1%}", f"{entry['repeat']:.2f}×",
        )
        for entry in result["domains"]
    ]  # fmt: skip
    losses = [
        (
            entry["name"], f"{entry['base_loss']:.4f}", f"{entry['predicted']['value'] - 1:+.2%}",
            f"{entry['verified']['value'] - 1:+.2%}", interval_text(entry["verified"], less=1), says(entry),
        )
        for entry in result["capabilities"]
    ]  # fmt: skip
    limits = result["optimum"]["active"]
    versions = ", ".join(f"{name} {number}" for name, number in run.provenance.get("versions", {}).items())
    kept = "" if run.adopted else " The proposal was not adopted: the mixture file keeps the base."
    return "\n".join([
        f"# Mixture card: {_plain(result['name'])}",
        "",
        f"**{_plain(sentence(verdict['sentence']))}**{kept}",
        *(["", _plain(sentence(price))] if (price := who_pays(result)) else []),
        "",
        "## Volumes",
        "",
        *_markdown(
            ("domain", "data", "SHA-256, first 16", "available", "base rows", "rows", "change", "share of tokens",
             "repeat"), volumes, 3,
        ),
        "",
        "## Loss against base",
        "",
        "Verified: fresh seeds, reference rows that the search never saw. Predicted: from the fit.",
        "",
        *_markdown(("capability", "at base, nats", "predicted", "verified", "interval", "says"), losses, 1),
        "",
        f"Predicted gain {result['predicted_gain']['value']:+.2%} {interval_text(result['predicted_gain'])}, verified "
        f"{verdict['gain']['value']:+.2%} {interval_text(verdict['gain'])} over {verdict['pairs']} pairs of runs.",
        "",
        *_at_full_size(run),
        "## Limits of this result",
        "",
        f"- Measured on {_plain(proxy_text(result['proxy']))}: the direction of a full-size model, not its losses.",
        f"- Limits that bind: {_plain(', '.join(limits)) or 'none'}. {_plain(sentence(result['optimum']['scope']))}",
        *(f"- {_plain(sentence(warning))}" for warning in result["warnings"]),
        "",
        "## Repeat",
        "",
        "```",
        harmless(str(run.provenance.get("command", ""))).replace("```", "'''"),
        "```",
        "",
        f"Seed {run.config.seed}; {_plain(versions)}.",
        "",
    ])  # fmt: skip


def _at_full_size(run: SearchRun) -> list[str]:
    """Write what scale-ups of this mixture showed, where there are any."""
    if not (found := scale_ups(run.folder)):
        return []
    table_lines = _markdown(HEADER, full_size_rows(found), 2)
    return ["## At full size", "", *table_lines, "", _plain(sentence(full_size_text(found))), ""]


def comparison_tables(first: SearchRun, second: SearchRun) -> str:
    """Lay two searches side by side, by the names of domains and capabilities, in 80 columns."""
    both = (first, second)
    letters = ("A", "B")
    domains = _side_by_side(
        both, "domains",
        lambda entry: (f"{entry['proposal_rows']:,}", change_text(entry["change"]), f"{entry['share']:.1%}"),
    )  # fmt: skip
    capabilities = _side_by_side(
        both, "capabilities",
        lambda entry: (f"{entry['verified']['value'] - 1:+.1%}", interval_text(entry["verified"], "+.1%", less=1)),
    )  # fmt: skip
    apart = [
        name for name in first.domains
        if name in second.domains and _fact(first, name).fingerprint != _fact(second, name).fingerprint
    ]  # fmt: skip
    return "\n".join([
        *(
            paragraph(f"{letter}: {run.folder}: {run.result['verdict']['sentence']}.")
            for letter, run in zip(letters, both, strict=True)
        ),
        *([paragraph(f"Other rows in A than in B: {', '.join(apart)}.")] if apart else []),
        *_nothing_in_common(first, second),
        "",
        table(
            "Proposed rows, change from base, share of tokens",
            ("domain", "A", "A change", "A share", "B", "B change", "B share"), domains,
        ),
        "",
        table(
            "Verified loss against each one's own base",
            ("capability", "A", "A interval", "B", "B interval"), capabilities,
        ),
        paragraph("Each is against its own base: they compare only where base and reference rows are equal."),
    ])  # fmt: skip


def _nothing_in_common(first: SearchRun, second: SearchRun) -> list[str]:
    parts = (("domain", "domains"), ("capability", "capabilities"))
    named = {part: [{entry["name"] for entry in run.result[part]} for run in (first, second)] for _, part in parts}
    lacks = " and ".join(f"no {word}" for word, part in parts if not set.intersection(*named[part]))
    return [paragraph(f"A and B have {lacks} in common: they answer different questions.")] if lacks else []


def comparison_values(first: SearchRun, second: SearchRun) -> dict[str, Any]:
    """Give what the tables show as JSON values."""
    keys = ("name", "verdict", "predicted_gain", "domains", "capabilities")
    return {
        letter: {"folder": str(run.folder)} | {key: run.result[key] for key in keys}
        for letter, run in (("a", first), ("b", second))
    }


def _fact(run: SearchRun, name: str) -> Any:
    return run.prepared.facts[run.domains.index(name)]


def _side_by_side(
    runs: Sequence[SearchRun], part: str, cells: Callable[[dict[str, Any]], tuple[str, ...]]
) -> list[tuple[str, ...]]:
    """Give a line for every name that either search has; '-' where one lacks it."""
    entries = [{entry["name"]: entry for entry in run.result[part]} for run in runs]
    width = len(cells(next(iter(entries[0].values()))))
    return [
        (name, *(cell for known in entries for cell in (cells(known[name]) if name in known else ("-",) * width)))
        for name in dict.fromkeys([*entries[0], *entries[1]])
    ]


def _plain(text: str) -> str:
    """Write text of strangers so that Markdown and HTML show it as it is."""
    return re.sub(r"([\\`*_{}\[\]<>#|&$~])", r"\\\1", harmless(str(text)).replace("\n", " "))


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> list[str]:
    rule = [":---" if k < left else "---:" for k in range(len(header))]
    lines = [header, rule, *([_plain(cell) for cell in row] for row in rows)]
    return [f"| {' | '.join(line)} |" for line in lines]
