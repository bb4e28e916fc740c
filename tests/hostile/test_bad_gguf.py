"""GGUF files that are not what they must be: refused in one sentence, whatever was done to them."""

import os
import struct

import gguf
import gguf_bytes as by
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from spoil import HTML, LFS

from quantkit.errors import BadInputError, NotFoundError, QuantkitError
from quantkit.weights import gguf_header
from quantkit.weights.gguf_read import open_gguf, read_gguf

NAME = "model.gguf"
LONGEST = 400
KEYS = (
    by.key("general.architecture", by.scalar("string", "llama")),
    by.key("llama.block_count", by.scalar("uint32", 2)),
    by.key("tokens", by.array("string", ["<s>", "ö", ""])),
    by.key("scores", by.array("float32", [0.0, -1.5])),
    by.key("flags", by.array("bool", [True, False])),
)
TENSORS = (by.tensor("a.weight", [32, 3], by.Q8_0, 0), by.tensor("b.weight", [5], by.F32, 128))
GOOD = by.gguf(KEYS, TENSORS, bytes(148))


def with_key(value, name="key"):
    return by.gguf((*KEYS, by.key(name, value)), TENSORS, bytes(148))


def with_tensor(*entries, data=bytes(256), keys=()):
    return by.gguf(keys, entries, data)


def array(number, count, raw=b""):
    return by.typed(by.ARRAY, struct.pack("<IQ", number, count) + raw)


def nested(depth):
    raw = array(by.LETTERS["int32"][0], 1, bytes(4))[4:]
    for _ in range(depth):
        raw = struct.pack("<IQ", by.ARRAY, 1) + raw
    return by.typed(by.ARRAY, raw)


def alignment(value, kind="uint32"):
    return by.gguf([by.key("general.alignment", by.scalar(kind, value))], TENSORS, bytes(148))


