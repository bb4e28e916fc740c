"""`quantkit download`: what is needed of a repository at one commit, in the cache or in a folder."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.errors import BadInputError, DiskError, UsageError
from quantkit.hub.download import Places, Tally, download, free_bytes, in_parallel, missing_bytes, refuse_small_disk
from quantkit.hub.repository import needed_files, parse_reference, resolve, small_files
from quantkit.progress import Progress
from quantkit.runlock import locked
from quantkit.weights.files import copy_file
from quantkit.weights.hashes import has_hash
from quantkit.weights.remote import RepoSnapshot
from quantkit.weights.transfer import fetch_file, partial_path, remove_partials

SCHEMA_VERSION = 1
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".index.json")


@dataclass(frozen=True)
class DownloadJob:
    """A download prepared: everything that can be refused before its first byte has been."""

    asked: str  # the repository's name as the user wrote it
    snapshot: RepoSnapshot
    files: Sequence[str]
    folder: Path
    missing: Mapping[str, int]  # file -> bytes that are still to come
    into_cache: bool

    def as_dict(self) -> dict[str, Any]:
        """The plan: files with their sizes, what is missing, and the disk."""
        sizes = self.snapshot.files
        rows = [{"name": name, "bytes": sizes[name], "missing": self.missing.get(name, 0)} for name in self.files]
        return {
            "schema_version": SCHEMA_VERSION,
            "repo": self.snapshot.repo_id,
            "revision": self.snapshot.revision,
            "commit": self.snapshot.commit,
            "folder": str(self.folder),
            "files": rows,
            "bytes": sum(sizes[name] for name in self.files),
            "missing_bytes": sum(self.missing.values()),
            "free_bytes": free_bytes(self.folder),
        }


def prepare(reference: str, out: Path | None = None) -> DownloadJob:
    """Look a repository up, and what of it is here already.

    Args:
        reference: organisation/name or organisation/name@revision.
        out: a folder for the files; None: the client's cache.

    Raises:
        UsageError: the reference has another form.
        NotFoundError: no such repository or revision, no access to it, or no weights in it.
        BadInputError: `out` holds parts of another checkpoint.
        NetworkError: the Hub was not reached.
    """
    repository = parse_reference(reference)
    if repository is None:
        raise UsageError(f"no repository: {reference[:200]!r}", "write organisation/name or organisation/name@revision")
    snapshot = resolve(repository.repo_id, repository.revision)
    files = needed_files(snapshot.files)
    if out is None:
        missing = {name: missing_bytes(snapshot, [name]) for name in files}
    else:
        _refuse_strangers(out, snapshot)
        missing = {name: _missing(out / name, snapshot, name) for name in files}
    missing = {name: count for name, count in missing.items() if count}
    folder = Places(snapshot).folder if out is None else out
    return DownloadJob(repository.repo_id, snapshot, files, folder, missing, out is None)


def run(job: DownloadJob, progress: Progress) -> dict[str, Any]:
    """Bring what is missing; whatever ends the run, what has come is continued by the next one.

    Returns:
        The plan's fields but `missing_bytes` and `free_bytes`, and `fetched`, the names of files that came.

    Raises:
        BadInputError: the bytes of a file are not those of the commit, twice; or another run holds the folder.
        NotFoundError: no access, or a file is missing.
        NetworkError: the network failed after every retry.
        DiskError: the disk is full, too small for what is missing, or read-only.
    """
    if job.asked != job.snapshot.repo_id:
        progress.say(f"{job.asked} is called {job.snapshot.repo_id} now")
    if job.into_cache:
        fetched = list(job.missing)
        download(job.snapshot, job.files, progress)
    else:
        refuse_small_disk(job.folder, sum(job.missing.values()))
        fetched = _download_to(job, progress)
    record = job.as_dict() | {"fetched": sorted(fetched)}
    rows = [{"name": name, "bytes": job.snapshot.files[name]} for name in job.files]
    del record["missing_bytes"], record["free_bytes"]
    return record | {"files": rows}


def _download_to(job: DownloadJob, progress: Progress) -> list[str]:
    """Files into a folder of the user's; those that are there are hashed, not fetched. Returns the names fetched."""
    fetched: list[str] = []
    tally = Tally(sum(job.snapshot.files[name] for name in job.files), progress)

    def bring(name: str) -> None:
        if _bring(job, name, tally):
            fetched.append(name)

    with locked(job.folder) as protected:
        if not protected:
            progress.say(f"{job.folder} has no locks: let no other run write there")
        in_parallel(job.snapshot, job.files, bring, tally)
    return fetched


def _bring(job: DownloadJob, name: str, tally: Tally) -> bool:
    """One file to its place, from there, from the cache, or from the Hub; whether it was the last."""
    target, snapshot = job.folder / name, job.snapshot
    cached = Places(snapshot).link(name)
    try:
        if _is_whole(target, snapshot, name, tally):
            remove_partials(target)
            return False
        if _is_whole(cached, snapshot, name, tally):
            copy_file(cached, target)
            remove_partials(target)
            return False
    except OSError as error:
        raise DiskError(f"cannot read {error.filename or target}: {error.strerror}") from error
    fetch_file(snapshot, name, target, tally.add)
    return True


def _is_whole(path: Path, snapshot: RepoSnapshot, name: str, tally: Tally) -> bool:
    """Whether a file has the commit's bytes; they are counted as they are read, and taken back if it has not."""
    counted = 0

    def told(count: int) -> None:
        nonlocal counted
        counted += count
        tally.add(count)

    if has_hash(path, snapshot.oid(name), snapshot.files[name], told):
        return True
    tally.add(-counted)
    return False


def _missing(target: Path, snapshot: RepoSnapshot, name: str) -> int:
    """Bytes of a file that are not in the user's folder, by size alone: hashes are for the run."""
    size = snapshot.files[name]
    if target.is_file() and target.stat().st_size == size:
        return 0
    with suppress(OSError):
        return max(0, size - partial_path(target, snapshot.oid(name)).stat().st_size)
    return size


def _refuse_strangers(out: Path, snapshot: RepoSnapshot) -> None:
    """Refuse a folder where files of two checkpoints would lie side by side, taken for one."""
    if out.exists() and not out.is_dir():
        raise BadInputError(f"{out} is a file, expected a folder", "choose another --out")
    names = [path.name for path in out.iterdir()] if out.is_dir() else []
    weights = [name for name in names if name.endswith(WEIGHT_SUFFIXES) and not name.startswith(".")]
    strangers = sorted({*small_files(names), *weights} - set(snapshot.files))
    if strangers:
        raise BadInputError(
            f"{out} holds {strangers[0]}, which is no file of {snapshot.repo_id} at {snapshot.commit[:12]}",
            "choose another --out, or remove the other checkpoint first",
        )
