"""`result.json`: what a finished search found, read without loading anything heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ideal_proxy.errors import UserError
from ideal_proxy.store import read_json, refuse_damaged


def load_result(run: Path) -> dict[str, Any]:
    """Read the result of a finished search."""
    path = run / "result.json"
    if path.exists():
        refuse_damaged(run)
        result: dict[str, Any] = read_json(path)
        if str(result.get("format", "")).startswith("ideal-proxy/scale-up"):
            raise UserError(f"{path} is of a scale-up, not of a search; the search's report has its table")
        try:
            told = result["verdict"]["sentence"], result["steps"]["base"], result["check"]["seeds_of"]
            str((told, [domain["moves"] for domain in result["domains"]]))
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path} is damaged or of another version (it lacks {error}); remove it and run the same search again: "
                "finished runs are kept, or use the version that provenance.json names"
            ) from error
        return result
    if (run / "config.yaml").exists():
        raise UserError(f"the search in {run} is not finished; run the same `ideal-proxy search` again to go on")
    raise UserError(f"{run} is no run directory; give the folder that `ideal-proxy search --out` made")
