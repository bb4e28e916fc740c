import errno
import os

import pytest

from quantkit.errors import DiskError
from quantkit.weights.files import copy_file, write_file


def test_writes_and_replaces(tmp_path):
    path = tmp_path / "a.json"
    for data in (b"one", b"two"):
        write_file(path, data)
        assert path.read_bytes() == data
    copy_file(path, tmp_path / "b.json")
    assert (tmp_path / "b.json").read_bytes() == b"two"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.json", "b.json"]


@pytest.mark.parametrize("action", ["write", "copy"])
def test_a_failure_leaves_the_old_file(tmp_path, monkeypatch, action):
    (tmp_path / "old").write_bytes(b"old")
    (tmp_path / "new").write_bytes(b"new")

    def fail(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(DiskError, match="needed 3 B, free"):
        write_file(tmp_path / "old", b"new") if action == "write" else copy_file(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 2


def test_unreadable_source(tmp_path):
    with pytest.raises(DiskError, match="cannot read"):
        copy_file(tmp_path / "absent", tmp_path / "b")
