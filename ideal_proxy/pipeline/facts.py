"""What preparing found out about one source: a domain or the reference rows of a capability."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainFacts:
    """What is known of one domain. Rows and tokens are full-size terms."""

    name: str  # its name
    source: str  # where its rows are
    format: str  # their format
    fingerprint: str  # SHA-256 over its rows
    available: int  # rows it has to train on
    base: int  # rows of the base mixture
    lower: int  # fewest rows allowed
    upper: int  # most rows allowed
    tokens_per_row: float  # mean
    supervised_per_row: float  # mean
    reserved: int  # rows kept for the warm start
    truncated: int  # rows that did not fit the context and lost prompt or answer
    dropped: int  # rows without a supervised token
    longest: int  # tokens of the longest row, after truncation
    # keys in hex of rows that the template refuses or that have no token with loss
    left_out: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class CapabilityFacts:
    """What is known of one capability's reference rows."""

    name: str
    source: str
    format: str
    fingerprint: str
    rows: int
    search_rows: int
    verify_rows: int
    supervised_tokens: int
    truncated: int
