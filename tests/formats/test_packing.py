"""Packing against a reader of single bits, and against bytes written down by hand."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantkit.formats.packing import pack_columns, pack_rows, unpack_columns, unpack_rows

BITS = (2, 3, 4, 8)
SHAPES = ((1, 32), (32, 32), (33, 288), (96, 64), (130, 1056), (513, 96))


def naive_pack(values: list[int], bits: int) -> list[int]:
    """The bit stream spelled out: value i at bits [i * bits, (i + 1) * bits), cut into signed words."""
    stream = "".join(format(value, f"0{bits}b")[::-1] for value in values)
    words = [int(stream[start : start + 32][::-1], 2) for start in range(0, len(stream), 32)]
    return [word - 2**32 if word >= 2**31 else word for word in words]


def random_codes(shape: tuple[int, int], bits: int) -> torch.Tensor:
    return torch.randint(0, 2**bits, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(bits))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", SHAPES)
def test_rows_equal_the_bit_stream(shape, bits):
    codes = random_codes(shape, bits)
    expected = torch.tensor([naive_pack(row, bits) for row in codes.tolist()], dtype=torch.int32).T
    words = pack_rows(codes, bits)
    assert words.is_contiguous()
    assert torch.equal(words, expected)
    assert torch.equal(unpack_rows(words, bits), codes)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", SHAPES)
def test_columns_equal_the_bit_stream(shape, bits):
    values = random_codes(shape, bits)
    expected = torch.tensor([naive_pack(row, bits) for row in values.tolist()], dtype=torch.int32)
    words = pack_columns(values, bits)
    assert words.is_contiguous()
    assert torch.equal(words, expected)
    assert torch.equal(unpack_columns(words, bits), values)


@settings(deadline=None, max_examples=60)
@given(st.data(), st.sampled_from(BITS), st.integers(1, 5), st.integers(1, 70))
def test_round_trip(data, bits, chunks, rows):
    raw = data.draw(st.binary(min_size=32 * chunks, max_size=32 * chunks))
    row = np.frombuffer(raw, dtype=np.uint8) & np.uint8(2**bits - 1)
    codes = torch.from_numpy(np.stack([np.roll(row, shift) for shift in range(rows)]))
    assert torch.equal(unpack_rows(pack_rows(codes, bits), bits), codes)
    assert torch.equal(unpack_columns(pack_columns(codes, bits), bits), codes)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(BITS), st.integers(1, 3), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_every_word_survives(bits, chunks, rows, seed):
    words = torch.randint(
        -(2**31),
        2**31,
        (chunks * bits, rows),
        dtype=torch.int32,
        generator=torch.Generator().manual_seed(seed),
    )
    assert torch.equal(pack_rows(unpack_rows(words, bits), bits), words)


def test_4_bits_by_hand():
    codes = torch.zeros(32, 32, dtype=torch.uint8)
    codes[0] = torch.arange(32) % 16
    codes[1] = 5
    codes[31, 8] = 0xF
    words = torch.zeros(4, 32, dtype=torch.int32)
    words[:, 0] = torch.tensor([0x76543210, 0xFEDCBA98 - 2**32, 0x76543210, 0xFEDCBA98 - 2**32])
    words[:, 1] = 0x55555555
    words[1, 31] = 0x0000000F
    assert torch.equal(pack_rows(codes, 4), words)
    assert pack_rows(codes, 4)[:, 0].numpy().tobytes().hex() == "1032547698badcfe1032547698badcfe"


def test_3_bits_by_hand():
    codes = torch.zeros(32, 32, dtype=torch.uint8)
    codes[0] = torch.arange(32) % 8  # octal 76543210 four times: bytes 88 c6 fa
    codes[1, 10] = 7  # bits 30 to 32
    codes[2, 21] = 7  # bits 63 to 65
    codes[3, 31] = 5  # bits 93 to 95
    words = pack_rows(codes, 3)
    assert words.shape == (3, 32)
    assert words[:, 0].numpy().tobytes().hex() == "88c6fa88c6fa88c6fa88c6fa"
    assert words[:, 1].numpy().tobytes().hex() == "000000c0" + "01000000" + "00000000"
    assert words[:, 2].numpy().tobytes().hex() == "00000000" + "00000080" + "03000000"
    assert words[:, 3].numpy().tobytes().hex() == "00000000" + "00000000" + "000000a0"
    assert not words[:, 4:].any()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_code_too_large_leaves_its_neighbours_alone(bits):
    codes = random_codes((64, 96), bits)
    spoiled = codes.clone()
    spoiled[5, 40] |= 0xFF << bits & 0xFF
    assert torch.equal(unpack_rows(pack_rows(spoiled, bits), bits), codes)


def test_inputs_that_are_not_contiguous():
    codes = random_codes((64, 128), 4)
    assert torch.equal(pack_rows(codes[:, 32:96], 4), pack_rows(codes[:, 32:96].clone(), 4))
    words = pack_rows(codes, 4)
    assert torch.equal(unpack_rows(words[:, 10:20], 4), codes[10:20])


def test_two_threads_may_pack_at_once():
    codes = [random_codes((300 + i, 640), 3) for i in range(8)]
    with ThreadPoolExecutor(4) as pool:
        back = list(pool.map(lambda one: unpack_rows(pack_rows(one, 3), 3), codes))
    assert all(torch.equal(one, other) for one, other in zip(codes, back, strict=True))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pack_rows(torch.zeros(2, 33, dtype=torch.uint8), 4), "multiple of 32"),
        (lambda: pack_rows(torch.zeros(2, 32, dtype=torch.int32), 4), "found torch.int32"),
        (lambda: pack_rows(torch.zeros(2, 32, dtype=torch.uint8), 5), "2, 3, 4 or 8, not 5"),
        (lambda: unpack_rows(torch.zeros(4, 32, dtype=torch.int32), 3), "multiple of 3"),
        (lambda: unpack_columns(torch.zeros(4, 4, dtype=torch.int64), 4), "found torch.int64"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
