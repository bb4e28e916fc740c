"""One file of a repository to a path of this machine: whole and verified, or not at all."""

import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from huggingface_hub import constants

from quantkit.errors import BadInputError, NetworkError
from quantkit.weights.files import disk_failure, sync_folder
from quantkit.weights.hashes import BLOCK_BYTES, Digest
from quantkit.weights.ranged import open_range
from quantkit.weights.remote import CLIENT_ERRORS, RepoSnapshot, asked_wait, translate

# Seconds between tries that bring nothing, two minutes in all; each is shortened or lengthened by up to a half.
WAITS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0)
PROGRESS_BYTES = 2**16  # a try that brings so much begins the waits again
SLICE_SECONDS = 0.25
_TAG_DIGITS = 12  # of the hash, in the name of a partial file


def fetch_file(
    snapshot: RepoSnapshot, name: str, target: Path, received: Callable[[int], None] = lambda count: None
) -> None:
    """Bring one file of the snapshot to a path, which a crash leaves as it was; an older file there is replaced.

    What has come is in `.NAME.HASH.partial` beside the target, and the next call continues it, also in another
    process. Each try asks the Hub for a new address. The hash is computed as the bytes come; a file with another
    hash is thrown away and fetched once more.

    Args:
        snapshot: the repository at its commit.
        name: a file of it.
        target: where it shall stand; its folder exists.
        received: told of bytes as they come, of those that an earlier call has left, of thrown away ones by a
            negative number, and of 0 while the network is given a rest. What it raises ends the transfer.

    Raises:
        BadInputError: its bytes are not those of the commit, twice; or the Hub gives no hash for it.
        NotFoundError: no such file, or no access.
        NetworkError: the network failed after every retry.
        DiskError: the disk is full or read-only.
    """
    oid = snapshot.oid(name)
    path = partial_path(target, oid)
    found: list[str] = []
    try:
        remove_partials(target, but=path)
        while oid not in found:
            with _Partial(path, snapshot.files[name], oid, received) as partial:
                _fill(partial, snapshot, name)
                found.append(partial.seal())
                if found[-1] != oid:
                    partial.discard()
            if len(found) == 2 and oid not in found:
                path.unlink()
                raise _wrong_content(snapshot, name, found, oid)
        path.replace(target)
        sync_folder(target.parent)
    except OSError as error:
        disk_failure(error, target, snapshot.files[name])


def partial_path(target: Path, oid: str) -> Path:
    """Where a file with this hash grows until it is whole."""
    return target.with_name(f".{target.name}.{oid[:_TAG_DIGITS]}.partial")


def remove_partials(target: Path, but: Path | None = None) -> None:
    """Remove what transfers of other contents to this path have left.

    Raises:
        OSError: the disk refuses.
    """
    begin, end = f".{target.name}.", ".partial"
    for path in target.parent.iterdir():
        tag = path.name.removeprefix(begin).removesuffix(end)
        if path != but and path.name == f"{begin}{tag}{end}" and len(tag) == _TAG_DIGITS:
            path.unlink(missing_ok=True)


class _Partial:
    """The bytes of a file that have come so far, with their hash."""

    def __init__(self, path: Path, size: int, oid: str, received: Callable[[int], None]) -> None:
        self.size, self.done = size, 0
        self.received = received
        self._path, self._oid = path, oid
        self._digest = Digest(oid, size)
        # Unbuffered: what came is in the system's hands, whatever becomes of this process. Blocks have 64 KiB.
        self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b", buffering=0)
        try:
            self._read_again()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, block: bytes) -> None:
        """Append bytes."""
        self._digest.update(block)
        try:
            rest = memoryview(block)
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            disk_failure(error, self._path, self.size - self.done)
        self.done += len(block)
        self.received(len(block))

    def seal(self) -> str:
        """The hash of all bytes, which are on the disk now."""
        os.fsync(self._file.fileno())
        return self._digest.hexdigest()

    def discard(self) -> None:
        """Throw away every byte."""
        self._file.truncate(0)
        self.received(-self.done)

    def _read_again(self) -> None:
        if os.fstat(self._file.fileno()).st_size > self.size:
            self._file.truncate(0)
        while block := self._file.read(BLOCK_BYTES):
            self._digest.update(block)
            self.done += len(block)
            self.received(len(block))


def _fill(partial: _Partial, snapshot: RepoSnapshot, name: str) -> None:
    """Fetch what is missing, in as many tries as that takes while tries bring something."""
    waits = _waits()
    while partial.done < partial.size:
        before = partial.done
        try:
            with open_range(snapshot, name, partial.done, partial.size) as blocks:
                for block in blocks:
                    partial.add(block)
        except CLIENT_ERRORS as error:
            failure = translate(error, snapshot.repo_id, snapshot.commit)
            if constants.HF_HUB_OFFLINE or not isinstance(failure, NetworkError):
                raise failure from error
            if partial.done - before >= PROGRESS_BYTES:
                waits = _waits()
            wait = next(waits, None)
            if wait is None:
                raise failure from error
            _rest(max(wait, asked_wait(error)), partial.received)


def _waits() -> Iterator[float]:
    return (wait * random.uniform(0.5, 1.5) for wait in WAITS)


def _rest(seconds: float, received: Callable[[int], None]) -> None:
    """Sleep, in pieces, so that a caller can end the transfer meanwhile."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        received(0)
        time.sleep(min(left, SLICE_SECONDS))


def _wrong_content(snapshot: RepoSnapshot, name: str, found: list[str], oid: str) -> BadInputError:
    kind = "git hash" if len(oid) == 40 else "sha256"
    hashes = " and ".join(dict.fromkeys(found))
    return BadInputError(
        f"{snapshot.repo_id}: found {name} with the {kind} {hashes} after two transfers, expected {oid}",
        "the network or the server changes bytes on the way; try another network",
    )
