"""Write the exact rows of a mixture file, in training order, ready for any trainer.

Lines are copied byte for byte as they stand in their source where all of them have the same keys and types; else every
row is written as `messages`, so that one file has one schema. The table of a source (`row_table`) says which rows it
has and what is in them; the sources are then read once and put in order in bounded memory (`order`). Nothing stands
under its final name before it is whole, and the manifest is written last.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import duckdb

from ideal_proxy.errors import UsageError, UserError
from ideal_proxy.mixture.file import DomainVolume, MixtureFile
from ideal_proxy.mixture.order import Ordering, Part
from ideal_proxy.mixture.reading import refuse_other_count, refuse_without_rows
from ideal_proxy.mixture.row_shape import chat_layout, one_schema
from ideal_proxy.mixture.row_table import StaleTableError, forget, open_table, refuse_changed
from ideal_proxy.provenance import provenance
from ideal_proxy.store import atomic_write_json, move, read_json

MANIFEST = "manifest.json"
FORMAT = "ideal-proxy/rows/1"
SPOOL = ".ideal-proxy-spool"
RowFormat = Literal["auto", "as-is", "chat"]
Progress = Callable[[str, int, int], None]
ROW_FILE = re.compile(r"train(-\d{5,}-of-\d{5,})?\.jsonl")
UNFINISHED = re.compile(r"\.manifest.*\.part")
WRITTEN_AT_ONCE = 1 << 14
ORDER_BYTES = 40  # a drawn row, while rows are put in order


@dataclass(frozen=True, slots=True)
class Applied:
    """What `apply_mixture` wrote."""

    folder: Path  # the output folder
    files: tuple[Path, ...]  # the row files, in training order
    rows: int  # rows written
    domain_rows: dict[str, int]  # rows of every domain in the whole mixture
    sha256: tuple[str, ...]  # of each row file
    already_there: bool = False  # nothing was written because the folder held exactly this
    manifest: str = MANIFEST  # name of the manifest
    row_format: RowFormat = "as-is"  # how rows were written: as-is or chat


@dataclass(frozen=True, slots=True)
class _Job:
    """What is to be written, and under which names."""

    mixture: MixtureFile  # the mixture file
    folder: Path  # the output folder
    row_format: RowFormat  # auto, as-is or chat
    shards: int  # files that the whole mixture makes
    shard: int | None  # the one to write; None: all of them
    sources: dict[str, str]  # for a domain, where its data is now
    keep: Path | None  # where indexes are kept

    @property
    def names(self) -> list[str]:
        """Names of the row files to write."""
        if self.shards == 1:
            return ["train.jsonl"]
        numbers = range(self.shards) if self.shard is None else [self.shard]
        return [f"train-{n:05d}-of-{self.shards:05d}.jsonl" for n in numbers]

    @property
    def bounds(self) -> list[int]:
        """Number of the first row of each file to write, and of the row after the last."""
        ends = [self.mixture.total_rows * n // self.shards for n in range(self.shards + 1)]
        return ends if self.shard is None else ends[self.shard : self.shard + 2]

    @property
    def mark(self) -> str:
        """What tells this shard's manifest and spool from those of others; empty where all are written."""
        return "" if self.shard is None else f"-{self.shard:05d}-of-{self.shards:05d}"

    @property
    def manifest(self) -> str:
        """Name of the manifest."""
        return MANIFEST if self.shard is None else f"manifest{self.mark}.json"

    @property
    def spool(self) -> Path:
        """Folder of what is not whole yet."""
        return self.folder / f"{SPOOL}{self.mark}"


