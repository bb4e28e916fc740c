"""Q2_K, Q4_K and Q5_K: each part of a super-block on a line, weight = scale * code - minimum.

The scales and minima of the parts are codes themselves, of 4 bits (Q2_K) or 6, times two float16 numbers.
Follows ggml-quants.c: `quantize_row_q*_K_ref` without, and `quantize_row_q*_K_impl` with the importance of columns.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from quantkit.formats.ggml.borrow import borrow
from quantkit.formats.ggml.packing import Bytes, Words, pack, put_half
from quantkit.formats.ggml.positive import best_positive_scale
from quantkit.formats.ggml.rounding import as_half, clamped, nearest, nearest_byte, put_bytes, store_half
from quantkit.formats.ggml.search import Line, best_line, weighted_line
from quantkit.formats.ggml.superblocks import NO_IMPORTANCE, SUPER, Halves, energy, gather, keep, total, weigh
from quantkit.formats.ggml.vectors import LANES, Floats, inner, larger, load, root, select, smaller, splat, store, tile

F32 = np.float32


class Lines(NamedTuple):
    """What tells the types apart."""

    bits: int  # of a code
    part: int  # weights that share a scale
    scale_bits: int
    line: Line
    block_bytes: int


Q2_K = Lines(2, 16, 4, Line(F32(3), F32(-0.5), F32(0.1), 15, absolute=True), 84)
Q4_K = Lines(4, 32, 6, Line(F32(15), F32(-1.0), F32(0.1), 20), 144)
Q5_K = Lines(5, 32, 6, Line(F32(31), F32(-0.5), F32(0.1), 15), 176)


class Room(NamedTuple):
    """Where LANES super-blocks side by side are worked on. `numbers` has the scales first, then the minima."""

    x: Floats  # [256, LANES] weights
    kept: Floats  # [256, LANES] codes that the search found
    shares: Floats  # [part, LANES] of weights in the error
    totals: Floats  # [parts, LANES] sums of shares
    numbers: Floats  # [2 * parts, LANES]
    codes: Floats  # [2 * parts, LANES] of numbers
    factors: Floats  # [2, LANES] what the codes are multiplied with
    halves: Halves  # [2, LANES] the same as float16
    final: Words  # [LANES, 32] codes to pack, a byte each
    final_bytes: Bytes  # [LANES * 256] the same bytes


def encode_lines(values: Floats, importance: Floats | None, kind: Lines, out: Bytes) -> None:
    """Encodes rows as Q2_K, Q4_K or Q5_K.

    Args:
        values: [rows, columns], whole super-blocks.
        importance: [columns] or None.
        kind: of the three.
        out: [rows, bytes], written.
    """
    parts, final = SUPER // kind.part, np.empty((LANES, SUPER // 8), np.uint64)
    room = Room(
        x=tile(SUPER),
        kept=tile(SUPER),
        shares=tile(kind.part),
        totals=tile(parts),
        numbers=tile(2 * parts),
        codes=tile(2 * parts),
        factors=tile(2),
        halves=np.empty((2, LANES), np.uint16),
        final=final,
        final_bytes=final.view(np.uint8).reshape(-1),
    )
    if importance is None:
        importance = NO_IMPORTANCE
    else:
        kind = kind._replace(line=weighted_line(kind.bits))
    _encode(values, values.reshape(-1, LANES), importance, kind, room, out.reshape(-1))


@njit(cache=True, nogil=True, error_model="numpy")
def _encode(values: Floats, pieces: Floats, importance: Floats, kind: Lines, room: Room, out: Bytes) -> None:
    """The same for `pieces`, the weights as they lie in rows of LANES, and an empty importance instead of None."""
    values, pieces, importance, out = borrow(values), borrow(pieces), borrow(importance), borrow(out)
    room = borrow(room)
    rows, blocks = len(values), values.shape[1] // SUPER
    for first in range(0, rows, LANES):
        for block in range(blocks):
            gather(values, first, block * SUPER, room.x)
            _fit_parts(importance, block * SUPER, kind, room)
            _encode_scales(len(importance) > 0, kind, room)
            lanes, at = min(LANES, rows - first), first * blocks + block
            _write_scales(at, blocks, lanes, kind, room, out)
            _find_codes(pieces, at, blocks, lanes, kind, room, out)
            _write_codes(at, blocks, lanes, kind, room, out)


@inner
def _fit_parts(importance: Floats, start: int, kind: Lines, room: Room) -> None:
    """Finds the line of every part, its codes, and the sum of its weights' shares in the error."""
    parts = len(room.totals)
    sigma2 = F32(1 if kind.bits == 2 else 2) * energy(room.x, 0, SUPER, splat(F32(0))) / F32(SUPER)
    for part in range(parts):
        first = part * kind.part
        if len(importance) > 0:
            weigh(room.x, first, importance, start + first, sigma2, room.shares)
        else:
            spread = (
                splat(F32(0))
                if kind.bits == 2
                else root(energy(room.x, first, kind.part, splat(F32(0))) / F32(kind.part))
            )
            for i in range(kind.part):
                store(room.shares, i, spread + abs(load(room.x, first + i)))
        codes = room.kept[first : first + kind.part]
        scale, low = best_line(room.x, first, room.shares, codes, kind.line)
        store(room.numbers, part, scale)
        store(room.numbers, parts + part, -low)
        store(room.totals, part, total(room.shares))


