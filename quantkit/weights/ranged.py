"""One request for a range of a repository's file, with every answer checked before its bytes are taken."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from huggingface_hub import constants, get_session, hf_hub_url
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

from quantkit.errors import BadInputError
from quantkit.weights.hashes import Digest
from quantkit.weights.remote import RepoSnapshot, ask, client

CONNECT_SECONDS = 10.0
SKIPPED_BYTES = 2**20  # what a header is worth where a server sends a file from its beginning
_HEX = re.compile(r"[0-9a-f]+")


class Answer(Protocol):
    """What this module takes from the client's answers."""

    @property
    def status_code(self) -> int: ...  # noqa: D102
    @property
    def headers(self) -> Mapping[str, str]: ...  # noqa: D102
    @property
    def url(self) -> Any: ...  # noqa: ANN401, D102 - has scheme, host and port
    @property
    def history(self) -> "Sequence[Answer]": ...  # noqa: D102 - the redirections that led here


class StorageError(OSError):
    """The storage behind the Hub refuses: an expired address, a limit, a failure. To be asked again by the Hub's."""

    def __init__(self, response: Answer) -> None:
        super().__init__(f"its storage answered HTTP {response.status_code}")
        self.response = response


def read_range(snapshot: RepoSnapshot, name: str, start: int, stop: int) -> bytes:
    """Bytes `start` to `stop` of a file of the snapshot.

    Raises:
        BadInputError: the server ignores ranges, or has another file there.
        NotFoundError: no such file, or no access.
        NetworkError: the network failed after every retry.
    """

    def read() -> bytes:
        with open_range(snapshot, name, start, stop, SKIPPED_BYTES) as blocks:
            return b"".join(blocks)

    return ask(snapshot.repo_id, read)


def read_verified(snapshot: RepoSnapshot, name: str, limit: int) -> bytes:
    """A small file of the snapshot, whole and with the hash that the Hub gives for it.

    Raises:
        BadInputError: it is larger than `limit` bytes, or its bytes are others, twice.
        NotFoundError: no such file, or no access.
        NetworkError: the network failed after every retry.
    """
    size, oid = snapshot.files[name], snapshot.oid(name)
    if size > limit:
        raise BadInputError(f"{snapshot.repo_id}: found {name} with {size} bytes, expected at most {limit}")
    found = ""
    for _ in range(2):
        raw = read_range(snapshot, name, 0, size)
        digest = Digest(oid, size)
        digest.update(raw)
        if (found := digest.hexdigest()) == oid:
            return raw
    raise BadInputError(f"{snapshot.repo_id}: found {name} with the hash {found}, expected {oid}, twice")


@contextmanager
def open_range(
    snapshot: RepoSnapshot, name: str, start: int, stop: int, skipped: int | None = None
) -> Iterator[Iterator[bytes]]:
    """The blocks of bytes `start` to `stop`, as they come; their number is checked when they end.

    The Hub redirects to its storage by an address that expires; each call asks for a new one. The user's token is
    not sent beyond the Hub's own origin.

    Args:
        snapshot: the repository at its commit.
        name: a file of it.
        start: first byte.
        stop: the byte after the last.
        skipped: how many bytes to throw away at most where a server ignores ranges and sends the file from its
            beginning; None: any number.

    Raises:
        BadInputError: the Hub has another content under this name, or ignores ranges.
        OSError, EOFError, HTTPError: the client's and the network's errors, for `ask` and `translate`.
    """
    api = client()
    url = hf_hub_url(snapshot.repo_id, name, revision=snapshot.commit, endpoint=api.endpoint)
    headers = build_hf_headers(token=api.token, library_name="quantkit") | {"Accept-Encoding": "identity"}
    size = snapshot.files[name]
    if (start or skipped is not None) and stop > start:
        headers["Range"] = f"bytes={start}-{stop - 1}"
    timeout = (CONNECT_SECONDS, float(constants.HF_HUB_DOWNLOAD_TIMEOUT), None, None)
    with get_session().stream("GET", url, headers=headers, timeout=timeout, follow_redirects=True) as response:
        if response.status_code >= 400 and response.history and not _same_origin(response, response.history[0]):
            raise StorageError(response)
        hf_raise_for_status(response)
        _check_content(response, snapshot.oids.get(name), name)
        surplus = _surplus(response, range(start, stop), size, name)
        if surplus and skipped is not None and surplus > skipped:
            raise BadInputError(f"{name}: found the whole file on the Hub, expected bytes {start} to {stop}")
        yield _cut(response.iter_raw(), surplus, stop - start, name)


def _check_content(response: Answer, oid: str | None, name: str) -> None:
    """Refuse another content than that of the commit, as far as the Hub's own answers tell it."""
    hub = response.history[0] if response.history else response
    for answer in (*response.history, response):
        tag = answer.headers.get("X-Linked-Etag") or (answer.headers.get("ETag") if _same_origin(answer, hub) else None)
        tag = (tag or "").removeprefix("W/").strip('"')
        # An ETag may also be the name of a pointer to the content, or the storage's own.
        if oid and len(tag) == len(oid) and _HEX.fullmatch(tag):
            if tag != oid:
                raise BadInputError(f"{name}: found the content {tag} on the Hub, expected {oid} of this commit")
            return


def _surplus(response: Answer, wanted: range, size: int, name: str) -> int:
    """Bytes that come before the range that was asked for."""
    if encoding := response.headers.get("Content-Encoding", "").replace("identity", ""):
        raise EOFError(f"{name} came encoded as {encoding}")
    if response.status_code == 206:
        found = response.headers.get("Content-Range")
        expected = f"bytes {wanted.start}-{wanted.stop - 1}/{size}"
        if found != expected:
            raise EOFError(f"{name}: the range {found} came, expected {expected}")
        return 0
    length = response.headers.get("Content-Length")
    if response.status_code != 200 or length not in (None, str(size)):
        raise EOFError(f"{name}: HTTP {response.status_code} with {length} bytes came, expected {size} bytes")
    return wanted.start


def _cut(blocks: Iterator[bytes], surplus: int, count: int, name: str) -> Iterator[bytes]:
    """The blocks without the bytes before and after those that were asked for."""
    missing = count
    for block in blocks:
        kept = block[surplus : surplus + missing]
        surplus = max(0, surplus - len(block))
        missing -= len(kept)
        if kept:
            yield kept
        if not missing:
            return
    if missing:
        raise EOFError(f"{name}: {count - missing} of {count} bytes came")


def _same_origin(one: Answer, other: Answer) -> bool:
    return all(getattr(one.url, part) == getattr(other.url, part) for part in ("scheme", "host", "port"))
