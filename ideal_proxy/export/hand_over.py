"""Hand a mixture to another trainer: the drawn rows, a configuration in its syntax, and the counts it will really draw.

Every target gets the drawn rows, repeats included, and takes each once; syntax read in the trainers' 2026 sources, and
run with the trainers that install (`benchmarks/handover`).
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ideal_proxy.errors import UsageError, UserError
from ideal_proxy.export import clusters, formats, trainers
from ideal_proxy.export.encoded import Long, encode
from ideal_proxy.export.job import ExportReport, Job
from ideal_proxy.export.terms import terms_of
from ideal_proxy.mixture import MixtureFile, index_folder, kept_base, refuse_without_rows, resolve
from ideal_proxy.store import atomic_write_json, move, read_json
from ideal_proxy.terminal import paragraph, table

MANIFEST, COUNTS = "export.json", "counts.json"
DRAFT = ".ideal-proxy-export"  # folder of what is not whole yet
PARTS = ".parts.json"  # in it: what is put under its name, once all of it is whole

TARGETS: dict[str, Callable[[Job], ExportReport]] = {
    "jsonl": formats.jsonl,
    "parquet": formats.parquet,
    "hf": formats.hugging_face,
    "trl": trainers.trl,
    "llamafactory": trainers.llamafactory,
    "ms-swift": trainers.ms_swift,
    "axolotl": trainers.axolotl,
    "open-instruct": trainers.open_instruct,
    "megatron-bridge": clusters.megatron_bridge,
    "automodel": clusters.automodel,
    "verl": clusters.verl,
    "skyrl": clusters.skyrl,
    "streaming": formats.streaming,
    "interleave": formats.interleave,
}


def export_mixture(
    mixture: MixtureFile,
    target: str,
    out: str | Path,
    *,
    model: str | None = None,
    context: int | None = None,
    learning_rate: float | None = None,
    text: bool = False,
    strict: bool = False,
    folder: Path | None = None,
) -> ExportReport:
    """Write a mixture for another trainer, a key of `TARGETS`; say the counts that it will draw."""
    # `model` is to be trained: its tokenizer counts, and writes tokens unless `text`. `context` and `learning_rate` are
    # the search's by default (2e-5 for another model). `strict` refuses lost tokens; relative sources start from
    # `folder`.
    if target not in TARGETS:
        raise UsageError(f"--to is {target!r}; it must be one of {', '.join(TARGETS)}")
    if strict and model is None:
        raise UsageError("--strict counts tokens with the target's tokenizer; add --model, or leave --strict out")
    refuse_without_rows(mixture)
    if not mixture.total_rows:
        raise UsageError("the mixture has no rows: every volume is 0; give one domain rows")
    place = Path(out)
    fresh = not place.exists()
    _take_away(place)
    _refuse_content(place)
    draft = place / DRAFT
    sources = {domain.name: resolve(domain.source, folder) for domain in mixture.domains}
    terms = terms_of(mixture, model, context, learning_rate)
    encoded = None if model is None else encode(mixture, sources, model, terms.context)
    try:
        draft.mkdir(parents=True)
        index = None if folder is None else index_folder(folder)
        report = TARGETS[target](Job(mixture, place, sources, terms, index, encoded, text, draft))
        if strict and report.lost:
            raise UserError(
                f"--strict: {target} would lose {report.lost:,} tokens with loss at {report.context:,} tokens a row "
                f"({report.long}); raise --context, or leave --strict out"
            )
        if cut := [f"{draw.domain} {draw.lost:.0%}" for draw in report.draws if draw.lost > MUCH]:
            note = f"of the tokens with loss so many go at {report.context:,} tokens a row: {', '.join(cut)}"
            report = replace(report, notes=(f"{note}; raise --context", *report.notes))
        if note := kept_base(mixture):
            report = replace(report, notes=(*report.notes, note))
        atomic_write_json(draft / COUNTS, report.counts())
        parts = [*sorted(os.listdir(draft)), MANIFEST]
        atomic_write_json(draft / MANIFEST, report.to_dict())
        _refuse_content(place)
        atomic_write_json(draft / PARTS, {"parts": parts})
        for name in parts:
            move(draft / name, place / name)
    except OSError as error:
        raise UserError(
            f"cannot write to {place}: {error.strerror or error}; make room or choose another --out"
        ) from error
    finally:
        _take_away(place)
        if fresh:
            with contextlib.suppress(OSError):  # it holds something
                place.rmdir()
    return report


MUCH = 0.05  # of a domain's tokens with loss; a search refuses to cut more
LONG: dict[Long, str] = {
    "as the search": "cut as in the search: the question from its left, before the answer from its end",
    "cut at the start": "cut at their start", "cut at the end": "cut at their end", "left out": "left out",
    "cut turn by turn": "cut turn by turn, question and answer in proportion",
}  # fmt: skip


def export_table(report: ExportReport) -> str:
    """Lay out an export in 80 columns."""
    counted = any(draw.count is not None for draw in report.draws)
    head = ("domain", "rows", "repeat", "will draw", "tokens with loss", *(("cut", "lost") if counted else ()))
    rows = [
        (d.domain, f"{d.wanted:,}", f"{d.wanted / d.available:.2f}x", f"{d.draws:,}",
         "unknown" if d.supervised_tokens is None else f"{d.supervised_tokens:,}",
         *(() if d.count is None else (f"{d.count.cut:,}", f"{d.count.supervised_lost:,}")))
        for d in report.draws
    ]  # fmt: skip
    lines = [table(f"{report.target}: one epoch, counted with {report.counted_with}", head, rows), ""]
    if counted and report.context is not None:
        lines.append(paragraph(f"Rows of more than {report.context:,} tokens are {LONG[report.long]}."))
    lines += [paragraph(f"Note: {note}.") for note in report.notes]
    lines.append(paragraph(f"Written to {report.folder}: {', '.join(report.files)}, {COUNTS}"))
    lines.append(f"Use: {report.use}")
    return "\n".join(lines)


def _refuse_content(place: Path) -> None:
    """Refuse a place that holds anything but the draft of this export."""
    strange = place.is_dir() and any(path.name != DRAFT or path.is_symlink() for path in place.iterdir())
    if strange or (place.exists() and not place.is_dir()):
        raise UserError(f"{place} is not an empty folder; choose another --out or empty it")


def _take_away(place: Path) -> None:
    """Take away what an export that did not finish left, and nothing else."""
    draft = place / DRAFT
    if not draft.is_dir() or draft.is_symlink():
        return
    if (draft / PARTS).is_file() and (draft / MANIFEST).exists():  # stopped while it put parts under their names
        with contextlib.suppress(OSError, UserError, KeyError, TypeError):
            parts = set(read_json(draft / PARTS)["parts"]) - set(os.listdir(draft))
            for path in [path for path in place.iterdir() if path.name in parts]:
                path.unlink() if path.is_symlink() or not path.is_dir() else shutil.rmtree(path)
    shutil.rmtree(draft, ignore_errors=True)
