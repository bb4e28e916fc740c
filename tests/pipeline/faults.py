"""Every call that changes the output folder, counted; one of them spoiled: it fails, or the process dies in it."""

import contextlib
import errno
import io
import os
import signal
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from quantkit.runlock import LOCK_FILE


@dataclass(frozen=True)
class Fault:
    """What happens at a step.

    how: `kill` ends the process as `kill -9` does, in the middle of a write; `SIGINT` and `SIGTERM` come
        just before the step; the name of an errno lets the step fail, and where `lasting` all later ones
        that need room on the disk.
    """

    step: int  # from 1
    how: str
    lasting: bool = False


class Steps:
    """The steps that this process takes in a folder, in order.

    Attributes:
        taken: name of the call and name of the file.
        written: bytes by file.
        unsafe: what was given a final name, or counted as finished, before its bytes were on the disk.
    """

    def __init__(self, folder: Path, fault: Fault | None = None) -> None:
        self.taken: list[tuple[str, str]] = []
        self.written: Counter[str] = Counter()
        self.unsafe: list[tuple[str, set[str]]] = []
        self._dirty: set[str] = set()  # written and not yet synced
        self._folder = folder.absolute()
        self._fault = fault
        self._names: dict[int, str] = {}  # of open descriptors

    @contextlib.contextmanager
    def watched(self):
        calls = {
            "open": self._open, "pwrite": self._pwrite, "fsync": self._sync("fsync"), "replace": self._replace,
            "fdatasync": self._sync("fdatasync"), "ftruncate": self._sized("ftruncate"), "mkdir": self._named("mkdir"),
            "posix_fallocate": self._sized("posix_fallocate"), "unlink": self._named("unlink"),
            "rmdir": self._named("rmdir"),
        }  # fmt: skip
        with pytest.MonkeyPatch.context() as patch:
            for name, call in calls.items():
                patch.setattr(os, name, call)
            patch.setattr(io, "open", self._io_open)
            yield self

    def step(self, call: str, name: str) -> bool:
        """Count a step; whether the process is to die in it."""
        self.taken.append((call, name))
        fault = self._fault
        if fault is None or len(self.taken) < fault.step:
            return False
        if fault.how in ("SIGINT", "SIGTERM"):
            if len(self.taken) == fault.step:
                os.kill(os.getpid(), getattr(signal, fault.how))
        elif fault.how == "kill":
            return True
        elif len(self.taken) == fault.step or (fault.lasting and call not in ("unlink", "rmdir")):
            code = getattr(errno, fault.how)
            raise OSError(code, os.strerror(code))
        return False

    def wrote(self, name: str | None, count: int) -> None:
        if name is not None:
            self.written[name] += count
            self._dirty.add(name)

    def finished(self, name: str) -> None:
        """A line that says so is about to be written; lines of the same file may wait for it."""
        if others := self._dirty - {name, LOCK_FILE}:
            self.unsafe.append(("finished", others))

    def _inside(self, path) -> str | None:
        path = Path(path).absolute()
        return path.name if path.is_relative_to(self._folder) else None

    def _take(self, call: str, name: str | None) -> None:
        if name is not None and self.step(call, name):
            die()

    def _open(self, path, flags, mode=0o777, *, dir_fd=None, before=os.open):
        name = self._inside(path)
        if flags & os.O_CREAT:
            self._take("open", name)
        descriptor = before(path, flags, mode, dir_fd=dir_fd)
        if name is not None:
            self._names[descriptor] = name
        return descriptor

    def _io_open(self, file, mode="r", buffering=-1, *more, before=io.open, **options):
        name = None if isinstance(file, int) else self._inside(file)
        if name is None or not set(mode) & set("wax+"):
            return before(file, mode, buffering, *more, **options)
        self._take("open", name)
        raw = Written(file, mode.replace("b", ""), self, name)
        self._names[raw.fileno()] = name
        return io.BufferedWriter(raw) if "b" in mode else io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8")

    def _pwrite(self, descriptor, data, offset, *, before=os.pwrite):
        name = self._names.get(descriptor)
        if name is not None and self.step("pwrite", name):
            before(descriptor, data[: len(data) // 2], offset)
            die()
        count = before(descriptor, data, offset)
        self.wrote(name, count)
        return count

    def _replace(self, source, target, *, before=os.replace):
        self._take("replace", self._inside(target))
        before(source, target)
        if self._inside(source) in self._dirty:
            self.unsafe.append(("replace", {self._inside(target)}))
        self.written[self._inside(target)] = self.written.pop(self._inside(source), 0)

    def _sync(self, call):
        before = getattr(os, call)

        def sync(descriptor):
            self._take(call, self._names.get(descriptor))
            before(descriptor)
            self._dirty.discard(self._names.get(descriptor))

        return sync

    def _sized(self, call):
        before = getattr(os, call)

        def sized(descriptor, *sizes):
            self._take(call, self._names.get(descriptor))
            before(descriptor, *sizes)

        return sized

    def _named(self, call):
        before = getattr(os, call)

        def named(path, *more, **options):
            self._take(call, self._inside(path))
            before(path, *more, **options)

        return named


class Written(io.FileIO):
    """A file whose writes are steps."""

    def __init__(self, path, mode: str, steps: Steps, name: str) -> None:
        super().__init__(path, mode)
        self._steps, self._name = steps, name

    def write(self, data):
        if self._steps.step("write", self._name):
            super().write(bytes(data)[: len(data) // 2])
            die()
        if b'"finished"' in bytes(data):
            self._steps.finished(self._name)
        count = super().write(data)
        self._steps.wrote(self._name, count)
        return count


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
