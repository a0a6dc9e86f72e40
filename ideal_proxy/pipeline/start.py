"""`ideal-proxy init`: look at a folder of rows and write a commented run file."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from ideal_proxy.config import parse_config
from ideal_proxy.data import Found, look, read_rows, row_keys, scan
from ideal_proxy.errors import UsageError, UserError
from ideal_proxy.mixture import domain_order
from ideal_proxy.store import atomic_write_text

ENOUGH_REFERENCE_ROWS = 400
HELD_OUT_SHARE = 4  # never more than a quarter of a domain's rows


def write_run_file(folder: Path, out: Path, *, hold_out: int | None = None, force: bool = False) -> str:
    """Write a commented run file for the domains of a folder."""
    if out.exists() and not force:
        raise UsageError(f"{out} exists; use --force to overwrite it or --out for another name")
    layout = look(folder)
    domains = layout.domains
    passed = [f"passed over: {text}" for text in layout.passed_over]
    if len(domains) < 2:
        more = f" ({'; '.join(passed)})" if passed else ""
        raise UsageError(f"{folder} holds one domain ({domains[0].name}); a mixture needs at least two{more}")
    lacking = [domain.name for domain in domains if domain.reference is None]
    if lacking and hold_out is None:
        raise UserError(
            f"no reference rows for {', '.join(lacking)}; put NAME/reference.jsonl beside the rows, "
            f"or hold some out with --hold-out {ENOUGH_REFERENCE_ROWS} (at most a quarter of each is taken)"
        )
    held_out = out.resolve().parent / f"{out.stem}_held_out"
    domains = [_held_out(d, held_out, hold_out) if d.reference is None and hold_out else d for d in domains]
    lines, seen = [], []
    for domain in domains:
        assert domain.reference is not None
        train, reference = scan(domain.train), scan(domain.reference)
        few = "" if reference.rows >= ENOUGH_REFERENCE_ROWS else " (few)"
        seen.append(f"  {domain.name}: {train.rows:,} rows ({train.format}), {reference.rows:,} reference rows{few}")
        lines.append((domain, train.rows))
    text = _text(out, lines)
    parse_config(yaml.safe_load(text), where=f"what was found in {folder}")
    atomic_write_text(out, text)
    notes = [f"  {text}" for text in passed]
    if any(line.endswith("(few)") for line in seen):
        notes.append(f"  few: under {ENOUGH_REFERENCE_ROWS} reference rows the verdict is noisy")
    return "\n".join([
        f"{out} written with {len(domains)} domains:", *seen, *notes,
        f"next: ideal-proxy check {out}",
        f"then: ideal-proxy search {out} --dry-run   (what it costs; without --dry-run it runs)",
    ])  # fmt: skip


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
        "  size: 1M            # 0.1M, 1M, 3M or 10M parameters; or a pretrained model instead:",
        "  # model: path/or/hub-id",
        "  # lora_rank: 16     # left out, every weight is trained",
        "  context: 512        # tokens; longer rows lose prompt from the left",
        "",
        "rounds: 2",
        "seed: 0",
        "",
    ]
    return "\n".join(text)


def _held_out(domain: Found, folder: Path, rows: int) -> Found:
    """Split a domain without reference rows by the hash of each row, and write both parts."""
    everything = list(read_rows(domain.train))
    count = min(rows, len(everything) // HELD_OUT_SHARE)
    if count < 1:
        raise UserError(
            f"{domain.name} has {len(everything)} rows, too few to hold any out; "
            "give it reference rows, or take it out of the folder"
        )
    chosen = set(domain_order(0, domain.name, row_keys(everything))[:count].tolist())
    target = folder / domain.name
    for name, wanted in (("train", False), ("reference", True)):
        part = [row.raw for n, row in enumerate(everything) if (n in chosen) == wanted]
        text = "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in part)
        atomic_write_text(target / f"{name}.jsonl", text)
    return Found(domain.name, target / "train.jsonl", target / "reference.jsonl")


def _relative(path: Path, base: Path) -> str:
    """Write a path relative to the run file where it lies below it."""
    resolved = path.resolve()
    return str(resolved.relative_to(base)) if resolved.is_relative_to(base) else str(resolved)