def apply_mixture(
    mixture: MixtureFile,
    out: str | Path,
    *,
    shards: int = 1,
    shard: int | None = None,
    row_format: RowFormat = "auto",
    sources: Mapping[str, str] | None = None,
    index: str | Path | None = None,
    progress: Progress | None = None,
) -> Applied:
    """Write a mixture's rows as JSONL with a manifest that is written last.

    Args:
        mixture: the mixture file.
        out: output folder; it must be new or empty, or hold exactly this mixture already.
        shards: number of files; they follow each other in training order and differ by one row at most.
        shard: write this one alone, 0 to shards - 1; the folder may hold the others, which others may be writing.
        row_format: "as-is" copies lines as they stand, "chat" writes every row as `messages`, "auto" does that only
            where lines differ in their keys or types, so that `datasets.load_dataset` reads the file either way.
        sources: for a domain, where its data is now, if it has moved.
        index: folder to keep the indexes of the sources in, so that they are parsed once; None: keep none.
        progress: called with what is done ("reading NAME", "sorting", "writing"), how many rows, and of how many.

    Returns:
        Applied: files, counts and checksums.

    Raises:
        UserError: data changed since the search, the folder holds something else, or the disk is full.
        UsageError: the options or the mixture make no sense.
    """
    total = mixture.total_rows
    if not 1 <= shards <= max(total, 1):
        raise UsageError(f"--shards is {shards}; it must lie in 1 to {max(total, 1)}, the rows of the mixture")
    if shard is not None and not 0 <= shard < shards:
        raise UsageError(f"shard {shard} of {shards} is asked for; shards are counted from 0 to {shards - 1}")
    refuse_without_rows(mixture, sources or ())
    if total == 0:
        raise UsageError("the mixture has no rows: every volume is 0; give one domain rows")
    unknown = sorted(set(sources or {}) - {domain.name for domain in mixture.domains})
    if unknown:
        names = ", ".join(domain.name for domain in mixture.domains)
        raise UsageError(f"{unknown[0]!r} is no domain of the mixture; its domains are {names}")
    keep = None if index is None else Path(index)
    job = _Job(mixture, Path(out), row_format, shards, shard, dict(sources or {}), keep)
    identity = mixture_identity(mixture)
    before = _finished(job, identity)
    if before is not None:
        return before
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
        try:
            _fresh(job.spool)
            return _write(job, identity, progress)
        # a source was changed and its time of change was not, or a kept table was: read it anew, and see
        except (StaleTableError, duckdb.Error):
            for domain in mixture.domains:
                forget(keep, job.sources.get(domain.name, domain.source), domain.format)
            _fresh(job.spool)
            return _write(job, identity, progress)
    except StaleTableError as error:
        raise UserError("the data changed while it was copied; run the same command again") from error
    except OSError as error:
        raise UserError(
            f"cannot write to {job.folder}: {error.strerror or error}; make room or choose another --out and run the "
            "same command again"
        ) from error
    finally:
        shutil.rmtree(job.spool, ignore_errors=True)


def base_of(mixture: MixtureFile) -> MixtureFile:
    """The base mixture of a mixture file, as one of its own: what would have been trained on without a search."""
    if not any(d.base_rows for d in mixture.domains):
        raise UsageError("the mixture file tells no base: base_rows of every domain is 0; add them")
    tokens = [d.base_rows * (d.tokens / d.rows if d.rows else 0.0) for d in mixture.domains]
    known = sum(tokens) if all(d.rows or not d.base_rows for d in mixture.domains) else 0.0
    domains = [
        d.model_copy(update={
            "rows": d.base_rows,
            "tokens": round(t),
            "supervised_tokens": round(d.supervised_tokens * d.base_rows / d.rows) if d.rows else 0,
            "share": t / known if known else 0.0,
            "repeat": d.base_rows / d.available if d.available else 0.0,
            "change": 0.0,
        })
        for d, t in zip(mixture.domains, tokens, strict=True)
    ]  # fmt: skip
    return mixture.model_copy(update={"name": f"{mixture.name}-base", "domains": domains, "verdict": None})


def index_folder(folder: Path) -> Path | None:
    """Name the place of indexes in a run directory."""
    kept = folder / "prepared" / "rows"
    linked = kept.is_symlink() or kept.parent.is_symlink()  # in a stranger's run directory it may lead anywhere
    return kept if kept.parent.is_dir() and not linked else None


def shard_numbers(shard: str | None, shards: int) -> tuple[int | None, int]:
    """Read the options `--shard I/N` and `--shards N`."""
    if shard is None:
        return None, shards
    found = re.fullmatch(r"(\d+)/(\d+)", shard)
    if not found or not int(found[1]) < int(found[2]):
        raise UsageError(f"--shard is {shard!r}; it must be I/N with I from 0 to N-1, such as 0/4")
    if shards not in (1, int(found[2])):
        raise UsageError(f"--shard {shard} and --shards {shards} name two numbers of files; leave --shards out")
    return int(found[1]), int(found[2])


