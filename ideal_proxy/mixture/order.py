"""The drawn rows of a mixture in training order, put in order by DuckDB in bounded memory (it spills to disk).

What is drawn and in which order is `draws`' business; its two hashes are called from the query. Legend: N rows of a
domain.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as arrow
from joblib import cpu_count

from ideal_proxy.mixture.draws import order_hashes, training_hashes
from ideal_proxy.mixture.row_shape import ChatLayout
from ideal_proxy.mixture.row_table import SCHEMA, RowTable, StaleTableError

MEMORY = "512MB"
MOST_THREADS = 4
BATCH_ROWS = 1 << 14
LINES = arrow.schema([("domain", arrow.int32()), *SCHEMA])

DRAWN = """
INSERT INTO drawn
WITH keyed AS (
    SELECT file_row_number AS row, key,
        (row_number() OVER (PARTITION BY key ORDER BY file_row_number) - 1)::UBIGINT AS occurrence
    FROM read_parquet(?, file_row_number = true)
), ordered AS (
    SELECT *, row_number() OVER (ORDER BY order_hash(?, key, occurrence), key, occurrence) - 1 AS place FROM keyed
)
SELECT ?::INTEGER, row, training_hash(?, key, occurrence, turn::UBIGINT), key, turn, occurrence
FROM ordered, range(?) AS passes(turn) WHERE turn * ? + place < ?
"""


@dataclass(frozen=True, slots=True)
class Part:
    """A domain's share of the mixture: its name, its rows, and how many are drawn, repeats included."""

    name: str
    table: RowTable
    rows: int


class Ordering:
    """Puts drawn rows in training order, as they stand or written as `chat`; use as a context manager."""

    def __init__(self, folder: Path, parts: list[Part], seed: int, *, chat: ChatLayout | None) -> None:
        self.parts, self.seed, self.chat = parts, seed, chat
        settings = {"memory_limit": MEMORY, "threads": min(cpu_count(), MOST_THREADS), "temp_directory": str(folder)}
        self._connection = duckdb.connect(str(folder / "order.duckdb"), config=settings)
        with contextlib.suppress(duckdb.InvalidInputException):  # in Jupyter without ipywidgets: there is none anyway
            self._connection.execute("SET enable_progress_bar = false")  # it would be written to our standard output

    def __enter__(self) -> Ordering:
        functions: Any = self._connection
        functions.create_function(
            "order_hash", self._order_hash, ["INTEGER", "UBIGINT", "UBIGINT"], "UBIGINT", type="arrow"
        )
        functions.create_function(
            "training_hash", self._training_hash, ["INTEGER", *["UBIGINT"] * 3], "UBIGINT", type="arrow"
        )
        self._connection.execute(
            "CREATE TABLE drawn "
            "(domain INTEGER, row BIGINT, hash UBIGINT, key UBIGINT, turn BIGINT, occurrence UBIGINT)"
        )
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(duckdb.Error):
            self._connection.close()

    def rows(self, first: int, last: int, progress: Callable[[int], None]) -> Generator[list[bytes], None, None]:
        """Yield rows `first` to `last` - 1 of the training order, some at a time."""
        for number, part in enumerate(self.parts):
            passes = -(-part.rows // part.table.rows)
            self._connection.execute(
                DRAWN, [str(part.table.path), number, number, number, passes, part.table.rows, part.rows]
            )
        self._connection.execute(
            "CREATE TABLE wanted AS SELECT domain, row, row_number() OVER "
            "(ORDER BY hash, key, turn, occurrence, domain) - 1 AS place FROM drawn "
            f"QUALIFY place >= {first} AND place < {last}; DROP TABLE drawn"
        )
        stale: list[StaleTableError] = []
        lines = arrow.RecordBatchReader.from_batches(LINES, self._lines(progress, stale))
        self._connection.register("lines", lines)
        try:
            found = self._connection.execute("SELECT text FROM lines JOIN wanted USING (domain, row) ORDER BY place")
            while batch := found.fetchmany(BATCH_ROWS):
                yield [text for (text,) in batch]
        except duckdb.Error as error:
            raise (stale[0] if stale else error) from error

    def _lines(self, progress: Callable[[int], None], stale: list[StaleTableError]) -> Iterator[arrow.RecordBatch]:
        """Read the rows of all domains once, as (domain, row, text)."""
        read = 0
        try:
            for number, part in enumerate(self.parts):
                for batch in part.table.batches(self.chat):
                    domain = arrow.array(np.full(len(batch), number, dtype=np.int32))
                    yield arrow.record_batch([domain, *batch.columns], schema=LINES)
                    read += len(batch)
                    progress(read)
        except StaleTableError as error:  # DuckDB would pass it on as text
            stale.append(error)
            raise

    def _order_hash(self, number: Any, key: Any, occurrence: Any) -> Any:
        return arrow.array(order_hashes(self.seed, self._name(number), _array(key), _array(occurrence)))

    def _training_hash(self, number: Any, key: Any, occurrence: Any, turn: Any) -> Any:
        hashes = training_hashes(self.seed, self._name(number), _array(key), _array(occurrence), _array(turn))
        return arrow.array(hashes)

    def _name(self, number: Any) -> str:
        """Name the domain that a query is about: each is about one."""
        return self.parts[int(number[0].as_py())].name


def _array(column: Any) -> np.ndarray[Any, np.dtype[np.uint64]]:
    return np.asarray(column.to_numpy(zero_copy_only=False) if isinstance(column, arrow.Array) else column.to_numpy())
