"""The published vocabularies of llama.cpp's tests: read whole, as gguf-py reads them."""

import gguf
import pytest

from quantkit.weights.gguf_layout import layout
from quantkit.weights.gguf_read import open_gguf


@pytest.fixture(scope="module")
def vocabularies(data):
    found = sorted((data / "tokenizers" / "ggml-vocab").glob("*.gguf"))
    assert len(found) > 5
    return found


def test_what_gguf_py_reads_from_the_smallest(vocabularies):
    for path in sorted(vocabularies, key=lambda path: path.stat().st_size)[:3]:  # it takes seconds for each
        model, witness = open_gguf(path), gguf.GGUFReader(path)
        assert set(model.metadata) == {key for key in witness.fields if not key.startswith("GGUF.")}
        for key, value in model.metadata.items():
            field = witness.fields[key]
            assert (list(value.value) if value.is_array else value.value) == field.contents(), (path.name, key)
            assert field.types[-1].name == value.kind.upper()


def test_they_are_written_as_they_were(vocabularies):
    """Keys in their order, values in their types: the bytes of other writers."""
    for path in vocabularies:
        raw = layout(open_gguf(path).metadata, []).raw
        size = path.stat().st_size  # some end without padding
        assert raw[:size] == path.read_bytes()
        assert not any(raw[size:])
        assert len(raw) - size < 32
