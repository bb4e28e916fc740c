"""Memory that runs out in a layer: a sentence with the layer, a code, finished layers kept."""

import importlib
import re

import numpy as np
import processes
import pytest
import torch
from processes import assert_nothing_broken, contents, one_sentence

from quantkit.methods import gptq

server, source, whole, quantkit = processes.server, processes.source, processes.whole, processes.quantkit


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    processes.quicken(monkeypatch)


def torch_host():
    torch.empty(2**60, dtype=torch.uint8)


def torch_gpu():
    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def numpy_host():
    np.empty(2**60, np.uint8)


def failing(function, call, allocate):
    """A function that at one of its calls finds no memory."""
    calls = []

    def wrapped(*given, **options):
        calls.append(1)
        if len(calls) == call:
            allocate()
        return function(*given, **options)

    return wrapped


@pytest.mark.parametrize("allocate", [torch_host, numpy_host, torch_gpu])
@pytest.mark.parametrize(
    "place", ["methods.gptq.factorize", "methods.gptq.choose_scales", "pipeline.layerwise.batches"]
)
def test_memory_that_runs_out_in_a_layer_is_said_with_its_number(
    quantkit, whole, tmp_path, monkeypatch, place, allocate
):
    """Each is called twice in a layer and more."""
    module, _, name = place.rpartition(".")
    function = getattr(importlib.import_module(f"quantkit.{module}"), name)
    with monkeypatch.context() as patch:
        patch.setattr(f"quantkit.{place}", failing(function, 4, allocate))
        code, err = quantkit(tmp_path / "out")
    assert code == 7
    assert re.search(r"out of memory in (layer 1:|model\.layers\.1\.)", one_sentence(err)), err
    assert "finished layers are kept" in err
    assert_nothing_broken(tmp_path / "out", whole)
    code, err = quantkit(tmp_path / "out")
    assert code == 0
    assert "continuing: 1 of 2 layers are finished\n" in err
    assert contents(tmp_path / "out") == contents(whole)


def test_memory_that_runs_out_while_layers_are_replayed_is_said(quantkit, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("quantkit.methods.gptq.factorize", failing(gptq.factorize, 3, numpy_host))
        assert quantkit(tmp_path / "out")[0] == 7
    with monkeypatch.context() as patch:
        patch.setattr("quantkit.pipeline.gptq_pass.advance", lambda *_: torch_host())
        code, err = quantkit(tmp_path / "out")
    assert (code, "out of memory in layer 0: " in one_sentence(err)) == (7, True)
    assert quantkit(tmp_path / "out")[0] == 0
    assert contents(tmp_path / "out") == contents(whole)


def test_other_errors_in_a_layer_are_no_want_of_memory(quantkit, tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr("quantkit.methods.gptq.factorize", broken)
    with pytest.raises(RuntimeError, match="mat1"):
        quantkit(tmp_path / "out")
