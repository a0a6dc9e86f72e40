"""Files that unpack without end, lines without end: one sentence, in bounded memory and time."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from builders import environment, run, write_rows

from ideal_proxy.config import MOST_BYTES, load_config
from ideal_proxy.data import records
from ideal_proxy.data.rows import read_rows
from ideal_proxy.errors import UsageError, UserError
from ideal_proxy.store import MOST_JSON, read_json

GIB = 1 << 30  # of the plain files, which are holes
READ = """
import json, resource, sys, time
from ideal_proxy.data.rows import read_rows
from ideal_proxy.errors import UserError
import ideal_proxy.data.hub, pyarrow.parquet
told = {}
for path in sys.argv[1:]:
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    try:
        sum(1 for _ in read_rows(path))
        said = "read"
    except UserError as error:
        said = str(error)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    told[path] = [said, grown >> 10, time.process_time() - began]
print(json.dumps(told))
"""


def members(pack: Any, piece: bytes, times: int) -> bytes:
    """Pack a piece once and write it many times: what unpacks is as long as if it had been packed whole."""
    return b"".join([pack(piece)] * times)


def bombs(folder: Path) -> dict[str, str]:
    """Write files that unpack to about 1 GiB each, and say by which words each is refused."""
    blank, row = b"a" * (1 << 24), b'{"instruction": "a", "output": "%s"}\n' % (b"b" * 2_500) * 9_000
    times = GIB >> 26
    text = {
        "line.jsonl.gz": members(gzip.compress, blank, times), "rows.jsonl.gz": members(gzip.compress, row, 1),
        "line.jsonl.bz2": members(bz2.compress, blank, times), "line.jsonl.xz": members(lzma.compress, blank, times),
        "line.csv.gz": members(gzip.compress, blank, times),
        "whole.json.gz": gzip.compress(b"[") + members(gzip.compress, b"{}," * (1 << 22), 20),
    }  # fmt: skip
    for name, content in text.items():
        (folder / name).write_bytes(content)
    with arrow.output_stream(str(folder / "line.jsonl.zst"), compression="zstd") as stream:
        for _ in range(times):
            stream.write(blank)
    for name in ("line.jsonl", "line.csv"):  # a hole in the file: it takes no room on the disk
        with open(folder / name, "wb") as file:
            file.write(b'{"instruction": "' if name == "line.jsonl" else b"instruction,output\n")
            file.truncate(GIB)
    numbers = arrow.ListArray.from_arrays(arrow.array([0, 1 << 26], type=arrow.int32()), arrow.repeat(7, 1 << 26))
    parquet.write_table(arrow.table({"instruction": numbers, "output": ["b"]}), folder / "list.parquet")
    long = arrow.array(["x" * (1 << 24)] * 8)
    parquet.write_table(
        arrow.table({"instruction": long, "output": ["b"] * 8}), folder / "text.parquet", compression="zstd",
        use_dictionary=False,
    )  # fmt: skip
    once = arrow.DictionaryArray.from_arrays(arrow.repeat(0, 2_000).cast("int32"), arrow.array(["x" * (1 << 20)]))
    parquet.write_table(
        arrow.table({"instruction": once, "output": ["b"] * 2_000}), folder / "repeated.parquet", store_schema=False,
        dictionary_pagesize_limit=1 << 30,
    )  # fmt: skip
    swollen = ("rows.jsonl.gz", "whole.json.gz", "list.parquet", "text.parquet", "repeated.parquet")
    endless = (*(name for name in text if name.startswith("line")), "line.jsonl.zst", "line.jsonl", "line.csv")
    return dict.fromkeys(swollen, "times its size") | dict.fromkeys(endless, "times its size|longer than")


def test_what_unpacks_to_a_gibibyte_is_one_sentence(tmp_path: Path) -> None:
    told = bombs(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", READ, *(str(tmp_path / name) for name in told)], env=environment(), capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    found = {Path(path).name: what for path, what in json.loads(done.stdout).items()}
    for name, words in told.items():
        said, mebibytes, seconds = found[name]
        assert any(word in said for word in words.split("|")), (name, said)
        assert mebibytes < 700, name
        assert seconds < 60, name


@pytest.mark.parametrize("step", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_no_wrong_byte_of_a_table_ends_the_process(step: int, tmp_path: Path) -> None:
    """Offsets that point nowhere and columns that contradict the schema: pyarrow alone dies of both.

    Every third byte is one of each number of four bytes; all bytes are slow.
    """
    rows = [{"instruction": "how much is one and one", "output": "two", "tags": ["a", "b"]}, {"output": "c"}]
    table = arrow.Table.from_pylist(rows)
    whole = {name: arrow.BufferOutputStream() for name in ("stream.arrow", "file.arrow", "a.parquet")}
    for name, sink in whole.items():
        if name == "a.parquet":
            parquet.write_table(table, sink)
            continue
        with (arrow.ipc.new_stream if name == "stream.arrow" else arrow.ipc.new_file)(sink, table.schema) as file:
            file.write_table(table)
    for name, sink in whole.items():
        content = sink.getvalue().to_pybytes()
        for at in range(0 if name.endswith("arrow") else len(content) - 1_200, len(content), step):
            bent = bytearray(content)
            bent[at] = (bent[at] + (254 if name == "a.parquet" else 128)) % 256
            (tmp_path / f"{at}-{name}").write_bytes(bent)
    files = sorted(map(str, tmp_path.iterdir()))
    child = subprocess.run([sys.executable, "-c", READ, *files], capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr[-2_000:]
    said = [sentence for sentence, *_ in json.loads(child.stdout).values()]
    assert len(said) == len(files)
    assert 100 < said.count("read") < len(files) - 100  # a byte of a text is as good as another


def test_rows_that_shrink_as_rows_do_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bounds are far from what real files do: text packs to a tenth, a column may be the same in every row."""
    monkeypatch.setattr(records, "FREE_BYTES", 1 << 10)
    rows = [
        {"system": "s" * 400, "instruction": f"how much is {n} and {n * n}", "output": str(n + n * n)}
        for n in range(3000)
    ]
    write_rows(tmp_path / "a.jsonl", rows)
    plain = (tmp_path / "a.jsonl").read_bytes()
    for name, pack in (("a.jsonl.gz", gzip.compress), ("a.jsonl.xz", lzma.compress), ("a.jsonl.bz2", bz2.compress)):
        (tmp_path / name).write_bytes(pack(plain))
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "a.parquet", compression="zstd")
    first = [row.key for row in read_rows(tmp_path / "a.jsonl")]
    for name in ("a.jsonl.gz", "a.jsonl.xz", "a.jsonl.bz2", "a.parquet"):
        assert [row.key for row in read_rows(tmp_path / name)] == first, name


