"""The .dat files of llama-imatrix from before it wrote GGUF: bounded and validated."""

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from quantkit.errors import BadInputError, DiskError
from quantkit.weights.regular import open_regular, short

MAX_ENTRIES = 100_000
MAX_NAME_BYTES = 2**16 - 1
_HINT = "the file is damaged, or no imatrix; make it with llama-imatrix, or fetch it again"
_COUNT = struct.Struct("<i")


@dataclass(frozen=True)
class Legacy:
    """What a .dat file holds.

    Its sums are means times the number of chunks, over all experts in one row.
    """

    entries: dict[str, tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]  # sums [1, values], chunks [1]
    datasets: tuple[str, ...]
    chunk_count: int


def read_legacy(path: Path) -> Legacy:
    """A .dat file: a number of entries, each a name, its chunks and its float32 values; chunks and text of the whole.

    Raises:
        BadInputError: a length or number that cannot be, a name twice, or bytes behind the end.
        NotFoundError: there is no such file.
        DiskError: it cannot be read.
    """
    with open_regular(path) as file:
        try:
            reader = _Reader(file, path.name)
            entries = _entries(reader)
            # Files of the first versions end here.
            chunk_count = reader.number("the number of chunks", 0, 2**31) if reader.left else 0
            datasets = (reader.text("the name of the text", 0),) if reader.left else ()
        except OSError as error:
            raise DiskError(f"cannot read {path}: {error.strerror}") from error
    if reader.left:
        raise reader.bad(f"{reader.left} bytes behind the end of the imatrix")
    return Legacy(entries, tuple(filter(None, datasets)), chunk_count)


class _Reader:
    """A file read from front to back, nothing beyond its end."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.left = os.fstat(file.fileno()).st_size
        self._file, self._name = file, name

    def bad(self, found: str) -> BadInputError:
        """The error that refuses the file."""
        return BadInputError(f"{self._name}: found {found}", _HINT)

    def take(self, size: int, what: str) -> bytes:
        """The next bytes."""
        raw = self._file.read(size) if size <= self.left else b""
        if len(raw) < size:
            raise self.bad(f"{self.left} bytes left for {what}, expected {size}")
        self.left -= size
        return raw

    def number(self, what: str, least: int, most: int) -> int:
        """The next whole number."""
        (value,) = _COUNT.unpack(self.take(_COUNT.size, what))
        if not least <= value <= most:
            raise self.bad(f"{value} as {what}, expected {least} to {most}")
        return int(value)

    def text(self, what: str, least: int) -> str:
        """The next text, behind its length."""
        raw = self.take(self.number(f"the length of {what}", least, MAX_NAME_BYTES), what)
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise self.bad(f"{what} that is not UTF-8 ({error.reason})") from error


def _entries(reader: _Reader) -> dict[str, tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    entries = {}
    for place in range(reader.number("the number of entries", 1, MAX_ENTRIES)):
        name = reader.text(f"the name of entry {place}", 1)
        shown = short(repr(name))
        if name in entries or not name.isprintable():
            fault = " twice" if name in entries else ", expected printable characters"
            raise reader.bad(f"the name {shown}{fault}")
        chunks = reader.number(f"the chunks of {shown}", 0, 2**31)
        count = reader.number(f"the number of values of {shown}", 1, 2**31)
        sums = np.frombuffer(reader.take(4 * count, f"the values of {shown}"), "<f4")
        # llama-quantize takes the values as they are where no chunk is counted.
        entries[name] = (sums[None, :], np.array([max(chunks, 1)], np.float32))
    return entries
