"""Names, commits, files and headers of repositories, asked of the loopback Hub."""

import errno
import json

import hub_files
import pytest
from hub_files import FILES, FIRST, INDEX, INDEX_NAME, REPO, SECOND, SMALL, TENSORS, assert_reads
from loopback.hub import TOKEN
from loopback.storage import entry_of

from quantkit.errors import BadInputError, DiskError, NetworkError, NotFoundError
from quantkit.hub.download import download, missing_bytes
from quantkit.hub.repository import needed_files, resolve
from quantkit.weights import remote_headers, transfer
from quantkit.weights.local import LocalSource
from quantkit.weights.remote import translate
from quantkit.weights.remote_headers import RemoteHeaders, weight_files

server = hub_files.server


def test_resolves_once_and_lists_files(server):
    server.repo(REPO).gated, server.repo(REPO).private = "manual", True
    snapshot = resolve(REPO, "main")
    assert (snapshot.commit, snapshot.revision, snapshot.gated, snapshot.private) == (
        server.head(REPO),
        "main",
        True,
        True,
    )
    assert snapshot.files == {name: len(data) for name, data in FILES.items()}
    assert snapshot.oids == {name: entry_of(name, data).etag for name, data in FILES.items()}
    assert len(server.requests) == 1


def test_chooses_files():
    assert needed_files(FILES) == [
        *sorted(SMALL),
        "model.safetensors.index.json",
        FIRST,
        SECOND,
    ]
    others = [
        "tf_model.h5",
        "flax_model.msgpack",
        "model.gguf",
        "onnx/model.onnx",
        "tokenization_x.py",
        "training_args.bin",
    ]
    kept = ["config.json", "tokenizer.model", "merges.txt", "USE_POLICY.md", "Notice", "MODEL_LICENSE"]
    assert needed_files([*others, *kept, "pytorch_model.bin"]) == [*sorted(kept), "pytorch_model.bin"]


BIN_SHARD = "pytorch_model-00001-of-00001.bin"


@pytest.mark.parametrize(
    ("kept", "left_out"),
    [
        (["model.safetensors"], ["pytorch_model.bin", "consolidated.safetensors"]),
        (["only.safetensors"], ["x/model.safetensors"]),
        (["model.safetensors.index.json", "a.safetensors", "b.safetensors"], []),
        (["model.safetensors.index.json", FIRST], ["model.fp16.safetensors"]),
        (["pytorch_model.bin"], ["a.safetensors", "b.safetensors"]),
        (["pytorch_model.bin.index.json", BIN_SHARD], ["training_args.bin"]),
    ],
)
def test_weights_once(kept, left_out):
    assert weight_files(left_out + kept) == kept


@pytest.mark.parametrize("names", [[], ["a.safetensors", "b.safetensors"], ["x.gguf"], ["consolidated.safetensors"]])
def test_no_weights(names):
    with pytest.raises(NotFoundError, match="no weights"):
        weight_files(names)


def test_downloads_what_is_needed_and_once(server):
    snapshot = resolve(REPO)
    files = needed_files(snapshot.files)
    assert missing_bytes(snapshot, files) == sum(len(FILES[name]) for name in files)
    folder = download(snapshot, files)
    assert sorted(path.name for path in folder.iterdir()) == sorted(files)
    assert_reads(LocalSource(folder))
    assert missing_bytes(snapshot, files) == 0
    before = len(server.requests)
    assert download(snapshot, files) == folder
    assert len(server.requests) - before <= 1
    asked = [request.path for request in server.requests if request.origin == "hub"]
    assert all(snapshot.commit in path or path.startswith("/api/") for path in asked)


def test_headers_without_a_download(server):
    source = RemoteHeaders(resolve(REPO))
    assert {name: (info.file, info.dtype, info.shape) for name, info in source.infos.items()} == {
        "a": (FIRST, "F32", (2, 3)),
        "b": (SECOND, "F16", (4,)),
        "c": (SECOND, "F32", (3,)),
    }
    assert source.infos["a"].offset == len(FILES[FIRST]) - 24
    assert source.total_size == 44
    assert source.weight_map == INDEX["weight_map"]
    assert not any(request.range is None for request in server.find(".safetensors", "GET", "cdn"))
    with pytest.raises(NotFoundError, match="not downloaded"):
        source.read("a")


def test_a_header_longer_than_the_first_range(server, monkeypatch):
    monkeypatch.setattr(remote_headers, "FIRST_BYTES", 20)
    assert set(RemoteHeaders(resolve(REPO)).infos) == set(TENSORS)


