"""Blocks of GGUF tensors as values: the plain types bit for bit, a block type by its formula, no type that is none."""

import gguf
import numpy as np
import pytest
import torch

from quantkit.errors import BadInputError
from quantkit.formats.gguf_values import dequantize
from quantkit.weights.gguf_types import GGML_TYPES

VALUES = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("name", "dtype"), [("F32", torch.float32), ("F16", torch.float16), ("BF16", torch.bfloat16)])
def test_plain_types_lose_nothing(name, dtype):
    stored = VALUES.to(dtype)
    found = dequantize(name, stored.view(torch.uint8).numpy())
    assert found.dtype == np.float32
    assert torch.equal(torch.from_numpy(found), stored.float())


def test_a_block_of_eight_bits_is_a_scale_times_its_codes():
    blocks = gguf.quants.quantize(VALUES.numpy(), gguf.GGMLQuantizationType.Q8_0)
    rows = blocks.reshape(3, 2, 34)
    scale = rows[..., :2].copy().view(np.float16).astype(np.float32)
    expected = (scale * rows[..., 2:].view(np.int8)).reshape(3, 64)
    assert np.array_equal(dequantize("Q8_0", blocks), expected)


@pytest.mark.parametrize("name", [name for name in GGML_TYPES if name not in ("I8", "I16", "I32", "I64", "F64")])
def test_every_type_of_weights_is_read_in_rows(name):
    blocks = np.random.default_rng(0).integers(0, 256, (4, GGML_TYPES[name].row_bytes(512)), dtype=np.uint8)
    whole = dequantize(name, blocks)
    assert whole.shape == (4, 512)
    assert whole.dtype == np.float32
    np.testing.assert_array_equal(dequantize(name, blocks[1:2]), whole[1:2])
    assert len(np.unique(whole[0])) > 2


@pytest.mark.parametrize("name", ["I32", "F64"])
def test_integers_and_doubles_are_no_weights(name):
    with pytest.raises(BadInputError, match=f"a tensor of type {name}, which holds no weights"):
        dequantize(name, np.zeros((1, 64), np.uint8))
