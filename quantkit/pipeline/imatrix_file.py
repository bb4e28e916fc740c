"""Importance matrices of ours as files: made once for the same weights, text and dtype; what GGUF files say of one."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.errors import BadInputError, DiskError
from quantkit.progress import Progress
from quantkit.weights.gguf_types import Value
from quantkit.weights.hashes import file_hash
from quantkit.weights.imatrix import OWN, Entry, Imatrix, read_imatrix, write_imatrix

if TYPE_CHECKING:  # a conversion with the imatrix of a file does without torch
    import torch

    from quantkit.calibration import CalibrationTokens

CALIBRATION, SOURCE, COMPUTE = f"{OWN}calibration_sha256", f"{OWN}source", f"{OWN}compute"
IN_GGUF = "quantize.imatrix."  # what llama-quantize says of an importance matrix in the file that it makes


@dataclass(frozen=True)
class Origin:
    """What the sums depend on, kept in their file: those of the same origin are not collected again."""

    calibration_sha256: str
    source: str  # a commit, or a digest of whatever else the weights came from
    compute: str  # dtype, as safetensors headers call it

    def metadata(self) -> dict[str, Value]:
        """The keys of the file."""
        return {
            CALIBRATION: Value("string", self.calibration_sha256),
            SOURCE: Value("string", self.source),
            COMPUTE: Value("string", self.compute),
        }


def origin_of(tokens: "CalibrationTokens", source: object, dtype: "torch.dtype") -> Origin:
    """Where sums come from.

    Args:
        tokens: what the model reads.
        source: a commit; or, as JSON has it, whatever else tells the weights from others.
        dtype: of weights and activations.
    """
    from quantkit.dtypes import DTYPE_NAMES

    name = source if isinstance(source, str) else _digest(source)
    return Origin(tokens.sha256, name, DTYPE_NAMES[dtype])


def kept_or_made(
    path: Path, origin: Origin, make: Callable[[], Imatrix], progress: Progress
) -> tuple[Imatrix, dict[str, Any]]:
    """What the file holds if that is of this origin; else what `make` gives, once the file holds it.

    Args:
        path: of the GGUF file.
        origin: of the sums.
        make: collects them.
        progress: told what becomes of the file.

    Returns:
        The imatrix, and what the record of a run says about it.

    Raises:
        BadInputError: the file is damaged or of another tool.
        DiskError: the file cannot be written.
    """
    imatrix = own_imatrix(path)
    kept = imatrix is not None and imatrix.metadata == origin.metadata()
    if imatrix is not None:
        same = "of the same weights and text: taken as it is" if kept else "of other weights, text or dtype: made anew"
        progress.say(f"{path} is {same}")
    if imatrix is None or not kept:
        write_imatrix(path, make())
        imatrix = read_imatrix(path)  # the float32 values that a later run will have
    record = {
        "file": path.name,
        "sha256": file_hash(path),
        "kept": kept,
        "entries": len(imatrix.entries),
        "datasets": list(imatrix.datasets),
        "chunks": imatrix.chunk_count,
        "chunk_tokens": imatrix.chunk_size,
        "calibration_sha256": origin.calibration_sha256,
        "compute": origin.compute,
    }
    return imatrix, record


def own_imatrix(path: Path) -> Imatrix | None:
    """The imatrix of quantkit in a file; None where there is no file yet.

    Raises:
        BadInputError: the file is damaged or of another tool.
        DiskError: there is no folder for it.
    """
    if not path.exists():
        if not path.parent.is_dir():
            raise DiskError(f"cannot write {path}: {path.parent} is not a folder")
        return None
    imatrix = read_imatrix(path)
    if SOURCE not in imatrix.metadata:
        raise BadInputError(
            f"{path} is an imatrix that quantkit did not make and will not replace",
            f"to use it: quantkit gguf --imatrix {path}; else move it away",
        )
    return imatrix


def assembled(
    entries: Mapping[str, Entry], tokens: "CalibrationTokens", datasets: Iterable[str], origin: Origin
) -> Imatrix:
    """An imatrix of sums over calibration tokens; its chunks are the samples."""
    samples, length = tokens.ids.shape
    return Imatrix(entries, tuple(datasets), samples, length, metadata=origin.metadata())


def imatrix_metadata(imatrix: Imatrix, file_name: str) -> dict[str, Value]:
    """What a GGUF file says of the imatrix that it was made with: llama-quantize's keys, and the text's sha256.

    Args:
        imatrix: of any tool.
        file_name: of the imatrix, without its folder.
    """
    told = {f"{IN_GGUF}file": Value("string", file_name)}
    if imatrix.datasets:
        told[f"{IN_GGUF}dataset"] = Value("string", ", ".join(imatrix.datasets))
    told[f"{IN_GGUF}entries_count"] = Value("uint32", len(imatrix.entries))
    if imatrix.chunk_count:
        told[f"{IN_GGUF}chunks_count"] = Value("uint32", imatrix.chunk_count)
    if CALIBRATION in imatrix.metadata:
        told[f"{IN_GGUF}calibration_sha256"] = imatrix.metadata[CALIBRATION]
    return told


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
