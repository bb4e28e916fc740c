import errno
import hashlib
import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from quantkit.dtypes import DTYPE_NAMES, DTYPES
from quantkit.errors import DiskError
from quantkit.tensors import TensorInfo
from quantkit.weights.shards import ShardWriter, index_json, is_finished, shard_names

NAME = "model.safetensors"
PARTIAL = ".model.safetensors.partial"


def some_tensors() -> dict[str, torch.Tensor]:
    tensors = {name: torch.arange(6).view(2, 3).to(dtype) for name, dtype in DTYPES.items()}
    return tensors | {
        "odd": torch.ones(3, dtype=torch.uint8),
        "empty": torch.zeros(0, 2),
        "é": torch.tensor(1.5),
    }


def infos_of(tensors: dict[str, torch.Tensor]) -> list[TensorInfo]:
    return [TensorInfo(name, DTYPE_NAMES[t.dtype], tuple(t.shape), NAME) for name, t in tensors.items()]


def write_all(folder, tensors):
    with ShardWriter(folder, NAME, infos_of(tensors)) as writer:
        for name in reversed(tensors):
            writer.write(name, tensors[name])
        return writer.finish()


def test_the_library_reads_what_was_written_in_any_order(tmp_path):
    tensors = some_tensors()
    path = write_all(tmp_path, tensors)
    assert [file.name for file in tmp_path.iterdir()] == [NAME]
    read = load_file(path)
    assert set(read) == set(tensors)
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name].float(), tensor.float())
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_same_bytes_every_time(tmp_path):
    digests = set()
    for run in "ab":
        (tmp_path / run).mkdir()
        digests.add(hashlib.sha256(write_all(tmp_path / run, some_tensors()).read_bytes()).hexdigest())
    assert len(digests) == 1


def test_literal_bytes(tmp_path):
    path = write_all(tmp_path, {"a": torch.tensor([1, 2], dtype=torch.int32)})
    text = b'{"__metadata__":{"format":"pt"},"a":{"dtype":"I32","shape":[2],"data_offsets":[0,8]}}'
    assert path.read_bytes() == b"\x58" + bytes(7) + text.ljust(88) + b"\1\0\0\0\2\0\0\0"


def test_every_tensor_is_aligned(tmp_path):
    with ShardWriter(tmp_path, NAME, infos_of(some_tensors())) as writer:
        assert all(info.offset % DTYPES[info.dtype].itemsize == 0 for info in writer.infos.values())


def test_wrong_tensors_are_refused(tmp_path):
    with ShardWriter(tmp_path, NAME, infos_of({"a": torch.ones(2)})) as writer:
        for name, tensor in (("a", torch.ones(3)), ("a", torch.ones(2).half()), ("b", torch.ones(2))):
            with pytest.raises(ValueError, match="expected"):
                writer.write(name, tensor)
        with pytest.raises(ValueError, match="1 tensors not written, such as 'a'"):
            writer.finish()
    assert [file.name for file in tmp_path.iterdir()] == [PARTIAL]
    twice = infos_of({"a": torch.ones(2)}) * 2
    with pytest.raises(ValueError, match="occurs twice"):
        ShardWriter(tmp_path, NAME, twice)
    with pytest.raises(ValueError, match="F4"):
        ShardWriter(tmp_path, NAME, [TensorInfo("a", "F4", (1,), NAME)])


def test_non_contiguous_tensors_and_reading_back(tmp_path):
    tensor = torch.arange(12.0).view(3, 4).T
    with ShardWriter(tmp_path, NAME, infos_of({"a": tensor})) as writer:
        writer.write("a", tensor)
        assert torch.equal(writer.read_back("a"), tensor)
        writer.finish()
        assert torch.equal(writer.read_back("a"), tensor)


def test_a_killed_run_continues(tmp_path):
    tensors = {"a": torch.ones(1000), "b": torch.full((1000,), 2.0)}
    code = f"""
import os, signal, torch
from pathlib import Path
from quantkit.tensors import TensorInfo
from quantkit.weights.shards import ShardWriter
infos = [TensorInfo(name, "F32", (1000,), {NAME!r}) for name in "ab"]
writer = ShardWriter(Path({str(tmp_path)!r}), {NAME!r}, infos)
writer.write("a", torch.ones(1000))
writer.sync()
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert not is_finished(tmp_path, NAME, infos_of(tensors))
    with ShardWriter.reopen(tmp_path, NAME, infos_of(tensors)) as writer:
        assert writer.resumed
        writer.mark_written(["a"])
        assert writer.missing == ["b"]
        writer.write("b", tensors["b"])
        path = writer.finish()
    assert is_finished(tmp_path, NAME, infos_of(tensors))
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in load_file(path).items())


def test_another_header_starts_anew(tmp_path):
    with ShardWriter(tmp_path, NAME, infos_of({"a": torch.ones(2)})) as writer:
        writer.write("a", torch.ones(2))
    with ShardWriter.reopen(tmp_path, NAME, infos_of({"a": torch.ones(3)})) as writer:
        assert not writer.resumed
        writer.mark_written([])
        with pytest.raises(ValueError, match="started anew"):
            writer.mark_written(["a"])
    with ShardWriter.reopen(tmp_path, NAME, infos_of({"a": torch.ones(3)})) as writer:
        assert writer.resumed
        with pytest.raises(ValueError, match="no tensor 'b'"):
            writer.mark_written(["b"])


def refuse(code):
    def fail(*_):
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite", "fsync"])
def test_a_full_disk_is_known_before_any_work(tmp_path, monkeypatch, call, code):
    monkeypatch.setattr(os, call, refuse(code))
    with pytest.raises(DiskError, match=r"cannot write .*needed .* free") as caught:
        ShardWriter(tmp_path, NAME, infos_of({"a": torch.ones(2)}))
    assert caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_reservation_still_works(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "posix_fallocate", refuse(errno.EOPNOTSUPP))
    assert write_all(tmp_path, {"a": torch.ones(2)}).is_file()


@pytest.mark.parametrize("call", ["pwrite", "fsync", "fdatasync"])
def test_later_failures_leave_nothing_at_the_final_name(tmp_path, monkeypatch, call):
    with ShardWriter(tmp_path, NAME, infos_of({"a": torch.ones(2)})) as writer:

        def go_on():
            writer.write("a", torch.ones(2))
            writer.sync()
            writer.finish()

        monkeypatch.setattr(os, call, refuse(errno.ENOSPC))
        with pytest.raises(DiskError):
            go_on()
    assert [file.name for file in tmp_path.iterdir()] == [PARTIAL]


def test_folder_that_cannot_be_written(tmp_path):
    with pytest.raises(DiskError, match="No such file"):
        ShardWriter(tmp_path / "absent", NAME, infos_of({"a": torch.ones(2)}))


def test_names_and_index():
    assert shard_names(1) == ["model.safetensors"]
    assert shard_names(2) == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    infos = [TensorInfo("b", "F16", (3,), "y"), TensorInfo("a", "F32", (2, 2), "x")]
    raw = index_json(infos)
    assert json.loads(raw) == {"metadata": {"total_size": 22}, "weight_map": {"a": "x", "b": "y"}}
    assert raw.index(b'"a"') < raw.index(b'"b"')
