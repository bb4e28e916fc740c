"""A quantized linear as the four tensors of a GPTQ checkpoint, and back.

For a linear `P` of `in` input and `out` output features, `b` bits and groups of `g` columns:

    P.qweight  int32    [in * b / 32, out]            codes, packed along in
    P.qzeros   int32    [ceil(in / g), out * b / 32]  zero points, packed along out
    P.scales   float16  [ceil(in / g), out]
    P.g_idx    int32    [in]                          group of every column
    P.bias     float16  [out]                         only where the linear had one

    W[n, k] = scales[g_idx[k], n] * (q[k, n] - z[g_idx[k], n])

The layout is AutoGPTQ's. `checkpoint_format` says what qzeros hold: "gptq" (v1) the zero point minus one,
"gptq_v2" the zero point. No other file knows that.
"""

from collections.abc import Mapping
from typing import Literal, cast

import torch

from quantkit.errors import BadInputError, QuantkitError
from quantkit.formats.packing import pack_columns, pack_rows, unpack_columns, unpack_rows
from quantkit.tensors import Grid, QuantizedWeight

CheckpointFormat = Literal["gptq", "gptq_v2"]

# What every word of qzeros is when all zero points are 2**(bits - 1); 3 bits repeat after three words.
_SYMMETRIC_QZEROS: dict[tuple[str, int], tuple[int, ...]] = {
    ("gptq", 2): (0x55555555,),
    ("gptq", 3): (0xDB6DB6DB, 0xB6DB6DB6, 0x6DB6DB6D),
    ("gptq", 4): (0x77777777,),
    ("gptq", 8): (0x7F7F7F7F,),
    ("gptq_v2", 2): (0xAAAAAAAA,),
    ("gptq_v2", 3): (0x24924924, 0x49249249, 0x92492492),
    ("gptq_v2", 4): (0x88888888,),
    ("gptq_v2", 8): (0x80808080,),
}
# A one in every field of a word of v1 qzeros. 3-bit fields straddle words and are added one by one.
_ONES = {2: 0x55555555, 4: 0x11111111, 8: 0x01010101}
_DTYPES = {"qweight": torch.int32, "qzeros": torch.int32, "scales": torch.float16, "g_idx": torch.int32}


def checkpoint_format(grid: Grid) -> CheckpointFormat:
    """v1 for symmetric grids: every reader takes it. v2 for others: v1 cannot hold a zero point of 0."""
    return "gptq" if grid.symmetric else "gptq_v2"


