"""Files out: small ones whole or not there, large ones reserved first; what to say when a disk refuses."""

import contextlib
import errno
import os
import shutil
from pathlib import Path
from typing import NoReturn

from quantkit.errors import DiskError
from quantkit.units import format_bytes

COPY_BYTES = 16 * 2**20
READ_BYTES = 64 * 2**20  # one system call
_HINTS = {
    errno.ENOSPC: "free some space or choose another output folder; the run continues from what is finished",
    errno.EDQUOT: "your quota on this disk is used up; choose another output folder",
    errno.EFBIG: "this file system holds no files of this size; choose smaller shards or another folder",
    errno.EROFS: "this disk is read-only; choose another output folder",
    errno.EACCES: "this user may not write there; choose another output folder",
    errno.ENOENT: "the folder does not exist",
}


def write_file(path: Path, data: bytes) -> None:
    """Write a small file: after a crash either the old bytes or all the new ones are there.

    Raises:
        DiskError: the disk refuses; the old file is untouched.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        _remove(partial)
        disk_failure(error, path, len(data))


def copy_file(source: Path, target: Path) -> None:
    """Copy a file's bytes with the same promise as `write_file`.

    Raises:
        DiskError: the source cannot be read or the target not written.
    """
    partial = target.with_name(f".{target.name}.partial")
    try:
        size = source.stat().st_size
        old = source.open("rb")
    except OSError as error:
        raise DiskError(f"cannot read {source}: {error.strerror}") from error
    try:
        with old, partial.open("wb") as new:
            shutil.copyfileobj(old, new, COPY_BYTES)
            new.flush()
            os.fsync(new.fileno())
        partial.replace(target)
        sync_folder(target.parent)
    except OSError as error:
        _remove(partial)
        disk_failure(error, target, size)


def sync_folder(folder: Path) -> None:
    """Make a rename or a new name in the folder survive a crash."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def holds(path: Path, beginning: bytes, size: int) -> bool:
    """Whether a file begins with these bytes and has this size.

    Raises:
        DiskError: the disk refuses to read.
    """
    try:
        with path.open("rb") as file:
            return path.stat().st_size == size and file.read(len(beginning)) == beginning
    except FileNotFoundError:
        return False
    except OSError as error:
        disk_failure(error, path, size)


def allocate(descriptor: int, size: int) -> None:
    """Reserve a whole file, so that a full disk is known now and not hours later.

    Raises:
        OSError: the disk cannot hold it.
    """
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, size)
            return
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENODEV):
                raise
    os.ftruncate(descriptor, size)


def read_at(descriptor: int, target: memoryview, offset: int) -> int:
    """Fill memory from a place of a file; threads may do so at once.

    Args:
        descriptor: of the file.
        target: bytes, written.
        offset: first byte inside the file.

    Returns:
        Bytes read; fewer than `target` holds where the file ends.

    Raises:
        OSError: the disk refuses.
    """
    done = 0
    while done < len(target):
        count = os.preadv(descriptor, [target[done : done + READ_BYTES]], offset + done)
        if not count:
            break
        done += count
    return done


def write_at(descriptor: int, data: memoryview, offset: int) -> None:
    """Write bytes at a place of a file; threads may do so at once.

    Raises:
        OSError: the disk refuses.
    """
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done:], offset + done)


def disk_failure(error: OSError, path: Path, needed: int) -> NoReturn:
    """Say in the user's words why the disk refused."""
    message = f"cannot write {path}: {error.strerror}"
    with contextlib.suppress(OSError):
        free = shutil.disk_usage(path.parent).free
        missing = f", {format_bytes(needed - free)} missing" if needed > free else ""
        message += f" ({f'needed {format_bytes(needed)}, ' if needed else ''}free {format_bytes(free)}{missing})"
    raise DiskError(message, _HINTS.get(error.errno or 0)) from error


def _remove(partial: Path) -> None:
    with contextlib.suppress(OSError):
        partial.unlink()