def mixture_identity(mixture: MixtureFile) -> str:
    """Fingerprint of all that decides which rows are written, and in what order."""
    drawn = sorted([d.name, d.fingerprint, d.rows] for d in mixture.domains if d.rows)
    text = json.dumps([FORMAT, mixture.seed, drawn], ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _write(job: _Job, identity: str, progress: Progress | None) -> Applied:
    tell = progress or (lambda *_: None)
    parts = _parts(job, tell)
    rows = job.bounds[-1] - job.bounds[0]
    _refuse_full_disk(job, parts, rows)
    shapes = [part.table.shape for part in parts]
    as_is = job.row_format == "as-is" or (job.row_format == "auto" and one_schema(shapes))
    with Ordering(job.spool, parts, job.mixture.seed, chat=None if as_is else chat_layout(shapes)) as ordering:
        batches = ordering.rows(job.bounds[0], job.bounds[-1], lambda done: tell("sorting", min(done, rows), rows))
        with contextlib.closing(batches):
            written = _files(job, batches, tell)
    for part in parts:
        if part.table.changed():
            raise UserError(f"the data of {part.name!r} changed while it was copied; run the same command again")
    manifest = _manifest(job, identity, written, as_is)
    atomic_write_json(job.spool / job.manifest, manifest)  # where the disk is full nothing has its name
    try:
        for name in [*job.names, job.manifest]:
            move(job.spool / name, job.folder / name)
    except BaseException:
        for name in job.names:
            (job.folder / name).unlink(missing_ok=True)
        raise
    tell("writing", rows, rows)
    return _applied(job, manifest, already_there=False)


def _applied(job: _Job, manifest: Mapping[str, Any], *, already_there: bool) -> Applied:
    return Applied(
        folder=job.folder,
        files=tuple(job.folder / entry["name"] for entry in manifest["files"]),
        rows=int(manifest["rows"]),
        domain_rows={domain["name"]: int(domain["rows"]) for domain in manifest["domains"]},
        sha256=tuple(str(entry["sha256"]) for entry in manifest["files"]),
        already_there=already_there,
        manifest=job.manifest,
        row_format=manifest["row_format"],
    )


def _parts(job: _Job, tell: Progress) -> list[Part]:
    """Open the table of every domain that has a volume, refuse data that changed, and say how many rows are drawn."""
    parts = []
    for number, domain in enumerate(domain for domain in job.mixture.domains if domain.rows):
        source = job.sources.get(domain.name, domain.source)

        def seen(rows: int, domain: DomainVolume = domain) -> None:
            tell(f"reading {domain.name}", rows, domain.available)

        table = open_table(source, domain.format, keep=job.keep, scratch=job.spool / f"table-{number}", seen=seen)
        refuse_changed(domain, source, table, job.mixture.key_note)
        kept = table.without(domain.left_out, job.spool / f"kept-{number}")
        refuse_other_count(domain, kept.rows)
        parts.append(Part(domain.name, kept, domain.rows))
    return parts


def _refuse_full_disk(job: _Job, parts: Sequence[Part], rows: int) -> None:
    """Refuse rows that the disk has no room for: putting them in order takes some bytes each, beside their text."""
    drawn = sum(part.rows for part in parts)
    text = sum(part.rows * sum(size for size, _ in part.table.states) / part.table.rows for part in parts)
    needed, free = ORDER_BYTES * drawn + text * rows / drawn, shutil.disk_usage(job.folder).free
    if needed > free:
        raise UserError(
            f"{drawn:,} rows need about {needed / 1e9:.3g} GB while they are written, and {job.folder} has "
            f"{free / 1e9:.3g} GB free; make room, choose another --out, or lower the volumes"
        )


def _files(job: _Job, batches: Iterable[list[bytes]], tell: Progress) -> list[dict[str, Any]]:
    """Write the rows, in order, to the files of the spool; return every file's entry in the manifest."""
    lines = itertools.chain.from_iterable(batches)
    rows, written, entries = job.bounds[-1] - job.bounds[0], 0, []
    for name, first, last in zip(job.names, job.bounds[:-1], job.bounds[1:], strict=True):
        digest, size = hashlib.sha256(), 0
        with open(job.spool / name, "wb") as file:
            for count in _cuts(last - first):
                taken = [line + b"\n" for line in itertools.islice(lines, count)]
                if len(taken) != count:
                    raise StaleTableError  # its table names lines that the source does not have
                block = b"".join(taken)
                digest.update(block)
                file.write(block)
                size, written = size + len(block), written + count
                tell("writing", written, rows)
            file.flush()
            os.fsync(file.fileno())
        entries.append({"name": name, "rows": last - first, "bytes": size, "sha256": digest.hexdigest()})
    return entries


def _cuts(rows: int) -> Iterator[int]:
    for first in range(0, rows, WRITTEN_AT_ONCE):
        yield min(WRITTEN_AT_ONCE, rows - first)


def _fresh(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


def _manifest(job: _Job, identity: str, files: list[dict[str, Any]], as_is: bool) -> dict[str, Any]:
    mixture = job.mixture
    part = {} if job.shard is None else {"shard": job.shard, "shards": job.shards, "first_row": job.bounds[0]}
    return {
        "format": FORMAT,
        "mixture": mixture.name,
        "identity": identity,
        "seed": mixture.seed,
        "verdict": mixture.verdict,
        "row_format": "as-is" if as_is else "chat",
        "asked": job.row_format,
        "order": "training order; keep it, or shuffle with a seed of your own",
        "rows": job.bounds[-1] - job.bounds[0],
        **part,
        "files": files,
        "domains": [
            {
                "name": d.name,
                "source": job.sources.get(d.name, d.source),
                "fingerprint": d.fingerprint,
                "available": d.available,
                "rows": d.rows,
                "whole_passes": d.rows // d.available if d.available else 0,
                "rows_of_the_last_pass": d.rows % d.available if d.available else 0,
            }
            for d in mixture.domains
        ],
        "provenance": provenance(),
    }


def _sha256(path: Path) -> str:
    """Hash a file; one that is gone has no hash."""
    if not path.is_file():
        return ""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _finished(job: _Job, identity: str) -> Applied | None:
    """Return what the folder holds if it is this very mixture; refuse a folder with other content."""
    folder = job.folder
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; choose another --out")
    content = sorted(p.name for p in folder.iterdir() if p.name != job.spool.name) if folder.exists() else []
    for name in [name for name in content if UNFINISHED.fullmatch(name)]:  # killed, or at it, while writing a manifest
        content.remove(name)
        if name.startswith(f".{job.manifest}."):
            (folder / name).unlink(missing_ok=True)
    if job.shard is not None:
        content = [name for name in content if not _of_another_shard(job, identity, name)]
    if not content:
        return None
    if job.manifest in content:
        changed: list[str] = []
        with contextlib.suppress(UserError, KeyError, TypeError, ValueError, AttributeError, OSError):
            manifest = read_json(folder / job.manifest)
            files = manifest["files"]
            same = (manifest["identity"], _asked(manifest)) == (identity, job.row_format)
            if same and [f["name"] for f in files] == job.names:
                changed = [f["name"] for f in files if _sha256(folder / f["name"]) != f["sha256"]]
                if not changed:
                    return _applied(job, manifest, already_there=True)
        if changed:
            raise UserError(
                f"{folder / changed[0]} is not what was written: it is damaged or was edited; remove {folder} and run "
                "the same command again, or choose another --out"
            )
    elif job.spool.is_dir() and all(ROW_FILE.fullmatch(name) for name in content):
        for name in content:  # a run that was stopped before its manifest
            (folder / name).unlink()
        return None
    raise UserError(f"{folder} is not empty (it holds {content[0]}); choose another --out or empty it")


def _of_another_shard(job: _Job, identity: str, name: str) -> bool:
    """Tell whether a name in the folder belongs to another shard of the same mixture."""
    found = re.fullmatch(r"(?:train|manifest|\.ideal-proxy-spool)-(\d{5,})-of-(\d{5,})(?:\.jsonl?)?", name)
    if not found or int(found[2]) != job.shards or int(found[1]) == job.shard:
        return False
    if name.startswith("manifest"):
        with contextlib.suppress(UserError, KeyError, TypeError):
            manifest = read_json(job.folder / name)
            return bool((manifest["identity"], _asked(manifest)) == (identity, job.row_format))
        return False
    return True


def _asked(manifest: Mapping[str, Any]) -> str:
    """Which form of rows a manifest was asked for."""
    return str(manifest.get("asked", manifest["row_format"]))
