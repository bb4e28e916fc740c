"""GGUF files out: header first, blocks at their places from any thread, whole or not there."""

import contextlib
import hashlib
import json
import os
import threading
import time
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy.typing as npt

from quantkit.errors import DiskError
from quantkit.weights.files import allocate, disk_failure, holds, sync_folder, write_at, write_file
from quantkit.weights.gguf_layout import Header

# A tensor is recorded as finished only once its bytes are on the disk, and waiting for the disk after each of
# hundreds of small ones would cost more than a crash: it may lose what was written since the last wait.
SYNC_BYTES = 256 * 2**20
SYNC_SECONDS = 10.0


class GgufWriter:
    """One GGUF file, named `NAME.gguf.partial` until `commit`.

    Beside it stands a journal, `NAME.gguf.partial.jsonl`: a line that says what is being written, and
    lines of the tensors whose bytes are on the disk. Given the same header and fingerprint, the
    next run leaves those as they are; given others, it starts over.

    Args:
        path: the final name; its folder exists.
        header: from `layout`.
        fingerprint: of every input that decides the bytes; None never continues, and keeps no journal.

    Attributes:
        resumed: whether the file of an earlier run is continued.

    Raises:
        DiskError: the file cannot be created, or the disk cannot hold it.
    """

    def __init__(self, path: Path, header: Header, fingerprint: str | None) -> None:
        self.path = path.with_name(f"{path.name}.partial")
        self._final, self._header = path, header
        self._journal = path.with_name(f"{path.name}.partial.jsonl")
        self._keeps_journal = fingerprint is not None
        self._tensors = {tensor.name: tensor for tensor in header.tensors}
        self._written: Counter[str] = Counter()  # bytes, by tensor
        self._unsynced: list[str] = []
        self._counts, self._syncing = threading.Lock(), threading.Lock()
        digest = hashlib.sha256(header.raw).hexdigest()
        title = {"schema_version": 1, "header_sha256": digest, "fingerprint": fingerprint}
        kept = self._recall(_line(title)) if self._keeps_journal else []
        self.resumed = bool(kept)
        self._finished = {name for line in kept[1:] for name in json.loads(line)["finished"]}
        try:
            if not self.resumed:  # a journal must never stand beside bytes that it does not speak of
                self._journal.unlink(missing_ok=True)
                sync_folder(path.parent)
            flags = os.O_RDWR if self.resumed else os.O_RDWR | os.O_CREAT | os.O_TRUNC
            self._descriptor = os.open(self.path, flags | getattr(os, "O_CLOEXEC", 0), 0o666)
        except OSError as error:
            disk_failure(error, self.path, header.total_bytes)
        self._begin(b"".join(kept) or _line(title))

    @property
    def finished(self) -> tuple[str, ...]:
        """The tensors that are whole, in the order of the file."""
        with self._counts:
            return tuple(name for name in self._tensors if name in self._finished)

    def write(self, name: str, start: int, data: memoryview | npt.NDArray[Any]) -> None:
        """Put bytes of a tensor at their place; threads may do so at once.

        Args:
            name: of the tensor.
            start: the first byte's place inside the tensor.
            data: C-contiguous.

        Raises:
            ValueError: no such tensor, one that is finished, or bytes beyond its end.
            DiskError: the disk refuses.
        """
        view = data if isinstance(data, memoryview) else data.data
        tensor = self._tensors.get(name)
        if tensor is None or name in self._finished:
            raise ValueError(f"{self.path.name}: tensor {name!r} is {'finished' if tensor else 'not in the header'}")
        if not 0 <= start <= start + view.nbytes <= tensor.nbytes:
            raise ValueError(f"bytes {start} to {start + view.nbytes} of tensor {name!r}, which has {tensor.nbytes}")
        if view.nbytes:
            try:
                write_at(self._descriptor, view.cast("B"), tensor.offset + start)
            except OSError as error:
                disk_failure(error, self.path, view.nbytes)
        with self._counts:
            self._written[name] += view.nbytes

    def finish_tensor(self, name: str) -> None:
        """Say that all bytes of a tensor were written; within seconds it is recorded for the next run.

        Raises:
            ValueError: no such tensor, finished already, or not each of its bytes was written once.
            DiskError: the disk refuses.
        """
        with self._counts:
            tensor = self._tensors.get(name)
            if tensor is None or name in self._finished:
                raise ValueError(
                    f"{self.path.name}: tensor {name!r} is {'finished' if tensor else 'not in the header'}"
                )
            if self._written[name] != tensor.nbytes:
                found = f"{self._written[name]} bytes of tensor {name!r} were written, expected {tensor.nbytes}"
                raise ValueError(f"{self.path.name}: {found}")
            self._finished.add(name)
            self._unsynced.append(name)
            waiting = sum(self._tensors[name].nbytes for name in self._unsynced)
        due = waiting >= SYNC_BYTES or time.monotonic() - self._synced >= SYNC_SECONDS
        # Where another thread is waiting for the disk already, this one goes on with its work.
        if due and self._keeps_journal and self._syncing.acquire(blocking=False):
            try:
                self._sync()
            finally:
                self._syncing.release()

    def sync(self) -> None:
        """Return when every finished tensor is on the disk and recorded for the next run.

        Raises:
            DiskError: the disk refuses.
        """
        with self._syncing:
            self._sync()

    def commit(self) -> Path:
        """Give the complete file its final name and return that.

        Raises:
            ValueError: a tensor is not finished.
            DiskError: the disk refuses.
        """
        if missing := [name for name in self._tensors if name not in self._finished]:
            raise ValueError(f"{self.path.name}: {len(missing)} tensors not finished, such as {missing[0]!r}")
        try:
            os.fsync(self._descriptor)
            self.close()
            self.path.replace(self._final)
            sync_folder(self._final.parent)
            self._journal.unlink(missing_ok=True)
        except OSError as error:
            disk_failure(error, self._final, 0)
        return self._final

    def close(self) -> None:
        """Close the file; a partial one stays for the next run."""
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._descriptor >= 0 and self._keeps_journal and not isinstance(error, DiskError):
            with contextlib.suppress(DiskError):  # what ended the run is said already
                self.sync()
        self.close()

    def _recall(self, title: bytes) -> list[bytes]:
        """The lines of the journal that hold for this header and fingerprint; none: start over."""
        if not holds(self.path, self._header.raw, self._header.total_bytes):
            return []
        try:
            lines = self._journal.read_bytes().splitlines(keepends=True)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise DiskError(f"cannot read {self._journal}: {error.strerror}") from error
        if lines[:1] != [title]:
            return []
        whole = [self._is_whole(line) for line in lines[1:]]
        return lines[: 1 + (whole.index(False) if False in whole else len(whole))]

    def _is_whole(self, line: bytes) -> bool:
        """Whether a line names tensors of this file: the last one may have been cut off by a crash."""
        try:
            names = json.loads(line)["finished"]
            return line.endswith(b"\n") and self._tensors.keys() >= set(names)
        except (ValueError, TypeError, KeyError):
            return False

    def _begin(self, journal: bytes) -> None:
        """Reserve the disk's room and put down what is known before any tensor."""
        try:
            allocate(self._descriptor, self._header.total_bytes)
            write_at(self._descriptor, memoryview(self._header.raw), 0)
            os.fsync(self._descriptor)
            sync_folder(self.path.parent)
        except OSError as error:
            self.close()
            if not self.resumed:
                self.path.unlink(missing_ok=True)
            disk_failure(error, self.path, self._header.total_bytes)
        if self._keeps_journal:
            try:
                write_file(self._journal, journal)
            except DiskError:
                self.close()
                raise
        self._synced = time.monotonic()

    def _sync(self) -> None:
        with self._counts:
            names, self._unsynced = self._unsynced, []
        self._synced = time.monotonic()
        if not names:
            return
        try:
            getattr(os, "fdatasync", os.fsync)(self._descriptor)
            if not self._keeps_journal:
                return
            with self._journal.open("ab") as file:
                file.write(_line({"finished": names}))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            disk_failure(error, self.path, 0)


def _line(record: object) -> bytes:
    return json.dumps(record).encode() + b"\n"
