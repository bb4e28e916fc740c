"""Q4_0, Q4_1, Q5_0 and Q5_1 where columns have an importance: the scale of each 32 weights is searched.

Follows `quantize_row_q*_impl` of ggml-quants.c.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from quantkit.formats.ggml.borrow import borrow
from quantkit.formats.ggml.packing import Bytes, Words, put_half
from quantkit.formats.ggml.plain import BLOCK, Plain, write_codes
from quantkit.formats.ggml.rounding import store_half
from quantkit.formats.ggml.search import Line, best_line, best_scale, weighted_line
from quantkit.formats.ggml.superblocks import Halves, energy, gather, keep, weigh
from quantkit.formats.ggml.vectors import LANES, Floats, Vector, inner, splat, tile

F32 = np.float32


class Room(NamedTuple):
    """Where LANES blocks side by side are worked on."""

    x: Floats  # [32, LANES] weights
    shares: Floats  # [32, LANES] of weights in the error
    codes: Floats  # [32, LANES]
    halves: Halves  # [2, LANES] scales and minima
    final: Words  # [4] codes of one block, a byte each
    final_bytes: Bytes  # [32] the same bytes


def encode_weighted(values: Floats, importance: Floats, kind: Plain, out: Bytes) -> None:
    """Encodes rows of whole blocks.

    Args:
        values: [rows, columns].
        importance: [columns].
        kind: of the type, not Q8_0.
        out: [rows, bytes], written.
    """
    final = np.empty(BLOCK // 8, np.uint64)
    halves = np.empty((2, LANES), np.uint16)
    room = Room(tile(BLOCK), tile(BLOCK), tile(BLOCK), halves, final, final.view(np.uint8))
    _encode(values, importance, kind, weighted_line(kind.bits), room, out.reshape(-1))


@njit(cache=True, nogil=True, error_model="numpy")
def _encode(values: Floats, importance: Floats, kind: Plain, line: Line, room: Room, out: Bytes) -> None:
    values, importance, out, room = borrow(values), borrow(importance), borrow(out), borrow(room)
    rows, columns = values.shape
    for first in range(0, rows, LANES):
        sigma2 = _mean_square(values, first, room.x)
        for start in range(0, columns, BLOCK):
            gather(values, first, start, room.x)
            weigh(room.x, 0, importance, start, sigma2, room.shares)
            if kind.offset:
                scale, low = best_line(room.x, 0, room.shares, room.codes, line)
                store_half(room.halves, 1, low)
            else:
                scale = best_scale(room.x, 0, room.shares, room.codes, F32(1 << (kind.bits - 1)))
            store_half(room.halves, 0, scale)
            for lane in range(min(LANES, rows - first)):
                at = ((first + lane) * columns + start) // BLOCK * kind.block_bytes
                put_half(out, at, room.halves[0, lane])
                if kind.offset:
                    put_half(out, at + 2, room.halves[1, lane])
                keep(room.codes, lane, 0, BLOCK, room.final_bytes, 0)
                write_codes(room.final, kind.bits, out, at + (4 if kind.offset else 2))


@inner
def _mean_square(values: Floats, first: int, x: Floats) -> Vector:
    """Of the rows in lanes."""
    columns, squares = values.shape[1], splat(F32(0))
    for start in range(0, columns, BLOCK):
        gather(values, first, start, x)
        squares = energy(x, 0, BLOCK, squares)
    return squares / F32(columns)
