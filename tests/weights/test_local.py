import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from quantkit.dtypes import DTYPES
from quantkit.errors import BadInputError, NotFoundError
from quantkit.weights import local
from quantkit.weights.local import LocalSource, read_range

INDEX = "model.safetensors.index.json"


def some_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(3, 5, generator=generator).mul(9).to(dtype) for name, dtype in DTYPES.items()}
    return tensors | {
        "scalar": torch.tensor(4.0),
        "empty": torch.zeros(0, 7),
        "model.rotary_emb.inv_freq": torch.ones(2),
    }


def assert_same(first: torch.Tensor, second: torch.Tensor) -> None:
    assert first.dtype == second.dtype
    assert first.shape == second.shape
    assert local.byte_view(first).tobytes() == local.byte_view(second).tobytes() if first.numel() else True


def write_index(folder, weight_map, **more):
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map} | more))


def write_sharded(folder):
    tensors = some_tensors()
    names = sorted(tensors)
    halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file_name, part in halves.items():
        save_file({name: tensors[name] for name in part}, folder / file_name)
    write_index(folder, {name: file_name for file_name, part in halves.items() for name in part})
    return tensors


@pytest.mark.parametrize("file_name", ["model.safetensors", "other.safetensors"])
def test_reads_one_file_as_the_library_does(tmp_path, file_name, monkeypatch):
    monkeypatch.setattr(local, "READ_BYTES", 7)
    save_file(some_tensors(), tmp_path / file_name)
    source = LocalSource(tmp_path)
    expected = load_file(tmp_path / file_name)
    assert set(source.infos) == set(expected)
    for name, tensor in expected.items():
        assert_same(source.read(name), tensor)


def test_reads_shards_as_the_library_does(tmp_path):
    expected = write_sharded(tmp_path)
    source = LocalSource(tmp_path)
    assert set(source.infos) == set(expected)
    for name, tensor in expected.items():
        assert_same(source.read(name), tensor)


def test_memory_is_its_own(tmp_path):
    save_file({"a": torch.ones(4)}, tmp_path / "model.safetensors")
    source = LocalSource(tmp_path)
    source.read("a").zero_()
    assert source.read("a").sum() == 4


def test_reads_bin_and_its_shards_as_torch_does(tmp_path):
    tensors = some_tensors()
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    source = LocalSource(tmp_path)
    for name, tensor in torch.load(tmp_path / "pytorch_model.bin", weights_only=True).items():
        assert_same(source.read(name), tensor)
    (tmp_path / "pytorch_model.bin").unlink()
    torch.save({"a": torch.ones(2)}, tmp_path / "one.bin")
    torch.save({"b": torch.zeros(2)}, tmp_path / "two.bin")
    index = {"weight_map": {"a": "one.bin", "b": "two.bin"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert [LocalSource(tmp_path).read(name).tolist() for name in "ab"] == [[1, 1], [0, 0]]


def test_safetensors_before_bin(tmp_path):
    torch.save({"old": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    save_file({"new": torch.ones(1)}, tmp_path / "model.safetensors")
    assert set(LocalSource(tmp_path).infos) == {"new"}


@pytest.mark.parametrize(
    "name", ["../a.safetensors", "/etc/passwd", "x/y.safetensors", "..", "", "a\\b", "C:a", "a\n", 3]
)
def test_index_may_not_lead_out_of_the_folder(tmp_path, name):
    write_index(tmp_path, {"a": name})
    with pytest.raises(BadInputError, match="inside the folder"):
        LocalSource(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["[]", "{}", "{", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"a": "b", "a": "c"}}'],
)
def test_bad_index(tmp_path, text):
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(BadInputError, match=r"index.json"):
        LocalSource(tmp_path)


def test_missing_shard(tmp_path):
    write_sharded(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(NotFoundError, match=r"1 of 2 shards .* missing: model-00002"):
        LocalSource(tmp_path)


def test_tensor_that_its_shard_does_not_hold(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "x.safetensors")
    write_index(tmp_path, {"a": "x.safetensors", "b": "x.safetensors"})
    with pytest.raises(BadInputError, match=r"'b' in x.safetensors, which does not hold it"):
        LocalSource(tmp_path)


def test_tensor_twice(tmp_path):
    save_file({"a": torch.ones(1), "c": torch.ones(1)}, tmp_path / "x.safetensors")
    save_file({"b": torch.ones(1), "c": torch.zeros(1)}, tmp_path / "y.safetensors")
    write_index(tmp_path, {"a": "x.safetensors", "b": "y.safetensors"})
    with pytest.raises(BadInputError, match=r"'c' in x.safetensors and y.safetensors"):
        LocalSource(tmp_path)
    write_index(tmp_path, {"a": "x.safetensors", "b": "y.safetensors", "c": "y.safetensors"})
    assert LocalSource(tmp_path).read("c").item() == 0


def test_nothing_to_read(tmp_path):
    with pytest.raises(NotFoundError, match="no weights"):
        LocalSource(tmp_path)
    with pytest.raises(NotFoundError, match="no such folder"):
        LocalSource(tmp_path / "absent")
    for name in "xy":
        save_file({name: torch.ones(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(BadInputError, match="2 safetensors files"):
        LocalSource(tmp_path)


def test_file_that_became_shorter_or_vanished(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(10)}, path)
    source = LocalSource(tmp_path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(BadInputError, match=r"found 36 bytes of tensor 'a' .* expected 40"):
        source.read("a")
    path.unlink()
    with pytest.raises(NotFoundError):
        read_range(path, source.infos["a"])
    with pytest.raises(BadInputError, match="no tensor 'b'"):
        source.read("b")
