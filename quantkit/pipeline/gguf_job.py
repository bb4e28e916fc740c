"""A conversion prepared: every GGUF file with its tensors, types and bytes, before a weight is read."""

import os
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quantkit.errors import UsageError
from quantkit.formats.ggml.encode import can_encode
from quantkit.formats.ggml.native import NATIVE_TYPES, require_ggml
from quantkit.formats.mixture_tables import FTYPES
from quantkit.formats.mixtures import Override, assign, ftype_named, parse_override, refuse_without_importance
from quantkit.pipeline.disk import is_streamed, missing_bytes, refuse_full_disk
from quantkit.pipeline.gguf_model import GgufModel
from quantkit.plan.gguf_budget import GgufBudget, gguf_budget
from quantkit.plan.runtime import machine_table
from quantkit.plan.target_size import best_fitting, candidates
from quantkit.units import parse_bytes
from quantkit.weights.gguf_layout import Part, split_plan
from quantkit.weights.gguf_types import GGML_TYPES, Value
from quantkit.weights.streamed import SHARD_FOLDER, streamed_bytes

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class GgufOptions:
    """What the user asks for."""

    types: tuple[str, ...] = ()  # file types, in any case
    target_size: str | None = None  # in place of a type
    overrides: tuple[str, ...] = ()  # REGEX=TYPE
    pre: str | None = None  # llama.cpp's pre-tokenizer; None: found by its regular expressions
    split_max_size: str | None = None
    out: Path | None = None  # a folder, or the .gguf file
    threads: int | None = None  # None: as many as there are cores


