"""Progress on stderr: bars on a terminal, a line per layer or per ten seconds of a transfer otherwise."""

import sys
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, TextIO

from quantkit.units import format_bytes, format_seconds

LINE_SECONDS = 10.0  # between two lines about a transfer


class Progress(Protocol):
    """What a pipeline tells while it works."""

    def say(self, line: str) -> None:
        """A sentence for the user."""

    def start(self, layers: int, done: int) -> None:
        """The layers begin; `done` of them are finished already."""

    def linear(self, record: dict[str, Any]) -> None:
        """A linear is finished; its line of layers.jsonl."""

    def layer(self, index: int, seconds: float) -> None:
        """A layer is finished."""

    def transfer(self, done: int, total: int, what: str = "download") -> None:
        """So many bytes of a download, or of an `upload`, are there."""

    def stop(self) -> None:
        """The layers are done, or the run failed."""


class Silent:
    """No output, for use from Python."""

    def say(self, line: str) -> None:
        """Nothing."""

    def start(self, layers: int, done: int) -> None:
        """Nothing."""

    def linear(self, record: dict[str, Any]) -> None:
        """Nothing."""

    def layer(self, index: int, seconds: float) -> None:
        """Nothing."""

    def transfer(self, done: int, total: int, what: str = "download") -> None:
        """Nothing."""

    def stop(self) -> None:
        """Nothing."""


@dataclass(frozen=True)
class _Speed:
    """Where the last line about a transfer left it."""

    since: float
    done: int
    lines: int = 0


class Lines:
    """A line per layer with the time to go: for logs, pipes and notebooks."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._layers, self._done, self._begun = 0, 0, 0
        self._started = 0.0
        self._records: list[dict[str, Any]] = []
        self._transfer: _Speed | None = None

    def say(self, line: str) -> None:
        """Print the sentence."""
        print(line, file=self._stream, flush=True)

    def start(self, layers: int, done: int) -> None:
        """Note where the layers begin."""
        self._layers, self._done, self._begun, self._started = layers, done, done, time.perf_counter()

    def linear(self, record: dict[str, Any]) -> None:
        """Collect for the layer's line; what did not go as asked for gets a line of its own."""
        self._records.append(record)
        if said := unusual(record):
            self.say(said)

    def layer(self, index: int, seconds: float) -> None:
        """Print the layer's line."""
        self._done = index + 1
        worst = max(self._records, key=lambda record: record["relative_error"], default=None)
        error = f", largest relative error {worst['relative_error']:.2e} ({_short(worst)})" if worst else ""
        self.say(f"layer {index + 1}/{self._layers} in {format_seconds(seconds)}{error}, {self.remaining()}")
        self._records.clear()

    def transfer(self, done: int, total: int, what: str = "download") -> None:
        """Print a line now and then, and one at the end of a transfer that had others."""
        now = time.perf_counter()
        if self._transfer is None:
            self._transfer = _Speed(now, done)
        elif done >= total:
            if self._transfer.lines:
                self.say(f"{what}ed {format_bytes(total)}")
            self._transfer = None
        elif now - self._transfer.since >= LINE_SECONDS:
            rate = max(1.0, (done - self._transfer.done) / (now - self._transfer.since))
            left = format_seconds((total - done) / rate)
            part = f"{format_bytes(done)} of {format_bytes(total)}"
            self.say(f"{what}ed {part}, {format_bytes(rate)}/s, {left} to go")
            self._transfer = _Speed(now, done, self._transfer.lines + 1)

    def remaining(self) -> str:
        """The time to go by the layers so far."""
        left = self._layers - self._done
        if not left:
            return "done"
        each = (time.perf_counter() - self._started) / max(1, self._done - self._begun)
        return f"{format_seconds(left * each)} to go"

    def stop(self) -> None:
        """Nothing to restore."""


class Bars(Lines):
    """rich bars on a terminal: layers with ETA, and the linear at work with its loss."""

    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )
        from rich.progress import Progress as RichProgress

        self._console = Console(stderr=True)
        self._bars = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[status]}"),
            console=self._console,
        )
        self._task: Any = None
        self._download = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        self._download_task: Any = None

    def say(self, line: str) -> None:
        """Print above the bar."""
        self._console.print(line, markup=False, highlight=False)

    def start(self, layers: int, done: int) -> None:
        """Show the bar."""
        super().start(layers, done)
        self._task = self._bars.add_task("layers", total=layers, completed=done, status="")
        self._bars.start()

    def linear(self, record: dict[str, Any]) -> None:
        """Show the linear's name and loss."""
        super().linear(record)
        status = f"{_short(record)}  loss {record['loss']:.3g}  error {record['relative_error']:.1e}"
        self._bars.update(self._task, status=f"{status}  {self.remaining() if self._done > self._begun else ''}")

    def layer(self, index: int, seconds: float) -> None:
        """Move the bar."""
        self._done = index + 1
        self._records.clear()
        self._bars.update(self._task, completed=index + 1, status=self.remaining())

    def transfer(self, done: int, total: int, what: str = "download") -> None:
        """Show and move the bar of the transfer; it goes when all is there."""
        if self._download_task is None:
            self._download_task = self._download.add_task(what, total=total)
            self._download.start()
        self._download.update(self._download_task, completed=done)
        if done >= total:
            self._end_transfer()

    def stop(self) -> None:
        """Give the terminal back."""
        self._end_transfer()
        self._bars.stop()

    def _end_transfer(self) -> None:
        if self._download_task is not None:
            self._download.stop()
            self._download.remove_task(self._download_task)
            self._download_task = None


class Shown:
    """Context for a run: bars where stderr is a terminal, lines otherwise; restored on leaving."""

    def __init__(self) -> None:
        self.progress: Progress = Bars() if sys.stderr.isatty() and not _in_notebook() else Lines()

    def __enter__(self) -> Progress:
        return self.progress

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()


def _in_notebook() -> bool:
    return "google.colab" in sys.modules or "ipykernel" in sys.modules


def unusual(record: dict[str, Any]) -> str | None:
    """What happened to a linear that was not asked for: more damping, or rounding to nearest."""
    steps = record.get("damping_raised")
    if steps is None:  # no data, hence no Hessian
        return None
    times = f" in {steps} {'step' if steps == 1 else 'steps'}"
    raised = f"damping raised to {record['damp_percent']:g}{times}" if steps else ""
    if record["method"] == "rtn":
        tried = f", {raised}" if steps else ""
        return f"{record['name']}: rounded to nearest, its Hessian could not be factorised{tried}"
    return f"{record['name']}: {raised}" if steps else None


def _short(record: dict[str, Any]) -> str:
    return ".".join(record["name"].split(".")[-2:])
