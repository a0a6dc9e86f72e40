"""The rows of a mixture file's domains, read again: where they lie now, and whether they are still the same."""

from __future__ import annotations

import contextlib
from collections.abc import Container, Iterator
from pathlib import Path

from ideal_proxy.data import Row, is_virtual, read_rows, row_keys, source_fingerprint
from ideal_proxy.errors import UsageError, UserError, shortened
from ideal_proxy.mixture.file import DomainVolume, MixtureFile

MOST_TOLD = 300  # characters of what a strange file is told


def resolve(source: str, folder: Path | None) -> str:
    """Take a relative path from the mixture file's folder where it is found there."""
    if folder is None or is_virtual(source) or Path(source).is_absolute():
        return source
    beside = folder / source
    return str(beside) if beside.exists() or any(c in source for c in "*?[") else source


@contextlib.contextmanager
def reading_part(part: str) -> Iterator[None]:
    """Turn what comes of reading a part of a mixture file that may hold anything into one sentence."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError, UserError) as error:
        if isinstance(error, UserError) and not isinstance(error, ValueError) and len(str(error)) < MOST_TOLD:
            raise  # one that knows what is wrong
        told = shortened(" ".join(str(error).split()), 160)
        raise UsageError(
            f"the mixture file's {part} cannot be read ({told}); let the search write it again, or take it out"
        ) from error


def refuse_without_rows(mixture: MixtureFile, moved: Container[str] = ()) -> None:
    """Refuse a mixture that names no rows, as `optimize` writes it: a table of runs has none."""
    for domain in mixture.domains:
        if not domain.source and domain.name not in moved:
            raise UserError(
                f"domain {domain.name} names no rows in the mixture file; `optimize` writes volumes alone, to be read: "
                "draw so many rows of each by yourself, or search with your data"
            )


def read_domain(domain: DomainVolume, source: str, note: str = "") -> list[Row]:
    """Read the rows that a domain draws from, in source order, and refuse them where they changed."""
    rows = list(read_rows(source, format=domain.format, max_bad=-1))
    keys = row_keys(rows)
    refuse_other_rows(source_fingerprint(keys), domain.fingerprint, f"domain {domain.name}", domain.source, note)
    left_out = {int(key, 16) for key in domain.left_out}
    kept = [row for row, key in zip(rows, keys.tolist(), strict=True) if key not in left_out]
    refuse_other_count(domain, len(kept))
    return kept


def refuse_other_count(domain: DomainVolume, rows: int) -> None:
    """Refuse a mixture file whose list of rows to leave out names all, or others than the source has."""
    if rows and rows != domain.available:
        raise UserError(
            f"domain {domain.name}: {rows:,} rows of {domain.source} are left without those that the mixture file "
            f"leaves out by their keys (left_out), and it counts {domain.available:,} available; restore the file, or "
            "run the search again"
        )
    if not rows:
        raise UserError(
            f"domain {domain.name}: the mixture file leaves out every row of {domain.source} by its key "
            f"(left_out), and counts {domain.available:,} available; restore the file, or run the search again"
        )


def refuse_other_rows(found: str, wanted: str, what: str, source: str, note: str) -> None:
    """Refuse rows whose fingerprint is not the mixture file's."""
    if found != wanted:
        raise UserError(
            f"{what}: the rows in {source} are not those that the mixture was made for (fingerprint {found[:12]}…, "
            f"the file says {wanted[:12]}…){note}; restore them, or run the search again"
        )
