"""Write the exact rows of a mixture file, in training order, ready for any trainer.

Two passes over every source. The first reads the rows' keys and positions and refuses data that changed. The second
copies each drawn line as it stands, byte for byte. Rows never gather in memory: what is held is about 100 bytes of keys
and positions a row. Sources without lines of their own (parquet, .gz, JSON lists, demo) are first written out as lines
beside the output, and those are removed at the end.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from ideal_proxy.errors import UsageError, UserError
from ideal_proxy.mixture import domain_order, draw, training_order
from ideal_proxy.mixture_file import DomainVolume, MixtureFile
from ideal_proxy.rows import SourceReader, source_fingerprint, to_messages
from ideal_proxy.store import atomic_write_json, provenance, read_json

MANIFEST = "manifest.json"
FORMAT = "ideal-proxy/rows/1"
SPOOL = ".ideal-proxy-spool"
RowFormat = Literal["as-is", "chat"]
Progress = Callable[[str, int, int], None]
OPEN_FILES = 64
EVERY = 4096
ROW_FILE = re.compile(r"train(-\d{5,}-of-\d{5,})?\.jsonl")


@dataclass(frozen=True, slots=True)
class Applied:
    """What `apply_mixture` wrote.

    Attributes:
        folder: the output folder.
        files: the row files, in training order.
        rows: rows written.
        domain_rows: rows of every domain.
        sha256: of each row file.
        already_there: nothing was written because the folder held exactly this.
    """

    folder: Path
    files: tuple[Path, ...]
    rows: int
    domain_rows: dict[str, int]
    sha256: tuple[str, ...]
    already_there: bool = False


@dataclass(frozen=True, slots=True)
class _Index:
    """Where the N rows of a source stand: file number, offset and length in bytes, key; the files and their states."""

    file: npt.NDArray[np.int32]
    offset: npt.NDArray[np.int64]
    length: npt.NDArray[np.int64]
    keys: npt.NDArray[np.uint64]
    files: tuple[Path, ...]
    states: tuple[tuple[int, int], ...]
    format: str


def apply_mixture(
    mixture: MixtureFile,
    out: str | Path,
    *,
    shards: int = 1,
    row_format: RowFormat = "as-is",
    sources: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Applied:
    """Write a mixture's rows as JSONL with a manifest that is written last.

    Args:
        mixture: the mixture file.
        out: output folder; it must be new or empty, or hold exactly this mixture already.
        shards: number of files; they follow each other in training order and differ by one row at most.
        row_format: "as-is" copies lines as they stand, "chat" writes every row as `messages`.
        sources: for a domain, where its data is now, if it has moved.
        progress: called with what is done ("reading NAME", "writing"), how many rows, and of how many.

    Returns:
        Applied: files, counts and checksums.

    Raises:
        UserError: data changed since the search, the folder holds something else, or the disk is full.
        UsageError: the options or the mixture make no sense.
    """
    total = mixture.total_rows
    if not 1 <= shards <= max(total, 1):
        raise UsageError(f"--shards is {shards}; it must lie in 1 to {max(total, 1)}, the rows of the mixture")
    if total == 0:
        raise UsageError("the mixture has no rows: every volume is 0; give one domain rows")
    unknown = sorted(set(sources or {}) - {domain.name for domain in mixture.domains})
    if unknown:
        raise UsageError(f"{unknown[0]!r} is no domain of the mixture; its domains are {_names(mixture)}")
    folder = Path(out)
    identity = mixture_identity(mixture)
    before = _finished(folder, identity, shards, row_format)
    if before is not None:
        return before
    spool = folder / SPOOL
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(spool, ignore_errors=True)
        spool.mkdir()
        return _write(mixture, folder, spool, identity, shards, row_format, dict(sources or {}), progress)
    except OSError as error:
        raise UserError(
            f"cannot write to {folder}: {error.strerror or error}; make room or choose another --out and run the "
            "same command again"
        ) from error
    finally:
        shutil.rmtree(spool, ignore_errors=True)


def mixture_identity(mixture: MixtureFile) -> str:
    """Fingerprint of all that decides which rows are written, and in what order.

    Args:
        mixture: the mixture file.

    Returns:
        str: SHA-256 in hex over the seed and every domain's name, fingerprint and rows.
    """
    drawn = sorted([d.name, d.fingerprint, d.rows] for d in mixture.domains if d.rows)
    text = json.dumps([FORMAT, mixture.seed, drawn], ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _write(
    mixture: MixtureFile, folder: Path, spool: Path, identity: str, shards: int, row_format: RowFormat,
    sources: dict[str, str], progress: Progress | None,
) -> Applied:  # fmt: skip
    domains = [domain for domain in mixture.domains if domain.rows]
    indexes = []
    for number, domain in enumerate(domains):
        source = sources.get(domain.name, domain.source)
        indexes.append(_checked(domain, source, _index(domain, source, spool / f"{number}.jsonl", progress)))
    draws = [
        (index.keys, *draw(domain_order(mixture.seed, domain.name, index.keys), domain.rows))
        for domain, index in zip(domains, indexes, strict=True)
    ]
    domain_R, row_R = training_order(mixture.seed, [domain.name for domain in domains], draws)
    total = len(row_R)
    bounds = [total * n // shards for n in range(shards + 1)]
    names = [f"train-{n:05d}-of-{shards:05d}.jsonl" if shards > 1 else "train.jsonl" for n in range(shards)]
    written: list[dict[str, Any]] = []
    with _Handles() as handles:
        for name, first, last in zip(names, bounds[:-1], bounds[1:], strict=True):
            checksum, size = hashlib.sha256(), 0
            with open(spool / name, "wb") as file:
                for place in range(first, last):
                    index = indexes[int(domain_R[place])]
                    line = handles.line(index, int(row_R[place]))
                    if row_format == "chat":
                        line = _as_chat(line, index.format)
                    checksum.update(line)
                    size += file.write(line)
                    if progress and place % EVERY == 0:
                        progress("writing", place, total)
                file.flush()
                os.fsync(file.fileno())
            written.append({"name": name, "rows": last - first, "bytes": size, "sha256": checksum.hexdigest()})
    for domain, index in zip(domains, indexes, strict=True):
        if _states(index.files) != index.states:
            raise UserError(f"the data of {domain.name!r} changed while it was copied; run the same command again")
    try:
        for name in names:
            os.replace(spool / name, folder / name)
        atomic_write_json(folder / MANIFEST, _manifest(mixture, identity, row_format, written, sources))
    except BaseException:
        for name in names:
            (folder / name).unlink(missing_ok=True)
        raise
    if progress:
        progress("writing", total, total)
    return Applied(
        folder=folder,
        files=tuple(folder / name for name in names),
        rows=total,
        domain_rows={domain.name: domain.rows for domain in mixture.domains},
        sha256=tuple(str(entry["sha256"]) for entry in written),
    )


def _manifest(
    mixture: MixtureFile, identity: str, row_format: str, files: list[dict[str, Any]], sources: dict[str, str]
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "mixture": mixture.name,
        "identity": identity,
        "seed": mixture.seed,
        "verdict": mixture.verdict,
        "row_format": row_format,
        "order": "training order; keep it, or shuffle with a seed of your own",
        "rows": mixture.total_rows,
        "files": files,
        "domains": [
            {
                "name": d.name,
                "source": sources.get(d.name, d.source),
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


def _finished(folder: Path, identity: str, shards: int, row_format: str) -> Applied | None:
    """Return what the folder holds if it is this very mixture; refuse a folder with other content."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; choose another --out")
    content = sorted(p.name for p in folder.iterdir() if p.name != SPOOL) if folder.exists() else []
    if not content:
        return None
    if MANIFEST in content:
        with contextlib.suppress(UserError, KeyError, TypeError, ValueError, AttributeError, OSError):
            manifest = read_json(folder / MANIFEST)
            files = manifest["files"]
            same = (manifest["identity"], len(files), manifest["row_format"]) == (identity, shards, row_format)
            if same and all((folder / f["name"]).stat().st_size == f["bytes"] for f in files):
                return Applied(
                    folder=folder,
                    files=tuple(folder / f["name"] for f in files),
                    rows=int(manifest["rows"]),
                    domain_rows={d["name"]: int(d["rows"]) for d in manifest["domains"]},
                    sha256=tuple(str(f["sha256"]) for f in files),
                    already_there=True,
                )
    elif (folder / SPOOL).is_dir() and all(ROW_FILE.fullmatch(name) for name in content):
        for name in content:  # a run that was stopped before its manifest
            (folder / name).unlink()
        return None
    raise UserError(f"{folder} is not empty (it holds {content[0]}); choose another --out or empty it")


