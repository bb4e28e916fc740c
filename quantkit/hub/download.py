"""Files of a repository into the client's cache: verified, several at a time, each once."""

import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Protocol

from huggingface_hub import constants
from huggingface_hub.file_download import _create_symlink, repo_folder_name
from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

from quantkit.errors import DiskError
from quantkit.units import format_bytes
from quantkit.weights.files import disk_failure, write_file
from quantkit.weights.remote import RepoSnapshot
from quantkit.weights.transfer import fetch_file, partial_path

# How backup programs know folders that they may leave out (https://bford.info/cachedir/); the client writes it, too.
CACHE_TAG = "CACHEDIR.TAG", b"Signature: 8a477f597d28d172789f06886806bc55\n"
LARGE_BYTES = 16 * 2**20
WORKERS = {False: 4, True: 2}  # whether files are large -> how many come at a time
TOLD_SECONDS = 0.1  # between two words about how far a transfer is
LOCK_SECONDS = 0.5  # between two looks whether another process has let go of a file


class TransferProgress(Protocol):
    """Who is told how far a transfer is."""

    def say(self, line: str) -> None:
        """A sentence for the user."""

    def transfer(self, done: int, total: int) -> None:
        """So many bytes of all are there."""


class Unwatched:
    """Nobody is told."""

    def say(self, line: str) -> None:
        """Nothing."""

    def transfer(self, done: int, total: int) -> None:
        """Nothing."""


class Stopped(Exception):
    """Another transfer has failed, or the user has had enough: this one ends, and keeps what has come."""


class Tally:
    """Bytes of several transfers at a time, added up and told.

    Args:
        total: bytes of all files.
        progress: who is told.
    """

    def __init__(self, total: int, progress: TransferProgress) -> None:
        self.stopped = threading.Event()
        self.done = 0
        self._total, self._progress = total, progress
        self._lock = threading.Lock()
        self._told = float("-inf")

    def add(self, count: int) -> None:
        """Bytes have come; a negative number were thrown away.

        Raises:
            Stopped: the other transfers are being ended.
        """
        if self.stopped.is_set():
            raise Stopped
        with self._lock:
            self.done += count
            now = time.monotonic()
            if now - self._told >= TOLD_SECONDS or self.done >= self._total:
                self._progress.transfer(self.done, self._total)
                self._told = now

    def say(self, line: str) -> None:
        """Pass on a sentence."""
        with self._lock:
            self._progress.say(line)


def missing_bytes(snapshot: RepoSnapshot, files: Iterable[str]) -> int:
    """Bytes of those files that the cache does not hold yet."""
    places = Places(snapshot)
    return sum(size - places.begun(name) for name, size in _sizes(snapshot, files) if not places.is_whole(name))


def download(snapshot: RepoSnapshot, files: Iterable[str], progress: TransferProgress | None = None) -> Path:
    """Bring files of the snapshot into the client's cache, laid out as the client does it.

    What is there with the right size is not fetched again. Where another process fetches the same file, it is
    waited for.

    Returns:
        The folder that holds them.

    Raises:
        BadInputError: the bytes of a file are not those of the commit, twice.
        NotFoundError: no access, or a file is missing.
        NetworkError: the network failed after every retry.
        DiskError: the disk is full, too small for what is missing, or read-only.
    """
    places = Places(snapshot)
    missing = [name for name in dict.fromkeys(files) if not places.is_linked(name)]
    if missing:
        refuse_small_disk(places.root, missing_bytes(snapshot, missing))
        tally = Tally(sum(size for _, size in _sizes(snapshot, missing)), progress or Unwatched())
        in_parallel(snapshot, missing, lambda name: _bring(places, name, tally), tally)
        _tag(places.root)
    _remember(snapshot, places)
    return places.folder


def refuse_small_disk(folder: Path, needed: int) -> None:
    """Refuse a transfer before its first byte where the disk cannot hold it.

    Raises:
        DiskError: fewer bytes are free than are needed.
    """
    free = free_bytes(folder)
    if needed > free:
        raise DiskError(
            f"{folder} has {format_bytes(free)} free, expected {format_bytes(needed)} for the download "
            f"({format_bytes(needed - free)} missing)",
            "free some space there, or point HF_HOME or --out to another disk",
        )


