"""A server on this machine that speaks the Hub's protocol, and the repository that it serves."""

import hashlib
import json
import socket
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest
import torch
from huggingface_hub import HfApi, constants
from safetensors.torch import save

from quantkit.hub import repository
from quantkit.weights import ranged, remote, transfer

REPO = "some/model"
COMMIT = "1" * 40
TOKEN = "hf_canaryToken"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
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
    "model.safetensors.index.json": json.dumps(INDEX).encode(),
    "pytorch_model.bin": b"not this",
    "original/params.json": b"{}",
    "modeling_some.py": b"raise SystemExit",
}


def git_oid(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Hub(ThreadingHTTPServer):
    """One repository at one commit; `faults` answers the next requests whose path contains a text."""

    daemon_threads = True

    def __init__(self, files):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = files
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.requests: list[tuple[str, str, str | None]] = []
        self.faults: list[tuple[str, object]] = []
        self.info: dict = {"gated": False, "private": False}

    def handle_error(self, request, client_address):
        """Cut connections are part of the tests."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_):
        """Quiet."""

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append((self.command, path, self.headers.get("Range")))
        for fault in self.server.faults:
            if fault[0] in path:
                self.server.faults.remove(fault)
                return self.fail(fault[1])
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            return self.answer_api("/".join(parts[2:4]), parts[4:])
        if parts[2:3] == ["resolve"]:
            return self.answer_file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        return self.fail((404, "RepoNotFound"))

    def fail(self, kind):
        if kind == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
        elif kind == "whole":
            self.send(200, b"x" * 1000)
        else:
            status, code = kind
            self.send(status, b"{}", {"X-Error-Code": code} if code else {})

    def known(self, repo_id, revision):
        if repo_id == "some/gated":
            self.fail((403, "GatedRepo"))
        elif repo_id != REPO:
            self.fail((404, "RepoNotFound"))
        elif revision not in (None, "main", COMMIT):
            self.fail((404, "RevisionNotFound"))
        else:
            return True
        return False

    def answer_api(self, repo_id, rest):
        revision = rest[1] if len(rest) > 1 else None
        if not self.known(repo_id, revision):
            return
        rows = [(name, len(data), git_oid(data)) for name, data in self.server.files.items()]
        if rest[:1] == ["tree"]:
            tree = [{"type": "file", "path": name, "size": size, "oid": oid} for name, size, oid in rows]
            self.send(200, json.dumps(tree).encode())
        else:
            siblings = [{"rfilename": name, "size": size, "blobId": oid} for name, size, oid in rows]
            info = {"id": REPO, "sha": COMMIT, "siblings": siblings} | self.server.info
            self.send(200, json.dumps(info).encode())

    def answer_file(self, repo_id, revision, name):
        if not self.known(repo_id, revision):
            return
        if name not in self.server.files:
            self.fail((404, "EntryNotFound"))
            return
        data = self.server.files[name]
        headers = {
            "X-Repo-Commit": COMMIT,
            "ETag": f'"{git_oid(data)}"',
            "Accept-Ranges": "bytes",
        }
        asked = self.headers.get("Range")
        if asked is None:
            self.send(200, data, headers)
            return
        first, _, last = asked.removeprefix("bytes=").partition("-")
        end = min(int(last or len(data) - 1), len(data) - 1)
        headers["Content-Range"] = f"bytes {first}-{end}/{len(data)}"
        self.send(206, data[int(first) : end + 1], headers)

    def send(self, status, data, headers=None):
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


@pytest.fixture
def server(tmp_path, monkeypatch):
    server = Hub(dict(FILES))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    for module in (ranged, repository, remote):
        monkeypatch.setattr(module, "client", lambda: HfApi(endpoint=server.url, token=TOKEN))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(remote, "RETRY_SECONDS", (0.01, 0.01))
    monkeypatch.setattr(transfer, "WAITS", (0.01, 0.01))
    monkeypatch.chdir(tmp_path)
    huggingface_hub.utils.disable_progress_bars()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def assert_reads(source):
    assert set(source.infos) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert torch.equal(source.read(name), tensor)
