"""Every encoder without a peer: what readers make of the blocks, how rows are shared out, what is refused."""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
from ggml_weights import F32, KINDS, importances, weights
from gguf import GGMLQuantizationType, quants

from quantkit.errors import BadInputError
from quantkit.formats.ggml import kquant_lines, native
from quantkit.formats.ggml.encode import can_encode, encode, requires_importance, warm
from quantkit.weights.gguf_types import GGML_TYPES

COLUMNS = 512
# Root mean square of the error over that of normal weights, without importance and with: a little above what is so.
ERRORS = {
    "F32": 0,
    "F16": 2.4e-4,
    "BF16": 1.9e-3,
    "Q4_0": 0.10,
    "Q4_1": 0.09,
    "Q5_0": 0.05,
    "Q5_1": 0.045,
    "Q8_0": 0.006,
    "Q2_K": 0.33,
    "Q3_K": 0.165,
    "Q4_K": 0.08,
    "Q5_K": 0.041,
    "Q6_K": 0.021,
    "IQ4_NL": 0.087,
    "IQ4_XS": 0.089,
}
TYPES = tuple(ERRORS)
SEARCHED = tuple(name for name in TYPES if "F" not in name and name != "Q8_0")
SIMPLE = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")  # gguf encodes these too


def decoded(name: str, blocks: np.ndarray) -> np.ndarray:
    return quants.dequantize(blocks, GGMLQuantizationType[name]).astype(F32)


@pytest.mark.parametrize("name", SIMPLE)
@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind not in ("subnormal", "zero")]
)  # gguf differs from ggml
def test_simple_types_equal_another_encoder(name, kind):
    values = weights(kind, 9, COLUMNS)
    with np.errstate(all="ignore"):
        expected = quants.quantize(values, GGMLQuantizationType[name])
    assert np.array_equal(encode(name, values), expected.view(np.uint8).reshape(len(values), -1))


@pytest.mark.parametrize("name", TYPES)
def test_error_of_what_is_read_back(name):
    values = weights("normal", 33, COLUMNS)
    for importance in (None, np.ones(COLUMNS, F32)):
        error = decoded(name, encode(name, values, importance)) - values
        assert np.sqrt((error**2).mean() / (values**2).mean()) <= ERRORS[name]


@pytest.mark.parametrize("name", SEARCHED)
@pytest.mark.parametrize("kind", ["normal", "student", "outliers"])
def test_importance_lowers_the_error_that_counts(name, kind):
    values, importance = weights(kind, 33, COLUMNS), importances(COLUMNS)["activations"]

    def error(given):
        return (importance * (decoded(name, encode(name, values, given)) - values) ** 2).sum()

    assert error(importance) < 0.9 * error(None) if kind != "outliers" else error(importance) <= error(None)


@pytest.mark.parametrize("name", TYPES)
def test_rows_may_be_shared_out_at_will(name):
    values = np.concatenate([weights(kind, 4, COLUMNS) for kind in KINDS])
    for importance in (None, importances(COLUMNS)["half-zero"]):
        whole = encode(name, values, importance)
        cuts = (0, 1, 3, 19, 20, 37, len(values))
        out = np.zeros_like(whole)
        with ThreadPoolExecutor(3) as pool:
            for first, end in pairwise(cuts):
                pool.submit(encode, name, values[first:end], importance, out[first:end])
        assert np.array_equal(out, whole)


@pytest.mark.parametrize("name", TYPES)
def test_zeros_stay_zeros(name):
    for importance in (None, np.zeros(COLUMNS, F32), np.ones(COLUMNS, F32)):
        assert not decoded(name, encode(name, np.zeros((3, COLUMNS), F32), importance)).any()


@pytest.mark.parametrize("name", TYPES)
def test_what_is_not_finite_ends_nothing_and_stays_in_its_block(name):
    values = weights("normal", 4, COLUMNS)
    spoiled = values.copy()
    spoiled[1, 3], spoiled[2, 5], spoiled[2, 6] = np.nan, np.inf, -np.inf
    for importance in (None, np.ones(COLUMNS, F32)):
        whole, partly = encode(name, values, importance), encode(name, spoiled, importance)
        assert np.array_equal(whole[[0, 3]], partly[[0, 3]])


def test_rows_that_may_not_be_written_to_are_read_without_another_compilation():
    values, importance = weights("normal", 2, COLUMNS), np.ones(COLUMNS, F32)
    warm(["Q4_K"], importance=True)
    values.flags.writeable = importance.flags.writeable = False
    expected = encode("Q4_K", values.copy(), importance.copy())
    assert np.array_equal(encode("Q4_K", values, importance), expected)
    assert len(kquant_lines._encode.signatures) == 1


def test_no_rows():
    assert encode("Q4_K", np.empty((0, 256), F32)).shape == (0, 144)


def test_types():
    assert all(can_encode(name) for name in (*TYPES, *native.NATIVE_TYPES))
    assert not can_encode("I32")
    assert {name for name in GGML_TYPES if requires_importance(name)} == {"IQ1_S", "IQ2_XS", "IQ2_XXS"}


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("Q9_K", (np.zeros((1, 256), F32),), "found the type Q9_K, expected one of F32"),
        ("Q4_K", (np.zeros((1, 96), F32),), "found rows of 96 weights, expected a multiple of 256 for Q4_K"),
        ("Q4_K", (np.zeros((1, 256)),), r"found float64 \[1, 256\], expected contiguous float32 \[rows, columns\]"),
        ("Q4_K", (np.zeros((2, 512), F32)[:, :256],), r"found float32 \[2, 256\], expected contiguous"),
        (
            "Q4_K",
            (np.zeros((1, 256), F32), np.ones(255, F32)),
            r"of float32 \[255\], expected float32 \[256\]",
        ),
        ("Q4_K", (np.zeros((1, 256), F32), np.full(256, -1, F32)), "negative or not finite"),
        ("Q4_K", (np.zeros((1, 256), F32), np.full(256, np.inf, F32)), "negative or not finite"),
        ("Q4_K", (np.zeros((1, 256), F32), None, np.zeros((1, 143), np.uint8)), r"found uint8 \[1, 143\] to write to"),
        ("IQ2_XXS", (np.zeros((1, 256), F32),), "IQ2_XXS needs the importance of columns"),
    ],
)
def test_refused(name, arguments, message):
    with pytest.raises(BadInputError, match=message):
        encode(name, *arguments)
