"""What a file is: its sha256."""

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

THREADS = 4  # hashing lets go of the interpreter lock; more threads than this wait for the disk


def file_hash(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_hashes(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """sha256 of files of a folder by name, several at a time."""
    ordered = sorted(names)
    with ThreadPoolExecutor(THREADS) as pool:
        hashes = pool.map(file_hash, (folder / name for name in ordered))
        return dict(zip(ordered, hashes, strict=True))
