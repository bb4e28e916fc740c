"""Blocks of a GGUF tensor as the float32 values that llama.cpp computes with."""

import numpy as np
import numpy.typing as npt

from quantkit.errors import BadInputError

# Types that the gguf library would decode to the same values with more memory on the way.
_PLAIN = {"F32": "<f4", "F16": "<f2"}
_INTEGERS = ("I8", "I16", "I32", "I64", "F64")


def dequantize(type_name: str, blocks: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """The weights of whole rows.

    Args:
        type_name: a key of GGML_TYPES.
        blocks: uint8 [rows, row bytes], C-contiguous.

    Returns:
        float32 [rows, columns].

    Raises:
        BadInputError: a type that no weights have, or that the gguf library does not know.
    """
    if type_name in _PLAIN:
        return blocks.view(_PLAIN[type_name]).astype(np.float32)
    import gguf  # late: a --help must not wait for it

    kind = getattr(gguf.GGMLQuantizationType, type_name, None)
    if kind is None or type_name in _INTEGERS:
        raise BadInputError(f"found a tensor of type {type_name}, which holds no weights")
    with np.errstate(all="ignore"):  # damaged scales are infinite or not numbers, as they are to llama.cpp
        return np.asarray(gguf.quants.dequantize(blocks, kind), dtype=np.float32)
