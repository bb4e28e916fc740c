"""PyTorch `.bin` shards as the same table of byte ranges as safetensors; no page of them is mapped."""

import io
import os
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch._weights_only_unpickler import Unpickler

from quantkit.errors import BadInputError, DiskError
from quantkit.tensors import DTYPE_NAMES, TensorInfo
from quantkit.weights.header import refuse_foreign, short
from quantkit.weights.regular import open_regular

MAX_PICKLE_BYTES = 64 * 2**20
_ZIP_MAGIC = b"PK\x03\x04"
_PICKLE_MAGIC = b"\x80"
FIRST_BYTES = 1024  # enough to tell a file of another kind
_LOCAL_HEADER = struct.Struct("<26xHH")  # of a zip record; the two lengths that end it
_HINT = "use the safetensors files of this checkpoint, or convert it where you trust its author"
_DAMAGED = "the file is damaged or incomplete; fetch it again"
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)|(?:class|function) ([\w.]+)")  # in torch's refusals
# What the restricted unpickler and the zip reader raise on damaged or hostile files.
_LOAD_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
)


def read_pickled_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of a `.bin` file, by name.

    `torch.load(weights_only=True, mmap=True)` opens the file first; nothing that it refuses is read.
    The same unpickler then makes tensors of no memory, to learn which storage each lies in; the zip
    file's directory says where the bytes of each storage stand. (torch itself *computes* such places
    from its own way of writing, which other writers need not share.)

    Args:
        path: a file of `torch.save` in its zip form (torch 1.6 and later).

    Raises:
        BadInputError: another form, other objects than tensors, or tensors that do not lie in the
            file as a plain range.
        NotFoundError: there is no such file.
        DiskError: the file cannot be read.
    """
    try:
        tensors = _Tensors(*_read_records(path))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of unusual pickle protocols; what matters is refused
            torch.load(path, weights_only=True, mmap=True, map_location="meta")  # what torch refuses, is refused
            state = tensors.load()  # type: ignore[no-untyped-call]
    except OSError as error:
        raise DiskError(f"cannot read {path}: {error.strerror or error}") from error
    except _LOAD_ERRORS as error:
        raise BadInputError(f"{path.name}: found {_said(error)}, expected tensors alone", _HINT) from error
    if not isinstance(state, dict) or not state:
        raise BadInputError(f"{path.name}: found no dictionary of tensors", _HINT)
    return {str(name): _info(name, value, tensors, path.name) for name, value in state.items()}


class _Tensors(Unpickler):
    """torch's restricted unpickler, with storages of no memory that are found again by tensor."""

    def __init__(self, text: bytes, places: Mapping[str, range]) -> None:
        super().__init__(io.BytesIO(text), encoding="utf-8")
        self._places = places
        self._storages: dict[str, torch.TypedStorage] = {}
        self._keys: dict[int, str] = {}

    def persistent_load(self, pid: tuple[Any, ...]) -> torch.TypedStorage:
        """The storage that the pickle names by (word, type, key, location, elements)."""
        _, kind, key, _, _ = pid
        if key not in self._storages:
            dtype = getattr(kind, "dtype", torch.uint8)
            storage = torch.UntypedStorage(len(self._places[key]), device="meta")  # type: ignore[no-untyped-call]
            self._storages[key] = torch.TypedStorage(wrap_storage=storage, dtype=dtype, _internal=True)  # type: ignore[no-untyped-call]
            self._keys[storage._cdata] = key
        return self._storages[key]

    def place(self, tensor: torch.Tensor) -> range:
        """The bytes of the tensor's storage in the file."""
        return self._places[self._keys[tensor.untyped_storage()._cdata]]