def free_bytes(folder: Path) -> int:
    """Free bytes of the disk where a folder is or will be."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free


def in_parallel(snapshot: RepoSnapshot, names: Iterable[str], bring: Callable[[str], None], tally: Tally) -> None:
    """Bring files several at a time, small ones first; where one fails, the others stop.

    Raises:
        QuantkitError: the first failure.
    """
    names = list(names)
    for is_large, workers in WORKERS.items():
        group = [name for name in names if (snapshot.files[name] >= LARGE_BYTES) == is_large]
        pool = ThreadPoolExecutor(workers, "download")
        try:
            for future in as_completed([pool.submit(bring, name) for name in group]):
                future.result()
        except BaseException:
            tally.stopped.set()
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def _bring(places: "Places", name: str, tally: Tally) -> None:
    """One file into the cache, under the lock that the client takes for it."""
    snapshot, blob, link = places.snapshot, places.blob(name), places.link(name)
    try:
        for folder in (blob.parent, link.parent, places.locks):
            folder.mkdir(parents=True, exist_ok=True)
        with _locked(places.locks / f"{blob.name}.lock", name, tally):
            if _has_size(blob, snapshot.files[name]):
                tally.add(snapshot.files[name])
            elif not places.is_linked(name):
                fetch_file(snapshot, name, blob, tally.add)
            if not places.is_linked(name):
                _create_symlink(str(blob), str(link), new_blob=True)
    except OSError as error:
        disk_failure(error, link, 0)


@contextmanager
def _locked(path: Path, name: str, tally: Tally) -> Iterator[None]:
    """Hold a file's lock, waiting for whoever has it."""
    for attempt in range(2**31):
        with ExitStack() as held:
            try:
                held.enter_context(WeakFileLock(path, timeout=LOCK_SECONDS))
            except TimeoutError:
                if attempt == 1:
                    tally.say(f"another process downloads {name}; waiting for it")
                tally.add(0)
                continue
            yield
            return


def _tag(cache: Path) -> None:
    name, text = CACHE_TAG
    with suppress(OSError, DiskError):
        if not (cache / name).exists():
            write_file(cache / name, text)


def _remember(snapshot: RepoSnapshot, places: "Places") -> None:
    """Note the branch's commit in the cache, where the client does, so that it can be opened offline."""
    if snapshot.revision == snapshot.commit:
        return
    reference = places.repository / "refs" / (snapshot.revision or constants.DEFAULT_REVISION)
    with suppress(OSError, DiskError):
        if not reference.exists() or reference.read_text() != snapshot.commit:
            reference.parent.mkdir(parents=True, exist_ok=True)
            write_file(reference, snapshot.commit.encode())


def _sizes(snapshot: RepoSnapshot, files: Iterable[str]) -> list[tuple[str, int]]:
    return [(name, snapshot.files[name]) for name in files]


class Places:
    """Where the client's cache keeps what belongs to a snapshot."""

    def __init__(self, snapshot: RepoSnapshot) -> None:
        self.snapshot = snapshot
        self.root = Path(constants.HF_HUB_CACHE)
        name = repo_folder_name(repo_id=snapshot.repo_id, repo_type="model")
        self.repository, self.locks = self.root / name, self.root / ".locks" / name
        self.folder = self.repository / "snapshots" / snapshot.commit

    def blob(self, name: str) -> Path:
        """The bytes of a file, under the name that the Hub's ETag gives them."""
        return self.repository / "blobs" / self.snapshot.oid(name)

    def link(self, name: str) -> Path:
        """The file under its own name, a link to its bytes."""
        return self.folder / name

    def is_linked(self, name: str) -> bool:
        """Whether the file is there under its name, with its size."""
        return _has_size(self.link(name), self.snapshot.files[name])

    def is_whole(self, name: str) -> bool:
        """Whether the file's bytes are there, perhaps for another commit."""
        return self.is_linked(name) or _has_size(self.blob(name), self.snapshot.files[name])

    def begun(self, name: str) -> int:
        """Bytes of a transfer that was interrupted."""
        with suppress(OSError):
            return min(partial_path(self.blob(name), self.snapshot.oid(name)).stat().st_size, self.snapshot.files[name])
        return 0


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size
