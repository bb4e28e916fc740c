"""Who may see and change what: the Hub's own statuses and error codes."""

from loopback.answers import Account, Call, Refused, redirect, refusal
from loopback.storage import Commit, Repo

READ, FILES, WRITE = "read", "files", "write"


def account_of(call_headers: dict[str, str], accounts: dict[str, Account]) -> Account | None:
    """The account of the token that came along; None without a token.

    Raises:
        Refused: nobody has this token.
    """
    word = call_headers.get("authorization")
    if word is None:
        return None
    account = accounts.get(word.removeprefix("Bearer "))
    if account is None:
        raise refusal(401, "Invalid credentials in Authorization header")
    return account


def signed_in(call: Call) -> Account:
    if call.account is None:
        raise refusal(401, "Invalid username or password.")
    return call.account


def may_write(call: Call, namespace: str) -> Account:
    account = signed_in(call)
    if not account.write or not account.owns(namespace):
        raise refusal(403, f"You don't have the rights to create or change anything under the namespace {namespace!r}")
    return account


def open_repo(call: Call, kind: str, repo_id: str, level: str) -> Repo:
    """The repository of a request, where this user may come so near.

    The files of a gated repository can be listed by everybody, and read by those that it was granted to.

    Raises:
        Refused: not there, not for this user, or under another name now (a redirect).
    """
    if (name := call.hub.moved.get((kind, repo_id))) is not None:
        where = call.target.replace(repo_id, name, 1) + (f"?{call.raw_query}" if call.raw_query else "")
        raise Refused(redirect(307, where))
    repo = call.hub.repos.get((kind, repo_id))
    if repo is None or (repo.private and not _granted(call.account, repo)):
        raise refusal(401 if call.account is None else 404, "Repository not found", "RepoNotFound")
    if level == FILES and repo.gated and not _granted(call.account, repo):
        message = f"Access to {kind} {repo_id} is restricted and you are not in the authorized list."
        raise refusal(401 if call.account is None else 403, message, "GatedRepo")
    if level == WRITE:
        may_write(call, repo_id)
    return repo


def open_commit(repo: Repo, revision: str) -> Commit:
    commit = repo.find(revision)
    if commit is None:
        raise refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    return commit


def _granted(account: Account | None, repo: Repo) -> bool:
    return account is not None and ((repo.granted and account.granted) or account.owns(repo.repo_id))
