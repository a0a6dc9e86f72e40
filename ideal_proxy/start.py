"""`ideal-proxy init`: look at a folder of rows and write a commented run file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ideal_proxy.data import read_rows, row_keys
from ideal_proxy.errors import UsageError, UserError
from ideal_proxy.mixture import domain_order
from ideal_proxy.store import atomic_write_text

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".parquet")
REFERENCE_WORDS = ("reference", "validation", "valid", "val", "eval", "dev", "test")


@dataclass(frozen=True, slots=True)
class Found:
    """One domain that the folder seems to hold.

    Attributes:
        name: its name.
        train: file or folder of training rows.
        reference: file or folder of reference rows, None where there is none.
    """

    name: str
    train: Path
    reference: Path | None


def look(folder: Path) -> list[Found]:
    """Find the domains of a folder.

    Understood are `NAME/train.jsonl` with `NAME/reference.jsonl` (or validation, val, eval, dev, test), `NAME.jsonl`
    with `NAME.reference.jsonl` or `NAME_reference.jsonl` beside it, and `reference/NAME.jsonl`.

    Args:
        folder: the folder.

    Returns:
        list: the domains, by name.

    Raises:
        UserError: the folder is missing or holds no rows.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; give the folder that holds one file or folder of rows a domain")
    found: list[Found] = []
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith(".") or entry.name.lower() in REFERENCE_WORDS:
            continue
        if entry.is_dir():
            files = [path for path in sorted(entry.iterdir()) if path.name.endswith(SUFFIXES)]
            train = [path for path in files if _word(path) is None]
            references = sorted((path for path in files if _word(path) is not None), key=_preference)
            if train:
                source = train[0] if len(train) == 1 else entry / f"{_common(train)}*"
                found.append(Found(entry.name, source, references[0] if references else None))
        elif entry.name.endswith(SUFFIXES) and _word(entry) is None:
            found.append(Found(_stem(entry), entry, _beside(folder, entry)))
    if not found:
        raise UserError(f"{folder} holds no rows; put NAME.jsonl or NAME/train.jsonl there, one for each domain")
    return found


def write_run_file(folder: Path, out: Path, *, hold_out: int | None = None, force: bool = False) -> str:
    """Write a commented run file for the domains of a folder.

    Args:
        folder: the folder of rows.
        out: the run file.
        hold_out: rows to hold out as reference of each domain that has none; None refuses such domains.
        force: overwrite an existing run file.

    Returns:
        str: what was found, for the user.

    Raises:
        UsageError: the run file exists, or there is only one domain.
        UserError: the folder holds no rows, or a domain has no reference rows.
    """
    if out.exists() and not force:
        raise UsageError(f"{out} exists; use --force to overwrite it or --out for another name")
    domains = look(folder)
    if len(domains) < 2:
        raise UsageError(f"{folder} holds one domain ({domains[0].name}); a mixture needs at least two")
    lacking = [domain.name for domain in domains if domain.reference is None]
    if lacking and hold_out is None:
        raise UserError(
            f"no reference rows for {', '.join(lacking)}; put NAME/reference.jsonl beside the rows, "
            "or hold some out with --hold-out 400"
        )
    domains = [_held_out(d, out.resolve().parent / "held_out", hold_out or 0) for d in domains]
    lines, seen = [], []
    for domain in domains:
        rows = sum(1 for _ in read_rows(domain.train))
        references = sum(1 for _ in read_rows(domain.reference)) if domain.reference is not None else 0
        few = "  (under 400: the verdict will be noisy)" if references < 400 else ""
        seen.append(f"  {domain.name}: {rows:,} rows, {references:,} reference rows{few}")
        lines.append((domain, rows))
    atomic_write_text(out, _text(out, lines))
    return "\n".join([f"{out} written with {len(domains)} domains:", *seen,
                      f"next: ideal-proxy check {out}, then ideal-proxy search {out}"])  # fmt: skip


