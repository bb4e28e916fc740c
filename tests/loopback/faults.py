"""Faults on demand: which of the next answers goes wrong, and how."""

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

from loopback.log import Request

Where = str | Callable[[Request], bool]
# Kind -> when it can strike: before a request is looked at, in a body on its way in or out, or after the work is done.
KINDS = {
    "drop": "before",  # RST in place of any answer; nothing was done
    "expired": "before",  # the signed address holds no longer: 403, now and ever
    "reset": "body",  # RST after so many bytes of the body
    "close": "body",  # FIN after so many bytes
    "stall": "body",  # silence after so many bytes, until the client goes
    "short": "body",  # so many bytes, and a Content-Length that agrees
    "flip": "body",  # the byte at this place of the file, counted from 0, is another
    "ignore_range": "body",  # 200 and the whole file
    "lost_answer": "after",  # done, and RST in place of the answer
}
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
    def phase(self) -> str:
        return "before" if isinstance(self.kind, int) else KINDS[self.kind]

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

    def take(self, request: Request, phase: str, can: Callable[[Fault], bool] = lambda _: True) -> Fault | None:
        """The fault that this request meets in a phase of its answer."""
        with self._lock:
            for fault in self._waiting:
                if fault.phase != phase or not fault.fits(request) or not can(fault):
                    continue
                if fault.skip > 0:
                    fault.skip -= 1
                    return None
                fault.times -= 1
                if fault.times <= 0:
                    self._waiting.remove(fault)
                return fault
        return None


ALWAYS = math.inf


def http_date(seconds: float) -> str:
    """So many seconds from now, as Retry-After may say it."""
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)
