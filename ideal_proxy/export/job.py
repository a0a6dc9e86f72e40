"""What every exporter works with: the drawn rows as turns or tokens, and the report it hands back."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ideal_proxy.export.encoded import AS_THE_SEARCH, Count, Encoded, Long, Reading
from ideal_proxy.export.terms import Terms, terms_notes
from ideal_proxy.export.turns import Change, Told, records
from ideal_proxy.mixture import DomainVolume, MixtureFile, apply_mixture
from ideal_proxy.store import json_bytes

FORMAT = "ideal-proxy/export/1"
COUNTS = "ideal-proxy/counts/1"
SPOOL = ".rows"
ROWS_OF_A_GROUP = 4096  # of parquet: what is held in memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """What the target will do with one domain in one epoch."""

    domain: str  # its name
    available: int  # rows that the domain has
    wanted: int  # rows of the mixture, repeats included
    draws: int  # rows that the target will train on
    supervised_tokens: int | None  # tokens with loss that it will train on; None where nobody counted them
    count: Count | None  # the whole count, where the target's tokenizer is known

    @property
    def lost(self) -> float:
        """Share of its tokens with loss that the target cuts or drops; 0 where nobody counted."""
        if self.count is None:
            return 0.0
        return self.count.supervised_lost / max(1, self.count.supervised_lost + self.count.supervised_tokens)

    def to_dict(self) -> dict[str, Any]:
        """Return it for a file."""
        told: dict[str, Any] = {
            "name": self.domain, "available": self.available, "wanted": self.wanted, "draws": self.draws,
            "repeat": self.wanted / self.available, "supervised_tokens": self.supervised_tokens,
        }  # fmt: skip
        if (count := self.count) is not None:
            told |= {
                "tokens": count.tokens, "dropped": count.dropped, "cut": count.cut,
                "supervised_lost": count.supervised_lost,
            }  # fmt: skip
        return told


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """What was written for a target."""

    target: str  # its name
    folder: Path  # the output folder
    draws: tuple[Draw, ...]  # a domain an entry; domains without a volume are left out
    counted_with: str  # whose tokens are counted
    context: int | None  # most tokens of a row; None where nothing says it
    long: Long  # what the target does with longer rows
    files: tuple[str, ...]  # what was written, relative to the folder
    notes: tuple[str, ...]  # what a user must know
    use: str  # how to use it
    left_over: int = 0  # rows of an epoch's last step, which the target leaves out where it is not full

    @property
    def lost(self) -> int:
        """Tokens with loss that the target will not train on, as far as they were counted."""
        return sum(draw.count.supervised_lost for draw in self.draws if draw.count is not None)

    def to_dict(self) -> dict[str, Any]:
        """Return the report for a file."""
        return {
            "format": FORMAT, "target": self.target, "files": list(self.files), "notes": list(self.notes),
            "use": self.use,
        }  # fmt: skip

    def counts(self) -> dict[str, Any]:
        """Return what the target will draw and drop, for a file."""
        return {
            "format": COUNTS, "target": self.target, "counted_with": self.counted_with, "context": self.context,
            "longer_rows": self.long, "last_step_left_out": self.left_over,
            "domains": [draw.to_dict() for draw in self.draws],
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Job:
    """What a writer works with."""

    mixture: MixtureFile  # the mixture file
    folder: Path  # where the export will stand
    sources: dict[str, str]  # for every domain, where its rows are
    terms: Terms  # how the target is to train
    index: Path | None = None  # folder in which indexes of the sources are kept; None: none are
    encoded: Encoded | None = None  # the drawn rows as tokens of the target's model; None where the model is not known
    text: bool = False  # write turns even where the target reads tokens
    draft: Path | None = None  # folder of what is not whole yet; None: the export's own

    @property
    def domains(self) -> list[DomainVolume]:
        """The domains that have a volume."""
        return [domain for domain in self.mixture.domains if domain.rows]

    @property
    def work(self) -> Path:
        """Where to write."""
        return self.draft or self.folder

    @property
    def tokens(self) -> Encoded | None:
        """What to write where the target reads tokens; None: turns."""
        return None if self.text else self.encoded

    def file_names(self) -> dict[str, str]:
        """Give every domain a name that is safe in a path, a shell and a comma-separated list."""
        names: dict[str, str] = {}
        for domain in self.domains:
            plain = re.sub(r"[^A-Za-z0-9_.-]+", "_", domain.name).strip("._") or "domain"
            unique, number = plain, 2
            while unique.lower() in {name.lower() for name in names.values()}:
                unique, number = f"{plain}_{number}", number + 1
            names[domain.name] = unique
        return names

    def write_drawn(self, path: Path, domains: list[DomainVolume] | None = None) -> Path:
        """Write the exact rows of some domains, repeats included, in training order, as one JSONL of `messages`."""
        part = self.mixture.model_copy(update={"domains": domains or self.domains})
        moved = {d.name: self.sources[d.name] for d in part.domains}
        spool = self.work / SPOOL
        written = apply_mixture(part, spool, row_format="chat", sources=moved, index=self.index).files[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        written.replace(path)
        shutil.rmtree(spool)
        return path

    def write_turns(self, name: str = "train.jsonl", change: Change | None = None) -> Told:
        """Write the drawn rows as JSONL without what a trainer would drop; say what was done to them."""
        told = Told()
        drawn = self.write_drawn(self.work / f".{name}")
        with open(self.work / name, "wb") as file:
            file.writelines(line_of(record) for record in records(drawn, told, change))
        drawn.unlink()
        return told


def write_parquet(rows: Iterable[dict[str, Any]], path: Path) -> None:
    """Write records as parquet, a group of rows at a time; a column's type is what all groups need."""
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parts = path.parent / f".{path.name}.parts"
    parts.mkdir()
    schemas: list[Any] = []
    for group in _groups(rows):
        table = arrow.Table.from_pylist(group)
        parquet.write_table(table, parts / f"{len(schemas)}.parquet")
        schemas.append(table.schema)
    schema = arrow.unify_schemas(schemas, promote_options="permissive") if schemas else arrow.schema([])
    with parquet.ParquetWriter(path, schema) as writer:
        for number, found in enumerate(schemas):
            table = parquet.read_table(parts / f"{number}.parquet")
            same = found.equals(schema)
            writer.write_table(table if same else arrow.Table.from_pylist(table.to_pylist(), schema=schema))
    shutil.rmtree(parts)


