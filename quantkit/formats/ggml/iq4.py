"""IQ4_NL and IQ4_XS: codes of 4 bits stand for 16 values at uneven distances, weight = scale * value[code].

IQ4_NL gives each 32 weights a float16 scale. IQ4_XS gives 256 weights one, and each 32 of them a factor of 6 bits.
Follows `quantize_row_iq4_nl_impl` of ggml-quants.c.
"""

from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit

from quantkit.formats.ggml.borrow import borrow
from quantkit.formats.ggml.packing import Bytes, Words, pack, put_half
from quantkit.formats.ggml.rounding import clamped, nearest, put_bytes, store_half
from quantkit.formats.ggml.search import TINY, peak
from quantkit.formats.ggml.superblocks import NO_IMPORTANCE, Halves, energy, gather, weigh
from quantkit.formats.ggml.vectors import (
    FLOATS,
    LANES,
    VECTOR,
    Floats,
    Vector,
    constant,
    define,
    inner,
    load,
    select,
    splat,
    store,
    tile,
)

F32 = np.float32
_PART = 32  # weights that share a scale
VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


class Curve(NamedTuple):
    """What tells the two types apart."""

    block: int  # weights
    block_bytes: int


IQ4_NL, IQ4_XS = Curve(32, 18), Curve(256, 136)


class Room(NamedTuple):
    """Where LANES blocks side by side are worked on."""

    x: Floats  # [block, LANES] weights
    shares: Floats  # [32, LANES] of weights in the error
    scales: Floats  # [parts, LANES]
    codes: Floats  # [parts, LANES] of scales, from 0 to 63
    inverses: Floats  # [parts, LANES] of the scales that are kept
    halves: Halves  # [1, LANES] the block's scale
    final: Words  # codes of one block, a byte each
    final_bytes: Bytes  # the same bytes


def nearest_value(vector: Vector) -> Vector:
    """The nearest of VALUES, the upper one in the middle between two; the last for NaN."""


def nearest_code(vector: Vector) -> Vector:
    """The place in VALUES of the nearest value."""


def encode_curve(values: Floats, importance: Floats | None, kind: Curve, out: Bytes) -> None:
    """Encodes rows as IQ4_NL or IQ4_XS.

    Args:
        values: [rows, columns], whole blocks.
        importance: [columns] or None.
        kind: of the two.
        out: [rows, bytes], written.
    """
    parts, final = kind.block // _PART, np.empty(kind.block // 8, np.uint64)
    room = Room(
        x=tile(kind.block),
        shares=tile(_PART),
        scales=tile(parts),
        codes=tile(parts),
        inverses=tile(parts),
        halves=np.empty((1, LANES), np.uint16),
        final=final,
        final_bytes=final.view(np.uint8),
    )
    importance = NO_IMPORTANCE if importance is None else importance
    _encode(values, values.reshape(-1, LANES), importance, kind, room, out.reshape(-1))


@njit(cache=True, nogil=True, error_model="numpy")
def _encode(values: Floats, pieces: Floats, importance: Floats, kind: Curve, room: Room, out: Bytes) -> None:
    """The same for `pieces`, the weights as they lie in rows of LANES, and an empty importance instead of None."""
    values, pieces, importance, out = borrow(values), borrow(pieces), borrow(importance), borrow(out)
    room = borrow(room)
    rows, blocks = len(values), values.shape[1] // kind.block
    for first in range(0, rows, LANES):
        for block in range(blocks):
            gather(values, first, block * kind.block, room.x)
            sigma2 = energy(room.x, 0, kind.block, splat(F32(0))) * F32(2 / kind.block)
            for part in range(len(room.scales)):
                _weigh_part(importance, block * kind.block, part, sigma2, room)
                store(room.scales, part, _best_scale(room.x, part * _PART, room.shares))
            _encode_parts(room)
            for lane in range(min(LANES, rows - first)):
                _write(pieces, (first + lane) * blocks + block, lane, kind, room, out)


