"""Records of a data file one by one, in any format, known by its bytes."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import itertools
import json
import lzma
import re
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Set
from pathlib import Path
from typing import Any, NamedTuple

from ideal_proxy.data.opening import (
    CELLS,
    FREE_BYTES,
    LONGEST_ROW,
    MOST_TIMES,
    TABLES,
    TOO_MUCH,
    kind_of_file,
    opened,
    text_lines,
)
from ideal_proxy.errors import UserError, shortened

ROW_MARKS = {
    "messages", "conversations", "conversation", "instruction", "prompt", "completion", "query", "response", "question",
    "answer",
}  # fmt: skip


CHAT_COLUMNS = ("messages", "conversations", "conversation")


NEVER_ROWS = {"chat_template_kwargs", "metadata", "meta", "tools"}  # columns of objects that say something about rows
SPEAKERS = ("role", "from", "speaker", "author", "sender", "human")


BATCH = 512


BOM = b"\xef\xbb\xbf"


# Cells of a table may take so many times more once values that the file holds once are written out for every row.
MOST_REPEATS = 5
DECODED_BYTES = 1 << 26  # that one batch of a table may take in memory


class BadRow(UserError):
    """A row that cannot be read; `reason` is what it is counted under."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class Record(NamedTuple):
    """One record of a file before its meaning is known."""

    value: Any  # the parsed record; a BadRow where it cannot be parsed
    where: str  # file and line
    line: bytes | None = None  # the bytes as they stand in a plain JSONL file, None elsewhere
    path: Path | None = None  # the plain JSONL file that holds `line`, None elsewhere
    number: int = -1  # of the line in that file, from 0; -1 where there is none


def read_records(
    file: Path, columns: Collection[str] = (), seen: Callable[[bytes], None] | None = None
) -> Iterator[Record]:
    """Read a file's records one by one."""
    kind, packed = kind_of_file(file)
    try:
        if kind in TABLES:
            yield from _arrow_records(file, kind)
        elif kind in CELLS:
            yield from _cell_records(file, kind)
        elif is_whole(file):
            yield from _whole_records(file, ROW_MARKS.union(columns))
        else:
            with opened(file) as lines:
                for record in _line_records(lines, file, seen):
                    yield Record(record.value, record.where) if packed else record
    except (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{file} is a broken {packed[1:]}ip file ({error}); make or fetch it again") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 (byte {error.start + 1}); save the file as UTF-8") from error
    except OSError as error:
        broken = f" is a broken {packed[1:]} file ({error}); make or fetch it again"
        if packed and error.errno is None:
            raise UserError(f"{file}{broken}") from error
        raise UserError(f"cannot read {file}: {error.strerror or error}") from error


def is_line_file(file: Path) -> bool:
    """Tell whether a file is plain JSON lines, whatever its name: its rows can be copied as they stand."""
    kind, packed = kind_of_file(file)
    return kind not in (*TABLES, *CELLS) and not packed and not is_whole(file)


def is_whole(file: Path) -> bool:
    """Tell whether a JSON file is one value (a list, or an object over several lines) instead of one row a line."""
    named_json = kind_of_file(file)[0] == ".json"
    with opened(file) as handle:
        head = handle.readline(FIRST_LINE).removeprefix(BOM)
        while head and not head.strip():
            head = handle.readline(FIRST_LINE)
        begins = head.lstrip()[:1]
        if begins == b"[" and named_json:
            return True
        try:
            first = json.loads(head)
        except (ValueError, RecursionError):
            short = begins in {b"[", b"{"} and len(head.strip()) < SHORT_LINE
            # A value over several lines has a value, a key or its end at the beginning of the next.
            return short and bool(re.match(rb'\s*["\[\]{}]', handle.read(SHORT_LINE))) and not _ends_inside(head)
        if isinstance(first, list):
            return bool(first) and all(isinstance(row, dict) for row in first)
        more = any(line.strip() for line in iter(lambda: handle.readline(SHORT_LINE), b""))
        if more or not named_json or not isinstance(first, dict):
            return False
        return not ROW_MARKS & set(first) or _rows_in(first, ROW_MARKS, file) is not None


FIRST_LINE, SHORT_LINE = 1 << 22, 1 << 10