def _groups(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    group: list[dict[str, Any]] = []
    for row in rows:
        group.append(row)
        if len(group) == ROWS_OF_A_GROUP:
            yield group
            group = []
    if group:
        yield group


def cell(text: str) -> str:
    """Write a name so that it stays in its line and its cell of a Markdown table."""
    plain = "".join(c if c.isprintable() else " " for c in text)
    return re.sub(r"([\\|`*_<>\[\]#])", r"\\\1", " ".join(plain.split()))


def line_of(row: dict[str, Any]) -> bytes:
    """Write a row as one line of JSON."""
    return json_bytes(row) + b"\n"


def report_of(
    job: Job,
    target: str,
    files: list[str],
    use: str,
    *,
    long: Long = "as the search",
    notes: tuple[str, ...] = (),
    reads: Reading = AS_THE_SEARCH,
) -> ExportReport:
    """Compose a writer's report."""
    counts = [None] * len(job.domains) if job.encoded is None else job.encoded.counts(long, reads)
    if job.encoded is not None and job.encoded.template.plain:
        more = "" if long == "as the search" else "; the trainer needs one of its own"
        notes = (*notes, f"the model has no chat template: its tokens are those of the plain one{more}")
    draws = tuple(
        Draw(
            domain=d.name, available=d.available, wanted=d.rows, draws=d.rows if count is None else count.rows,
            supervised_tokens=(d.supervised_tokens or None) if count is None else count.supervised_tokens, count=count,
        )
        for d, count in zip(job.domains, counts, strict=True)
    )  # fmt: skip
    return ExportReport(
        target=target, folder=job.folder, draws=draws, context=job.terms.context, long=long, files=tuple(files),
        counted_with="the search's tokenizer" if job.encoded is None else job.encoded.model,
        notes=(*notes, *terms_notes(job.mixture, job.terms, target)), use=use,
    )  # fmt: skip
