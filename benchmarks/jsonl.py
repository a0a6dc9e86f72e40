"""Rows that a long benchmark writes as it goes, a line of JSON each, so that a stopped one goes on."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


def read(path: Path) -> list[dict[str, Any]]:
    """Give the rows that are there, none where the file is not; a last line that was cut off is left out."""
    if not path.exists():
        return []
    whole, _, cut = path.read_bytes().rpartition(b"\n")
    if cut:
        print(f"{path.name}: its last line was cut off, and is left out", file=sys.stderr)
    try:
        return [json.loads(line) for line in whole.splitlines()]
    except json.JSONDecodeError as error:
        sys.exit(f"{path} holds a line that is not JSON: {error}; mend it, or take the line away")


def add(path: Path, row: dict[str, Any]) -> None:
    """Write one more row, to the disk, in the place of a last line that was cut off."""
    if path.exists():
        whole, end, cut = path.read_bytes().rpartition(b"\n")
        if cut:
            os.truncate(path, len(whole + end))
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())
