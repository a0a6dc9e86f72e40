"""Data sets of the Hugging Face hub, and folders that the `datasets` library wrote, as records.

A source is `hf:NAME[:CONFIG][?split=SPLIT&revision=REVISION]`; NAME is a hub id or a folder.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from ideal_proxy.data.files import is_saved
from ideal_proxy.data.records import Record
from ideal_proxy.errors import UsageError, UserError, shortened

HUB = "hf:"
KEYS = ("split", "revision")
FORM = "hf:OWNER/NAME[:CONFIG][?split=train&revision=main]"


@dataclass(frozen=True, slots=True, kw_only=True)
class HubSource:
    """One data set."""

    name: str  # hub id or folder
    config: str | None = None  # its configuration; None for the only one
    split: str = "train"  # a split, or a slice of one such as `train[:1000]`
    revision: str | None = None  # branch, tag or commit of a hub id


def parse_hub(source: str) -> HubSource:
    """Read a source as the run file writes it."""
    body, mark, query = source.removeprefix(HUB).partition("?")
    name, _, config = body.partition(":")
    if not name:
        raise UsageError(f"{source} names no data set; write {FORM}")
    options: dict[str, str] = {}
    for key, value in parse_qsl(query.replace("+", "%2B"), keep_blank_values=True):
        if key not in KEYS:
            close = difflib.get_close_matches(key, KEYS, n=1, cutoff=0.5)
            raise UsageError(
                f"{source}: unknown key {key!r}; "
                + (f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(KEYS)}")
            )
        if key in options or not value:
            raise UsageError(f"{source}: {key} must stand once and have a value; write {FORM}")
        options[key] = value
    if mark and not options:
        raise UsageError(f"{source}: nothing stands after the question mark; write {FORM}")
    return HubSource(name=name, config=config or None, **options)


def hub_records(source: str) -> Iterator[Record]:
    """Read a data set with the `datasets` library, which keeps it in its cache and maps it from there."""
    wanted = parse_hub(source)
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"{source} needs the datasets library; run `pip install ideal-proxy[hub]`") from error
    local = Path(os.path.expanduser(wanted.name))  # which leaves ~ before an unknown name as it is
    if wanted.name.startswith(("/", ".", "~")) and not os.path.isdir(local):
        raise UserError(f"{shortened(source, 200)}: the folder {shortened(str(local), 200)} does not exist; check it")
    with _quiet(datasets):
        try:
            table = _saved(datasets, local, wanted) if is_saved(local) else _load(datasets, wanted)
        except UserError:
            raise
        except Exception as error:  # the library raises a dozen kinds; each means that the set was not had
            raise UserError(f"cannot load {source} ({_reason(error)}); {_cure(error, wanted)}") from error
    rows = iter(table)
    number = 0
    while True:
        try:
            value = next(rows)
        except StopIteration:
            return
        except Exception as error:  # a column that needs a decoder, a cache that went away
            raise UserError(f"cannot read {source} after row {number} ({_reason(error)})") from error
        number += 1
        yield Record(value, f"{source} row {number}")


def _load(datasets: Any, wanted: HubSource) -> Any:
    """Load a repository of the hub, or a folder that is laid out like one."""
    options: dict[str, Any] = {} if wanted.revision is None else {"revision": wanted.revision}
    return datasets.load_dataset(wanted.name, wanted.config, split=wanted.split, **options)


def _saved(datasets: Any, folder: Path, wanted: HubSource) -> Any:
    """Open what `save_to_disk` wrote: one table, or one for each split."""
    if wanted.config or wanted.revision:
        raise UsageError(f"{folder} was saved by the datasets library: it has neither a configuration nor a revision")
    found = datasets.load_from_disk(str(folder))
    if isinstance(found, dict):
        if wanted.split not in found:
            raise UserError(f"{folder} has no split {wanted.split!r}; it has {', '.join(found)} (write ?split=NAME)")
        return found[wanted.split]
    if wanted.split != "train":
        raise UserError(f"{folder} holds one table without splits; leave ?split={wanted.split} out")
    return found


def _cure(error: Exception, wanted: HubSource) -> str:
    """Say what to do about an error of the library."""
    text = str(error)
    if isinstance(error, ConnectionError) or "offline" in text.lower() or "Couldn't reach" in text:
        return "the hub cannot be reached: check the network, or give a folder or a file that is here"
    if "onfig" in text and wanted.config is None:
        return f"name a configuration: hf:{wanted.name}:CONFIG"
    if "onfig" in text:
        return f"choose another configuration (a split is written hf:{wanted.name}?split={wanted.config})"
    if "split" in text:
        return f"choose another split: hf:{wanted.name}?split=NAME"
    return "check the name, the split and the network"


def _reason(error: Exception) -> str:
    """Return the library's own words, without examples of its own use."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    kept = [line for line in lines if not line.startswith(("Example of usage", "`load_dataset"))][:2]
    return " ".join(kept) or type(error).__name__


@contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """Keep the library's bars from the user; ours are the only ones."""
    shown = not datasets.utils.are_progress_bars_disabled()
    datasets.utils.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.utils.enable_progress_bars()
