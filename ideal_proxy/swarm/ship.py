"""Folders on their way to the nodes of a cluster and back: in pieces, and the cache that a node keeps.

Standard library only, and no Ray: what carries the pieces is the caller's business.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO

from ideal_proxy.errors import UserError
from ideal_proxy.store import MARKER, atomic_write_bytes

CACHE = "IDEAL_PROXY_CACHE"
PIECE_BYTES = 16 << 20
SWEEP_SECONDS = 3600.0
LOCK_END = ".ideal-proxy.lock"
SIGN = "A folder of ideal-proxy's cache stands beside this file; it is removed when no process holds this file.\n"
"""Only a lock that is named so and says so is ever swept: the cache may lie in a folder that others use too."""

Piece = list[tuple[str, bytes]]
"""Names of files, relative, with what comes next of each; a file larger than a piece goes on in the next ones."""


def files_of(folder: Path) -> list[Path]:
    """List a folder's files, oldest first; what is half written (its name begins with a dot) is left out."""
    found = []
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
            if path.is_file() and not hidden and path != folder / MARKER:
                found.append((path.stat().st_mtime_ns, path))
    return [path for _, path in sorted(found)]


def pack(folder: Path, piece_bytes: int = PIECE_BYTES) -> Iterator[Piece]:
    """Read a folder's files, one piece in memory at a time."""
    piece: Piece = []
    room = piece_bytes
    for path in files_of(folder):
        name = path.relative_to(folder).as_posix()
        with open(path, "rb") as file:
            while True:
                data = file.read(room)
                piece.append((name, data))
                room -= len(data)
                if room:
                    break  # the file's end
                yield piece
                piece, room = [], piece_bytes
    if piece:
        yield piece


def unpack(pieces: Iterable[Piece], folder: Path) -> list[Path]:
    """Write what `pack` gave; each file appears whole or not at all."""
    written: list[Path] = []
    at: Path | None = None
    file: IO[bytes] | None = None

    def put() -> None:
        if file is not None and at is not None:
            file.close()
            os.replace(file.name, at)
            written.append(at)

    try:
        for piece in pieces:
            for name, data in piece:
                if folder / name != at:
                    put()
                    at = folder / name
                    at.parent.mkdir(parents=True, exist_ok=True)
                    file = open(at.with_name(f".{at.name}.{os.getpid()}.part"), "wb")  # noqa: SIM115 (over entries)
                assert file is not None
                file.write(data)
        put()
    finally:
        if file is not None:
            file.close()
    return written


def write_files(files: Mapping[str, bytes], folder: Path) -> None:
    """Write files that came whole, each atomically and in the order given."""
    for name, content in files.items():
        atomic_write_bytes(folder / name, content)


def keep_only(folder: Path, names: Collection[str]) -> None:
    """Remove what a folder holds besides some files."""
    for path in files_of(folder):
        if path.relative_to(folder).as_posix() not in names:
            path.unlink(missing_ok=True)
    for path in sorted(folder.rglob("*"), reverse=True):  # what is inside comes before what it is in
        if path.is_dir():
            with contextlib.suppress(OSError):  # not empty
                path.rmdir()


def cache_root() -> Path:
    """Return this node's folder for what is sent to it: `IDEAL_PROXY_CACHE`, or one in the temporary folder."""
    root = Path(os.environ.get(CACHE) or Path(tempfile.gettempdir()) / f"ideal-proxy-{os.getuid()}")
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = root.stat().st_uid
    except OSError as error:
        raise UserError(f"cannot use {root} on a node ({error.strerror}); set {CACHE} to another folder") from error
    if owner != os.getuid():
        raise UserError(f"{root} belongs to another user; set {CACHE} to a folder of your own")
    return root


def hold(folder: Path) -> IO[str]:
    """Claim a folder of the cache for this process, beside others that hold it too; sweep what nobody holds any more.

    Args:
        folder: a folder below `cache_root()`; it need not exist.

    Returns:
        IO: keep it open; the claim ends with it, however the process ends.
    """
    held = open(_lock_of(folder), "a", encoding="utf-8")  # noqa: SIM115 (the caller keeps it)
    fcntl.flock(held, fcntl.LOCK_SH)
    if not held.tell():
        held.write(SIGN)
        held.flush()
    os.utime(held.fileno())
    for lock in folder.parent.glob(f"*{LOCK_END}"):
        with contextlib.suppress(OSError, UnicodeDecodeError), open(lock, "r+", encoding="utf-8") as other:
            # One that nobody holds just now may be about to get its next worker.
            old = lock != _lock_of(folder) and time.time() - lock.stat().st_mtime > SWEEP_SECONDS
            if old and other.read(len(SIGN)) == SIGN:
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove(lock.with_name(lock.name.removesuffix(LOCK_END)))
    return held


def remove(folder: Path) -> None:
    """Remove a folder of the cache with its lock."""
    shutil.rmtree(folder, ignore_errors=True)
    _lock_of(folder).unlink(missing_ok=True)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Be the only process of this node that fills a folder."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(f".{folder.name}.filling"), "a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}{LOCK_END}")
