"""A baseline or an artifact opened for a check: its tensors by the family's names, and what it is."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.checkfile import BOUND, bound_files, home_of
from quantkit.checkpoint import open_checkpoint
from quantkit.errors import BadInputError
from quantkit.families.family import Family
from quantkit.families.gguf_lookup import gguf_row
from quantkit.families.lookup import artifact_config, family_of
from quantkit.formats.gguf_label import nominal_bits, type_label
from quantkit.formats.gptq_source import DequantizedSource
from quantkit.gguf_source import GgufSource
from quantkit.hub.repository import needed_files
from quantkit.pipeline.disk import is_streamed, refuse_full_disk
from quantkit.pipeline.job import check_tensors
from quantkit.skeleton import Skeleton
from quantkit.tensors import TensorInfo, TensorSource
from quantkit.weights.gguf_names import find_gguf, gguf_stem
from quantkit.weights.hashes import file_hashes
from quantkit.weights.source import Checkpoint
from quantkit.weights.streamed import streamed, streamed_bytes

TOKENS, IMATRIX_TEXT = "tokenizer.ggml.tokens", "quantize.imatrix.dataset"  # in GGUF files
# Keys of config.json that change nothing about what a model computes.
IDLE_KEYS = (
    "_name_or_path", "architectures", "auto_map", "dtype", "model_type", "quantization_config", "torch_dtype",
    "transformers_version", "use_cache",
)  # fmt: skip


@dataclass(frozen=True)
class WeightSet:
    """One of the weight sets that a check compares."""

    name: str
    path: Path  # its folder, or its GGUF file
    source: TensorSource  # tensors by the family's names, in 16 bits or float32
    label: str  # `GPTQ 4 bits, group 128`, `Q4_K_M`
    bits: int | None  # per code; None: not quantized
    bits_per_weight: float  # of the layers' linears, scales included
    weight_bytes: int  # all tensors as stored
    run: Mapping[str, Any] | None = None  # run.json of the run that made it
    repo_id: str | None = None  # None: local
    commit: str | None = None
    calibrated_with: Sequence[str] = ()  # names of text
    vocabulary: Sequence[str] | None = None  # tokens by id, where they are stored beside the weights
    reading_bytes: int = 0  # what reading a tensor takes beside the tensor
    streamed_files: Mapping[str, tuple[str, int]] | None = None  # name -> sha256, bytes, where they are not all here

    @property
    def folder(self) -> Path:
        """Where its files lie."""
        return home_of(self.path)

    @property
    def file_bytes(self) -> int:
        """Bytes of the files that decide what it computes."""
        if self.streamed_files is not None:
            return sum(size for _, size in self.streamed_files.values())
        return sum((self.folder / name).stat().st_size for name in bound_files(self.path))

    @property
    def has_own_head(self) -> bool:
        """Whether its head is quantized and so its own: GPTQ leaves the head alone, the types of GGUF do not."""
        return self.vocabulary is not None and self.bits is not None

    def hashes(self) -> dict[str, str]:
        """sha256 of each of these files."""
        if self.streamed_files is not None:
            return {name: digest for name, (digest, _) in self.streamed_files.items()}
        return file_hashes(self.folder, bound_files(self.path))


def open_baseline(
    reference: str, shards: Path = Path(), stream: bool | None = False
) -> tuple[WeightSet, Family, dict[str, Any]]:
    """The 16-bit checkpoint that artifacts are compared with.

    Args:
        reference: a folder, or `org/name[@revision]`, which is downloaded unless it is streamed.
        shards: where a streamed one's shards will stand while they are read.
        stream: whether they come and go; None: where the disk does not hold them all.

    Returns:
        It, its family, and config.json as an artifact of it has it.

    Raises:
        QuantkitError: it cannot be opened, is quantized, or of an unknown architecture.
    """
    checkpoint = open_checkpoint(reference, headers_only=True)
    if checkpoint.config.get("quantization_config") is not None:
        raise BadInputError(
            f"the baseline {reference} is itself quantized",
            "--baseline names the 16-bit checkpoint that the artifacts were made from",
        )
    family = family_of(checkpoint.config)
    if is_streamed(checkpoint, shards, 0, stream):
        refuse_full_disk(shards, streamed_bytes(checkpoint), "free some space there: two shards must stand at a time")
        checkpoint = streamed(checkpoint, shards)
    elif checkpoint.download_bytes:
        checkpoint = open_checkpoint(f"{checkpoint.repo_id}@{checkpoint.commit}")
    return baseline_of(checkpoint, family), family, artifact_config(family, checkpoint.config)


def baseline_of(checkpoint: Checkpoint, family: Family, tied: bool = False) -> WeightSet:
    """An open 16-bit checkpoint as a weight set; of one that is streamed, its files are known from the Hub."""
    weights = weight_bytes(checkpoint.source, family, tied)
    return WeightSet(
        checkpoint_name(checkpoint), checkpoint.folder, checkpoint.source, "16 bits", None, 16.0, weights,
        repo_id=checkpoint.repo_id, commit=checkpoint.commit, streamed_files=_streamed_files(checkpoint),
    )  # fmt: skip


def _streamed_files(checkpoint: Checkpoint) -> dict[str, tuple[str, int]] | None:
    if not checkpoint.download_bytes:
        return None
    names = [name for name in needed_files(checkpoint.files) if name.endswith(BOUND)]
    hashes = file_hashes(checkpoint.folder, [name for name in names if (checkpoint.folder / name).is_file()])
    return {name: (hashes.get(name) or checkpoint.oids[name], checkpoint.files[name]) for name in sorted(names)}


def open_artifact(reference: str, family: Family, skeleton: Skeleton, infos: Mapping[str, TensorInfo]) -> WeightSet:
    """An artifact of the baseline: GPTQ, plain 16 bits, or a GGUF file.

    Args:
        reference: a folder, `org/name[@revision]`, or a GGUF file or the folder of one.
        family: the baseline's.
        skeleton: the baseline's.
        infos: the baseline's tensors.

    Raises:
        QuantkitError: it cannot be opened, or is not of the baseline's shape.
    """
    file = find_gguf(reference)
    return _open_folder(reference, family, skeleton) if file is None else _open_gguf(file, family, skeleton, infos)


def _open_gguf(path: Path, family: Family, skeleton: Skeleton, infos: Mapping[str, TensorInfo]) -> WeightSet:
    source = GgufSource(path, family, gguf_row(family), skeleton.config.to_dict(), infos)
    shapes = skeleton.linear_shapes()
    stored = sum(source.stored_bytes(f"{name}.weight") for name in shapes)
    files = source.files
    told = {key: value.value for key, value in files.metadata.items()}
    tokens, texts = told.get(TOKENS), str(told.get(IMATRIX_TEXT, ""))
    return WeightSet(
        name=gguf_stem(path),
        path=path,
        source=source,
        label=type_label(files),
        bits=nominal_bits(files),
        bits_per_weight=8 * stored / sum(rows * columns for rows, columns in shapes.values()),
        weight_bytes=sum(tensor.nbytes for tensor in files.tensors.values()),
        # No path is read that a file names.
        calibrated_with=[name for name in texts.split(", ") if name.isidentifier()],
        vocabulary=list(map(str, tokens)) if isinstance(tokens, Sequence) and not isinstance(tokens, str) else [],
        reading_bytes=source.reading_bytes,
    )


def _open_folder(reference: str, family: Family, skeleton: Skeleton) -> WeightSet:
    checkpoint = open_checkpoint(reference)
    name = checkpoint_name(checkpoint)
    _check_config(name, checkpoint.config, skeleton)
    quantized = checkpoint.config.get("quantization_config")
    stored = checkpoint.source
    source: TensorSource = DequantizedSource(stored, dict(quantized)) if isinstance(quantized, dict) else stored
    try:
        check_tensors(family, skeleton, source.infos)
    except BadInputError as error:
        raise BadInputError(f"{name}: {error}", "an artifact has the baseline's tensors") from error
    weights = weight_bytes(stored, family, skeleton.tied())
    run = _run_record(checkpoint.folder)
    bits = int(quantized["bits"]) if isinstance(quantized, dict) and "bits" in quantized else None
    per_weight = _bits_per_weight(skeleton, stored)
    return WeightSet(
        name, checkpoint.folder, source, _label(quantized), bits, per_weight, weights, run, checkpoint.repo_id,
        checkpoint.commit, _calibrated_with(run or {}),
    )  # fmt: skip


def weight_bytes(stored: TensorSource, family: Family, tied: bool) -> int:
    """Bytes of all tensors that are loaded; of a tied model's two copies of the embedding one."""
    unread = f"{family.head}.weight" if tied else ""
    return sum(info.nbytes for name, info in stored.infos.items() if name != unread)


