"""Files of a repository into the client's cache."""

import contextlib
import glob
from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import constants, try_to_load_from_cache

from quantkit.errors import BadInputError, DiskError, NetworkError
from quantkit.units import format_bytes
from quantkit.weights.files import write_file
from quantkit.weights.remote import RepoSnapshot, ask, client


def missing_bytes(snapshot: RepoSnapshot, files: Iterable[str]) -> int:
    """Bytes of those files that the cache does not hold yet."""
    return sum(snapshot.files[name] for name in files if _cached(snapshot, name) is None)


def download(snapshot: RepoSnapshot, files: Iterable[str]) -> Path:
    """Download files of the snapshot into the client's cache; what is there is not fetched again.

    Returns:
        The folder that holds them.

    Raises:
        BadInputError: a file has another size than the Hub said.
        NotFoundError: no access, or a file is missing.
        NetworkError: the network failed after every retry.
        DiskError: the disk is full or read-only.
    """
    files = list(files)
    api, repo_id = client(), snapshot.repo_id
    patterns = [glob.escape(name) for name in files]
    folder = Path(
        ask(repo_id, lambda: api.snapshot_download(repo_id, revision=snapshot.commit, allow_patterns=patterns))
    )
    for name in files:
        if not (folder / name).is_file():
            # The client returns an incomplete folder of its cache when it does not reach the Hub.
            raise NetworkError(f"{repo_id}: {name} was not downloaded", "check the network and try again")
        found = (folder / name).stat().st_size
        if found != snapshot.files[name]:
            expected = f"expected {format_bytes(snapshot.files[name])} ({snapshot.files[name]} bytes)"
            hint = f"delete {folder / name} and what it links to, then download again"
            raise BadInputError(f"{repo_id}: found {name} with {found} bytes, {expected}", hint)
    _remember(snapshot, folder)
    return folder


def _remember(snapshot: RepoSnapshot, folder: Path) -> None:
    """Note the branch's commit in the cache, where the client does, so that it can be opened offline."""
    if snapshot.revision == snapshot.commit:
        return
    reference = folder.parent.parent / "refs" / (snapshot.revision or constants.DEFAULT_REVISION)
    with contextlib.suppress(OSError, DiskError):
        reference.parent.mkdir(parents=True, exist_ok=True)
        write_file(reference, snapshot.commit.encode())


def _cached(snapshot: RepoSnapshot, name: str) -> str | None:
    path = try_to_load_from_cache(snapshot.repo_id, name, revision=snapshot.commit)
    return path if isinstance(path, str) else None
