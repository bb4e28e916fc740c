"""Importance matrices: llama.cpp's two file formats, and the means that llama-quantize takes from them."""

import struct

import gguf
import gguf_bytes as by
import numpy as np
import pytest

from quantkit.errors import BadInputError
from quantkit.weights.gguf_read import read_gguf
from quantkit.weights.gguf_types import Value
from quantkit.weights.imatrix import Entry, Imatrix, read_imatrix, write_imatrix

RANDOM = np.random.default_rng(0)
DENSE = Entry(RANDOM.random((1, 64)) * 1000, np.array([512.0]))
EXPERTS = Entry(RANDOM.random((4, 32), np.float32) * 7, np.array([3, 0, 100, 1], np.float32))
SOME = Imatrix(
    {"blk.1.ffn_up_exps.weight": EXPERTS, "blk.0.attn_q.weight": DENSE},
    ("wiki.txt", "größe.txt"),
    chunk_count=8,
    chunk_size=512,
)


def test_what_was_written_is_read(tmp_path):
    write_imatrix(tmp_path / "a.gguf", SOME)
    assert [path.name for path in tmp_path.iterdir()] == ["a.gguf"]
    read = read_imatrix(tmp_path / "a.gguf")
    assert (read.datasets, read.chunk_count, read.chunk_size, read.source) == (SOME.datasets, 8, 512, "a.gguf")
    assert set(read.entries) == set(SOME.entries)
    for name, entry in SOME.entries.items():
        assert np.array_equal(read.entries[name].sums, entry.sums.astype(np.float32))
        assert np.array_equal(read.entries[name].counts, entry.counts)
        # In memory or from the file: the same bits.
        assert np.array_equal(read.importance(name), SOME.importance(name))


def test_the_file_of_llama_imatrix(tmp_path):
    """The names, keys, sizes and order of IMatrixCollector::save_imatrix."""
    write_imatrix(tmp_path / "a.gguf", SOME)
    dense, experts = "blk.0.attn_q.weight", "blk.1.ffn_up_exps.weight"
    keys = [
        by.key("general.type", by.scalar("string", "imatrix")),
        by.key("imatrix.datasets", by.array("string", SOME.datasets)),
        by.key("imatrix.chunk_count", by.scalar("uint32", 8)),
        by.key("imatrix.chunk_size", by.scalar("uint32", 512)),
    ]
    tensors = [
        by.tensor(f"{dense}.in_sum2", [64], offset=0),
        by.tensor(f"{dense}.counts", [1], offset=256),
        by.tensor(f"{experts}.in_sum2", [32, 4], offset=288),
        by.tensor(f"{experts}.counts", [1, 4], offset=800),
    ]
    data = DENSE.sums.astype("<f4").tobytes() + struct.pack("<f28x", 512) + EXPERTS.sums.tobytes()
    data += struct.pack("<4f16x", 3, 0, 100, 1)
    assert (tmp_path / "a.gguf").read_bytes() == by.gguf(keys, tensors, data)
    witness = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    assert np.array_equal(witness[f"{experts}.in_sum2"].data, EXPERTS.sums)


def test_no_text_and_no_chunks(tmp_path):
    write_imatrix(tmp_path / "a.gguf", Imatrix({"w": DENSE}))
    assert read_gguf(tmp_path / "a.gguf").metadata["imatrix.datasets"] == Value("string", ())
    read = read_imatrix(tmp_path / "a.gguf")
    assert (read.datasets, read.chunk_count, read.chunk_size) == ((), 0, 0)


def test_importance_is_the_mean_of_squares():
    found = SOME.importance("blk.0.attn_q.weight")
    assert found.dtype == np.float32
    assert np.array_equal(found, DENSE.sums.astype(np.float32) / np.float32(512))


def test_an_expert_without_tokens_counts_evenly():
    found = SOME.importance("blk.1.ffn_up_exps.weight")
    assert np.array_equal(found[1], np.ones(32))
    for place in (0, 2, 3):
        assert np.array_equal(found[place], EXPERTS.sums[place] / EXPERTS.counts[place])
    assert np.array_equal(Imatrix({"w": Entry(np.zeros((2, 4)), np.zeros(2))}).importance("w"), np.ones((2, 4)))


