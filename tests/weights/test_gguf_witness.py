"""GGUF headers beside gguf-py: it writes the same bytes, and reads from them what we read."""

import math

import gguf
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quantkit.weights.gguf_layout import layout, split_plan
from quantkit.weights.gguf_read import open_gguf, read_gguf, read_tensor
from quantkit.weights.gguf_types import GGML_TYPES, KINDS, Value

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NAMES = st.text("abc._-é0", min_size=1, max_size=20)
RANGES = {kind: (-(2 ** (int(kind[3:]) - 1)), 2 ** (int(kind[3:]) - 1) - 1) for kind in KINDS if kind.startswith("int")}
RANGES |= {kind: (0, 2 ** int(kind[4:]) - 1) for kind in KINDS if kind.startswith("uint")}
ITEMS = {
    **{kind: st.integers(*limits) for kind, limits in RANGES.items()},
    **{kind: st.floats(width=int(kind[5:]), allow_nan=False) for kind in ("float32", "float64")},
    "bool": st.booleans(),
    "string": TEXTS,
}


@st.composite
def values(draw):
    """Values that gguf-py writes: it leaves out empty texts and arrays."""
    kind = draw(st.sampled_from(sorted(KINDS)))
    items = ITEMS[kind]
    if draw(st.booleans()):
        return Value(kind, tuple(draw(st.lists(items, min_size=1, max_size=5))))
    return Value(kind, draw(items.filter(lambda item: item != "")))


@st.composite
def arrays(draw):
    """The bytes of a tensor of some type and shape, whole rows."""
    ggml = draw(st.sampled_from(sorted(GGML_TYPES.values(), key=lambda ggml: ggml.number)))
    blocks = draw(st.integers(1, 2))
    rows = tuple(draw(st.lists(st.integers(1, 3), max_size=3)))
    data = np.full((*rows, blocks * ggml.block_bytes), draw(st.integers(0, 255)), np.uint8)
    return ggml.name, (*rows, blocks * ggml.block), data


MODELS = given(
    st.dictionaries(NAMES.filter(lambda name: not name.startswith("split.")), values(), max_size=6),
    st.dictionaries(NAMES, arrays(), max_size=6),
    st.sampled_from([32, 64, 8]),
)
SETTINGS = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
ARCHITECTURE = {"general.architecture": Value("string", "llama")}


def gguf_py(path, metadata, tensors, alignment, **options):
    writer = gguf.GGUFWriter(path, "llama", **options)
    if alignment != 32:
        writer.add_custom_alignment(alignment)
    for key, value in metadata.items():
        kind = gguf.GGUFValueType[value.kind.upper()]
        if value.is_array:
            writer.add_key_value(key, list(value.value), gguf.GGUFValueType.ARRAY, kind)
        else:
            writer.add_key_value(key, value.value, kind)
    for name, (ggml_type, _, data) in tensors.items():
        # Bytes of numpy's own types need no second shape.
        writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType[ggml_type])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def ours(header, tensors):
    raw = bytearray(header.total_bytes)
    raw[: len(header.raw)] = header.raw
    for tensor in header.tensors:
        raw[tensor.offset : tensor.offset + tensor.nbytes] = tensors[tensor.name][2].tobytes()
    return bytes(raw)


@SETTINGS
@MODELS
def test_the_bytes_of_gguf_py(tmp_path_factory, metadata, tensors, alignment):
    path = tmp_path_factory.getbasetemp() / "witness.gguf"
    gguf_py(path, metadata, tensors, alignment)
    stated = [(name, shape, ggml_type) for name, (ggml_type, shape, _) in tensors.items()]
    raw = ours(layout({**metadata, **ARCHITECTURE}, stated, alignment), tensors)
    assert raw == path.read_bytes()


@SETTINGS
@MODELS
def test_what_gguf_py_reads(tmp_path_factory, metadata, tensors, alignment):
    path = tmp_path_factory.getbasetemp() / "ours.gguf"
    stated = [(name, shape, ggml_type) for name, (ggml_type, shape, _) in tensors.items()]
    path.write_bytes(ours(layout({**ARCHITECTURE, **metadata}, stated, alignment), tensors))
    found, witness = read_gguf(path), gguf.GGUFReader(path)
    assert_same_metadata(found.metadata, witness)
    assert {key: value for key, value in found.metadata.items() if key in metadata} == metadata
    assert list(found.tensors) == [tensor.name for tensor in witness.tensors] == list(tensors)
    for other in witness.tensors:
        tensor = found.tensors[other.name]
        assert (tensor.type, tensor.offset, tensor.nbytes) == (other.tensor_type.name, other.data_offset, other.n_bytes)
        assert list(tensor.shape) == other.shape.tolist()[::-1]
        assert read_tensor(path, tensor).tobytes() == other.data.tobytes() == tensors[tensor.name][2].tobytes()


def assert_same_metadata(metadata, witness):
    assert set(metadata) == {key for key in witness.fields if not key.startswith("GGUF.")}
    for key, value in metadata.items():
        field = witness.fields[key]
        assert field.types == [gguf.GGUFValueType.ARRAY] * value.is_array + [gguf.GGUFValueType[value.kind.upper()]]
        assert (list(value.value) if value.is_array else value.value) == field.contents()


def test_the_parts_of_gguf_py(tmp_path):
    """Seven tensors of 1024 bytes, two in a file: gguf-py counts them alone, we the whole file."""
    tensors = {f"t{number}": ("F32", (4, 64), np.full((4, 256), number, np.uint8)) for number in range(7)}
    metadata = {"n": Value("uint32", 1), "tokens": Value("string", ("a", "b"))}
    (tmp_path / "theirs").mkdir()
    gguf_py(tmp_path / "theirs" / "m.gguf", metadata, tensors, 32, split_max_size=2048)
    stated = [(name, shape, ggml_type) for name, (ggml_type, shape, _) in tensors.items()]
    parts = split_plan("m", {**ARCHITECTURE, **metadata}, stated, 3000)
    assert {part.file_name for part in parts} == {path.name for path in (tmp_path / "theirs").iterdir()}
    for part in parts:
        assert ours(part.header, tensors) == (tmp_path / "theirs" / part.file_name).read_bytes()
    model = open_gguf(tmp_path / "theirs" / parts[2].file_name)
    assert list(model.tensors) == list(tensors)
    for name, tensor in model.tensors.items():
        assert np.array_equal(read_tensor(model.path_of(tensor), tensor), tensors[name][2])
        assert name in {found.name for found in gguf.GGUFReader(model.path_of(tensor)).tensors}


def test_float_values_that_are_no_numbers(tmp_path):
    path = tmp_path / "a.gguf"
    path.write_bytes(layout({"a": Value("float32", (math.nan, math.inf))}, []).raw)
    value = read_gguf(path).metadata["a"].value
    assert math.isnan(value[0])
    assert value[1] == math.inf