def test_bare_pickles_have_a_weight_map_only(server):
    index = {"weight_map": {"a": BIN_SHARD}}
    parts = {"pytorch_model.bin.index.json": json.dumps(index).encode(), BIN_SHARD: b"\x80 123"}
    server.add_repo("some/parts", SMALL | parts)
    source = RemoteHeaders(resolve("some/parts"))
    assert (source.infos, source.weight_map, source.total_size) == ({}, index["weight_map"], 5)
    server.add_repo("some/one", SMALL | {"pytorch_model.bin": b"\x8012"})
    source = RemoteHeaders(resolve("some/one"))
    assert (source.infos, source.weight_map, source.total_size) == ({}, {}, 3)


@pytest.mark.parametrize(
    ("index", "error"),
    [
        ({"weight_map": {"a": "../x"}}, BadInputError),
        ({"weight_map": {"a": "x.safetensors"}}, NotFoundError),
        ({"weight_map": {"b": FIRST}}, BadInputError),
        ([], BadInputError),
    ],
)
def test_hostile_index(server, index, error):
    server.commit(REPO, {INDEX_NAME: json.dumps(index).encode()})
    with pytest.raises(error, match=r"index\.json"):
        RemoteHeaders(resolve(REPO))


def test_hostile_header_and_ignored_range(server):
    snapshot = resolve(REPO)
    server.commit(REPO, {FIRST: b"\xff" * len(FILES[FIRST])})
    with pytest.raises(BadInputError, match=FIRST):
        RemoteHeaders(resolve(REPO))
    server.fail(FIRST, "ignore_range")
    assert set(RemoteHeaders(snapshot).infos) == set(TENSORS)
    assert server.faults.left == []


@pytest.mark.parametrize(
    ("repo_id", "revision", "message", "hint"),
    [
        ("some/absent", None, "no repository some/absent", "check the name"),
        ("some/private", None, "no repository some/private", "if it is private, log in"),
        (REPO, "v9", "no revision 'v9'", "commits/main"),
    ],
)
def test_what_is_missing_or_closed(server, repo_id, revision, message, hint):
    server.add_repo("some/private", FILES, private=True, granted=False)
    with pytest.raises(NotFoundError, match=message) as caught:
        resolve(repo_id, revision)
    assert hint in caught.value.hint
    assert len(server.requests) == 1


def test_a_gated_repository_shows_its_files_and_not_what_is_in_them(server):
    server.add_repo("some/gated", FILES, gated="manual", granted=False)
    snapshot = resolve("some/gated")
    assert (snapshot.gated, set(snapshot.files)) == (True, set(FILES))
    for call in (lambda: download(snapshot, ["config.json"]), lambda: RemoteHeaders(snapshot)):
        with pytest.raises(NotFoundError, match="some/gated is gated") as caught:
            call()
        assert "accept its terms" in caught.value.hint


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        (401, NotFoundError, "no repository|refuses access"),
        (403, NotFoundError, "refuses access .*403"),
        (400, NotFoundError, "HTTP 400"),
        (503, NetworkError, "HTTP 503"),
        (429, NetworkError, "HTTP 429"),
        ("drop", NetworkError, "not reached"),
        ("reset", NetworkError, "not reached"),
    ],
)
def test_failures_of_the_server(server, fault, error, message):
    server.fail("/api/models", fault, times=3)
    with pytest.raises(error, match=message) as caught:
        resolve(REPO)
    assert server.token not in f"{caught.value} {caught.value.hint}"
    assert len(server.requests) == (3 if error is NetworkError else 1)


@pytest.mark.parametrize("fault", ["reset", 503])
def test_passing_failures_are_not_seen(server, fault):
    for where in ("/api/models", FIRST, "config.json"):
        server.fail(where, fault)
    snapshot = resolve(REPO)
    assert_reads(LocalSource(download(snapshot, needed_files(snapshot.files))))
    server.fail(FIRST, fault)
    assert set(RemoteHeaders(snapshot).infos) == set(TENSORS)
    assert server.faults.left == []


def test_no_server(server):
    server.stop()
    with pytest.raises(NetworkError, match="not reached"):
        resolve(REPO)


def test_disk_errors(server, monkeypatch):
    snapshot = resolve(REPO)

    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(transfer.os, "fsync", fail)
    with pytest.raises(DiskError, match=r"cannot write .*: No space"):
        download(snapshot, ["config.json"])


def test_a_file_of_another_size_is_fetched_again(server):
    snapshot = resolve(REPO)
    folder = download(snapshot, ["config.json"])
    (folder / "config.json").unlink()
    (folder / "config.json").write_bytes(b"{}")
    download(snapshot, ["config.json"])
    assert (folder / "config.json").read_bytes() == FILES["config.json"]
    (folder / "config.json").resolve().write_bytes(b"{}")
    download(snapshot, ["config.json"])
    assert (folder / "config.json").read_bytes() == FILES["config.json"]


def test_messages_hold_no_token_and_no_signature():
    error = RuntimeError(f"GET https://cdn/x?Signature=abc&y=1 with {TOKEN}\nmore")
    text = str(translate(error, REPO))
    assert "abc" not in text
    assert TOKEN not in text
    assert "more" not in text
