"""What was asked of the server, and what went back: the tests' witness."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

SETTLE_SECONDS = 2.0
NOISE = "/api/agent-harnesses"  # asked for once a day at most, so not at every run of a test


@dataclass(frozen=True)
class Request:
    """One request and its answer.

    Attributes:
        method: GET, HEAD, POST, ...
        origin: "hub" or "cdn", which are two ports.
        path: unquoted, without the query.
        query: unquoted; a signed address names the file there.
        headers: names in lower case.
        status: of the answer; 0 where the connection was cut before one.
        sent: bytes of the body that were sent.
        received: bytes of the request's body that were read.
    """

    method: str
    origin: str
    path: str
    query: str
    headers: Mapping[str, str] = field(repr=False)
    status: int = 0
    sent: int = 0
    received: int = 0

    @property
    def range(self) -> str | None:
        return self.headers.get("range")

    @property
    def authorized(self) -> bool:
        """Whether a token came along, right or wrong."""
        return "authorization" in self.headers

    def names(self, text: str) -> bool:
        """Whether the path or the query, where a CDN's address names the file, holds a text."""
        return text in self.path or text in self.query


@dataclass
class Open:
    """A request that is being answered; `done` is what the log will say of it."""

    done: Request
    settled: bool = False  # it waits for the client, and the log need not wait for it

    def note(self, **changes: int) -> None:
        self.done = replace(self.done, **changes)


class Log:
    """Requests in the order in which they came, complete as soon as their answers are."""

    def __init__(self) -> None:
        self._open: list[Open] = []
        self._changed = threading.Condition()

    @contextmanager
    def entry(self, request: Request) -> Iterator[Open]:
        opened = Open(request)
        with self._changed:
            if request.path != NOISE:
                self._open.append(opened)
        try:
            yield opened
        finally:
            self.settle(opened)

    def settle(self, opened: Open) -> None:
        """Says that nothing more will be noted of a request, or not soon."""
        with self._changed:
            opened.settled = True
            self._changed.notify_all()

    def requests(self) -> list[Request]:
        """A copy of the log. A client has an answer before the server's thread is through with it: wait for that."""
        with self._changed:
            self._changed.wait_for(lambda: all(opened.settled for opened in self._open), SETTLE_SECONDS)
            return [opened.done for opened in self._open]

    def clear(self) -> None:
        with self._changed:
            self._open.clear()
