"""A run directory taken for one search: what it may hold, and what makes two searches the same one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ideal_proxy.config import SearchConfig, dump_config, load_config
from ideal_proxy.errors import UserError
from ideal_proxy.pipeline.earlier_runs import REUSED
from ideal_proxy.pipeline.prepare import BAD_ROWS, still_true
from ideal_proxy.provenance import provenance
from ideal_proxy.sections import CostConfig
from ideal_proxy.store import atomic_write_json, atomic_write_text, is_complete, is_json, marked_as, strangers

MOST_KEYS = 3  # named of those by which a run file differs


def claim(config: SearchConfig, folder: Path, *, dry_run: bool = False) -> None:
    """Take a run directory for this configuration, or refuse one that holds another run."""
    path, planned = folder / "config.yaml", folder / "dry-run"
    text = dump_config(config)
    kept = {planned.name, BAD_ROWS, REUSED, "frozen"}
    if planned.exists():  # a plan alone may be replaced by another one
        before = load_config(path) if path.exists() else None
        if before is not None and identity(before) == identity(config) and still_true(folder):
            kept.add("prepared")
        else:
            for name in ("prepared", REUSED):
                shutil.rmtree(folder / name, ignore_errors=True)
        if before is None or dump_config(before) != text or "prepared" not in kept:
            for name in ("plan.json", "prepared/plan.json", path.name):
                (folder / name).unlink(missing_ok=True)
        (folder / "provenance.json").unlink(missing_ok=True)  # of the plan, which may be of other code
    if not dry_run:
        planned.unlink(missing_ok=True)
    if path.exists():
        if is_complete(folder) and marked_as(path, text.encode()):  # of this very run file: made anew where damaged
            atomic_write_text(path, text)
        if (held := identity(load_config(path))) != (asked := identity(config)):
            raise UserError(
                f"{folder} holds another run (its config.yaml differs{_told(held, asked)}); choose another --out, or "
                "remove the folder"
            )
        if not is_json(folder / "provenance.json"):
            atomic_write_json(folder / "provenance.json", provenance(), seal=True)
        return
    if found := strangers(folder, kept):
        raise UserError(f"{folder} is not empty ({found[0]}) and holds no search; choose another --out")
    if dry_run:
        planned_only(folder)
    atomic_write_text(path, text)  # first, so that a search killed here is known as one
    atomic_write_json(folder / "provenance.json", provenance(), seal=True)


def _told(held: SearchConfig, asked: SearchConfig) -> str:
    """Name the first keys by which two configurations differ."""
    keys = list(_differing(held.model_dump(mode="json"), asked.model_dump(mode="json")))
    more = f" and {len(keys) - MOST_KEYS} more" if len(keys) > MOST_KEYS else ""
    return f" in {', '.join(keys[:MOST_KEYS])}{more}" if keys else ""


def _differing(held: Any, asked: Any, key: str = "") -> Iterator[str]:
    """Go down where both sides have the same keys, or lists of one length, and give the dotted keys that differ."""
    if isinstance(held, list) and isinstance(asked, list) and len(held) == len(asked):
        held, asked = dict(enumerate(held)), dict(enumerate(asked))
    if not key or (isinstance(held, dict) and isinstance(asked, dict) and held.keys() == asked.keys()):
        for name in held:
            yield from _differing(held[name], asked[name], f"{key}.{name}" if key else str(name))
    elif held != asked:
        yield key


def planned_only(folder: Path) -> None:
    """Mark a folder that holds a plan or a refused one, in which any search may begin."""
    atomic_write_text(folder / "dry-run", "Nothing was trained; any search may begin here.\n")


def identity(config: SearchConfig) -> SearchConfig:
    """Return what a run's numbers depend on: neither workers and their place nor the time and money it may take."""
    patient = {"timeout_seconds": 1.0, "keep_models": False, "noisy": False}
    capabilities = tuple(
        c if c.metric is None else c.model_copy(update={"metric": c.metric.model_copy(update=patient)})
        for c in config.capabilities
    )
    places: dict[str, Any] = {
        "workers": None,
        "engine": "local",
        "address": "auto",
        "gpus": 0.0,
        "slurm": {},
        "keep_weights": 0.0,
    }
    swarm = config.swarm.model_copy(update={"max_hours": None, **places})
    verify = config.verify.model_copy(update={"max_pairs": 0})  # may be asked of a finished one
    proxy = config.proxy.model_copy(update={"timeout_seconds": None, "folder": None})
    free = {"swarm": swarm, "proxy": proxy, "capabilities": capabilities, "cost": CostConfig(), "verify": verify}
    return config.model_copy(update={**free, "tracker": None, "rounds": 1})
