"""A GGUF file, ours or another tool's, read as if it were the checkpoint it was made from."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch

from quantkit.errors import BadInputError
from quantkit.families.family import Family
from quantkit.families.gguf_family import GgufFamily
from quantkit.formats.gguf_transforms import Assembly, Floats, Part, assemble, disassemble, whole_heads
from quantkit.formats.gguf_values import dequantize
from quantkit.plan.gguf_metadata import hyperparameters
from quantkit.plan.gguf_rows import GgufRow, gguf_rows
from quantkit.plan.gguf_settings import Config
from quantkit.tensors import TensorInfo
from quantkit.weights.gguf_read import GgufFiles, open_gguf, read_tensor
from quantkit.weights.gguf_types import GgufTensor

SLAB_WEIGHTS = 2**20  # dequantized at a time
SLAB_BYTES = 16  # that a weight of a slab takes on the way: its block, two copies of its value, the library's
# Keys that change nothing about what a text gives.
IDLE_KEYS = ("context_length", "vocab_size")
# What llama.cpp takes where a file does not say.
UNSTATED = {"rope.freq_base": 10000.0, "rope.scaling.factor": 1.0, "rope.scaling.attn_factor": 1.0}
TOLERANCE = 1e-3  # relative; other tools round factors of frequencies, and tables of sines, to 16 bits


class GgufSource:
    """A table of float32 tensors by the names of the checkpoint, dequantized when they are read.

    Where the file holds a head of its own beside the embedding of a tied model, both are in the table: llama.cpp
    computes with both, and they may be quantized differently.

    Args:
        path: the file, or any part of a split one.
        family: the baseline's family.
        gguf: and its row in GGUF's table.
        config: the baseline's configuration, complete.
        infos: the baseline's tensors, from headers.

    Raises:
        BadInputError: not a GGUF file of this model: another architecture, other sizes or settings, tensors
            missing, too many or of another shape.
        NotFoundError: a file is not there.
        DiskError: a file cannot be read.
    """

    def __init__(
        self, path: Path, family: Family, gguf: GgufFamily, config: Config, infos: Mapping[str, TensorInfo]
    ) -> None:
        self.files: GgufFiles = open_gguf(path)
        self._name = path.name
        self._check_settings(gguf, config)
        head = f"{family.head}.weight"
        rows = gguf_rows(family, gguf, config, infos)
        if config.get("tie_word_embeddings"):
            infos = {name: info for name, info in infos.items() if name != head}
            rows = _with_own_head(rows, self.files.tensors, f"{family.embedding}.weight", head)
        self._rows = {row.name: row for row in rows}
        self._check_tensors(gguf)
        self._holders: dict[str, list[GgufRow]] = {}
        for row in rows:
            for source in row.assembly.sources:
                self._holders.setdefault(source, []).append(row)
        shapes = {name: infos[name].shape for name in self._holders if name in infos}
        shapes |= {head: self._rows["output.weight"].shape} if head in self._holders else {}
        self._infos = {name: self._info(name, shape) for name, shape in shapes.items()}

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        """Every tensor by name, in float32."""
        return self._infos

    @property
    def reading_bytes(self) -> int:
        """What a read takes beside its result."""
        return SLAB_BYTES * min(SLAB_WEIGHTS, max(info.elements for info in self._infos.values()))

    def stored_bytes(self, name: str) -> int:
        """Bytes of the file that hold a tensor."""
        found = 0
        for row in self._holders[name]:
            rows = sum(part.rows for part in row.assembly.parts if isinstance(part, Part) and part.source == name)
            found += self.files.tensors[row.name].nbytes * rows // row.assembly.rows
        return found

    def read(self, name: str) -> torch.Tensor:
        """The tensor in float32, as llama.cpp computes with it.

        Raises:
            BadInputError: the file has become shorter, or holds a type that is no weights.
            DiskError: the disk refuses to read.
        """
        info = self._infos[name]
        values = np.empty(info.elements, np.float32)

        def put(source: str, first: int, part: Floats) -> None:
            if source == name:
                values[first : first + part.size] = part

        for row in self._holders[name]:
            for first, slab in self._slabs(row, name):
                disassemble(row.assembly, first, slab, put)
        return torch.from_numpy(values).reshape(info.shape)

    def _slabs(self, row: GgufRow, name: str) -> Iterator[tuple[int, Floats]]:
        """The rows of a tensor that come from one tensor of the checkpoint, in slabs of whole heads."""
        assembly, tensor = row.assembly, self.files.tensors[row.name]
        if assembly.columns == 1:
            yield 0, self._values(tensor).reshape(-1, 1)
            return
        heads = whole_heads(assembly)
        step = max(SLAB_WEIGHTS // assembly.columns // heads, 1) * heads
        begin = 0
        for part in assembly.parts:
            end = begin + part.rows
            if isinstance(part, Part) and part.source == name:
                for first in range(begin, end, step):
                    yield first, self._values(tensor, first, min(first + step, end))
            begin = end

    def _values(self, tensor: GgufTensor, first: int = 0, end: int | None = None) -> Floats:
        blocks = read_tensor(self.files.path_of(tensor), tensor, first, end)
        try:
            return dequantize(tensor.type, blocks)
        except BadInputError as error:
            raise BadInputError(f"{self._name}: {tensor.name}: {error}", error.hint) from error

    def _info(self, name: str, shape: tuple[int, ...]) -> TensorInfo:
        tensor = self.files.tensors[self._holders[name][0].name]
        return TensorInfo(name, "F32", shape, tensor.file, tensor.offset)

    def _check_settings(self, gguf: GgufFamily, config: Config) -> None:
        """Refuse a file by which llama.cpp would compute another model than the baseline."""
        told = {key: value.value for key, value in self.files.metadata.items()}
        architecture = told.get("general.architecture")
        if architecture not in (gguf.architecture, *gguf.also):
            raise self._refusal(f"its architecture is {repr(architecture)[:40]}, the baseline's {gguf.architecture!r}")
        stated = {key: value.value for key, value in hyperparameters(gguf, config).items()}
        for key, value in ((UNSTATED if gguf.rope else {}) | stated).items():
            found = told.get(f"{architecture}.{key}", UNSTATED.get(key, value))
            if key not in IDLE_KEYS and not _is_near(found, value):
                raise self._refusal(f"{key} is {str(found)[:40]}, the baseline's {str(value)[:40]}")

    def _check_tensors(self, gguf: GgufFamily) -> None:
        found = self.files.tensors
        for name, row in self._rows.items():
            if name not in found:
                raise self._refusal(f"tensor {name} {list(row.shape)} is missing")
            if _squeezed(found[name].shape) != _squeezed(row.shape):
                raise self._refusal(f"tensor {name} is {list(found[name].shape)}, expected {list(row.shape)}")
            if not row.assembly.sources:
                self._check_computed(row)
        surplus = sorted(found.keys() - self._rows.keys())
        if surplus:
            raise self._refusal(f"tensor {surplus[0]} has no place in the architecture {gguf.architecture}")

    def _check_computed(self, row: GgufRow) -> None:
        """A table that follows from the configuration holds what transformers computes."""
        expected = np.empty((row.assembly.rows, row.assembly.columns), np.float32)
        assemble(row.assembly, 0, len(expected), lambda *_: None, expected)
        values = self._values(self.files.tensors[row.name]).reshape(expected.shape)
        if not np.allclose(values, expected, rtol=TOLERANCE, atol=TOLERANCE):
            raise self._refusal(f"tensor {row.name} is not what the baseline's config.json gives")

    def _refusal(self, reason: str) -> BadInputError:
        return BadInputError(
            f"{self._name} is not an artifact of this baseline: {reason}", "name the checkpoint it was made from"
        )


def _with_own_head(
    rows: tuple[GgufRow, ...], found: Mapping[str, GgufTensor], embedding: str, head: str
) -> tuple[GgufRow, ...]:
    """The rows of a tied model, with the head that its file holds nevertheless."""
    if "output.weight" not in found:
        return rows
    shape = next(row.shape for row in rows if embedding in row.assembly.sources)
    own = GgufRow("output.weight", shape, Assembly(shape[1], (Part(head, shape[0]),)))
    return (*(row for row in rows if row.name != own.name), own)


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without sizes of one, which tools keep or drop."""
    return tuple(size for size in shape if size != 1)


def _is_near(found: object, expected: object) -> bool:
    if isinstance(found, int | float) and isinstance(expected, int | float):
        return math.isclose(found, expected, rel_tol=1e-5)
    if isinstance(found, (list, tuple)) and isinstance(expected, tuple):
        return list(found) == list(expected)
    return found == expected
