"""What every exporter works with: the mixture's rows, written whole or as drawn, and the report it hands back."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ideal_proxy.errors import UserError
from ideal_proxy.export.terms import terms_notes
from ideal_proxy.mixture import (
    DomainVolume,
    MixtureFile,
    StaleTableError,
    apply_mixture,
    chat_layout,
    forget,
    open_table,
    refuse_changed,
)

FORMAT = "ideal-proxy/export/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """What the target will do with one domain.

    Attributes:
        domain: its name.
        available: rows that the domain has.
        wanted: rows of the mixture.
        draws: rows that the target will draw, by its own arithmetic.
        how: the number or path that its configuration holds.
    """

    domain: str
    available: int
    wanted: int
    draws: int
    how: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """What was written for a target.

    Attributes:
        target: its name.
        folder: the output folder.
        exact: the target's own configuration says the counts; otherwise the rows are written out exactly.
        draws: a domain an entry; domains without a volume are left out of the configuration.
        files: what was written, relative to the folder.
        notes: what a user must know.
        use: how to use it.
    """

    target: str
    folder: Path
    exact: bool
    draws: tuple[Draw, ...]
    files: tuple[str, ...]
    notes: tuple[str, ...]
    use: str

    def to_dict(self) -> dict[str, Any]:
        """Return the report for a file."""
        return {
            "format": FORMAT,
            "target": self.target,
            "exact_in_configuration": self.exact,
            "domains": [
                {"name": d.domain, "available": d.available, "wanted": d.wanted, "draws": d.draws, "how": d.how}
                for d in self.draws
            ],
            "files": list(self.files),
            "notes": list(self.notes),
            "use": self.use,
        }


@dataclass(frozen=True, slots=True)
class Job:
    """What a writer works with.

    Attributes:
        mixture: the mixture file.
        folder: where to write.
        sources: for every domain, where its rows are.
        index: folder in which indexes of the sources are kept; None: none are.
    """

    mixture: MixtureFile
    folder: Path
    sources: dict[str, str]
    index: Path | None = None

    @property
    def domains(self) -> list[DomainVolume]:
        """The domains that have a volume."""
        return [domain for domain in self.mixture.domains if domain.rows]

    def file_names(self) -> dict[str, str]:
        """Give every domain a name that is safe in a path, a shell and a comma-separated list."""
        names: dict[str, str] = {}
        for domain in self.domains:
            plain = re.sub(r"[^A-Za-z0-9_.-]+", "_", domain.name).strip("._") or "domain"
            unique, number = plain, 2
            while unique.lower() in {name.lower() for name in names.values()}:
                unique, number = f"{plain}_{number}", number + 1
            names[domain.name] = unique
        return names

    def conversations(self, domain: DomainVolume) -> Iterator[dict[str, Any]]:
        """Read a domain's rows as `messages`, in source order; rows that changed are refused before the first."""
        for lines in self._lines(domain):
            for line in lines:
                yield json.loads(line)

    def _lines(self, domain: DomainVolume) -> Iterator[list[bytes]]:
        """Read a domain's rows as lines of `messages`, some at a time."""
        scratch, source = self.folder / ".table", self.sources[domain.name]
        try:
            table = open_table(source, domain.format, keep=self.index, scratch=scratch)
            refuse_changed(domain, source, table, self.mixture.key_note)
            kept = table.without(domain.left_out, scratch / "kept")
            for batch in kept.batches(chat_layout([table.shape])):
                yield batch.column("text").to_pylist()
        except StaleTableError as error:
            forget(self.index, source, domain.format)
            raise UserError(
                f"the data of domain {domain.name!r} changed: {source}; bring back the old data, or search again"
            ) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def write_whole(self, domain: DomainVolume, path: Path) -> None:
        """Write a domain's rows once each, as JSONL of `messages`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            for lines in self._lines(domain):
                file.writelines(line + b"\n" for line in lines)

    def write_drawn(self, folder: Path, domains: list[DomainVolume] | None = None) -> Path:
        """Write the exact rows of some domains, repeats included, in training order, as one JSONL of `messages`."""
        part = self.mixture.model_copy(update={"domains": domains or self.domains})
        moved = {d.name: self.sources[d.name] for d in part.domains}
        return apply_mixture(part, folder, row_format="chat", sources=moved, index=self.index).files[0]


def line_of(row: dict[str, Any]) -> bytes:
    """Write a row as one line of JSON."""
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def report_of(
    job: Job,
    target: str,
    files: list[str],
    use: str,
    *,
    exact: bool = True,
    how: dict[str, str] | None = None,
    draws: dict[str, int] | None = None,
    notes: tuple[str, ...] = (),
) -> ExportReport:
    """Compose a writer's report."""
    entries = tuple(
        Draw(
            domain=d.name, available=d.available, wanted=d.rows,
            draws=d.rows if draws is None else draws[d.name], how="" if how is None else how[d.name],
        )
        for d in job.domains
    )  # fmt: skip
    return ExportReport(
        target=target,
        folder=job.folder,
        exact=exact,
        draws=entries,
        files=tuple(files),
        notes=(*notes, *terms_notes(job.mixture, target)),
        use=use,
    )
