"""Types whose encoders are ggml's own, called in the library of the xllamacpp wheel (`quantkit[ggml]`).

A failed assertion inside ggml ends the process, so whatever it asserts is asked here first.
"""

import ctypes
import functools
import importlib.util
from pathlib import Path

from quantkit.errors import BadInputError, UsageError
from quantkit.formats.ggml.packing import Bytes
from quantkit.formats.ggml.vectors import Floats
from quantkit.weights.gguf_types import GGML_TYPES

NATIVE_TYPES = (
    "IQ1_S",
    "IQ1_M",
    "IQ2_XXS",
    "IQ2_XS",
    "IQ2_S",
    "IQ3_XXS",
    "IQ3_S",
    "TQ1_0",
    "TQ2_0",
    "MXFP4",
)
_HINT = "pip install 'quantkit[ggml]'"
# Beyond these a sum of importance * weight**4 could overflow, and the search for a grid point find none: an assertion.
_LARGEST_WEIGHT = 65504.0  # of float16, in which the scales are stored
_LARGEST_IMPORTANCE = 1e15


def require_ggml(type_name: str) -> None:
    """Checks that ggml is installed and knows the type.

    Raises:
        UsageError: it is not, or does not.
    """
    _library(type_name)


def encode_natively(type_name: str, values: Floats, importance: Floats | None, out: Bytes) -> None:
    """Encodes rows with `ggml_quantize_chunk`.

    Args:
        type_name: of NATIVE_TYPES.
        values: [rows, columns] contiguous float32 of whole blocks.
        importance: [columns] contiguous float32, or None.
        out: [rows, row bytes] contiguous, written.

    Raises:
        UsageError: ggml is not installed, or is one that lays the type out differently.
        BadInputError: a weight or an importance is not finite, or larger than ggml can compute with.
    """
    library = _library(type_name)
    _check_range("weights", values, _LARGEST_WEIGHT)
    if importance is not None:
        _check_range("an importance", importance, _LARGEST_IMPORTANCE)
    number, (rows, columns) = GGML_TYPES[type_name].number, values.shape
    given = None if importance is None else importance.ctypes.data
    written = library.ggml_quantize_chunk(number, values.ctypes.data, out.ctypes.data, 0, rows, columns, given)
    if written != out.nbytes:
        raise UsageError(f"ggml wrote {written} bytes of {type_name}, expected {out.nbytes}", hint=_HINT)


@functools.cache
def _library(type_name: str) -> ctypes.CDLL:
    """Ggml with the tables of a type in place."""
    library, wanted = _open(), GGML_TYPES[type_name]
    library.ggml_type_name.restype = ctypes.c_char_p
    found = library.ggml_blck_size(wanted.number), library.ggml_type_size(wanted.number)
    name = (library.ggml_type_name(wanted.number) or b"").decode().upper()
    if (name, *found) != (wanted.name, wanted.block, wanted.block_bytes):
        expected = f"{wanted.name} with {wanted.block} weights in {wanted.block_bytes} bytes"
        raise UsageError(f"found {name} with {found[0]} weights in {found[1]} bytes, expected {expected}", hint=_HINT)
    library.ggml_quantize_init(wanted.number)  # seconds for some; ggml has a lock of its own around it
    return library


def _check_range(what: str, numbers: Floats, limit: float) -> None:
    low, high = float(numbers.min()), float(numbers.max())
    if not (-limit <= low and high <= limit):  # not so for NaN
        raise BadInputError(f"found {what} from {low:g} to {high:g}, expected at most {limit:g} for ggml's encoders")


@functools.cache
def _open() -> ctypes.CDLL:
    """The library, without importing the package around it."""
    found = importlib.util.find_spec("xllamacpp")
    places = found.submodule_search_locations if found else None
    files = [file for place in places or () for file in sorted(Path(place).glob("xllamacpp*.so"))]
    if not files:
        raise UsageError("types of ggml's own encoders need ggml, which is not installed", hint=_HINT)
    try:
        library = ctypes.CDLL(str(files[0]))
        pointer, size = ctypes.c_void_p, ctypes.c_int64
        library.ggml_quantize_chunk.argtypes = (ctypes.c_int, pointer, pointer, size, size, size, pointer)
        library.ggml_quantize_chunk.restype = ctypes.c_size_t
        library.ggml_quantize_init.argtypes = (ctypes.c_int,)
        library.ggml_blck_size.restype, library.ggml_type_size.restype = ctypes.c_int64, ctypes.c_size_t
    except (OSError, AttributeError) as error:
        raise UsageError(f"{files[0]}: {error}", hint=_HINT) from error
    return library
