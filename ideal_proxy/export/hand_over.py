"""Hand a mixture to another trainer: rows, a configuration in its syntax, and the counts it will really draw.

Where a trainer's configuration can say "so many rows of this set", the sets are written whole and the configuration
says it. Where it cannot, the exact rows are written and the configuration takes all of them; `strict` refuses instead.
Syntax read in the trainers' 2026 sources; each writer names what it relies on.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ideal_proxy.data import is_virtual
from ideal_proxy.errors import UsageError, UserError
from ideal_proxy.export import formats, trainers
from ideal_proxy.export.job import ExportReport, Job
from ideal_proxy.mixture import MixtureFile, index_folder, kept_base
from ideal_proxy.store import atomic_write_json
from ideal_proxy.terminal import paragraph, table

MANIFEST = "export.json"

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
    """Return the known targets."""
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
        report = chosen.write(Job(mixture, place, sources, None if folder is None else index_folder(folder)))
        atomic_write_json(place / MANIFEST, report.to_dict())
    except OSError as error:
        _undo(place, fresh)
        raise UserError(
            f"cannot write to {place}: {error.strerror or error}; make room or choose another --out"
        ) from error
    except BaseException:
        _undo(place, fresh)
        raise
    return replace(report, notes=(*report.notes, note)) if (note := kept_base(mixture)) else report


def export_table(report: ExportReport) -> str:
    """Lay out an export in 80 columns."""
    rows = [
        (d.domain, f"{d.available:,}", f"{d.wanted:,}", f"{d.draws:,}", f"{d.draws / d.available:.2f}x")
        for d in report.draws
    ]
    configured = report.exact and any(d.how for d in report.draws)  # plain rows have no configuration to say it
    how = "counts in the configuration" if configured else "exact rows written out"
    title = f"{report.target}: rows a domain ({how})"
    lines = [table(title, ("domain", "available", "wanted", "will draw", "repeat"), rows), ""]
    lines += [paragraph(f"Note: {note}.") for note in report.notes]
    lines.append(paragraph(f"Written to {report.folder}: {', '.join(report.files)}"))
    lines.append(f"Use: {report.use}")
    return "\n".join(lines)


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
