"""Ctrl-C and SIGTERM: the run unwinds at once, or the process leaves a little later without that."""

import contextlib
import os
import select
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self

GRACE_SECONDS = 3.0
SENTENCES = {
    signal.SIGINT: "quantkit: interrupted; the same command continues",
    signal.SIGTERM: "quantkit: terminated; the same command continues",
}


class Terminated(BaseException):
    """SIGTERM, as an exception that unwinds like KeyboardInterrupt."""


class Leaving:
    """Context in which the first SIGINT raises KeyboardInterrupt and the first SIGTERM raises Terminated.

    Python runs a handler between two of its own instructions, so a long call of native code, or a
    library that swallows the exception, would hold it up. A thread hears of the signal from the system
    and ends the process after GRACE_SECONDS, or at a second signal. Nothing is lost by that: the output
    folder is at every moment one that `kill -9` may leave behind.
    """

    def __enter__(self) -> Self:
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        # What was ignored when the process began stays so: SIGINT in the background of a script.
        before = {number: signal.getsignal(number) for number in SENTENCES}
        self._before: dict[signal.Signals, Any] = {
            number: handler for number, handler in before.items() if handler != signal.SIG_IGN
        }
        self._wakeup = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        for number in self._before:
            signal.signal(number, self._unwind)
        self._thread = threading.Thread(target=self._watch, name="signals", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._writing)
        self._thread.join()
        os.close(self._reading)

    def _unwind(self, number: int, _frame: FrameType | None) -> NoReturn:
        for other in self._before:  # a second signal shall not disturb the unwinding
            signal.signal(other, lambda *_: None)
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated

    def _watch(self) -> None:
        first = os.read(self._reading, 1)  # the system writes a signal's number
        if not first:
            return
        told, _, _ = select.select([self._reading], [], [], GRACE_SECONDS)
        if told and not os.read(self._reading, 1):  # closed: the run has unwound
            return
        _leave_now(signal.Signals(first[0]))


def leave(number: signal.Signals) -> int:
    """Say how to go on.

    Returns:
        The exit code that shells know for the signal.
    """
    print(SENTENCES[number], file=sys.stderr)
    return 128 + number


def end_process(code: int) -> NoReturn:
    """Leave without taking the interpreter and its libraries down, which lasts for seconds."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _leave_now(number: signal.Signals) -> NoReturn:
    """End the process from a thread that may take no lock: the main thread may hold any of them."""
    shown = "\x1b[?25h\n" if os.isatty(2) else ""  # a progress bar has hidden the cursor
    with contextlib.suppress(OSError, ValueError):
        if select.select([], [2], [], 0)[1]:  # a full pipe would hold us up
            os.write(2, f"{shown}{SENTENCES[number]}\n".encode())
    os._exit(128 + number)
