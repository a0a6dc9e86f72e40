"""Which files of a folder are a domain's training rows and which its reference rows, whatever the layout.

Understood are, for a domain NAME:

    NAME/train.jsonl      NAME/reference.jsonl (or validation, valid, val, eval, dev, test)
    NAME/train/…          NAME/test/…
    NAME/data/train-00000-of-00004.parquet …    NAME/data/validation-00000-of-00001.parquet
    NAME.jsonl or NAME/   NAME.reference.jsonl, NAME_test.jsonl, reference/NAME.jsonl
    train/NAME.jsonl      test/NAME.jsonl
"""

from __future__ import annotations

import difflib
import glob as globbing
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ideal_proxy.data.files import (
    HELD_OUT_NAME,
    KINDS,
    REFERENCE_WORDS,
    SUFFIXES,
    TRAIN_NAME,
    data_files,
    find_files,
    is_data,
    is_saved,
    no_rows,
    parts_of,
)
from ideal_proxy.errors import UserError

TRAIN_WORDS = ("train", "training")
UNSURE_WORDS = ("valid", "val", "eval", "dev", "test")  # `self_eval` and `unit-test` are names of what is trained on
UNREAD = (
    ".txt", ".md", ".feather", ".orc", ".avro", ".xlsx", ".zst", ".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".pkl",
    ".db",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Found:
    """One domain that a folder seems to hold."""

    name: str  # its name
    train: Path  # file, folder or glob of training rows
    reference: Path | None  # file, folder or glob of reference rows, None where there is none


@dataclass(frozen=True, slots=True)
class Layout:
    """What looking at a folder found."""

    domains: list[Found]  # by name
    passed_over: list[str]  # what was not taken, a sentence each
    references: list[tuple[str, Path]]  # name and place of reference rows that belong to no domain
    questions: list[str]  # what the user has to decide, a sentence each


def look(folder: Path) -> Layout:
    """Find the domains of a folder, and say what was passed over."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; give the folder that holds one file or folder of rows a domain")
    entries = [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith((".", "_"))]
    held = [entry for entry in entries if entry.is_dir() and entry.name.lower() in REFERENCE_WORDS]
    entries = [entry for entry in entries if entry not in held]
    passed: list[str] = []
    for entry in [entry for entry in entries if entry.is_dir()]:
        what = no_rows(entry)
        if what:
            entries.remove(entry)
            passed.append(f"{entry.name}/ ({what})")
            continue
        deeper = [(path.name, what) for path in sorted(entry.glob("*/")) if (what := no_rows(path))]
        passed += [f"{entry.name}/{name}/ ({what})" for name, what in deeper]
        if deeper and not data_files(entry):
            entries.remove(entry)
    splits = [entry for entry in entries if entry.is_dir() and entry.name.lower() in {"train", "training"}]
    if splits and not any(data_files(e) if e.is_dir() else is_data(e) for e in entries if e not in splits):
        entries = sorted(entry for split in splits for entry in split.iterdir() if not entry.name.startswith("."))
    partners = {entry: _partner(entry) for entry in entries if not entry.is_dir() and is_data(entry)}
    strays = _strays(partners, alone=not any(entry.is_dir() for entry in entries))
    found: list[Found] = []
    unread: list[str] = []
    lonely: list[tuple[str, Path]] = []
    questions: list[str] = []
    for entry in entries:
        if entry.is_symlink() and entry.is_dir() and folder.resolve().is_relative_to(entry.resolve()):
            passed.append(f"{entry.name} (a link to the folder that it lies in)")
        elif entry.is_dir():
            domains = _folder_domains(entry, held, passed)
            found += domains
            if len(domains) > 1:
                splits_of = ", ".join(domain.name for domain in domains)
                rest = domains[0].name.removeprefix(f"{entry.name}_")
                folders = (entry / rest).is_dir() or (entry / "data" / rest).is_dir()
                parts = "configurations" if folders else "training splits"
                questions.append(
                    f"{entry.name}/ holds {len(domains)} {parts} ({splits_of}): are they the same rows? "
                    "keep what you train on and delete the others from the run file"
                )
            if domains:
                if _unread(entry.rglob("*")):
                    unread.append(f"{entry.name}/ in part")
            elif _unread(entry.rglob("*")):
                unread.append(f"{entry.name}/")
            elif data_files(entry):
                lonely.append((entry.name, entry))
        elif is_data(entry):
            if partners[entry] is None and entry not in strays:
                own = _named(entry)
                found.append(Found(own, entry, _beside(own, entry.parent, held)))
        elif entry.is_symlink() and not entry.exists():
            passed.append(f"{entry.name} (a link to {entry.readlink()}, which does not exist)")
        elif _unread([entry]):
            unread.append(entry.name)
    taken = {found_.reference for found_ in found}
    known = {domain.name for domain in found} | {name for name, _ in lonely}
    for entry in entries:
        if entry not in partners or entry in taken:
            continue
        of = partners[entry]
        if of is None:
            questions += _asked(entry, entry in strays, sorted(known))
            if entry not in strays:
                continue
        owner = strays[entry] if of is None else of.name if of.is_dir() else _named(of)
        if owner in known:
            passed.append(f"{entry.name} ({owner} has other reference rows)")
        else:
            lonely.append((owner, entry))
            known.add(owner)
    for place in held:
        inside = [*place.iterdir()]
        for part in sorted(inside):
            name = part.name if part.is_dir() else _stem(part) if is_data(part) else None
            if name is None or part in taken or part.name.startswith((".", "_")):
                continue
            if name in known:
                passed.append(f"{place.name}/{part.name} ({name} has other reference rows)")
            elif not part.is_dir() or data_files(part):
                lonely.append((name, part))
                known.add(name)
        if _unread(path for path in inside if path.is_file()):
            unread.append(f"{place.name}/ in part")
    if unread:
        passed.append(f"{', '.join(unread)} (rows are read from {KINDS})")
    if not found:
        why = f" (passed over: {'; '.join(passed)})" if passed else ""
        raise UserError(f"{folder} holds no rows{why}; put NAME.jsonl or NAME/train.jsonl there, one for each domain")
    names = [domain.name for domain in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        said = [f"{' and '.join(str(d.train) for d in found if d.name == name)} are "
                f"{'both' if names.count(name) == 2 else 'all'} named {name!r}" for name in twice]  # fmt: skip
        one = len(twice) == 1 and names.count(twice[0]) == 2
        raise UserError(f"{', '.join(said)}; rename {'one of them' if one else 'all of one name but one'}")
    return Layout(sorted(found, key=lambda domain: domain.name), passed, sorted(lonely), questions)


def _folder_domains(folder: Path, held: Sequence[Path], passed: list[str]) -> list[Found]:
    """Read a folder as one domain, or as one for each of its training splits."""
    if is_saved(folder) and not (folder / "dataset_dict.json").is_file():
        return [Found(folder.name, folder, _beside(folder.name, folder.parent, held))]
    files = data_files(folder)
    parts = parts_of(files, folder)
    reference = [path for path in files if parts[path] == "held out"]
    open_ = [path for path in files if path not in reference]
    named = [path for path in open_ if parts[path] is None and _last_word(path) is not None]
    if len(named) < len(open_):
        reference = sorted([*reference, *named])
        open_ = [path for path in open_ if path not in named]
    if not open_:
        return []
    train = [path for path in open_ if parts[path] == "train"] or open_
    chosen = _preferred(reference)
    left = [path for path in files if path not in train and path not in chosen]
    if left:
        names = ", ".join(str(path.relative_to(folder.parent)) for path in left[:6])
        passed.append(f"{names}{' and more' if len(left) > 6 else ''} (beside the training and reference rows)")
    beside = _beside(folder.name, folder.parent, held)
    configurations: dict[str, list[Path]] = {}
    for path in train:
        configurations.setdefault(_configuration(path, folder), []).append(path)
    if len(configurations) > 1 and "" not in configurations:
        found = []
        for name, of_one in configurations.items():
            own = _preferred([path for path in reference if _configuration(path, folder) == name])
            spelled = _spell(own, folder) if own else None
            found.append(Found(f"{folder.name}_{name.replace('/', '_')}", _spell(of_one, folder), spelled))
        return found
    splits: dict[str, list[Path]] = {}
    for path in train:
        splits.setdefault(_split(path) if parts[path] == "train" else "", []).append(path)
    if len(splits) < 2:
        return [Found(folder.name, _spell(train, folder), _spell(chosen, folder) if chosen else beside)]
    found = []
    for split, of_split in splits.items():
        own = [path for path in reference if _split(path) == split]
        name = f"{folder.name}_{split}" if split else folder.name
        found.append(Found(name, _spell(of_split, folder), _spell(_preferred(own), folder) if own else None))
    return found


def _configuration(path: Path, folder: Path) -> str:
    """Name the folder in which a file stands with its own train and test, as configurations of a hub set do."""
    parts = path.relative_to(folder).parts
    word = next((n for n, part in enumerate(parts) if TRAIN_NAME.match(part) or HELD_OUT_NAME.match(part)), 0)
    return "/".join(part for part in parts[:word] if part != "data")


SPLIT = re.compile(
    r"(?:train(?:ing)?|test|valid(?:ation)?|val|dev|eval)[-_.]"
    r"(?!(?:part|shard|chunk|file|batch|split|set|data|rows)[-_.\d]*(?:of|$))([a-z]\w*?)(?:[-_.]\d+(?:[-_.]of.*)?)?$",
    re.IGNORECASE,
)


def _split(path: Path) -> str:
    """Name the split that a file belongs to beside train or test: `sft` of `train_sft-00000-of-00001`, else nothing."""
    match = SPLIT.match(_stem(path))
    return match[1].lower() if match else ""


def _preferred(files: list[Path]) -> list[Path]:
    """Of reference files named by several words, return those of the first word; they are one set."""
    if not files:
        return []
    rank = {path: min((n for n, word in enumerate(REFERENCE_WORDS) if word in _words(path)), default=0)
            for path in files}  # fmt: skip
    return [path for path in files if rank[path] == min(rank.values())]


def _words(path: Path) -> set[str]:
    """Return the words in a file's name and in the folders just above it."""
    text = "/".join([*path.parts[-3:-1], _stem(path)]).lower()
    return set(text.replace("-", "/").replace("_", "/").replace(".", "/").split("/"))


def _spell(files: list[Path], folder: Path) -> Path:
    """Write several files as one path that reads exactly these."""
    if len(files) == 1:
        return files[0]
    parent = Path(os.path.commonpath([path.parent for path in files]))
    start = globbing.escape(os.path.commonprefix([path.name for path in files]))  # noqa: RUF071 (letter by letter)
    escaped = Path(globbing.escape(str(parent)))
    for spelled in (folder, parent, escaped / f"{start}*", escaped / "**" / f"{start}*"):
        try:
            if sorted(find_files(spelled)) == sorted(files):
                return spelled
        except UserError:
            continue
    raise UserError(
        f"{folder} holds {len(files)} files that one path cannot name apart from the others ({files[0].name}, …); "
        "put its training rows into a folder train and its reference rows into a folder reference"
    )


def _beside(name: str, place: Path, held: Sequence[Path]) -> Path | None:
    """Find the reference rows beside a domain: NAME.reference.jsonl, NAME_test.jsonl, test/NAME."""
    for word in REFERENCE_WORDS:
        for joint in ".-_":
            for suffix in SUFFIXES:
                candidate = place / f"{name}{joint}{word}{suffix}"
                if candidate.is_file():
                    return candidate
    return _elsewhere(name, held)


def _elsewhere(name: str, held: Sequence[Path]) -> Path | None:
    """Find a domain's reference rows in a folder of reference rows: test/NAME.jsonl or test/NAME/."""
    for place in sorted(held, key=lambda path: REFERENCE_WORDS.index(path.name.lower())):
        for candidate in (place / name, *(place / f"{name}{suffix}" for suffix in SUFFIXES)):
            if candidate.is_file() or (candidate.is_dir() and data_files(candidate)):
                return candidate
    return None


def _partner(path: Path) -> Path | None:
    """Return the training file or folder whose reference rows a file holds by its name, None for a file of its own."""
    said = _last_word(path)
    if said is None:
        return None
    stem, _ = said
    beside = path.parent / stem
    if beside.is_dir() and data_files(beside) and not no_rows(beside):
        return beside
    ends = ("", *(f"{joint}{word}" for joint in "_-." for word in TRAIN_WORDS))
    files = (path.parent / f"{stem}{end}{suffix}" for end in ends for suffix in SUFFIXES)
    return next((file for file in files if file.is_file()), None)


def _strays(partners: Mapping[Path, Path | None], *, alone: bool) -> dict[Path, str]:
    """Name by whose reference rows they are the files that say so by their name where nothing has that owner's name."""
    words = {file: said for file in partners if (said := _last_word(file)) is not None}
    if alone and len(words) == len(partners):
        return {}  # nothing else is there to train on
    return {
        file: owner for file, (owner, word) in words.items()
        if partners[file] is None and (_stem(file)[len(owner)] == "." or word.lower() not in UNSURE_WORDS)
    }  # fmt: skip


def _asked(path: Path, stray: bool, domains: Sequence[str]) -> list[str]:
    """Ask about a file that may be reference rows of a domain under another name."""
    said = _last_word(path)
    if said is None:
        return []
    owner, _ = said
    near = difflib.get_close_matches(owner, [name for name in domains if name != _named(path)], 1)
    meant = f"if it is of {near[0]}, name it {near[0]}.reference{_suffix(path)}" if near else ""
    if not stray:
        return [f"{path.name} is trained on: {meant}"] if near else []
    text = f"{path.name} is by its name reference rows, and no {owner} is here to train on"
    return [f"{text}: {meant}" if near else f"{text}; rename it if it is to be trained on"]


def _named(path: Path) -> str:
    """Name the domain of a file: `coding` of `coding_train.jsonl`, where nothing else there is named so."""
    stem = _stem(path)
    name = re.sub(rf"(?<=[^-_.])[-_.]({'|'.join(TRAIN_WORDS)})$", "", stem, flags=re.IGNORECASE)
    taken = any((path.parent / f"{name}{suffix}").exists() for suffix in ("", *SUFFIXES))
    return stem if taken else name


def _last_word(path: Path) -> tuple[str, str] | None:
    """Return what stands before the reference word that a file's name ends in, and it: `coding_test`: coding, test."""
    stem = _stem(path)
    found = re.search(rf"[^-_.][-_.]({'|'.join(REFERENCE_WORDS)})$", stem, re.IGNORECASE)
    return (stem[: found.start() + 1], found[1]) if found else None


def _stem(path: Path) -> str:
    """Return a file's name without its suffix."""
    return path.name[: -len(_suffix(path))]


def _suffix(path: Path) -> str:
    """Return the suffix by which a file is known to hold rows, `.jsonl.gz` and not `.gz`."""
    return next(s for s in sorted(SUFFIXES, key=len, reverse=True) if path.name.lower().endswith(s))


ABOUT = re.compile(
    r"(readme|licen[cs]e|notice|citation|changelog|contributing|requirements|data_?card)\b", re.IGNORECASE
)


def _unread(paths: Iterable[Path]) -> bool:
    """Tell whether there are files of rows that this package does not read."""
    return any(
        p.is_file() and p.name.lower().endswith(UNREAD) and not is_data(p) and not ABOUT.match(p.name) for p in paths
    )
