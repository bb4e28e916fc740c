"""Packing and rounding, against bits spelled out and against numpy and torch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from quantkit.formats.ggml.encode import encode
from quantkit.formats.ggml.packing import pack, pack_neighbours
from quantkit.formats.ggml.rounding import as_half, away, nearest, nearest_byte, put_bytes, rounded, truncated
from quantkit.formats.ggml.superblocks import gather
from quantkit.formats.ggml.vectors import LANES, highest, load, root, select, some, store, tile

F32 = np.float32
FLOATS = st.floats(width=32)
LAYOUTS = ((0, 4, 32), (0, 4, 16), (0, 4, 64), (0, 2, 32), (2, 1, 32), (4, 1, 32), (4, 2, 32))  # shift, bits, stride


@njit
def _pack(codes, shift, bits, stride, out, start):
    pack(codes, shift, bits, stride, out, start)


@njit
def _pack_neighbours(codes, shift, out, start):
    pack_neighbours(codes, shift, out, start)


@njit
def _apply(x, y, out, whole):
    """A row of `out` for each function of a row of x and one of y."""
    v, u = load(x, 0), load(y, 0)
    store(out, 0, nearest(v))
    store(out, 1, rounded(v))
    store(out, 2, nearest_byte(v))
    store(out, 3, truncated(v))
    store(out, 4, away(v))
    store(out, 5, as_half(v))
    store(out, 6, select(v < u, v + u, v * u))
    store(out, 7, select((v >= u) & (v != u), v / u, -v))
    store(out, 8, root(abs(v)))
    put_bytes(whole, 0, nearest_byte(v))
    return highest(v), some(v > u)


@njit
def _gather(values, first, start, x):
    gather(values, first, start, x)


def applied(numbers, others=(0.0,)):
    x, y, out = tile(1), tile(1), tile(9)
    x[0], y[0] = np.resize(F32(numbers), LANES), np.resize(F32(others), LANES)
    whole = np.zeros(LANES, np.uint8)
    return x[0], y[0], out, whole, _apply(x, y, out, whole)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(LAYOUTS), st.integers(1, 2), st.integers(0, 3), st.randoms(use_true_random=False))
def test_pack_equals_the_bits_spelled_out(layout, chunks, start, random):
    shift, bits, stride = layout
    planes = 8 // bits
    codes = np.array([random.randrange(256) for _ in range(chunks * planes * stride)], np.uint8)
    out = np.zeros(start + chunks * stride, np.uint8)
    _pack(codes.view(np.uint64), shift, bits, stride, out, start)
    for chunk in range(chunks):
        for i in range(stride):
            taken = [int(codes[(chunk * planes + plane) * stride + i]) >> shift for plane in range(planes)]
            expected = "".join(format(code & (2**bits - 1), f"0{bits}b") for code in reversed(taken))
            assert format(out[start + chunk * stride + i], "08b") == expected
    assert not out[:start].any()


@settings(deadline=None, max_examples=30)
@given(st.binary(min_size=32, max_size=32), st.integers(0, 7), st.integers(0, 3))
def test_neighbours_lie_side_by_side(raw, shift, start):
    codes, out = np.frombuffer(raw, np.uint8).copy(), np.zeros(start + 4, np.uint8)
    _pack_neighbours(codes.view(np.uint64), shift, out, start)
    assert np.array_equal(np.unpackbits(out[start:], bitorder="little"), codes >> shift & 1)


def test_every_float16_and_the_numbers_halfway():
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(F32)
    finite = np.sort(halves[np.isfinite(halves)])
    middles = (finite[:-1] + finite[1:]) / 2
    beside = [np.nextafter(middles, F32(side)) for side in (-np.inf, np.inf)]
    ends = F32([65504, 65519.996, 65520, 1e30, np.inf, 1e-45, 2**-25, 2**-25 + 2**-40])
    numbers = np.concatenate([finite, middles, *beside, ends, -ends])[None]
    with np.errstate(over="ignore"):
        expected = numbers.astype(np.float16)
    assert np.array_equal(encode("F16", numbers).view(np.uint16), expected.view(np.uint16))
    assert np.isnan(encode("F16", F32([[np.nan]])).view(np.float16)).all()


@settings(deadline=None)
@given(st.lists(FLOATS, min_size=1, max_size=40))
def test_bfloat16_equals_torch(numbers):
    values = np.array([numbers], F32)
    ours = encode("BF16", values).view(np.uint16).astype(np.uint32) << 16
    expected = torch.from_numpy(values).to(torch.bfloat16).float().numpy()
    assert np.array_equal(ours.view(F32), expected, equal_nan=True)


@settings(deadline=None)
@given(st.lists(FLOATS, min_size=1, max_size=LANES), st.lists(FLOATS, min_size=1, max_size=LANES))
def test_vectors_do_what_numpy_does(numbers, others):
    v, u, out, _, (highest_lane, any_above) = applied(numbers, others)
    with np.errstate(all="ignore"):
        assert np.array_equal(out[6], np.where(v < u, v + u, v * u), equal_nan=True)
        assert np.array_equal(out[7], np.where(v > u, v / u, -v), equal_nan=True)
        assert np.array_equal(out[8], np.sqrt(abs(v)), equal_nan=True)
        assert np.array_equal(out[5], v.astype(np.float16).astype(F32), equal_nan=True)
    assert bool(any_above) == bool((v > u).any())
    if not np.isnan(v).any():
        assert highest_lane == v.max()


@settings(deadline=None)
@given(
    st.lists(st.floats(-4e6, 4e6, width=32) | st.integers(-600, 600).map(lambda n: n / 2), min_size=1, max_size=LANES)
)
def test_rounding_to_whole_numbers(numbers):
    v, _, out, whole, _ = applied(numbers)
    assert np.array_equal(out[0], np.rint(v))
    assert np.array_equal(out[1], np.rint(v))
    assert np.array_equal(out[2], np.rint(v).astype(np.int64) % 256)
    assert np.array_equal(whole, out[2])
    assert np.array_equal(out[3], np.trunc(v))
    small = abs(v) < 2**21  # beyond, half a unit is lost in the sum
    assert np.array_equal(out[4][small], (np.sign(v) * np.floor(abs(v.astype(np.float64)) + 0.5))[small])


@pytest.mark.parametrize("number", [np.nan, -np.nan, np.inf, -np.inf, 3e9, -3e9, 1e38])
def test_what_no_integer_holds(number):
    _, _, out, _, _ = applied([number])
    bits = (F32(number) + F32(12582912)).view(np.int32)
    assert (out[0] == (int(bits) & 0x7FFFFF) - 0x400000).all()
    assert (out[3] == 0).all()
    assert (out[4] == 0).all()


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 40])
def test_gather_transposes(rows):
    values = np.arange(rows * 96, dtype=F32).reshape(rows, 96)
    for first in range(0, rows, LANES):
        x = tile(32)
        x[:] = -1
        _gather(values, first, 64, x)
        expected = np.zeros((32, LANES), F32)
        part = values[first : first + LANES, 64:].T
        expected[:, : part.shape[1]] = part
        assert np.array_equal(x, expected)
