"""A slab of a tensor's rows, from the checkpoint's bytes to the blocks of every file that wants it."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from quantkit.errors import BadInputError
from quantkit.formats.ggml.encode import encode
from quantkit.formats.gguf_transforms import assemble
from quantkit.pipeline.gguf_model import GgufModel
from quantkit.plan.gguf_budget import SLAB_WEIGHTS
from quantkit.plan.gguf_rows import GgufRow
from quantkit.weights.gguf_types import GGML_TYPES
from quantkit.weights.imatrix import Imatrix
from quantkit.weights.ranges import FileRanges, Ranges, WholeTensors
from quantkit.weights.streamed import StreamedSource
from quantkit.weights.streamed_ranges import StreamedRanges, StreamedTensors

Floats = npt.NDArray[np.float32]


class Wanting(Protocol):
    """A file that a tensor is written to."""

    def type_of(self, number: int) -> str:
        """The ggml type of a row of the plan."""

    def write(self, name: str, start: int, data: npt.NDArray[Any]) -> None:
        """Bytes of a tensor, at their place in it."""


@dataclass(frozen=True)
class Slab:
    """Rows of an assembly; a vector is one slab."""

    first: int
    end: int
    matrix: int = 0  # which of the stacked ones


@dataclass(frozen=True)
class Piece:
    """Slabs of a tensor that are worked on in one stretch."""

    number: int  # of the row in the plan
    slabs: tuple[Slab, ...]
    sources: tuple[str, ...]  # tensors of the checkpoint that they take values from


def slabs(row: GgufRow) -> Iterator[Slab]:
    """A tensor in pieces of about SLAB_WEIGHTS, none of which reaches over the end of a stacked matrix."""
    rows, columns = row.assembly.rows, row.assembly.columns
    if len(row.shape) == 1:
        yield Slab(0, rows)
        return
    size = row.shape[-2]
    step = max(1, SLAB_WEIGHTS // columns)
    for matrix in range(rows // size):
        begin = matrix * size
        for first in range(begin, begin + size, step):
            yield Slab(first, min(first + step, begin + size), matrix)


class Worker:
    """What threads share: the source and the importance; and what each has: memory that is used again.

    Args:
        model: what is converted.
        imatrix: the importance of its columns.
        pieces: the work to come, in order.
    """

    def __init__(self, model: GgufModel, imatrix: Imatrix | None, pieces: Sequence[Piece]) -> None:
        self._rows, self._imatrix = model.rows, imatrix
        self._ranges = _ranges_of(model)
        self._last: dict[str, Piece] = {}  # source -> the last piece that takes from it
        for piece in pieces:
            self._last |= dict.fromkeys(piece.sources, piece)
        self._importance: dict[int, Floats | None] = {}
        self._looking = threading.Lock()
        self._memory = threading.local()
        self._ranges.expect(piece.sources for piece in pieces)

    def is_held(self, piece: Piece) -> bool:
        """Whether everything that a piece takes from is here, or on its way."""
        return self._ranges.is_held(piece.sources)

    def begin(self, piece: Piece) -> None:
        """Return when a piece can be worked on.

        Raises:
            QuantkitError: a shard of a streamed source does not come.
        """
        self._ranges.hold(piece.sources)

    def work(self, number: int, slab: Slab, wanted: Sequence[Wanting]) -> None:
        """Read, order, encode and write a slab.

        Raises:
            BadInputError: a weight that is NaN or infinite.
            DiskError: the disk refuses.
        """
        row = self._rows[number]
        columns = row.assembly.columns
        values = self._buffer("values", (slab.end - slab.first) * columns, np.float32).reshape(-1, columns)
        assemble(row.assembly, slab.first, slab.end, self._ranges.read, values)
        _check_finite(row, values)
        if len(row.shape) == 1:
            values = values.reshape(1, -1)
        for target in wanted:
            kind = GGML_TYPES[target.type_of(number)]
            size = kind.row_bytes(values.shape[1])
            out = self._buffer("blocks", len(values) * size, np.uint8).reshape(len(values), size)
            encode(kind.name, values, self._importance_of(number, slab.matrix), out)
            target.write(row.name, slab.first * size, out)

    def finish(self, piece: Piece) -> None:
        """All slabs of a piece are written: let go of what no other needs."""
        self._ranges.release(piece.sources)
        self._ranges.forget(tuple(name for name in piece.sources if self._last[name] is piece))
        self._importance.pop(piece.number, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ranges.close()

    def _importance_of(self, number: int, matrix: int) -> Floats | None:
        row = self._rows[number]
        if self._imatrix is None or row.name not in self._imatrix.entries:
            return None
        with self._looking:
            if number not in self._importance:
                self._importance[number] = self._imatrix.importance(row.name, row.shape[-1])
            found = self._importance[number]
        assert found is not None
        one: Floats = found[matrix if len(found) > 1 else 0]
        return one

    def _buffer(self, name: str, size: int, dtype: type) -> npt.NDArray[Any]:
        held = getattr(self._memory, name, None)
        if held is None or len(held) < size:
            held = np.empty(size, dtype)
            setattr(self._memory, name, held)
        return held[:size]


def _ranges_of(model: GgufModel) -> Ranges:
    stored, source = model.checkpoint.source, model.source
    if not isinstance(stored, StreamedSource):
        return WholeTensors(source) if model.is_dequantized else FileRanges(model.checkpoint.folder, source.infos)
    return StreamedTensors(source, stored, model.stored) if model.is_dequantized else StreamedRanges(stored)


def _check_finite(row: GgufRow, values: Floats) -> None:
    flat = values.reshape(-1)
    # A product is one quick pass; only where it is not finite are the values looked at.
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(np.dot(flat, flat)) or np.isfinite(flat).all():
            return
    names = ", ".join(row.assembly.sources)
    raise BadInputError(f"tensor {names} has {int((~np.isfinite(flat)).sum())} values that are NaN or infinite")