def _ends_inside(head: bytes) -> bool:
    """Whether a line breaks off in the middle of a text, as a damaged row does."""
    return bool(head.replace(b'\\"', b"").count(b'"') % 2)


def kind_of(value: Any) -> str:
    """Name a JSON value's kind."""
    if value is None:
        return "null"
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), type(value).__name__)


def _line_records(handle: Any, file: Path, seen: Callable[[bytes], None] | None) -> Iterator[Record]:
    for number, line in enumerate(text_lines(handle, file)):
        if seen is not None:
            seen(line)
        where = f"{file}:{number + 1}"
        if number == 0:
            line = line.removeprefix(BOM)
        if line.strip():
            yield Record(_parse(line, where), where, line, file, number)


def _parse(line: bytes, where: str) -> Any:
    """Read a line as JSON; what cannot be read comes back as a BadRow."""
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return BadRow(f"{where} is not UTF-8 (byte {error.start + 1} of the line); save the file as UTF-8", "not UTF-8")
    except json.JSONDecodeError as error:
        opens = line.lstrip()[:1] in {b"{", b"["}
        cure = "repair the line" if opens else "write one JSON object a line (a table of cells is named .csv)"
        return BadRow(f"{where} is not valid JSON ({error.msg}, column {error.colno}); {cure}", "not valid JSON")
    except RecursionError:
        return BadRow(f"{where} is nested too deeply to be a row; repair the line", "nested too deeply")
    except ValueError:  # Python refuses to read a whole number of more than 4,300 digits
        return BadRow(f"{where} holds a whole number that is too long to read; repair the line", "a number too long")


def _whole_records(file: Path, marks: Set[str]) -> Iterator[Record]:
    """Read a file that is one JSON value, or several objects one after the other, each over several lines."""
    with opened(file) as handle:
        text = handle.read().removeprefix(BOM).decode("utf-8")
    decoder, values, at = json.JSONDecoder(), [], _past_space(text, 0)
    try:
        if text[at : at + 1] == "[" and kind_of_file(file)[0] == ".json":
            yield from _elements(text, at, decoder, file)
            return
        if len(text) > FREE_BYTES + 20 * file.stat().st_size:
            raise UserError(f"{file} {TOO_MUCH}")
        while at < len(text):
            value, at = decoder.raw_decode(text, at)
            values.append(value)
            at = _past_space(text, at)
    except json.JSONDecodeError as error:
        raise UserError(f"{file}:{error.lineno} is not valid JSON ({error.msg}); repair the file") from error
    except RecursionError as error:
        raise UserError(f"{file} is nested too deeply to hold rows; repair the file") from error
    except ValueError as error:
        raise UserError(f"{file} holds a whole number that is too long to read; repair the file") from error
    if len(values) == 1 and isinstance(values[0], list):
        values = values[0]
    elif len(values) == 1 and isinstance(values[0], dict):
        rows = _rows_in(values[0], marks, file)
        if rows is None and marks.isdisjoint(values[0]):
            raise UserError(f"{file} holds one object {_no_rows(values[0])}")
        values = values if rows is None else rows
    for n, value in enumerate(values):
        yield Record(value, f"{file} row {n + 1}")


def _elements(text: str, at: int, decoder: json.JSONDecoder, file: Path) -> Iterator[Record]:
    """Read the elements of one list one by one, so that only the text is held."""
    at = _past_space(text, at + 1)
    for number in itertools.count(1):
        if number == 1 and text[at : at + 1] == "]":
            break
        value, at = decoder.raw_decode(text, at)
        yield Record(value, f"{file} row {number}")
        at = _past_space(text, at)
        if text[at : at + 1] == "]":
            break
        if text[at : at + 1] != ",":
            raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
        at = _past_space(text, at + 1)
    if _past_space(text, at + 1) < len(text):
        raise json.JSONDecodeError("Extra data", text, at + 1)


def _past_space(text: str, at: int) -> int:
    return re.compile(r"\s*").match(text, at).end()  # type: ignore[union-attr]


