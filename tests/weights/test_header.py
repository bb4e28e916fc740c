import json
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save

from quantkit.dtypes import DTYPE_NAMES, DTYPES
from quantkit.errors import BadInputError, NotFoundError
from quantkit.tensors import TensorInfo
from quantkit.weights.header import header_length, parse_header, read_header

NAME = "model.safetensors"


def pack(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype="F32", shape=(1,), offsets=(0, 4)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def parse(raw: bytes) -> dict[str, TensorInfo]:
    return parse_header(raw, len(raw), NAME)


def test_reads_a_literal_file(tmp_path):
    text = b'{"a":{"dtype":"F16","shape":[2,1],"data_offsets":[0,4]}}'
    path = tmp_path / NAME
    path.write_bytes(struct.pack("<Q", 56) + text + b"\x00\x3c\x00\x40")
    assert read_header(path) == {"a": TensorInfo("a", "F16", (2, 1), NAME, 64)}


def test_missing_file(tmp_path):
    with pytest.raises(NotFoundError, match="no such file"):
        read_header(tmp_path / NAME)


def test_header_length_from_the_first_bytes_of_a_remote_file():
    assert header_length(struct.pack("<Q", 20) + b"{", 1000, NAME) == 20


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "an empty file, expected a safetensors file"),
        (b"\x00" * 7, "7 bytes, expected at least 8"),
        (struct.pack("<Q", 2**63) + b"{}", "a header of 9223372036854775808 bytes"),
        (struct.pack("<Q", 26_000_000) + b" " * 26_000_000, "expected 2 to 25000000"),
        (struct.pack("<Q", 3) + b"{}", "a header of 3 bytes, expected 2 to 2"),
        (pack(b" {}"), "begins with b' '"),
        (pack(b"[]"), "begins with b'['"),
        (pack(b"{ "), "no valid JSON"),
        (pack(b'{"a":' + b"[" * 100_000), "no valid JSON"),
        (pack(b'{"\xff":1}'), "no valid JSON"),
        (pack(b'{"a":1,"a":2}'), "key 'a' occurs twice"),
        (pack(b'{"a":{"dtype":"F32","dtype":"I32","shape":[1],"data_offsets":[0,4]}}'), "occurs twice"),
        (pack({"__metadata__": {"format": 1}}), "__metadata__"),
        (pack({"__metadata__": []}), "__metadata__"),
        (pack({"a": []}), "fields"),
        (pack({"a": entry() | {"more": 1}}), "fields"),
        (pack({"": entry()}), "printable"),
        (pack({"a\nb": entry()}), "printable"),
        (pack({"\ud800": entry()}), "printable"),
        (pack({"a": entry("F4")}), "dtype 'F4', expected one of"),
        (pack({"a": entry([])}), "dtype"),
        (pack({"a": entry(shape=[-1])}), "shape"),
        (pack({"a": entry(shape=[1.0])}), "shape"),
        (pack({"a": entry(shape=[True])}), "shape"),
        (pack({"a": entry(shape=[1] * 33)}), "shape"),
        (pack({"a": entry(shape=[2**40, 2**40])}), "values"),
        (pack({"a": entry(shape=[0, 2**63], offsets=[0, 0])}), "values"),
        (pack({"a": entry(offsets=[0])}), "data_offsets"),
        (pack({"a": entry(offsets=[4, 0])}), "-4 bytes, expected 4"),
        (pack({"a": entry(offsets=[0, 8])}, b"x" * 8), "8 bytes, expected 4 for F32"),
        (pack({"a": entry()}, b"xxx"), "a file of"),
        (pack({"a": entry()}, b"xxxxx"), "a file of"),
        (pack({"a": entry(offsets=[4, 8])}, b"x" * 8), "a hole between the header and tensor a"),
        (pack({"a": entry(), "b": entry()}, b"x" * 4), "an overlap between a and tensor b"),
        (pack({"a": entry(), "b": entry(offsets=[8, 12])}, b"x" * 12), "a hole between a and tensor b"),
    ],
)
def test_refuses(raw, message):
    with pytest.raises(BadInputError) as caught:
        parse(raw)
    assert message in str(caught.value)
    assert str(caught.value).startswith(NAME)
    assert len(str(caught.value)) < 600


def test_refuses_too_many_tensors():
    none = entry(shape=[0], offsets=[0, 0])
    with pytest.raises(BadInputError, match="100001 tensors"):
        parse(pack({str(number): none for number in range(100_001)}))


TENSORS = st.dictionaries(
    st.text(st.characters(categories=["L", "N", "P"]), min_size=1).filter(lambda name: name != "__metadata__"),
    st.tuples(st.sampled_from(list(DTYPES.values())), st.lists(st.integers(0, 4), max_size=4)),
    max_size=6,
).map(lambda rows: {name: torch.zeros(shape).to(dtype) for name, (dtype, shape) in rows.items()})


@settings(deadline=None, max_examples=60)
@given(TENSORS)
def test_agrees_with_the_safetensors_library(tmp_path_factory, tensors):
    raw = save(tensors, {"format": "pt"})
    infos = parse(raw)
    assert {name: (DTYPES[info.dtype], info.shape) for name, info in infos.items()} == {
        name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()
    }
    path = tmp_path_factory.getbasetemp() / NAME
    path.write_bytes(raw)
    with safe_open(path, "pt") as file:
        for name, info in infos.items():
            part = file.get_tensor(name)
            assert DTYPE_NAMES[part.dtype] == info.dtype
            assert len(raw[info.offset : info.offset + info.nbytes]) == part.nbytes


VALID = save({"a.weight": torch.ones(3, 2), "b": torch.ones(2, dtype=torch.int8)}, {"format": "pt"})


@settings(deadline=None, max_examples=500, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_mutated_files_are_read_or_refused(data):
    raw = bytearray(VALID)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw)))
        new = data.draw(
            st.one_of(st.binary(max_size=3), st.sampled_from([b"9" * 5000, b"{", b"]", b'"', b"-", b"NaN"]))
        )
        raw[at : at + data.draw(st.integers(0, 3))] = new
    try:
        infos = parse(bytes(raw))
    except BadInputError:
        return
    assert all(info.offset + info.nbytes <= len(raw) for info in infos.values())


JSON_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=8,
)


@settings(deadline=None, max_examples=300)
@given(
    st.fixed_dictionaries(
        {
            "dtype": JSON_VALUES | st.sampled_from(list(DTYPES)),
            "shape": JSON_VALUES,
            "data_offsets": JSON_VALUES,
        }
    )
)
def test_any_json_under_a_tensor_is_read_or_refused(value):
    try:
        parse(pack({"a": value}, b"12345678"))
    except BadInputError:
        return


def test_path_may_be_a_real_file_of_the_library(tmp_path: Path):
    path = tmp_path / "other.safetensors"
    path.write_bytes(VALID)
    assert {info.file for info in read_header(path).values()} == {"other.safetensors"}
