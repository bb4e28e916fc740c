"""An artifact to the Hub: refused unless it is whole and checked; then card and weights in one commit."""

import contextlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.errors import QualityError
from quantkit.hub.account import tokens, writer
from quantkit.hub.collection import add_to_collection
from quantkit.hub.publish import Difference, Listener, Parcel, compare, is_large, publish
from quantkit.hub.target import MAIN, Target, look, make, page, tag
from quantkit.hub.upload import LocalFile, Sent, over_http
from quantkit.pipeline.card import WRITTEN, write_card
from quantkit.pipeline.push_files import Artifact, find_artifact, refuse_local
from quantkit.pipeline.push_gate import judge
from quantkit.pipeline.push_options import PushOptions, check_names, check_tag, is_gated, privacy, with_branch
from quantkit.progress import Progress, Silent
from quantkit.units import format_bytes
from quantkit.versions import version
from quantkit.weights.hashes import file_hashes

__all__ = ["PushJob", "PushOptions", "description", "prepare", "run"]
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class PushJob:
    """A push prepared: all that could be refused is past.

    Attributes:
        target: the branch as it was when it was looked at.
        options: as asked for.
        private: of a new repository; None: what the namespace has chosen.
        card: README.md.
        parcel: everything that the branch will hold of the artifact.
        difference: what of it is to be sent and removed, from the look at the branch.
        notes: what a user should know, a sentence each.
    """

    target: Target
    options: PushOptions
    private: bool | None
    card: str
    parcel: Parcel
    difference: Difference
    notes: tuple[str, ...]


def prepare(folder: Path, repo_id: str, options: PushOptions | None = None, *, dry_run: bool = False) -> PushJob:
    """Write the card and refuse everything that can be refused before anything on the Hub is changed.

    Args:
        folder: the output folder of a GPTQ or a GGUF run.
        repo_id: organisation/name.
        options: as asked for.
        dry_run: write nothing, and do without a login.

    Raises:
        UsageError: names that the Hub does not take, a tag of another commit, a public repository that should be
            private.
        BadInputError: no whole artifact, or it holds something local.
        NotFoundError: nobody is logged in, or they may not write there.
        QualityError: no check that counts, and `force` is not given.
        NetworkError: the Hub was not reached.
        DiskError: the folder cannot be read or the card not written.
    """
    options = options or PushOptions()
    check_names(repo_id, options)
    artifact = find_artifact(folder)
    options = with_branch(options, artifact)
    if not dry_run:
        writer(repo_id)
    target = look(repo_id, options.branch or MAIN)
    private = privacy(artifact, target, options)
    verdict = judge(artifact)
    if verdict.objections and not options.force:
        raise QualityError(
            f"{folder} is not published: {'; '.join(verdict.objections)}",
            "quantkit check ARTIFACT --baseline SOURCE; or --force, and the card will say so",
        )
    with _dry(folder) if dry_run else contextlib.nullcontext(folder) as place:
        card = write_card(
            place,
            repo_id=repo_id,
            branch=options.branch if target.branch != MAIN else None,
            siblings=options.siblings,
            forced=bool(verdict.objections),
            known=verdict.hashes,
        )
        artifact = find_artifact(place)  # with what belongs to the card
        files = _files(artifact, verdict.hashes)
        refuse_local(artifact, folder, tokens())
    message = f"{artifact.kind.upper()} weights and card, quantkit {version()}"
    parcel = Parcel(repo_id, target.branch, files, artifact.is_ours, message)
    difference = compare(target.snapshot, parcel) if target.snapshot else Difference(files)
    check_tag(options.tag, target, difference)
    notes = _notes(artifact, target, options, private, verdict.objections)
    return PushJob(target, options, private, card, parcel, difference, notes)


