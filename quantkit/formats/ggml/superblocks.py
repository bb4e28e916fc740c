"""What all encoders share: blocks of LANES rows side by side, and the share of each weight in the error."""

import numpy as np
from llvmlite import ir
from numba import types
from numpy.typing import NDArray

from quantkit.formats.ggml.vectors import (
    FLOATS,
    INTS,
    LANES,
    NOTHING,
    ROWS,
    Floats,
    Vector,
    address,
    define,
    inner,
    load,
    root,
    splat,
    store,
)

F32 = np.float32
Halves = NDArray[np.uint16]
NO_IMPORTANCE = np.empty(0, np.float32)  # importance where there is none
SUPER = 256  # weights of a super-block


def transpose(values: Floats, start: int, stride: int, x: Floats, row: int) -> None:
    """Writes LANES rows of a tile from `row` on: column i holds the numbers from start + i * stride on."""


@inner
def gather(values: Floats, first: int, start: int, x: Floats) -> None:
    """Columns from `start` on of the rows from `first` on, as many as x has rows; beyond the last row zeros."""
    count, columns = min(LANES, len(values) - first), values.shape[1]
    if count == LANES:
        for row in range(0, len(x), LANES):
            transpose(values, first * columns + start + row, columns, x, row)
        return
    for row in range(len(x)):
        for lane in range(LANES):
            x[row, lane] = values[first + lane, start + row] if lane < count else F32(0)


@inner
def energy(x: Floats, first: int, count: int, before: Vector) -> Vector:
    """The sum of squares of `count` rows of a tile, added to what was summed before."""
    for i in range(first, first + count):
        before += load(x, i) * load(x, i)
    return before


@inner
def weigh(x: Floats, first: int, importance: Floats, start: int, sigma2: Vector, shares: Floats) -> None:
    """A weight's share in the error where columns have an importance: importance * sqrt(sigma2 + weight**2).

    Args:
        x: a tile; the block begins at row `first` and has as many rows as `shares`.
        first: see x.
        importance: [columns].
        start: the block's first column.
        sigma2: about the mean of the squares around.
        shares: [n, LANES], written.
    """
    for i in range(len(shares)):
        weight = load(x, first + i)
        store(shares, i, importance[start + i] * root(sigma2 + weight * weight))


@inner
def total(rows: Floats) -> Vector:
    """The sum over the rows of a tile."""
    result = splat(F32(0))
    for i in range(len(rows)):
        result += load(rows, i)
    return result


@inner
def keep(codes: Floats, lane: int, first: int, count: int, out: NDArray[np.uint8], start: int) -> None:
    """Copies `count` codes of a lane, from row `first` of a tile on, to the bytes from `start` on."""
    for i in range(count):
        out[start + i] = int(codes[first + i, lane])


def _transpose(
    builder: ir.IRBuilder, data: ir.Value, start: ir.Value, stride: ir.Value, x: ir.Value, row: ir.Value
) -> ir.Value:
    """Halves of 8, then of 4, 2 and 1 columns change places."""
    rows = []
    for i in range(LANES):
        place = builder.gep(data, [builder.add(start, builder.mul(stride, ir.Constant(stride.type, i)))])
        rows.append(builder.load(builder.bitcast(place, FLOATS.as_pointer()), align=4))
    for width in (8, 4, 2, 1):
        upper = ir.Constant(INTS, [i + LANES - width if i & width else i for i in range(LANES)])
        lower = ir.Constant(INTS, [i + LANES if i & width else i + width for i in range(LANES)])
        for i in range(LANES):
            if not i & width:
                a, b = rows[i], rows[i + width]
                rows[i], rows[i + width] = (builder.shuffle_vector(a, b, mask) for mask in (upper, lower))
    for i in range(LANES):
        builder.store(rows[i], address(builder, x, builder.add(row, ir.Constant(row.type, i)), FLOATS), align=4)
    return NOTHING


define(transpose, (ROWS, types.intp, types.intp, ROWS, types.intp), types.none, _transpose)
