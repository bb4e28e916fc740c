"""GGUF files in: hand-made bytes, split files, rows of tensors."""

import os
import random

import gguf_bytes as by
import numpy as np
import pytest

from quantkit.errors import BadInputError, NotFoundError
from quantkit.weights import gguf_header
from quantkit.weights.gguf_read import open_gguf, read_gguf, read_tensor
from quantkit.weights.gguf_types import GGML_TYPES, GgufTensor, Value

SCALARS = {
    "uint8": 255, "int8": -128, "uint16": 65535, "int16": -32768, "uint32": 2**32 - 1, "int32": -(2**31),
    "float32": 0.5, "bool": True, "string": "größe", "uint64": 2**64 - 1, "int64": -(2**63), "float64": 1e300,
}  # fmt: skip


@pytest.mark.parametrize("version", [2, 3])
def test_every_kind_of_value(tmp_path, version):
    path = tmp_path / "a.gguf"
    keys = [by.key(f"one.{kind}", by.scalar(kind, value)) for kind, value in SCALARS.items()]
    keys += [by.key(f"some.{kind}", by.array(kind, [value] * 3)) for kind, value in SCALARS.items()]
    keys += [by.key(f"none.{kind}", by.array(kind, [])) for kind in SCALARS]
    path.write_bytes(by.gguf(keys, version=version))
    file = read_gguf(path)
    assert (file.version, file.alignment, file.size, file.tensors) == (version, 32, path.stat().st_size, {})
    assert file.metadata == {
        **{f"one.{kind}": Value(kind, value) for kind, value in SCALARS.items()},
        **{f"some.{kind}": Value(kind, (value,) * 3) for kind, value in SCALARS.items()},
        **{f"none.{kind}": Value(kind, ()) for kind in SCALARS},
    }
    assert type(file.metadata["one.bool"].value) is bool


def test_the_place_of_every_tensor(tmp_path):
    path = tmp_path / "a.gguf"
    rows = [
        by.tensor("b.weight", [32, 5], by.Q4_0, 0),  # 90 bytes
        by.tensor("a.weight", [3], by.F32, 128),
        by.tensor("none", [0, 7], by.F32, 192),
        by.tensor("one", [], by.F32, 192),
        by.tensor("four", [32, 1, 2, 3], by.Q8_0, 256),  # 204 bytes
    ]
    key = by.key("general.alignment", by.scalar("uint32", 64))
    raw = by.gguf([key], rows, bytes(256 + 204), alignment=64)
    path.write_bytes(raw)
    file = read_gguf(path)
    start = len(raw) - 460
    assert file.alignment == 64
    assert list(file.tensors.values()) == [
        GgufTensor("b.weight", (5, 32), "Q4_0", "a.gguf", start),
        GgufTensor("a.weight", (3,), "F32", "a.gguf", start + 128),
        GgufTensor("none", (7, 0), "F32", "a.gguf", start + 192),
        GgufTensor("one", (), "F32", "a.gguf", start + 192),
        GgufTensor("four", (3, 2, 1, 32), "Q8_0", "a.gguf", start + 256),
    ]
    assert list(file.tensors) == ["b.weight", "a.weight", "none", "one", "four"]
    path.write_bytes(raw[:-1])
    with pytest.raises(BadInputError, match=rf"a.gguf: found a file of {len(raw) - 1} bytes, expected at least"):
        read_gguf(path)


def test_every_type_has_its_size(tmp_path):
    """Sizes of ggml's own table, by another hand: gguf-py."""
    gguf = pytest.importorskip("gguf")
    for name, ggml in GGML_TYPES.items():
        number = gguf.GGMLQuantizationType[name]
        assert (ggml.number, ggml.block, ggml.block_bytes) == (number.value, *gguf.GGML_QUANT_SIZES[number])


@pytest.mark.parametrize("first", [1, 7, 24, 100])
def test_texts_across_the_edges_of_what_was_read(tmp_path, monkeypatch, first):
    monkeypatch.setattr(gguf_header, "FIRST_BYTES", first)
    texts = tuple("é" * random.Random(7).randrange(40) + str(number) for number in range(300))
    path = tmp_path / "a.gguf"
    path.write_bytes(by.gguf([by.key("k", by.array("string", texts)), by.key("n", by.array("int64", range(99)))]))
    assert read_gguf(path).metadata == {"k": Value("string", texts), "n": Value("int64", tuple(range(99)))}


