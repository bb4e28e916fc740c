"""Q3_K and Q6_K: each part of a super-block with a scale of its own, weight = scale * (code - half).

The scales of the 16 parts are codes themselves, of 6 bits (Q3_K) or 8 with a sign (Q6_K), times one float16 number.
Follows ggml-quants.c: `quantize_row_q*_K_ref` without, and `quantize_row_q*_K_impl` with the importance of columns.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from quantkit.formats.ggml.borrow import borrow
from quantkit.formats.ggml.packing import Bytes, Words, pack, put_half
from quantkit.formats.ggml.rounding import as_half, clamped, nearest, put_bytes, store_half
from quantkit.formats.ggml.search import TINY, best_scale, peak, settled_scales
from quantkit.formats.ggml.superblocks import NO_IMPORTANCE, SUPER, Halves, energy, gather, keep, total, weigh
from quantkit.formats.ggml.vectors import LANES, Floats, inner, load, select, smaller, splat, store, tile

F32 = np.float32
_PART = 16  # weights that share a scale
_PARTS = SUPER // _PART


class Scales(NamedTuple):
    """What tells the two types apart."""

    bits: int  # of a code
    block_bytes: int


Q3_K = Scales(3, 110)
Q6_K = Scales(6, 210)


class Room(NamedTuple):
    """Where LANES super-blocks side by side are worked on."""

    x: Floats  # [256, LANES] weights
    kept: Floats  # [256, LANES] codes that the search found
    shares: Floats  # [16, LANES] of weights in the error
    totals: Floats  # [16, LANES] sums of shares
    scales: Floats  # [16, LANES] of parts
    codes: Floats  # [16, LANES] of scales, with a sign
    factors: Floats  # [2, LANES] what the codes are multiplied with, and the largest magnitude of a scale
    halves: Halves  # [1, LANES] the factor as float16
    final: Words  # [LANES, 32] codes to pack, a byte each
    final_bytes: Bytes  # [LANES * 256] the same bytes


def encode_scales(values: Floats, importance: Floats | None, kind: Scales, out: Bytes) -> None:
    """Encodes rows as Q3_K or Q6_K.

    Args:
        values: [rows, columns], whole super-blocks.
        importance: [columns] or None.
        kind: of the two.
        out: [rows, bytes], written.
    """
    final = np.empty((LANES, SUPER // 8), np.uint64)
    room = Room(
        x=tile(SUPER),
        kept=tile(SUPER),
        shares=tile(_PART),
        totals=tile(_PARTS),
        scales=tile(_PARTS),
        codes=tile(_PARTS),
        factors=tile(2),
        halves=np.empty((1, LANES), np.uint16),
        final=final,
        final_bytes=final.view(np.uint8).reshape(-1),
    )
    importance = NO_IMPORTANCE if importance is None else importance
    _encode(values, values.reshape(-1, LANES), importance, kind, room, out.reshape(-1))


@njit(cache=True, nogil=True, error_model="numpy")
def _encode(values: Floats, pieces: Floats, importance: Floats, kind: Scales, room: Room, out: Bytes) -> None:
    """The same for `pieces`, the weights as they lie in rows of LANES, and an empty importance instead of None."""
    values, pieces, importance, out = borrow(values), borrow(pieces), borrow(importance), borrow(out)
    room = borrow(room)
    rows, blocks = len(values), values.shape[1] // SUPER
    for first in range(0, rows, LANES):
        for block in range(blocks):
            gather(values, first, block * SUPER, room.x)
            _fit_parts(importance, block * SUPER, kind, room)
            _encode_parts(len(importance) > 0, kind, room)
            lanes, at = min(LANES, rows - first), first * blocks + block
            _find_codes(pieces, at, blocks, lanes, kind, room)
            if kind.bits == 3:
                _write_q3(at, blocks, lanes, room, out)
            else:
                _write_q6(at, blocks, lanes, room, out)


@inner
def _fit_parts(importance: Floats, start: int, kind: Scales, room: Room) -> None:
    """Finds the scale of every part, its codes, and the sum of its weights' shares in the error.

    Without importance a weight counts with its square. In Q6_K an importance counts as it is.
    """
    weighted = len(importance) > 0
    if kind.bits == 3 and not weighted:
        settled_scales(room.x, room.kept, F32(4), room.shares, room.totals, room.scales)
        return
    sigma2 = F32(2) * energy(room.x, 0, SUPER, splat(F32(0))) / F32(SUPER)
    for part in range(_PARTS):
        first = part * _PART
        codes = room.kept[first : first + _PART]
        if kind.bits == 3:
            weigh(room.x, first, importance, start + first, sigma2, room.shares)
        else:
            for i in range(_PART):
                weight = load(room.x, first + i)
                store(room.shares, i, splat(importance[start + first + i]) if weighted else weight * weight)
        store(room.scales, part, best_scale(room.x, first, room.shares, codes, F32(1 << (kind.bits - 1))))
        store(room.totals, part, total(room.shares))


@inner
def _encode_parts(weighted: bool, kind: Scales, room: Room) -> None:
    """Codes for the scales of a super-block, and the factor that they are multiplied with."""
    size, largest = peak(room.scales, 0, _PARTS)
    half = F32(32 if kind.bits == 3 else 128)
    if weighted and kind.bits == 3:
        factor = best_scale(room.scales, 0, room.totals, room.codes, half)
        for part in range(_PARTS):
            store(room.codes, part, load(room.codes, part) - half)
    else:
        inverse = -half / largest
        for part in range(_PARTS):
            code = smaller(nearest(inverse * load(room.scales, part)), half - F32(1))
            store(room.codes, part, select(size > F32(0), code, -half))
        factor = select(size > F32(0), F32(1) / inverse, splat(F32(0)))
    store_half(room.halves, 0, factor)
    store(room.factors, 0, as_half(factor))
    store(room.factors, 1, size)


@inner
def _find_codes(pieces: Floats, at: int, blocks: int, lanes: int, kind: Scales, room: Room) -> None:
    """Codes for the scales that the blocks at, at + blocks, ... hold; those of the search where a scale is 0."""
    half = F32(1 << (kind.bits - 1))
    factors, scale_codes, kept, final = room.factors, room.codes, room.kept, room.final_bytes
    for lane in range(lanes):
        for part in range(_PARTS):
            scale, place = factors[0, lane] * scale_codes[part, lane], lane * SUPER + part * _PART
            if scale == 0:
                keep(kept, lane, part * _PART, _PART, final, place)
            else:
                codes = nearest(load(pieces, (at + lane * blocks) * _PARTS + part) / scale)
                put_bytes(final, place, clamped(codes, -half, half - F32(1)) + half)


@inner
def _write_q3(at: int, blocks: int, lanes: int, room: Room, out: Bytes) -> None:
    """The upper bits of the codes, their lower two, the scales, the factor.

    12 bytes hold 16 scales of 6 bits: byte i the lower four of scales i and i + 8 (i < 8), byte 8 + i the upper two
    of scales i, i + 4, i + 8, i + 12.
    """
    codes, halves = room.codes, room.halves
    for lane in range(lanes):
        start, final = (at + lane * blocks) * 110, room.final[lane]
        pack(final, 2, 1, 32, out, start)
        pack(final, 0, 2, 32, out, start + 32)
        for i in range(4):
            scales = start + 96 + i
            a, b = int(codes[i, lane]) + 32, int(codes[4 + i, lane]) + 32
            c, d = int(codes[8 + i, lane]) + 32, int(codes[12 + i, lane]) + 32
            out[scales], out[scales + 4] = a & 15 | (c & 15) << 4, b & 15 | (d & 15) << 4
            out[scales + 8] = a >> 4 | b >> 4 << 2 | c >> 4 << 4 | d >> 4 << 6
        put_half(out, start + 108, halves[0, lane])


@inner
def _write_q6(at: int, blocks: int, lanes: int, room: Room, out: Bytes) -> None:
    """The lower four bits of the codes, their upper two, the scales, the factor; all zero if the weights are."""
    codes, halves, factors = room.codes, room.halves, room.factors
    for lane in range(lanes):
        start, final = (at + lane * blocks) * 210, room.final[lane]
        if factors[1, lane] < TINY:
            out[start : start + 210] = 0
            continue
        pack(final, 0, 4, 64, out, start)
        pack(final, 4, 2, 32, out, start + 128)
        for part in range(_PARTS):
            out[start + 192 + part] = int(codes[part, lane]) & 255
        put_half(out, start + 208, halves[0, lane])
