"""PyTorch `.bin` shards as the same table of byte ranges as safetensors; no page of them is mapped."""

import io
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch._weights_only_unpickler import Unpickler

from quantkit.dtypes import DTYPE_NAMES
from quantkit.errors import BadInputError, DiskError
from quantkit.tensors import TensorInfo
from quantkit.weights.archive import HINT, read_records
from quantkit.weights.regular import short

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
        tensors = _Tensors(*read_records(path))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of unusual pickle protocols; what matters is refused
            torch.load(path, weights_only=True, mmap=True, map_location="meta")  # what torch refuses, is refused
            state = tensors.load()  # type: ignore[no-untyped-call]
    except OSError as error:
        raise DiskError(f"cannot read {path}: {error.strerror or error}") from error
    except _LOAD_ERRORS as error:
        raise BadInputError(f"{path.name}: found {_said(error)}, expected tensors alone", HINT) from error
    if not isinstance(state, dict) or not state:
        raise BadInputError(f"{path.name}: found no dictionary of tensors", HINT)
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


def _said(error: Exception) -> str:
    """What torch's unpickler did not like, in a few words."""
    text = str(error)
    if match := _GLOBAL.search(text):
        return f"{match[1] or match[2]} in its pickle"
    reason = text.rpartition("WeightsUnpickler error:")[2].strip().split("\n")[0]
    return f"a pickle that does not load ({short(reason or type(error).__name__)})"


def _info(name: object, value: object, tensors: _Tensors, file_name: str) -> TensorInfo:
    if not isinstance(name, str) or not name.isprintable() or not name:
        raise BadInputError(f"{file_name}: found the key {name!r:.100}, expected tensor names", HINT)
    if type(value) not in (torch.Tensor, torch.nn.Parameter) or not isinstance(value, torch.Tensor):
        kind = type(value).__name__
        raise BadInputError(f"{file_name}: found {kind} under {name!r:.100}, expected a tensor", HINT)
    if value.dtype not in DTYPE_NAMES or value.layout != torch.strided or value.is_neg():
        raise BadInputError(f"{file_name}: found tensor {name!r:.100} of {value.dtype}, {value.layout}", HINT)
    if not value.is_contiguous():
        found = f"strides {value.stride()} for shape {list(value.shape)}"
        raise BadInputError(f"{file_name}: found tensor {name!r:.100} with {found}, expected contiguous", HINT)
    place = tensors.place(value)
    offset = place.start + int(value.storage_offset()) * value.itemsize
    info = TensorInfo(name, DTYPE_NAMES[value.dtype], tuple(value.shape), file_name, offset)
    if info.elements and offset + info.nbytes > place.stop:
        raise BadInputError(f"{file_name}: found tensor {name!r:.100} reaching beyond its storage", HINT)
    return info
