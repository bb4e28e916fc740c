"""The plain values that every room shares: a tensor on disk, a source of them, a quantized weight."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:  # a header is read, and may be refused, long before torch could be loaded
    import torch

# The dtypes that a safetensors header may name, with the bytes of a value. Everything else is refused on reading.
ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
FLOATS = ("F64", "F32", "F16", "BF16")  # what weights may be stored in


@dataclass(frozen=True)
class TensorInfo:
    """What is known of a tensor before its bytes are read."""

    name: str
    dtype: str  # a key of ITEM_BYTES
    shape: tuple[int, ...]
    file: str  # name inside the checkpoint folder
    offset: int = 0  # first byte inside the file

    @property
    def elements(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that the values take in the file."""
        return self.elements * ITEM_BYTES[self.dtype]


class TensorSource(Protocol):
    """A checkpoint as a table of tensors, each read when asked for."""

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        """Every tensor by name."""

    def read(self, name: str) -> "torch.Tensor":
        """The tensor in its stored dtype, in memory of its own (never a mapped page)."""


@dataclass(frozen=True)
class Grid:
    """The affine grid `scale * (code - zero_point)` of one linear."""

    bits: Literal[2, 3, 4, 8]
    group_size: int = 128  # -1: one group over all of in_features
    symmetric: bool = True

    @property
    def max_code(self) -> int:
        """The largest code, `2**bits - 1`."""
        return int(2**self.bits - 1)

    def groups(self, in_features: int) -> int:
        """Number of groups along in_features."""
        return 1 if self.group_size == -1 else -(-in_features // self.group_size)

    def columns_per_group(self, in_features: int) -> int:
        """Columns that share a scale."""
        return in_features if self.group_size == -1 else self.group_size


@dataclass(frozen=True)
class QuantizedWeight:
    """What a method hands to a format: the integers that were computed, never a rounded float.

    The weight is `scale[g, row] * (codes[row, column] - zero_point[g, row])` with
    `g = group_index[column]`.
    """

    codes: "torch.Tensor"  # [out_features, in_features] uint8
    scale: "torch.Tensor"  # [groups, out_features] float16
    zero_point: "torch.Tensor"  # [groups, out_features] uint8
    group_index: "torch.Tensor"  # [in_features] int32
    grid: Grid

    def dequantize(self, dtype: "torch.dtype | None" = None) -> "torch.Tensor":
        """The weight [out_features, in_features] that a runtime computes with, by default in float32."""
        import torch

        # In place on one float copy: this runs for every linear, beside a Hessian.
        weight = self.codes.to(torch.float32)  # [out_features, in_features] fp32
        columns = self.codes.shape[1]
        groups = self.scale.shape[0]
        size = -(-columns // groups)
        if torch.equal(self.group_index.cpu(), torch.arange(columns, dtype=torch.int32) // size):
            for group in range(groups):
                part = weight[:, group * size : (group + 1) * size]
                part.sub_(self.zero_point[group].unsqueeze(1)).mul_(self.scale[group].float().unsqueeze(1))
        else:
            index = self.group_index.long()
            weight.sub_(self.zero_point[index].T).mul_(self.scale[index].T.float())
        return weight.to(dtype or torch.float32)
