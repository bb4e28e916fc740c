"""GGUF tensors made of rows of a checkpoint's tensors: any slab is the slab of the whole, and all of it comes back."""

import numpy as np
import pytest
import torch
from transformers.models.xglm.modeling_xglm import XGLMSinusoidalPositionalEmbedding

from quantkit.formats.gguf_transforms import (
    Assembly,
    Numbers,
    Part,
    Sines,
    assemble,
    disassemble,
    interleaved,
    sines,
    whole_heads,
)

RNG = np.random.default_rng(0)
SOURCES = {
    "q": RNG.standard_normal((24, 5), np.float32),
    "k": RNG.standard_normal((16, 5), np.float32),
    "experts": RNG.standard_normal((3, 8, 5), np.float32),
    "norm": RNG.standard_normal(7, np.float32),
    "gate": RNG.standard_normal((1, 7), np.float32),
}


def read(source, first, out):
    out[:] = SOURCES[source].reshape(-1)[first : first + out.size]


def permuted(weight, heads):
    """What llama.cpp's converter does to q and k, spelled out."""
    return weight.reshape(heads, 2, len(weight) // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def second_halves(experts):
    return np.concatenate([expert[4:] for expert in experts])


CASES = {
    "as it is": (Assembly(5, (Part("q", 24),)), SOURCES["q"]),
    "heads": (Assembly(5, (Part("q", 24, head_rows=8),)), permuted(SOURCES["q"], 3)),
    "one after the other": (
        Assembly(5, (Part("q", 24), Part("k", 16, head_rows=4))),
        np.concatenate([SOURCES["q"], permuted(SOURCES["k"], 4)]),
    ),
    "half of each expert": (
        Assembly(5, tuple(Part("experts", 4, 8 * expert + 4) for expert in range(3))),
        second_halves(SOURCES["experts"]),
    ),
    "one more": (Assembly(1, (Part("norm", 7),), addend=1.0), (SOURCES["norm"] + 1)[:, None]),
    "one more, scaled": (Assembly(1, (Part("norm", 7),), 1.0, 3.0), ((SOURCES["norm"] + 1) * 3)[:, None]),
    "a row as a vector": (Assembly(1, (Part("gate", 7),)), SOURCES["gate"].T),
    "numbers": (Assembly(1, (Numbers((1.0, 2.5, 4.0)),)), np.array([[1.0], [2.5], [4.0]], np.float32)),
    "sines": (Assembly(6, (Sines(9, 2),)), sines(2, 11, 6)),
}


@pytest.mark.parametrize("name", CASES)
def test_every_slab_is_a_slab_of_the_whole(name):
    assembly, whole = CASES[name]
    assert assembly.rows == len(whole)
    for first in range(len(whole)):
        for end in range(first + 1, len(whole) + 1):
            out = np.full((end - first, assembly.columns), np.nan, np.float32)
            assemble(assembly, first, end, read, out)
            assert np.array_equal(out, whole[first:end]), (first, end)


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name][0].sources])
def test_slabs_of_whole_heads_give_every_value_back(name):
    assembly, whole = CASES[name]
    found = {source: np.full(SOURCES[source].size, np.nan, np.float32) for source in assembly.sources}

    def write(source, first, values):
        found[source][first : first + values.size] = values

    step = whole_heads(assembly)
    assert step == {"heads": 8, "one after the other": 4}.get(name, 1)
    for first in range(0, len(whole), step):
        disassemble(assembly, first, whole[first : first + step].copy(), write)
    for source, values in found.items():
        expected = SOURCES[source].reshape(-1).copy()
        if name == "half of each expert":
            expected = np.where(np.isnan(values), np.nan, expected)
            assert np.isnan(values).sum() == expected.size // 2
        np.testing.assert_allclose(values, expected, rtol=1e-6, atol=1e-6)
        if not assembly.addend:
            assert np.array_equal(values, expected, equal_nan=True)


def test_interleaving_counts_from_the_head_that_holds_the_first_row():
    assert interleaved(0, 8, 8).tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    assert interleaved(9, 13, 4).tolist() == [2, 1, 3, 4]


@pytest.mark.parametrize(("columns", "zero"), [(64, None), (128, 5), (128, 1)])
def test_sines_are_those_of_transformers(columns, zero):
    expected = XGLMSinusoidalPositionalEmbedding.get_embedding(600, columns, zero)
    found = torch.from_numpy(sines(2, 600, columns, zero))
    assert torch.equal(found, expected[2:])
    assert bool(found[3].any()) == (zero != 5)
