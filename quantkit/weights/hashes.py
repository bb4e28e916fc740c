"""What a file is: its sha256, or the name that git gives it."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

BLOCK_BYTES = 2**20
THREADS = 4  # hashing lets go of the interpreter lock; more threads than this wait for the disk


class Digest:
    """The hash of a file as the Hub names it, of bytes as they come.

    Args:
        oid: what is expected, which says the kind of hash: the sha256 of an LFS file (64 digits), or git's name of
            a blob (40 digits), the sha1 of its length and its bytes.
        size: bytes of the whole file.
    """

    def __init__(self, oid: str, size: int) -> None:
        is_git = len(oid) == 40
        self._hash = hashlib.sha1(usedforsecurity=False) if is_git else hashlib.sha256()
        if is_git:
            self._hash.update(b"blob %d\0" % size)

    def update(self, block: bytes) -> None:
        """Add bytes."""
        self._hash.update(block)

    def hexdigest(self) -> str:
        """The hash so far, in hexadecimal."""
        return self._hash.hexdigest()


def has_hash(path: Path, oid: str, size: int, told: Callable[[int], None] = lambda count: None) -> bool:
    """Whether a file is there with this size and hash.

    Args:
        path: the file.
        oid: a sha256, or git's name of a blob.
        size: bytes.
        told: of bytes that were read.
    """
    if not path.is_file() or path.stat().st_size != size:
        return False
    digest = Digest(oid, size)
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
            told(len(block))
    return digest.hexdigest() == oid


def git_hash(data: bytes) -> str:
    """What git calls a file of this content: the sha1 of its length and its bytes."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def file_hash(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_hashes(folder: Path, names: Iterable[str], known: Mapping[str, str] | None = None) -> dict[str, str]:
    """sha256 of files of a folder, several at a time.

    Args:
        folder: of the files.
        names: of the files.
        known: hashes that were just taken, by name: such a file is not read.

    Returns:
        name -> sha256, in the order of the names.

    Raises:
        OSError: a file cannot be read.
    """
    known = known or {}
    ordered = sorted(names)
    with ThreadPoolExecutor(THREADS) as pool:
        hashes = pool.map(lambda name: known.get(name) or file_hash(folder / name), ordered)
        return dict(zip(ordered, hashes, strict=True))
