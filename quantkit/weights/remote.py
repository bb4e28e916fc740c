"""A repository's headers and small files at one commit, without its weights; and the Hub's errors."""

import errno
import re
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn, TypeVar

from huggingface_hub import HfApi, constants, get_session, hf_hub_url
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
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

from quantkit.errors import BadInputError, DiskError, NetworkError, NotFoundError, QuantkitError
from quantkit.tensors import TensorInfo
from quantkit.weights.header import LENGTH_BYTES, header_length, parse_header
from quantkit.weights.local import join_shards, parse_index

FIRST_BYTES = 100_000  # holds most headers
PARALLEL_HEADERS = 8
RETRY_SECONDS = (1.0, 2.0, 4.0, 8.0)
TIMEOUT_SECONDS = 30.0
# hf_xet, in Rust, reports every failure as a RuntimeError.
CLIENT_ERRORS = (HTTPError, XetDownloadError, HFValidationError, OSError, EOFError, RuntimeError)
_DISK_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
_SHARD = re.compile(r".+-\d{5}-of-\d{5}\.(safetensors|bin)")
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


class RemoteHeaders:
    """The tensors of a snapshot by their headers alone; a `TensorSource` that cannot read.

    Attributes:
        weight_map: tensor name -> file. All that is known where a repository has only `.bin` files,
            whose headers cannot be had without a download (empty for a single one).
        total_size: bytes of all tensors, or of the files where the headers are not known.

    Raises:
        BadInputError: an index or a header that breaks the rules.
        NotFoundError: no weights in the repository, or no access.
        NetworkError: the Hub was not reached.
    """

    def __init__(self, snapshot: RepoSnapshot) -> None:
        self.snapshot = snapshot
        files = weight_files(snapshot.files)
        index = next((name for name in files if name.endswith(".index.json")), None)
        weights = [name for name in files if name != index]
        self.weight_map: Mapping[str, str] = {}
        if index is not None:
            self.weight_map = parse_index(fetch(snapshot, index).read_bytes(), index)
            weights = sorted(set(self.weight_map.values()))
        if absent := [name for name in weights if name not in snapshot.files]:
            raise NotFoundError(f"{snapshot.repo_id}: {index} names {absent[0]}, which is not there")
        self._infos: dict[str, TensorInfo] = {}
        self.total_size = sum(snapshot.files[name] for name in weights)
        if weights[0].endswith(".safetensors"):
            with ThreadPoolExecutor(PARALLEL_HEADERS) as pool:
                headers = dict(zip(weights, pool.map(self._read_header, weights), strict=True))
            self._infos = join_shards(self.weight_map, headers, index or weights[0])
            self.weight_map = {name: info.file for name, info in self._infos.items()}
            self.total_size = sum(info.nbytes for info in self._infos.values())

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        """Every tensor by name; empty where only the `weight_map` is known."""
        return self._infos

    def read(self, name: str) -> NoReturn:
        """Never a tensor: weights need a download.

        Raises:
            NotFoundError: always.
        """
        raise NotFoundError(f"{self.snapshot.repo_id}: {name!r} was not downloaded, only its header")

    def close(self) -> None:
        """Nothing to do."""

    def _read_header(self, name: str) -> dict[str, TensorInfo]:
        size = self.snapshot.files[name]
        raw = _read_beginning(self.snapshot, name, min(FIRST_BYTES, size))
        end = LENGTH_BYTES + header_length(raw, size, name)
        if end > len(raw):
            raw = _read_beginning(self.snapshot, name, end)
        return parse_header(raw, size, name)


def weight_files(names: Iterable[str]) -> list[str]:
    """The files that hold a repository's weights once: its index and shards, or one file.

    safetensors go before `.bin`; other copies of the weights (other frameworks, `consolidated`,
    variants) are left out.

    Raises:
        NotFoundError: there are none, or several and no index.
    """
    plain = sorted(name for name in names if "/" not in name and not name.startswith("consolidated"))
    for stem, suffix in (("model", ".safetensors"), ("pytorch_model", ".bin")):
        single, index = stem + suffix, f"{stem}{suffix}.index.json"
        if single in plain:
            return [single]
        files = [name for name in plain if name.endswith(suffix)]
        if index in plain:
            shards = [name for name in files if _SHARD.fullmatch(name)]
            return [index, *([name for name in shards if name.startswith(f"{stem}-")] or shards or files)]
        if len(files) == 1 and suffix == ".safetensors":
            return files
    raise NotFoundError("no weights in this repository, expected model.safetensors or an index with its shards")


def fetch(snapshot: RepoSnapshot, name: str) -> Path:
    """A small file of the snapshot, from the cache or the Hub.

    Raises:
        NotFoundError: no such file, or no access.
        NetworkError: the Hub was not reached.
        DiskError: the cache cannot hold it.
    """
    download = client().hf_hub_download
    return Path(ask(snapshot.repo_id, lambda: download(snapshot.repo_id, name, revision=snapshot.commit)))


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
            time.sleep(wait)
    raise AssertionError("unreachable")


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


def _read_beginning(snapshot: RepoSnapshot, name: str, count: int) -> bytes:
    """The first bytes of a file of the snapshot."""
    url = hf_hub_url(snapshot.repo_id, name, revision=snapshot.commit, endpoint=client().endpoint)
    wanted = {"Range": f"bytes=0-{count - 1}", "Accept-Encoding": "identity"}
    headers = build_hf_headers(library_name="quantkit") | wanted
    size = snapshot.files[name]

    def read() -> bytes:
        with get_session().stream("GET", url, headers=headers, timeout=TIMEOUT_SECONDS) as response:
            hf_raise_for_status(response)
            # A server that ignores the range would send the whole shard.
            found = response.headers.get("Content-Range")
            expected = f"bytes 0-{count - 1}/{size}"
            if response.status_code != 206 or found != expected:
                raise BadInputError(f"{name}: found the range {found!r} on the Hub, expected {expected!r}")
            raw = b"".join(response.iter_raw())
        if len(raw) != count:
            raise EOFError(f"{name}: {len(raw)} of {count} bytes came")
        return raw

    return ask(snapshot.repo_id, read)