def _index(domain: DomainVolume, source: str, spool: Path, progress: Progress | None) -> _Index:
    """Read a source once: keys and positions; rows without a line of their own are written to the spool file."""
    reader = SourceReader(source, format=domain.format)
    numbers: dict[Path, int] = {}
    keys, places, offsets, lengths = array("Q"), array("i"), array("q"), array("q")
    at = 0
    with contextlib.ExitStack() as stack:
        lines: BinaryIO | None = None
        for record, row in reader:
            if record.line is not None and record.path is not None:
                path, offset, length = record.path, record.offset, len(record.line)
            else:
                line = json.dumps(record.value, ensure_ascii=False, default=str).encode() + b"\n"
                lines = lines or stack.enter_context(open(spool, "wb"))
                path, offset, length = spool, at, lines.write(line)
                at += length
            keys.append(row.key)
            places.append(numbers.setdefault(path, len(numbers)))
            offsets.append(offset)
            lengths.append(length)
            if progress and len(keys) % EVERY == 0:
                progress(f"reading {domain.name}", len(keys), domain.available)
    files = tuple(numbers)
    return _Index(
        file=np.frombuffer(places, dtype=np.intc).astype(np.int32),
        offset=np.frombuffer(offsets, dtype=np.int64),
        length=np.frombuffer(lengths, dtype=np.int64),
        keys=np.frombuffer(keys, dtype=np.uint64),
        files=files,
        states=_states(files),
        format=reader.format,
    )


