"""A repository of the Hub at one commit, and requests to the Hub: made again, and their errors in the user's words."""

import errno
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (  # type: ignore[attr-defined]
    DisabledRepoError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    XetDownloadError,
)
from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]

from quantkit.errors import BadInputError, DiskError, NetworkError, NotFoundError, QuantkitError

RETRY_SECONDS = (1.0, 2.0, 4.0, 8.0)
LONGEST_WAIT = 600.0  # seconds; the Hub counts requests in windows of five minutes
# hf_xet, in Rust, reports every failure as a RuntimeError.
CLIENT_ERRORS = (HTTPError, XetDownloadError, HFValidationError, OSError, EOFError, RuntimeError)
_OID = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_DISK_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
_LOGIN = "if it is private, log in with `hf auth login` or set HF_TOKEN"
# The client's error, our sentence, our hint; the first that fits (a gated repository is also "not found").
_ABSENT: tuple[tuple[type[BaseException], str, str], ...] = (
    (
        GatedRepoError,
        "{repo} is gated and not open to this user",
        "accept its terms at {page}; then `hf auth login`",
    ),
    (RevisionNotFoundError, "{repo} has no revision {revision!r}", "see {page}/commits/main"),
    (RepositoryNotFoundError, "the Hub shows no repository {repo}", f"check the name; {_LOGIN}"),
    (DisabledRepoError, "{repo} has been disabled on the Hub", "see {page}"),
    (EntryNotFoundError, "{repo} lacks a file that was asked for", "see {page}/tree/main"),
)
_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class RepoSnapshot:
    """A repository of the Hub at one commit."""

    repo_id: str
    revision: str | None  # as asked for; None: the default branch
    commit: str
    files: Mapping[str, int]  # file name -> bytes
    gated: bool = False
    private: bool = False
    oids: Mapping[str, str] = field(default_factory=dict)  # file name -> sha256 (LFS) or git blob sha1, hex

    def oid(self, name: str) -> str:
        """The hash that a file must have.

        Raises:
            NotFoundError: there is no such file.
            BadInputError: the Hub gave none for it.
        """
        if name not in self.files:
            raise NotFoundError(f"{self.repo_id} has no file {name} at {self.commit[:12]}")
        oid = self.oids.get(name, "")
        if not _OID.fullmatch(oid):
            raise BadInputError(
                f"{self.repo_id}: found {f'the hash {oid!r:.80}' if oid else 'no hash'} of {name} on the Hub, "
                "expected a sha256 or git's sha1",
                "what this server sends cannot be verified; take the repository from huggingface.co",
            )
        return oid


def client() -> HfApi:
    """The Hub's client, at HF_ENDPOINT and with the user's own token."""
    return HfApi(library_name="quantkit")


def ask(repo_id: str, call: Callable[[], _Answer], revision: str | None = None) -> _Answer:
    """What the client's call returns, after retries where the network failed.

    Raises:
        QuantkitError: the client's error in the user's words.
    """
    for wait in (*RETRY_SECONDS, None):
        try:
            return call()
        except CLIENT_ERRORS as error:
            failure = translate(error, repo_id, revision)
            if wait is None or constants.HF_HUB_OFFLINE or not isinstance(failure, NetworkError):
                raise failure from error
            time.sleep(max(wait, asked_wait(error)))
    raise AssertionError("unreachable")


def asked_wait(error: BaseException) -> float:
    """Seconds that the server asks to be left alone: Retry-After in either form, or its rate limit; 0 if it does not.

    Longer waits than ten minutes are cut to that.
    """
    response = getattr(error, "response", None)
    if response is None:
        return 0.0
    asked = str(response.headers.get("Retry-After", "")).strip()
    seconds = 0.0
    if asked.isdecimal():
        seconds = float(asked)
    elif asked:
        with suppress(ValueError, TypeError):  # by the server's clock, where it tells its time
            now = response.headers.get("Date")
            since = parsedate_to_datetime(now) if now else datetime.now(UTC)
            seconds = (parsedate_to_datetime(asked) - since).total_seconds()
    elif response.status_code == 429 and (limit := parse_ratelimit_headers(response.headers)):
        seconds = float(limit.reset_in_seconds) if limit.remaining == 0 else 0.0
    return min(max(seconds, 0.0), LONGEST_WAIT)


def translate(error: BaseException, repo_id: str, revision: str | None = None) -> QuantkitError:
    """The client's error in the user's words; never a token, nor a signed address."""
    if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        return translate(error.__cause__, repo_id, revision)
    if isinstance(error, OfflineModeIsEnabled | LocalEntryNotFoundError):
        return NetworkError(f"{repo_id} is not complete in the cache", "unset HF_HUB_OFFLINE to download it")
    words = {"repo": repo_id, "page": f"{constants.ENDPOINT}/{repo_id}", "revision": revision}
    for kind, message, hint in _ABSENT:
        if isinstance(error, kind):
            return NotFoundError(message.format_map(words), hint.format_map(words))
    if isinstance(error, HFValidationError):
        return BadInputError(f"{repo_id!r} is no repository name, expected organisation/name")
    if isinstance(error, HfHubHTTPError):
        return _by_status(error.response.status_code, repo_id)
    if isinstance(error, OSError) and error.errno in _DISK_ERRNOS:
        where = error.filename or constants.HF_HUB_CACHE
        hint = "free some space there, or point HF_HOME to another disk; finished files are kept"
        return DiskError(f"cannot write {where}: {error.strerror}", hint)
    hint = "check the network and try again; finished files are kept"
    return NetworkError(f"the Hub was not reached for {repo_id}: {_said(error)}", hint)


def _by_status(status: int, repo_id: str) -> QuantkitError:
    if status in (401, 403):
        return NotFoundError(f"the Hub refuses access to {repo_id} (HTTP {status})", f"check the token; {_LOGIN}")
    if status < 500 and status not in (408, 425, 429):
        return NotFoundError(f"the Hub does not answer this request for {repo_id} (HTTP {status})")
    hint = "wait a few minutes; a logged-in user has more requests" if status == 429 else "try again later"
    return NetworkError(f"the Hub answered HTTP {status} for {repo_id}", hint)


def _said(error: BaseException) -> str:
    """One short line of an error, without the query of an address or anything like a token."""
    line = (str(error).strip() or type(error).__name__).split("\n")[0]
    return re.sub(r"hf_\w+", "hf_...", re.sub(r"\?\S+", "", line))[:200]
