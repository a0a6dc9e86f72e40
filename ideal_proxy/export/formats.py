"""Export to formats that hold rows: JSONL, parquet, a Hugging Face folder, Mosaic Streaming, `interleave_datasets`."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ideal_proxy.export.job import ExportReport, Job, line_of, report_of

SHARD_BYTES = 1 << 26  # of MosaicML Streaming, whose offsets are 32-bit
SPOOL = ".rows"
ROWS_OF_A_GROUP = 4096  # of parquet: what is held in memory


def jsonl(job: Job) -> ExportReport:
    """Write the exact rows as JSONL of `messages`, in training order."""
    path = write_drawn_as(job, job.folder / "train.jsonl")
    return report_of(job, "jsonl", [path.name], f"read {path.name}; rows stand in training order")


def parquet(job: Job) -> ExportReport:
    """Write the exact rows as parquet with a `messages` column, in training order."""
    _write_parquet(job, job.folder / "train.parquet")
    return report_of(job, "parquet", ["train.parquet"], "read train.parquet; rows stand in training order")


def hugging_face(job: Job) -> ExportReport:
    """Write the exact rows as a folder that `datasets.load_dataset` reads, and that can be pushed to the hub as it is.

    Args:
        job: mixture and folder.

    Returns:
        ExportReport: what was written.
    """
    name = "data/train-00000-of-00001.parquet"
    _write_parquet(job, job.folder / name)
    rows = "\n".join(f"| {_cell(d.name)} | {d.rows:,} | {d.rows / d.available:.2f} |" for d in job.domains)
    card = (
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/train-*.parquet\n"
        "---\n\n"
        f"# {_cell(job.mixture.name)}\n\nA mixture by ideal-proxy; rows stand in training order, repeats included.\n\n"
        f"| domain | rows | repeat |\n|---|---:|---:|\n{rows}\n"
    )
    (job.folder / "README.md").write_text(card, encoding="utf-8")
    return report_of(job, "hf", [name, "README.md"], f'datasets.load_dataset("{job.folder}", split="train")')


def _cell(text: str) -> str:
    """Write a name so that it stays in its line and its cell of a Markdown table."""
    plain = "".join(c if c.isprintable() else " " for c in text)
    return re.sub(r"([\\|`*_<>\[\]#])", r"\\\1", " ".join(plain.split()))


def streaming(job: Job) -> ExportReport:
    """Write every domain once as Streaming shards (JSON format, version 2), and streams with `choose` counts.

    Streaming draws whole passes and a remainder spread over the shards, so `choose` is exact. `epoch_size` must stay
    unset beside it (it raises ValueError).

    Args:
        job: mixture and folder.

    Returns:
        ExportReport: what was written.
    """
    names = job.file_names()
    lines = []
    for domain in job.domains:
        place = job.folder / "data" / names[domain.name]
        _write_shards(job.conversations(domain), place)
        lines.append(f'    Stream(local=str(HERE / "data" / {names[domain.name]!r}), choose={domain.rows}),')
    script = (
        '"""Streams of a mixture by ideal-proxy; `messages` is JSON text: json.loads(sample["messages"])."""\n\n'
        "from pathlib import Path\n\nfrom streaming import Stream, StreamingDataset\n\n"
        "HERE = Path(__file__).resolve().parent\nSTREAMS = [\n" + "\n".join(lines) + "\n]\n\n\n"
        "def dataset(batch_size: int) -> StreamingDataset:\n"
        f"    return StreamingDataset(streams=STREAMS, shuffle=True, shuffle_seed={job.mixture.seed}, "
        "batch_size=batch_size)\n"
    )
    (job.folder / "mixture_streams.py").write_text(script, encoding="utf-8")
    how = {d.name: f"choose={d.rows}" for d in job.domains}
    return report_of(
        job, "streaming", ["mixture_streams.py", "data/"],
        "import dataset from mixture_streams.py; leave epoch_size unset", how=how,
        notes=("the rows that repeat, and their order, are Streaming's choice",),
    )  # fmt: skip


def interleave(job: Job) -> ExportReport:
    """Write every domain's exact rows apart, and a script that interleaves them until all are used up.

    With `all_exhausted_without_replacement` every row is taken exactly once: the probabilities decide the order only.

    Args:
        job: mixture and folder.

    Returns:
        ExportReport: what was written.
    """
    names = job.file_names()
    for domain in job.domains:
        spool = job.folder / SPOOL
        written = job.write_drawn(spool, [domain])
        place = job.folder / "data" / f"{names[domain.name]}.jsonl"
        place.parent.mkdir(exist_ok=True)
        written.replace(place)
        shutil.rmtree(spool)
    total = job.mixture.total_rows
    probabilities = [domain.rows / total for domain in job.domains]
    files = [f"data/{names[domain.name]}.jsonl" for domain in job.domains]
    script = (
        '"""A mixture by ideal-proxy, interleaved; every row of every file exactly once."""\n\n'
        "from pathlib import Path\n\nfrom datasets import interleave_datasets, load_dataset\n\n"
        "HERE = Path(__file__).resolve().parent\n"
        f"FILES = {json.dumps(files, indent=4)}\nPROBABILITIES = {json.dumps(probabilities, indent=4)}\n\n\n"
        "def dataset():\n"
        '    parts = [load_dataset("json", data_files=str(HERE / file), split="train") for file in FILES]\n'
        "    return interleave_datasets(\n"
        f"        parts, probabilities=PROBABILITIES, seed={job.mixture.seed},\n"
        '        stopping_strategy="all_exhausted_without_replacement",\n    )\n'
    )
    (job.folder / "mixture_interleave.py").write_text(script, encoding="utf-8")
    how = {d.name: f"p={d.rows / total:.6f}" for d in job.domains}
    return report_of(
        job, "interleave", ["mixture_interleave.py", *files], "import dataset from mixture_interleave.py",
        exact=False, how=how,
        notes=(
            "probabilities cannot say counts, so the exact rows are written and taken once each "
            "(needs datasets >= 4.5 for all_exhausted_without_replacement)",
        ),
    )  # fmt: skip


def write_drawn_as(job: Job, path: Path) -> Path:
    """Write the exact rows to one file."""
    spool = job.folder / SPOOL
    written = job.write_drawn(spool)
    path.parent.mkdir(parents=True, exist_ok=True)
    written.replace(path)
    shutil.rmtree(spool)
    return path


def _write_parquet(job: Job, path: Path) -> None:
    """Write the exact rows as parquet, a row group at a time."""
    import pyarrow as arrow
    import pyarrow.parquet as table_file

    message = arrow.struct([("role", arrow.string()), ("content", arrow.string())])
    schema = arrow.schema([("messages", arrow.list_(message))])
    spool = job.folder / SPOOL
    written = job.write_drawn(spool)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(written, "rb") as lines, table_file.ParquetWriter(path, schema) as writer:
        for group in _groups(lines):
            writer.write_batch(arrow.RecordBatch.from_pylist(group, schema=schema))
    shutil.rmtree(spool)


def _groups(lines: Any) -> Iterator[list[dict[str, Any]]]:
    group: list[dict[str, Any]] = []
    for line in lines:
        group.append(json.loads(line))
        if len(group) == ROWS_OF_A_GROUP:
            yield group
            group = []
    if group:
        yield group


def _write_shards(rows: Iterator[dict[str, Any]], folder: Path) -> None:
    """Write rows as Streaming's JSON shards: data lines, a meta file of offsets, and index.json."""
    folder.mkdir(parents=True)
    shared: dict[str, Any] = {"compression": None, "format": "json", "hashes": [], "size_limit": SHARD_BYTES}
    columns = {"columns": {"messages": "str"}, "newline": "\n"}
    shards: list[dict[str, Any]] = []
    batch: list[bytes] = []

    def flush() -> None:
        number = len(shards)
        data = b"".join(batch)
        offsets = np.concatenate([[0], np.cumsum([len(line) for line in batch])]).astype("<u4")
        config = json.dumps({"version": 2, **shared, **columns}, sort_keys=True).encode()
        meta = np.uint32(len(batch)).astype("<u4").tobytes() + offsets.tobytes() + config
        info = {}
        for kind, suffix, content in (("raw_data", "json", data), ("raw_meta", "json.meta", meta)):
            name = f"shard.{number:05d}.{suffix}"
            (folder / name).write_bytes(content)
            info[kind] = {"basename": name, "bytes": len(content), "hashes": {}}
        shards.append({
            "version": 2, **shared, **columns, **info, "samples": len(batch), "zip_data": None, "zip_meta": None,
        })  # fmt: skip
        batch.clear()

    size = 0
    for row in rows:
        line = line_of({"messages": json.dumps(row["messages"], ensure_ascii=False)})
        if batch and size + len(line) > SHARD_BYTES:
            flush()
            size = 0
        batch.append(line)
        size += len(line)
    if batch:
        flush()
    (folder / "index.json").write_text(json.dumps({"version": 2, "shards": shards}, sort_keys=True), encoding="utf-8")
