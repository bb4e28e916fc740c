"""What a route is asked and what it answers: plain values, no sockets."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote

from loopback.content import Content
from loopback.log import Request

if TYPE_CHECKING:
    from loopback.hub import Hub

_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


@dataclass(frozen=True)
class Account:
    """Who a token belongs to, whether it may write, and whether repositories that are `granted` are so to it."""

    name: str
    organisations: tuple[str, ...] = ()
    write: bool = True
    granted: bool = True

    def owns(self, repo_id: str) -> bool:
        return repo_id.partition("/")[0] in (self.name, *self.organisations)


@dataclass(frozen=True)
class Call:
    """A request as a route sees it.

    Attributes:
        target: path as it was sent, still quoted.
        raw_query: the query as it was sent.
        body: in memory, or a file of the hub's where an object was uploaded.
    """

    hub: "Hub"
    request: Request
    target: str
    raw_query: str
    account: Account | None
    body: Content

    @cached_property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(self.raw_query)

    def value(self, name: str, otherwise: str = "") -> str:
        return self.query.get(name, [otherwise])[0]

    def flag(self, name: str) -> bool:
        return self.value(name).lower() in ("1", "true")

    @cached_property
    def form(self) -> dict[str, list[str]]:
        return parse_qs(self.body.read().decode())

    @cached_property
    def json(self) -> Any:
        return json.loads(self.body.read() or b"{}")


@dataclass(frozen=True)
class Answer:
    """A status, headers and a stretch of a content."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    content: Content = field(default_factory=lambda: Content(b""))
    span: tuple[int, int] | None = None  # first byte, one past the last; None: everything

    @property
    def start(self) -> int:
        return self.span[0] if self.span else 0

    @property
    def end(self) -> int:
        return self.span[1] if self.span else self.content.size

    @property
    def length(self) -> int:
        return self.end - self.start

    def plus(self, headers: Mapping[str, str]) -> "Answer":
        return replace(self, headers={**self.headers, **headers})

    def cut(self, count: int) -> "Answer":
        """The first `count` bytes alone, as if there were no more."""
        end = self.start + count
        told = {"Content-Range": f"bytes {self.start}-{end - 1}/{self.content.size}"} if self.status == 206 else {}
        return replace(self.plus(told), span=(self.start, end))

    def whole(self) -> "Answer":
        """The answer of a server that knows no ranges."""
        left = {name: value for name, value in self.headers.items() if name not in ("Content-Range", "Accept-Ranges")}
        return replace(self, status=200, headers=left, span=None)


class Refused(Exception):
    """A route's answer from wherever it finds out."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


def answer_json(data: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    kind = {"Content-Type": "application/json; charset=utf-8"}
    return Answer(status, kind | dict(headers or {}), Content(json.dumps(data).encode()))


def refusal(status: int, message: str, code: str | None = None, **more: Any) -> Refused:
    """An error as the Hub words it: a sentence, and a code that the client makes its exception of."""
    headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
    return Refused(answer_json({"error": message} | more, status, headers))


def redirect(status: int, location: str, headers: Mapping[str, str] | None = None) -> Answer:
    words = Content(f"Redirecting to {location}".encode())
    return Answer(status, {"Location": location, "Content-Type": "text/plain"} | dict(headers or {}), words)


def answer_file(call: Call, content: Content, headers: Mapping[str, str]) -> Answer:
    """The content, or the one range of it that was asked for."""
    headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"} | dict(headers)
    match = _RANGE.fullmatch(call.request.range or "")
    same = call.request.headers.get("if-range", headers.get("ETag")) == headers.get("ETag")
    if match is None or not any(match.groups()) or not same:
        return Answer(200, headers, content)
    first, last = match.groups()
    start = int(first) if first else max(content.size - int(last), 0)
    end = min(int(last) + 1, content.size) if first and last else content.size
    if start >= end:
        return Answer(416, {**headers, "Content-Range": f"bytes */{content.size}"})
    return Answer(206, {**headers, "Content-Range": f"bytes {start}-{end - 1}/{content.size}"}, content, (start, end))


def answer_page(call: Call, items: list[Any], page: int) -> Answer:
    """One page of a list, and where the next one is."""
    start = int(call.value("cursor", "0"))
    headers = {"X-Total-Count": str(len(items))}
    if start + page < len(items):
        others = {name: values[0] for name, values in call.query.items() if name != "cursor"}
        query = "&".join(f"{name}={quote(value)}" for name, value in (others | {"cursor": str(start + page)}).items())
        headers["Link"] = f'<{call.hub.url}{call.target}?{query}>; rel="next"'
    return answer_json(items[start : start + page], headers=headers)
