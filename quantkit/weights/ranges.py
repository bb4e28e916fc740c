"""Any range of a tensor's values as float32, from any thread, without holding the tensor."""

import os
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from quantkit.errors import BadInputError, DiskError, NotFoundError
from quantkit.tensors import ITEM_BYTES, TensorInfo, TensorSource
from quantkit.weights.files import read_at

Floats = npt.NDArray[np.float32]


class Ranges(Protocol):
    """What gives ranges of tensors; told before and after each stretch of work which tensors it reads."""

    def expect(self, stretches: Iterable[tuple[str, ...]]) -> None:
        """The tensors of every stretch of work to come, in order."""

    def is_held(self, names: tuple[str, ...]) -> bool:
        """Whether the files of these tensors are here, or on their way."""

    def hold(self, names: tuple[str, ...]) -> None:
        """Return when these tensors can be read; they can until they are released as often."""

    def release(self, names: tuple[str, ...]) -> None:
        """A stretch of work is over."""

    def forget(self, names: tuple[str, ...]) -> None:
        """These tensors will not be read again."""

    def read(self, name: str, first: int, out: Floats) -> None:
        """Fill a flat array with values of a tensor, counted as they lie in memory, from the given one on."""

    def close(self) -> None:
        """Let go of files and memory."""


class _AllHere:
    """The parts of `Ranges` that have nothing to do where all files lie on the disk."""

    def expect(self, stretches: Iterable[tuple[str, ...]]) -> None:
        """Nothing."""

    def is_held(self, names: tuple[str, ...]) -> bool:
        """They are."""
        return True

    def hold(self, names: tuple[str, ...]) -> None:
        """Nothing."""

    def release(self, names: tuple[str, ...]) -> None:
        """Nothing."""

    def forget(self, names: tuple[str, ...]) -> None:
        """Nothing is kept."""


class FileRanges(_AllHere):
    """The float tensors of a folder's files, read by pread into memory that is used again.

    Args:
        folder: where the files lie.
        infos: which tensors, and where in them; of dtype F64, F32, F16 or BF16.
    """

    def __init__(self, folder: Path, infos: Mapping[str, TensorInfo]) -> None:
        self._folder, self._infos = folder, infos
        self._descriptors: dict[str, int] = {}
        self._opening = threading.Lock()
        self._memory = threading.local()

    def read(self, name: str, first: int, out: Floats) -> None:
        """Fill a flat array with values of a tensor, counted as they lie in memory, from the given one on.

        Raises:
            BadInputError: the file has become shorter.
            NotFoundError: it is gone.
            DiskError: the disk refuses to read.
        """
        info = self._infos[name]
        item = ITEM_BYTES[info.dtype]
        raw = self._scratch(out.size * item)
        path = self._folder / info.file
        try:
            count = read_at(self._descriptor(info.file), raw.data, info.offset + first * item)
        except FileNotFoundError as error:
            raise NotFoundError(f"no such file: {path}") from error
        except OSError as error:
            raise DiskError(f"cannot read {path}: {error.strerror}") from error
        if count < len(raw):
            raise BadInputError(
                f"{path}: it ends inside tensor {name!r}", "the file has become shorter; fetch it again"
            )
        WIDEN[info.dtype](raw, out)

    def close(self) -> None:
        """Close the files."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _descriptor(self, file: str) -> int:
        with self._opening:
            if file not in self._descriptors:
                self._descriptors[file] = os.open(self._folder / file, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            return self._descriptors[file]

    def _close(self, file: str) -> None:
        with self._opening:
            if file in self._descriptors:
                os.close(self._descriptors.pop(file))

    def _scratch(self, size: int) -> npt.NDArray[np.uint8]:
        """This thread's memory: its pages are not asked of the system for every range."""
        held: npt.NDArray[np.uint8] = getattr(self._memory, "bytes", np.empty(0, np.uint8))
        if len(held) < size:
            held = self._memory.bytes = np.empty(size, np.uint8)
        return held[:size]


class WholeTensors(_AllHere):
    """The same of a source that only gives whole tensors, such as a dequantized one; each is read once."""

    def __init__(self, source: TensorSource) -> None:
        self._source = source
        self._values: dict[str, Floats] = {}
        self._reading = threading.Lock()

    def read(self, name: str, first: int, out: Floats) -> None:
        """As `FileRanges.read`.

        Raises:
            QuantkitError: as the source's `read`.
        """
        with self._reading:
            if name not in self._values:
                self._values[name] = self._source.read(name).float().reshape(-1).numpy()
            values = self._values[name]
        out[:] = values[first : first + out.size]

    def forget(self, names: tuple[str, ...]) -> None:
        """Let go of tensors that are not needed again."""
        with self._reading:
            for name in names:
                self._values.pop(name, None)

    def close(self) -> None:
        """Let go of all tensors."""
        self._values.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _widen_bf16(raw: npt.NDArray[np.uint8], out: Floats) -> None:
    bits = out.view(np.uint32)
    bits[:] = raw.view("<u2")
    bits <<= 16


def _widen(dtype: str) -> Callable[[npt.NDArray[np.uint8], Floats], None]:
    def widen(raw: npt.NDArray[np.uint8], out: Floats) -> None:
        with np.errstate(over="ignore"):  # an infinity is refused where values are looked at
            out[:] = raw.view(dtype)

    return widen


WIDEN: dict[str, Callable[[Any, Any], None]] = {
    "BF16": _widen_bf16, "F16": _widen("<f2"), "F32": _widen("<f4"), "F64": _widen("<f8")
}  # fmt: skip
