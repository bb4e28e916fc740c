"""What tests of streaming share: repositories in many shards, what crosses the network, what stands on the disk."""

import json
import stat
from contextlib import suppress

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from quantkit.progress import Silent
from quantkit.weights import transfer
from quantkit.weights.streamed import SHARD_FOLDER

REPO = "some/seventy"
LAYERS, SHARDS = 80, 30  # of a 70B model


def sharded(folder, shards, **config):
    """A tiny checkpoint in many shards; layers straddle them."""
    tiny.make_model(folder, dtype=torch.bfloat16, **config)
    return split(folder, shards)


def split(folder, shards, order=None):
    """Cut the one file of a checkpoint into shards, by default in the order of the model, as most are stored."""
    tensors = load_file(folder / "model.safetensors")
    order = order or sorted(tensors, key=lambda name: ("embed" not in name, "layers" not in name, *numbers(name)))
    (folder / "model.safetensors").unlink()
    index = {}
    for number in range(shards):
        part = order[number * len(order) // shards : (number + 1) * len(order) // shards]
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file, {"format": "pt"})
        index |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder


def numbers(name):
    return [int(part) for part in name.split(".") if part.isdigit()] + [name]


@pytest.fixture
def published(loopback, hub_client):
    """Publishes a folder under the name REPO and says its files."""

    def publish(folder):
        loopback.add_repo(REPO, {path.name: path for path in folder.iterdir()})
        weights = [path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin")]
        return {path.name: path.stat().st_size for path in weights}

    return publish


def size(path):
    """Bytes of a file; it may go at any moment, as shards do."""
    with suppress(FileNotFoundError):
        status = path.stat()
        return status.st_size if stat.S_ISREG(status.st_mode) else 0
    return 0


class Watched(Silent):
    """Measures what stands on the disk; may end the run behind a layer."""

    def __init__(self, output, last=None):
        self.output, self.last = output, last
        self.most = self.shards = 0

    def look(self):
        held = sum(size(path) for path in self.output.rglob("*") if SHARD_FOLDER in path.parts)
        own = self.output.iterdir() if self.output.exists() else []
        self.most = max(self.most, held + sum(map(size, own)))
        self.shards = max(self.shards, held)

    def say(self, line):
        self.look()

    def layer(self, index, seconds):
        self.look()
        if index == self.last:
            raise KeyboardInterrupt


@pytest.fixture
def each_fetch(monkeypatch):
    """Calls what is added to it when a shard has come, before any other may go."""
    seen = []
    original = transfer.fetch_file

    def fetch(*arguments, **options):
        original(*arguments, **options)
        for one in seen:
            one()

    monkeypatch.setattr(transfer, "fetch_file", fetch)
    return seen


@pytest.fixture
def fetched(monkeypatch):
    """Names of the shards that have come, in order."""
    names = []
    original = transfer.fetch_file

    def fetch(snapshot, name, *arguments, **options):
        original(snapshot, name, *arguments, **options)
        names.append(name)

    monkeypatch.setattr(transfer, "fetch_file", fetch)
    return names


def downloaded(loopback, files):
    """Bytes of each weight file that crossed the network as its content, headers aside."""
    return {
        name: sum(request.sent for request in loopback.find(name, method="GET") if request.sent > 0) / size
        for name, size in files.items()
    }
