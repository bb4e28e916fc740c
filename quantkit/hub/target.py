"""The branch to which an artifact goes: what is there already, and its making."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from huggingface_hub import GitRefs
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from quantkit.errors import QuantkitError
from quantkit.hub.repository import resolve
from quantkit.weights.remote import RepoSnapshot, ask, client

MAIN = "main"


@dataclass(frozen=True)
class Target:
    """A branch of a repository as it is now.

    Attributes:
        repo_id: organisation/name.
        branch: its name.
        exists: whether there is such a repository, as far as this user can see.
        private: of an existing repository.
        snapshot: the branch's newest commit and its files; None where there is no such branch yet.
        tags: name -> commit.
    """

    repo_id: str
    branch: str
    exists: bool = False
    private: bool = False
    snapshot: RepoSnapshot | None = None
    tags: Mapping[str, str] = field(default_factory=dict)


def look(repo_id: str, branch: str = MAIN) -> Target:
    """The branch as it is now, in two questions that change nothing.

    Raises:
        NotFoundError: no access to the repository.
        NetworkError: the Hub was not reached.
    """
    refs = _refs(repo_id)
    if refs is None:
        return Target(repo_id, branch)
    known = branch in {ref.name for ref in refs.branches}
    snapshot = resolve(repo_id, branch if known else None)
    tags = {ref.name: ref.target_commit for ref in refs.tags}
    return Target(repo_id, branch, True, snapshot.private, snapshot if known else None, tags)


def page(target: Target) -> str:
    """Where people see the branch."""
    address = f"{client().endpoint}/{target.repo_id}"
    return address if target.branch == MAIN else f"{address}/tree/{target.branch}"


def make(target: Target, private: bool | None) -> None:
    """Create the repository and the branch, where they are not there yet; safe to repeat.

    A branch other than `main` begins at the repository's first commit, so that it carries none of main's weights.

    Args:
        target: as `look` found it.
        private: for a repository that is new; None: what its organisation has chosen.

    Raises:
        NotFoundError: this user may not.
        NetworkError: the Hub was not reached.
    """
    repo_id, api = target.repo_id, client()
    if not target.exists:
        ask(repo_id, lambda: api.create_repo(repo_id, private=private, exist_ok=True))
    if target.snapshot is None and target.branch != MAIN:
        first = ask(repo_id, lambda: api.list_repo_commits(repo_id))[-1].commit_id
        ask(repo_id, lambda: api.create_branch(repo_id, branch=target.branch, revision=first, exist_ok=True))


def tag(repo_id: str, name: str, commit: str) -> None:
    """Give a commit a tag, and read back that it has it; safe to repeat.

    Raises:
        QuantkitError: the tag is on another commit.
        NotFoundError: this user may not.
        NetworkError: the Hub was not reached.
    """
    api = client()
    ask(repo_id, lambda: api.create_tag(repo_id, tag=name, revision=commit, exist_ok=True))
    refs = _refs(repo_id)
    found = {ref.name: ref.target_commit for ref in refs.tags} if refs else {}
    if found.get(name) != commit:
        raise QuantkitError(
            f"{repo_id}: the tag {name} is on {found.get(name)}, expected {commit}",
            "another push has set it meanwhile; choose another --tag",
        )


def _refs(repo_id: str) -> GitRefs | None:
    """Branches and tags; None where the Hub shows no such repository."""
    api = client()

    def call() -> GitRefs | None:
        try:
            return api.list_repo_refs(repo_id)
        except GatedRepoError:  # a kind of RepositoryNotFoundError
            raise
        except RepositoryNotFoundError:
            return None

    return ask(repo_id, call)
