"""Importance matrices that are none, in either format: refused in one sentence."""

import os
import struct

import gguf_bytes as by
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from spoil import HTML, LFS

from quantkit.errors import BadInputError, QuantkitError
from quantkit.weights.imatrix import Imatrix, read_imatrix

KEYS = {
    "general.type": by.scalar("string", "imatrix"),
    "imatrix.datasets": by.array("string", ["a.txt"]),
    "imatrix.chunk_count": by.scalar("uint32", 2),
    "imatrix.chunk_size": by.scalar("uint32", 512),
}
TAIL = struct.pack("<ii", 5, 1) + b"t"  # of five chunks of the text t
SUMS = np.arange(1, 9, dtype="<f4").tobytes()
COUNTS = np.array([3, 1], "<f4").tobytes()


def modern(sums=SUMS, counts=COUNTS, names=("w.in_sum2", "w.counts"), types=(by.F32, by.F32), **keys):
    """Two matrices of four columns."""
    keys = {name: value for name, value in {**KEYS, **keys}.items() if value is not None}
    sizes = [len(sums) // 8, 2], [1, len(counts) // 4]
    tensors = [
        by.tensor(name, size, number, 32 * place)
        for place, (name, size, number) in enumerate(zip(names, sizes, types, strict=True))
    ]
    return by.gguf([by.key(name, value) for name, value in keys.items()], tensors, sums.ljust(32, b"\0") + counts)


def entry(name=b"w", calls=1, values=(1.0, 2.0), length=None, count=None):
    length, count = len(name) if length is None else length, len(values) if count is None else count
    return struct.pack("<i", length) + name + struct.pack("<ii", calls, count) + np.asarray(values, "<f4").tobytes()


def older(*entries, count=None, tail=TAIL):
    return struct.pack("<i", len(entries) if count is None else count) + b"".join(entries) + tail


INF = np.full(8, np.inf, "<f4").tobytes()
NAN = np.full(8, np.nan, "<f4").tobytes()
CASES = {
    "empty": (b"", "found an empty file, expected an imatrix file, GGUF or .dat"),
    "an-lfs-pointer": (LFS, "found a git-LFS pointer"),
    "a-web-page": (HTML, "found a web page"),
    "three-bytes": (bytes([1, 0, 0]), "found 3 bytes left for the number of entries, expected 4"),
    # GGUF.
    "a-model": (modern(**{"general.type": by.scalar("string", "model")}), "a GGUF file of type 'model'"),
    "a-type-of-number": (modern(**{"general.type": by.scalar("uint32", 1)}), "a GGUF file of type 1"),
    "no-datasets": (modern(**{"imatrix.datasets": None}), "found no imatrix.datasets, expected a string"),
    "no-chunk-count": (modern(**{"imatrix.chunk_count": None}), "found no imatrix.chunk_count"),
    "no-chunk-size": (modern(**{"imatrix.chunk_size": None}), "found no imatrix.chunk_size"),
    "datasets-a-text": (modern(**{"imatrix.datasets": by.scalar("string", "a")}), "found one value in imatrix"),
    "datasets-numbers": (modern(**{"imatrix.datasets": by.array("int8", [1])}), "found a int8 as imatrix.datasets"),
    "chunk-count-an-array": (modern(**{"imatrix.chunk_count": by.array("uint32", [1])}), "many in another key"),
    "chunk-count-a-uint64": (modern(**{"imatrix.chunk_count": by.scalar("uint64", 1)}), "found a uint64 as imatrix"),
    "no-sums": (modern(names=("w", "v")), "found no sums of squares, expected tensors that end in .in_sum2"),
    "sums-without-counts": (modern(names=("w.in_sum2", "v")), "found no tensor 'w.counts', expected F32 values"),
    "counts-without-sums": (modern(names=("v", "w.counts")), "found no tensor 'w.in_sum2'"),
    "sums-of-integers": (modern(types=(26, by.F32)), "found I32 [2, 4] as tensor 'w.in_sum2', expected F32"),
    "counts-of-integers": (modern(types=(by.F32, 26)), "found I32 [2, 1] as tensor 'w.counts', expected F32"),
    "no-counts": (modern(counts=b""), "F32 [0, 1] as tensor 'w.counts'"),
    "three-counts": (modern(counts=bytes(12)), "found 8 sums and 3 counts for 'w'"),
    "a-sum-negative": (modern(sums=np.full(8, -1, "<f4").tobytes()), "found a sum of -1.0 for 'w'"),
    "a-sum-infinite": (modern(sums=INF), "found a sum of inf for 'w'"),
    "a-sum-nan": (modern(sums=NAN), "found a sum of nan for 'w'"),
    "a-count-negative": (modern(counts=np.array([1, -1], "<f4").tobytes()), "found a count of -1.0 for 'w'"),
    "a-count-nan": (modern(counts=NAN[:8]), "found a count of nan for 'w'"),
    "gguf-cut-off": (modern()[:-1], "expected at least"),
    # The older format.
    "no-entries": (older(count=0), "found 0 as the number of entries, expected 1 to"),
    "entries-negative": (older(count=-1), "found -1 as the number of entries"),
    "entries-2**31-1": (older(count=2**31 - 1), "found 2147483647 as the number of entries, expected 1 to 100000"),
    "an-entry-too-many": (older(entry(), count=2, tail=b""), "found 0 bytes left for the length of the name"),
    "name-empty": (older(entry(b"")), "found 0 as the length of the name of entry 0"),
    "name-negative": (older(entry(length=-1)), "found -1 as the length of the name of entry 0"),
    "name-of-2**31-1-bytes": (older(entry(length=2**31 - 1)), "found 2147483647 as the length of the name"),
    "name-beyond-the-file": (older(entry(length=60_000)), "bytes left for the name of entry 0, expected 60000"),
    "name-not-utf8": (older(entry(b"\xff")), "found the name of entry 0 that is not UTF-8"),
    "name-with-a-zero": (older(entry(b"w\0")), r"found the name 'w\x00', expected printable"),
    "name-twice": (older(entry(), entry()), "found the name 'w' twice"),
    "chunks-negative": (older(entry(calls=-1)), "found -1 as the chunks of 'w'"),
    "no-values": (older(entry(values=())), "found 0 as the number of values of 'w'"),
    "values-negative": (older(entry(count=-5)), "found -5 as the number of values of 'w'"),
    "values-2**31-1": (older(entry(count=2**31 - 1)), "for the values of 'w', expected 8589934588"),
    "value-negative": (older(entry(values=(1, -2))), "found a sum of -2.0 for 'w'"),
    "value-nan": (older(entry(values=(1, np.nan))), "found a sum of nan for 'w'"),
    "cut-off-in-the-tail": (older(entry(), tail=b"\1\0"), "found 2 bytes left for the number of chunks"),
    "cut-off-in-the-text": (older(entry(), tail=struct.pack("<ii", 1, 9) + b"a"), "the name of the text, expected 9"),
    "bytes-behind": (older(entry()) + b"x", "found 1 bytes behind the end of the imatrix"),
    "zeros": (bytes(100), "found 0 as the number of entries"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_damaged_imatrix(tmp_path, case):
    raw, message = CASES[case]
    (tmp_path / "imatrix").write_bytes(raw)
    with pytest.raises(BadInputError) as caught:
        read_imatrix(tmp_path / "imatrix")
    assert message in str(caught.value)
    assert str(caught.value).startswith("imatrix: found ")
    assert len(str(caught.value)) <= 400
    assert caught.value.hint


def test_what_the_cases_are_made_from_is_read(tmp_path):
    for raw, sums in ((modern(), [[1, 2, 3, 4], [5, 6, 7, 8]]), (older(entry()), [[1, 2]])):
        (tmp_path / "imatrix").write_bytes(raw)
        assert read_imatrix(tmp_path / "imatrix").entries["w"].sums.tolist() == sums


@pytest.mark.parametrize("raw", [modern(), older(entry(count=2**30))])
def test_a_file_that_would_fill_the_memory(tmp_path, raw):
    """Zeros that take no room on the disk."""
    (tmp_path / "imatrix").write_bytes(raw)
    os.truncate(tmp_path / "imatrix", 2**42)
    with pytest.raises(BadInputError, match="found 4398046511104 bytes, expected at most 4294967296"):
        read_imatrix(tmp_path / "imatrix")


PIECES = st.sampled_from([struct.pack("<i", value) for value in (0, -1, 1, 2**31 - 1, -(2**31))] + [INF[:4], NAN[:4]])


@settings(
    deadline=None, max_examples=400, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(st.sampled_from([modern(), older(entry(), entry(b"v"))]), st.data())
def test_any_damage(tmp_path, raw, data):
    raw = bytearray(raw)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw)))
        piece = data.draw(PIECES | st.binary(max_size=4))
        raw[at : at + data.draw(st.integers(0, 6))] = piece
    (tmp_path / "imatrix").write_bytes(raw)
    try:
        found, refusal = read_imatrix(tmp_path / "imatrix"), ""
    except QuantkitError as error:
        found, refusal = Imatrix({}), str(error)
    assert len(refusal) <= 400
    for name, entry in found.entries.items():
        assert name
        assert np.isfinite(entry.sums).all()
        assert np.isfinite(found.importance(name)).all()
        assert (found.importance(name) >= 0).all()
