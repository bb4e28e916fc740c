"""Headers of `.bin` shards at the Hub: a sparse copy with the zip directory and the pickle, and nothing else."""

import io
import struct
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from quantkit.errors import BadInputError
from quantkit.tensors import TensorInfo
from quantkit.weights.archive import HINT, LOCAL_HEADER, PICKLE_MAGIC, ZIP_ERRORS, ZIP_MAGIC
from quantkit.weights.files import disk_failure
from quantkit.weights.ranged import read_range
from quantkit.weights.remote import RepoSnapshot

BLOCK_BYTES = 2**16
TAIL_BYTES = 2**17  # holds the directory of a thousand tensors
MAX_RECORD_BYTES = 25_000_000  # the pickle; and the directory
MAX_FETCHED_BYTES = 2 * MAX_RECORD_BYTES + 2**21
ALIGNMENT = 64  # torch.save begins every record's bytes at a multiple of it
_HAS_DESCRIPTOR = 0x8  # bit of a record's flags: its sizes and checksum follow its bytes
_DESCRIPTOR_BYTES = (16, 24)  # with sizes of four bytes, or of eight


def fetch_pickled_header(snapshot: RepoSnapshot, name: str) -> dict[str, TensorInfo] | None:
    """The tensors of a `.bin` file of the snapshot, by name, from a few ranges of it.

    A `.bin` file is a zip file: its directory stands at the end, and its pickle is a small record at the beginning.
    Both are fetched into an otherwise empty file of the same size, which is then read like any other. Where each
    storage begins is computed from the directory; a file of other writers than torch's may not allow that.

    Returns:
        None where the headers need the whole file: it is a bare pickle, as torch wrote before 1.6, or its records do
        not lie as torch.save puts them.

    Raises:
        BadInputError: not such a file, other objects than tensors, or a pickle or directory of more than 25 MB.
        NotFoundError: no such file, or no access.
        NetworkError: the network failed after every retry.
        DiskError: no room for temporary files.
    """
    from quantkit.weights.pickled import read_pickled_header  # torch takes seconds

    with tempfile.TemporaryDirectory(prefix="quantkit-") as folder:
        path = Path(folder) / name
        with _SparseCopy(snapshot, name, path) as copy:
            beginning = copy.read(BLOCK_BYTES)
            if beginning.startswith(PICKLE_MAGIC):
                return None
            copy.fetch(max(0, snapshot.files[name] - TAIL_BYTES), snapshot.files[name])
            if beginning.startswith(ZIP_MAGIC) and not _complete(copy, name):
                return None
        return read_pickled_header(path)


def _complete(copy: "_SparseCopy", name: str) -> bool:
    """Fetch all small records and put a header before every storage; whether that was possible.

    What is wrong with a zip file is found again, and said, by whoever reads the copy.
    """
    try:
        with zipfile.ZipFile(copy) as archive:
            records = sorted(archive.infolist(), key=lambda record: record.header_offset)
            for record in records:
                if not record.filename.partition("/")[2].startswith("data/"):
                    _check_small(record, name)
                    archive.read(record)
            return _place(copy, records, archive.start_dir)
    except ZIP_ERRORS:
        return True


def _check_small(record: zipfile.ZipInfo, name: str) -> None:
    if max(record.file_size, record.compress_size) > MAX_RECORD_BYTES:
        found = f"the record {record.filename[:100]!r} of {record.file_size} bytes"
        raise BadInputError(f"{name}: found {found}, expected at most {MAX_RECORD_BYTES}", HINT)


def _place(copy: "_SparseCopy", records: Sequence[zipfile.ZipInfo], end: int) -> bool:
    """Write the headers of records that the copy lacks; whether the directory says enough for that.

    Between a record's bytes and the next record there is a descriptor at most, whose two sizes differ by less than
    torch's alignment: one of the places at most is a multiple of it.
    """
    following = [*(record.header_offset for record in records[1:]), end]
    for record, next_offset in zip(records, following, strict=True):
        begin = record.header_offset
        if copy.has(begin, begin + LOCAL_HEADER.size):
            continue
        name_bytes = len(record.orig_filename.encode())
        after_name = begin + LOCAL_HEADER.size + name_bytes
        sizes = _DESCRIPTOR_BYTES if record.flag_bits & _HAS_DESCRIPTOR else (0,)
        starts = [next_offset - size - record.file_size for size in sizes]
        starts = [start for start in starts if start % ALIGNMENT == 0 and 0 <= start - after_name < 2**16]
        if len(starts) != 1:
            return False
        copy.put(begin, ZIP_MAGIC + bytes(22) + struct.pack("<HH", name_bytes, starts[0] - after_name))
    return True


class _SparseCopy:
    """A file of the Hub as a file here, of which blocks that were read are there: as much as zipfile asks of it."""

    def __init__(self, snapshot: RepoSnapshot, name: str, path: Path) -> None:
        self._snapshot, self._name = snapshot, name
        self._size = snapshot.files[name]
        self._here: set[int] = set()  # numbers of blocks
        self._fetched = self._at = 0
        try:
            self._file = path.open("w+b", buffering=0)
            self._file.truncate(self._size)
        except OSError as error:
            disk_failure(error, path, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def seekable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """Where the next read begins."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move there."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"seek to {base + offset}")
        self._at = base + offset
        return self._at

    def read(self, count: int = -1) -> bytes:
        """Read on, from here or from the Hub."""
        stop = self._size if count < 0 else min(self._at + count, self._size)
        if stop <= self._at:
            return b""
        self.fetch(self._at, stop)
        self._file.seek(self._at)
        data = self._file.read(stop - self._at)
        self._at = stop
        return data

    def has(self, start: int, stop: int) -> bool:
        """Whether the file's own bytes are here; where they are here in part, the rest is fetched."""
        if not self._here & set(_blocks(start, stop)):
            return False
        self.fetch(start, stop)
        return True

    def put(self, offset: int, data: bytes) -> None:
        """Write other bytes than the file's, where its own are not needed."""
        self._file.seek(offset)
        self._file.write(data)

    def fetch(self, start: int, stop: int) -> None:
        """Have every block of a range, in one request.

        Raises:
            BadInputError: more was fetched than headers need.
        """
        missing = [number for number in _blocks(start, stop) if number not in self._here]
        if not missing:
            return
        start, stop = missing[0] * BLOCK_BYTES, min((missing[-1] + 1) * BLOCK_BYTES, self._size)
        self._fetched += stop - start
        if self._fetched > MAX_FETCHED_BYTES:
            found = f"a pickle and a directory of more than {MAX_FETCHED_BYTES} bytes"
            raise BadInputError(f"{self._name}: found {found}, expected less", HINT)
        data = read_range(self._snapshot, self._name, start, stop)
        self._file.seek(start)
        self._file.write(data)
        self._here.update(range(missing[0], missing[-1] + 1))


def _blocks(start: int, stop: int) -> range:
    """The numbers of the blocks where a range lies."""
    return range(start // BLOCK_BYTES, -(-stop // BLOCK_BYTES))
