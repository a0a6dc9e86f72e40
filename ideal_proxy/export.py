"""Hand a mixture to another trainer: rows, a configuration in its own syntax, and the counts it will really draw.

Where a trainer's configuration can say "so many rows of this set", the sets are written whole and the configuration
says it. Where it cannot, the exact rows are written and the configuration takes all of them; `strict` refuses instead.
Syntax read in the trainers' 2026 sources; each writer names what it relies on.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ideal_proxy.errors import UsageError, UserError
from ideal_proxy.files import is_virtual
from ideal_proxy.materialise import apply_mixture
from ideal_proxy.mixture_file import DomainVolume, MixtureFile
from ideal_proxy.rows import SourceReader, source_fingerprint
from ideal_proxy.store import atomic_write_json
from ideal_proxy.terminal import table

MANIFEST = "export.json"
FORMAT = "ideal-proxy/export/1"
ROWS_OF_A_GROUP = 4096  # parquet row group: what is held in memory


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
        """Return the report for a file.

        Returns:
            dict: JSON-ready.
        """
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
    """

    mixture: MixtureFile
    folder: Path
    sources: dict[str, str]

    @property
    def domains(self) -> list[DomainVolume]:
        """The domains that have a volume."""
        return [domain for domain in self.mixture.domains if domain.rows]

    def file_names(self) -> dict[str, str]:
        """Give every domain a name that is safe in a path, a shell and a comma-separated list.

        Returns:
            dict: by domain name; all differ.
        """
        names: dict[str, str] = {}
        for domain in self.domains:
            plain = re.sub(r"[^A-Za-z0-9_.-]+", "_", domain.name).strip("._") or "domain"
            unique, number = plain, 2
            while unique.lower() in {name.lower() for name in names.values()}:
                unique, number = f"{plain}_{number}", number + 1
            names[domain.name] = unique
        return names

    def conversations(self, domain: DomainVolume) -> Iterator[dict[str, Any]]:
        """Read a domain's rows as `messages`, in source order, and refuse rows that changed.

        Args:
            domain: which.

        Yields:
            dict: one row.

        Raises:
            UserError: the rows are not those that the mixture was made for (after the last one).
        """
        keys = []
        for _, row in SourceReader(self.sources[domain.name], format=domain.format):
            keys.append(row.key)
            yield {"messages": [{"role": role, "content": content} for role, content in row.messages]}
        if source_fingerprint(keys) != domain.fingerprint or len(keys) != domain.available:
            raise UserError(
                f"the data of domain {domain.name!r} changed since the search: {self.sources[domain.name]}; "
                "bring back the old data or search again"
            )

    def write_whole(self, domain: DomainVolume, path: Path) -> None:
        """Write a domain's rows once each, as JSONL of `messages`.

        Args:
            domain: which.
            path: the file.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            for row in self.conversations(domain):
                file.write(line_of(row))

    def write_drawn(self, folder: Path, domains: list[DomainVolume] | None = None) -> Path:
        """Write the exact rows of some domains, repeats included, in training order, as one JSONL of `messages`.

        Args:
            folder: a new folder.
            domains: which; default all.

        Returns:
            Path: the file.
        """
        part = self.mixture.model_copy(update={"domains": domains or self.domains})
        moved = {d.name: self.sources[d.name] for d in part.domains}
        return apply_mixture(part, folder, row_format="chat", sources=moved).files[0]


def line_of(row: dict[str, Any]) -> bytes:
    """Write a row as one line of JSON.

    Args:
        row: the row.

    Returns:
        bytes: UTF-8 with a line end.
    """
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


Writer = Callable[[Job], ExportReport]


@dataclass(frozen=True, slots=True)
class Target:
    """A trainer that can be exported to.

    Attributes:
        write: writes for it.
        exact: its configuration can say exact counts, repeats included (or the rows are the format itself).
        why_not: where it cannot, why.
    """

    write: Writer
    exact: bool
    why_not: str = ""


def targets() -> dict[str, Target]:
    """Return the known targets.

    Returns:
        dict: by name.
    """
    from ideal_proxy import export_formats as formats
    from ideal_proxy import export_trainers as trainers

    return {
        "jsonl": Target(formats.jsonl, True),
        "parquet": Target(formats.parquet, True),
        "hf": Target(formats.hugging_face, True),
        "llamafactory": Target(trainers.llamafactory, True),
        "ms-swift": Target(trainers.ms_swift, True),
        "open-instruct": Target(trainers.open_instruct, True),
        "trl": Target(
            trainers.trl, False,
            "TRL's `fraction` is a share of the mix whose size the scarcest set decides; it cannot repeat rows",
        ),
        "axolotl": Target(
            trainers.axolotl, False, "axolotl has no count a set; `weight` is at most 1 and only in newer versions"
        ),
        "megatron-bridge": Target(trainers.megatron_bridge, True),
        "streaming": Target(formats.streaming, True),
        "interleave": Target(
            formats.interleave, False, "`interleave_datasets` takes probabilities, which fix average shares, not counts"
        ),
    }  # fmt: skip


def export_mixture(
    mixture: MixtureFile, target: str, out: str | Path, *, strict: bool = False, folder: Path | None = None
) -> ExportReport:
    """Write a mixture for another trainer.

    Args:
        mixture: the mixture file.
        target: a key of `targets()`.
        out: output folder; new or empty.
        strict: refuse where the target's configuration cannot say exact counts.
        folder: the mixture file's folder, which relative sources start from.

    Returns:
        ExportReport: files and the counts that the target will draw.

    Raises:
        UsageError: an unknown target, an empty mixture, or exact counts that the target cannot say, under strict.
        UserError: data changed, the folder is not empty, or the disk is full.
    """
    known = targets()
    if target not in known:
        raise UsageError(f"--to is {target!r}; it must be one of {', '.join(known)}")
    chosen = known[target]
    if strict and not chosen.exact:
        raise UsageError(f"--strict: {chosen.why_not}; leave --strict out to write the exact rows for {target} to read")
    if not mixture.total_rows:
        raise UsageError("the mixture has no rows: every volume is 0; give one domain rows")
    place = Path(out)
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise UserError(f"{place} is not an empty folder; choose another --out or empty it")
    fresh = not place.exists()
    sources = {domain.name: _source(domain.source, folder) for domain in mixture.domains}
    try:
        place.mkdir(parents=True, exist_ok=True)
        report = chosen.write(Job(mixture, place, sources))
        atomic_write_json(place / MANIFEST, report.to_dict())
    except OSError as error:
        _undo(place, fresh)
        raise UserError(
            f"cannot write to {place}: {error.strerror or error}; make room or choose another --out"
        ) from error
    except BaseException:
        _undo(place, fresh)
        raise
    return report


def export_table(report: ExportReport) -> str:
    """Lay out an export in 80 columns.

    Args:
        report: what was written.

    Returns:
        str: counts, notes, and how to use it.
    """
    rows = [
        (d.domain, f"{d.available:,}", f"{d.wanted:,}", f"{d.draws:,}", f"{d.draws / d.available:.2f}x")
        for d in report.draws
    ]
    how = "counts in the configuration" if report.exact else "exact rows written out"
    title = f"{report.target}: rows a domain ({how})"
    lines = [table(title, ("domain", "available", "wanted", "will draw", "repeat"), rows), ""]
    lines += [f"Note: {note}." for note in report.notes]
    lines.append(f"Written to {report.folder}: {', '.join(report.files)}")
    lines.append(f"Use: {report.use}")
    return "\n".join(lines)


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
    """Compose a writer's report.

    Args:
        job: the job.
        target: name.
        files: written, relative to the folder.
        use: how to use them.
        exact: the configuration says the counts.
        how: by domain, what it says.
        draws: by domain, rows drawn by the target's arithmetic; default the wanted ones.
        notes: what a user must know.

    Returns:
        ExportReport: complete.
    """
    entries = tuple(
        Draw(
            domain=d.name, available=d.available, wanted=d.rows,
            draws=d.rows if draws is None else draws[d.name], how="" if how is None else how[d.name],
        )
        for d in job.domains
    )  # fmt: skip
    return ExportReport(
        target=target, folder=job.folder, exact=exact, draws=entries, files=tuple(files), notes=notes, use=use
    )


def _source(source: str, folder: Path | None) -> str:
    """Take a relative path from the mixture file's folder where it is found there."""
    if folder is None or is_virtual(source) or Path(source).is_absolute():
        return source
    beside = folder / source
    return str(beside) if beside.exists() or any(c in source for c in "*?[") else source


def _undo(place: Path, fresh: bool) -> None:
    """Leave nothing half-written behind."""
    if fresh:
        shutil.rmtree(place, ignore_errors=True)
        return
    for path in place.iterdir():
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
