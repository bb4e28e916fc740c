"""Ranges of a tensor's values from any thread: widened exactly, from any layout, without holding the tensor."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import save_file

from quantkit.errors import BadInputError, DiskError, NotFoundError
from quantkit.weights import ranges
from quantkit.weights.local import LocalSource
from quantkit.weights.ranges import FileRanges, WholeTensors

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
# Zeros of both signs, subnormal, largest and non-finite values: all 16-bit patterns occur below.
PATTERNS = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)


def read(held, name, first, size):
    out = np.full(size, np.nan, np.float32)
    held.read(name, first, out)
    return out


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_16_bit_pattern_is_widened_exactly(tmp_path, dtype):
    save_file({"x": PATTERNS.view(dtype)}, tmp_path / "model.safetensors")
    with FileRanges(tmp_path, LocalSource(tmp_path).infos) as held:
        found = read(held, "x", 0, len(PATTERNS))
    expected = PATTERNS.view(dtype).float().numpy()
    nan = np.isnan(expected)
    assert nan.any()
    assert np.array_equal(np.isnan(found), nan)
    assert np.array_equal(found[~nan].view(np.uint32), expected[~nan].view(np.uint32))


@pytest.mark.parametrize("layout", ["safetensors", "sharded", "bin", "bin-sharded"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_range_of_any_tensor(tmp_path, layout, dtype):
    weights = {f"x{n}": torch.randn(n + 3, 17, generator=torch.Generator().manual_seed(n)).to(dtype) for n in range(6)}
    tiny.write_weights(tmp_path, weights, layout)
    with FileRanges(tmp_path, LocalSource(tmp_path).infos) as held:
        for name, weight in weights.items():
            expected = weight.float().reshape(-1).numpy()
            for first, size in ((0, weight.numel()), (5, 1), (16, 20), (weight.numel() - 3, 3)):
                assert np.array_equal(read(held, name, first, size), expected[first : first + size]), (name, first)


def test_a_value_beyond_float32_is_an_infinity(tmp_path):
    save_file({"x": torch.tensor([1e300, -1e300, 1.0], dtype=torch.float64)}, tmp_path / "model.safetensors")
    with FileRanges(tmp_path, LocalSource(tmp_path).infos) as held:
        assert read(held, "x", 0, 3).tolist() == [np.inf, -np.inf, 1.0]


def test_threads_do_not_disturb_one_another(tmp_path):
    weights = {f"x{n}": torch.full((100, 50), float(n), dtype=torch.bfloat16) for n in range(8)}
    tiny.write_weights(tmp_path, weights, "sharded")
    together = threading.Barrier(4)
    with FileRanges(tmp_path, LocalSource(tmp_path).infos) as held:

        def work(number):
            together.wait()
            for turn in range(200):
                name = (number * 3 + turn) % 8
                if not (read(held, f"x{name}", 100 + turn, 4000) == name).all():
                    return False
            return True

        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(work, range(4))) == [True] * 4


def test_memory_is_used_again(tmp_path, monkeypatch):
    save_file({"x": torch.zeros(1000, dtype=torch.float16)}, tmp_path / "model.safetensors")
    asked = []
    before = np.empty
    monkeypatch.setattr(ranges.np, "empty", lambda size, *more: asked.append(size) or before(size, *more))
    with FileRanges(tmp_path, LocalSource(tmp_path).infos) as held:
        for size in (1000, 10, 1000, 1):
            held.read("x", 0, np.zeros(size, np.float32))
    assert [size for size in asked if size] == [2000]


def test_files_are_closed(tmp_path):
    save_file({"x": torch.zeros(4)}, tmp_path / "model.safetensors")
    held = FileRanges(tmp_path, LocalSource(tmp_path).infos)
    with held:
        read(held, "x", 0, 4)
        (descriptor,) = held._descriptors.values()
    with pytest.raises(OSError, match="Bad file descriptor"):
        ranges.os.fstat(descriptor)


# Files that change under the reader.


@pytest.fixture
def folder(tmp_path):
    save_file({"x": torch.zeros(1000)}, tmp_path / "model.safetensors")
    return tmp_path


def test_a_file_that_became_shorter(folder):
    infos = LocalSource(folder).infos
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with FileRanges(folder, infos) as held:
        assert read(held, "x", 0, 999).tolist() == [0.0] * 999
        with pytest.raises(BadInputError, match=r"model\.safetensors: it ends inside tensor 'x'"):
            read(held, "x", 0, 1000)


def test_a_file_that_is_gone(folder):
    infos = LocalSource(folder).infos
    (folder / "model.safetensors").unlink()
    with FileRanges(folder, infos) as held, pytest.raises(NotFoundError, match=r"no such file: .*model\.safetensors"):
        read(held, "x", 0, 1)


def test_a_disk_that_does_not_read(folder, monkeypatch):
    def fail(*_):
        raise OSError(5, "Input/output error")

    with FileRanges(folder, LocalSource(folder).infos) as held:
        monkeypatch.setattr(ranges.os, "preadv", fail)
        with pytest.raises(DiskError, match=r"cannot read .*model\.safetensors: Input/output error"):
            read(held, "x", 0, 1)


def test_a_read_may_come_in_pieces(folder, monkeypatch):
    save_file({"x": torch.arange(1000.0)}, folder / "model.safetensors")
    before = ranges.os.preadv
    monkeypatch.setattr(ranges.os, "preadv", lambda file, views, at: before(file, [views[0][:701]], at))
    with FileRanges(folder, LocalSource(folder).infos) as held:
        assert read(held, "x", 7, 900).tolist() == list(range(7, 907))


# Sources that give whole tensors.


class Counting:
    """A source that counts what is asked of it."""

    def __init__(self, weights):
        self.weights, self.asked = weights, []

    def read(self, name):
        self.asked.append(name)
        return self.weights[name]


def test_whole_tensors_are_read_once_and_let_go():
    weight = torch.randn(6, 5).to(torch.bfloat16)
    source = Counting({"x": weight, "y": weight.T})
    with WholeTensors(source) as held:
        expected = weight.float().reshape(-1).numpy()
        for first in (0, 7, 20):
            assert np.array_equal(read(held, "x", first, 10), expected[first : first + 10])
        assert np.array_equal(read(held, "y", 0, 30), weight.float().T.reshape(-1).numpy())
        assert source.asked == ["x", "y"]
        held.forget(("x", "never"))
        read(held, "y", 0, 1)
        read(held, "x", 0, 1)
        assert source.asked == ["x", "y", "x"]


def test_many_threads_ask_for_one_tensor_once():
    source = Counting({"x": torch.arange(64.0)})
    with WholeTensors(source) as held, ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda first: read(held, "x", first, 8).tolist(), range(0, 56, 2)))
    assert found == [list(range(first, first + 8)) for first in range(0, 56, 2)]
    assert source.asked == ["x"]
