"""Every tensor of an artifact read once: codes, scales and groups that fit together, values that are finite."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from quantkit.errors import BadInputError, NotFoundError
from quantkit.formats.gguf_values import dequantize
from quantkit.progress import Progress
from quantkit.report.findings import split_name
from quantkit.tensors import TensorSource
from quantkit.weights.gguf_names import gguf_parts
from quantkit.weights.gguf_read import GgufFiles, open_gguf, read_tensor
from quantkit.weights.gguf_types import GgufTensor, Value
from quantkit.weights.source import open_folder

SLAB_VALUES = 2**22  # looked at together
THREADS = 4
KIND, MODEL = "general.type", Value("string", "model")  # in GGUF
NO_WEIGHTS = ("I8", "I16", "I32", "I64", "F64")  # GGUF types that hold other things


@dataclass
class Reading:
    """What was read, and what is wrong with it, a sentence each.

    Attributes:
        path: the folder of a checkpoint, or the first file of a GGUF model.
        is_model: False for an importance matrix, which is stored as GGUF too and of which there is no check.
    """

    path: Path
    is_model: bool = True
    tensors: int = 0
    nbytes: int = 0
    problems: list[str] = field(default_factory=list)


def read_checkpoint(folder: Path, progress: Progress) -> Reading:
    """Read a checkpoint in safetensors, GPTQ or 16-bit: a linear, or another tensor, in memory at a time.

    Raises:
        DiskError: the disk refuses to read.
    """
    found = Reading(folder)
    try:
        checkpoint = open_folder(folder)
        source, quantized = checkpoint.source, checkpoint.config.get("quantization_config")
        found.nbytes = sum(info.nbytes for info in source.infos.values())
        if isinstance(quantized, dict):
            from quantkit.formats.gptq_source import DequantizedSource

            source = DequantizedSource(source, quantized)
    except (BadInputError, NotFoundError) as error:
        found.problems.append(str(error).replace(f"{folder}/", "").replace(f"{folder}: ", ""))
        return found
    for names in _by_layer(list(source.infos), progress):
        for name in names:
            found.tensors += 1
            if problem := _problem(source, name):
                found.problems.append(problem)
    return found


def read_gguf_model(path: Path, progress: Progress) -> Reading:
    """Read a GGUF model, all parts of it: slabs of rows, dequantized.

    Raises:
        DiskError: the disk refuses to read.
    """
    found = Reading(path)
    try:
        files = open_gguf(path)
    except (BadInputError, NotFoundError) as error:
        found.problems.append(str(error).replace(f"{path.parent}/", ""))
        return found
    found.nbytes = sum(file.size for file in files.files)
    found.is_model = files.metadata.get(KIND, MODEL) == MODEL
    with ThreadPoolExecutor(THREADS) as pool:
        for names in _by_layer(list(files.tensors), progress):
            for name in names:
                found.tensors += 1
                if problem := _gguf_problem(files, files.tensors[name], pool):
                    found.problems.append(problem)
    return found


def models_in(names: Sequence[str]) -> tuple[bool, list[str]]:
    """What a folder's files are: whether they hold a checkpoint, and the first files of GGUF models."""
    is_checkpoint = "config.json" in names or any(name.endswith((".safetensors", ".bin")) for name in names)
    firsts = {gguf_parts(Path(name))[0].name for name in names if name.endswith(".gguf")}
    return is_checkpoint, sorted(firsts)


def _by_layer(names: Sequence[str], progress: Progress) -> Iterator[list[str]]:
    """Names by their decoder layer, those outside of the layers first; progress hears of each layer."""
    layers: dict[int, list[str]] = {}
    for name in names:
        layers.setdefault(split_name(name)[0], []).append(name)
    count = max(layers, default=-1) + 1
    progress.start(count, 0)
    for layer in sorted(layers):
        began = time.perf_counter()
        yield layers[layer]
        if layer >= 0:
            progress.layer(layer, time.perf_counter() - began)
    progress.stop()


def _problem(source: TensorSource, name: str) -> str | None:
    """What is wrong with a tensor of a checkpoint."""
    import torch

    try:
        tensor = source.read(name)
    except (BadInputError, NotFoundError) as error:
        return str(error) if name.removesuffix(".weight") in str(error) else f"{name}: {error}"
    if not tensor.is_floating_point():
        return None
    flat = tensor.reshape(-1)
    bad = sum(
        int((~torch.isfinite(flat[start : start + SLAB_VALUES])).sum()) for start in range(0, len(flat), SLAB_VALUES)
    )
    return _not_finite(name, bad, len(flat)) if bad else None


def _gguf_problem(files: GgufFiles, tensor: GgufTensor, pool: ThreadPoolExecutor) -> str | None:
    """What is wrong with a tensor of a GGUF file."""
    columns = tensor.shape[-1] if tensor.shape else 1
    rows = tensor.elements // columns if columns else 0
    step = max(1, SLAB_VALUES // max(1, columns))

    def bad_values(start: int) -> int:
        blocks = read_tensor(files.path_of(tensor), tensor, start, min(start + step, rows))
        if tensor.type in NO_WEIGHTS:
            return 0
        return int(np.count_nonzero(~np.isfinite(dequantize(tensor.type, blocks))))

    try:
        bad = sum(pool.map(bad_values, range(0, rows, step)))
    except (BadInputError, NotFoundError) as error:
        return f"{tensor.file}: {tensor.name}: {error}"
    return _not_finite(f"{tensor.file}: {tensor.name}", bad, tensor.elements) if bad else None


def _not_finite(name: str, bad: int, total: int) -> str:
    return f"{name}: {bad} of {total} values are not finite"
