"""Rows of float32 to the blocks of a ggml type, by our own encoders or by ggml's.

Ours write the bytes that `ggml_quantize_chunk` writes on x86-64 (no fused multiply-add), several times faster.
"""

import ctypes
from collections.abc import Callable, Iterable

import numpy as np

from quantkit.errors import BadInputError
from quantkit.formats.ggml.floats import encode_bf16, encode_f16, encode_f32
from quantkit.formats.ggml.iq4 import IQ4_NL, IQ4_XS, encode_curve
from quantkit.formats.ggml.kquant_lines import Q2_K, Q4_K, Q5_K, encode_lines
from quantkit.formats.ggml.kquant_scales import Q3_K, Q6_K, encode_scales
from quantkit.formats.ggml.native import NATIVE_TYPES, encode_natively
from quantkit.formats.ggml.packing import Bytes
from quantkit.formats.ggml.plain import Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Plain, encode_plain
from quantkit.formats.ggml.vectors import LANES, Floats
from quantkit.formats.ggml.weighted import encode_weighted
from quantkit.weights.gguf_types import GGML_TYPES

ROWS = LANES  # rows are worked on so many at a time: fewer take as long
_Encoder = Callable[[Floats, Floats | None, Bytes], None]


def encode(type_name: str, values: Floats, importance: Floats | None = None, out: Bytes | None = None) -> Bytes:
    """Encodes rows on the thread that calls, without holding the interpreter's lock.

    The result does not depend on how a tensor's rows are shared out over calls.

    Args:
        type_name: a type of `can_encode`.
        values: [rows, columns] float32, contiguous, finite, rows of whole blocks.
        importance: [columns] float32, finite and not negative: what a squared error in a column counts. Types that
            have no use for it do not look at it.
        out: [rows, row bytes] uint8, contiguous, written; a new array if absent.

    Returns:
        out.

    Raises:
        BadInputError: an argument is not as described, or the type needs an importance and has none.
        UsageError: the type is one of ggml's encoders, and ggml is not installed.
    """
    if not can_encode(type_name):
        raise BadInputError(f"found the type {type_name}, expected one of {', '.join((*_OURS, *NATIVE_TYPES))}")
    if values.dtype != np.float32 or values.ndim != 2 or not values.flags.c_contiguous:
        raise BadInputError(f"found {values.dtype} {list(values.shape)}, expected contiguous float32 [rows, columns]")
    rows, columns = values.shape
    shape = (rows, GGML_TYPES[type_name].row_bytes(columns))
    if out is None:
        out = np.empty(shape, np.uint8)
    if out.dtype != np.uint8 or out.shape != shape or not out.flags.c_contiguous or not out.flags.writeable:
        raise BadInputError(f"found {out.dtype} {list(out.shape)} to write to, expected contiguous uint8 {list(shape)}")
    if importance is not None:
        importance = _checked_importance(importance, columns)
    elif requires_importance(type_name):
        raise BadInputError(f"{type_name} needs the importance of columns", hint="collect or name an imatrix file")
    if values.size:
        if type_name in _OURS:
            _OURS[type_name](_writable(values), importance, out)
        else:
            encode_natively(type_name, values, importance, out)
    return out


def can_encode(type_name: str) -> bool:
    """Whether there is an encoder; some ask for ggml to be installed, see `native.require_ggml`."""
    return type_name in _OURS or type_name in NATIVE_TYPES


def requires_importance(type_name: str) -> bool:
    """Whether a type cannot be encoded without, as ggml's `ggml_quantize_requires_imatrix`."""
    return type_name in ("IQ1_S", "IQ2_XXS", "IQ2_XS")


def warm(type_names: Iterable[str], importance: bool) -> None:
    """Compiles what the types need, so that threads that encode later do not wait for each other.

    Args:
        type_names: types of `can_encode`; those of ggml need nothing.
        importance: whether columns will have one.
    """
    for name in sorted(set(type_names) & set(_OURS)):
        block = np.zeros((1, GGML_TYPES[name].block), np.float32)
        encode(name, block, np.ones(block.shape[1], np.float32) if importance else None)


def _checked_importance(importance: Floats, columns: int) -> Floats:
    if importance.dtype != np.float32 or importance.shape != (columns,):
        found = f"{importance.dtype} {list(importance.shape)}"
        raise BadInputError(f"found an importance of {found}, expected float32 [{columns}]")
    if not np.isfinite(importance).all() or (importance < 0).any():
        raise BadInputError("found an importance with numbers that are negative or not finite")
    return _writable(np.ascontiguousarray(importance))


def _writable(array: Floats) -> Floats:
    """The same numbers as an array that may be written to: for one that may not, numba would compile all anew."""
    if array.flags.writeable:
        return array
    return np.ctypeslib.as_array(array.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), array.shape)


def _plain(kind: Plain) -> _Encoder:
    def encoder(values: Floats, importance: Floats | None, out: Bytes) -> None:
        if importance is None or kind is Q8_0:
            encode_plain(values, kind, out)
        else:
            encode_weighted(values, importance, kind, out)

    return encoder


_OURS: dict[str, _Encoder] = {
    "F32": lambda values, _, out: encode_f32(values, out),
    "F16": lambda values, _, out: encode_f16(values, out),
    "BF16": lambda values, _, out: encode_bf16(values, out),
    "Q4_0": _plain(Q4_0),
    "Q4_1": _plain(Q4_1),
    "Q5_0": _plain(Q5_0),
    "Q5_1": _plain(Q5_1),
    "Q8_0": _plain(Q8_0),
    "Q2_K": lambda values, importance, out: encode_lines(values, importance, Q2_K, out),
    "Q3_K": lambda values, importance, out: encode_scales(values, importance, Q3_K, out),
    "Q4_K": lambda values, importance, out: encode_lines(values, importance, Q4_K, out),
    "Q5_K": lambda values, importance, out: encode_lines(values, importance, Q5_K, out),
    "Q6_K": lambda values, importance, out: encode_scales(values, importance, Q6_K, out),
    "IQ4_NL": lambda values, importance, out: encode_curve(values, importance, IQ4_NL, out),
    "IQ4_XS": lambda values, importance, out: encode_curve(values, importance, IQ4_XS, out),
}
