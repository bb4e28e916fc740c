"""The safetensors header: bounded, validated, and nothing of the file believed before it is checked."""

import json
import os
import struct
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import TypeGuard

from quantkit.errors import BadInputError, DiskError
from quantkit.tensors import ITEM_BYTES, TensorInfo
from quantkit.weights.regular import MAX_SMALL_BYTES, foreign_kind, open_regular, short

MAX_HEADER_BYTES = MAX_SMALL_BYTES
MAX_TENSORS = 100_000
MAX_RANK = 32
MAX_ELEMENTS = 2**48
FIRST_BYTES = 65_536  # one read: most headers, and enough to tell a file of another kind
LENGTH_BYTES = 8  # the header's length, uint64 little-endian, in front of it
_FIELDS = {"dtype", "shape", "data_offsets"}
_HINT = "the file is damaged or incomplete; fetch it again"


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of a safetensors file, by name, in the order of its header.

    Args:
        path: the file; its own name becomes `TensorInfo.file`.

    Raises:
        BadInputError: the header is not a valid one, or does not fit the file; or it is another kind
            of file altogether.
        NotFoundError: there is no such file.
        DiskError: the file cannot be read.
    """
    with open_regular(path) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            raw = file.read(FIRST_BYTES)
            missing = LENGTH_BYTES + header_length(raw, size, path.name) - len(raw)
            raw += file.read(max(0, missing))
        except OSError as error:
            raise DiskError(f"cannot read {path}: {error.strerror}") from error
    return parse_header(raw, size, path.name)


def header_length(raw: bytes, file_size: int, file_name: str) -> int:
    """The length of the JSON text that follows the first eight bytes.

    Args:
        raw: the beginning of the file, at least eight bytes of it, more to tell what else it is.
        file_size: bytes of the whole file.
        file_name: for messages.

    Raises:
        BadInputError: the length is impossible for this file, or above 25 MB.
    """
    length = struct.unpack_from("<Q", raw)[0] if len(raw) >= LENGTH_BYTES else 0
    most = min(MAX_HEADER_BYTES, file_size - LENGTH_BYTES)
    if not 2 <= length <= most:
        refuse_foreign(raw, file_size, file_name, "a safetensors file")
        if file_size < LENGTH_BYTES:
            raise _bad(file_name, f"{file_size} bytes, expected at least {LENGTH_BYTES}")
        raise _bad(file_name, f"a header of {length} bytes, expected 2 to {most} in a file of {file_size}")
    return int(length)


def parse_header(raw: bytes, file_size: int, file_name: str) -> dict[str, TensorInfo]:
    """The tensors that the first bytes of a safetensors file describe.

    Args:
        raw: the eight length bytes, the JSON text, and possibly more.
        file_size: bytes of the whole file.
        file_name: name inside the checkpoint folder, kept in every `TensorInfo`.

    Returns:
        Infos whose `offset` counts from the first byte of the file.

    Raises:
        BadInputError: any rule of the format is broken.
    """
    length = header_length(raw, file_size, file_name)
    text = raw[LENGTH_BYTES : LENGTH_BYTES + length]
    if len(text) < length:
        raise _bad(file_name, f"{len(text)} bytes of header, expected {length}")
    if not text.startswith(b"{"):
        raise _bad(file_name, f"a header that begins with {text[:1]!r}, expected b'{{'")
    entries = parse_object(text, file_name)
    _check_metadata(entries.pop("__metadata__", {}), file_name)
    if len(entries) > MAX_TENSORS:
        raise _bad(file_name, f"{len(entries)} tensors, expected at most {MAX_TENSORS}")
    data_start = LENGTH_BYTES + length
    infos = {name: _info(name, entry, data_start, file_name) for name, entry in entries.items()}
    _check_layout(infos, data_start, file_size, file_name)
    return infos


def refuse_foreign(raw: bytes, file_size: int, file_name: str, expected: str) -> None:
    """Say what a file is where its beginning shows that it is something else.

    Raises:
        BadInputError: it is a pointer, a web page, another format, an answer of a server.
    """
    if foreign := foreign_kind(raw, file_size):
        raise BadInputError(f"{file_name}: found {foreign[0]}, expected {expected}", foreign[1])


def parse_object(raw: bytes, file_name: str, unique_keys: bool = True) -> dict[str, object]:
    """A JSON text that must be an object.

    Args:
        raw: the text, UTF-8.
        file_name: for messages.
        unique_keys: refuse an object, at any depth, that has a key twice.

    Raises:
        BadInputError: it is not JSON, not an object, or has a key twice.
    """
    hook = _unique if unique_keys else None
    try:
        value = json.loads(raw.decode(), object_pairs_hook=hook, parse_int=_whole)
    except (ValueError, RecursionError) as error:
        refuse_foreign(raw, len(raw), file_name, "JSON")
        raise _bad(file_name, f"no valid JSON ({short(str(error))})") from error
    if not isinstance(value, dict):
        raise _bad(file_name, f"JSON of type {type(value).__name__}, expected an object")
    return value


def _whole(digits: str) -> int:
    """A whole number; what is written `-0` is a float to other readers."""
    if digits == "-0":
        raise ValueError("-0 where a whole number may stand")
    return int(digits)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) < len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"key {twice!r} occurs twice")
    return value


def _check_metadata(metadata: object, file_name: str) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _bad(file_name, "__metadata__ that is not an object of texts")


def _info(name: str, entry: object, data_start: int, file_name: str) -> TensorInfo:
    shown = short(repr(name))
    if not name or not name.isprintable():
        raise _bad(file_name, f"tensor name {shown}, expected printable characters")
    if not isinstance(entry, dict) or set(entry) != _FIELDS:
        raise _bad(file_name, f"tensor {shown} without exactly the fields {sorted(_FIELDS)}")
    dtype, offsets = entry["dtype"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise _bad(file_name, f"tensor {shown} of dtype {short(repr(dtype))}, expected one of {list(ITEM_BYTES)}")
    shape = _shape(entry["shape"], shown, file_name)
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise _bad(file_name, f"tensor {shown} with data_offsets {short(repr(offsets))}, expected [begin, end]")
    info = TensorInfo(name, dtype, shape, file_name, data_start + offsets[0])
    if offsets[1] - offsets[0] != info.nbytes:
        found = f"{offsets[1] - offsets[0]} bytes, expected {info.nbytes} for {dtype} {list(shape)}"
        raise _bad(file_name, f"tensor {shown} over {found}")
    return info


def _shape(shape: object, shown: str, file_name: str) -> tuple[int, ...]:
    if not _are_sizes(shape) or len(shape) > MAX_RANK:
        raise _bad(file_name, f"tensor {shown} of shape {short(repr(shape))}, expected up to {MAX_RANK} sizes")
    elements = 1
    for size in shape:
        # A zero must not hide that the other sizes overflow when strides are computed.
        elements *= max(size, 1)
        if elements > MAX_ELEMENTS:
            raise _bad(file_name, f"tensor {shown} of shape {short(repr(shape))}, expected <= 2**48 values")
    return tuple(shape)


def _are_sizes(value: object) -> TypeGuard[list[int]]:
    # type() and not isinstance(): JSON true is a bool, which Python counts as an int.
    return isinstance(value, list) and all(type(size) is int and size >= 0 for size in value)


def _check_layout(infos: Mapping[str, TensorInfo], data_start: int, file_size: int, file_name: str) -> None:
    """Every data byte belongs to exactly one tensor, up to the last byte of the file."""
    ranges = sorted((info.offset, info.offset + info.nbytes, info.name) for info in infos.values())
    edges = [(data_start, data_start, "the header"), *ranges]
    for (_, end, before), (start, _, name) in pairwise(edges):
        if start != end:
            kind = "an overlap" if start < end else "a hole"
            found = f"{kind} between {short(before)} and tensor {short(name)}"
            raise _bad(file_name, f"{found}: starts at byte {start}, expected {end}")
    if edges[-1][1] != file_size:
        raise _bad(file_name, f"a file of {file_size} bytes, expected {edges[-1][1]} from its header")


def _bad(file_name: str, found: str) -> BadInputError:
    return BadInputError(f"{file_name}: found {found}", _HINT)
