"""F32, F16 and BF16 rows."""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from quantkit.formats.ggml.packing import Bytes
from quantkit.formats.ggml.rounding import store_half
from quantkit.formats.ggml.vectors import LANES, Floats, load

_U32 = np.uint32


def encode_f32(values: Floats, out: Bytes) -> None:
    """Copies.

    Args:
        values: [rows, columns].
        out: [rows, 4 * columns], written.
    """
    out[...] = values.view(np.uint8)


def encode_f16(values: Floats, out: Bytes) -> None:
    """Rounds to float16, halves to even; NaN becomes ggml's one.

    Args:
        values: [rows, columns].
        out: [rows, 2 * columns], written.
    """
    halves, whole = np.empty(values.size, np.uint16), values.size // LANES * LANES
    tail = np.zeros((1, LANES), np.float32)
    tail[0, : values.size - whole] = values.reshape(-1)[whole:]
    ends = np.empty((1, LANES), np.uint16)
    _to_half(values.reshape(-1)[:whole].reshape(-1, LANES), halves[:whole].reshape(-1, LANES))
    _to_half(tail, ends)
    halves[whole:] = ends[0, : values.size - whole]
    out[...] = halves.view(np.uint8).reshape(out.shape)


def encode_bf16(values: Floats, out: Bytes) -> None:
    """Rounds to bfloat16, halves to even; a NaN stays one and becomes quiet.

    Args:
        values: [rows, columns].
        out: [rows, 2 * columns], written.
    """
    _to_bf16(values.reshape(-1).view(np.uint32), out.reshape(-1).view(np.uint16))


@njit(cache=True, nogil=True)
def _to_half(rows: Floats, halves: NDArray[np.uint16]) -> None:
    for i in range(len(rows)):
        store_half(halves, i, load(rows, i))


@njit(cache=True, nogil=True)
def _to_bf16(bits: NDArray[np.uint32], words: NDArray[np.uint16]) -> None:
    for i in range(len(bits)):
        number = bits[i]
        rounded = (number + _U32(0x7FFF) + ((number >> _U32(16)) & _U32(1))) >> _U32(16)
        quiet = (number >> _U32(16)) | _U32(64)
        words[i] = quiet if (number & _U32(0x7FFFFFFF)) > _U32(0x7F800000) else rounded
