"""The sources that a run file names, each read once: rows of every domain and capability, and their tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ideal_proxy.config import SearchConfig
from ideal_proxy.data.rows import Row, SourceReader
from ideal_proxy.data.template import train_tokenizer
from ideal_proxy.errors import UserError

TOKENIZER_ROWS = 20_000  # rows of a domain that train the tokenizer


@dataclass(frozen=True, slots=True)
class ReadSource:
    """One source, read: its rows with an answer, the format found, and how many rows were left out."""

    rows: list[Row]
    format: str
    without_answer: int


def read_sources(config: SearchConfig) -> tuple[dict[str, ReadSource], dict[str, ReadSource]]:
    """Read every domain and every capability once, by name; a source without rows is refused."""
    parts: list[dict[str, ReadSource]] = []
    for entries, kind in ((config.domains, "domain"), (config.capabilities, "capability")):
        part = {}
        for entry in entries:
            reader = SourceReader(entry.path, format=entry.format)
            rows = [row for _, row in reader]
            if not rows:
                raise UserError(f"{kind} {entry.name} has no rows in {entry.path}; add rows or remove the {kind}")
            part[entry.name] = ReadSource(rows, reader.format, reader.without_answer)
        parts.append(part)
    return parts[0], parts[1]


def rows_by_name(*parts: dict[str, ReadSource]) -> list[dict[str, list[Row]]]:
    """Give the rows alone."""
    return [{name: source.rows for name, source in part.items()} for part in parts]


def domain_tokenizer(domains: Iterable[Sequence[Row]], vocabulary: int) -> Any:
    """Train the tokenizer of scratch proxies on the domains; the same rows give the same tokenizer everywhere.

    Args:
        domains: rows of each domain, in the run file's order.
        vocabulary: tokens wanted.

    Returns:
        Any: a fast transformers tokenizer.
    """
    texts = (text for rows in domains for row in rows[:TOKENIZER_ROWS] for _, text in row.messages)
    return train_tokenizer(texts, vocabulary)
