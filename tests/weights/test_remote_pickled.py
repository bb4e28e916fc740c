"""Headers of .bin shards from ranges alone: the same table as from the whole file, for few bytes."""

import pickle
import random
import zipfile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantkit.errors import BadInputError
from quantkit.hub.repository import resolve
from quantkit.weights import remote_pickled
from quantkit.weights.local import LocalSource
from quantkit.weights.pickled import read_pickled_header
from quantkit.weights.remote import RepoSnapshot
from quantkit.weights.remote_headers import RemoteHeaders
from quantkit.weights.remote_pickled import fetch_pickled_header

REPO = "some/model"
SHARDS = [f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2)]
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int8)


@pytest.fixture
def ranges(monkeypatch):
    """The Hub as a function of bytes, with small blocks; it counts what was asked for."""
    files, asked = {}, []

    def read_range(snapshot, name, start, stop):
        asked.append(stop - start)
        return files[name][start:stop]

    monkeypatch.setattr(remote_pickled, "read_range", read_range)
    monkeypatch.setattr(remote_pickled, "BLOCK_BYTES", 512)
    monkeypatch.setattr(remote_pickled, "TAIL_BYTES", 512)

    def fetch(path):
        asked.clear()
        files[path.name] = path.read_bytes()
        snapshot = RepoSnapshot(REPO, None, "1" * 40, {path.name: path.stat().st_size})
        return fetch_pickled_header(snapshot, path.name), sum(asked)

    return fetch


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 3000), st.sampled_from(DTYPES)), min_size=1, max_size=12))
def test_the_table_is_that_of_the_whole_file(tmp_path_factory, tensors):
    path = tmp_path_factory.getbasetemp() / "a.bin"
    state = {f"layer.{number}": torch.zeros(count, dtype=dtype) for number, (count, dtype) in enumerate(tensors)}
    torch.save(state | {"tied": state["layer.0"]}, path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote_pickled, "BLOCK_BYTES", 512)
        patch.setattr(remote_pickled, "TAIL_BYTES", 512)
        patch.setattr(remote_pickled, "read_range", lambda _, name, start, stop: path.read_bytes()[start:stop])
        snapshot = RepoSnapshot(REPO, None, "1" * 40, {"a.bin": path.stat().st_size})
        assert fetch_pickled_header(snapshot, "a.bin") == read_pickled_header(path)


def test_weights_are_not_fetched(ranges, tmp_path):
    path = tmp_path / "a.bin"
    torch.save({f"model.layers.{number}.weight": torch.zeros(200_000) for number in range(40)}, path)
    infos, fetched = ranges(path)
    assert infos == read_pickled_header(path)
    assert len(infos) == 40
    assert fetched < 30_000 < path.stat().st_size / 1000


def test_torchs_alignment_and_larger_ones(ranges, tmp_path):
    path = tmp_path / "a.bin"
    for alignment in (64, 4096):
        with torch.utils.serialization.config.patch("save.storage_alignment", alignment):
            torch.save({name: torch.zeros(5000) for name in "abc"}, path)
        infos, fetched = ranges(path)
        assert infos == read_pickled_header(path)
        assert fetched < path.stat().st_size


def test_files_of_other_writers_need_their_own_headers(ranges, tmp_path):
    path = tmp_path / "a.bin"
    torch.save({name: torch.zeros(5000) for name in "abc"}, path)
    with zipfile.ZipFile(path) as archive:
        records = [(record.filename, archive.read(record)) for record in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in records:
            archive.writestr(name, data)
    assert ranges(path)[0] is None


def test_a_bare_pickle_needs_the_whole_file(ranges, tmp_path):
    path = tmp_path / "a.bin"
    torch.save({"a": torch.zeros(5000)}, path, _use_new_zipfile_serialization=False)
    assert ranges(path) == (None, remote_pickled.BLOCK_BYTES)


class Harmful:
    def __reduce__(self):
        return pickle.loads, (b"never",)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": Harmful()}, "in its pickle"),
        ([torch.zeros(5000)], "no dictionary of tensors"),
        ({"a": torch.zeros(200, 100).t()}, "expected contiguous"),
    ],
)
def test_what_is_refused_in_a_file_is_refused_from_ranges(ranges, tmp_path, state, message):
    path = tmp_path / "a.bin"
    torch.save(state, path)
    with pytest.raises(BadInputError, match=message):
        read_pickled_header(path)
    with pytest.raises(BadInputError, match=message):
        ranges(path)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"PK\x03\x04" + bytes(5000), b"<html>" + bytes(5000)])
