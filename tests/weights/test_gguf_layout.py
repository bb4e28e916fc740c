"""The bytes of a GGUF header beside gguf-py's, and the parts of a split model."""

import struct
from itertools import pairwise

import gguf_bytes as by
import pytest

from quantkit.errors import BadInputError, UsageError
from quantkit.weights import gguf_layout
from quantkit.weights.gguf_layout import layout, split_plan
from quantkit.weights.gguf_read import open_gguf, read_gguf
from quantkit.weights.gguf_types import GgufTensor, Value

MODEL = {"general.architecture": Value("string", "llama"), "n": Value("uint32", 7)}


def test_literal_bytes():
    metadata = {"n": Value("uint32", 7), "t": Value("string", ("a", "ö")), "general.architecture": Value("string", "x")}
    header = layout(metadata, [("w", (2, 64), "Q8_0"), ("v", (3,), "F32")], file_name="a.gguf")
    keys = [
        by.key("general.architecture", by.scalar("string", "x")),
        by.key("n", by.scalar("uint32", 7)),
        by.key("t", by.array("string", ["a", "ö"])),
    ]
    assert header.raw == by.gguf(keys, [by.tensor("w", [64, 2], by.Q8_0), by.tensor("v", [3], by.F32, 160)])
    start = len(header.raw)
    assert header.tensors == (
        GgufTensor("w", (2, 64), "Q8_0", "a.gguf", start),  # 136 bytes
        GgufTensor("v", (3,), "F32", "a.gguf", start + 160),
    )
    assert header.total_bytes == start + 160 + 32


def test_no_tensors_and_no_metadata(tmp_path):
    header = layout({}, [])
    assert (len(header.raw), header.total_bytes) == (32, 32)
    (tmp_path / "a.gguf").write_bytes(header.raw)
    assert read_gguf(tmp_path / "a.gguf").metadata == {}


def test_an_alignment_of_ones_own(tmp_path):
    header = layout(MODEL, [("v", (3,), "F32"), ("w", (1,), "F32")], alignment=128)
    assert all(tensor.offset % 128 == 0 for tensor in header.tensors)
    assert header.total_bytes % 128 == 0
    (tmp_path / "a.gguf").write_bytes(header.raw + bytes(header.total_bytes - len(header.raw)))
    file = read_gguf(tmp_path / "a.gguf")
    assert (file.alignment, tuple(file.tensors.values())) == (
        128,
        layout(MODEL, [("v", (3,), "F32"), ("w", (1,), "F32")], 128, "a.gguf").tensors,
    )
    assert list(file.metadata) == ["general.architecture", "general.alignment", "n"]
    assert layout({**MODEL, "general.alignment": Value("uint32", 64)}, [], 64).raw
    for alignment in (0, 24, -32):
        with pytest.raises(ValueError, match="power of two"):
            layout(MODEL, [], alignment)
    with pytest.raises(ValueError, match=r"general.alignment 64 in the metadata, expected the uint32 32"):
        layout({"general.alignment": Value("uint32", 64)}, [])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Value("uint8", 256), "no uint8"),
        (Value("uint32", -1), "no uint32"),
        (Value("int32", (1, 2**31)), "no int32"),
        (Value("int32", 1.5), "no int32"),
        (Value("float32", 1e300), "no float32"),
        (Value("float32", "1"), "no float32"),
        (Value("string", ("a", 1)), "of another type"),
        (Value("string", 1), "of another type"),
        (Value("bool", 1), "of another type"),
        (Value("bool", (True, 2)), "of another type"),
        (Value("float16", 1.0), "expected one of"),
    ],
)
def test_values_that_are_not_of_their_kind(value, message):
    with pytest.raises(ValueError, match=rf"key.*{message}"):
        layout({"key": value}, [])


