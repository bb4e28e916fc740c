"""What a file of a repository holds: bytes in memory, or a file on this disk that is never read whole."""

import hashlib
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Content:
    """A file's bytes, and the names that git and LFS give them.

    Attributes:
        data: the bytes, or where they lie. A sparse file (`sparse_file`) costs neither memory nor disk.
        claimed: a sha256 to say instead of the true one; for servers that are wrong, and for shapes of
            70B parameters whose zeros nobody wants to hash.
    """

    data: bytes | Path
    claimed: str | None = None

    @cached_property
    def size(self) -> int:
        return len(self.data) if isinstance(self.data, bytes) else self.data.stat().st_size

    @cached_property
    def sha256(self) -> str:
        if self.claimed is not None:
            return self.claimed
        if isinstance(self.data, bytes):
            return hashlib.sha256(self.data).hexdigest()
        with self.data.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    @cached_property
    def blob_oid(self) -> str:
        """What `git hash-object` says."""
        return git_oid(self.read())

    @cached_property
    def pointer(self) -> bytes:
        """The file that git itself keeps of an LFS object."""
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n".encode()

    def read(self, start: int = 0, count: int | None = None) -> bytes:
        end = self.size if count is None else start + count
        if isinstance(self.data, bytes):
            return self.data[start:end]
        with self.data.open("rb") as file:
            file.seek(start)
            return file.read(end - start)


def content_of(data: bytes | Path | Content) -> Content:
    """The content that a test gives in any of the three forms."""
    return data if isinstance(data, Content) else Content(data)


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def sparse_file(path: Path, head: bytes, size: int) -> Path:
    """A file of `head` and zeros that takes no space on the disk."""
    path.write_bytes(head)
    os.truncate(path, size)
    return path
