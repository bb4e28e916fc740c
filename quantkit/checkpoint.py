"""Open a checkpoint by the name a user gives: a local folder, or a repository at a revision."""

from dataclasses import replace
from pathlib import Path

from quantkit.errors import NotFoundError
from quantkit.hub.download import TransferProgress, download, missing_bytes
from quantkit.hub.repository import needed_files, parse_reference, resolve, small_files
from quantkit.weights.remote_headers import RemoteHeaders
from quantkit.weights.source import Checkpoint, open_folder, read_config


def open_checkpoint(reference: str, headers_only: bool = False, progress: TransferProgress | None = None) -> Checkpoint:
    """The checkpoint that a reference names; a path that exists goes before a repository.

    Args:
        reference: a folder, `organisation/name` or `organisation/name@revision`.
        headers_only: fetch no weights; where the cache does not hold them, the source has `infos`
            (or for `.bin` files a `weight_map`) but cannot read.
        progress: told how far a download is.

    Raises:
        NotFoundError: no such folder or repository, or no access to it.
        BadInputError: a file of the checkpoint breaks the rules.
        NetworkError: the Hub was not reached.
        DiskError: the disk is full or refuses to read.
    """
    folder = local_path(reference)
    if folder is not None:
        return open_folder(folder, reference)
    repository = parse_reference(reference)
    if repository is None:
        raise NotFoundError(
            f"no such folder: {reference[:200]}", "write a folder's path, or organisation/name@revision for the Hub"
        )
    snapshot = resolve(repository.repo_id, repository.revision)
    files = needed_files(snapshot.files)
    missing = missing_bytes(snapshot, files)
    if headers_only and missing:
        index = [name for name in files if name.endswith(".index.json")]  # its sha256 is in records
        folder = download(snapshot, [*small_files(snapshot.files), *index])
        config, source = read_config(folder), RemoteHeaders(snapshot)
        opened = Checkpoint(reference, folder, config, source, snapshot.files, download_bytes=missing)
    else:
        opened = open_folder(download(snapshot, files, progress), reference)
    return replace(
        opened,
        files=snapshot.files,
        repo_id=snapshot.repo_id,
        commit=snapshot.commit,
        gated=snapshot.gated,
        oids=snapshot.oids,
    )


def local_path(reference: str) -> Path | None:
    """The path that a reference names, if it leads somewhere."""
    try:
        folder = Path(reference).expanduser()
        return folder if reference and folder.exists() else None
    except (OSError, RuntimeError, ValueError):  # too long for a name, an unknown user's ~, a NUL byte
        return None
