"""Data files: which files a source names, and their records one by one, in any format."""

from __future__ import annotations

import glob as globbing
import gzip
import json
import logging
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ideal_proxy.errors import UserError

log = logging.getLogger(__name__)

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".parquet")
TRAIN_NAME = re.compile(r"^train(ing)?([-_.]|$)", re.IGNORECASE)
HELD_OUT_NAME = re.compile(r"^(test|valid|validation|val|dev|eval|reference|ref)([-_.]|$)", re.IGNORECASE)
PARQUET_BATCH = 512


class Record(NamedTuple):
    """One record of a file before its meaning is known.

    Attributes:
        value: the parsed record.
        where: file and line.
        line: the bytes as they stand in a plain JSONL file, None elsewhere.
        path: the plain JSONL file that holds `line`, None elsewhere.
        number: of the line in that file, from 0; -1 where there is none.
    """

    value: Any
    where: str
    line: bytes | None = None
    path: Path | None = None
    number: int = -1


def is_virtual(source: str | Path) -> bool:
    """Tell whether a source is generated or fetched and not a path.

    Args:
        source: the source.

    Returns:
        bool: True for `demo:` and `hf:` sources.
    """
    return str(source).startswith(("demo:", "hf:"))


def find_files(source: str | Path) -> tuple[Path, ...]:
    """List the files of a path, glob or folder, sorted.

    A folder that has files named train…, or a folder of that name, is read for those alone; otherwise what is named as
    held out (test, validation, reference, …) is passed over unless there is nothing else.

    Args:
        source: file, glob or folder.

    Returns:
        tuple of Path: at least one file.

    Raises:
        UserError: nothing is there.
    """
    path = Path(source)
    if path.is_file():
        if not path.name.lower().endswith(SUFFIXES):
            raise UserError(f"{path} is not a data file; give one that ends in {', '.join(SUFFIXES)}")
        return (path,)
    if path.is_dir():
        if is_saved(path):
            raise UserError(f"the datasets library saved the folder {path}; write it as hf:{path}")
        files = data_files(path)
        if not files:
            raise UserError(f"the folder {path} has no data file ({', '.join(SUFFIXES)}); put one in or name another")
        parts = {p: part_of(p, path) for p in files}
        chosen = [p for p in files if parts[p] == "train"]
        chosen = chosen or [p for p in files if parts[p] is None] or files
        if len(chosen) < len(files):
            left = ", ".join(sorted({p.name for p in files} - {p.name for p in chosen})[:4])
            log.info("%s: reading %d of %d files (passing over %s)", path, len(chosen), len(files), left)
        return tuple(chosen)
    if globbing.has_magic(str(source)):
        found = sorted(Path(p) for p in globbing.glob(str(source), recursive=True))
        found = [p for p in found if p.is_file() and p.name.lower().endswith(SUFFIXES)]
        if not found:
            raise UserError(f"no data file matches {source}; check the pattern ({', '.join(SUFFIXES)} are read)")
        return tuple(found)
    raise UserError(f"{source} does not exist; check the path (a Hugging Face data set is written hf:OWNER/NAME)")


def is_saved(folder: Path) -> bool:
    """Tell whether `save_to_disk` of the `datasets` library wrote a folder.

    Args:
        folder: the folder.

    Returns:
        bool: True for one table, or one a split.
    """
    one = (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    return one or (folder / "dataset_dict.json").is_file()


def data_files(folder: Path) -> list[Path]:
    """List the data files below a folder; hidden files and those whose name begins with _ are no data.

    Args:
        folder: the folder.

    Returns:
        list of Path: sorted; may be empty.
    """
    return sorted(path for path in folder.rglob("*") if _is_data(path, folder))


def part_of(file: Path, folder: Path) -> Literal["train", "held out"] | None:
    """Tell by its name, or by the folders that it lies in, which part of a source a file is.

    Args:
        file: a file below the folder.
        folder: the source's folder; its own name says nothing.

    Returns:
        str: "train" or "held out" by the first name that says so; None where none does.
    """
    for name in file.relative_to(folder).parts:
        if TRAIN_NAME.match(name):
            return "train"
        if HELD_OUT_NAME.match(name):
            return "held out"
    return None


def read_records(file: Path) -> Iterator[Record]:
    """Read a file's records one by one.

    Args:
        file: JSONL, JSONL.gz, JSON (a list, or one object a line) or parquet.

    Yields:
        Record: in file order.

    Raises:
        UserError: the file cannot be read, with the place.
    """
    name = file.name.lower()
    try:
        if name.endswith(".parquet"):
            yield from _parquet_records(file)
        elif name.endswith(".json") and _is_json_list(file):
            yield from _json_list_records(file)
        elif name.endswith(".gz"):
            with gzip.open(file, "rb") as packed:
                for record in _line_records(packed, file):
                    yield Record(record.value, record.where)
        else:
            with open(file, "rb") as plain:
                yield from _line_records(plain, file)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{file} is a broken gzip file ({error}); make or fetch it again") from error
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}") from error


def is_line_file(file: Path) -> bool:
    """Tell whether a file is plain JSONL, whatever its name.

    Args:
        file: a data file.

    Returns:
        bool: its rows are lines that can be copied as they stand.
    """
    name = file.name.lower()
    return not name.endswith((".parquet", ".gz")) and not (name.endswith(".json") and _is_json_list(file))


def _is_data(path: Path, root: Path) -> bool:
    hidden = any(part.startswith((".", "_")) for part in path.relative_to(root).parts)
    return path.is_file() and not hidden and path.name.lower().endswith(SUFFIXES) and path.name != "manifest.json"


def _line_records(handle: Any, file: Path) -> Iterator[Record]:
    for number, line in enumerate(handle):
        where = f"{file}:{number + 1}"
        if number == 0:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if line.strip():
            yield Record(_parse(line, where), where, line, file, number)


def _parse(line: bytes, where: str) -> Any:
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 (byte {error.start + 1} of the line); save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{where} is not valid JSON ({error.msg}, column {error.colno}); repair the line") from error
    except RecursionError as error:
        raise UserError(f"{where} is nested too deeply to be a row; repair the line") from error
    except ValueError as error:  # Python refuses to read a whole number of more than 4,300 digits
        raise UserError(f"{where} holds a whole number that is too long to read; repair the line") from error


def _is_json_list(file: Path) -> bool:
    with open(file, "rb") as handle:
        return handle.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")


def _json_list_records(file: Path) -> Iterator[Record]:
    content = file.read_bytes().removeprefix(b"\xef\xbb\xbf")
    try:
        values = json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 (byte {error.start + 1}); save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{file}:{error.lineno} is not valid JSON ({error.msg}); repair the file") from error
    except RecursionError as error:
        raise UserError(f"{file} is nested too deeply to hold rows; repair the file") from error
    except ValueError as error:
        raise UserError(f"{file} holds a whole number that is too long to read; repair the file") from error
    for n, value in enumerate(values):
        yield Record(value, f"{file} row {n + 1}")


def _parquet_records(file: Path) -> Iterator[Record]:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    number = 0
    try:
        with parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=PARQUET_BATCH):
                for value in batch.to_pylist():
                    number += 1
                    yield Record(value, f"{file} row {number}")
    except arrow.ArrowException as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{file} is a broken parquet file ({reason}); make or fetch it again") from error