def _no_rows(value: dict[str, Any]) -> str:
    """Say why an object is neither a row nor a file of rows, and what to do."""
    lists = [str(key) for key, part in value.items() if isinstance(part, list) and part and isinstance(part[0], dict)]
    if len(lists) > 1:
        return f"with {len(lists)} lists of rows ({', '.join(lists[:6])}); write each into a file of its own"
    keys = ", ".join(map(str, list(value)[:6])) or "none"
    return f"with the keys {keys}, and no list of rows in it; give one object a row"


def _rows_in(value: dict[str, Any], marks: Set[str], file: Path) -> list[Any] | None:
    """Return the rows of one object: its only list of objects, or its columns; None where it is a row itself."""
    if {"columns", "data"} <= value.keys() <= {"columns", "index", "data"}:  # as pandas writes with orient="split"
        names, data = value["columns"], value["data"]
        if _lists([names, data]) and _lists(data) and not any(isinstance(name, list | dict) for name in names):
            _refuse_twice(names, file)
            for n, cells in enumerate(data, start=1):
                if len(cells) != len(names):
                    has = f"{len(cells)} cells where the file names {len(names)} columns"
                    raise UserError(f"{file} row {n} has {has}; give each column a cell")
            return [dict(zip(names, cells, strict=True)) for cells in data]
    lists = {key: part for key, part in value.items() if isinstance(part, list)}
    turns = any(_is_turn(cell) for key in CHAT_COLUMNS for cell in lists.get(key, ()))
    turns = turns or any(isinstance(cell, dict) and _is_turn(cell) for part in lists.values() for cell in part)
    even = len(lists) == len(value) and len({len(part) for part in lists.values()}) == 1
    many = [
        part for key, part in lists.items()
        if part and all(isinstance(row, dict) for row in part) and not (even and len(lists) > 1 and key in NEVER_ROWS)
    ]  # fmt: skip
    if len(many) == 1 and not turns and marks.isdisjoint(value):
        return many[0]
    if sum(not marks.isdisjoint(part[0]) for part in many) > 1:
        return None  # several sets of rows: which is meant?
    if lists and even and not turns:
        return [dict(zip(lists, cells, strict=True)) for cells in zip(*lists.values(), strict=True)]
    tables = [part for part in value.values() if isinstance(part, dict) and part and all(k.isdigit() for k in part)]
    if tables and len(tables) == len(value) and all(list(part) == list(tables[0]) for part in tables):
        return [{name: part[key] for name, part in value.items()} for key in tables[0]]  # as pandas writes a table
    if value and all(isinstance(row, dict) and not ROW_MARKS.isdisjoint(row) for row in value.values()):
        return [*value.values()]  # rows under their names
    return None


def _lists(values: list[Any]) -> bool:
    return all(isinstance(value, list) for value in values)


def _refuse_twice(names: list[Any], file: Path) -> None:
    """Refuse two columns of one name, of which only the last would be read."""
    for name, count in Counter(names).items():
        if count > 1:
            raise UserError(f"{file} has {count} columns named {shortened(str(name))!r}; rename or remove all but one")


def _is_turn(cell: Any) -> bool:
    """Tell a turn from a cell with all turns of a row, and from a row."""
    if isinstance(cell, dict):
        return ROW_MARKS.isdisjoint(cell) and any(isinstance(cell.get(key), str) for key in SPEAKERS)
    return isinstance(cell, str) and cell.lstrip()[:1] not in {"[", "{"}


def _cell_records(file: Path, kind: str) -> Iterator[Record]:
    """Read a table of text cells; an empty cell is null."""
    before = csv.field_size_limit(LONGEST_ROW)  # the library stops at 128 KB; an answer may be longer
    try:
        with opened(file) as packed, io.TextIOWrapper(packed, encoding="utf-8-sig", newline="") as text:
            lines = text_lines(text, file)
            head = next(lines, "")
            marks = "\t" if kind == ".tsv" else max(",;\t", key=head.count)
            if marks not in head:
                marks = "\x1f"  # one column: nothing parts its cells
            names = next(csv.reader([head], delimiter=marks), [])
            _refuse_twice([name for name in names if name], file)
            ended: list[bool] = []
            rows = csv.reader(itertools.chain(lines, iter(lambda: ended.append(True), None)), delimiter=marks)
            at = 0  # lines behind the head before a row
            for n, cells in enumerate(rows, start=1):
                where = f"{file} row {n}"
                if ended:  # the reader asked for more in the middle of a row
                    line = 2 + at + sum(cell.count("\n") for cell in cells[:-1])
                    raise UserError(
                        f"{file}:{line} opens a quote that is never closed; close it, or write the table again"
                    )
                at = rows.line_num
                if not cells:
                    continue
                if len(cells) > len(names):
                    more = f"{len(cells)} cells where the head names {len(names)} columns"
                    yield Record(
                        BadRow(f"{where} has {more}; quote cells that hold a {marks!r}", "too many cells"), where
                    )
                    continue
                yield Record(
                    {name: cell if cell != "" else None for name, cell in zip(names, cells, strict=False)}, where
                )
    except csv.Error as error:
        raise UserError(f"{file} is no table of cells ({error}); save it again as CSV") from error
    finally:
        csv.field_size_limit(before)