def _text(out: Path, lines: list[tuple[Found, int]]) -> str:
    """Compose the run file."""
    base = out.resolve().parent
    text = [
        "# How many rows of each data set should go into the fine-tune? Every key but the paths has a default.",
        f"name: {json.dumps(out.stem)}",
        "",
        "# Where the training rows are. base: the rows you would have used, a count, '30%' or '2x' of those there are.",
        "# min and max bound the answer the same way; pinned: true keeps the base.",
        "domains:",
    ]
    for domain, rows in lines:
        text += [
            f"  - name: {json.dumps(domain.name)}",
            f"    path: {json.dumps(_relative(domain.train, base))}",
            f"    base: {rows}",
        ]
    text += [
        "",
        "# What the result is judged on. must_not_drop: 0.01 forbids this loss to rise by more than 1 %.",
        "capabilities:",
    ]
    for domain, _ in lines:
        assert domain.reference is not None
        text += [
            f"  - name: {json.dumps(domain.name)}",
            f"    path: {json.dumps(_relative(domain.reference, base))}",
        ]
    text += [
        "",
        "budget:",
        "  unit: tokens        # tokens or rows",
        "  mode: keep          # keep the base's total, at_most, or free",
        "",
        "constraints:",
        "  max_repeat: 4       # no row is seen more often",
        "  groups: []          # e.g. ['coding + mathematics <= 60%']",
        "",
        "objective:",
        "  kind: mean          # mean, weighted or worst of loss / loss at base",
        "  min_gain: 0.005     # a smaller gain is no gain",
        "",
        "proxy:",
        "  size: 1M            # 0.1M, 1M, 3M or 10M parameters",
        "  context: 512        # tokens; longer rows lose prompt from the left",
        "",
        "rounds: 2",
        "seed: 0",
        "",
    ]
    return "\n".join(text)


def _held_out(domain: Found, folder: Path, rows: int) -> Found:
    """Split a domain without reference rows by the hash of each row, and write both parts."""
    if domain.reference is not None:
        return domain
    everything = list(read_rows(domain.train))
    if len(everything) < 2 * rows:
        raise UserError(
            f"{domain.name} has {len(everything)} rows, too few to hold out {rows} of them; "
            "choose a smaller --hold-out, give it reference rows, or take it out of the folder"
        )
    chosen = set(domain_order(0, domain.name, row_keys(everything))[:rows].tolist())
    target = folder / domain.name
    for name, wanted in (("train", False), ("reference", True)):
        part = [row.raw for n, row in enumerate(everything) if (n in chosen) == wanted]
        atomic_write_text(target / f"{name}.jsonl", "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in part))
    return Found(domain.name, target / "train.jsonl", target / "reference.jsonl")


def _word(path: Path) -> str | None:
    """Return the reference word that a file's name ends in, None for training rows."""
    last = _stem(path).replace("-", "_").replace(".", "_").rpartition("_")[2].lower()
    return last if last in REFERENCE_WORDS else None


def _preference(path: Path) -> int:
    return REFERENCE_WORDS.index(_word(path) or REFERENCE_WORDS[-1])


def _stem(path: Path) -> str:
    """Return the file's name without its suffix."""
    return next(path.name.removesuffix(s) for s in sorted(SUFFIXES, key=len, reverse=True) if path.name.endswith(s))


def _common(paths: list[Path]) -> str:
    """Return the longest common start of the files' names."""
    names = [path.name for path in paths]
    length = next((n for n, column in enumerate(zip(*names, strict=False)) if len(set(column)) > 1), 0)
    return names[0][:length]


def _beside(folder: Path, train: Path) -> Path | None:
    """Find the reference rows of a file of training rows."""
    stem = _stem(train)
    for word in REFERENCE_WORDS:
        for suffix in SUFFIXES:
            for candidate in (folder / f"{stem}.{word}{suffix}", folder / f"{stem}_{word}{suffix}",
                              folder / f"{stem}-{word}{suffix}", folder / word / f"{stem}{suffix}"):  # fmt: skip
                if candidate.exists():
                    return candidate
    return None


def _relative(path: Path, base: Path) -> str:
    """Write a path relative to the run file where it lies below it."""
    resolved = path.resolve()
    return str(resolved.relative_to(base)) if resolved.is_relative_to(base) else str(resolved)
