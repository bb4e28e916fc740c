"""ggml's own encoders where ggml is absent, broken or another: refused before anything is called."""

import ctypes
import importlib.machinery

import numpy as np
import pytest

from quantkit.errors import BadInputError, UsageError
from quantkit.formats.ggml import native
from quantkit.formats.ggml.encode import encode, warm

VALUES = np.ones((1, 256), np.float32)


class FakeGgml:
    """Knows types as ggml does, and writes as many bytes as it is told."""

    def __init__(self, name=b"iq3_s", block=256, size=110, written=110):
        self.calls = []
        for function, answer in (
            ("ggml_type_name", name),
            ("ggml_blck_size", block),
            ("ggml_type_size", size),
            ("ggml_quantize_init", None),
            ("ggml_quantize_chunk", written),
        ):
            setattr(self, function, self.answering(function, answer))

    def answering(self, function, answer):
        def call(*_):
            self.calls.append(function)
            return answer

        return call


@pytest.fixture(autouse=True)
def _nothing_loaded():
    native._library.cache_clear()
    yield
    native._library.cache_clear()
    native._open.cache_clear()


@pytest.fixture
def found(monkeypatch, tmp_path):
    """Makes `find_spec` find a package with the given files."""

    def install(*files):
        native._open.cache_clear()
        for name in files:
            (tmp_path / name).write_bytes(b"not a library")
        spec = importlib.machinery.ModuleSpec("xllamacpp", None, is_package=True)
        spec.submodule_search_locations = [str(tmp_path)]
        monkeypatch.setattr(native.importlib.util, "find_spec", lambda _: spec)

    return install


def refused(message):
    return pytest.raises(UsageError, match=message)


def test_absent(monkeypatch):
    native._open.cache_clear()
    monkeypatch.setattr(native.importlib.util, "find_spec", lambda _: None)
    with refused("need ggml, which is not installed") as caught:
        encode("IQ3_S", VALUES)
    assert caught.value.hint == "pip install 'quantkit[ggml]'"
    warm(["IQ3_S"], importance=False)  # nothing to compile, so nothing to miss


def test_package_without_library(found):
    found()
    with refused("not installed"):
        native.require_ggml("IQ3_S")


def test_library_that_does_not_load(found):
    found("xllamacpp.abi3.so")
    with refused(r"xllamacpp\.abi3\.so: "):
        native.require_ggml("IQ3_S")


def test_library_without_the_function(found, monkeypatch):
    found("xllamacpp.abi3.so")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: ctypes.pythonapi)
    with refused("ggml_quantize_chunk"):
        native.require_ggml("IQ3_S")


@pytest.mark.parametrize("other", [{"name": b"iq3_xxs"}, {"name": None}, {"block": 32}, {"size": 98}])
def test_another_layout(monkeypatch, other):
    monkeypatch.setattr(native, "_open", lambda: FakeGgml(**other))
    with refused("expected IQ3_S with 256 weights in 110 bytes"):
        encode("IQ3_S", VALUES)


def test_other_size_written(monkeypatch):
    monkeypatch.setattr(native, "_open", lambda: FakeGgml(written=98))
    with refused("ggml wrote 98 bytes of IQ3_S, expected 110"):
        encode("IQ3_S", VALUES)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf, 1e5, -1e5])
def test_weights_that_ggml_would_end_the_process_for(monkeypatch, number):
    ggml, values = FakeGgml(), VALUES.copy()
    values[0, 7] = number
    monkeypatch.setattr(native, "_open", lambda: ggml)
    with pytest.raises(BadInputError, match=r"found weights from .*, expected at most 65504 for ggml's encoders"):
        encode("IQ3_S", values)
    with pytest.raises(BadInputError, match=r"found an importance from 1e.16 to 1e.16"):
        encode("IQ3_S", VALUES, np.full(256, 1e16, np.float32))
    assert "ggml_quantize_chunk" not in ggml.calls
