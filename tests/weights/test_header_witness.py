"""The header parser beside the safetensors library: both read a file alike, or it is said why not."""

import json
import re
import struct

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize

from quantkit.dtypes import DTYPES
from quantkit.errors import BadInputError
from quantkit.weights.header import parse_header

NAME = "model.safetensors"
# Files that the library opens and we refuse: limits, names, and what no writer writes.
STRICTER = re.compile(
    r"of dtype|printable characters|exactly the fields|occurs twice|expected <= 2\*\*48|expected up to 32 sizes"
    r"|__metadata__|a header of|a header that begins with|no valid JSON \(Exceeds the limit|-0 where"
)
LEAST = 1 << 62  # of numbers that overflow somewhere


def witness(raw):
    """What the library makes of a file: name -> dtype, shape, bytes; None where it refuses."""
    try:
        tensors = deserialize(raw)
    except (SafetensorError, OverflowError, MemoryError):
        return None
    return {name: (info["dtype"], tuple(info["shape"]), bytes(info["data"])) for name, info in tensors}


def ours(raw):
    infos = parse_header(raw, len(raw), NAME)
    return {
        name: (info.dtype, info.shape, raw[info.offset : info.offset + info.nbytes]) for name, info in infos.items()
    }


def assert_agree(raw):
    expected, refusal, found = witness(raw), None, None
    try:
        found = ours(raw)
    except BadInputError as error:
        refusal = str(error)
    if refusal is None:
        assert found == expected
    else:
        assert len(refusal) < 600
        assert expected is None or STRICTER.search(refusal), refusal


@settings(deadline=None, max_examples=400)
@given(st.binary(max_size=200))
@example(b"")
@example(bytes(8))
@example(struct.pack("<Q", 2) + b"{}")
@example(struct.pack("<Q", 2**64 - 1) + b"{}")
def test_any_bytes(raw):
    assert_agree(raw)


@settings(deadline=None, max_examples=400)
@given(st.binary(max_size=120), st.binary(max_size=20), st.integers(-3, 3))
def test_any_bytes_behind_a_length_that_nearly_fits(text, data, off):
    assert_agree(struct.pack("<Q", max(0, len(text) + off)) + text + data)


SIZES = st.sampled_from([0, 1, 2, 3, 2**31, 2**32, LEAST, 2**64 - 1, 2**64, -1])
WIDTHS = {name: dtype.itemsize for name, dtype in DTYPES.items()}


@st.composite
def headers(draw):
    """A valid header and its data, then a few changes to either."""
    entries, offset = {}, 0
    for number in range(draw(st.integers(0, 4))):
        dtype = draw(st.sampled_from(sorted(DTYPES)))
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        size = WIDTHS[dtype]
        for part in shape:
            size *= part
        entries[f"t{number}"] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    if draw(st.booleans()):
        entries["__metadata__"] = {"format": "pt"}
    data = bytes([draw(st.integers(0, 255))]) * offset
    for _ in range(draw(st.integers(0, 3))):
        entries, data = draw(st.sampled_from(CHANGES))(draw, entries, data)
    keys = list(entries)
    order = draw(st.permutations(keys)) if keys else []
    return json.dumps({key: entries[key] for key in order}), data


def other_offsets(draw, entries, data):
    for name in names(draw, entries):
        stated = entries[name].get("data_offsets")
        offsets = list(stated) if isinstance(stated, list) and stated else [0, 0]
        at = draw(st.integers(0, len(offsets) - 1))
        near = [offsets[at] + 1, offsets[at] - 1] if isinstance(offsets[at], int) else [0]
        offsets[at] = draw(st.sampled_from(near) | SIZES)
        entries[name] = entries[name] | {"data_offsets": offsets}
    return entries, data


def swapped_offsets(_draw, entries, data):
    tensors = [name for name in entries if name != "__metadata__" and "data_offsets" in entries[name]]
    if len(tensors) > 1:
        one, two = (entries[name] for name in tensors[:2])
        entries[tensors[0]] = one | {"data_offsets": two["data_offsets"]}
        entries[tensors[1]] = two | {"data_offsets": one["data_offsets"]}
    return entries, data


def other_shape(draw, entries, data):
    for name in names(draw, entries):
        entries[name] = entries[name] | {"shape": draw(st.lists(SIZES, max_size=4))}
    return entries, data


def other_dtype(draw, entries, data):
    for name in names(draw, entries):
        entries[name] = entries[name] | {
            "dtype": draw(st.sampled_from([*DTYPES, "U16", "F8_E8M0", "C64", "F4", "f32", ""]))
        }
    return entries, data


def other_field(draw, entries, data):
    for name in names(draw, entries):
        changed = dict(entries[name])
        key = draw(st.sampled_from(["dtype", "shape", "data_offsets", "more"]))
        changed.pop(key, None)
        if draw(st.booleans()):
            changed[key] = draw(
                st.none() | st.booleans() | st.floats() | st.text(max_size=2) | st.lists(st.floats(), max_size=2)
            )
        entries[name] = changed
    return entries, data


def other_name(draw, entries, data):
    for name in names(draw, entries):
        entries[draw(st.text(max_size=3))] = entries.pop(name)
    return entries, data


def other_metadata(draw, entries, data):
    texts = st.dictionaries(st.text(max_size=2), st.integers() | st.text(max_size=2), max_size=2)
    metadata = draw(st.none() | st.integers() | texts)
    return entries | {"__metadata__": metadata}, data


def other_data(draw, entries, data):
    return entries, data + b"x" if draw(st.booleans()) else data[:-1]


def names(draw, entries):
    """One tensor, or none where there are none."""
    tensors = [name for name in entries if name != "__metadata__"]
    return [draw(st.sampled_from(tensors))] if tensors else []


CHANGES = [
    other_offsets, swapped_offsets, other_shape, other_dtype, other_field, other_name, other_metadata, other_data,
]  # fmt: skip


@settings(deadline=None, max_examples=1000, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(headers(), st.text(" \n\t", max_size=3))
def test_headers_that_are_valid_or_nearly(header, padding):
    text, data = header
    raw = (text + padding).encode()
    assert_agree(struct.pack("<Q", len(raw)) + raw + data)


@settings(deadline=None, max_examples=500, suppress_health_check=[HealthCheck.too_slow])
@given(headers(), st.data())
def test_headers_of_which_some_bytes_are_others(header, drawn):
    text, data = header
    raw = bytearray(text.encode())
    for _ in range(drawn.draw(st.integers(1, 3))):
        at = drawn.draw(st.integers(0, len(raw)))
        new = drawn.draw(
            st.binary(max_size=3) | st.sampled_from([b"9" * 5000, b"{", b"]", b'"', b"-", b"NaN", b"1e2", b"\\ud800"])
        )
        raw[at : at + drawn.draw(st.integers(0, 3))] = new
    assert_agree(struct.pack("<Q", len(raw)) + bytes(raw) + data)


@pytest.mark.parametrize("zero", ["-0", "0.0", "0e1", "00", "+0"])
def test_a_zero_is_written_as_a_zero(zero):
    text = f'{{"a":{{"dtype":"F32","shape":[0],"data_offsets":[{zero},0]}}}}'.encode()
    with pytest.raises(BadInputError):
        ours(struct.pack("<Q", len(text)) + text)
    assert witness(struct.pack("<Q", len(text)) + text) is None