def _checked(domain: DomainVolume, source: str, index: _Index) -> _Index:
    found = source_fingerprint(index.keys)
    if found == domain.fingerprint and len(index.keys) == domain.available:
        return index
    change = f"it had {domain.available} rows, now {len(index.keys)}"
    if len(index.keys) == domain.available:
        change = "the number of rows is the same, their content or order is not"
    raise UserError(
        f"the data of domain {domain.name!r} changed since the search: {source} ({change}); "
        "bring back the old data or search again"
    )


def _states(files: tuple[Path, ...]) -> tuple[tuple[int, int], ...]:
    """Return size and time of change of every file."""
    found = [os.stat(file) for file in files]
    return tuple((state.st_size, state.st_mtime_ns) for state in found)


class _Handles:
    """A bounded number of open files to copy lines from."""

    def __init__(self) -> None:
        self._open: dict[Path, BinaryIO] = {}

    def __enter__(self) -> _Handles:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._open.values():
            handle.close()

    def line(self, index: _Index, row: int) -> bytes:
        """Return a row's line with its line end."""
        path = index.files[int(index.file[row])]
        handle = self._open.get(path)
        if handle is None:
            if len(self._open) >= OPEN_FILES:
                self._open.pop(next(iter(self._open))).close()
            handle = self._open[path] = open(path, "rb")  # noqa: SIM115 (closed on leaving the block)
        line = os.pread(handle.fileno(), int(index.length[row]), int(index.offset[row]))
        return line if line.endswith(b"\n") else line + b"\n"


def _as_chat(line: bytes, format: str) -> bytes:
    messages = to_messages(json.loads(line), format, "row")
    value = {"messages": [{"role": role, "content": content} for role, content in messages]}
    return json.dumps(value, ensure_ascii=False).encode() + b"\n"


def read_back(applied: Applied) -> Iterator[dict[str, Any]]:
    """Read the written rows in training order.

    Args:
        applied: what `apply_mixture` returned.

    Yields:
        dict: one row.
    """
    for path in applied.files:
        with open(path, "rb") as file:
            for line in file:
                yield json.loads(line)


def _names(mixture: MixtureFile) -> str:
    return ", ".join(domain.name for domain in mixture.domains)