def _rows_at_once(file: Path, expected: int) -> int:
    """Say how many rows of a parquet file to read at once; refuse one that unpacks to more than rows of text can."""
    import duckdb  # pyarrow's own reader of what a file says of its columns ends the process at one wrong byte

    facts = """select row_group_num_rows, num_values, total_uncompressed_size, total_compressed_size,
        data_page_offset - dictionary_page_offset from parquet_metadata(?) where file_name = ?"""
    try:
        with duckdb.connect() as database:
            columns = database.execute(facts, [str(file)] * 2).fetchall() if expected else []
        if len(columns) != expected:
            raise ValueError(f"{len(columns)} parts of columns where it names {expected}")
    except (duckdb.Error, ValueError) as error:
        raise UserError(f"{file} is a broken parquet file ({_first_line(error)}); make or fetch it again") from error
    size = file.stat().st_size
    # A value that is the same in every row, or a million times in a list, takes a few bytes in the file.
    swollen = any(values > max(rows, FREE_BYTES, 64 * unpacked) for rows, values, unpacked, *_ in columns)
    if swollen or sum(unpacked for _, _, unpacked, *_ in columns) > max(FREE_BYTES, MOST_TIMES * size):
        raise UserError(f"{file} {TOO_MUCH}")
    cell = 1.0  # bytes of the largest value that a dictionary may hold, and a row repeat
    for _, _, unpacked, packed, dictionary in columns:
        if dictionary is not None and packed:
            cell = max(cell, dictionary / packed * unpacked)
    return int(min(BATCH, max(1, DECODED_BYTES // cell)))


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _arrow_records(file: Path, kind: str) -> Iterator[Record]:
    import pyarrow as arrow
    import pyarrow.ipc as ipc
    import pyarrow.parquet as parquet

    number = 0
    try:
        with contextlib.ExitStack() as stack:
            if kind == ".parquet":
                table = stack.enter_context(parquet.ParquetFile(file))
                facts = table.metadata
                if facts.num_rows > max(FREE_BYTES, 4 * file.stat().st_size):
                    raise UserError(f"{file} {TOO_MUCH}")
                batches = table.iter_batches(batch_size=_rows_at_once(file, facts.num_row_groups * facts.num_columns))
            else:
                source = stack.enter_context(arrow.OSFile(str(file)))  # a map ends the process where bytes lack
                try:
                    table = ipc.open_stream(source)  # as the datasets library writes it
                except arrow.ArrowInvalid:
                    table = ipc.open_file(source)
                    batches = (table.get_batch(n) for n in range(table.num_record_batches))
                else:
                    batches = iter(table)
            left = MOST_REPEATS * max(FREE_BYTES, MOST_TIMES * file.stat().st_size)
            for batch in batches:
                batch.validate(full=True)  # wrong offsets end the process
                left -= batch.nbytes
                if left < 0:
                    raise UserError(f"{file} {TOO_MUCH}")
                for first in range(0, batch.num_rows, BATCH):
                    for value in batch.slice(first, BATCH).to_pylist():
                        number += 1
                        yield Record(value, f"{file} row {number}")
    except UnicodeDecodeError:
        raise
    except (arrow.ArrowException, ValueError) as error:  # ValueError: two columns of one name
        why = _first_line(error)
        raise UserError(f"{file} is a broken {kind[1:]} file ({why}); make or fetch it again") from error
