"""Files of a folder on a branch of the Hub: compared, sent once, committed together, read back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError

from quantkit.errors import QuantkitError
from quantkit.hub.repository import resolve
from quantkit.hub.upload import LocalFile, Sent, discreet, operation, unwrapped, upload
from quantkit.weights.remote import RepoSnapshot, ask, client

FILES_PER_COMMIT = 99  # the Hub asks for fewer than 100
LARGE_BYTES = 5_000_000  # the Hub keeps larger files, and those that end like weights, outside of git
LARGE_SUFFIXES = (".safetensors", ".gguf", ".bin")
MEETINGS = 3  # other pushes to the same branch that may come between before we give up
_PARENT_MOVED = 412  # the branch is not where the commit expected it


@dataclass(frozen=True)
class Difference:
    """What a branch lacks of a folder, and what it has too much."""

    new: tuple[LocalFile, ...] = ()  # to add or replace, in the order of sending
    stale: tuple[str, ...] = ()  # to remove

    def __bool__(self) -> bool:
        return bool(self.new or self.stale)

    def first(self, count: int) -> "Difference":
        """As much of it as one commit takes; what is to be removed comes last."""
        new = self.new[:count]
        return Difference(new, self.stale[: count - len(new)])


@dataclass(frozen=True)
class Parcel:
    """What is to be on a branch.

    Attributes:
        repo_id: organisation/name.
        branch: which exists.
        files: in the order of sending.
        is_ours: whether a file of the branch that is not among them belongs to an earlier push and is removed.
        message: of the commit.
    """

    repo_id: str
    branch: str
    files: Sequence[LocalFile]
    is_ours: Callable[[str], bool]
    message: str


class Listener:
    """Told what happens to files; nothing by itself."""

    def sending(self, file: LocalFile) -> Sent:
        """A file begins; what is returned hears how many more bytes of it are on their way."""
        return lambda _: None

    def sent(self, file: LocalFile) -> None:
        """The Hub has the file's bytes."""


def compare(snapshot: RepoSnapshot, parcel: Parcel) -> Difference:
    """What separates a branch from what it should hold, by content alone."""
    names = {file.name for file in parcel.files}
    stale = [name for name in sorted(snapshot.files) if name not in names and parcel.is_ours(name)]
    return Difference(tuple(file for file in parcel.files if not _is_there(snapshot, file)), tuple(stale))


def publish(parcel: Parcel, listener: Listener) -> RepoSnapshot:
    """Bring the branch to hold the files, and read back that it does; safe to repeat after any failure.

    Large files go first, one after the other, and stay on the Hub also if the run ends before the commit. Every
    commit says on which one it builds, so that another push is noticed and compared with. There is one commit
    where fewer than 100 files differ, and none where no file does.

    Returns:
        The branch as it is then.

    Raises:
        BadInputError: a file changes meanwhile, or the Hub refuses one.
        NotFoundError: no access.
        NetworkError: the Hub was not reached after every retry.
        QuantkitError: the Hub does not keep a file, or others push without end.
    """
    with discreet():
        return ask(parcel.repo_id, lambda: _bring_about(client(), parcel, listener))


def is_large(file: LocalFile) -> bool:
    """Whether a file is sent by itself, ahead of the commit."""
    return file.size > LARGE_BYTES or file.name.endswith(LARGE_SUFFIXES)


def _bring_about(api: HfApi, parcel: Parcel, listener: Listener) -> RepoSnapshot:
    """Commit until nothing differs. Where an answer is lost, the next call finds out by comparing."""
    before: Difference | None = None
    meetings = 0
    while True:
        snapshot = resolve(parcel.repo_id, parcel.branch)
        difference = compare(snapshot, parcel)
        if not difference:
            return snapshot
        if before is not None and _size(difference) >= _size(before):
            name = (*(file.name for file in difference.new), *difference.stale)[0]
            raise QuantkitError(
                f"{parcel.repo_id}: {name} is not on the branch as it was committed",
                "a .gitignore in the repository may leave it out",
            )
        try:
            _commit(api, parcel, difference.first(FILES_PER_COMMIT), snapshot.commit, listener)
            before = difference
        except HfHubHTTPError as error:
            if error.response.status_code != _PARENT_MOVED:
                raise
            before, meetings = None, meetings + 1
            if meetings > MEETINGS:
                raise QuantkitError(
                    f"{parcel.repo_id}: others push to the branch {parcel.branch} at the same time",
                    "wait for them and push again; what was uploaded is kept",
                ) from error


def _commit(api: HfApi, parcel: Parcel, step: Difference, parent: str, listener: Listener) -> None:
    added: list[CommitOperationAdd] = []
    for file in step.new:
        if is_large(file):
            added.append(upload(api, parcel.repo_id, parcel.branch, file, listener.sending(file)))
            listener.sent(file)
        else:
            added.append(operation(file))
    removed = [CommitOperationDelete(name, is_folder=False) for name in step.stale]
    with unwrapped(parcel.repo_id):
        api.create_commit(
            parcel.repo_id,
            [*added, *removed],
            commit_message=parcel.message,
            revision=parcel.branch,
            parent_commit=parent,
        )


def _is_there(snapshot: RepoSnapshot, file: LocalFile) -> bool:
    known = snapshot.oids.get(file.name)
    return known is not None and known in (file.sha256, file.git_id)


def _size(difference: Difference) -> int:
    return len(difference.new) + len(difference.stale)
