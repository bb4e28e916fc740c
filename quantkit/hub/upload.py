"""One file on its way to the Hub: its bytes counted, its errors named."""

import contextlib
import importlib.util
import io
import json
import logging
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, constants
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

from quantkit.errors import BadInputError, DiskError, NotFoundError
from quantkit.weights.hashes import git_hash
from quantkit.weights.remote import CLIENT_ERRORS

GIT_BYTES = 2**24  # the Hub keeps no larger files in git
_NO_XET = re.compile(r"\b404\b.*xet-write-token|xet-write-token.*\b404\b", re.DOTALL)
Sent = Callable[[int], None]


@dataclass(frozen=True)
class LocalFile:
    """A file to publish, as it was when it was hashed.

    Attributes:
        name: in the repository.
        path: on this machine.
        size: bytes.
        sha256: what it is called where the Hub keeps it outside of git.
        git_id: what git calls it; empty for a file that is too large for git.
        changed_ns: time of its last change.
    """

    name: str
    path: Path
    size: int
    sha256: str
    git_id: str
    changed_ns: int = 0

    @classmethod
    def of(cls, folder: Path, name: str, sha256: str) -> "LocalFile":
        """A file of a folder, under its own name.

        Raises:
            DiskError: it cannot be read.
        """
        path = folder / name
        try:
            stat = path.stat()
            git_id = git_hash(path.read_bytes()) if stat.st_size <= GIT_BYTES else ""
        except OSError as error:
            raise DiskError(f"cannot read {path}: {error.strerror}") from error
        return cls(name, path, stat.st_size, sha256, git_id, stat.st_mtime_ns)


def operation(file: LocalFile) -> CommitOperationAdd:
    """The client's own word for a file to add; the file is not hashed again.

    Raises:
        BadInputError: the file has changed since it was hashed.
        DiskError: it cannot be read.
    """
    try:
        stat = file.path.stat()
        if (stat.st_size, stat.st_mtime_ns) != (file.size, file.changed_ns):
            raise BadInputError(f"{file.path} has changed since the push began", "let what writes it end, push again")
        added = CommitOperationAdd(file.name, str(file.path))
    except OSError as error:
        raise DiskError(f"cannot read {file.path}: {error.strerror}") from error
    added.upload_info.sha256 = bytes.fromhex(file.sha256)
    return added


def upload(api: HfApi, repo_id: str, branch: str, file: LocalFile, sent: Sent) -> CommitOperationAdd:
    """Bring a large file's bytes to the Hub, for a commit that follows; those that are there are not sent again.

    Args:
        api: the client.
        repo_id: organisation/name.
        branch: of the commit.
        file: to send.
        sent: told how many more bytes are on their way.

    Returns:
        What the commit takes.

    Raises:
        The client's errors, and those of `operation`.
    """
    added = operation(file)
    with contextlib.ExitStack() as stack:
        if over_http():
            added.path_or_fileobj = stack.enter_context(_Counted(file.path, sent))
        with unwrapped(repo_id):
            api.preupload_lfs_files(repo_id, [added], revision=branch, free_memory=False)
    added.path_or_fileobj = str(file.path)  # what is no LFS file for the Hub travels with the commit
    return added


def over_http() -> bool:
    """Whether the client will use plain LFS. Xet takes files by their names only, and shows its own progress."""
    return bool(constants.HF_HUB_DISABLE_XET) or importlib.util.find_spec("hf_xet") is None


@contextlib.contextmanager
def discreet() -> Iterator[None]:
    """The client's log without signed addresses, and its bars on a terminal only."""
    logger, discretion = logging.getLogger("huggingface_hub.utils._http"), _WithoutQueries()
    silenced = not sys.stderr.isatty() and not are_progress_bars_disabled()
    logger.addFilter(discretion)
    if silenced:
        disable_progress_bars()
    try:
        yield
    finally:
        logger.removeFilter(discretion)
        if silenced:
            enable_progress_bars()


@contextlib.contextmanager
def unwrapped(repo_id: str) -> Iterator[None]:
    """The cause of an error that the client has wrapped; a sentence for one that has no class of its own.

    Raises:
        BadInputError: the Hub refuses a file or the card.
        NotFoundError: the client sends files through Xet, which this Hub has not.
    """
    try:
        yield
    except (RuntimeError, ConnectionError) as error:
        if _NO_XET.search(str(error)):
            raise NotFoundError(
                f"the Hub of {repo_id} has no Xet storage", "set HF_HUB_DISABLE_XET=1, and files go by plain HTTP"
            ) from error
        # "Error while uploading", whatever the reason was.
        if isinstance(error.__cause__, CLIENT_ERRORS):
            raise error.__cause__ from None
        raise
    except json.JSONDecodeError as error:  # the client reads the answer before it looks at its status
        raise EOFError("the answer was not JSON") from error
    except ValueError as error:
        raise BadInputError(f"the Hub refuses files for {repo_id}: {' '.join(str(error).split())[:300]}") from error


class _WithoutQueries(logging.Filter):
    """The client logs the addresses that it tries again; what signs them is nobody's business."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Always kept, and without the query."""
        record.msg, record.args = re.sub(r"\?\S+", "", record.getMessage()), None
        return True


class _Counted(io.BufferedReader):
    """A file that says how much of it was read; what is read again, for another try, counts once."""

    def __init__(self, path: Path, sent: Sent) -> None:
        super().__init__(path.open("rb", buffering=0))
        self._sent, self._told = sent, 0

    def read(self, size: int | None = -1, /) -> bytes:
        """As every file."""
        data = super().read(size)
        if (place := self.tell()) > self._told:
            self._sent(place - self._told)
            self._told = place
        return data
