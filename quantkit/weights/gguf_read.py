"""GGUF files in: one or the parts of a split one as a table of tensors, bytes when asked for."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from quantkit.errors import BadInputError, DiskError, NotFoundError
from quantkit.weights.files import read_at
from quantkit.weights.gguf_header import parse_gguf
from quantkit.weights.gguf_names import PART, gguf_parts
from quantkit.weights.gguf_types import GgufTensor, Value
from quantkit.weights.regular import open_regular, short

SPLIT_NUMBER, SPLIT_COUNT, SPLIT_TENSORS = "split.no", "split.count", "split.tensors.count"


@dataclass(frozen=True)
class GgufFile:
    """What one GGUF file says of itself."""

    path: Path
    version: int
    metadata: dict[str, Value]
    tensors: dict[str, GgufTensor]  # in the order of the file
    alignment: int
    size: int  # bytes


@dataclass(frozen=True)
class GgufFiles:
    """A model in one GGUF file, or in the parts of a split one."""

    files: tuple[GgufFile, ...]  # in order
    metadata: dict[str, Value]  # of the first, which has all of it
    tensors: dict[str, GgufTensor]  # of all, in order

    def path_of(self, tensor: GgufTensor) -> Path:
        """The file that holds a tensor."""
        return self.files[0].path.with_name(tensor.file)


def read_gguf(path: Path) -> GgufFile:
    """The header of one GGUF file, of version 2 or 3 and little-endian.

    Raises:
        BadInputError: a rule of the format is broken, the file is shorter than its header says, or
            it is another kind of file.
        NotFoundError: there is no such file.
        DiskError: the file cannot be read.
    """
    with open_regular(path) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            header = parse_gguf(file, size, path.name)
        except OSError as error:
            raise DiskError(f"cannot read {path}: {error.strerror}") from error
    return GgufFile(path, header.version, header.metadata, header.tensors, header.alignment, size)


def open_gguf(path: Path) -> GgufFiles:
    """A GGUF model by the name of its file, or of any part `NAME-00001-of-0000N.gguf` of it.

    Raises:
        BadInputError: a file is no valid GGUF file, or the parts do not belong together.
        NotFoundError: a file is not there.
        DiskError: a file cannot be read.
    """
    named = read_gguf(path)
    match = PART.fullmatch(path.name)
    count = _stated(named, SPLIT_COUNT) or 1
    if count <= 1 and (match is None or int(match["count"]) == 1):
        return GgufFiles((named,), named.metadata, named.tensors)
    if match is None or not 1 <= int(match["number"]) <= int(match["count"]) == count:
        raise BadInputError(
            f"{path.name}: found {SPLIT_COUNT} {count}, expected a name that ends in -0000N-of-{count:05d}.gguf",
            "give every part the name under which it was published",
        )
    paths = gguf_parts(path)
    _check_presence(paths)
    files = tuple(named if part == path else read_gguf(part) for part in paths)
    return GgufFiles(files, files[0].metadata, _join(files))


def read_tensor(
    source: Path | int,
    tensor: GgufTensor,
    start: int = 0,
    stop: int | None = None,
    out: npt.NDArray[np.uint8] | None = None,
) -> npt.NDArray[np.uint8]:
    """Rows of a tensor as the bytes of its blocks, in memory of their own.

    Args:
        source: the file, or a descriptor of it, which several threads may use at once.
        tensor: what to read.
        start: first row, where all sizes but the last are one.
        stop: the row after the last one; all rows by default.
        out: where to, C-contiguous uint8 of [stop - start, row bytes].

    Returns:
        uint8 [stop - start, row bytes]; `out` if it was given.

    Raises:
        BadInputError: the file ends inside the rows.
        ValueError: rows that the tensor does not have, or an unfit `out`.
        NotFoundError: there is no such file.
        DiskError: the disk refuses to read.
    """
    rows, row_bytes = _rows(tensor)
    stop = rows if stop is None else stop
    if not 0 <= start <= stop <= rows:
        raise ValueError(f"rows {start} to {stop} of tensor {tensor.name!r}, which has {rows}")
    shape = stop - start, row_bytes
    target = np.empty(shape, np.uint8) if out is None else out
    if target.shape != shape or target.dtype != np.uint8 or not target.flags.c_contiguous:
        raise ValueError(f"an array of {target.dtype} {list(target.shape)}, expected contiguous uint8 {list(shape)}")
    offset = tensor.offset + start * row_bytes
    if isinstance(source, int):
        _fill(source, target, offset, tensor)
    else:
        with open_regular(source) as file:
            _fill(file.fileno(), target, offset, tensor)
    return target


def _rows(tensor: GgufTensor) -> tuple[int, int]:
    columns = tensor.shape[-1] if tensor.shape else 1
    rows = tensor.elements // columns if columns else 0
    return rows, tensor.nbytes // rows if rows else 0


def _fill(descriptor: int, target: npt.NDArray[np.uint8], offset: int, tensor: GgufTensor) -> None:
    try:
        done = read_at(descriptor, target.reshape(-1).data, offset)
    except OSError as error:
        raise DiskError(f"cannot read tensor {tensor.name!r} of {tensor.file}: {error.strerror}") from error
    if done < target.size:
        found = f"found {done} bytes of tensor {tensor.name!r} at byte {offset}, expected {target.size}"
        raise BadInputError(f"{tensor.file}: {found}", "the file has become shorter; fetch it again")


def _stated(file: GgufFile, key: str) -> int | None:
    """A whole number of the metadata, None where it does not say."""
    if key not in file.metadata:
        return None
    value = file.metadata[key].value
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise BadInputError(f"{file.path.name}: found {key} {short(repr(value))}, expected a whole number")
    return value


def _check_presence(paths: Sequence[Path]) -> None:
    missing = [part.name for part in paths if not os.path.lexists(part)]
    if missing:
        names = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise NotFoundError(
            f"{paths[0].parent}: {len(missing)} of {len(paths)} parts are missing: {names}", "finish the download"
        )


def _join(files: Sequence[GgufFile]) -> dict[str, GgufTensor]:
    """The tensors of all parts, each part in its place and each tensor in one part."""
    tensors: dict[str, GgufTensor] = {}
    total = _stated(files[0], SPLIT_TENSORS)
    for number, file in enumerate(files):
        for key, expected in ((SPLIT_NUMBER, number), (SPLIT_COUNT, len(files)), (SPLIT_TENSORS, total)):
            found = _stated(file, key)
            if found is None or found != expected:
                shown = f"no {key}" if found is None else f"{key} {found}"
                raise BadInputError(f"{file.path.name}: found {shown}, expected {expected}")
        for name, tensor in file.tensors.items():
            if name in tensors:
                raise BadInputError(f"found tensor {short(name)!r} in {tensors[name].file} and {tensor.file}")
            tensors[name] = tensor
    if len(tensors) != total:
        raise BadInputError(
            f"{files[0].path.name}: found {len(tensors)} tensors in {len(files)} parts, expected {total}"
        )
    return tensors