CASES = {
    # What kind of file it is.
    "empty": (b"", "found an empty file, expected a GGUF file"),
    "four-bytes": (b"GGUF", "found a file of 4 bytes, expected at least 24 from the header"),
    "an-lfs-pointer": (LFS, "found a git-LFS pointer"),
    "a-web-page": (HTML, "found a web page"),
    "a-text": (b"Entry not found", "found the text 'Entry not found'"),
    "zeros": (bytes(200), r"begins with b'\x00\x00\x00\x00', expected b'GGUF'"),
    "lower-case": (b"gguf" + GOOD[4:], "begins with b'gguf', expected b'GGUF'"),
    "a-space-in-front": (b" " + GOOD, "begins with b' GGU', expected b'GGUF'"),
    "safetensors": (struct.pack("<Q", 2) + b"{}" + bytes(50), "expected b'GGUF'"),
    "ggml": (b"lmgg" + bytes(99), "found a GGML file from before GGUF"),
    "ggjt": (b"tjgg" + bytes(99), "found a GGJT file from before GGUF"),
    "version-0": (by.gguf(version=0), "found GGUF version 0, expected 2 or 3"),
    "version-1": (by.gguf(version=1), "found GGUF version 1, expected 2 or 3"),
    "version-4": (by.gguf(version=4), "found GGUF version 4, expected 2 or 3"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0) + bytes(8), "found a big-endian GGUF file"),
    # How much of everything.
    "2**60-keys": (by.gguf(counts=(0, 2**60)), "found 1152921504606846976 metadata keys, expected at most 65536"),
    "2**60-tensors": (by.gguf(counts=(2**60, 0)), "found 1152921504606846976 tensors, expected at most 100000"),
    "2**64-1-of-both": (by.gguf(counts=(2**64 - 1, 2**64 - 1)), "expected at most"),
    "a-key-too-many": (by.gguf(KEYS, counts=(0, 6)), "for the name of key 5, expected 1 to 65535"),
    "a-tensor-too-many": (by.gguf(tensors=TENSORS, data=bytes(300), counts=(3, 0)), "for the name of tensor 2"),
    "cut-off-in-the-keys": (GOOD[:60], "found a file of 60 bytes, expected at least"),
    "cut-off-in-a-number": (GOOD[:26], "found a file of 26 bytes, expected at least 32 from the name of key 0"),
    "a-byte-of-data-missing": (GOOD[:-1], f"found a file of {len(GOOD) - 1} bytes, expected at least {len(GOOD)}"),
    # Keys and values.
    "key-of-2**63-bytes": (by.gguf(counts=(0, 1))[:24] + struct.pack("<Q", 2**63), "808 bytes for the name of key 0"),
    "key-empty": (by.gguf([by.key("", by.scalar("bool", True))]), "found 0 bytes for the name of key 0"),
    "key-not-utf8": (by.gguf([by.key(b"\xff", by.scalar("bool", True))]), "the name of key 0 that is not UTF-8"),
    "key-with-a-newline": (by.gguf([by.key("a\nb", by.scalar("bool", True))]), r"'a\nb', expected printable"),
    "key-twice": (by.gguf([KEYS[0], KEYS[0]]), "found key 'general.architecture' twice"),
    "text-not-utf8": (with_key(by.scalar("string", b"\xc3")), "found a text in key 'key' that is not UTF-8"),
    "text-of-2**62-bytes": (with_key(by.typed(by.STRING, struct.pack("<Q", 2**62))), "from key 'key'"),
    "type-13": (with_key(by.typed(13, bytes(8))), "found key 'key' of type 13, expected one of [0, 1, 2"),
    "type-2**32-1": (with_key(by.typed(2**32 - 1, bytes(8))), "of type 4294967295"),
    "truth-value-2": (with_key(by.typed(7, b"\2")), "found a truth value of 2 in key 'key', expected 0 or 1"),
    "truth-values-255": (with_key(array(7, 3, b"\0\xff\1")), "found a truth value of 255"),
    "array-of-type-13": (with_key(array(13, 1, bytes(8))), "found key 'key' of type 13"),
    "array-of-arrays": (with_key(nested(1)), "found an array of arrays in key 'key'"),
    "array-of-arrays-of-arrays": (with_key(nested(10_000)), "found an array of arrays in key 'key'"),
    "array-longer-than-the-file": (with_key(array(6, 10_000)), "from key 'key'"),
    "texts-more-than-the-file": (with_key(array(by.STRING, 10_000)), "from key 'key'"),
    "array-of-2**60": (with_key(array(0, 2**60)), "found 1152921504606846976 values in key 'key'"),
    "array-of-2**64-1": (with_key(array(12, 2**64 - 1)), "found 18446744073709551615 values in key 'key'"),
    "texts-of-2**61": (with_key(array(by.STRING, 2**61)), "values in key 'key', expected at most"),
    # The alignment.
    "alignment-0": (alignment(0), "found general.alignment 0, expected a power of two"),
    "alignment-24": (alignment(24), "found general.alignment 24, expected a power of two"),
    "alignment-2**31": (alignment(2**31), "found general.alignment 2147483648, expected a power of two up to 65536"),
    "alignment-negative": (alignment(-32, "int32"), "found general.alignment of another type than uint32"),
    "alignment-a-text": (alignment("32", "string"), "found general.alignment of another type than uint32"),
    # Tensors.
    "tensor-twice": (with_tensor(TENSORS[0], TENSORS[0]), "found tensor 'a.weight' twice"),
    "tensor-without-name": (with_tensor(by.tensor("", [1])), "found 0 bytes for the name of tensor 0"),
    "five-sizes": (with_tensor(by.tensor("a", [1] * 5)), "found tensor 'a' of 5 sizes, expected up to 4"),
    "2**32-1-sizes": (with_tensor(by.tensor("a", [1], rank=2**32 - 1)), "of 4294967295 sizes, expected up to 4"),
    "product-overflows": (with_tensor(by.tensor("a", [2**32, 2**32])), "expected <= 2**48 weights"),
    "product-wraps-to-zero": (with_tensor(by.tensor("a", [2**63, 2, 2])), "expected <= 2**48 weights"),
    "product-behind-a-zero": (with_tensor(by.tensor("a", [0, 2**63])), "expected <= 2**48 weights"),
    "size-2**64-1": (with_tensor(by.tensor("a", [2**64 - 1])), "expected <= 2**48 weights"),
    "ggml-type-4": (with_tensor(by.tensor("a", [32], 4)), "found tensor 'a' of ggml type 4, expected one of"),
    "ggml-type-2**32-1": (with_tensor(by.tensor("a", [32], 2**32 - 1)), "of ggml type 4294967295"),
    "half-a-block": (with_tensor(by.tensor("a", [48], by.Q8_0)), "rows of 48 weights, expected a multiple of 32"),
    "blocks-without-a-size": (with_tensor(by.tensor("a", [], by.Q8_0)), "rows of 1 weights, expected a multiple of 32"),
    "offset-unaligned": (with_tensor(by.tensor("a", [1], offset=4)), "'a' at byte 4 of the data, expected 0"),
    "offset-with-a-hole": (with_tensor(TENSORS[0], by.tensor("b", [1], offset=160)), "at byte 160 of"),
    "offset-2**64-32": (with_tensor(by.tensor("a", [1], offset=2**64 - 32)), "byte 18446744073709551584 of the data"),
    "overlap": (with_tensor(TENSORS[0], by.tensor("b", [1], offset=32)), "'b' at byte 32 of the data, expected 128"),
    "same-place": (with_tensor(by.tensor("a", [1]), by.tensor("b", [1])), "'b' at byte 0 of the data, expected 32"),
    "data-beyond-the-file": (with_tensor(by.tensor("a", [2**40])), "expected at least 4398046511"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_damaged_file(tmp_path, case):
    raw, message = CASES[case]
    (tmp_path / NAME).write_bytes(raw)
    for read in (read_gguf, open_gguf):
        with pytest.raises(BadInputError) as caught:
            read(tmp_path / NAME)
        assert message in str(caught.value)
        assert str(caught.value).startswith(f"{NAME}: found ")
        assert len(str(caught.value)) <= LONGEST
        assert caught.value.hint


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.gguf")
    (tmp_path / "folder.gguf").mkdir()
    for name, kind in (("pipe.gguf", "a pipe"), ("folder.gguf", "a folder")):
        with pytest.raises(BadInputError, match=f"is {kind}, expected a file"):
            read_gguf(tmp_path / name)
    with pytest.raises(NotFoundError):
        open_gguf(tmp_path / NAME)


def test_a_header_that_never_ends(tmp_path, monkeypatch):
    """A file of zeros takes no room and is as long as one likes: each limit ends the reading of it."""
    raw = GOOD[:24] + by.key("k", array(by.STRING, 2**22))
    (tmp_path / NAME).write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, 0, 2) + raw[24:])
    os.truncate(tmp_path / NAME, 2**40)
    with pytest.raises(BadInputError, match="found 0 bytes for the name of key 1"):
        read_gguf(tmp_path / NAME)
    monkeypatch.setattr(gguf_header, "MAX_ITEMS", 2**22 - 1)
    with pytest.raises(BadInputError, match="found 4194304 values in key 'k', expected at most 4194303 more"):
        read_gguf(tmp_path / NAME)
    monkeypatch.setattr(gguf_header, "MAX_ITEMS", 2**22)
    monkeypatch.setattr(gguf_header, "MAX_HEADER_BYTES", 2**20)
    with pytest.raises(BadInputError, match="expected a header of at most 1048576 bytes"):
        read_gguf(tmp_path / NAME)


