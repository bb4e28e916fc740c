"""A small repository of the loopback Hub: what is in it, and how it reads."""

import json

import pytest
import torch
from safetensors.torch import save

REPO = "some/model"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX_NAME = "model.safetensors.index.json"
INDEX = {"metadata": {"total_size": 44}, "weight_map": {"a": FIRST, "b": SECOND, "c": SECOND}}
TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.float16), "c": torch.zeros(3)}
SMALL = {
    "config.json": b'{"model_type": "llama", "model_type": "llama"}',
    "tokenizer.json": b"{}",
    "LICENSE.txt": b"as is",
    "README.md": b"---\nlicense: mit\n---\n",
}
FILES = SMALL | {
    FIRST: save({"a": TENSORS["a"]}),
    SECOND: save({"b": TENSORS["b"], "c": TENSORS["c"]}),
    INDEX_NAME: json.dumps(INDEX).encode(),
    "pytorch_model.bin": b"not this",
    "original/params.json": b"{}",
    "modeling_some.py": b"raise SystemExit",
}


@pytest.fixture
def server(loopback, hub_client, tmp_path, monkeypatch):
    """The loopback Hub with FILES under the name REPO; the current folder is empty."""
    loopback.add_repo(REPO, FILES)
    monkeypatch.chdir(tmp_path)
    return loopback


def assert_reads(source):
    assert set(source.infos) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert torch.equal(source.read(name), tensor)