def tensors(
    prefix: str, in_features: int, out_features: int, grid: Grid, bias: bool
) -> list[tuple[str, str, tuple[int, ...]]]:
    """What `encode` will produce, known before any weight is read.

    Args:
        prefix: the linear's full name, such as `model.layers.0.mlp.down_proj`.
        in_features: columns of the weight; divisible by 32.
        out_features: rows of the weight; divisible by 32.
        grid: bits and group size.
        bias: whether the linear has a bias; it is listed last, as float16.

    Returns:
        (name, dtype as in a safetensors header, shape) in file order.

    Raises:
        ValueError: a size is not divisible by 32.
    """
    _check_sizes(in_features, out_features)
    groups = grid.groups(in_features)
    planned: list[tuple[str, str, tuple[int, ...]]] = [
        (f"{prefix}.qweight", "I32", (in_features * grid.bits // 32, out_features)),
        (f"{prefix}.qzeros", "I32", (groups, out_features * grid.bits // 32)),
        (f"{prefix}.scales", "F16", (groups, out_features)),
        (f"{prefix}.g_idx", "I32", (in_features,)),
    ]
    return [*planned, (f"{prefix}.bias", "F16", (out_features,))] if bias else planned


def encode(weight: QuantizedWeight, checkpoint_format: CheckpointFormat) -> dict[str, torch.Tensor]:
    """The four tensors of a linear by suffix: qweight, qzeros, scales, g_idx, on the CPU.

    scales and g_idx may share memory with the weight.

    Raises:
        ValueError: a size is not divisible by 32, or v1 is asked to hold a zero point outside
            [1, 2**bits - 1], which readers would disagree about.
    """
    rows, columns = weight.codes.shape
    _check_sizes(columns, rows)
    zero_point = weight.zero_point.cpu()  # [groups, out_features] uint8
    if checkpoint_format == "gptq":
        if bool((zero_point == 0).any()) or bool((zero_point > weight.grid.max_code).any()):
            raise ValueError(
                f'checkpoint_format "gptq" holds zero points from 1 to {weight.grid.max_code}, found '
                f'{int(zero_point.min())} to {int(zero_point.max())}; write "gptq_v2"'
            )
        zero_point = zero_point - 1
    return {
        "qweight": pack_rows(weight.codes.cpu(), weight.grid.bits),
        "qzeros": pack_columns(zero_point, weight.grid.bits),
        "scales": weight.scale.to("cpu", torch.float16).contiguous(),
        "g_idx": weight.group_index.to("cpu", torch.int32).contiguous(),
    }


def decode(
    qweight: torch.Tensor,
    qzeros: torch.Tensor,
    scales: torch.Tensor,
    g_idx: torch.Tensor,
    bits: int,
    checkpoint_format: str,
) -> QuantizedWeight:
    """The inverse of `encode`, for our files and those of others.

    The grid is inferred: one group is group_size -1, otherwise the size is that of the fullest group;
    symmetric means that every zero point is 2**(bits - 1).

    Args:
        qweight: [in_features * bits / 32, out_features] int32.
        qzeros: [groups, out_features * bits / 32] int32.
        scales: [groups, out_features], any float; returned as float16.
        g_idx: [in_features] int32, in any order.
        bits: 2, 3, 4 or 8.
        checkpoint_format: "gptq" (v1) or "gptq_v2".

    Raises:
        BadInputError: shapes, types, bits, format or group numbers do not fit together.
    """
    stored = {"qweight": qweight, "qzeros": qzeros, "scales": scales, "g_idx": g_idx}
    _check_stored(stored, bits, checkpoint_format)
    zero_point = _zero_points(qzeros.cpu(), bits, checkpoint_format)
    group_index = g_idx.to("cpu", torch.int32)
    grid = Grid(
        bits=cast("Literal[2, 3, 4, 8]", bits),
        group_size=-1 if scales.shape[0] == 1 else int(torch.bincount(group_index).max()),
        symmetric=bool((zero_point == 2 ** (bits - 1)).all()),
    )
    scale = scales.to("cpu", torch.float16)
    return QuantizedWeight(unpack_rows(qweight.cpu(), bits), scale, zero_point, group_index, grid)


def verify(weight: QuantizedWeight, written: Mapping[str, torch.Tensor], checkpoint_format: str) -> None:
    """Compares tensors read back from disk with what was meant to be written, bit for bit.

    Args:
        weight: what the method computed.
        written: the linear's tensors by suffix; other suffixes (bias) are not looked at.
        checkpoint_format: "gptq" (v1) or "gptq_v2".

    Raises:
        QuantkitError: something is missing or differs; the message names the tensor, the first place and
            both values.
    """
    for suffix, dtype in _DTYPES.items():
        if suffix not in written:
            raise QuantkitError(f"{suffix} is missing from what was written")
        if written[suffix].dtype != dtype:
            raise QuantkitError(f"{suffix} was written as {written[suffix].dtype}, not {dtype}")
    bits = weight.grid.bits
    if weight.grid.symmetric:
        _check_symmetric(written["qzeros"], bits, checkpoint_format)
    stored = {suffix: written[suffix] for suffix in _DTYPES}
    read = decode(**stored, bits=bits, checkpoint_format=checkpoint_format)
    _check_same("qweight", "code", read.codes, weight.codes.cpu())
    _check_same("qzeros", "zero point", read.zero_point, weight.zero_point.cpu())
    _check_same("scales", "scale", read.scale, weight.scale.cpu())
    _check_same("g_idx", "group", read.group_index, weight.group_index.cpu())


def _check_sizes(in_features: int, out_features: int) -> None:
    if in_features % 32 or out_features % 32:
        raise ValueError(f"[{out_features}, {in_features}] is not divisible by 32, as GPTQ packing demands")


def _check_stored(stored: Mapping[str, torch.Tensor], bits: int, stored_as: str) -> None:
    """Refuses tensors that cannot belong to one linear, before any index is used."""
    if bits not in (2, 3, 4, 8):
        raise BadInputError(f"{bits} bits found, expected 2, 3, 4 or 8")
    if stored_as not in ("gptq", "gptq_v2"):
        raise BadInputError(f'checkpoint_format is {stored_as!r}, expected "gptq" or "gptq_v2"')
    found = {suffix: list(tensor.shape) for suffix, tensor in stored.items()}
    if [len(shape) for shape in found.values()] != [2, 2, 2, 1]:
        raise BadInputError(f"shapes of one linear do not fit together: {found}")
    (columns,), groups, rows = found["g_idx"], found["scales"][0], found["qweight"][1]
    expected = {
        "qweight": [columns * bits // 32, rows],
        "qzeros": [groups, rows * bits // 32],
        "scales": [groups, rows],
        "g_idx": [columns],
    }
    if found != expected or columns % 32 or rows % 32 or 0 in (columns, rows, groups):
        raise BadInputError(f"shapes of one {bits}-bit linear do not fit together: {found}, expected {expected}")
    for suffix in ("qweight", "qzeros", "g_idx"):
        if stored[suffix].dtype != torch.int32:
            raise BadInputError(f"{suffix} is {stored[suffix].dtype}, expected torch.int32")
    low, high = int(stored["g_idx"].min()), int(stored["g_idx"].max())
    if low < 0 or high >= groups:
        raise BadInputError(f"g_idx names groups {low} to {high}, expected 0 to {groups - 1}")


def _zero_points(qzeros: torch.Tensor, bits: int, stored_as: str) -> torch.Tensor:
    """Zero points [groups, out_features] uint8 of packed words.

    A v1 word gets its ones added as a whole, as transformers and gptqmodel do. That is the same as field by
    field unless a field is at its maximum; then it undoes the borrow that gptqmodel writes for zero points
    of 0.
    """
    if stored_as == "gptq_v2":
        return unpack_columns(qzeros, bits)
    if bits in _ONES:
        return unpack_columns(qzeros + _ONES[bits], bits)  # int32 wraps around
    return unpack_columns(qzeros, bits).add_(1).bitwise_and_(2**bits - 1)


def _check_symmetric(qzeros: torch.Tensor, bits: int, stored_as: str) -> None:
    words = torch.tensor(_SYMMETRIC_QZEROS[stored_as, bits], dtype=torch.int64).to(torch.int32)
    row = words.repeat(-(-qzeros.shape[-1] // len(words)))[: qzeros.shape[-1]]
    wrong = qzeros.cpu() != row
    if bool(wrong.any()):
        place = wrong.nonzero()[0].tolist()
        found, meant = int(qzeros[tuple(place)]) & 0xFFFFFFFF, int(row[place[-1]]) & 0xFFFFFFFF
        raise QuantkitError(
            f"qzeros: {int(wrong.sum())} of {wrong.numel()} words are not those of symmetric {bits} bits in "
            f"{stored_as}; first at {place}: 0x{found:08X} written, 0x{meant:08X} meant"
        )


def _check_same(suffix: str, unit: str, read: torch.Tensor, meant: torch.Tensor) -> None:
    if read.shape != meant.shape:
        raise QuantkitError(f"{suffix}: shape {list(read.shape)} written, {list(meant.shape)} meant")
    if torch.equal(read, meant):
        return
    wrong = read != meant
    place = wrong.nonzero()[0].tolist()
    raise QuantkitError(
        f"{suffix}: {int(wrong.sum())} of {wrong.numel()} values differ; first {unit} at {place}: "
        f"{read[tuple(place)].item()} written, {meant[tuple(place)].item()} meant"
    )