def _read_records(path: Path) -> tuple[bytes, dict[str, range]]:
    """The pickle, and where each storage stands in the file, by its key."""
    with open_regular(path) as file:
        beginning = file.read(FIRST_BYTES)
        if not beginning.startswith(_ZIP_MAGIC):
            expected = "the zip form of torch.save (torch 1.6 and later)"
            refuse_foreign(beginning, os.fstat(file.fileno()).st_size, path.name, expected)
            old = beginning.startswith(_PICKLE_MAGIC)
            found = "a bare pickle, as older versions wrote it" if old else f"{beginning[: len(_ZIP_MAGIC)]!r} in front"
            raise BadInputError(f"{path.name}: found {found}, expected {expected}", _HINT)
        with _open_archive(file, path.name) as archive:
            records = {record.filename.partition("/")[2]: record for record in archive.infolist()}
            if problem := _problem(records, len(archive.infolist())):
                raise BadInputError(f"{path.name}: found {problem}", _HINT)
            if "byteorder" in records and archive.read(records["byteorder"]) != b"little":
                raise BadInputError(f"{path.name}: found big-endian numbers, expected little-endian", _HINT)
            text = archive.read(records["data.pkl"])
        places: dict[str, range] = {}
        for name, record in records.items():
            if name.startswith("data/"):
                file.seek(record.header_offset)
                lengths = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
                start = record.header_offset + _LOCAL_HEADER.size + sum(lengths)
                places[name.removeprefix("data/")] = range(start, start + record.file_size)
    return text, places


def _open_archive(file: BinaryIO, file_name: str) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(file)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
        size = os.fstat(file.fileno()).st_size
        found = f"a zip file of {size} bytes without its directory ({short(str(error))})"
        raise BadInputError(f"{file_name}: found {found}, expected it at the end of the file", _DAMAGED) from error


def _said(error: Exception) -> str:
    """What torch's unpickler did not like, in a few words."""
    text = str(error)
    if match := _GLOBAL.search(text):
        return f"{match[1] or match[2]} in its pickle"
    reason = text.rpartition("WeightsUnpickler error:")[2].strip().split("\n")[0]
    return f"a pickle that does not load ({short(reason or type(error).__name__)})"


def _problem(records: Mapping[str, zipfile.ZipInfo], count: int) -> str | None:
    """What is wrong with the zip file's directory, if anything."""
    if len(records) < count:
        return "two records of one name in the zip file"
    if any(record.compress_type != zipfile.ZIP_STORED for record in records.values()):
        return "compressed records, expected plain ones"
    if any(record.header_offset < 0 for record in records.values()):
        return "a record that begins before the file"
    if "data.pkl" not in records or records["data.pkl"].file_size > MAX_PICKLE_BYTES:
        return f"no data.pkl of up to {MAX_PICKLE_BYTES} bytes"
    return None


def _info(name: object, value: object, tensors: _Tensors, file_name: str) -> TensorInfo:
    if not isinstance(name, str) or not name.isprintable() or not name:
        raise BadInputError(f"{file_name}: found the key {name!r:.100}, expected tensor names", _HINT)
    if type(value) not in (torch.Tensor, torch.nn.Parameter) or not isinstance(value, torch.Tensor):
        kind = type(value).__name__
        raise BadInputError(f"{file_name}: found {kind} under {name!r:.100}, expected a tensor", _HINT)
    if value.dtype not in DTYPE_NAMES or value.layout != torch.strided or value.is_neg():
        raise BadInputError(f"{file_name}: found tensor {name!r:.100} of {value.dtype}, {value.layout}", _HINT)
    if not value.is_contiguous():
        found = f"strides {value.stride()} for shape {list(value.shape)}"
        raise BadInputError(f"{file_name}: found tensor {name!r:.100} with {found}, expected contiguous", _HINT)
    place = tensors.place(value)
    offset = place.start + int(value.storage_offset()) * value.itemsize
    info = TensorInfo(name, DTYPE_NAMES[value.dtype], tuple(value.shape), file_name, offset)
    if info.elements and offset + info.nbytes > place.stop:
        raise BadInputError(f"{file_name}: found tensor {name!r:.100} reaching beyond its storage", _HINT)
    return info
