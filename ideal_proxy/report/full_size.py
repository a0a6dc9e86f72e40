"""Predicted against observed at full size: what scale-ups of a search's mixture showed, one table."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from ideal_proxy.errors import UserError
from ideal_proxy.store import read_json
from ideal_proxy.terminal import interval_text, sentence

SCALE_UP = "ideal-proxy/scale-up/1"
HEADER = ("model", "capability", "predicted", "interval", "observed", "inside")


def scale_ups(run: Path) -> list[dict[str, Any]]:
    """Read the finished scale-ups beside a mixture that trained base too."""
    found = []
    for path in sorted(run.glob("*/result.json")):
        with contextlib.suppress(UserError):
            result = read_json(path)
            if isinstance(result, dict) and result.get("format") == SCALE_UP and result.get("gain"):
                found.append(result)
    return found


def full_size_rows(results: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Give the lines of the table: changes of loss against base."""
    rows: list[tuple[str, ...]] = []
    for result in results:
        model = result["model"].rstrip("/").rsplit("/", 1)[-1]
        for entry in result["capabilities"]:
            predicted = entry.get("predicted")
            inside = {None: "-", True: "yes", False: "no"}[entry.get("inside")]
            bounded = predicted is not None and predicted["lower"] is not None
            rows.append((
                model, entry["name"], "-" if predicted is None else f"{predicted['value'] - 1:+.1%}",
                interval_text(predicted, "+.1%", less=1) if bounded else "-",
                f"{entry['ratio']['value'] - 1:+.1%}", inside,
            ))  # fmt: skip
    return rows


def full_size_text(results: list[dict[str, Any]]) -> str:
    """Say in a sentence how many lay inside, and what was gained."""
    inside = [
        entry["inside"] for result in results for entry in result["capabilities"] if entry.get("inside") is not None
    ]
    gains = "; ".join(result["gain"]["sentence"] for result in results)
    held = f"{sum(inside)} of {len(inside)} changes lie inside their predicted intervals. " if inside else ""
    return f"{held}{sentence(gains)} The next `search --reuse` of this run begins with these runs"
