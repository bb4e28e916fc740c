"""Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0 without importance: 32 weights, their range, codes at even distances.

Follows `quantize_row_q*_ref` of ggml-quants.c. The blocks are worked on where they lie, two vectors each.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from quantkit.formats.ggml.borrow import borrow
from quantkit.formats.ggml.packing import Bytes, Words, pack, pack_neighbours, put_half
from quantkit.formats.ggml.rounding import away, put_bytes, store_half, truncated
from quantkit.formats.ggml.superblocks import Halves
from quantkit.formats.ggml.vectors import LANES, Floats, highest, inner, larger, load, smaller

F32 = np.float32
BLOCK = 32  # weights


class Plain(NamedTuple):
    """What tells the types apart."""

    bits: int  # of a code
    offset: bool  # whether a block has a minimum
    block_bytes: int


Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 = (
    Plain(4, False, 18),
    Plain(4, True, 20),
    Plain(5, False, 22),
    Plain(5, True, 24),
    Plain(8, False, 34),
)


def encode_plain(values: Floats, kind: Plain, out: Bytes) -> None:
    """Encodes rows of whole blocks without importance.

    Args:
        values: [rows, columns].
        kind: of the type.
        out: [rows, bytes], written.
    """
    codes = np.empty(BLOCK // 8, np.uint64)
    numbers, halves = np.zeros((2, LANES), np.float32), np.empty((2, LANES), np.uint16)
    _encode(values.reshape(-1, LANES), kind, numbers, halves, codes, codes.view(np.uint8), out.reshape(-1))


@njit(cache=True, nogil=True, error_model="numpy")
def _encode(
    pieces: Floats, kind: Plain, numbers: Floats, halves: Halves, codes: Words, code_bytes: Bytes, out: Bytes
) -> None:
    """Encodes LANES blocks at a time: first their scales and minima [2, LANES], then their codes."""
    pieces, out, numbers = borrow(pieces), borrow(out), borrow(numbers)
    halves, codes, code_bytes = borrow(halves), borrow(codes), borrow(code_bytes)
    blocks = len(pieces) * LANES // BLOCK
    for first in range(0, blocks, LANES):
        count = min(LANES, blocks - first)
        for i in range(count):
            numbers[0, i], numbers[1, i] = _range(pieces, first + i, kind)
        store_half(halves, 0, load(numbers, 0))
        store_half(halves, 1, load(numbers, 1))
        for i in range(count):
            start = (first + i) * kind.block_bytes
            put_half(out, start, halves[0, i])
            inverse = F32(1) / numbers[0, i] if numbers[0, i] != 0 else F32(0)
            if kind.bits == 8:
                _write_bytes(pieces, first + i, inverse, out, start + 2)
                continue
            _find_codes(pieces, first + i, inverse, numbers[1, i], kind, code_bytes)
            if kind.offset:
                put_half(out, start + 2, halves[1, i])
            write_codes(codes, kind.bits, out, start + (4 if kind.offset else 2))


@inner
def _write_bytes(pieces: Floats, block: int, inverse: np.float32, out: Bytes, start: int) -> None:
    put_bytes(out, start, away(load(pieces, 2 * block) * inverse))
    put_bytes(out, start + LANES, away(load(pieces, 2 * block + 1) * inverse))


@inner
def _find_codes(pieces: Floats, block: int, inverse: np.float32, low: np.float32, kind: Plain, codes: Bytes) -> None:
    top = F32((1 << kind.bits) - 1)
    middle = F32(0.5) if kind.offset else F32(1 << (kind.bits - 1)) + F32(0.5)
    for i in range(2):
        weights = load(pieces, 2 * block + i) - low  # nothing changes where low is 0
        put_bytes(codes, i * LANES, smaller(truncated(weights * inverse + middle), top))


@inner
def _range(pieces: Floats, block: int, kind: Plain) -> tuple[np.float32, np.float32]:
    """Scale and minimum of a block."""
    a, b = load(pieces, 2 * block), load(pieces, 2 * block + 1)
    if kind.bits == 8:
        return highest(larger(abs(a), abs(b))) / F32(127), F32(0)
    high, low = highest(larger(a, b)), -highest(larger(-a, -b))
    if kind.offset:
        if low == 0:  # a zero of either sign: the first
            low = _first_of_size(pieces, block, F32(0))
        # Not the difference of two zeros, whose sign would be another one's.
        return (high - low) / F32((1 << kind.bits) - 1) if high > low else F32(0), low
    peak = high if high > -low else low
    if high == -low:  # of either sign: the first
        peak = _first_of_size(pieces, block, high) if high > 0 else F32(0)
    return peak / F32(-(1 << (kind.bits - 1))), F32(0)


@inner
def _first_of_size(pieces: Floats, block: int, size: np.float32) -> np.float32:
    for i in range(BLOCK):
        weight = pieces[2 * block + i // LANES, i % LANES]
        if abs(weight) == size:
            return F32(weight)
    return size


@inner
def write_codes(codes: Words, bits: int, out: Bytes, start: int) -> None:
    """Packs the codes of a block of 32: of five bits the topmost first, eight neighbours to a byte."""
    if bits == 5:
        pack_neighbours(codes, 4, out, start)
        start += 4
    pack(codes, 0, 4, 16, out, start)
