"""What a GGUF file is called for its types: a file type such as Q4_K_M, or the types of its tensors."""

import re
from collections import Counter

from quantkit.formats.mixture_tables import FALLBACKS, FTYPES, is_quantized
from quantkit.weights.gguf_read import GgufFiles

FILE_TYPE = "general.file_type"
GUESSED = 1024  # a flag in it: llama.cpp worked it out from the tensors


def type_label(files: GgufFiles) -> str:
    """The file type that a file states, or its tensors' types where it states none that they could be of.

    The most frequent types come first; those of vectors, and of tables that stay in float32, do not count.
    """
    weights = _weights_by_type(files)
    stated = _stated(files)
    if stated is not None and _like(FTYPES[stated].default) & weights.keys():
        return stated
    return ", ".join(weights) or "F32"


def nominal_bits(files: GgufFiles) -> int | None:
    """Bits of a weight's code in most of a file's tensors; None: they are not quantized.

    Of a mixture these are the bits of its name, which are those of its default type.
    """
    label = type_label(files)
    most = FTYPES[label].default if label in FTYPES else label.partition(",")[0]
    return int(re.findall(r"\d", most)[0]) if is_quantized(most) else None


def _stated(files: GgufFiles) -> str | None:
    value = files.metadata[FILE_TYPE].value if FILE_TYPE in files.metadata else None
    by_number = {ftype.number: name for name, ftype in FTYPES.items()}
    return by_number.get(value & ~GUESSED) if isinstance(value, int) else None


def _weights_by_type(files: GgufFiles) -> dict[str, int]:
    """Weights of matrices by type, the most frequent first; float32 only where there is nothing else."""
    counted: Counter[str] = Counter()
    for tensor in files.tensors.values():
        if len(tensor.shape) > 1:
            counted[tensor.type] += tensor.elements
    ordered = dict(counted.most_common())
    return {name: count for name, count in ordered.items() if name != "F32"} or ordered


def _like(default: str) -> set[str]:
    """A type and what takes its place in rows that are not whole blocks of it."""
    found = {default}
    while default in FALLBACKS:
        default = FALLBACKS[default]
        found.add(default)
    return found
