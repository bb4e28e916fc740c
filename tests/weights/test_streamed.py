"""A streamed source: what is on the disk when, in which order, and what a wrong file does."""

import threading

import pytest
import torch
from safetensors.torch import save_file

from quantkit.errors import BadInputError, NetworkError
from quantkit.weights.header import read_header
from quantkit.weights.streamed import HELD_SHARDS, StreamedSource

SHARDS, EACH = 6, 3


class Remote:
    """Shards in a folder that stands for the Hub; counts what is fetched and what stands on the disk."""

    def __init__(self, folder, disk):
        self.folder, self.disk = folder, disk
        self.fetched, self.most, self.fails = [], 0, []
        self.tensors, self.infos = {}, {}
        folder.mkdir()
        for shard in range(SHARDS):
            file = f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors"
            part = {f"t{shard}.{number}": torch.full((4, 8), shard + number / 8) for number in range(EACH)}
            save_file(part, folder / file)
            self.tensors |= part
            self.infos |= read_header(folder / file)
        self.names = sorted(self.infos)

    def fetch(self, file, path):
        if self.fails:
            raise self.fails.pop()
        self.fetched.append(file)
        path.write_bytes((self.folder / file).read_bytes())
        self.most = max(self.most, len(list(self.disk.iterdir())))

    def source(self):
        return StreamedSource(self.infos, self.disk, self.fetch)


@pytest.fixture
def remote(tmp_path):
    return Remote(tmp_path / "hub", tmp_path / "disk")


def test_shards_come_once_in_order_and_never_more_than_two_stand_on_the_disk(remote):
    source = remote.source()
    source.expect(remote.names)
    for name in remote.names:
        assert torch.equal(source.read(name), remote.tensors[name])
    assert remote.fetched == sorted(set(remote.fetched))
    assert len(remote.fetched) == SHARDS
    assert remote.most <= HELD_SHARDS  # one, where reading is done before the next has come
    source.remove()
    assert not remote.disk.exists()


def test_the_next_shard_comes_while_the_first_is_at_work(remote):
    source = remote.source()
    source.expect(remote.names)
    source.hold("t0.0")
    source._coming[remote.infos["t1.0"].file].result()
    assert sorted(path.name for path in remote.disk.iterdir()) == sorted({remote.infos[f"t{n}.0"].file for n in (0, 1)})


def test_a_layer_over_two_shards_and_repeated_reads_fetch_nothing_twice(remote):
    order = ["t0.0", "t0.0", "t0.1", "t0.2", "t1.0", "t0.2", "t1.1", "t1.2", "t2.0", "t1.2", "t3.0", "t2.1", "t3.1"]
    source = remote.source()
    source.expect(order)
    for name in order:
        source.read(name)
    assert len(remote.fetched) == 4
    assert remote.most == HELD_SHARDS


@pytest.mark.parametrize("seed", range(20))
def test_any_order_gives_the_right_tensors_within_the_bound(remote, seed):
    chosen = torch.randint(len(remote.names), (40,), generator=torch.Generator().manual_seed(seed))
    order = [remote.names[number] for number in chosen]
    source = remote.source()
    source.expect(order)
    for name in order:
        assert torch.equal(source.read(name), remote.tensors[name])
    assert remote.most <= HELD_SHARDS


def test_what_was_not_expected_can_be_read_too(remote):
    source = remote.source()
    for name in reversed(remote.names):
        assert torch.equal(source.read(name), remote.tensors[name])
    assert len(remote.fetched) == SHARDS
    assert remote.most == HELD_SHARDS


def test_an_earlier_run_s_shards_are_used_and_what_nobody_needs_is_removed(remote):
    first = remote.source()
    first.expect(remote.names)
    first.read("t0.0")
    first.close()
    (remote.disk / ".model-00001-of-00006.safetensors.0123.partial").write_bytes(b"half")
    before = list(remote.fetched)
    again = remote.source()
    again.expect([name for name in remote.names if not name.startswith("t0")])
    again.read("t1.0")
    assert remote.infos["t0.0"].file not in {path.name for path in remote.disk.iterdir()}
    assert not list(remote.disk.glob(".model-00001*"))
    assert remote.infos["t1.0"].file not in remote.fetched[len(before) :] or len(before) < 2


def test_a_failed_fetch_is_told_to_the_reader_and_may_be_tried_again(remote):
    source = remote.source()
    remote.fails = [NetworkError("the network is away")]
    source.expect(remote.names)
    with pytest.raises(NetworkError, match="the network is away"):
        source.read("t0.0")
    assert torch.equal(source.read("t0.0"), remote.tensors["t0.0"])


def test_a_file_that_is_not_what_its_header_had_promised_is_refused_and_removed(remote):
    other = remote.folder / remote.infos["t0.0"].file
    save_file({f"t0.{number}": torch.ones(8, 4) for number in range(EACH)}, other)
    source = remote.source()
    source.expect(remote.names)
    with pytest.raises(BadInputError, match=r"found 't0.0' as F32 \[8, 4\] at byte \d+, expected F32 \[4, 8\]"):
        source.read("t0.0")
    assert not (remote.disk / other.name).exists()


def test_threads_that_hold_a_shard_keep_it(remote):
    source = remote.source()
    source.expect(remote.names)
    path = source.hold("t0.0")
    done = threading.Thread(target=lambda: [source.read(name) for name in remote.names[1:4]])
    done.start()
    done.join()
    assert path.exists()
    source.release("t0.0")
    assert not path.exists()


def test_closing_ends_a_fetch_that_nobody_waits_for(remote):
    begun = threading.Event()

    def endless(file, path):
        while True:
            begun.set()
            source.go_on(1)

    source = StreamedSource(remote.infos, remote.disk, endless)
    source.expect(remote.names)
    assert begun.wait(60)
    source.remove()
    assert not remote.disk.exists()


def test_an_unknown_name_is_refused(remote):
    with pytest.raises(BadInputError, match="no tensor 'x' in this checkpoint"):
        remote.source().read("x")
