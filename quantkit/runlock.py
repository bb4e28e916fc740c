"""One run per output folder: a lock that ends with its process, however that ends."""

import contextlib
import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from quantkit.errors import BadInputError, DiskError
from quantkit.weights.files import disk_failure

LOCK_FILE = ".run.lock"
ATTEMPTS = 50  # each is lost to another run that ends between two of our system calls
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # some network file systems


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Hold an output folder for this process alone; it is created if absent.

    The lock is `flock` on a file in the folder, so the system lifts it when the process dies and none is
    ever stale. The file says who holds it and is removed at the end, and with it a folder that was
    created here and is still empty.

    Yields:
        Whether the folder is protected: some network file systems have no locks.

    Raises:
        BadInputError: another run holds the folder.
        DiskError: the folder cannot be created or written.
    """
    is_new = not folder.exists()
    descriptor, protected = _acquire(folder)
    try:
        _sign(descriptor)
        yield protected
    finally:
        # The name goes first: who then gets the lock of the nameless file sees that and tries again.
        with contextlib.suppress(OSError):
            (folder / LOCK_FILE).unlink()
            if is_new:
                folder.rmdir()
        os.close(descriptor)


def _acquire(folder: Path) -> tuple[int, bool]:
    """A descriptor of the lock file, and whether a lock is on it."""
    path = folder / LOCK_FILE
    for _ in range(ATTEMPTS):
        descriptor = _open(folder, path)
        if descriptor is None:
            continue
        try:
            protected = _lock(descriptor, folder)
            if _is_named(descriptor, path):
                return descriptor, protected
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    raise DiskError(f"cannot lock {folder}: {path.name} vanishes again and again", "see which program removes it")


def _open(folder: Path, path: Path) -> int | None:
    """The lock file, or None where a run that is leaving has just removed the folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except FileNotFoundError:
        return None
    except OSError as error:
        if isinstance(error, FileExistsError) and _is_folder_or_gone(folder):  # it went while mkdir looked at it
            return None
        raise DiskError(f"cannot create {path}: {error.strerror}", "choose another --out") from error


def _is_folder_or_gone(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except FileNotFoundError:
        return True


def _lock(descriptor: int, folder: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _refuse(descriptor, folder)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            disk_failure(error, folder / LOCK_FILE, 0)
        return False
    return True


def _is_named(descriptor: int, path: Path) -> bool:
    """Whether the file still has its name: its last holder may have removed it before we got the lock."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _sign(descriptor: int) -> None:
    """Write who holds the folder, for those who come next; on a full disk the lock does without."""
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} since {time.strftime('%Y-%m-%d %H:%M:%S')}".encode(), 0)


def _refuse(descriptor: int, folder: Path) -> NoReturn:
    holder = ""
    for _ in range(20):  # the holder writes its line right after it has got the lock
        holder = os.pread(descriptor, 200, 0).decode("utf-8", "replace")
        if holder:
            break
        time.sleep(0.05)
    raise BadInputError(
        f"{folder} is held by {holder or 'another process'}", "wait for that run to end, or choose another --out"
    )
