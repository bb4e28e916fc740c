"""The best file type that fits: sizes against published ones, choices against the published order."""

import math
from typing import NamedTuple

import pytest

from quantkit.errors import UsageError
from quantkit.formats.ggml.native import NATIVE_TYPES
from quantkit.formats.mixture_tables import FTYPES
from quantkit.formats.mixtures import assign
from quantkit.plan.target_size import PUBLISHED_LOSS, Candidate, Shape, best_fitting, candidates, file_bytes
from quantkit.units import GIB
from quantkit.weights.gguf_types import GGML_TYPES


class Tensor(NamedTuple):
    name: str
    shape: tuple[int, ...]


LLAMA_3 = Shape(heads=32, kv_heads=8, layers=32, experts=0, architecture="llama")
BLOCK = {
    "attn_norm": (4096,), "attn_q": (4096, 4096), "attn_k": (1024, 4096), "attn_v": (1024, 4096),
    "attn_output": (4096, 4096), "ffn_norm": (4096,), "ffn_gate": (14336, 4096), "ffn_up": (14336, 4096),
    "ffn_down": (4096, 14336),
}  # fmt: skip
LLAMA_3_8B = [
    Tensor("token_embd.weight", (128256, 4096)),
    Tensor("output.weight", (128256, 4096)),
    Tensor("output_norm.weight", (4096,)),
    *(Tensor(f"blk.{layer}.{name}.weight", shape) for layer in range(32) for name, shape in BLOCK.items()),
]
OWN = frozenset(GGML_TYPES) - set(NATIVE_TYPES)


def of_llama_3(*, encodable=OWN, important=None, overrides=()):
    return candidates(
        LLAMA_3_8B, LLAMA_3, header_bytes=0, encodable=encodable, important=important, overrides=overrides
    )


def names(found):
    return [candidate.ftype for candidate in found]


# GiB, as llama.cpp's tools/quantize/README.md has them for Llama 3.1 8B
@pytest.mark.parametrize(
    ("ftype", "published"),
    [
        ("IQ1_S", 1.87), ("IQ1_M", 2.01), ("IQ2_XXS", 2.23), ("IQ2_XS", 2.42), ("IQ2_S", 2.56), ("IQ2_M", 2.74),
        ("IQ3_XXS", 3.04), ("IQ3_XS", 3.27), ("IQ3_S", 3.42), ("IQ3_M", 3.52), ("IQ4_XS", 4.17), ("IQ4_NL", 4.38),
        ("Q2_K_S", 2.78), ("Q2_K", 2.95), ("Q3_K_S", 3.41), ("Q3_K_M", 3.74), ("Q3_K_L", 4.02), ("Q4_K_S", 4.36),
        ("Q4_K_M", 4.58), ("Q5_K_S", 5.21), ("Q5_K_M", 5.33), ("Q6_K", 6.14), ("Q8_0", 7.95), ("F16", 14.96),
    ],
)  # fmt: skip
def test_sizes_are_those_that_llama_cpp_publishes(ftype, published):
    model = {"heads": 32, "kv_heads": 8, "layers": 32, "architecture": "llama"}
    types = assign(LLAMA_3_8B, ftype, **model, has_importance=ftype == "IQ3_XXS")
    assert file_bytes(LLAMA_3_8B, types, header_bytes=0) / GIB == pytest.approx(published, abs=0.01)


def test_size_of_a_file_by_hand():
    tensors = [Tensor("a", (3,)), Tensor("b", (2, 5, 32)), Tensor("c", (3, 32))]
    types = ["F32", "Q8_0", "Q4_0"]
    # 12 bytes, 10 blocks of 34, 3 blocks of 18; each on its own multiple of 32 or 64
    assert file_bytes(tensors, types, header_bytes=100) == 100 + 32 + 352 + 64
    assert file_bytes(tensors, types, header_bytes=100, alignment=64) == 100 + 64 + 384 + 64


def test_every_file_type_but_four_kinds_has_a_published_loss():
    assert set(FTYPES) - set(PUBLISHED_LOSS) == {"F32", "F16", "TQ1_0", "TQ2_0", "MXFP4_MOE"}