def test_no_byte_of_a_tensor_is_read(tmp_path, monkeypatch):
    path = tmp_path / "a.gguf"
    raw = by.gguf(tensors=[by.tensor("a", [2**38], by.F32)])
    path.write_bytes(raw)
    os.truncate(path, len(raw) + 2**40)  # takes no room; reading it would take hours
    tensor = read_gguf(path).tensors["a"]
    assert (tensor.nbytes, tensor.offset) == (2**40, len(raw))
    assert read_tensor(path, GgufTensor("a", (2**20, 2**18), "F32", "a.gguf", len(raw)), 2**20 - 1).shape == (1, 2**20)


@pytest.fixture
def rows(tmp_path):
    """A Q8_0 tensor of [2, 3, 64] with recognizable bytes, behind another one."""
    path = tmp_path / "a.gguf"
    data = np.random.default_rng(0).integers(0, 256, (6, 68), np.uint8)
    tensors = [by.tensor("other", [8]), by.tensor("a", [64, 3, 2], by.Q8_0, 32)]
    path.write_bytes(by.gguf(tensors=tensors, data=bytes(32) + data.tobytes()))
    return path, read_gguf(path).tensors["a"], data


def test_rows_of_a_tensor(rows):
    path, tensor, data = rows
    assert np.array_equal(read_tensor(path, tensor), data)
    assert np.array_equal(read_tensor(path, tensor, 2, 5), data[2:5])
    assert read_tensor(path, tensor, 3, 3).shape == (0, 68)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        out = np.zeros((6, 68), np.uint8)
        assert read_tensor(descriptor, tensor, 4, out=out[4:]).base is out
        assert np.array_equal(out[4:], data[4:])
        assert not out[:4].any()
    finally:
        os.close(descriptor)


def test_rows_that_cannot_be_had(rows):
    path, tensor, _ = rows
    for start, stop in ((-1, 2), (3, 2), (0, 7)):
        with pytest.raises(ValueError, match="which has 6"):
            read_tensor(path, tensor, start, stop)
    for out in (np.zeros((5, 68), np.uint8), np.zeros((6, 68), np.int8), np.zeros((68, 6), np.uint8).T):
        with pytest.raises(ValueError, match=r"expected contiguous uint8 \[6, 68\]"):
            read_tensor(path, tensor, out=out)
    os.truncate(path, path.stat().st_size - 70)
    with pytest.raises(BadInputError, match=r"found 338 bytes of tensor 'a' at byte .* expected 408"):
        read_tensor(path, tensor)
    path.unlink()
    with pytest.raises(NotFoundError):
        read_tensor(path, tensor)


def test_short_reads_are_continued(rows, monkeypatch):
    path, tensor, data = rows
    whole = os.preadv
    monkeypatch.setattr(os, "preadv", lambda descriptor, views, at: whole(descriptor, [views[0][:7]], at))
    assert np.array_equal(read_tensor(path, tensor), data)


def part(number, count, names, total, **other):
    """A part of a split model; each tensor is one float."""
    stated = {"split.no": ("uint16", number), "split.count": ("uint16", count), "split.tensors.count": ("int32", total)}
    stated |= {f"split.{key}": value for key, value in other.items()}
    keys = [by.key(key, by.scalar(*value)) for key, value in stated.items() if value]
    keys = [by.key("general.architecture", by.scalar("string", "llama"))] * (number == 0) + keys
    tensors = [by.tensor(name, [1], offset=32 * place) for place, name in enumerate(names)]
    return by.gguf(keys, tensors, b"".join(bytes([number]) * 32 for _ in names))


@pytest.fixture
def parts(tmp_path):
    """A model of four tensors in three parts."""
    paths = [tmp_path / f"m-{number:05d}-of-00003.gguf" for number in (1, 2, 3)]
    for number, (path, names) in enumerate(zip(paths, ("ab", "c", "d"), strict=True)):
        path.write_bytes(part(number, 3, names, 4))
    return paths


