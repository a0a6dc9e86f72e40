"""Data files opened for their bytes: what a file is, how it is packed, and how much it may hold."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import itertools
import lzma
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ideal_proxy.data.files import PACKED
from ideal_proxy.errors import UserError

# Bytes of the longest line or cell: 64 MiB, many times the longest context. Without an end memory would have none.
LONGEST_ROW = 1 << 26


# A packed file may unpack to so many times its size, or to 16 MiB: rows of text shrink to a tenth, or a hundredth.
FREE_BYTES, MOST_TIMES = 1 << 24, 200


# How packed files and tables open, whatever they are named.
MAGIC = (
    (re.compile(rb"\x1f\x8b"), ".gz"), (re.compile(rb"\x28\xb5\x2f\xfd"), ".zst"),
    (re.compile(rb"BZh[1-9]1AY&SY"), ".bz2"), (re.compile(rb"\xfd7zXZ\x00"), ".xz"),
    (re.compile(rb"PAR1"), ".parquet"), (re.compile(rb"ARROW1|\xff\xff\xff\xff"), ".arrow"),
)  # fmt: skip


JSON_HEAD = re.compile(rb'(\xef\xbb\xbf)?\s*(\{\s*"|\[\s*[\[{])')


def kind_of_file(file: Path) -> tuple[str, str]:
    """Return what a file is, as a suffix in small letters, and that of its packing or nothing: its bytes tell first."""
    name = file.name.lower()
    packed = next((suffix for suffix in PACKED if name.endswith(suffix)), "")
    kind = Path(name.removesuffix(packed)).suffix
    head = head_of(file, "")
    if head.startswith(b"PK\x03\x04"):
        raise UserError(f"{file} is a zip archive (or an Excel file); unpack it, or save the table as CSV")
    found = next((suffix for pattern, suffix in MAGIC if pattern.match(head)), "")
    if found in TABLES:
        return found, ""
    plain = kind in TABLES and JSON_HEAD.match(head)
    if found or JSON_HEAD.match(head) or (head and packed and kind in CELLS and is_text(head)):
        packed = found
    if plain or (found and kind in TABLES):
        kind = ".json"
    if kind in CELLS and JSON_HEAD.match(head_of(file, packed)):
        kind = ".json"
    return kind, packed


TABLES, CELLS = (".parquet", ".arrow"), (".csv", ".tsv")


def head_of(file: Path, packed: str) -> bytes:
    """Return the first bytes of a file, unpacked; none where it cannot be read."""
    with contextlib.suppress(OSError, EOFError, zlib.error, lzma.LZMAError), open_bytes(file, packed) as handle:
        return bytes(handle.read(64))
    return b""


def is_text(head: bytes) -> bool:
    """Whether bytes may be the beginning of a text."""
    return all(byte >= 0x20 or byte in b"\t\r\n" for byte in head)


def opened(file: Path) -> Any:
    """Open a file for its bytes, unpacked."""
    return open_bytes(file, kind_of_file(file)[1])


def open_bytes(file: Path, packed: str) -> Any:
    """Open a file that is packed in a way that is known."""
    if not packed:
        return open(file, "rb")
    if packed == ".zst":
        import pyarrow as arrow

        handle: Any = arrow.input_stream(str(file), compression="zstd")
    else:
        openers: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
        handle = openers[packed](file, "rb")
    return io.BufferedReader(_Unpacked(handle, file), 1 << 18)


class _Unpacked(io.RawIOBase):
    """What a packed file holds, refused where it is far more than rows of text can be."""

    def __init__(self, handle: Any, file: Path) -> None:
        self._handle = handle
        self._file = file
        self._left = max(FREE_BYTES, MOST_TIMES * file.stat().st_size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = self._handle.read(len(buffer))
        buffer[: len(block)] = block
        self._left -= len(block)
        if self._left < 0:
            raise UserError(f"{self._file} {TOO_MUCH}")
        return len(block)

    def close(self) -> None:
        if not self.closed:
            self._handle.close()
        super().close()


def text_lines(handle: Any, file: Path) -> Iterator[Any]:
    """Read lines of bytes or of text; one without an end is refused."""
    for number in itertools.count(1):
        line = handle.readline(LONGEST_ROW)
        if not line:
            return
        if len(line) == LONGEST_ROW:
            raise UserError(f"{file}:{number} is longer than {LONGEST_ROW >> 20} MiB, which no row is; split the line")
        yield line


TOO_MUCH = f"unpacks to more than {MOST_TIMES} times its size, which rows do not; unpack it yourself if you trust it"