def run(job: PushJob, progress: Progress | None = None) -> dict[str, Any]:
    """Bring the repository to hold the artifact; repeating it, also after any failure, does nothing twice.

    Args:
        job: from `prepare`, without `dry_run`.
        progress: told of every large file.

    Returns:
        `description`, and with it `commit`, `changed`, and `private` and `collection` as they are now.

    Raises:
        BadInputError: a file changes meanwhile, or the Hub refuses one.
        NotFoundError: no access.
        NetworkError: the Hub was not reached after every retry; what was uploaded is kept there.
        QuantkitError: the Hub does not hold afterwards what was sent.
    """
    options, target = job.options, job.target
    make(target, job.private)
    there = publish(job.parcel, _Told(progress or Silent(), job.difference.new))
    if options.tag:
        tag(target.repo_id, options.tag, there.commit)
    collection = options.collection and add_to_collection(target.repo_id, options.collection, there.private)
    changed = target.snapshot is None or there.commit != target.snapshot.commit
    done = {"private": there.private, "commit": there.commit, "changed": changed, "collection": collection}
    return description(job) | done


def description(job: PushJob) -> dict[str, Any]:
    """What a push is about, as JSON."""
    new = {file.name for file in job.difference.new}
    return {
        "schema_version": SCHEMA_VERSION,
        "repo": job.target.repo_id,
        "url": page(job.target),
        "branch": job.target.branch,
        "exists": job.target.exists,
        "private": job.target.private if job.target.exists else job.private,
        "files": [
            {"name": file.name, "bytes": file.size, "sha256": file.sha256, "differs": file.name in new}
            for file in job.parcel.files
        ],
        "removed": list(job.difference.stale),
        "tag": job.options.tag,
        "collection": job.options.collection,
        "notes": list(job.notes),
    }


class _Told(Listener):
    """Passes on which file is being sent, and how much of all of them has been."""

    def __init__(self, progress: Progress, files: Iterable[LocalFile]) -> None:
        self._progress = progress
        self._total = sum(file.size for file in files if is_large(file))
        self._sent: dict[str, int] = {}

    def sending(self, file: LocalFile) -> Sent:
        """A line for the file."""
        self._progress.say(f"{file.name}: {format_bytes(file.size)}")
        self._sent[file.name] = 0
        return lambda count: self._tell(file.name, self._sent[file.name] + count)

    def sent(self, file: LocalFile) -> None:
        """All of it is there, also what was there before."""
        self._tell(file.name, file.size)

    def _tell(self, name: str, count: int) -> None:
        self._sent[name] = count
        if not over_http():  # the client has bars of its own for Xet
            return
        self._progress.transfer(min(sum(self._sent.values()), self._total), self._total, "upload")


@contextlib.contextmanager
def _dry(folder: Path) -> Iterator[Path]:
    """A folder of links to the same files, in which the card can be written without a change to them."""
    with tempfile.TemporaryDirectory() as place:
        shadow = Path(place) / folder.absolute().name
        shadow.mkdir()
        for path in folder.iterdir():
            (shadow / path.name).symlink_to(path.absolute())
        yield shadow


def _files(artifact: Artifact, hashes: Mapping[str, str]) -> tuple[LocalFile, ...]:
    """Every file with its hash; what the card has written is not what it was when the artifact was judged."""
    known = {name: digest for name, digest in hashes.items() if name not in WRITTEN}
    hashes = file_hashes(artifact.folder, artifact.names, known)
    return tuple(LocalFile.of(artifact.folder, name, hashes[name]) for name in artifact.names)


def _notes(
    artifact: Artifact, target: Target, options: PushOptions, private: bool | None, objections: tuple[str, ...]
) -> tuple[str, ...]:
    gated = is_gated(artifact)
    said = {f"published with --force, and the card says so: {one}": True for one in objections}
    said |= {
        f"stays here: {', '.join(artifact.left_out)}": bool(artifact.left_out),
        "private, because the base model is gated": gated and bool(private) and options.private is None,
        "public, although the base model is gated: --public was given": gated and options.private is False,
        "the repository is private and stays so; its settings change that": (
            target.private and options.private is False
        ),
    }
    return tuple(note for note, holds in said.items() if holds)