@pytest.mark.parametrize("named", [0, 1, 2])
def test_any_part_names_the_whole(parts, named):
    model = open_gguf(parts[named])
    assert [file.path for file in model.files] == parts
    assert model.metadata["general.architecture"] == Value("string", "llama")
    assert {name: tensor.file for name, tensor in model.tensors.items()} == {
        "a": parts[0].name, "b": parts[0].name, "c": parts[1].name, "d": parts[2].name,
    }  # fmt: skip
    for number, name in enumerate("acd"):
        tensor = model.tensors[name]
        assert read_tensor(model.path_of(tensor), tensor).tolist() == [[number] * 4]


def test_one_file_is_a_model_too(tmp_path):
    for name, raw in (
        ("a.gguf", by.gguf(tensors=[by.tensor("a", [1])], data=bytes(4))),
        ("b.gguf", part(0, 1, "a", 1)),
        ("b-00001-of-00001.gguf", part(0, 1, "a", 1)),
    ):
        (tmp_path / name).write_bytes(raw)
        assert list(open_gguf(tmp_path / name).tensors) == ["a"]


WRONG_PARTS = {
    "another-place": (1, part(2, 3, "c", 4), r"m-00002-of-00003.gguf: found split.no 2, expected 1"),
    "another-count": (1, part(1, 2, "c", 4), r"m-00002-of-00003.gguf: found split.count 2, expected 3"),
    "another-total": (1, part(1, 3, "c", 9), r"m-00002-of-00003.gguf: found split.tensors.count 9, expected 4"),
    "no-place": (2, part(2, 3, "d", 4, no=None), r"m-00003-of-00003.gguf: found no split.no, expected 2"),
    "a-tensor-twice": (2, part(2, 3, "a", 4), r"found tensor 'a' in m-00001-of-00003.gguf and m-00003-of-00003.gguf"),
    "a-tensor-too-few": (2, part(2, 3, "", 4), r"found 3 tensors in 3 parts, expected 4"),
    "a-tensor-too-many": (2, part(2, 3, "de", 4), r"found 5 tensors in 3 parts, expected 4"),
    "a-text": (1, part(1, 3, "c", 4, no=("string", "1")), r"found split.no '1', expected a whole number"),
    "negative": (1, part(1, 3, "c", 4, no=("int16", -1)), r"found split.no -1, expected a whole number"),
    "another-model": (1, part(0, 1, "c", 1), r"m-00002-of-00003.gguf: found split.no 0, expected 1"),
    "cut-off": (1, part(1, 3, "c", 4)[:50], r"m-00002-of-00003.gguf: found a file of 50 bytes"),
}


@pytest.mark.parametrize("case", WRONG_PARTS)
def test_parts_that_do_not_belong_together(parts, case):
    place, raw, message = WRONG_PARTS[case]
    parts[place].write_bytes(raw)
    with pytest.raises(BadInputError, match=message):
        open_gguf(parts[0])


def test_parts_under_other_names(parts, tmp_path):
    expected = "found split.count 3, expected a name that ends in -0000N-of-00003.gguf"
    for name in ("m.gguf", "m-00001-of-00004.gguf", "m-00004-of-00003.gguf", "m-00000-of-00003.gguf"):
        parts[0].replace(tmp_path / name)
        with pytest.raises(BadInputError, match=expected) as caught:
            open_gguf(tmp_path / name)
        assert "published" in (caught.value.hint or "")
        (tmp_path / name).replace(parts[0])
    (tmp_path / "x-00001-of-00002.gguf").write_bytes(by.gguf())
    with pytest.raises(BadInputError, match=r"found split.count 1, expected a name"):
        open_gguf(tmp_path / "x-00001-of-00002.gguf")


def test_parts_that_are_missing(parts):
    parts[1].unlink()
    parts[2].unlink()
    with pytest.raises(NotFoundError, match=r"2 of 3 parts are missing: m-00002-of-00003.gguf, m-00003-of-00003.gguf"):
        open_gguf(parts[0])
