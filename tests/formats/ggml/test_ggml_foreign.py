"""Blocks that llama.cpp wrote on another processor."""

import re
from pathlib import Path

import numpy as np
import pytest

from quantkit.formats.ggml.encode import encode
from quantkit.weights.gguf_types import GGML_TYPES

FOLDER = Path(__file__).parents[4] / "shared" / "data" / "fixtures" / "ggml_quants"
PAIRS = sorted(FOLDER.glob("*_expected.bin"))
pytestmark = [pytest.mark.real, pytest.mark.skipif(not PAIRS, reason="the shared data is not beside the checkout")]


def mulberry32(seed: int, count: int) -> np.ndarray:
    """The importance of the files: magnitudes of numbers in [-1, 1), made of 24 bits."""
    numbers = []
    for _ in range(count):
        seed = (seed + 0x6D2B79F5) % 2**32
        t = (seed ^ seed >> 15) * (seed | 1) % 2**32
        t ^= (t + (t ^ t >> 7) * (t | 61)) % 2**32
        numbers.append(abs((t ^ t >> 14) // 256 / 2**24 * 2 - 1))
    return np.array(numbers, np.float32) + np.float32(1e-3)


@pytest.mark.parametrize("path", PAIRS, ids=lambda path: path.stem)
def test_same_bytes(path):
    name, columns, variant = re.fullmatch(r"(\w+)_(\d+)_(im|noim)_expected", path.stem).groups()
    name, columns = name.upper(), int(columns)
    values = np.fromfile(str(path).replace("expected", "input"), np.float32).reshape(-1, columns)
    importance = mulberry32(2, columns) if variant == "im" else None
    expected = np.fromfile(path, np.uint8).reshape(len(values), GGML_TYPES[name].row_bytes(columns))
    assert np.array_equal(encode(name, values, importance), expected)