@inner
def _weigh_part(importance: Floats, start: int, part: int, sigma2: Vector, room: Room) -> None:
    """The shares of a part's weights in the error: without importance their squares."""
    first = part * _PART
    if len(importance) > 0:
        weigh(room.x, first, importance, start + first, sigma2, room.shares)
    else:
        for i in range(_PART):
            weight = load(room.x, first + i)
            store(room.shares, i, weight * weight)


@inner
def _best_scale(x: Floats, first: int, shares: Floats) -> Vector:
    """The best of the scales that bring the weight of largest magnitude to -127 + i for i from -7 to 7, or to 127."""
    size, largest = peak(x, first, _PART)
    scale = best = splat(F32(0))
    for trial in range(-8, 8):
        inverse = F32(1) / (-largest / F32(VALUES[0])) if trial == -8 else F32(trial + VALUES[0]) / largest
        top = bottom = splat(F32(0))
        for i in range(_PART):
            weight = load(x, first + i)
            value = nearest_value(inverse * weight)
            share = load(shares, i) * value
            top += share * weight
            bottom += share * value
        better = bottom > F32(0)
        if trial > -8:
            better = better & (top * top > best * bottom)
        scale = select(better, top / bottom, scale)
        best = select(better, scale * top, best)
    return select(size < TINY, splat(F32(0)), scale)


@inner
def _encode_parts(room: Room) -> None:
    """Inverse scales of the parts, and in IQ4_XS the codes of the scales and the factor that all share."""
    parts, zero = len(room.scales), splat(F32(0))
    if parts == 1:
        scale = load(room.scales, 0)
        store_half(room.halves, 0, scale)
        store(room.inverses, 0, select(scale != F32(0), F32(1) / scale, zero))
        return
    _, largest = peak(room.scales, 0, parts)
    factor = -largest / F32(32)
    store_half(room.halves, 0, factor)
    inverse = select(factor != F32(0), F32(1) / factor, zero)
    for part in range(parts):
        code = clamped(nearest(inverse * load(room.scales, part)), F32(-32), F32(31))
        scale = factor * code
        store(room.codes, part, code + F32(32))
        store(room.inverses, part, select(scale != F32(0), F32(1) / scale, zero))


@inner
def _write(pieces: Floats, at: int, lane: int, kind: Curve, room: Room, out: Bytes) -> None:
    """A block: the scale, in IQ4_XS the upper two bits of the parts' codes and their lower four, the codes."""
    start, parts, size = at * kind.block_bytes, len(room.scales), kind.block // LANES
    inverses, scale_codes, final = room.inverses, room.codes, room.final_bytes
    for i in range(size):
        codes = nearest_code(inverses[i * LANES // _PART, lane] * load(pieces, at * size + i))
        put_bytes(final, i * LANES, codes)
    put_half(out, start, room.halves[0, lane])
    if parts == 1:
        pack(room.final, 0, 4, 16, out, start + 2)
        return
    upper = 0
    for part in range(0, parts, 2):
        a, b = int(scale_codes[part, lane]), int(scale_codes[part + 1, lane])
        upper |= (a >> 4 | b >> 4 << 2) << 2 * part
        out[start + 4 + part // 2] = a & 15 | (b & 15) << 4
    put_half(out, start + 2, upper)
    pack(room.final, 0, 4, 16, out, start + 8)


def _stairs(builder: ir.IRBuilder, vector: ir.Value, heights: tuple[int, ...]) -> ir.Value:
    """The height that begins at each middle between two neighbours of VALUES."""
    height = constant(FLOATS, heights[0])
    for place in range(1, len(VALUES)):
        middle = constant(FLOATS, (VALUES[place - 1] + VALUES[place]) / 2)
        reached = builder.fcmp_unordered(">=", vector, middle)
        rise = constant(FLOATS, heights[place] - heights[place - 1])
        height = builder.fadd(height, builder.select(reached, rise, constant(FLOATS, 0.0)))
    return height


define(nearest_value, (VECTOR,), VECTOR, lambda builder, vector: _stairs(builder, vector, VALUES))
define(nearest_code, (VECTOR,), VECTOR, lambda builder, vector: _stairs(builder, vector, tuple(range(16))))
