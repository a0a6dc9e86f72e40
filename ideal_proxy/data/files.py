"""Data files: which files a source names."""

from __future__ import annotations

import contextlib
import glob as globbing
import json
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from ideal_proxy.errors import UserError, shortened

log = logging.getLogger(__name__)

PACKED = (".gz", ".zst", ".bz2", ".xz")
TEXTS = (".jsonl", ".ndjson", ".jsonlines", ".json", ".csv", ".tsv")
SUFFIXES = (*TEXTS, *(text + packed for text in TEXTS for packed in PACKED), ".parquet", ".arrow")
KINDS = ".jsonl, .ndjson, .jsonlines, .json, .csv, .tsv (also .gz, .zst, .bz2, .xz), .parquet and .arrow"
TRAIN_NAME = re.compile(r"^train(ing)?([-_.]|$)", re.IGNORECASE)
REFERENCE_WORDS = (  # the first is preferred
    "reference", "references", "ref", "validation", "valid", "val", "eval", "dev", "test", "heldout", "held_out",
    "held-out", "holdout",
)  # fmt: skip
HELD_OUT_NAME = re.compile(rf"^({'|'.join(REFERENCE_WORDS)})([-_.]|$)", re.IGNORECASE)
NO_DATA = ("manifest.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")


def is_virtual(source: str | Path) -> bool:
    """Tell whether a source is generated or fetched and not a path."""
    return str(source).startswith(("demo:", "hf:"))


def find_files(source: str | Path) -> tuple[Path, ...]:
    """List the files of a path, glob or folder, sorted."""
    # A folder that has files named train…, or a folder of that name, is read for those alone; otherwise what is named
    # as held out (test, validation, reference, …) is passed over unless there is nothing else. Of a folder that
    # `save_to_disk` wrote its tables are read, those of its training split where it has splits.
    try:
        return _named_files(source)
    except (OSError, ValueError, RecursionError) as error:  # a name of 300 letters, a folder that is not ours to read
        why = getattr(error, "strerror", None) or str(error)
        raise UserError(f"cannot look for {shortened(str(source), 200)} ({why}); check the path") from error


def _named_files(source: str | Path) -> tuple[Path, ...]:
    path = Path(source)
    if path.is_file():
        if not path.name.lower().endswith(SUFFIXES):
            raise UserError(f"{path} is not a data file; give one that ends in {KINDS}")
        return (path,)
    if path.is_dir():
        if is_saved(path):
            return tuple(saved_files(path))
        files = data_files(path)
        if not files:
            raise UserError(f"the folder {path} has no data file ({KINDS}); put one in or name another")
        parts = parts_of(files, path)
        chosen = [p for p in files if parts[p] == "train"]
        chosen = chosen or [p for p in files if parts[p] is None] or files
        if len(chosen) < len(files):
            left = ", ".join(sorted({p.name for p in files} - {p.name for p in chosen})[:4])
            log.info("%s: reading %d of %d files (passing over %s)", path, len(chosen), len(files), left)
        return tuple(chosen)
    if globbing.has_magic(str(source)):
        found = sorted(Path(p) for p in globbing.glob(str(source), recursive=True))
        found = [p for p in found if p.is_file() and p.name.lower().endswith(SUFFIXES)]
        if not found:
            raise UserError(f"no data file matches {source}; check the pattern ({KINDS} are read)")
        return tuple(found)
    raise UserError(f"{source} does not exist; check the path (a Hugging Face data set is written hf:OWNER/NAME)")


def is_saved(folder: Path) -> bool:
    """Tell whether `save_to_disk` of the `datasets` library wrote a folder: one table, or one a split."""
    one = (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    return one or (folder / "dataset_dict.json").is_file()


def saved_files(folder: Path, split: str = "train") -> list[Path]:
    """List the tables of a folder that `save_to_disk` wrote."""
    try:
        if (folder / "dataset_dict.json").is_file():
            splits = _json(folder / "dataset_dict.json")["splits"]
            if split not in splits:
                raise UserError(f"{folder} has no split {split!r}; write hf:{folder}?split=NAME ({', '.join(splits)})")
            folder = folder / split
        files = [folder / part["filename"] for part in _json(folder / "state.json")["_data_files"]]
        if lost := [path for path in files if not path.is_file()]:
            raise ValueError(f"{shortened(repr(lost[0].name))} is no file")
        return files
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} was not saved whole by the datasets library ({error}); save it again") from error


def _json(path: Path) -> Any:
    """Read a JSON file that stands beside rows; a pipe or a device, which may never end, is none."""
    if not path.is_file():
        raise ValueError(f"{path.name} is no file")
    try:
        return json.loads(path.read_bytes())
    except RecursionError as error:
        raise ValueError(f"{path.name} is nested too deeply") from error