def _check_config(name: str, config: Mapping[str, Any], skeleton: Skeleton) -> None:
    """Refuse an artifact whose configuration computes something else than the baseline's."""
    theirs = {key: value for key, value in config.items() if key not in IDLE_KEYS}
    expected = skeleton.config.to_dict()
    try:
        found = type(skeleton.config).from_dict(dict(theirs)).to_dict()
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise BadInputError(f"{name}: transformers refuses its config.json: {error}") from error
    differing = [key for key in expected if key not in IDLE_KEYS and found.get(key) != expected[key]]
    if differing:
        said = "; ".join(f"{key} is {found.get(key)!r}, the baseline's {expected[key]!r}" for key in differing[:3])
        raise BadInputError(
            f"{name} is not an artifact of this baseline: {said}", "name the checkpoint it was made from"
        )


def _bits_per_weight(skeleton: Skeleton, stored: TensorSource) -> float:
    shapes = skeleton.linear_shapes()
    size = sum(
        info.nbytes
        for name, info in stored.infos.items()
        if name.rpartition(".")[0] in shapes and not name.endswith(".bias")
    )
    return 8 * size / sum(rows * columns for rows, columns in shapes.values())


def _label(quantized: Any) -> str:  # noqa: ANN401
    if not isinstance(quantized, dict):
        return "16 bits"
    group = quantized.get("group_size")
    grouped = "per row" if group == -1 else f"group {group}"
    return f"{str(quantized.get('quant_method', 'gptq')).upper()} {quantized.get('bits')} bits, {grouped}"


def _run_record(folder: Path) -> Mapping[str, Any] | None:
    try:
        record = json.loads((folder / "run.json").read_bytes())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def _calibrated_with(run: Mapping[str, Any]) -> Sequence[str]:
    calibration = (run.get("recipe") or {}).get("calibration") or {}
    return tuple(calibration.get("text") or ()) if run.get("calibration") else ()


def checkpoint_name(checkpoint: Checkpoint) -> str:
    """What reports call it: the repository, or the folder's name."""
    return checkpoint.repo_id or Path(checkpoint.reference).expanduser().resolve().name
