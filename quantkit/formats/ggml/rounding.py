"""Rounding of vectors as ggml rounds: to whole numbers, to float16, to bytes."""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numpy.typing import NDArray

from quantkit.formats.ggml.vectors import (
    FLOATS,
    INTS,
    LANES,
    NOTHING,
    VECTOR,
    Vector,
    address,
    constant,
    define,
    inner,
    larger,
    smaller,
)

_ROUNDER = 12582912.0  # 1.5 * 2**23: what is added to it leaves its nearest whole number in the low bits


def nearest(vector: Vector) -> Vector:
    """The whole numbers that ggml's `nearest_int` finds: halves to even, and wrapped beyond 2**22."""


def rounded(vector: Vector) -> Vector:
    """The nearest whole numbers, halves to even; for magnitudes below 2**22 only."""


def nearest_byte(vector: Vector) -> Vector:
    """`nearest` modulo 256: what a uint8 keeps of it."""


def truncated(vector: Vector) -> Vector:
    """Whole numbers towards zero; 0 for what is not finite or beyond an int32, as x86 converts to an int8."""


def away(vector: Vector) -> Vector:
    """Whole numbers, halves away from zero, as C's `roundf`; 0 where `truncated` is 0."""


def as_half(vector: Vector) -> Vector:
    """Rounded to float16, still float32."""


def store_half(rows: NDArray[np.uint16], index: int, vector: Vector) -> None:
    """Writes row `index` of a contiguous [n, LANES] array as float16, with every NaN as ggml writes it."""


def put_bytes(out: NDArray[np.uint8], start: int, vector: Vector) -> None:
    """Writes whole numbers from -128 to 255 as LANES bytes from `start` on."""


@inner
def clamped(vector: Vector, low: np.float32, high: np.float32) -> Vector:
    """Limited to [low, high]."""
    return smaller(larger(vector, low), high)


def _shifted(builder: ir.IRBuilder, vector: ir.Value) -> ir.Value:
    return builder.bitcast(builder.fadd(vector, constant(FLOATS, _ROUNDER)), INTS)


def _nearest(builder: ir.IRBuilder, vector: ir.Value) -> ir.Value:
    mantissa = builder.and_(_shifted(builder, vector), constant(INTS, 0x7FFFFF))
    above = builder.or_(mantissa, constant(INTS, 0x4B000000))  # 2**23 + mantissa as a float
    return builder.fsub(builder.bitcast(above, FLOATS), constant(FLOATS, _ROUNDER))


def _rounded(builder: ir.IRBuilder, vector: ir.Value) -> ir.Value:
    rounder = constant(FLOATS, _ROUNDER)
    return builder.fsub(builder.fadd(vector, rounder), rounder)


def _nearest_byte(builder: ir.IRBuilder, vector: ir.Value) -> ir.Value:
    return builder.sitofp(builder.and_(_shifted(builder, vector), constant(INTS, 0xFF)), FLOATS)


def _truncated(builder: ir.IRBuilder, vector: ir.Value) -> ir.Value:
    limit = constant(FLOATS, 2.0**31)
    inside = builder.and_(
        builder.fcmp_ordered("<", vector, limit), builder.fcmp_ordered(">", vector, constant(FLOATS, -(2.0**31)))
    )
    kept = builder.select(inside, vector, constant(FLOATS, 0.0))
    return builder.sitofp(builder.fptosi(kept, INTS), FLOATS)


def _away(builder: ir.IRBuilder, vector: ir.Value) -> ir.Value:
    sign = builder.and_(builder.bitcast(vector, INTS), constant(INTS, 0x80000000))
    below_half = builder.or_(sign, constant(INTS, 0x3EFFFFFF))  # 0.5 itself would lift 0.49999997 to 1
    return _truncated(builder, builder.fadd(vector, builder.bitcast(below_half, FLOATS)))