def test_files_of_ours_and_tables_have_a_most(tmp_path: Path) -> None:
    for name, size, read, word in (
        ("fit.json", MOST_JSON + 1, read_json, "more than any file of ours"),
        ("mix.yaml", MOST_BYTES + 1, load_config, "which no run file needs"),
    ):
        with open(tmp_path / name, "wb") as file:
            file.truncate(size)
        with pytest.raises(UserError, match=word):
            read(tmp_path / name)  # type: ignore[operator]


def test_a_table_of_many_columns_and_short_lines_is_refused(tmp_path: Path) -> None:
    (tmp_path / "wide.csv").write_text("run" + "," * 15_000 + "\n" + "1\n" * 400_000)
    began = time.process_time()
    done = run("fit", "--ratios", str(tmp_path / "wide.csv"), "--metrics", str(tmp_path / "wide.csv"), cwd=tmp_path)
    assert done.returncode == 1
    assert "does not fill them" in done.stderr
    assert time.process_time() - began < 60


def test_a_run_file_at_its_most_takes_seconds(tmp_path: Path) -> None:
    """The slowest the parser knows: small values, nested as deeply as is allowed, keys in brackets."""
    for piece in ("- {a: [b, c]}\n", "? [a, b]\n: c\n"):
        (tmp_path / "mix.yaml").write_text(piece * (MOST_BYTES // len(piece)))
        began = time.process_time()
        with pytest.raises(UsageError):
            load_config(tmp_path / "mix.yaml")
        assert time.process_time() - began < 60, piece
