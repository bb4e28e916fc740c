import os
import pickle
import zipfile
from collections import OrderedDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantkit.dtypes import DTYPES
from quantkit.errors import BadInputError, NotFoundError
from quantkit.weights.local import byte_view, read_range
from quantkit.weights.pickled import read_pickled_header


def save(path, value, **options):
    torch.save(value, path, **options)
    return path


def assert_reads_as_torch(path):
    expected = torch.load(path, weights_only=True)
    infos = read_pickled_header(path)
    assert list(infos) == list(expected)
    for name, tensor in expected.items():
        read = read_range(path, infos[name])
        assert (read.dtype, read.shape) == (tensor.dtype, tensor.shape)
        if read.numel():
            assert byte_view(read).tobytes() == byte_view(tensor).tobytes()
    return infos


@pytest.mark.parametrize("kind", [dict, OrderedDict])
def test_every_dtype(tmp_path, kind):
    state = kind((name, torch.arange(-3, 3).view(2, 3).to(dtype)) for name, dtype in DTYPES.items())
    assert_reads_as_torch(save(tmp_path / "a.bin", state))


def test_views_ties_parameters_scalars_and_empty_tensors(tmp_path):
    base = torch.arange(24.0).view(4, 6)
    state = {
        "base": base,
        "rows": base[2:],
        "row": base[1],
        "value": base[3, 5],
        "tied": base,
        "parameter": torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16)),
        "scalar": torch.tensor(7),
        "empty": torch.zeros(3, 0),
        "of one": torch.ones(1, 4).T.contiguous(),
    }
    infos = assert_reads_as_torch(save(tmp_path / "a.bin", state))
    assert infos["tied"].offset == infos["base"].offset
    assert infos["rows"].offset == infos["base"].offset + 48


def test_state_of_a_module(tmp_path):
    module = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    assert_reads_as_torch(save(tmp_path / "a.bin", module.state_dict()))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.sampled_from(list(DTYPES.values())), st.integers(0, 5), st.integers(0, 5)), min_size=1))
def test_any_slices(tmp_path_factory, rows):
    state = {}
    for number, (dtype, start, count) in enumerate(rows):
        state[str(number)] = torch.arange(20).view(10, 2).to(dtype)[start : start + count]
    assert_reads_as_torch(save(tmp_path_factory.getbasetemp() / "any.bin", state))


class Canary:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def canaries(path):
    return [Canary(path), {"a": Canary(path)}, {"a": torch.ones(1), "b": [Canary(path)]}]


@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("zipped", [True, False])
def test_code_is_never_run(tmp_path, which, zipped):
    canary = tmp_path / "canary"
    path = save(tmp_path / "a.bin", canaries(canary)[which], _use_new_zipfile_serialization=zipped)
    with pytest.raises(BadInputError, match=r"a\.bin: found"):
        read_pickled_header(path)
    assert not canary.exists()


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ([torch.ones(1)], "no dictionary of tensors"),
        ({}, "no dictionary of tensors"),
        (torch.ones(1), "no dictionary of tensors"),
        ({"state_dict": {"a": torch.ones(1)}}, "found dict under 'state_dict', expected a tensor"),
        ({"epoch": 3}, "found int under 'epoch'"),
        ({1: torch.ones(1)}, "found the key 1"),
        ({"a\n": torch.ones(1)}, "found the key"),
        ({"a": torch.ones(2, 3).T}, r"strides \(1, 3\) for shape \[3, 2\]"),
        ({"a": torch.ones(1, 2).expand(3, 2)}, "strides"),
        ({"a": torch.ones(2, dtype=torch.complex64)}, "complex64"),
        ({"a": torch.ones(2).to_sparse()}, "a.bin"),
    ],
)
def test_other_contents_are_refused(tmp_path, state, message):
    with pytest.raises(BadInputError, match=message):
        read_pickled_header(save(tmp_path / "a.bin", state))


def test_legacy_form_is_refused_with_a_hint(tmp_path):
    path = save(tmp_path / "a.bin", {"a": torch.ones(1)}, _use_new_zipfile_serialization=False)
    with pytest.raises(BadInputError, match="expected the zip form") as caught:
        read_pickled_header(path)
    assert "safetensors" in caught.value.hint


def rewrite(path, change):
    """The same archive with records changed by `change(name, data) -> (data, compression)`."""
    with zipfile.ZipFile(path) as archive:
        records = [(record.filename, archive.read(record)) for record in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in records:
            data, compression = change(name, data)
            archive.writestr(name, data, compression)
    return path


def test_compressed_big_endian_and_short_records(tmp_path):
    path = save(tmp_path / "a.bin", {"a": torch.ones(64)})
    plain = path.read_bytes()
    with pytest.raises(BadInputError, match="compressed"):
        read_pickled_header(rewrite(path, lambda name, data: (data, zipfile.ZIP_DEFLATED)))
    path.write_bytes(plain)
    with pytest.raises(BadInputError, match="big-endian"):
        read_pickled_header(
            rewrite(path, lambda name, data: (b"big" if name.endswith("byteorder") else data, zipfile.ZIP_STORED))
        )
    path.write_bytes(plain)
    with pytest.raises(BadInputError, match="beyond its storage"):
        read_pickled_header(
            rewrite(path, lambda name, data: (data[:8] if "/data/" in name else data, zipfile.ZIP_STORED))
        )


def test_places_come_from_the_zip_directory(tmp_path):
    """torch computes them from its own order and padding, and is wrong where another writer has others."""
    state = {name: torch.full((4,), float(number)) for number, name in enumerate("abc")}
    path = save(tmp_path / "a.bin", state)
    with zipfile.ZipFile(path) as archive:
        records = [(record.filename, archive.read(record)) for record in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in reversed(records):
            archive.writestr(name, data)
    assert_reads_as_torch(path)


def test_storages_that_are_not_there_or_twice(tmp_path):
    path = save(tmp_path / "a.bin", {"a": torch.ones(2), "b": torch.ones(3)})
    with zipfile.ZipFile(path) as archive:
        records = [(record.filename, archive.read(record)) for record in archive.infolist()]
    for kept in (records[:-4], [*records, ("x" + records[0][0], b"")]):
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in kept:
                archive.writestr(name, data)
        with pytest.raises(BadInputError, match=r"a\.bin: found"):
            read_pickled_header(path)


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(NotFoundError):
        read_pickled_header(tmp_path / "a.bin")
    for data in (b"", b"PK\x03\x04", b"PK\x03\x04" + bytes(100), pickle.dumps({"a": 1})):
        (tmp_path / "a.bin").write_bytes(data)
        with pytest.raises(BadInputError, match=r"a\.bin"):
            read_pickled_header(tmp_path / "a.bin")


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_damaged_files_are_read_or_refused(tmp_path_factory, data):
    path = save(tmp_path_factory.getbasetemp() / "damaged.bin", {"a": torch.ones(3, 2), "b": torch.ones(2).half()})
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, 700) | st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    path.write_bytes(raw)
    try:
        infos = read_pickled_header(path)
    except BadInputError:
        return
    for info in infos.values():
        read_range(path, info)
