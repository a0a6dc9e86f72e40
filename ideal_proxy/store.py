"""Run directories: atomic writes, a marker written last, one lock, provenance.

A run directory is the only state of a search. Everything in it is either complete (its marker stands) or can be
thrown away, so a killed search starts again from it and ends with the same numbers.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from ideal_proxy import __version__
from ideal_proxy.errors import UsageError, UserError

MARKER = "complete"
MIXTURE = "mixture.json"
LOCK = "lock"
LOOK_SECONDS = 0.25
BEAT_SECONDS = 15.0
QUIET_SECONDS = 90.0
"""Another machine's lock that was not touched for so long is released; file systems cache times for up to 60 s."""
PACKAGES = ("ideal-proxy", "torch", "transformers", "tokenizers", "numpy", "scipy", "scikit-learn", "accelerate")


def atomic_write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never half of it.

    Args:
        path: the file; its folder is made where it is missing.
        content: the bytes.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; what was finished before is kept, "
            "make room or choose another --out and run the same command again"
        ) from error


def atomic_write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically.

    Args:
        path: the file.
        text: its whole content.
    """
    atomic_write_bytes(path, text.encode())


def atomic_write_json(path: str | Path, value: Any) -> None:
    """Write indented JSON with sorted keys off (order is part of the file) atomically.

    Args:
        path: the file.
        value: anything `json` takes; NaN is refused.
    """
    atomic_write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Args:
        path: the file.

    Returns:
        Any: the parsed value.

    Raises:
        UserError: the file is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; check the path") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); restore it or make it anew") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def mark_complete(folder: str | Path) -> None:
    """Set the marker that says: every other file of this folder is whole. Call it last.

    Args:
        folder: the finished folder.
    """
    atomic_write_text(Path(folder) / MARKER, "")


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
    return place / MIXTURE


def is_complete(folder: str | Path) -> bool:
    """Tell whether the folder's marker stands.

    Args:
        folder: the folder.

    Returns:
        bool: True when the work in it was finished.
    """
    return (Path(folder) / MARKER).is_file()


@contextlib.contextmanager
def lock(folder: str | Path) -> Iterator[None]:
    """Hold the run directory for this process; the kernel lets go of it however the process ends.

    On one machine that is certain. Over a shared file system it is where that carries `flock` between machines (NFS
    does by default, some mounts do not); for those the holder also touches the file now and then, and a machine that
    sees another's fresh touch refuses. Two searches begun within a moment of each other on such a mount can both pass.

    Args:
        folder: the run directory.

    Yields:
        None: while the lock is held.

    Raises:
        UserError: another process holds it.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = open(folder / LOCK, "a+", encoding="utf-8")  # noqa: SIM115 (held until the block ends)
    except OSError as error:
        raise UserError(f"cannot use {folder} as a run directory: {error.strerror}; choose another --out") from error
    with handle:
        deadline = time.monotonic() + LOOK_SECONDS
        while (locked := _flock(handle, fcntl.LOCK_EX)) is False:
            if time.monotonic() >= deadline:
                raise UserError(
                    f"{folder} is in use by {_read(handle) or 'another process'}; wait for it, stop it, or choose "
                    "another --out"
                )
            time.sleep(LOOK_SECONDS / 5)  # `lock_holder` may be looking just now
        if (quiet := _quiet_seconds(handle, folder, locks=locked is True)) is not None:
            raise UserError(
                f"{folder} was in use by {_read(handle)} {quiet:.0f} s ago, and its file system may not carry locks; "
                f"stop that search, or, if it is gone, try again in {QUIET_SECONDS - quiet:.0f} s"
            )
        handle.seek(0)
        handle.truncate()
        handle.write(f"process {os.getpid()} on {platform.node()}")
        handle.flush()
        over = threading.Event()
        beat = threading.Thread(target=_beat, args=(handle, over), daemon=True)
        beat.start()
        try:
            yield
        finally:
            over.set()
            beat.join()
            handle.truncate(0)  # released, for machines that cannot see the lock itself


def _flock(handle: IO[str], kind: int) -> bool | None:
    """Try to lock a file; None where its file system has no locks, and other signs must do."""
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except OSError as error:
        return None if error.errno in {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP} else False
    return True


def _beat(handle: IO[str], over: threading.Event) -> None:
    """Touch the lock until it is over."""
    while not over.wait(BEAT_SECONDS):
        with contextlib.suppress(OSError):
            os.utime(handle.fileno())


def _read(handle: IO[str]) -> str:
    handle.seek(0)
    return handle.read().strip()


def _quiet_seconds(handle: IO[str], folder: Path, *, locks: bool) -> float | None:
    """Return how long ago somebody touched the lock who has not given it back; None where that is past.

    Where there are locks, one that was had says enough of this machine's own processes.
    """
    holder = _read(handle)
    if not holder or (locks and holder.endswith(f" on {platform.node()}")):
        return None
    # The file system's own clock, which is not this machine's, says what time it is.
    with tempfile.TemporaryFile(dir=folder) as now:
        quiet = os.fstat(now.fileno()).st_mtime - os.fstat(handle.fileno()).st_mtime
    return max(0.0, quiet) if quiet < QUIET_SECONDS else None


def lock_holder(folder: str | Path) -> str | None:
    """Tell who holds a run directory, without disturbing them.

    Args:
        folder: the run directory.

    Returns:
        str: such as 'process 4711 on node7'; None where nobody does.
    """
    try:
        handle = open(Path(folder) / LOCK, encoding="utf-8")  # noqa: SIM115 (closed by the block)
    except OSError:
        return None
    with handle:
        locked = _flock(handle, fcntl.LOCK_SH)
        if locked is False:
            return _read(handle) or "another process"
        with contextlib.suppress(OSError):  # a folder that only others may write to
            if _quiet_seconds(handle, Path(folder), locks=locked is True) is not None:
                return _read(handle)
    return None


def provenance() -> dict[str, Any]:
    """Say what produced a result: versions, source revision, machine, command, time.

    Returns:
        dict: JSON-ready; the keys `time` and `command` are the only ones that differ between equal runs.
    """
    versions: dict[str, str] = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    versions.setdefault("ideal-proxy", __version__)
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": " ".join(Path(part).name if n == 0 else part for n, part in enumerate(sys.argv)),
        "versions": versions,
        "git": _git_revision(),
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "processor": _processor(),
            "cores": os.cpu_count(),
        },
    }


def _git_revision() -> str | None:
    """Return the checkout's revision, with `-dirty` where it has changes, or None outside one."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        answer = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty"],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None


def _processor() -> str:
    """Return the processor's name as the machine tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
