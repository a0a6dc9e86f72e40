"""Rows that a long benchmark writes as it goes, a line of JSON each, so that a stopped one goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read(path: Path) -> list[dict[str, Any]]:
    """Give the rows that are there; none where the file is not."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def add(path: Path, row: dict[str, Any]) -> None:
    """Write one more row."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
