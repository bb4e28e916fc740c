"""What GGUF files are called: the stated file type where the tensors can be of it, else their types."""

import pytest

from quantkit.formats.gguf_label import nominal_bits, type_label
from quantkit.formats.mixture_tables import FTYPES
from quantkit.weights.gguf_read import GgufFiles
from quantkit.weights.gguf_types import GgufTensor, Value

MATRIX = (256, 256)


def files(stated, *types, kind="uint32"):
    metadata = {} if stated is None else {"general.file_type": Value(kind, stated)}
    tensors = {str(n): GgufTensor(str(n), (MATRIX[0] * (n + 1), MATRIX[1]), name) for n, name in enumerate(types)}
    tensors["norm"] = GgufTensor("norm", (10**6,), "F32")
    return GgufFiles((), metadata, tensors)


@pytest.mark.parametrize("name", FTYPES)
def test_every_file_type_is_called_by_its_name(name):
    ftype = FTYPES[name]
    found = files(ftype.number, ftype.default, "F32")
    assert type_label(found) == name
    bits = nominal_bits(found)
    assert bits == (None if name in ("F32", "F16", "BF16") else int("".join(c for c in name if c.isdigit())[0]))
    assert type_label(files(ftype.number | 1024, ftype.default)) == name  # as llama.cpp marks a guess


@pytest.mark.parametrize(
    ("stated", "types", "label", "bits"),
    [
        (None, ("Q4_K", "Q6_K"), "Q6_K, Q4_K", 6),  # the more frequent first
        (15, ("Q8_0", "F32"), "Q8_0", 8),  # no Q4_K_M, whatever it says
        (15, ("Q5_0", "Q8_0"), "Q4_K_M", 4),  # rows that are no whole blocks of Q4_K
        (15, ("F16",), "F16", None),
        (None, ("F32",), "F32", None),
        (None, ("F32", "BF16"), "BF16", None),
        (999, ("MXFP4", "F32"), "MXFP4", 4),
        (None, (), "F32", None),
    ],
)
def test_without_a_file_type_the_types_are_named(stated, types, label, bits):
    found = files(stated, *types)
    assert (type_label(found), nominal_bits(found)) == (label, bits)


def test_a_file_type_that_is_no_number_says_nothing():
    assert type_label(files("Q8_0", "Q4_K", kind="string")) == "Q4_K"
