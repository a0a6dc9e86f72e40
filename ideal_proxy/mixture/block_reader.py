"""Read blocks of rows side by side: in processes where there is much to parse, in this one where there is little."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ideal_proxy.errors import UserError
from ideal_proxy.mixture.line_keys import HEAD, BlockRows, BrokenLineError, block_checksum, block_rows

PROCESSES_FROM = 1 << 26  # bytes of a source from which a second process pays for its start
MOST_PROCESSES = 8

Item = TypeVar("Item")
Result = TypeVar("Result")
Span = tuple[Path, int, int]


def in_order(
    pool: ThreadPoolExecutor, work: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[Result]:
    """Do work side by side and hand on the results in order, never holding more than a few.

    Args:
        pool: does it.
        work: what is done with an item.
        items: the items.
        ahead: how many are begun before the first is handed on.

    Yields:
        Result: of each item.
    """
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def cores() -> int:
    """Count the cores that this process may use.

    Returns:
        int: at least 1.
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class BlockReader:
    """Reads blocks of one source; its processes end with their input, so none outlives this one.

    Args:
        format: alpaca, chat or prompt.
        size: bytes of the source.
    """

    def __init__(self, format: str, size: int) -> None:
        self.format = format
        self.processes = min(cores(), MOST_PROCESSES) if size >= PROCESSES_FROM else 0
        self._idle: queue.Queue[subprocess.Popen[bytes]] = queue.Queue()
        self._all: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> BlockReader:
        package = str(Path(__file__).resolve().parents[2])
        paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
        code = "from ideal_proxy.mixture.line_keys import serve; serve()"
        for _ in range(self.processes):
            process = subprocess.Popen(
                [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
            )
            self._all.append(process)
            self._idle.put(process)
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._all:
            with contextlib.suppress(OSError):
                process.communicate()

    def read(self, spans: Iterable[Span]) -> Iterator[tuple[BlockRows, str]]:
        """Read blocks.

        Args:
            spans: file, first byte and byte after the last of each.

        Yields:
            tuple: the rows of a block and the checksum of its bytes, in order.
        """
        work = self._ask if self.processes else self._read
        with ThreadPoolExecutor(max(self.processes, 1)) as pool:
            yield from in_order(pool, work, spans, 2 * self.processes or 1)

    def _read(self, span: Span) -> tuple[BlockRows, str]:
        path, begin, end = span
        try:
            with open(path, "rb") as file:
                file.seek(begin)
                block = file.read(end - begin)
        except OSError as error:
            raise BrokenLineError from error
        return block_rows(block, self.format), block_checksum(block)

    def _ask(self, span: Span) -> tuple[BlockRows, str]:
        """Have one process read a block."""
        path, begin, end = span
        process = self._idle.get()
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps([os.path.abspath(path), begin, end, self.format]).encode() + b"\n")
            process.stdin.flush()
            size, rows, without, good, digest = HEAD.unpack(_exactly(process.stdout, HEAD.size))
            if not good or size != end - begin:
                raise BrokenLineError
            content = _exactly(process.stdout, 16 * rows)
        except OSError as error:
            raise UserError("a process that read rows ended (out of memory?); run the same command again") from error
        finally:
            self._idle.put(process)
        small = np.frombuffer(content, dtype="<u4", offset=8 * rows)
        keys = np.frombuffer(content, dtype="<u8", count=rows)
        return BlockRows(keys, small[:rows], small[rows:], without), digest.hex()


def _exactly(stream: Any, count: int) -> bytes:
    content: bytes = stream.read(count)
    if len(content) != count:
        raise BrokenPipeError
    return content
