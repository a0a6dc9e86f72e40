"""Whether the data of a run are still what it was begun with, for every kind of source."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ideal_proxy.data import HUB, find_files, is_virtual, parse_hub, read_rows, row_keys, source_fingerprint
from ideal_proxy.errors import UserError


class Origin(NamedTuple):
    """A source as it was read: where, in which layout, and the fingerprint of its rows."""

    source: str
    format: str
    fingerprint: str


def stamp(source: str) -> list[list[Any]] | None:
    """Note path, size and time of change of every file of a source; None where there is no file to look at."""
    if not is_virtual(source):
        files = list(find_files(source))
    else:
        folder = _hub_folder(source)
        if folder is None:
            return None
        files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def refuse_changed_sources(origins: Iterable[Origin], stamps: Mapping[str, Any], run: Path) -> None:
    """Refuse to go on with other data than a run was begun with; rows are read again where the files look different."""
    for origin in origins:
        try:
            now = stamp(origin.source)
            if now is not None and now == stamps.get(origin.source):
                continue
            found = source_fingerprint(row_keys(read_rows(origin.source, format=origin.format, max_bad=-1)))
        except (UserError, OSError) as error:
            if origin.source.startswith(HUB) and _hub_folder(origin.source) is None:
                continue  # a hub that does not answer need not stop a search whose rows are read already
            raise UserError(f"{origin.source} is not what {run} was begun with: {error}") from error
        if found != origin.fingerprint:
            raise UserError(
                f"{origin.source} changed since {run} was begun; restore it, or start anew with another --out"
            )


def _hub_folder(source: str) -> Path | None:
    """Give the folder that an `hf:` source names, where it names one."""
    folder = Path(parse_hub(source).name).expanduser() if source.startswith(HUB) else None
    return folder if folder is not None and folder.is_dir() else None
