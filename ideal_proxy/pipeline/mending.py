"""`check --fix`: reference rows without those that stand in a domain, and a run file that names them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ideal_proxy.config import SearchConfig
from ideal_proxy.errors import UserError
from ideal_proxy.pipeline.check import Survey
from ideal_proxy.pipeline.schema import yaml_text
from ideal_proxy.store import atomic_write_rows, atomic_write_text
from ideal_proxy.terminal import count_text, paragraph, step

LEAST_LEFT = 2  # reference rows: one to search by, one to verify by


@dataclass(frozen=True, slots=True)
class Mended:
    """What was written."""

    run_file: Path | None  # the copy of the run file; None where there was nothing to mend
    # for a capability its new file, the rows left out of it, and the rows that are left
    files: dict[str, tuple[Path, int, int]]
    hopeless: dict[str, str]  # for a capability that stays as it is, why nothing would be left of it

    def to_json(self) -> dict[str, Any]:
        """Write it as JSON has it."""
        parts = [
            {"capability": name, "path": str(path), "left_out": out, "rows": rows}
            for name, (path, out, rows) in self.files.items()
        ]
        run_file = None if self.run_file is None else str(self.run_file)
        return {"run_file": run_file, "references": parts, "not_mended": self.hopeless}

    def text(self) -> str:
        """Say it."""
        if self.run_file is None:
            return "No reference row stands in a domain; nothing was written."
        lines = [
            paragraph(f"{path} written: {count_text(rows, 'reference row')} of {name}, {out:,} left out")
            for name, (path, out, rows) in self.files.items()
        ]
        lines.append(paragraph(f"{self.run_file} written: your run file with these in their places"))
        lines += [paragraph(f"{name} stays as it is: {hopeless}") for name, hopeless in self.hopeless.items()]
        return "\n".join([*lines, step("next: ", f"check {self.run_file}")])


def mend(found: Survey, run_file: Path, config: SearchConfig) -> Mended:
    """Write the reference rows that stand in no domain, each capability's to a file, and a copy of the run file."""
    leaked = found.duplicates.leaked
    if not leaked:
        return Mended(None, {}, {})
    folder = run_file.parent / f"{run_file.stem}_mended"
    files: dict[str, tuple[Path, int, int]] = {}
    hopeless: dict[str, str] = {}
    for name, numbers in leaked.items():
        rows = found.references[name].rows
        left = [row.raw for n, row in enumerate(rows) if n not in numbers]
        if len(left) < LEAST_LEFT:
            hopeless[name] = (
                f"{len(numbers):,} of {count_text(len(rows), 'reference row')} stand in a domain, so that too few are "
                "left to judge by; give it rows that are not trained on (init --hold-out takes some)"
            )
            continue
        path = folder / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', name)}.jsonl"
        if path in [place for place, _, _ in files.values()]:
            path = path.with_stem(f"{path.stem}-{len(files)}")
        atomic_write_rows(path, left)
        files[name] = path, len(numbers), len(left)
    if not files:
        raise UserError("; ".join(f"{name}: {text}" for name, text in hopeless.items()))
    target = run_file.with_name(f"{run_file.stem}_mended{run_file.suffix}")
    places = {n: files[entry.name][0] for n, entry in enumerate(config.capabilities) if entry.name in files}
    text = _with_paths(
        run_file.read_text(encoding="utf-8"), {n: path.relative_to(target.parent) for n, path in places.items()}
    )
    atomic_write_text(target, text)
    return Mended(target, files, hopeless)


def _with_paths(text: str, places: dict[int, Path]) -> str:
    """Put other paths into the capabilities of a run file, and leave all else of its text as it is."""
    root: Any = yaml.compose(text)
    listed = next(value for key, value in root.value if key.value == "capabilities")
    for n, path in sorted(places.items(), reverse=True):
        node = next(value for key, value in listed.value[n].value if key.value == "path")
        text = text[: node.start_mark.index] + yaml_text(str(path)) + text[node.end_mark.index :]
    return text
