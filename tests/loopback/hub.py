"""The Hub on this machine: what it holds, what it is told to do wrong, and how tests reach it."""

import itertools
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loopback.access import open_commit
from loopback.answers import Account
from loopback.collection_routes import Collection
from loopback.content import Content, content_of
from loopback.faults import Fault, Faults, Where
from loopback.log import Log, Request
from loopback.object_routes import Parts
from loopback.server import Server
from loopback.signing import Signer
from loopback.storage import Repo, entry_of
from loopback.xet import XetStore

USER, ORGANISATION = "tester", "tester-lab"
TOKEN, READ_TOKEN, STRANGER_TOKEN = "hf_canaryOfTheWriter", "hf_canaryOfTheReader", "hf_canaryOfAStranger"

Files = Mapping[str, bytes | Path | Content]


class Hub:
    """A Hub and its CDN, on two ports of 127.0.0.1.

    Attributes:
        token: belongs to `user`, who may write under `user` and `organisation`, and see what was granted.
        read_token: the same user's, without the right to write.
        page_items: rows of a page of a tree; less than the Hub's, to see pages.
        part_bytes: larger objects are uploaded in parts of so many bytes.
        text_redirects: whether files that are no LFS objects come by a redirect on the same origin, too.
    """

    user, organisation = USER, ORGANISATION
    token, read_token, stranger_token = TOKEN, READ_TOKEN, STRANGER_TOKEN

    def __init__(self, folder: Path) -> None:
        self.accounts = {
            TOKEN: Account(USER, (ORGANISATION,)),
            READ_TOKEN: Account(USER, (ORGANISATION,), write=False),
            STRANGER_TOKEN: Account("stranger", granted=False),
        }
        self.repos: dict[tuple[str, str], Repo] = {}
        self.moved: dict[tuple[str, str], str] = {}
        self.collections: dict[str, Collection] = {}
        self.parts: dict[str, Parts] = {}
        self.signer, self.faults, self.log = Signer(), Faults(), Log()
        self.page_items, self.part_bytes, self.text_redirects = 1000, 64 << 20, False
        self.xet: XetStore | None = None
        self.mistakes: list[BaseException] = []  # what the server itself raised
        self.lock = threading.RLock()  # of everything above that requests change
        self._folder, self._numbers = folder, itertools.count(1)
        self._servers = {origin: Server(self, origin) for origin in ("hub", "cdn")}
        self.url, self.cdn_url = self._servers["hub"].url, self._servers["cdn"].url

    def start(self) -> None:
        for server in self._servers.values():
            server.start()

    def stop(self) -> None:
        """Ends every connection; afterwards nobody listens."""
        for server in self._servers.values():
            server.stop()

    def enable_xet(self) -> None:
        """From now on LFS files are kept in Xet storage, too, for clients that choose it."""
        self.xet = XetStore(self._folder)

    def environment(self, home: Path) -> dict[str, str]:
        """What makes a child process take this for the Hub, with everything that it keeps under `home`."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": self.token,
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_HUB_DISABLE_XET": "0" if self.xet else "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_HUB_OFFLINE": "0",
            "NO_PROXY": "127.0.0.1",
        }

    def add_repo(
        self,
        repo_id: str,
        files: Files,
        revision: str = "main",
        *,
        private: bool = False,
        gated: str | bool = False,
        granted: bool = True,
        kind: str = "model",
    ) -> str:
        """A repository with exactly these files, in one commit.

        Args:
            revision: another branch than main holds them; main is then empty.
            granted: whether the user of `token` may see it although it is private, or gated.

        Returns:
            The commit, 40 hex digits.
        """
        assert (kind, repo_id) not in self.repos, f"{repo_id} exists"
        repo = Repo(repo_id, kind, private, gated, granted)
        with self.lock:
            self.repos[kind, repo_id] = repo
            if revision != "main":
                repo.commit("main", {}, "initial commit")
            return self.commit(repo_id, files, revision, kind=kind)

    def commit(
        self,
        repo_id: str,
        files: Mapping[str, Any],
        revision: str = "main",
        title: str = "Change files",
        kind: str = "model",
    ) -> str:
        """Somebody else's commit: sets these files, and removes those that are None. Returns its id."""
        with self.lock:
            repo = self.repos[kind, repo_id]
            if revision not in repo.branches and "main" in repo.branches:
                repo.branches[revision] = repo.branches["main"]
            entries = {name: None if data is None else entry_of(name, content_of(data)) for name, data in files.items()}
            for entry in entries.values():
                if self.xet is not None and entry is not None and entry.lfs:
                    self.xet.put(entry.content)
            return repo.change(revision, entries, title).oid

    def repo(self, repo_id: str, kind: str = "model") -> Repo:
        return self.repos[kind, repo_id]

    def head(self, repo_id: str, revision: str = "main") -> str:
        return open_commit(self.repo(repo_id), revision).oid

    def rename(self, old: str, new: str, kind: str = "model") -> None:
        """Moves a repository; the old name leads to the new one."""
        with self.lock:
            repo = self.repos.pop((kind, old))
            repo.repo_id = new
            self.repos[kind, new] = repo
            self.moved[kind, old] = new

    def fail(self, where: Where, kind: str | int, times: float = 1, after: int = 0, **details: Any) -> None:
        """The next `times` fitting requests go wrong, one fault at each; the oldest fault that can strike one does.

        Args:
            where: a text in the path or the query (where the CDN's addresses name the file), or a predicate.
            kind: one of `loopback.faults.KINDS`, or a status.
            after: bytes of the body before it happens; of `flip`, the place in the file.
            details: `skip` (fitting requests that go well first), `method`, `origin` ("hub", "cdn"),
                `retry_after` (seconds, or what `http_date` gives), `error_code`.
        """
        self.faults.add(Fault(where, kind, times, after, **details))

    def expire_urls(self) -> None:
        """No signed address that was given out until now holds any longer."""
        self.signer.expire_all()

    @property
    def requests(self) -> list[Request]:
        """Every request since the start or `log.clear()`."""
        return self.log.requests()

    def find(self, text: str, method: str | None = None, origin: str | None = None) -> list[Request]:
        """The requests that name a file, or have a text in their path."""
        return [
            request
            for request in self.requests
            if request.names(text) and method in (None, request.method) and origin in (None, request.origin)
        ]

    def sent(self, text: str = "", origin: str | None = None) -> int:
        """Bytes of bodies that were sent for it, redone work included."""
        return sum(request.sent for request in self.find(text, origin=origin))

    def object_url(self, repo: Repo, oid: str) -> str:
        return f"{self.cdn_url}/repos/{repo.kind}s/{repo.repo_id}/{oid}"

    def new_file(self) -> Path:
        """Where an upload may lie."""
        return self._folder / f"upload-{next(self._numbers)}"
