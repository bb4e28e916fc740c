"""Rounding to nearest: every weight lands on the nearest point of its grid."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import rtn_reference

from quantkit.methods import rtn
from quantkit.tensors import Grid

BITS = [2, 3, 4, 8]
ROUNDING = 2**-10  # of the largest code: a scale is stored in float16


@st.composite
def matrices(draw):
    rows, columns = draw(st.integers(1, 70)), draw(st.sampled_from([1, 31, 32, 96, 130]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    weight = torch.randn(rows, columns, generator=generator)
    weight = weight ** draw(st.sampled_from([1, 2, 3])) * 10.0 ** draw(st.integers(-4, 3))
    if draw(st.booleans()):
        weight[:, : columns // 2] = 0
    return weight.to(draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16])))


grids = st.builds(Grid, st.sampled_from(BITS), st.sampled_from([-1, 32, 64, 128]), st.booleans())
choices = st.sampled_from(["search", "minmax"])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(matrices(), grids, choices)
def test_every_weight_lands_on_the_nearest_point_of_its_grid(weight, grid, choice):
    q = rtn.quantize(weight, grid, choice)
    groups = grid.groups(weight.shape[1])
    assert q.codes.shape == weight.shape
    assert q.scale.shape == q.zero_point.shape == (groups, weight.shape[0])
    assert int(q.codes.max()) <= grid.max_code
    natural = torch.arange(weight.shape[1]) // grid.columns_per_group(weight.shape[1])
    assert torch.equal(q.group_index, natural.to(torch.int32))
    nearest = rtn_reference(weight, q.scale, q.zero_point, q.group_index, grid.bits)
    distance = (nearest.positions.clamp(0, grid.max_code) - q.codes).abs()
    assert distance.max() <= 0.5 + 1e-4
    index = q.group_index.long()
    by_hand = q.scale.double()[index].T * (q.codes.double() - q.zero_point.double()[index].T)
    torch.testing.assert_close(q.dequantize(), by_hand.float(), rtol=1e-6, atol=0)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(matrices(), grids)
def test_the_plain_range_keeps_every_weight_within_half_a_step(weight, grid):
    q = rtn.quantize(weight, grid, "minmax")
    step = q.scale.double()[q.group_index.long()].T.abs()
    error = (weight.double() - q.dequantize().double()).abs()
    # A scale below float16's normal numbers is itself rounded coarsely.
    room = 0.5 + grid.max_code * (ROUNDING + 2.0**-24 / step)
    assert (error <= step * room).all()


@pytest.mark.parametrize("bits", BITS)
def test_one_scale_per_row_is_the_scheme_of_xverse(bits):
    """scale = max|w_row| / (2**(bits-1) - 1), stored in half precision."""
    weight = torch.randn(500, 96, generator=torch.Generator().manual_seed(bits)).bfloat16()
    q = rtn.quantize(weight, Grid(bits, -1, True), "minmax")
    most = 2 ** (bits - 1) - 1
    expected = (weight.float().abs().amax(1) / most).half()
    assert torch.equal(q.scale, expected[None])
    codes = (weight.float() / expected.float()[:, None]).round().clamp(-most - 1, most)
    assert torch.equal(q.codes.int() - most - 1, codes.int())
    torch.testing.assert_close(q.dequantize(), codes * expected.float()[:, None], rtol=1e-6, atol=0)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_scheme_of_xverse_is_exact_to_the_last_bit_of_the_scale(bits):
    """Among many rows some quotients lie close to the middle between two half-precision numbers."""
    weight = torch.rand(100_000, 1, generator=torch.Generator().manual_seed(0))
    q = rtn.quantize(weight, Grid(bits, -1, True), "minmax")
    assert torch.equal(q.scale[0], (weight[:, 0] / (2 ** (bits - 1) - 1)).half())


@pytest.mark.parametrize("grid", [Grid(bits, size) for bits in BITS for size in (32, -1)], ids=str)
def test_what_was_rounded_once_stays_where_it_is(grid):
    weight = 0.05 * torch.randn(40, 128, generator=torch.Generator().manual_seed(0))
    once = rtn.quantize(weight, grid, "minmax")
    twice = rtn.quantize(once.dequantize(), grid, "minmax")
    assert torch.equal(twice.dequantize(), once.dequantize())


def test_the_weights_are_not_changed():
    weight = torch.randn(5, 64)
    before = weight.clone()
    rtn.quantize(weight, Grid(4, 32))
    assert torch.equal(weight, before)
