"""The sources that a run file names, each read once: rows of every domain and capability, and their tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ideal_proxy.config import SearchConfig
from ideal_proxy.data.messages import Row
from ideal_proxy.data.rows import SourceReader, Told
from ideal_proxy.data.tally import Tally
from ideal_proxy.data.tokenizer import train_tokenizer
from ideal_proxy.sections import CapabilityConfig, DomainConfig
from ideal_proxy.store import atomic_write_bytes

TOKENIZER_ROWS = 20_000  # rows of a domain that train the tokenizer


@dataclass(frozen=True, slots=True)
class ReadSource:
    """One source, read: its rows with an answer, the format found, what was used and what was left out."""

    rows: list[Row]
    format: str
    tally: Tally


def read_sources(
    config: SearchConfig, *, bad_rows: Path | None = None
) -> tuple[dict[str, ReadSource], dict[str, ReadSource]]:
    """Read every domain and every capability once, by name; rows that cannot be read are written to `bad_rows`."""
    parts: list[dict[str, ReadSource]] = []
    bad: list[str] = []
    try:
        for entries in (config.domains, config.capabilities):
            parts.append({entry.name: read_source(entry, config, bad.append) for entry in entries})
    finally:
        if bad_rows is not None:
            bad_rows.unlink(missing_ok=True)
        if bad and bad_rows is not None:
            text = "".join(line + "\n" for line in bad)
            atomic_write_bytes(bad_rows, text.encode(errors="backslashreplace"))  # half a character as its escape
    return parts[0], parts[1]


def open_source(entry: DomainConfig | CapabilityConfig, config: SearchConfig, told: Told | None = None) -> SourceReader:
    """Open one domain or capability; `told` is told of every row that cannot be read."""
    return SourceReader(
        entry.path, format=entry.format, on_bad_rows=config.on_bad_rows, max_bad=config.max_bad, told=told, quiet=True
    )


def read_source(entry: DomainConfig | CapabilityConfig, config: SearchConfig, told: Told | None = None) -> ReadSource:
    """Read one domain or capability."""
    reader = open_source(entry, config, told)
    rows = [row for _, row in reader]
    return ReadSource(rows, reader.format, reader.tally)


def rows_by_name(*parts: dict[str, ReadSource]) -> list[dict[str, list[Row]]]:
    """Give the rows alone."""
    return [{name: source.rows for name, source in part.items()} for part in parts]


def tally_lines(domains: dict[str, ReadSource], references: dict[str, ReadSource]) -> list[str]:
    """Say what was used and left out of every source."""
    return [
        f"{which} {name}: {line}"
        for which, part in (("domain", domains), ("reference rows of", references))
        for name, source in part.items()
        for line in source.tally.lines()
    ]


def domain_tokenizer(domains: Iterable[Sequence[Row]], vocabulary: int) -> Any:
    """Train the tokenizer of scratch proxies on the domains; the same rows give the same tokenizer everywhere."""
    texts = (turn.flat() for rows in domains for row in rows[:TOKENIZER_ROWS] for turn in row.messages)
    return train_tokenizer(texts, vocabulary)
