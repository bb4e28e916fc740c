"""Packs the codes of a block into its bytes, eight codes at a time as one 64-bit number with a code per byte.

All of ggml's layouts are one: a chunk of codes is cut into planes of `stride` codes, and byte i holds some bits of the
codes at place i of every plane, the first plane lowest.

    4 bits, stride 32:  byte i of a chunk of 64 codes   =  code[i] | code[i + 32] << 4
    2 bits, stride 32:  byte i of a chunk of 128 codes  =  code[i] | code[i + 32] << 2 | code[i + 64] << 4 | ...
"""

import numpy as np
from llvmlite import ir
from numba import types
from numpy.typing import NDArray

from quantkit.formats.ggml.vectors import NOTHING, define, inner

Bytes = NDArray[np.uint8]
Words = NDArray[np.uint64]

_U64 = np.uint64
_ONES = _U64(0x0101010101010101)
_GATHER = _U64(0x0102040810204080)  # brings the lowest bit of byte i to bit 56 + i


def put_word(out: Bytes, start: int, word: np.uint64) -> None:
    """Writes the eight bytes of a number from `start` on, the lowest first."""


@inner
def put_half(out: Bytes, start: int, half: int) -> None:
    """Writes the two bytes of a float16."""
    out[start] = half & 0xFF
    out[start + 1] = half >> 8


@inner
def pack(codes: Words, shift: int, bits: int, stride: int, out: Bytes, start: int) -> None:
    """Packs some bits of every code.

    Args:
        codes: a byte per code, whole chunks of 8 / bits * stride codes.
        shift: how many lower bits of a code are left out.
        bits: how many follow that are taken: 1, 2 or 4.
        stride: codes of a plane, a multiple of 8.
        out: written from `start` on.
        start: see out.
    """
    planes, words = 8 // bits, stride // 8
    mask = _ONES * _U64((1 << bits) - 1)
    for chunk in range(len(codes) // (planes * words)):
        for i in range(words):
            packed = _U64(0)
            for plane in range(planes):
                taken = (codes[(chunk * planes + plane) * words + i] >> _U64(shift)) & mask
                packed |= taken << _U64(bits * plane)
            put_word(out, start + (chunk * words + i) * 8, packed)


@inner
def pack_neighbours(codes: Words, shift: int, out: Bytes, start: int) -> None:
    """Packs bit `shift` of every code, eight neighbours to a byte, into the bytes from `start` on."""
    for i in range(len(codes)):
        out[start + i] = ((((codes[i] >> _U64(shift)) & _ONES) * _GATHER) >> _U64(56)) & _U64(0xFF)


def _put_word(builder: ir.IRBuilder, data: ir.Value, start: ir.Value, word: ir.Value) -> ir.Value:
    builder.store(word, builder.bitcast(builder.gep(data, [start]), word.type.as_pointer()), align=1)
    return NOTHING


define(put_word, (types.Array(types.uint8, 1, "C"), types.intp, types.uint64), types.none, _put_word)