def data_files(folder: Path) -> list[Path]:
    """List the data files below a folder, sorted; names that begin with . or _ are no data, links are followed once."""
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        state = os.stat(place)
        if (state.st_dev, state.st_ino) in seen:
            folders.clear()
            continue
        seen.add((state.st_dev, state.st_ino))
        folders[:] = sorted(
            name for name in folders if not name.startswith((".", "_")) and not no_rows(Path(place) / name)
        )
        if is_saved(Path(place)):
            folders[:] = []
            splits = [Path(place), *sorted(p for p in Path(place).iterdir() if p.is_dir())]
            for part in splits:
                if (part / "state.json").is_file():
                    found += saved_files(part)
            continue
        found += [Path(place) / name for name in names if is_data(Path(place) / name)]
    return sorted(found)


def no_rows(folder: Path) -> str:
    """Say what a folder is that holds no rows of the user's own: what this program wrote, or a model; else nothing."""
    if (folder / "provenance.json").is_file() and (folder / "config.yaml").is_file():
        return "a run of ideal-proxy"
    stem, mark, kind = folder.name.rpartition("_")
    if f"{mark}{kind}" == "_split" or stem.endswith("_held"):
        stem = stem.removesuffix("_held")
        if any((folder.parent / f"{stem}{suffix}").is_file() for suffix in (".yaml", ".yml")):
            return f"written by init for {stem}.yaml"
    for name in ("manifest.json", "export.json"):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            if str(_json(folder / name).get("format", "")).startswith("ideal-proxy/"):
                return "rows of a mixture, written by ideal-proxy"
    names = ("tokenizer.json", "tokenizer_config.json", "model.safetensors", "adapter_config.json")
    if (folder / "config.json").is_file() and any((folder / name).is_file() for name in names):
        return "a model"
    return "an adapter" if (folder / "adapter_config.json").is_file() else ""


def is_data(path: Path) -> bool:
    """Tell whether a file holds rows, by its name."""
    named = not path.name.startswith((".", "_")) and path.name.lower().endswith(SUFFIXES)
    return named and path.name not in NO_DATA and path.is_file()


def part_of(file: Path, folder: Path) -> Literal["train", "held out"] | None:
    """Tell by its name, or by the folders that it lies in, which part of a source a file is."""
    for name in file.relative_to(folder).parts:
        if TRAIN_NAME.match(name):
            return "train"
        if HELD_OUT_NAME.match(name):
            return "held out"
    return None


def parts_of(files: Sequence[Path], folder: Path) -> dict[Path, Literal["train", "held out"] | None]:
    """Tell which part of a source each of its files is, by the names of all of them."""
    # A name such as `test_generation` says nothing by itself: a file is held out, or named as training rows, where its
    # name without the word is empty or the number of a part, or where another file has the same name but for the word.
    found = {file: part_of(file, folder) for file in files}
    rests: dict[str, set[str]] = {}
    for file in files:
        rests.setdefault(_rest(file), set()).add(str(found[file]))
    for file, part in found.items():
        rest = _rest(file)
        named = next((n for n in file.relative_to(folder).parts if TRAIN_NAME.match(n) or HELD_OUT_NAME.match(n)), "")
        alone = named == file.name and re.search(r"[^\W\d]", rest) and not re.fullmatch(SPLIT_REST, rest)
        if part is not None and alone and len(rests[rest]) == 1:
            found[file] = None
    # Where one file is a training split, or every file is named as one, its neighbours named so are splits as well.
    splits = {file.parent for file, part in found.items() if part == "train" and TRAIN_NAME.match(file.name)}
    if len(files) > 1 and all(TRAIN_NAME.match(file.name) for file in files):
        splits = {file.parent for file in files}
    return {f: "train" if f.parent in splits and TRAIN_NAME.match(f.name) else part for f, part in found.items()}


SPLIT_REST = re.compile(r"[-_.]?(\d+[-_.]of[-_.]\d+|part|shard|split|set|data|rows|sft|gen)?[-_.\d]*", re.IGNORECASE)


def _rest(file: Path) -> str:
    """Return a file's name without its suffix, the word that names its part, and the numbers behind it."""
    name = next((file.name[: -len(s)] for s in LONGEST_FIRST if file.name.lower().endswith(s)), file.name)
    for pattern in (TRAIN_NAME, HELD_OUT_NAME):
        if match := pattern.match(name):
            name = re.sub(r"[-_.]?\d+([-_.]of[-_.]\d+)?$", "", name[match.end() :])
    return name.strip("-_.").lower()


LONGEST_FIRST = sorted(SUFFIXES, key=len, reverse=True)