@inner
def _encode_scales(weighted: bool, kind: Lines, room: Room) -> None:
    """Codes for the scales and for the minima of a super-block, and the factors that they are multiplied with."""
    parts, top = len(room.totals), F32((1 << kind.scale_bits) - 1)
    for which in range(2):
        numbers = room.numbers[which * parts : (which + 1) * parts]
        codes = room.codes[which * parts : (which + 1) * parts]
        if weighted:
            factor = best_positive_scale(numbers, room.totals, codes, top)
        else:
            high = splat(F32(0))
            for part in range(parts):
                high = larger(load(numbers, part), high)
            inverse = select(high > F32(0), top / high, splat(F32(0)))
            for part in range(parts):
                store(codes, part, nearest_byte(inverse * load(numbers, part)))
            factor = high / top
        if kind.bits == 5 or (kind.bits == 4 and not weighted):
            for part in range(parts):
                store(codes, part, smaller(load(codes, part), top))
        store_half(room.halves, which, factor)
        store(room.factors, which, as_half(factor))


@inner
def _write_scales(at: int, blocks: int, lanes: int, kind: Lines, room: Room, out: Bytes) -> None:
    """Writes factors and scale codes of the blocks at, at + blocks, ...

    Q2_K: 16 bytes with a scale and a minimum each, then the codes, then the factors. The others begin with the
    factors. 12 bytes with eight scales and eight minima of 6 bits follow: bytes 0-3 hold scales 0-3, bytes 4-7
    minima 0-3, bytes 8-11 the lower four bits of scales and minima 4-7, whose upper two are on top of bytes 0-7.
    """
    parts, codes, halves = len(room.totals), room.codes, room.halves
    for lane in range(lanes):
        start = (at + lane * blocks) * kind.block_bytes
        put_half(out, start + (80 if kind.bits == 2 else 0), halves[0, lane])
        put_half(out, start + (82 if kind.bits == 2 else 2), halves[1, lane])
        for part in range(parts):
            scale, minimum = int(codes[part, lane]), int(codes[parts + part, lane])
            if kind.bits == 2:
                out[start + part] = (scale | minimum << 4) & 255
            elif part < 4:
                out[start + 4 + part], out[start + 8 + part] = scale, minimum
            else:
                out[start + 8 + part] = scale & 15 | (minimum & 15) << 4
                out[start + part] |= (scale >> 4 << 6) & 255
                out[start + 4 + part] |= (minimum >> 4 << 6) & 255


@inner
def _read_scale(out: Bytes, start: int, part: int, kind: Lines) -> tuple[int, int]:
    """Scale and minimum of a part as a reader of the block at `start` finds them."""
    if kind.bits == 2:
        return out[start + part] & 15, out[start + part] >> 4
    if part < 4:
        return out[start + 4 + part] & 63, out[start + 8 + part] & 63
    low, scale_top, minimum_top = out[start + 8 + part], out[start + part] >> 6, out[start + 4 + part] >> 6
    return low & 15 | scale_top << 4, low >> 4 | minimum_top << 4


@inner
def _find_codes(pieces: Floats, at: int, blocks: int, lanes: int, kind: Lines, room: Room, out: Bytes) -> None:
    """Codes for the scales and minima that the blocks now hold; those of the search where a scale is 0."""
    size, parts, top = kind.part // LANES, len(room.totals), kind.line.top
    factors, kept, final = room.factors, room.kept, room.final_bytes
    for lane in range(lanes):
        block = at + lane * blocks
        for part in range(parts):
            scale_code, minimum_code = _read_scale(out, block * kind.block_bytes, part, kind)
            scale, minimum = factors[0, lane] * F32(scale_code), factors[1, lane] * F32(minimum_code)
            if scale == 0:
                keep(kept, lane, part * kind.part, kind.part, final, lane * SUPER + part * kind.part)
                continue
            for i in range(part * size, (part + 1) * size):
                codes = nearest((load(pieces, block * (SUPER // LANES) + i) + minimum) / scale)
                put_bytes(final, lane * SUPER + i * LANES, clamped(codes, F32(0), top))


@inner
def _write_codes(at: int, blocks: int, lanes: int, kind: Lines, room: Room, out: Bytes) -> None:
    """Packs the codes: of five bits the topmost first."""
    for lane in range(lanes):
        start, final = (at + lane * blocks) * kind.block_bytes + 16, room.final[lane]
        if kind.bits == 2:
            pack(final, 0, 2, 32, out, start)
        elif kind.bits == 4:
            pack(final, 0, 4, 32, out, start)
        else:
            pack(final, 4, 1, 32, out, start)
            pack(final, 0, 4, 32, out, start + 32)
