"""The four tensors of a linear: planned, written, read back and compared."""

import dataclasses

import pytest
import torch

from quantkit.dtypes import DTYPE_NAMES
from quantkit.errors import BadInputError, QuantkitError
from quantkit.formats.gptq import checkpoint_format, decode, encode, tensors, verify
from quantkit.formats.packing import pack_columns, unpack_columns
from quantkit.tensors import Grid

BITS = (2, 3, 4, 8)
# D3 of the specification: int32 words of qzeros when all zero points are 2**(bits - 1).
SYMMETRIC_V1 = {
    2: [1431655765],
    3: [-613566757, -1227133514, 1840700269],
    4: [2004318071],
    8: [2139062143],
}
# The same in v2, as little-endian bytes; 3 bits are the words 0x24924924, 0x49249249, 0x92492492.
SYMMETRIC_V2 = {2: "aaaaaaaa", 3: "244992244992244992244992", 4: "88888888", 8: "80808080"}


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group_size", [32, 128, -1])
@pytest.mark.parametrize("bias", [False, True])
def test_the_plan_is_what_is_written(make_weight, bits, group_size, bias):
    grid = Grid(bits, group_size)
    written = encode(make_weight(64, 256, grid), "gptq")
    planned = tensors("model.layers.0.mlp.up_proj", 256, 64, grid, bias)
    found = [
        (f"model.layers.0.mlp.up_proj.{suffix}", DTYPE_NAMES[tensor.dtype], tuple(tensor.shape))
        for suffix, tensor in written.items()
    ]
    assert planned[:4] == found
    assert planned[4:] == ([("model.layers.0.mlp.up_proj.bias", "F16", (64,))] if bias else [])


def test_the_plan_by_hand():
    assert tensors("p", 160, 32, Grid(3, 128), False) == [
        ("p.qweight", "I32", (15, 32)),
        ("p.qzeros", "I32", (2, 3)),
        ("p.scales", "F16", (2, 32)),
        ("p.g_idx", "I32", (160,)),
    ]


@pytest.mark.parametrize(("in_features", "out_features"), [(48, 64), (64, 48)])
def test_sizes_that_cannot_be_packed(in_features, out_features):
    with pytest.raises(ValueError, match="divisible by 32"):
        tensors("p", in_features, out_features, Grid(4), False)


@pytest.mark.parametrize("bits", BITS)
def test_symmetric_zero_points_are_the_constants(make_weight, bits):
    weight = make_weight(96, 64, Grid(bits, 32))
    v1 = encode(weight, "gptq")["qzeros"]
    v2 = encode(weight, "gptq_v2")["qzeros"]
    repeat = 96 * bits // 32 // len(SYMMETRIC_V1[bits])
    assert v1.tolist() == [SYMMETRIC_V1[bits] * repeat] * 2
    assert v2[0].numpy().tobytes().hex() == SYMMETRIC_V2[bits] * repeat


def test_zero_points_by_hand(make_weight):
    grid = Grid(4, -1, symmetric=False)
    zero_point = (torch.arange(32) % 15 + 1).to(torch.uint8).reshape(1, 32)
    weight = dataclasses.replace(make_weight(32, 32, grid), zero_point=zero_point)
    v1 = [word & 0xFFFFFFFF for word in encode(weight, "gptq")["qzeros"][0].tolist()]
    v2 = [word & 0xFFFFFFFF for word in encode(weight, "gptq_v2")["qzeros"][0].tolist()]
    assert v1 == [0x76543210, 0x0EDCBA98, 0x87654321, 0x10EDCBA9]
    assert v2 == [0x87654321, 0x1FEDCBA9, 0x98765432, 0x21FEDCBA]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group_size", [32, 64, -1])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("stored_as", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("permuted", [False, True])
def test_round_trip(make_weight, bits, group_size, symmetric, stored_as, permuted):
    weight = make_weight(96, 192, Grid(bits, group_size, symmetric), permuted)
    written = encode(weight, stored_as)
    assert_same(decode(**written, bits=bits, checkpoint_format=stored_as), weight)
    verify(weight, written, stored_as)


def test_a_last_group_that_is_not_full(make_weight):
    weight = make_weight(32, 160, Grid(4, 64))
    assert weight.scale.shape[0] == 3
    assert_same(decode(**encode(weight, "gptq"), bits=4, checkpoint_format="gptq"), weight)


@pytest.mark.parametrize("bits", BITS)
def test_a_zero_point_of_zero(make_weight, bits):
    weight = make_weight(64, 64, Grid(bits, 32, symmetric=False))
    weight.zero_point[1, 7] = 0
    assert checkpoint_format(weight.grid) == "gptq_v2"
    written = encode(weight, "gptq_v2")
    assert_same(decode(**written, bits=bits, checkpoint_format="gptq_v2"), weight)
    verify(weight, written, "gptq_v2")
    with pytest.raises(ValueError, match=r'from 1 to \d+, found 0 to \d+; write "gptq_v2"'):
        encode(weight, "gptq")


