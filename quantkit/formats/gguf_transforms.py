"""A GGUF tensor as rows of a checkpoint's tensors: which rows, in which order, times what, plus what; and back.

Everything is said of ranges of rows, so that a tensor of any size can be made slab by slab.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
# Reads into an array, or writes from it, the values of a tensor, counted as they lie in memory, from the given one on.
Access = Callable[[str, int, Floats], None]


@dataclass(frozen=True)
class Part:
    """Rows of a tensor of the checkpoint."""

    source: str
    rows: int
    start: int = 0  # first row
    head_rows: int = 0  # rows of a head whose halves are interleaved; 0: rows stay in their order


@dataclass(frozen=True)
class Numbers:
    """Values that follow from the configuration alone, one per row."""

    values: tuple[float, ...]

    @property
    def rows(self) -> int:
        """How many they are."""
        return len(self.values)


@dataclass(frozen=True)
class Sines:
    """Rows of a table of sinusoidal positions: the sines of all frequencies, then their cosines."""

    rows: int
    start: int  # position of the first row
    zero: int | None = None  # a position whose row is zero


@dataclass(frozen=True)
class Assembly:
    """How a GGUF tensor comes from a checkpoint: parts one below the other, `(value + addend) * scale`.

    A vector counts as rows of one column; a stack of matrices, one per expert, as the rows of all of them.
    """

    columns: int
    parts: tuple[Part | Numbers | Sines, ...]
    addend: float = 0.0
    scale: float = 1.0

    @property
    def rows(self) -> int:
        """Rows of the GGUF tensor."""
        return sum(part.rows for part in self.parts)

    @property
    def sources(self) -> tuple[str, ...]:
        """Tensors of the checkpoint that it takes values from."""
        return sources_of(self, 0, self.rows)


def assemble(assembly: Assembly, first: int, end: int, read: Access, out: Floats) -> None:
    """Fill `out` with rows `first` to `end` of the GGUF tensor.

    Args:
        assembly: what the tensor is made of.
        first: first row.
        end: the row after the last one.
        read: where the checkpoint's values come from.
        out: float32 [end - first, columns], C-contiguous.
    """
    for part, start, stop, at in _parts_of(assembly, first, end):
        target = out[at - first : at - first + stop - start]
        if isinstance(part, Part):
            _take(part, start, stop, assembly.columns, read, target)
        elif isinstance(part, Numbers):
            target[:] = np.array(part.values[start:stop], np.float32)[:, None]
        else:
            target[:] = sines(part.start + start, part.start + stop, assembly.columns, part.zero)
    if assembly.addend:
        out += np.float32(assembly.addend)
    if assembly.scale != 1.0:
        out *= np.float32(assembly.scale)


def sources_of(assembly: Assembly, first: int, end: int) -> tuple[str, ...]:
    """Tensors of the checkpoint that rows `first` to `end` of the GGUF tensor take values from."""
    parts = [part for part, *_ in _parts_of(assembly, first, end)]
    return tuple(dict.fromkeys(part.source for part in parts if isinstance(part, Part)))


def disassemble(assembly: Assembly, first: int, values: Floats, write: Access) -> None:
    """Give rows of a GGUF tensor back to the checkpoint's tensors that they came from.

    Args:
        assembly: what the tensor is made of.
        first: the row at which `values` begin; whole heads, where they are interleaved.
        values: float32 [rows, columns], overwritten.
        write: called as for reading, with the values to be put there.
    """
    if assembly.scale != 1.0:
        values /= np.float32(assembly.scale)
    if assembly.addend:
        values -= np.float32(assembly.addend)
    for part, start, stop, at in _parts_of(assembly, first, first + len(values)):
        if isinstance(part, Part):
            rows = values[at - first : at - first + stop - start]
            order = np.argsort(interleaved(start, stop, part.head_rows)) if part.head_rows else None
            taken = rows if order is None else rows[order]
            write(part.source, (part.start + start) * assembly.columns, taken.reshape(-1))


def whole_heads(assembly: Assembly) -> int:
    """The number of rows of which slabs must be multiples, for `disassemble`."""
    return math.lcm(*(part.head_rows or 1 for part in assembly.parts if isinstance(part, Part)))


def interleaved(first: int, end: int, head_rows: int) -> npt.NDArray[np.int64]:
    """Which row of a matrix stands in rows `first` to `end` once the halves of each head are interleaved.

    Args:
        first: first row of the result.
        end: the row after the last one.
        head_rows: rows of a head, an even number.

    Returns:
        int64 [end - first], counted from the first row of the head that holds `first`.
    """
    row = np.arange(first, end, dtype=np.int64)
    head, inside = row // head_rows, row % head_rows
    return (head - first // head_rows) * head_rows + inside % 2 * (head_rows // 2) + inside // 2


def sines(first: int, end: int, columns: int, zero: int | None = None) -> Floats:
    """Sinusoidal positions as tensor2tensor has them and transformers computes them for XGLM.

    Args:
        first: first position.
        end: the position after the last one.
        columns: an even width; sines in the first half, cosines in the second.
        zero: a position whose row is zero.

    Returns:
        float32 [end - first, columns].
    """
    import torch  # for models without rotary positions alone

    half = columns // 2
    # In torch's float32, step by step as transformers does it: angles of thousands keep few digits of a fraction.
    frequencies = torch.exp(torch.arange(half).float() * -(math.log(10000) / (half - 1)))
    angles = torch.arange(first, end).float().unsqueeze(1) * frequencies.unsqueeze(0)
    table = torch.cat([torch.sin(angles), torch.cos(angles)], dim=1)
    if zero is not None and first <= zero < end:
        table[zero - first] = 0
    return table.numpy()


def _parts_of(assembly: Assembly, first: int, end: int) -> Iterator[tuple[Part | Numbers | Sines, int, int, int]]:
    """Parts that rows `first` to `end` touch: which of their rows, and where these stand in the tensor."""
    at = 0
    for part in assembly.parts:
        start, stop = max(first - at, 0), min(end - at, part.rows)
        if start < stop:
            yield part, start, stop, at + start
        at += part.rows


def _take(part: Part, start: int, stop: int, columns: int, read: Access, target: Floats) -> None:
    if not part.head_rows:
        read(part.source, (part.start + start) * columns, target.reshape(-1))
        return
    size = part.head_rows
    low, high = start // size * size, -(-stop // size) * size
    heads = np.empty((high - low, columns), np.float32)
    read(part.source, (part.start + low) * columns, heads.reshape(-1))
    np.take(heads, interleaved(start, stop, size), axis=0, out=target)
