"""Safetensors files out: whole or not there, their tensors written in any order, and their index."""

import json
import os
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from quantkit.dtypes import DTYPE_NAMES, DTYPES
from quantkit.tensors import TensorInfo
from quantkit.weights.files import allocate, disk_failure, holds, sync_folder, write_at
from quantkit.weights.header import parse_header
from quantkit.weights.local import byte_view, read_range


class ShardWriter:
    """One safetensors file: header first, all offsets known, then the tensors in any order.

    The file has the name `.{file_name}.partial` until `finish`. It is the checkpoint of the run:
    after `sync`, what was written survives a crash, and `reopen` continues it.

    Attributes:
        infos: the tensors with their offsets in this file, by name.
        path: the partial file, after `finish` the final one.
        resumed: whether the bytes of an earlier run are in the file.

    Raises:
        ValueError: a name twice, or a dtype that safetensors files do not have here.
        DiskError: the file cannot be created, or the disk cannot hold it.
    """

    def __init__(self, folder: Path, file_name: str, tensors: Sequence[TensorInfo], *, resume: bool = False) -> None:
        header, size = _header(tensors)
        self.infos = parse_header(header, size, file_name)
        self.path = folder / f".{file_name}.partial"
        self._final = folder / file_name
        self._written: set[str] = set()
        self.resumed = resume and holds(self.path, header, size)
        try:
            flags = os.O_RDWR if self.resumed else os.O_RDWR | os.O_CREAT | os.O_TRUNC
            self._descriptor = os.open(self.path, flags | getattr(os, "O_CLOEXEC", 0), 0o666)
        except OSError as error:
            disk_failure(error, self.path, size)
        if not self.resumed:
            self._begin(header, size)

    @classmethod
    def reopen(cls, folder: Path, file_name: str, tensors: Sequence[TensorInfo]) -> Self:
        """Continue the partial file of an earlier run, or start anew if its header differs.

        Only the caller knows which tensors an earlier run had finished and synced: where `resumed`
        is true, say so with `mark_written`.
        """
        return cls(folder, file_name, tensors, resume=True)

    def mark_written(self, names: Iterable[str]) -> None:
        """Count tensors as written by an earlier run.

        Raises:
            ValueError: the file was started anew, or has no such tensor.
        """
        names = set(names)
        if names and not self.resumed:
            raise ValueError(f"{self.path.name} was started anew, nothing in it was written before")
        if unknown := names - self.infos.keys():
            raise ValueError(f"{self.path.name} has no tensor {min(unknown)!r}")
        self._written |= names

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Put a tensor at its place in the file; again if it was there already.

        Raises:
            ValueError: no such tensor in the header, or another dtype or shape there.
            DiskError: the disk refuses.
        """
        info = self.infos.get(name)
        found = (DTYPE_NAMES.get(tensor.dtype), tuple(tensor.shape))
        if info is None or found != (info.dtype, info.shape):
            expected = "no such tensor" if info is None else f"{info.dtype} {list(info.shape)}"
            raise ValueError(f"{self.path.name}: {name!r} is {found[0]} {list(found[1])}, expected {expected}")
        data = tensor.detach().to("cpu").contiguous()
        try:
            if info.nbytes:
                write_at(self._descriptor, byte_view(data), info.offset)
        except OSError as error:
            disk_failure(error, self.path, info.nbytes)
        self._written.add(name)

    def read_back(self, name: str) -> torch.Tensor:
        """A tensor of this file, in its stored dtype."""
        return read_range(self.path, self.infos[name])

    @property
    def missing(self) -> list[str]:
        """The tensors that nobody has written yet, in the order of the header."""
        return [name for name in self.infos if name not in self._written]

    def sync(self) -> None:
        """Return when everything written so far is on the disk."""
        try:
            getattr(os, "fdatasync", os.fsync)(self._descriptor)
        except OSError as error:
            disk_failure(error, self.path, 0)

    def finish(self) -> Path:
        """Give the complete file its final name and return that.

        Raises:
            ValueError: a tensor was never written.
            DiskError: the disk refuses.
        """
        if missing := self.missing:
            raise ValueError(f"{self.path.name}: {len(missing)} tensors not written, such as {missing[0]!r}")
        try:
            os.fsync(self._descriptor)
            self.close()
            self.path.replace(self._final)
            sync_folder(self._final.parent)
        except OSError as error:
            disk_failure(error, self._final, 0)
        self.path = self._final
        return self._final

    def close(self) -> None:
        """Close the file; a partial one stays for `reopen`."""
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _begin(self, header: bytes, size: int) -> None:
        try:
            allocate(self._descriptor, size)
            write_at(self._descriptor, memoryview(header), 0)
            os.fsync(self._descriptor)
            sync_folder(self.path.parent)
        except OSError as error:
            self.close()
            self.path.unlink(missing_ok=True)
            disk_failure(error, self.path, size)


def is_finished(folder: Path, file_name: str, tensors: Sequence[TensorInfo]) -> bool:
    """Whether the final file is there, with the header and size that these tensors give."""
    return holds(folder / file_name, *_header(tensors))


def is_resumable(folder: Path, file_name: str, tensors: Sequence[TensorInfo]) -> bool:
    """Whether `ShardWriter.reopen` would continue the bytes of an earlier run."""
    return holds(folder / f".{file_name}.partial", *_header(tensors))


def shard_names(count: int) -> list[str]:
    """The file names of a checkpoint in `count` safetensors files, as transformers gives them."""
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def index_json(infos: Iterable[TensorInfo]) -> bytes:
    """The text of `model.safetensors.index.json` for tensors whose `file` is their shard."""
    rows = sorted(infos, key=lambda info: info.name)
    index = {
        "metadata": {"total_size": sum(info.nbytes for info in rows)},
        "weight_map": {info.name: info.file for info in rows},
    }
    return json.dumps(index, indent=2, ensure_ascii=False).encode() + b"\n"


def _header(tensors: Sequence[TensorInfo]) -> tuple[bytes, int]:
    """The first bytes of the file, and the size of the whole."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begin = 0
    if unknown := {info.dtype for info in tensors} - DTYPES.keys():
        raise ValueError(f"dtype {min(unknown)!r}, expected one of {list(DTYPES)}")
    # Wide values first: then each tensor is aligned to its own width, as readers that map need it.
    for info in sorted(tensors, key=lambda info: -DTYPES[info.dtype].itemsize):
        if info.name in entries:
            raise ValueError(f"tensor name {info.name!r} occurs twice")
        end = begin + info.nbytes
        entries[info.name] = {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, 8 + len(text) + begin
