"""Importance matrices: how much each input of each weight matters, as llama.cpp's tools store it."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from quantkit.errors import BadInputError, DiskError
from quantkit.weights.gguf_header import MAGIC
from quantkit.weights.gguf_layout import layout
from quantkit.weights.gguf_read import GgufFile, read_gguf, read_tensor
from quantkit.weights.gguf_types import Value
from quantkit.weights.gguf_write import GgufWriter
from quantkit.weights.imatrix_legacy import read_legacy
from quantkit.weights.regular import foreign_kind, open_regular, short

SUMS, COUNTS = ".in_sum2", ".counts"
DATASETS, CHUNK_COUNT, CHUNK_SIZE = "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"
OWN = "quantkit."  # what keys begin with that llama.cpp knows nothing of
MAX_BYTES = 4 * 2**30  # it is read whole; the largest mixtures of experts take 1.5 GB
_HINT = "make it with llama-imatrix, or fetch it again"
_EXPECTED = "an imatrix file, GGUF or .dat"


@dataclass(frozen=True, eq=False)
class Entry:
    """What was summed up at the input of one weight; of the experts of a 3-D weight, each for itself."""

    sums: npt.NDArray[np.floating[Any]]  # [matrices, columns] sums of squares
    counts: npt.NDArray[np.floating[Any]]  # [matrices] tokens


@dataclass(frozen=True)
class Imatrix:
    """Importance by the names of the weights in GGUF files."""

    entries: Mapping[str, Entry]
    datasets: tuple[str, ...] = ()
    chunk_count: int = 0
    chunk_size: int = 0  # tokens; 0 where the file does not say
    source: str = field(default="imatrix", compare=False)  # for messages
    metadata: Mapping[str, Value] = field(default_factory=dict)  # keys that begin with OWN

    def importance(self, name: str, columns: int | None = None) -> npt.NDArray[np.float32]:
        """The mean square of each input, in the float32 arithmetic of llama-quantize.

        Args:
            name: of a weight that has an entry.
            columns: of the weight. A .dat file does not say where one expert ends and the next
                begins; without this its experts are one long row.

        Returns:
            float32 [matrices, columns], ones for an expert that no token has reached.

        Raises:
            BadInputError: the entry is of a weight with other columns.
        """
        entry = self.entries[name]
        sums = entry.sums.astype(np.float32)
        counts = np.floor(entry.counts.astype(np.float64) + 0.5).astype(np.float32)[:, None]
        means = np.divide(sums, counts, out=np.ones_like(sums), where=counts > 0)
        if columns is None:
            return means
        if means.size % columns:
            found = f"{means.size} values for {short(repr(name))}, expected a multiple of {columns}"
            raise BadInputError(f"{self.source}: found {found}", "take the imatrix of this very model")
        return means.reshape(-1, columns)


def read_imatrix(path: Path) -> Imatrix:
    """An imatrix file, GGUF or the older .dat, which its bytes tell apart.

    Raises:
        BadInputError: it is neither, lacks what llama-quantize asks for, or holds a sum that is
            negative or not finite.
        NotFoundError: there is no such file.
        DiskError: it cannot be read.
    """
    with open_regular(path) as file:
        try:
            beginning, size = file.read(4096), os.fstat(file.fileno()).st_size
        except OSError as error:
            raise DiskError(f"cannot read {path}: {error.strerror}") from error
    if size > MAX_BYTES:
        raise BadInputError(f"{path.name}: found {size} bytes, expected at most {MAX_BYTES}", _HINT)
    if beginning.startswith(MAGIC):
        return _read_gguf(read_gguf(path))
    if foreign := foreign_kind(beginning, size):
        raise BadInputError(f"{path.name}: found {foreign[0]}, expected {_EXPECTED}", foreign[1])
    legacy = read_legacy(path)
    entries = {name: _checked(Entry(sums, counts), name, path.name) for name, (sums, counts) in legacy.entries.items()}
    return Imatrix(entries, legacy.datasets, legacy.chunk_count, source=path.name)


def write_imatrix(path: Path, imatrix: Imatrix) -> None:
    """Write the GGUF file that llama-imatrix writes and llama-quantize reads.

    Raises:
        BadInputError: a sum that is negative, not finite or beyond float32, or a name that is too long.
        ValueError: no entries, or sums and counts that do not fit.
        DiskError: the disk refuses; nothing stands at the final name.
    """
    if not imatrix.entries:
        raise ValueError("an imatrix without entries")
    arrays: dict[str, npt.NDArray[np.float32]] = {}
    for name in sorted(imatrix.entries):
        entry = imatrix.entries[name]
        if entry.sums.ndim != 2 or entry.counts.shape != entry.sums.shape[:1] or not entry.sums.size:
            raise ValueError(f"sums {entry.sums.shape} and counts {entry.counts.shape} of {name!r}")
        entry = _checked(entry, name, path.name)
        matrices = len(entry.counts)
        # One matrix: one size, as ggml writes shapes.
        arrays[name + SUMS] = entry.sums if matrices > 1 else entry.sums[0]
        arrays[name + COUNTS] = entry.counts[:, None] if matrices > 1 else entry.counts
    metadata = {
        "general.type": Value("string", "imatrix"),
        DATASETS: Value("string", imatrix.datasets),
        CHUNK_COUNT: Value("uint32", imatrix.chunk_count),
        CHUNK_SIZE: Value("uint32", imatrix.chunk_size),
        **imatrix.metadata,
    }
    header = layout(metadata, [(name, array.shape, "F32") for name, array in arrays.items()])
    with GgufWriter(path, header, None) as writer:
        for name, array in arrays.items():
            writer.write(name, 0, np.ascontiguousarray(array).data)
            writer.finish_tensor(name)
        writer.commit()


def _read_gguf(file: GgufFile) -> Imatrix:
    name = file.path.name
    kind = file.metadata.get("general.type", Value("string", "imatrix")).value
    if kind != "imatrix":
        raise BadInputError(f"{name}: found a GGUF file of type {short(repr(kind))}, expected 'imatrix'", _HINT)
    datasets = _stated(file, DATASETS, "string")
    chunk_count, chunk_size = _stated(file, CHUNK_COUNT, "uint32"), _stated(file, CHUNK_SIZE, "uint32")
    if not isinstance(datasets, tuple) or not isinstance(chunk_count, int) or not isinstance(chunk_size, int):
        raise BadInputError(f"{name}: found one value in {DATASETS} or many in another key of imatrix", _HINT)
    weights = dict.fromkeys(
        key.removesuffix(end) for key in file.tensors for end in (SUMS, COUNTS) if key.endswith(end)
    )
    if not weights:
        raise BadInputError(f"{name}: found no sums of squares, expected tensors that end in {SUMS}", _HINT)
    entries = {weight: _checked(_entry(file, weight), weight, name) for weight in weights}
    own = {key: value for key, value in file.metadata.items() if key.startswith(OWN)}
    return Imatrix(entries, datasets, chunk_count, chunk_size, name, own)


def _stated(file: GgufFile, key: str, kind: str) -> object:
    value = file.metadata.get(key)
    if value is None or value.kind != kind:
        found = "no" if value is None else f"a {value.kind} as"
        raise BadInputError(f"{file.path.name}: found {found} {key}, expected a {kind} as llama-imatrix writes", _HINT)
    return value.value


def _entry(file: GgufFile, name: str) -> Entry:
    parts = []
    for end in (SUMS, COUNTS):
        tensor = file.tensors.get(name + end)
        if tensor is None or tensor.type != "F32" or not tensor.elements:
            found = "no tensor" if tensor is None else f"{tensor.type} {list(tensor.shape)} as tensor"
            raise BadInputError(
                f"{file.path.name}: found {found} {short(repr(name + end))}, expected F32 values", _HINT
            )
        parts.append(read_tensor(file.path, tensor).reshape(-1).view("<f4"))
    sums, counts = parts
    if len(sums) % len(counts):
        found = f"{len(sums)} sums and {len(counts)} counts for {short(repr(name))}"
        raise BadInputError(f"{file.path.name}: found {found}, expected as many sums for each count", _HINT)
    return Entry(sums.reshape(len(counts), -1), counts)


def _checked(entry: Entry, name: str, file_name: str) -> Entry:
    """The entry in float32, each of its values a possible one."""
    with np.errstate(over="ignore"):
        entry = Entry(entry.sums.astype(np.float32, copy=False), entry.counts.astype(np.float32, copy=False))
    for what, values in (("sum", entry.sums), ("count", entry.counts)):
        # Not `min() < 0`: NaN compares false with everything.
        if not (values.min() >= 0 and values.max() < math.inf):
            worst = values[~((values >= 0) & (values < math.inf))][0]
            found = f"found a {what} of {worst} for {short(repr(name))}"
            raise BadInputError(f"{file_name}: {found}, expected a finite one, zero or above", _HINT)
    return entry