@pytest.mark.parametrize(
    ("target", "chosen"),
    [
        ("100GB", "BF16"), ("8.6GB", "Q8_0"), ("8.0GB", "Q6_K"), ("8.0GiB", "Q8_0"),
        ("5GB", "Q4_K_M"), ("4.7GB", "Q4_K_S"), ("4.67GB", "Q4_0"), ("3.2GB", "Q2_K"),
    ],
)  # fmt: skip
def test_the_best_that_fits_without_an_importance_matrix(target, chosen):
    assert best_fitting(target, of_llama_3()).ftype == chosen


@pytest.mark.parametrize(
    ("target", "chosen"), [("4.67GB", "IQ4_XS"), ("3.7GB", "IQ3_S"), ("3.2GB", "IQ2_M"), ("2.1GB", "IQ1_S")]
)
def test_the_best_that_fits_with_an_importance_matrix_and_ggml(target, chosen):
    everything = {tensor.name for tensor in LLAMA_3_8B}
    assert best_fitting(target, of_llama_3(encodable=GGML_TYPES, important=everything)).ftype == chosen


def test_a_file_of_exactly_the_size_fits_and_a_byte_less_does_not():
    found = of_llama_3()
    size = next(candidate.nbytes for candidate in found if candidate.ftype == "Q6_K")
    assert best_fitting(f"{size}", found).ftype == "Q6_K"
    assert best_fitting(f"{size - 1}", found).ftype == "Q5_K_M"


def test_the_header_counts():
    with_header = candidates(LLAMA_3_8B, LLAMA_3, header_bytes=10**9, encodable=OWN)
    for plain, larger in zip(of_llama_3(), with_header, strict=True):
        assert larger.nbytes - plain.nbytes == 10**9


def test_what_needs_something_that_is_not_there_is_no_candidate():
    everything = {tensor.name for tensor in LLAMA_3_8B}
    plain = names(of_llama_3())
    assert not set(plain) & {"IQ2_XS", "IQ3_M", "Q2_K_S", "IQ4_XS"}  # IQ4_XS: not measured without a matrix
    with_matrix = names(of_llama_3(important=everything))
    assert {"Q2_K_S", "IQ4_XS"} <= set(with_matrix)
    assert not set(with_matrix) & {"IQ2_XS", "IQ3_M"}
    with_ggml = names(of_llama_3(encodable=GGML_TYPES, important=everything))
    assert set(with_ggml) == set(PUBLISHED_LOSS)
    incomplete = everything - {"blk.3.ffn_up.weight"}
    assert not set(names(of_llama_3(encodable=GGML_TYPES, important=incomplete))) & {"IQ2_XS", "Q2_K_S"}


def test_overrides_change_the_sizes_and_leave_out_what_they_cannot_change():
    wished = {candidate.ftype: candidate.nbytes for candidate in of_llama_3(overrides=[("ffn_down", "Q8_0")])}
    plain = {candidate.ftype: candidate.nbytes for candidate in of_llama_3()}
    assert set(plain) - set(wished) == {"BF16"}
    rows = 32 * 4096
    assert wished["Q4_1"] - plain["Q4_1"] == rows * (14336 // 32) * (34 - 20)


def test_of_equal_losses_the_smaller_file_is_chosen():
    pair = [Candidate("Q5_1", 50, 0.1), Candidate("Q5_0", 40, 0.1)]
    assert best_fitting("60", pair).ftype == "Q5_0"


def test_nothing_fits():
    with pytest.raises(UsageError, match=r"nothing fits in 1\.00 GB: the smallest is Q2_K with 3\.1[0-9] GB") as caught:
        best_fitting("1GB", of_llama_3())
    assert caught.value.hint == (
        "raise --target-size; with --imatrix auto and the extra quantkit[ggml] there are smaller types"
    )
    everything = of_llama_3(encodable=GGML_TYPES, important={tensor.name for tensor in LLAMA_3_8B})
    with pytest.raises(UsageError, match="the smallest is IQ1_S") as caught:
        best_fitting("1GB", everything)
    assert caught.value.hint == "raise --target-size"


def test_nothing_can_be_made():
    impossible = of_llama_3(overrides=[("attn_q", "IQ2_XS")])
    assert impossible == ()
    with pytest.raises(UsageError, match="no file type can be made"):
        best_fitting("8GB", impossible)


def test_losses_are_in_order_and_a_matrix_never_hurts():
    best = [min(loss for loss in pair if loss is not None) for pair in PUBLISHED_LOSS.values()]
    assert best == sorted(best)
    assert all(math.isfinite(loss) for loss in best)
    assert all(pair[1] <= pair[0] for pair in PUBLISHED_LOSS.values() if None not in pair)