def test_names_and_shapes_that_no_reader_would_take():
    for stated, message in (
        (("x" * 64, (1,), "F32"), "expected 1 to 63 bytes"),
        (("é" * 32, (1,), "F32"), "expected 1 to 63 bytes"),
        (("", (1,), "F32"), "expected 1 to 63 bytes"),
        (("w", (1, 1, 1, 1, 1), "F32"), "of 5 sizes, expected 1 to 4"),
        (("w", (), "F32"), "of 0 sizes, expected 1 to 4"),
        (("w", (32, 33), "Q8_0"), "rows of 33 weights, expected a multiple of 32 for Q8_0"),
    ):
        with pytest.raises(BadInputError, match=message):
            layout({}, [stated])
    with pytest.raises(BadInputError, match="tokens: found a text with half of a surrogate pair"):
        layout({"tokens": Value("string", ("\ud800",))}, [])
    with pytest.raises(ValueError, match="occurs twice"):
        layout({}, [("w", (1,), "F32")] * 2)
    with pytest.raises(ValueError, match="of type 'Q4_2', expected one of"):
        layout({}, [("w", (1,), "Q4_2")])


def write_parts(folder, parts):
    for part in parts:
        room = part.header.total_bytes - len(part.header.raw)
        (folder / part.file_name).write_bytes(part.header.raw + bytes(room))


TENSORS = [(f"t{number:02d}", (number % 5 + 1, 64), "F32") for number in range(20)]


@pytest.mark.parametrize("alignment", [32, 256])
@pytest.mark.parametrize("most", [1000, 1400, 1536, 2000, 3000, 9000])
def test_parts_are_as_full_as_the_limit_allows(tmp_path, most, alignment):
    parts = split_plan("m", MODEL, TENSORS, most, alignment)
    write_parts(tmp_path, parts)
    model = open_gguf(tmp_path / parts[0].file_name)
    assert [file.path.name for file in model.files] == [
        f"m-{n + 1:05d}-of-{len(parts):05d}.gguf" for n in range(len(parts))
    ]
    assert list(model.tensors) == [name for name, _, _ in TENSORS]
    assert model.metadata["n"] == Value("uint32", 7)
    assert all(file.alignment == alignment for file in model.files)
    assert all("general.architecture" not in file.metadata for file in model.files[1:])
    for part in parts:
        assert part.header.total_bytes == (tmp_path / part.file_name).stat().st_size
        assert part.header.total_bytes <= most or len(part.header.tensors) == 1
        assert part.header.tensors == tuple(
            open_gguf(tmp_path / part.file_name).tensors[t.name] for t in part.header.tensors
        )
    # The first tensor of a part would not have fitted into the part before.
    for before, after in pairwise(parts):
        keys = read_gguf(tmp_path / before.file_name).metadata
        names = [tensor.name for tensor in (*before.header.tensors, after.header.tensors[0])]
        assert layout(keys, [row for row in TENSORS if row[0] in names], alignment).total_bytes > most


def test_what_fits_is_not_split(monkeypatch):
    whole = layout(MODEL, TENSORS, file_name="m.gguf")
    for most in (None, whole.total_bytes, 2**40):
        (part,) = split_plan("m", MODEL, TENSORS, most)
        assert (part.file_name, part.header) == ("m.gguf", whole)
    assert len(split_plan("m", MODEL, TENSORS, whole.total_bytes - 1)) == 2
    (part,) = split_plan("m", MODEL, TENSORS[:1], 10)
    assert part.file_name == "m.gguf"
    monkeypatch.setattr(gguf_layout, "MAX_PARTS", 19)
    with pytest.raises(UsageError, match="found 20 parts of at most 1 bytes, expected up to 19"):
        split_plan("m", MODEL, TENSORS, 1)


def test_the_split_keys_of_llama_cpp():
    first, second = split_plan("m", MODEL, [("a", (64,), "F32"), ("b", (64,), "F32")], 500)

    def keys(number):
        return [
            by.key("split.no", by.scalar("uint16", number)),
            by.key("split.count", by.scalar("uint16", 2)),
            by.key("split.tensors.count", by.scalar("int32", 2)),
        ]

    own = [by.key("general.architecture", by.scalar("string", "llama")), by.key("n", by.scalar("uint32", 7))]
    assert first.header.raw == by.gguf(own + keys(0), [by.tensor("a", [64])])
    assert second.header.raw == by.gguf(keys(1), [by.tensor("b", [64])])
    assert struct.unpack_from("<QQ", second.header.raw, 8) == (1, 3)
