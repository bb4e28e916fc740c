"""Xet storage, optional: the CAS that hf_xet itself keeps in a folder, behind the Hub's routes to it.

`local://DIR` stands where the address of the CAS would. hf_xet opens a database in DIR that one process
at a time may have open; so this process touches DIR by child processes, or a copy of it.
"""

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from loopback.answers import Answer, Call, answer_json, refusal
from loopback.content import Content
from loopback.storage import Repo

_HASH, _RECORD, _END = 32, 48, b"\xff" * 32
_VERIFIED, _EXTENDED = 1 << 31, 1 << 30
_SESSION = """
import sys
from hf_xet import XetFileInfo, XetSession
cas, path, wanted, size = sys.argv[1:]
words = {"endpoint": "local://" + cas, "token": "any", "token_expiry_unix_secs": 1 << 40}
if wanted:
    with XetSession().new_file_download_group(**words) as group:
        group.start_download_file(XetFileInfo(wanted, int(size)), path)
else:
    with XetSession().new_upload_commit(**words) as commit:
        file = commit.start_upload_file(path)
    print(file.result().xet_info.hash)
"""


@dataclass(frozen=True)
class XetFile:
    """What a CAS knows of a file."""

    name: str  # Xet's hash
    sha256: str
    size: int


class XetStore:
    """A CAS in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "cas"
        self.folder.mkdir()
        self._copies = folder

    def put(self, content: Content) -> str:
        """Stores a content; Xet's hash of it."""
        if found := self.find(content.sha256):
            return found.name
        path = content.data
        if isinstance(path, bytes):
            path = self._copies / "to-store"
            path.write_bytes(content.read())
        return _session(self.folder, path)

    def get(self, sha256: str, target: Path) -> Content | None:
        """The content that a client stored, brought to `target`; None if nobody did."""
        if (found := self.find(sha256)) is None:
            return None
        copy = self._copies / "cas-copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.folder, copy)
        _session(copy, target, found.name, str(found.size))
        return Content(target)

    def find(self, sha256: str) -> XetFile | None:
        return next((file for file in self.files() if file.sha256 == sha256), None)

    def files(self) -> Iterator[XetFile]:
        """Every file of the CAS, from its shards."""
        for shard in sorted(self.folder.glob("xet/xorbs/shards/*.mdb")):
            yield from read_shard(shard.read_bytes())


def read_shard(raw: bytes) -> Iterator[XetFile]:
    """The files of a shard: a header, and for each file its hash, its segments, their hashes, its sha256."""
    at = _RECORD
    while (name := raw[at : at + _HASH]) != _END:
        flags, count = (int.from_bytes(raw[at + _HASH + place : at + _HASH + place + 4], "little") for place in (0, 4))
        segments = range(at + _RECORD, at + _RECORD * (1 + count), _RECORD)
        size = sum(int.from_bytes(raw[place + 36 : place + 40], "little") for place in segments)
        at += _RECORD * (1 + count * (2 if flags & _VERIFIED else 1))
        if flags & _EXTENDED:
            yield XetFile(_hex(name), _hex(raw[at : at + _HASH]), size)
            at += _RECORD


def token(call: Call, repo: Repo, access: str, revision: str) -> Answer:
    """Where the CAS is, and a token for it, which is no token of the Hub's."""
    store = call.hub.xet
    if store is None:
        raise refusal(404, "Xet is not enabled here")
    expires = int(time.time()) + 3600
    words = {"casUrl": f"local://{store.folder}", "accessToken": f"xet-{access}-{revision}", "exp": expires}
    headers = ("X-Xet-Cas-Url", "X-Xet-Access-Token", "X-Xet-Token-Expiration")
    return answer_json(words, headers=dict(zip(headers, map(str, words.values()), strict=True)))


def _hex(raw: bytes) -> str:
    return "".join(f"{int.from_bytes(raw[at : at + 8], 'little'):016x}" for at in range(0, _HASH, 8))


def _session(cas: Path, path: Path, wanted: str = "", size: str = "") -> str:
    words = [sys.executable, "-c", _SESSION, cas, path, wanted, size]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()