@dataclass(frozen=True)
class Output:
    """One GGUF model: a file, or as many as its tensors are split over."""

    ftype: str
    types: tuple[str, ...]  # of every row
    parts: tuple[Part, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all its files."""
        return sum(part.header.total_bytes for part in self.parts)

    @property
    def files(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(part.file_name for part in self.parts)

    @property
    def stem(self) -> str:
        """The first file's name without its ending."""
        return self.files[0].removesuffix(".gguf")


@dataclass(frozen=True)
class GgufJob:
    """What `prepare` found; `pipeline.gguf.run` executes it."""

    model: GgufModel
    options: GgufOptions
    outputs: tuple[Output, ...]
    folder: Path
    threads: int
    budget: GgufBudget
    notes: tuple[str, ...]
    streamed: bool = False  # shards of a repository come and go instead of being downloaded first

    def bits_per_weight(self, output: Output) -> float:
        """File bits of the quantized tensors over their weights, scales included."""
        bits = weights = 0
        for row, chosen in zip(self.model.rows, output.types, strict=True):
            if len(row.shape) > 1:
                count = row.assembly.rows * row.assembly.columns
                bits += 8 * count // GGML_TYPES[chosen].block * GGML_TYPES[chosen].block_bytes
                weights += count
        return bits / weights

    def as_dict(self, context: int) -> dict[str, Any]:
        """The plan for --json; `context` is the KV cache's, in tokens."""
        checkpoint = self.model.checkpoint
        return {
            "schema_version": SCHEMA_VERSION,
            "source": {"reference": checkpoint.reference, "commit": checkpoint.commit},
            "architecture": checkpoint.config["architectures"][0],
            "gguf_architecture": self.model.gguf.architecture,
            "vocabulary": {"model": self.model.told.vocabulary.kind, "pre": self.model.told.vocabulary.pre},
            "folder": str(self.folder),
            "threads": self.threads,
            "streamed": self.streamed,
            "budget": asdict(self.budget),
            "context": context,
            "outputs": [self._output(output, context) for output in self.outputs],
            "notes": list(self.notes),
        }

    def _output(self, output: Output, context: int) -> dict[str, Any]:
        return {
            "type": output.ftype,
            "files": {part.file_name: part.header.total_bytes for part in output.parts},
            "bytes": output.nbytes,
            "bits_per_weight": round(self.bits_per_weight(output), 4),
            "tensors": dict(Counter(output.types)),
            "machines": machine_table(self.model.sizes(), output.nbytes, context),
        }


def prepare(
    model: GgufModel,
    options: GgufOptions,
    important: Collection[str] | None = None,
    keys: Mapping[str, Value] | None = None,
    stream: bool | None = None,
) -> GgufJob:
    """Plan GGUF files.

    Args:
        model: what is the same in all of them.
        options: what to make.
        important: tensors of whose columns an importance matrix tells; None without one.
        keys: what the files say about that matrix.
        stream: let the shards of a repository come and go; None: where the disk does not hold them all.

    Raises:
        UsageError: types that there are not, that need an importance matrix or ggml, or that do not fit; a folder
            that is to be streamed.
    """
    overrides = tuple(parse_override(text) for text in options.overrides)
    types = tuple(dict.fromkeys(ftype_named(text) for text in options.types))
    if bool(types) == bool(options.target_size):
        raise UsageError("gguf needs either --type or --target-size", "such as --type Q4_K_M")
    told = keys or {}
    if options.target_size:
        types = (_best(model, options.target_size, overrides, important, told),)
    folder, stem = _place(options, model, len(types))
    limit = parse_bytes(options.split_max_size) if options.split_max_size else None
    outputs = tuple(
        _output(model, ftype, overrides, important, told, stem or _stem(model, ftype), limit) for ftype in types
    )
    threads = options.threads or _cores()
    written = sum(output.nbytes for output in outputs)
    streams = is_streamed(model.checkpoint, folder, written, stream)
    budget = gguf_budget(
        model.rows, [output.types for output in outputs], written,
        sum(info.nbytes for info in model.told.infos.values()), model.is_dequantized,
        model.checkpoint.download_bytes, threads, model.base_bytes, important is not None,
        streamed_bytes(model.checkpoint) if streams else None,
    )  # fmt: skip
    notes = (*model.notes, *_fallbacks(model, outputs))
    return GgufJob(model, options, outputs, folder, threads, budget, notes, streams)


def preflight(job: GgufJob, done: int = 0) -> None:
    """Refuse a job for which the disk will not do; `done` bytes of its files are there already.

    Raises:
        DiskError: less free disk than the files and the download take, or the shards that are here at a time.
    """
    checkpoint, written = job.model.checkpoint, sum(output.nbytes for output in job.outputs) - done
    fetched = job.budget.disk_bytes - sum(output.nbytes for output in job.outputs)
    if job.streamed:
        here = (job.folder / SHARD_FOLDER).glob("*/*")
        fetched = max(0, fetched - sum(path.stat().st_size for path in here))
    where = job.folder if job.streamed else checkpoint.folder
    if missing_bytes([(job.folder, written), (where, fetched)]):
        way = "give --stream, " if checkpoint.download_bytes and not job.streamed else ""
        hint = f"{way}choose another --out, or smaller types"
        refuse_full_disk(job.folder, written + fetched, hint)
        refuse_full_disk(where, fetched, hint)


def _output(
    model: GgufModel, ftype: str, overrides: tuple[Override, ...], important: Collection[str] | None,
    keys: Mapping[str, Value], stem: str, limit: int | None,
) -> Output:  # fmt: skip
    shape: dict[str, Any] = asdict(model.shape())
    types = assign(model.rows, ftype, **shape, has_importance=important is not None, overrides=overrides)
    refuse_without_importance(model.rows, types, ftype, important or ())
    for name in sorted(set(types) & set(NATIVE_TYPES)):
        require_ggml(name)
    stated = [(row.name, row.shape, chosen) for row, chosen in zip(model.rows, types, strict=True)]
    return Output(ftype, types, split_plan(stem, model.metadata(ftype, keys), stated, limit))


def _best(
    model: GgufModel, target: str, overrides: tuple[Override, ...], important: Collection[str] | None,
    keys: Mapping[str, Value],
) -> str:  # fmt: skip
    stated = [(row.name, row.shape, "F32") for row in model.rows]
    header = split_plan("header", model.metadata("Q4_K_M", keys), stated)[0].header.raw
    possible = candidates(
        model.rows, model.shape(), header_bytes=len(header), encodable=_encodable(), important=important,
        overrides=overrides,
    )  # fmt: skip
    return best_fitting(target, possible).ftype


def _encodable() -> set[str]:
    """The ggml types that can be made here."""
    found = {name for name in GGML_TYPES if can_encode(name)}
    try:
        require_ggml(NATIVE_TYPES[0])
    except UsageError:
        found -= set(NATIVE_TYPES)
    return found


def _place(options: GgufOptions, model: GgufModel, count: int) -> tuple[Path, str | None]:
    """The folder of the files, and the stem where the user names the file."""
    out = options.out
    if out is None:
        return Path(f"{model.naming.stem}-GGUF"), None
    if out.suffix != ".gguf":
        return out, None
    if count > 1:
        raise UsageError(f"--out {out} names one file for {count} types", "name a folder")
    return out.parent, out.name.removesuffix(".gguf")


def _stem(model: GgufModel, ftype: str) -> str:
    return model.naming.file_name(ftype).removesuffix(".gguf")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _fallbacks(model: GgufModel, outputs: tuple[Output, ...]) -> list[str]:
    """Tensors that cannot have the type of the mixture, as their rows are not whole blocks of it."""
    notes = []
    for output in outputs:
        block = GGML_TYPES[FTYPES[output.ftype].default].block
        odd = Counter(
            f"{chosen}: rows of {row.shape[-1]} weights are no multiple of {block}"
            for row, chosen in zip(model.rows, output.types, strict=True)
            if len(row.shape) > 1 and chosen != "F32" and row.shape[-1] % block
        )
        notes += [f"{output.ftype}: {count} tensors become {reason}" for reason, count in odd.items()]
    return notes
