"""Faults on demand: which of the next answers goes wrong, and how."""

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

from loopback.answers import Answer
from loopback.log import Request

Where = str | Callable[[Request], bool]
# Kind -> what it strikes: a request before it is looked at, a body on its way, or the answer when the work is done.
KINDS = {
    "drop": "request",  # RST in place of any answer; nothing was done
    "expired": "request",  # the signed address holds no longer: 403, now and ever
    "reset": "body",  # RST after so many bytes of the body
    "close": "body",  # FIN after so many bytes
    "stall": "body",  # silence after so many bytes, until the client goes
    "short": "body",  # so many bytes, and a Content-Length that agrees
    "flip": "body",  # the byte at this place of the file, counted from 0, is another
    "ignore_range": "body",  # 200 and the whole file
    "lost_answer": "answer",  # done, and RST in place of the answer
}
ALWAYS = math.inf
READS = ("GET", "HEAD")
UPLOADS = ("reset", "close", "stall")  # these strike a PUT while its body comes in


@dataclass
class Fault:
    """A fault that waits for its requests; `kind` is one of KINDS, or a status of 400 and above."""

    where: Where
    kind: str | int
    times: float = 1
    after: int = 0
    skip: int = 0
    method: str | None = None
    origin: str | None = None
    retry_after: int | str | None = None
    error_code: str | None = None

    def __post_init__(self) -> None:
        if not (self.kind in KINDS or (isinstance(self.kind, int) and 400 <= self.kind < 600)):
            raise ValueError(f"no fault {self.kind!r}, expected a status or one of {', '.join(KINDS)}")

    @property
    def strikes(self) -> str:
        return "request" if isinstance(self.kind, int) else KINDS[self.kind]

    def fits(self, request: Request) -> bool:
        if self.method not in (None, request.method) or self.origin not in (None, request.origin):
            return False
        return request.names(self.where) if isinstance(self.where, str) else self.where(request)

    def headers(self) -> dict[str, str]:
        found = {"Retry-After": self.retry_after, "X-Error-Code": self.error_code}
        return {name: str(value) for name, value in found.items() if value is not None}


class Faults:
    """The faults that are still to come, oldest first; a request meets one at most."""

    def __init__(self) -> None:
        self._waiting: list[Fault] = []
        self._lock = threading.Lock()

    def add(self, fault: Fault) -> None:
        with self._lock:
            self._waiting.append(fault)

    def clear(self) -> None:
        with self._lock:
            self._waiting.clear()

    @property
    def left(self) -> list[Fault]:
        with self._lock:
            return list(self._waiting)

    def take(self, request: Request, answer: Answer | None) -> Fault | None:
        """The oldest fault that fits a request and can strike it now, before or after its work is done."""
        with self._lock:
            able = (fault for fault in self._waiting if fault.fits(request) and _can_strike(fault, request, answer))
            fault = next(able, None)
            if fault is None or fault.skip > 0:
                if fault is not None:
                    fault.skip -= 1
                return None
            fault.times -= 1
            if fault.times <= 0:
                self._waiting.remove(fault)
            return fault


def http_date(seconds: float) -> str:
    """So many seconds from now, as Retry-After may say it."""
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


def _can_strike(fault: Fault, request: Request, answer: Answer | None) -> bool:
    """Whether a fault's moment is now; it waits for another request otherwise."""
    early = answer is None or request.method in READS
    if early and _can_strike_request(fault, request):
        return True
    return answer is not None and _can_strike_answer(fault, request, answer)


def _can_strike_request(fault: Fault, request: Request) -> bool:
    if request.method == "PUT" and fault.kind in UPLOADS:
        return fault.after < max(int(request.headers.get("content-length", "0")), 1)
    return fault.strikes == "request" and (fault.kind != "expired" or request.origin == "cdn")


def _can_strike_answer(fault: Fault, request: Request, answer: Answer) -> bool:
    if fault.strikes == "answer":
        return answer.status < 400
    if fault.strikes != "body" or request.method in ("HEAD", "PUT") or answer.status >= 300:
        return False
    if fault.kind == "flip":
        return answer.start <= fault.after < answer.end
    if fault.kind == "ignore_range":
        return answer.status == 206
    return fault.after < answer.length