def test_other_files(ranges, tmp_path, data):
    (tmp_path / "a.bin").write_bytes(data)
    with pytest.raises(BadInputError, match=r"a\.bin"):
        ranges(tmp_path / "a.bin")


def test_a_large_pickle_is_not_fetched(ranges, tmp_path, monkeypatch):
    path = tmp_path / "a.bin"
    torch.save({f"{number}" * 10: torch.zeros(1) for number in range(500)} | {"large": torch.zeros(20_000)}, path)
    monkeypatch.setattr(remote_pickled, "MAX_RECORD_BYTES", 2000)
    with pytest.raises(BadInputError, match=r"the record 'a/data\.pkl' of \d+ bytes, expected at most 2000"):
        ranges(path)


def test_the_sum_of_all_records_is_bounded(ranges, tmp_path, monkeypatch):
    path = tmp_path / "a.bin"
    torch.save({f"{number}" * 10: torch.zeros(1) for number in range(500)} | {"large": torch.zeros(20_000)}, path)
    monkeypatch.setattr(remote_pickled, "MAX_FETCHED_BYTES", 5000)
    with pytest.raises(BadInputError, match="more than 5000 bytes"):
        ranges(path)


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_damaged_files_are_read_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "damaged.bin"
    torch.save({"a": torch.zeros(3000), "b": torch.ones(2).half(), "c": torch.zeros(3000)}, path)
    raw = bytearray(path.read_bytes())
    places = st.integers(0, 1500) | st.integers(len(raw) - 1500, len(raw) - 1)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(places)
        raw[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote_pickled, "BLOCK_BYTES", 512)
        patch.setattr(remote_pickled, "TAIL_BYTES", 512)
        patch.setattr(remote_pickled, "read_range", lambda _, name, start, stop: bytes(raw[start:stop]))
        try:
            infos = fetch_pickled_header(RepoSnapshot(REPO, None, "1" * 40, {"a.bin": len(raw)}), "a.bin")
        except BadInputError:
            return
    for info in (infos or {}).values():
        assert info.offset + info.nbytes <= len(raw)


def test_a_repository_of_bin_shards(loopback, hub_client, tmp_path):
    generator = torch.Generator().manual_seed(1)
    state = [{f"t{shard}.{n}": torch.randn(300, 500, generator=generator) for n in range(3)} for shard in range(2)]
    files = {"config.json": b"{}"}
    for name, tensors in zip(SHARDS, state, strict=True):
        torch.save(tensors, tmp_path / name)
        files[name] = (tmp_path / name).read_bytes()
    names = {tensor: name for name, tensors in zip(SHARDS, state, strict=True) for tensor in tensors}
    (tmp_path / "pytorch_model.bin.index.json").write_text(f'{{"weight_map": {names}}}'.replace("'", '"'))
    files["pytorch_model.bin.index.json"] = (tmp_path / "pytorch_model.bin.index.json").read_bytes()
    loopback.add_repo(REPO, files)
    for _ in range(2):
        loopback.fail(SHARDS[random.Random(1).randrange(2)], "reset", after=1000, origin="cdn")
    remote = RemoteHeaders(resolve(REPO))
    local = LocalSource(tmp_path)
    assert remote.infos == local.infos
    assert remote.weight_map == names
    assert remote.total_size == 6 * 300 * 500 * 4
    assert loopback.sent(origin="cdn") < sum(map(len, files.values())) / 2