def test_counts_are_rounded_as_llama_quantize_does():
    entry = Entry(np.full((5, 1), 6.0), np.array([0.49, 0.5, 1.5, 2.5, 2.49]))
    assert Imatrix({"w": entry}).importance("w").tolist() == [[1], [6], [3], [2], [3]]


def legacy(*entries, chunks=None, text=None, tail=b""):
    raw = struct.pack("<i", len(entries))
    for name, calls, values in entries:
        encoded = name.encode()
        raw += struct.pack(f"<i{len(encoded)}sii", len(encoded), encoded, calls, len(values))
        raw += np.asarray(values, "<f4").tobytes()
    raw += b"" if chunks is None else struct.pack("<i", chunks)
    return raw + (b"" if text is None else struct.pack(f"<i{len(text)}s", len(text), text)) + tail


def test_the_older_files(tmp_path):
    path = tmp_path / "imatrix.dat"
    values = RANDOM.random(12, np.float32)
    for chunks, text, datasets in ((None, None, ()), (7, None, ()), (7, b"", ()), (7, b"wiki.txt", ("wiki.txt",))):
        path.write_bytes(legacy(("blk.0.w", 7, values * 7), ("never", 0, values), chunks=chunks, text=text))
        read = read_imatrix(path)
        assert (read.datasets, read.chunk_count, read.chunk_size) == (datasets, chunks or 0, 0)
        assert np.array_equal(read.importance("blk.0.w"), (values * np.float32(7) / np.float32(7))[None])
        # Where no chunk is counted the values are taken as they are.
        assert np.array_equal(read.importance("never"), values[None])


def test_experts_of_the_older_files(tmp_path):
    path = tmp_path / "imatrix.dat"
    path.write_bytes(legacy(("w", 1, range(12))))
    read = read_imatrix(path)
    assert read.importance("w").shape == (1, 12)
    assert np.array_equal(read.importance("w", columns=4), np.arange(12).reshape(3, 4))
    with pytest.raises(
        BadInputError, match=r"imatrix.dat: found 12 values for 'w', expected a multiple of 5"
    ) as caught:
        read.importance("w", columns=5)
    assert "this very model" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("sums", "counts", "message"),
    [
        (np.array([[1.0, -0.5]]), np.ones(1), "found a sum of -0.5 for 'w'"),
        (np.array([[1.0, np.nan]]), np.ones(1), "found a sum of nan for 'w'"),
        (np.array([[1.0, np.inf]]), np.ones(1), "found a sum of inf for 'w'"),
        (np.array([[1.0, 1e39]]), np.ones(1), "found a sum of inf for 'w'"),  # beyond float32
        (np.ones((2, 2)), np.array([1.0, -1]), "found a count of -1.0 for 'w'"),
        (np.ones((2, 2)), np.array([np.nan, 1]), "found a count of nan for 'w'"),
    ],
)
def test_sums_that_cannot_be(tmp_path, sums, counts, message):
    with pytest.raises(BadInputError, match=message):
        write_imatrix(tmp_path / "a.gguf", Imatrix({"w": Entry(sums, counts)}))
    assert list(tmp_path.iterdir()) == []


def test_entries_that_do_not_fit(tmp_path):
    for sums, counts in ((np.ones(4), np.ones(1)), (np.ones((2, 4)), np.ones(1)), (np.ones((1, 0)), np.ones(1))):
        with pytest.raises(ValueError, match=r"sums .* and counts .* of 'w'"):
            write_imatrix(tmp_path / "a.gguf", Imatrix({"w": Entry(sums, counts)}))
    with pytest.raises(ValueError, match="without entries"):
        write_imatrix(tmp_path / "a.gguf", Imatrix({}))
    with pytest.raises(BadInputError, match="expected 1 to 63 bytes"):
        write_imatrix(tmp_path / "a.gguf", Imatrix({"w" * 60: DENSE}))
    assert list(tmp_path.iterdir()) == []
