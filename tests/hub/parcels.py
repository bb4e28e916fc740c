"""Small folders to publish, and what a repository of the loopback Hub holds afterwards."""

import hashlib

from quantkit.hub.publish import Listener, Parcel
from quantkit.hub.upload import LocalFile

REPO = "tester/model"
FILES = {
    "model-00001-of-00002.safetensors": b"first" * 1000,
    "model-00002-of-00002.safetensors": b"second" * 1000,
    "tokenizer.json": b'{"a": 1}',
    "README.md": b"---\nlicense: mit\n---\n# A model\n",
    "config.json": b"{}",
}
SHARDS = [name for name in FILES if name.endswith(".safetensors")]


def parcel(folder, files=FILES, branch="main", repo=REPO):
    """A folder with these files, ready to be published; shards of the repository that it lacks are removed."""
    folder.mkdir(exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    local = [LocalFile.of(folder, name, hashlib.sha256(data).hexdigest()) for name, data in files.items()]
    return Parcel(repo, branch, local, lambda name: name.endswith(".safetensors"), "Weights and card")


def held(hub, repo=REPO, branch="main"):
    """Name -> bytes of what the Hub has, without its own .gitattributes."""
    return {name: data for name, data in hub.repo(repo).files(branch).items() if name != ".gitattributes"}


def titles(hub, repo=REPO, branch="main"):
    """Of the commits of a branch, newest first."""
    return [commit.title for commit in hub.repo(repo).history(branch)]


def uploads(hub):
    """Objects that were uploaded and kept, one entry for each time."""
    return [request.path for request in hub.requests if request.method == "PUT" and request.status == 200]


class Told(Listener):
    """Remembers what it is told."""

    def __init__(self):
        self.lines = []
        self.bytes = {}

    def sending(self, file):
        self.lines.append(f"sending {file.name}")

        def sent(count):
            self.bytes[file.name] = self.bytes.get(file.name, 0) + count

        return sent

    def sent(self, file):
        self.lines.append(f"sent {file.name}")
