"""`ideal-proxy init`: look at a folder of rows and write a commented run file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import yaml

from ideal_proxy.config import parse_config
from ideal_proxy.data import (
    Found,
    NothingToTrainOnError,
    SourceInfo,
    SourceReader,
    format_text,
    look,
    look_through,
    prompt_mark,
    row_keys,
    scan,
)
from ideal_proxy.errors import UsageError, UserError, some
from ideal_proxy.mixture import domain_order
from ideal_proxy.pipeline.findings import folded
from ideal_proxy.pipeline.schema import FILE, yaml_text
from ideal_proxy.pipeline.split import read_split_by, split_domains
from ideal_proxy.store import atomic_write_rows, atomic_write_text
from ideal_proxy.terminal import paragraph, step

ENOUGH_REFERENCE_ROWS = 400
HELD_OUT_SHARE = 4  # never more than a quarter of a domain's rows


def write_run_file(
    folder: Path, out: Path, *, hold_out: int | None = None, split_by: str | None = None, force: bool = False
) -> str:
    """Write a commented run file for the domains of a folder."""
    how = None if split_by is None else read_split_by(split_by)
    if out.exists() and not force:
        raise UsageError(f"{out} exists; use --force to overwrite it or --out for another name")
    layout = look(folder)
    read, empty = _read_all(layout.domains, layout.references)
    domains = [domain for domain in layout.domains if domain.train in read]
    passed = [f"passed over: {text}" for text in [*layout.passed_over, *empty]] + layout.questions
    if len(domains) < (2 if how is None else 1):
        more = f" ({'; '.join(passed)})" if passed else ""
        if not domains:
            raise UsageError(f"{folder} holds no rows to train on{more}")
        raise UsageError(f"{folder} holds one domain ({domains[0].name}); a mixture needs at least two{more}")
    lacking = [domain.name for domain in domains if domain.reference is None]
    judged = len(lacking) < len(domains) or bool(layout.references)
    if lacking and hold_out is None and not judged:
        raise UserError(
            f"no reference rows for {some(lacking)}; put NAME/reference.jsonl beside the rows, "
            f"or hold some out with --hold-out {ENOUGH_REFERENCE_ROWS} (at most a quarter of each is taken)"
        )
    held_out = out.resolve().parent / f"{out.stem}_held_out"
    if hold_out:
        domains = [_held_out(d, held_out, hold_out, read) if d.reference is None else d for d in domains]
    lines, capabilities, seen, unread, notes = [], [], [], [], [f"  {text}" for text in passed]
    references = list(layout.references)
    if how is not None:
        references += [(d.name, d.reference) for d in domains if d.reference is not None]
        place = out.resolve().parent / f"{out.stem}_split"
        domains, said = split_domains([replace(d, reference=None) for d in domains], how, place, read)
        notes += said
    for whole in layout.domains:  # whose rows are written anew, without those that are left out
        if whole.train in read and whole.train not in {domain.train for domain in domains}:
            notes += [f"  {whole.name}: {line}" for line in read[whole.train].tally.lost_lines()]
    for domain in domains:
        train = read[domain.train]
        reference = read.get(domain.reference) if domain.reference is not None else None
        judge = f"{reference.rows:,} reference rows{_few(reference.rows)}" if reference else "no reference rows"
        seen.append(f"  {domain.name}: {train.rows:,} rows ({format_text(train.format)}){'' if how else f', {judge}'}")
        lines.append((domain.name, domain.train, train))
        if domain.reference is not None and reference is not None:
            capabilities.append((domain.name, domain.reference, reference))
        for which, info in ((f"domain {domain.name}", train), (f"reference rows of {domain.name}", reference)):
            unread += [f"{which}: {line}" for line in (info.tally.lines() if info else [])]
    alone = [domain.name for domain in domains if domain.reference is None and how is None]
    if alone:
        has, it = ("has", "it") if len(alone) == 1 else ("have", "them")
        notes.append(
            f"  {some(alone)} {has} no reference rows: the others judge {it}, and may cut {it} to little (hold some "
            f"out with --hold-out {ENOUGH_REFERENCE_ROWS}, or set a min in the run file)"
        )
    notes += [f"  {line.removeprefix('domain ')}" for line in folded(unread)]
    for name, place in references:
        if place not in read:
            continue
        seen.append(f"  {name}: no training rows, {read[place].rows:,} reference rows{_few(read[place].rows)}")
        capabilities.append((name, place, read[place]))
        notes += [f"  reference rows of {name}: {line}" for line in read[place].tally.lines()]
    notes += [
        f"  {name}: no known layout; {format_text(info.format)} is a guess, see that it is right"
        for name, _, info in lines
        if info.format.startswith("columns:")
    ]
    text = _text(out, lines, capabilities)
    parse_config(yaml.safe_load(text), where=f"what was found in {folder}")
    atomic_write_text(out, text)
    if any(line.endswith("(few)") for line in seen):
        notes.append(f"  few: under {ENOUGH_REFERENCE_ROWS} reference rows the verdict is noisy")
    return "\n".join([
        f"{out} written with {len(domains)} domains:", *map(paragraph, [*seen, *notes]),
        step("next: ", f"check {out}"),
        step("then: ", f"search {out} --dry-run", "what it costs; without --dry-run it runs"),
    ])  # fmt: skip


Part = tuple[str, Path, SourceInfo]


def _few(rows: int) -> str:
    return "" if rows >= ENOUGH_REFERENCE_ROWS else " (few)"


def _read_all(
    domains: Sequence[Found], references: Sequence[tuple[str, Path]]
) -> tuple[dict[Path, SourceInfo], list[str]]:
    """Look through every source, tell all that cannot be read at once, and name those with nothing to train on."""
    places = [place for domain in domains for place in (domain.train, domain.reference) if place is not None]
    read: dict[Path, SourceInfo] = {}
    faults, empty = [], []
    for place in [*places, *(place for _, place in references)]:
        try:
            read[place] = look_through(place)
        except NothingToTrainOnError as error:
            empty.append(str(error))
        except UserError as error:
            faults.append(str(error))
    if len(faults) == 1:
        raise UserError(faults[0])
    if faults:
        told = [paragraph(f"  ({n}) {fault}") for n, fault in enumerate(faults, 1)]
        raise UserError("\n".join([f"{len(faults)} sources cannot be used:", *told]))
    return read, empty


def _text(out: Path, domains: Sequence[Part], capabilities: Sequence[Part]) -> str:
    """Compose the run file."""
    base = out.resolve().parent
    text = [
        f"# yaml-language-server: $schema={FILE.as_uri()}",
        "# How many rows of each data set should go into the fine-tune? Every key but the paths has a default.",
        f"name: {yaml_text(out.stem)}",
        "",
        "# Where the training rows are. base: the rows you would have used, a count, '30%' or '2x' of those there are.",
        "# min and max bound the answer the same way; pinned: true keeps the base.",
        "domains:",
    ]
    for name, place, info in domains:
        text += [
            f"  - name: {yaml_text(name)}",
            f"    path: {yaml_text(_relative(place, base))}",
            *_columns(info),
            f"    base: {info.rows}",
        ]
    text += [
        "",
        "# What the result is judged on. must_not_drop: 0.01 beside one: a rise above 1 % has to be ruled out.",
        "capabilities:",
    ]
    for name, place, info in capabilities:
        text += [
            f"  - name: {yaml_text(name)}",
            f"    path: {yaml_text(_relative(place, base))}",
            *_columns(info),
        ]
    text += [
        "",
        "budget:",
        "  unit: tokens        # tokens or rows",
        "  mode: keep          # keep the base's total, at_most, or free",
        "  # steps: keep       # as many optimiser steps as base",
        "loss: token           # as your trainer: a mean over tokens, or over each row's mean (row)",
        "batch: {rows: 32}     # of an optimiser step; or {tokens: 16384}",
        "",
        "protect: 2%           # most that any capability may lose; by name ({safety: 1%, chat: none}), or none",
        "",
        "constraints:",
        "  max_repeat: 4       # no row is seen more often",
        "  groups: []          # e.g. ['coding + mathematics <= 60%']",
        "",
        "objective:",
        "  kind: mean          # mean, weighted or worst of loss / loss at base",
        "  min_gain: 0.005     # with an upper bound below it a gain counts as none",
        "",
        "proxy:",
        "  size: 1M            # 0.1M, 1M, 3M or 10M parameters; or a pretrained model instead:",
        "  # model: path/or/hub-id",
        "  # mode: target      # that is the model to be fine-tuned: few mixtures are trained, others imitated",
        "  # lora_rank: 16     # left out, every weight is trained",
        "  # context: 1024     # tokens of a row; left out, what 95 % of the rows of each source need",
        "",
        "rounds: 6             # at most; each is run only while it promises more than it costs",
        "seed: 0",
        "",
    ]
    return "\n".join(text)


def _columns(info: SourceInfo) -> list[str]:
    """Write the columns of a source in no known layout."""
    if not info.format.startswith("columns:"):
        return []
    return [f"    columns: {yaml_text(json.loads(info.format.removeprefix('columns:')))}   # a guess"]


def _held_out(domain: Found, folder: Path, rows: int, read: dict[Path, SourceInfo]) -> Found:
    """Split a domain without reference rows by the hash of each row, rows of one prompt together, and write both."""
    reader = SourceReader(domain.train, format=read[domain.train].format, max_bad=-1, quiet=True)
    everything = [row for _, row in reader]
    count = min(rows, len(everything) // HELD_OUT_SHARE)
    if count < 1:
        raise UserError(
            f"{domain.name} has {len(everything)} rows, too few to hold any out; "
            "give it reference rows, or take it out of the folder"
        )
    marks = [prompt_mark(row) for row in everything]
    together: dict[int, list[int]] = {}
    for n, mark in enumerate(marks):
        together.setdefault(mark, []).append(n)
    chosen: set[int] = set()
    for n in domain_order(0, domain.name, row_keys(everything)).tolist():
        group = together.pop(marks[n], [])
        if len(chosen) + len(group) <= count:
            chosen.update(group)
    if not chosen:
        raise UserError(
            f"the {len(everything)} rows of {domain.name} share so few prompts that none can be held out alone; "
            "give it reference rows"
        )
    target = folder / domain.name
    for name, wanted in (("train", False), ("reference", True)):
        part = [row.raw for n, row in enumerate(everything) if (n in chosen) == wanted]
        atomic_write_rows(target / f"{name}.jsonl", part)
        read[target / f"{name}.jsonl"] = scan(target / f"{name}.jsonl", format=read[domain.train].format)
    return Found(domain.name, target / "train.jsonl", target / "reference.jsonl")


def _relative(path: Path, base: Path) -> str:
    """Write a path relative to the run file where it lies below it."""
    resolved = path.resolve()
    return str(resolved.relative_to(base)) if resolved.is_relative_to(base) else str(resolved)
