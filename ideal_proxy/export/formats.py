"""Export to formats that hold rows: JSONL, parquet, a Hugging Face folder, Mosaic Streaming, `interleave_datasets`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ideal_proxy.export.job import ExportReport, Job, cell, line_of, report_of, write_parquet

SHARD_BYTES = 1 << 26  # of MosaicML Streaming, whose offsets are 32-bit


def jsonl(job: Job) -> ExportReport:
    """Write the exact rows as JSONL, in training order: `messages`, or tokens where the model is known."""
    if job.tokens is None:
        job.write_drawn(job.work / "train.jsonl")
    else:
        with open(job.work / "train.jsonl", "wb") as file:
            for row in job.tokens.records():
                file.write(line_of({name: value.tolist() for name, value in row.items()}))
    return report_of(job, "jsonl", ["train.jsonl"], "read train.jsonl; rows stand in training order")


def parquet(job: Job) -> ExportReport:
    """Write the exact rows as parquet, in training order."""
    _write_parquet(job, job.work / "train.parquet")
    return report_of(job, "parquet", ["train.parquet"], "read train.parquet; rows stand in training order")


def hugging_face(job: Job) -> ExportReport:
    """Write the exact rows as a folder that `datasets.load_dataset` reads, and that can be pushed to the hub."""
    name = "data/train-00000-of-00001.parquet"
    _write_parquet(job, job.work / name)
    rows = "\n".join(f"| {cell(d.name)} | {d.rows:,} | {d.rows / d.available:.2f} |" for d in job.domains)
    card = (
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/train-*.parquet\n"
        "---\n\n"
        f"# {cell(job.mixture.name)}\n\nA mixture by ideal-proxy; rows stand in training order, repeats included.\n\n"
        f"| domain | rows | repeat |\n|---|---:|---:|\n{rows}\n"
    )
    (job.work / "README.md").write_text(card, encoding="utf-8")
    return report_of(job, "hf", [name, "README.md"], f'datasets.load_dataset("{job.folder}", split="train")')


def streaming(job: Job) -> ExportReport:
    """Write every domain's drawn rows as Streaming shards (JSON, version 2), and a script that takes each once."""
    # `epoch_size` must stay unset: it would take some rows more often than others.
    names = job.file_names()
    lines = []
    for domain in job.domains:
        place = job.work / "data" / names[domain.name]
        drawn = job.write_drawn(job.work / ".drawn.jsonl", [domain])
        with open(drawn, "rb") as rows:
            _write_shards((json.loads(line) for line in rows), place)
        drawn.unlink()
        lines.append(f'    Stream(local=str(HERE / "data" / {names[domain.name]!r})),')
    script = (
        '"""Streams of a mixture by ideal-proxy; `messages` is JSON text: json.loads(sample["messages"])."""\n\n'
        "from pathlib import Path\n\nfrom streaming import Stream, StreamingDataset\n\n"
        "HERE = Path(__file__).resolve().parent\nSTREAMS = [\n" + "\n".join(lines) + "\n]\n\n\n"
        "def dataset(batch_size: int) -> StreamingDataset:\n"
        f"    return StreamingDataset(streams=STREAMS, shuffle=True, shuffle_seed={job.mixture.seed}, "
        "batch_size=batch_size)\n"
    )
    (job.work / "mixture_streams.py").write_text(script, encoding="utf-8")
    return report_of(
        job, "streaming", ["mixture_streams.py", "data/"], "import dataset from mixture_streams.py"
    )  # fmt: skip


def interleave(job: Job) -> ExportReport:
    """Write every domain's drawn rows apart, and a script that interleaves them until all are used up."""
    # With `all_exhausted_without_replacement` every row is taken exactly once: the probabilities decide the order only.
    names = job.file_names()
    total = job.mixture.total_rows
    probabilities = [domain.rows / total for domain in job.domains]
    files = [f"data/{names[domain.name]}.jsonl" for domain in job.domains]
    for domain, file in zip(job.domains, files, strict=True):
        job.write_drawn(job.work / file, [domain])
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
    (job.work / "mixture_interleave.py").write_text(script, encoding="utf-8")
    return report_of(
        job, "interleave", ["mixture_interleave.py", *files], "import dataset from mixture_interleave.py",
        notes=("needs datasets 4.5 or newer, for all_exhausted_without_replacement",),
    )  # fmt: skip


def _write_parquet(job: Job, path: Path) -> None:
    """Write the exact rows as parquet: `messages`, or tokens where the model is known."""
    if job.tokens is not None:
        write_parquet(job.tokens.records(), path)
        return
    drawn = job.write_drawn(job.work / ".drawn.jsonl")
    with open(drawn, "rb") as lines:
        write_parquet((json.loads(line) for line in lines), path)
    drawn.unlink()


def _write_shards(rows: Iterator[dict[str, Any]], folder: Path) -> None:
    """Write rows as Streaming's JSON shards: data lines, a meta file of offsets, and index.json."""
    folder.mkdir(parents=True)
    shared: dict[str, Any] = {"compression": None, "format": "json", "hashes": [], "size_limit": SHARD_BYTES}
    columns: dict[str, Any] = {"columns": {}, "newline": "\n"}
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
        columns["columns"] = dict.fromkeys(row, "str")
        text = {k: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for k, v in row.items()}
        line = line_of(text)
        if batch and size + len(line) > SHARD_BYTES:
            flush()
            size = 0
        batch.append(line)
        size += len(line)
    if batch:
        flush()
    (folder / "index.json").write_text(json.dumps({"version": 2, "shards": shards}, sort_keys=True), encoding="utf-8")