def test_v1_refuses_a_zero_point_too_large(make_weight):
    weight = make_weight(64, 64, Grid(4, 32, symmetric=False))
    weight.zero_point[0, 0] = 16
    with pytest.raises(ValueError, match="found 1 to 16"):
        encode(weight, "gptq")


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_zero_points_of_zero_that_gptqmodel_wrote_as_v1(make_weight, bits):
    """It subtracts one from every field of a word at once, with borrows; adding to the word undoes them."""
    weight = make_weight(64, 64, Grid(bits, 32, symmetric=False))
    weight.zero_point[:, ::3] = 0
    written = encode(weight, "gptq_v2")
    written["qzeros"] -= sum(1 << shift for shift in range(0, 32, bits))
    assert_same(decode(**written, bits=bits, checkpoint_format="gptq"), weight)


def test_format_follows_symmetry():
    assert checkpoint_format(Grid(4)) == "gptq"
    assert checkpoint_format(Grid(4, symmetric=False)) == "gptq_v2"


def flip_a_bit(written):
    written["qweight"][3, 5] ^= 1 << 9


def zero_off_by_one(written):
    zeros = unpack_columns(written["qzeros"], 4)
    zeros[1, 6] += 1
    written["qzeros"] = pack_columns(zeros, 4)


def scale_one_percent_more(written):
    written["scales"][0, 2] *= 1.01


def swap_groups(written):
    written["g_idx"][0] = 1


def drop_scales(written):
    del written["scales"]


def scales_as_bf16(written):
    written["scales"] = written["scales"].to(torch.bfloat16)


def too_few_rows(written):
    written["qweight"] = written["qweight"][:-4]


def group_out_of_range(written):
    written["g_idx"][0] = 7


@pytest.mark.parametrize(
    ("spoil", "symmetric", "message"),
    [
        (flip_a_bit, True, r"qweight: 1 of 8192 values differ; first code at \[5, 26\]"),
        (flip_a_bit, False, r"qweight: 1 of 8192 values differ; first code at \[5, 26\]"),
        (zero_off_by_one, True, r"qzeros: 1 of 32 words.*\[1, 0\]: 0x78777777 written, 0x77777777 meant"),
        (zero_off_by_one, False, r"qzeros: 1 of 256 values differ; first zero point at \[1, 6\]"),
        (scale_one_percent_more, True, r"scales: 1 of 256 values differ; first scale at \[0, 2\]"),
        (swap_groups, True, r"g_idx: 1 of 128 values differ; first group at \[0\]: 1 written, 0 meant"),
        (drop_scales, True, "scales is missing"),
        (scales_as_bf16, True, "scales was written as torch.bfloat16"),
        (too_few_rows, True, "do not fit together"),
        (group_out_of_range, True, "groups 0 to 7, expected 0 to 3"),
    ],
)
def test_verify_names_what_differs(make_weight, spoil, symmetric, message):
    weight = make_weight(64, 128, Grid(4, 32, symmetric))
    stored_as = checkpoint_format(weight.grid)
    if not symmetric:
        weight.zero_point.clamp_(max=14)
    written = {suffix: tensor.clone() for suffix, tensor in encode(weight, stored_as).items()}
    verify(weight, {**written, "bias": torch.zeros(64)}, stored_as)
    spoil(written)
    with pytest.raises(QuantkitError, match=message):
        verify(weight, written, stored_as)


def test_verify_sees_the_other_format(make_weight):
    weight = make_weight(64, 128, Grid(4, 32))
    with pytest.raises(QuantkitError, match="0x88888888 written, 0x77777777 meant"):
        verify(weight, encode(weight, "gptq_v2"), "gptq")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 5}, "5 bits found"),
        ({"bits": 8}, "do not fit together"),
        ({"checkpoint_format": "marlin"}, "checkpoint_format is 'marlin'"),
        ({"qzeros": torch.zeros(4, 8, dtype=torch.int64)}, "qzeros is torch.int64"),
        ({"scales": torch.zeros(64)}, "do not fit together"),
        ({"g_idx": torch.full((128,), -1, dtype=torch.int32)}, "groups -1 to -1"),
    ],
)
def test_decode_refuses_what_does_not_fit(make_weight, change, message):
    written = encode(make_weight(64, 128, Grid(4, 32)), "gptq")
    with pytest.raises(BadInputError, match=message):
        decode(**{**written, "bits": 4, "checkpoint_format": "gptq", **change})


def assert_same(found, expected):
    assert found.grid == expected.grid
    for field in ("codes", "scale", "zero_point", "group_index"):
        assert torch.equal(getattr(found, field), getattr(expected, field)), field
        assert getattr(found, field).dtype == getattr(expected, field).dtype, field
