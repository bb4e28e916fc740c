"""What a GGUF file is made of: ggml's tensor types, typed metadata values, and described tensors."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from quantkit.errors import BadInputError

ALIGNMENT = 32  # bytes; where the metadata names no other


@dataclass(frozen=True)
class GgmlType:
    """How ggml stores a row: blocks of so many weights in so many bytes."""

    name: str
    number: int  # in the file
    block: int  # weights
    block_bytes: int

    def row_bytes(self, columns: int) -> int:
        """Bytes of a row.

        Raises:
            BadInputError: the row is not made of whole blocks.
        """
        if columns % self.block:
            raise BadInputError(f"found rows of {columns} weights, expected a multiple of {self.block} for {self.name}")
        return columns // self.block * self.block_bytes


GGML_TYPES: dict[str, GgmlType] = {
    name: GgmlType(name, number, block, block_bytes)
    for name, number, block, block_bytes in (
        ("F32", 0, 1, 4),
        ("F16", 1, 1, 2),
        ("Q4_0", 2, 32, 18),
        ("Q4_1", 3, 32, 20),
        ("Q5_0", 6, 32, 22),
        ("Q5_1", 7, 32, 24),
        ("Q8_0", 8, 32, 34),
        ("Q2_K", 10, 256, 84),
        ("Q3_K", 11, 256, 110),
        ("Q4_K", 12, 256, 144),
        ("Q5_K", 13, 256, 176),
        ("Q6_K", 14, 256, 210),
        ("IQ2_XXS", 16, 256, 66),
        ("IQ2_XS", 17, 256, 74),
        ("IQ3_XXS", 18, 256, 98),
        ("IQ1_S", 19, 256, 50),
        ("IQ4_NL", 20, 32, 18),
        ("IQ3_S", 21, 256, 110),
        ("IQ2_S", 22, 256, 82),
        ("IQ4_XS", 23, 256, 136),
        ("I8", 24, 1, 1),
        ("I16", 25, 1, 2),
        ("I32", 26, 1, 4),
        ("I64", 27, 1, 8),
        ("F64", 28, 1, 8),
        ("IQ1_M", 29, 256, 56),
        ("BF16", 30, 1, 2),
        ("TQ1_0", 34, 256, 54),
        ("TQ2_0", 35, 256, 66),
        ("MXFP4", 39, 32, 17),
    )
}


# What a metadata value can be: the number of its type in the file, and struct's letter for it.
KINDS: dict[str, tuple[int, str]] = {
    "uint8": (0, "B"),
    "int8": (1, "b"),
    "uint16": (2, "H"),
    "int16": (3, "h"),
    "uint32": (4, "I"),
    "int32": (5, "i"),
    "float32": (6, "f"),
    "bool": (7, "?"),
    "string": (8, "Q"),  # its length; the text follows
    "uint64": (10, "Q"),
    "int64": (11, "q"),
    "float64": (12, "d"),
}
ARRAY = 9  # the type of many values: their type, their number, and they themselves


@dataclass(frozen=True)
class Value:
    """A metadata value with the type that the file gives it; a tuple is an array of that type."""

    kind: str  # a key of KINDS
    value: int | float | bool | str | Sequence[int] | Sequence[float] | Sequence[bool] | Sequence[str]

    @property
    def is_array(self) -> bool:
        """Whether it holds many items."""
        return not isinstance(self.value, (int, float, bool, str))


@dataclass(frozen=True)
class GgufTensor:
    """A tensor of a GGUF file, described."""

    name: str
    shape: tuple[int, ...]  # rows first, as torch has it; the file stores the sizes in reverse
    type: str  # a key of GGML_TYPES
    file: str = ""  # name inside the folder
    offset: int = 0  # first byte inside the file

    @property
    def elements(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        columns = self.shape[-1] if self.shape else 1
        rows = self.elements // columns if columns else 0
        return rows * GGML_TYPES[self.type].row_bytes(columns)
