"""The sources that a run file names, each read once: rows of every domain and capability, and their tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ideal_proxy.config import SearchConfig
from ideal_proxy.data.rows import Row, read_rows
from ideal_proxy.data.template import train_tokenizer
from ideal_proxy.errors import UserError

TOKENIZER_ROWS = 20_000  # rows of a domain that train the tokenizer


def read_sources(config: SearchConfig) -> tuple[dict[str, list[Row]], dict[str, list[Row]]]:
    """Read the rows of every domain and capability.

    Args:
        config: the run file.

    Returns:
        tuple: rows by domain and rows by capability.

    Raises:
        UserError: a source has no rows.
    """
    parts: list[dict[str, list[Row]]] = []
    for entries, kind in ((config.domains, "domain"), (config.capabilities, "capability")):
        part = {}
        for entry in entries:
            part[entry.name] = list(read_rows(entry.path, format=entry.format))
            if not part[entry.name]:
                raise UserError(f"{kind} {entry.name} has no rows in {entry.path}; add rows or remove the {kind}")
        parts.append(part)
    return parts[0], parts[1]


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
