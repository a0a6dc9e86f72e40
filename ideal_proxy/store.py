"""Run directories: atomic writes, a marker written last, one lock.

A run directory is the only state of a search. Everything in it is either complete (its marker stands) or can be
thrown away, so a killed search starts again from it and ends with the same numbers.
"""

from __future__ import annotations

import contextlib
import errno
import filecmp
import io
import json
import os
import platform
import shutil
import stat
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import xxhash
from filelock import FileLock, Timeout

from ideal_proxy.errors import UsageError, UserError

MARKER = "complete"
MIXTURE = "mixture.json"
LOCK = "lock"
HOLDER = "lock.holder"  # names the holder, beside the lock: `filelock` empties the lock itself
LOCK_FILES = frozenset({LOCK, HOLDER})
LOOK_SECONDS = 0.25
BEAT_SECONDS = 15.0
QUIET_SECONDS = 90.0
"""Another machine's lock that was not touched for so long is released; file systems cache times for up to 60 s."""
HASHED_WHOLE = 1 << 28
"""A larger file is known by its size and by samples, so that weights of gigabytes are not read twice."""
MOST_JSON = 1 << 28
SEAL = "checksum"
NO_ARRAYS = (
    OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What numpy and zipfile raise of a damaged .npz file."""
SAMPLES, SAMPLE_BYTES = 256, 1 << 16


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a place to write a file or a folder at; it stands under its name once it is whole, or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        move(part, path)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; what was finished before is kept, "
            "make room or choose another --out and run the same command again"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)


def move(part: Path, path: Path) -> None:
    """Put a finished file or folder under its name, so that the name outlasts a power cut too."""
    os.replace(part, path)
    with contextlib.suppress(OSError):  # some file systems cannot sync a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def atomic_write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never half of it."""
    with whole(Path(path)) as part, open(part, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def atomic_write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    atomic_write_bytes(path, text.encode())


def atomic_write_json(path: str | Path, value: Any, *, seal: bool = False) -> None:
    """Write indented JSON with sorted keys off (order is part of the file) atomically.

    A sealed object holds its own checksum, which `read_json` takes out and holds it to.
    """
    if seal:
        value = {**value, SEAL: _seal(value)}
    atomic_write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def json_bytes(value: Any, default: Callable[[Any], Any] | None = None) -> bytes:
    """Write a value as JSON in UTF-8; half a character, which UTF-8 cannot hold, as its escape."""
    return json.dumps(value, ensure_ascii=False, default=default).encode(errors="backslashreplace")


def atomic_write_rows(path: str | Path, rows: Iterable[Any]) -> None:
    """Write rows as a line of JSON each, atomically."""
    atomic_write_bytes(path, b"".join(json_bytes(row, default=str) + b"\n" for row in rows))


def atomic_write_arrays(path: str | Path, arrays: Mapping[str, Any]) -> None:
    """Write arrays as one .npz file atomically."""
    import numpy as np

    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    atomic_write_bytes(path, buffer.getvalue())


def copy_checked(source: Path, target: Path) -> None:
    """Copy a file or a folder whole; a copy that is there and no longer equal is made anew."""
    files = [path.relative_to(source) for path in source.rglob("*") if path.is_file()] if source.is_dir() else [Path()]
    with contextlib.suppress(OSError):
        if all(filecmp.cmp(source / name, target / name, shallow=False) for name in files):
            return
    with whole(target) as part:
        if source.is_dir():
            shutil.copytree(source, part)
            shutil.rmtree(target, ignore_errors=True)
        else:
            shutil.copyfile(source, part)


def save_pretrained(kept: Any, folder: Path) -> None:
    """Write a model or a tokenizer of transformers; its libraries tell of a full disk by bare exceptions."""
    try:
        kept.save_pretrained(str(folder))
    except Exception as error:
        if isinstance(error, OSError) or "os error" in str(error):
            raise UserError(f"cannot write {folder}: {error}; make room and run the same command again") from error
        raise


def file_size(path: str | Path) -> int:
    """Bytes of a regular file; anything else that can be opened may never end."""
    told = os.stat(path)
    if stat.S_ISDIR(told.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(told.st_mode):
        raise OSError(errno.EINVAL, "a pipe or a device, not a file", str(path))
    return told.st_size


def read_json(path: str | Path) -> Any:
    """Read a JSON file that holds one object, as every file of ours does."""
    try:
        if (size := file_size(path)) > MOST_JSON:
            raise UserError(f"{path} has {size >> 20} MiB, more than any file of ours; restore it or make it anew")
        value = json.loads(Path(path).read_text(encoding="utf-8"), object_pairs_hook=_once)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; check the path") from error
    except RecursionError as error:
        raise UserError(f"{path} is nested too deeply for a file of ours; restore it or make it anew") from error
    except ValueError as error:  # no JSON, no UTF-8, or a number of thousands of digits
        raise UserError(f"{path} is not valid JSON ({str(error)[:120]}); restore it or make it anew") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object; restore it or make it anew")
    if (told := value.pop(SEAL, None)) is not None and told != _seal(value):
        raise UserError(f"{path} is damaged: it is not what was written; restore it or make it anew")
    return value


def is_json(path: Path) -> bool:
    """Tell whether a file of ours is there and whole."""
    try:
        read_json(path)
    except UserError:
        return False
    return True


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse an object in which a key stands twice: the last would win in silence."""
    value = dict(pairs)
    if len(value) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice")
    return value


def read_either(path: Path, copy: Path) -> Any:
    """Read a sealed file, or where it is damaged its sealed copy, which then takes its place."""
    try:
        return read_json(path)
    except UserError:
        if not copy.is_file():
            raise
        atomic_write_json(path, value := read_json(copy), seal=True)
        return value


def strangers(folder: Path, known: Collection[str] = ()) -> list[str]:
    """Name what is in a folder of ours that nobody of us wrote: no lock, and no half of a file that a kill left."""
    found = sorted(os.listdir(folder))
    return [name for name in found if name not in {*LOCK_FILES, *known} and not name.endswith(".part")]


def _seal(value: dict[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(value, sort_keys=True).encode())


def mark_complete(folder: str | Path, files: Iterable[str] | None = None) -> None:
    """Set the marker: this folder is whole. It holds the checksums of all files, or of those named. Call it last."""
    folder = Path(folder)
    if files is None:
        files = (str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if not path.name.endswith(".part"))
    names = [name for name in files if name != MARKER and (folder / name).is_file()]
    atomic_write_json(folder / MARKER, {name: _checksum(folder / name) for name in names})


def marked_as(path: Path, content: bytes) -> bool:
    """Tell whether the marker beside a file holds the checksum of this content, whatever the file itself holds now."""
    try:
        return bool(_marked(path.parent).get(path.name) == f"{len(content)}:{xxhash.xxh3_128_hexdigest(content)}")
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def mark_again(path: Path) -> None:
    """Take a file as it is now into the marker beside it."""
    mark_complete(path.parent, _marked(path.parent))


def _marked(folder: Path) -> dict[str, str]:
    """Read the checksums in a marker; those of an earlier version are empty."""
    sums: dict[str, str] = json.loads((folder / MARKER).read_text(encoding="utf-8") or "{}")
    if not isinstance(sums, dict):
        raise ValueError(f"{folder / MARKER} holds no names")
    if strange := [name for name in sums if ".." in Path(name).parts or not (folder / name).is_relative_to(folder)]:
        raise ValueError(f"{strange[0]!r} is no name in {folder}")
    return sums


def _checksum(path: Path) -> str:
    """Return a file's size and hash."""
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is no regular file")
    size = path.stat().st_size
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        if size <= HASHED_WHOLE:
            while block := file.read(1 << 20):
                digest.update(block)
        else:
            for n in range(SAMPLES):
                file.seek((size - SAMPLE_BYTES) * n // (SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
    return f"{size}:{digest.hexdigest()}"


def refuse_damaged(run: Path) -> None:
    """Refuse a finished search whose result files are no longer what was written."""
    if is_complete(run) and (path := damaged_file(run)) is not None:
        raise UserError(
            f"{path} is damaged or was edited; run the same `ideal-proxy search` again: it makes it anew from the "
            "finished runs (an edited mixture.json works under another name)"
        )


def damaged_file(folder: str | Path) -> Path | None:
    """Return the first file of a complete folder that is no longer as it was when the marker was set."""
    folder = Path(folder)
    try:
        for name, told in _marked(folder).items():
            if _checksum(folder / name) != told:
                return folder / str(name)
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        return Path(getattr(error, "filename", None) or folder / MARKER)
    return None


def is_whole(folder: str | Path, tell: Callable[[str], None] | None = None) -> bool:
    """Tell whether the marker stands and every file is as it was; a damaged folder loses its marker."""
    if not is_complete(folder):
        return False
    if (path := damaged_file(folder)) is None:
        return True
    (Path(folder) / MARKER).unlink(missing_ok=True)
    if tell is not None:
        tell(f"{path} is damaged; {Path(folder).name} is made anew")
    return False


def run_folder(place: str | Path) -> Path:
    """Return a run directory, whether it is named itself or by the `mixture.json` in it."""
    place = Path(place)
    return place.parent if place.name == MIXTURE and place.is_file() else place


def mixture_file(place: str | Path) -> Path:
    """Return a mixture file, whether it is named itself or by the run directory that holds it."""
    place = Path(place)
    if not place.is_dir():
        return place
    if not (place / MIXTURE).exists():
        if (place / "config.yaml").exists():
            raise UserError(f"the search in {place} is not finished; run the same `ideal-proxy search` again to go on")
        raise UsageError(f"{place} holds no {MIXTURE}; give a mixture file, or the run directory of a finished search")
    refuse_damaged(place)
    return place / MIXTURE


def is_complete(folder: str | Path) -> bool:
    """Tell whether the folder's marker stands."""
    return (Path(folder) / MARKER).is_file()


@contextlib.contextmanager
def lock(folder: str | Path) -> Iterator[None]:
    """Hold the run directory for this process; it is given back however the process ends."""
    # On one machine that is certain. Over a shared file system it is where that carries locks between machines (NFS
    # does by default, some mounts do not); for those the holder also touches a file that names it, and a machine that
    # sees another's fresh touch refuses. Two searches begun within a moment of each other there can both pass.
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        taken = _take(folder)
    except Timeout as error:
        raise UserError(
            f"{folder} is in use by {_read(folder) or 'another process'}; wait for it, stop it, or choose another --out"
        ) from error
    except OSError as error:
        raise UserError(f"cannot use {folder} as a run directory: {error.strerror}; choose another --out") from error
    over = threading.Event()
    beat = threading.Thread(target=_beat, args=(folder / HOLDER, over), daemon=True)
    try:
        if (quiet := _quiet_seconds(folder, locks=taken is not None)) is not None:
            raise UserError(
                f"{folder} was in use by {_read(folder)} {quiet:.0f} s ago, and its file system may not carry locks; "
                f"stop that search, or, if it is gone, try again in {QUIET_SECONDS - quiet:.0f} s"
            )
        (folder / HOLDER).write_text(_signed(f"process {os.getpid()} on {platform.node()}"), encoding="utf-8")
        beat.start()
        try:
            yield
        finally:
            over.set()
            beat.join()
            (folder / HOLDER).unlink(missing_ok=True)
    finally:
        if taken is not None:
            taken.release()


def _take(folder: Path) -> FileLock | None:
    """Take the lock; None where the file system has no locks, and other signs must do."""
    taken = FileLock(folder / LOCK, fallback_to_soft=False)
    try:
        taken.acquire(timeout=LOOK_SECONDS, poll_interval=LOOK_SECONDS / 50)  # a look takes it for a moment
    except OSError as error:
        if error.errno in {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}:
            return None
        raise
    return taken


def _beat(holder: Path, over: threading.Event) -> None:
    """Touch the file that names the holder until it is over."""
    while not over.wait(BEAT_SECONDS):
        with contextlib.suppress(OSError):
            os.utime(holder)


def _read(folder: Path) -> str:
    """Return who holds a run directory, as it says itself; also what a crash left, but nobody where it is damaged."""
    with contextlib.suppress(OSError, ValueError):
        if not (folder / HOLDER).is_file():  # a pipe would be waited for
            return ""
        told = (folder / HOLDER).read_text(encoding="utf-8")
        holder = told.partition("\n")[0]
        return holder if told == _signed(holder) else ""
    return ""


def _signed(holder: str) -> str:
    """Write who holds a run directory, and a checksum."""
    return f"{holder}\n{zlib.crc32(holder.encode()):08x}\n"


def _quiet_seconds(folder: Path, *, locks: bool) -> float | None:
    """Return how long ago somebody touched the lock who has not given it back; None where that is past.

    Where there are locks, one that was had says enough of this machine's own processes.
    """
    holder = _read(folder)
    if not holder or (locks and holder.endswith(f" on {platform.node()}")):
        return None
    # The file system's own clock, which is not this machine's, says what time it is.
    with tempfile.TemporaryFile(dir=folder) as now:
        quiet = os.fstat(now.fileno()).st_mtime - (folder / HOLDER).stat().st_mtime
    return max(0.0, quiet) if abs(quiet) < QUIET_SECONDS else None  # far ahead: that clock was set back


def lock_holder(folder: str | Path) -> str | None:
    """Tell who holds a run directory, such as 'process 4711 on node7', without disturbing them; None for nobody."""
    folder = Path(folder)
    if not (holder := _read(folder)):
        return None
    taken = None
    try:
        taken = _take(folder)
        return holder if _quiet_seconds(folder, locks=taken is not None) is not None else None
    except Timeout:
        return holder
    except OSError:  # a folder that only others may write to
        return None
    finally:
        if taken is not None:
            taken.release()