def test_all_arrays_together_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_header, "MAX_ITEMS", 5)
    keys = [by.key(name, by.array("uint8", [1, 2])) for name in "abc"]
    (tmp_path / NAME).write_bytes(by.gguf(keys[:2]))
    assert len(read_gguf(tmp_path / NAME).metadata) == 2
    (tmp_path / NAME).write_bytes(by.gguf(keys))
    with pytest.raises(BadInputError, match="found 2 values in key 'c', expected at most 1 more"):
        read_gguf(tmp_path / NAME)


def test_every_cut_and_every_bit(tmp_path):
    """Cut anywhere it is refused; with any one bit turned it is refused or read as gguf-py reads it."""
    path = tmp_path / NAME
    for size in range(len(GOOD)):
        path.write_bytes(GOOD[:size])
        with pytest.raises(BadInputError):
            read_gguf(path)
    header = len(GOOD) - 148
    for place in range(8 * header):
        raw = bytearray(GOOD)
        raw[place // 8] ^= 1 << place % 8
        path.write_bytes(raw)
        assert_refused_or_read_alike(path)


PIECES = st.sampled_from(
    [struct.pack("<Q", value) for value in (0, 1, 2**31, 2**32 - 1, 2**60, 2**63, 2**64 - 1)]
    + [struct.pack("<I", value) for value in (0, 4, 7, 8, 9, 13, 2**31, 2**32 - 1)]
    + [*KEYS, *TENSORS, by.tensor("c", [], by.Q8_0), nested(1), b"\xff\xff", b"GGUF"]
)


@st.composite
def spoiled(draw):
    """A file of good and bad entries in any number, then a few of its bytes replaced."""
    keys = draw(st.lists(st.sampled_from(KEYS), max_size=4, unique=draw(st.booleans())))
    tensors = draw(st.lists(st.sampled_from(TENSORS), max_size=3, unique=draw(st.booleans())))
    counts = draw(st.none() | st.tuples(*[st.sampled_from([0, 1, 2, 5, 2**20, 2**60])] * 2))
    raw = bytearray(by.gguf(keys, tensors, bytes(draw(st.sampled_from([0, 148, 160]))), counts=counts))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(raw)))
        piece = draw(PIECES | st.binary(max_size=6))
        raw[at : at + (len(piece) if draw(st.booleans()) else draw(st.integers(0, 3)))] = piece
    return bytes(raw)


@settings(
    deadline=None, max_examples=700, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(raw=spoiled() | st.binary(max_size=100).map(lambda data: GOOD[:8] + data))
def test_any_damage(tmp_path, raw):
    path = tmp_path / NAME
    path.write_bytes(raw)
    assert_refused_or_read_alike(path)


def assert_refused_or_read_alike(path):
    """gguf-py is asked about what we take only: on other files it may run for hours."""
    try:
        file, refusal = read_gguf(path), ""
    except QuantkitError as error:
        file, refusal = None, str(error)
    assert len(refusal) <= LONGEST
    if file is None:
        return
    witness = gguf.GGUFReader(path)
    assert set(file.metadata) == {key for key in witness.fields if not key.startswith("GGUF.")}
    for key, value in file.metadata.items():
        found = witness.fields[key].contents()
        assert repr(list(value.value) if value.is_array else value.value) == repr(found)
    assert [(name, tensor.type, tensor.offset, tensor.nbytes) for name, tensor in file.tensors.items()] == [
        (tensor.name, tensor.tensor_type.name, tensor.data_offset, tensor.n_bytes) for tensor in witness.tensors
    ]