def _half_bits(builder: ir.IRBuilder, vector: ir.Value) -> ir.Value:
    """The float16's bits in the low half of each int: halves to even by the addition of a power of two."""
    bits = builder.bitcast(vector, INTS)
    doubled = builder.shl(bits, constant(INTS, 1))  # the exponent in the topmost byte, no sign
    size = builder.bitcast(builder.lshr(doubled, constant(INTS, 1)), FLOATS)
    # Too large becomes infinity. Then the power of two whose last bit is the last that float16 keeps, or 2**-24.
    size = builder.fmul(builder.fmul(size, constant(FLOATS, 2.0**112)), constant(FLOATS, 2.0**-110))
    exponent = builder.and_(doubled, constant(INTS, 0xFF000000))
    least = constant(INTS, 0x71000000)
    exponent = builder.select(builder.icmp_unsigned("<", exponent, least), least, exponent)
    power = builder.add(builder.lshr(exponent, constant(INTS, 1)), constant(INTS, 0x07800000))
    sum_ = builder.bitcast(builder.fadd(builder.bitcast(power, FLOATS), size), INTS)
    half = builder.add(
        builder.and_(builder.lshr(sum_, constant(INTS, 13)), constant(INTS, 0x7C00)),
        builder.and_(sum_, constant(INTS, 0xFFF)),
    )
    not_a_number = builder.icmp_unsigned(">", doubled, constant(INTS, 0xFF000000))
    half = builder.select(not_a_number, constant(INTS, 0x7E00), half)
    sign = builder.and_(builder.lshr(bits, constant(INTS, 16)), constant(INTS, 0x8000))
    return builder.or_(sign, half)


def _as_half(builder: ir.IRBuilder, vector: ir.Value) -> ir.Value:
    half = _half_bits(builder, vector)
    sign = builder.shl(builder.and_(half, constant(INTS, 0x8000)), constant(INTS, 16))
    size = builder.shl(builder.and_(half, constant(INTS, 0x7FFF)), constant(INTS, 13))
    # The exponent is 112 too small: multiplied right for numbers and subnormals, set for infinity and NaN.
    number = builder.bitcast(builder.fmul(builder.bitcast(size, FLOATS), constant(FLOATS, 2.0**112)), INTS)
    endless = builder.icmp_unsigned(">=", size, constant(INTS, 0x7C00 << 13))
    number = builder.select(endless, builder.or_(size, constant(INTS, 0x7F800000)), number)
    return builder.bitcast(builder.or_(number, sign), FLOATS)


def _store_half(builder: ir.IRBuilder, data: ir.Value, index: ir.Value, vector: ir.Value) -> ir.Value:
    kind = ir.VectorType(ir.IntType(16), LANES)
    builder.store(builder.trunc(_half_bits(builder, vector), kind), address(builder, data, index, kind), align=1)
    return NOTHING


def _put_bytes(builder: ir.IRBuilder, data: ir.Value, start: ir.Value, vector: ir.Value) -> ir.Value:
    kind = ir.VectorType(ir.IntType(8), LANES)
    place = builder.bitcast(builder.gep(data, [start]), kind.as_pointer())
    builder.store(builder.trunc(builder.fptosi(vector, INTS), kind), place, align=1)
    return NOTHING


_BYTES: Any = types.Array(types.uint8, 1, "C")
_HALF_ROWS: Any = types.Array(types.uint16, 2, "C")
for _operation in (
    (nearest, (VECTOR,), VECTOR, _nearest),
    (rounded, (VECTOR,), VECTOR, _rounded),
    (nearest_byte, (VECTOR,), VECTOR, _nearest_byte),
    (truncated, (VECTOR,), VECTOR, _truncated),
    (away, (VECTOR,), VECTOR, _away),
    (as_half, (VECTOR,), VECTOR, _as_half),
    (store_half, (_HALF_ROWS, types.intp, VECTOR), types.none, _store_half),
    (put_bytes, (_BYTES, types.intp, VECTOR), types.none, _put_bytes),
):
    define(*_operation)
