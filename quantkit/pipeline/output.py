"""The artifact's folder: shards filled linear by linear and read back, small files last."""

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from quantkit.dtypes import DTYPES
from quantkit.errors import BadInputError, QuantkitError
from quantkit.formats import gptq as gptq_format
from quantkit.hub.repository import small_files
from quantkit.pipeline.layerwise import read_finite
from quantkit.plan.rows import Plan, Row
from quantkit.tensors import QuantizedWeight, TensorInfo, TensorSource
from quantkit.vocab.files import is_tokenizer_file
from quantkit.weights.files import copy_file, write_file
from quantkit.weights.local import read_range
from quantkit.weights.shards import ShardWriter, index_json, is_finished, is_resumable
from quantkit.weights.source import Checkpoint

NOT_COPIED = ("config.json", "README.md")  # what the artifact has of its own
SINGLE_FILE = "model.safetensors"


class ArtifactWriter:
    """Puts each tensor of the plan at its place and compares what the disk holds.

    Args:
        plan: rows and shards.
        folder: the output folder.
        finished_layers: layers that an earlier run has completed, from layers.jsonl.
        beside: tensors outside of the layers that it has written, from there too.

    Attributes:
        intact_layers: how many of these still have their bytes.
    """

    def __init__(self, plan: Plan, folder: Path, finished_layers: int, beside: Collection[str] = ()) -> None:
        self._folder, self._plan = folder, plan
        self._rows = {row.name: row for row in plan.rows}
        self._outer = [row.name for row in plan.rows if row.layer is None and row.action == "keep"]
        self._writers: dict[str, ShardWriter] = {}
        self._whole = {name for name, infos in plan.shards.items() if is_finished(folder, name, infos)}
        lost = {
            name
            for name, infos in plan.shards.items()
            if name not in self._whole and not is_resumable(folder, name, infos)
        }
        touched = [row.layer for row in plan.rows if row.layer is not None and _files(row) & lost]
        self.intact_layers = min([finished_layers, *touched])
        self._done = {
            info.name
            for row in plan.rows
            if not _files(row) & lost and (row.name in beside if row.layer is None else row.layer < self.intact_layers)
            for info in row.outputs
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for writer in self._writers.values():
            writer.close()

    def beside(self) -> list[str]:
        """Tensors outside of the layers that are on the disk."""
        return [name for name in self._outer if not self.lacks(name)]

    def lacks(self, name: str) -> bool:
        """Whether a kept tensor is still to be written."""
        info = self._rows[name].outputs[0]
        return info.file not in self._whole and name not in self._done

    def copy(self, source: TensorSource, names: Iterable[str]) -> None:
        """Copy kept tensors that the artifact lacks."""
        lacking = [name for name in names if self.lacks(name)]
        for name in lacking:
            self.write_kept(name, read_finite(source, name))
            self._done.add(name)
        if lacking:
            self._sync()

    def write_kept(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Write a tensor that stays as it is, in the artifact's dtype; nothing for a quantized one.

        Returns:
            The tensor as the artifact has it.

        Raises:
            BadInputError: a value that the artifact's dtype cannot hold.
        """
        row = self._rows[name]
        if row.action != "keep":
            return tensor
        info = row.outputs[0]
        cast = tensor.to(DTYPES[info.dtype])
        if cast.is_floating_point() and cast.dtype != tensor.dtype and not torch.isfinite(cast).all():
            raise BadInputError(f"tensor {name} has values that are not finite in {info.dtype}", "use --dtype bfloat16")
        self._put(info, cast)
        return cast

    def read_kept(self, name: str) -> torch.Tensor:
        """A written tensor that stays as it is, in the artifact's dtype."""
        return self._read(self._rows[name].outputs[0])

    def write_linear(self, name: str, weight: QuantizedWeight) -> None:
        """Pack a linear, write it, read it back and compare it with the codes that were computed.

        Raises:
            QuantkitError: the disk gives back something else.
        """
        row = self._rows[name + ".weight"]
        stored_as = gptq_format.checkpoint_format(weight.grid)
        packed = gptq_format.encode(weight, stored_as)
        for suffix, tensor in packed.items():
            self._put(_output(row, f"{name}.{suffix}"), tensor)
        read = {suffix: self._read(_output(row, f"{name}.{suffix}")) for suffix in packed}
        try:
            gptq_format.verify(weight, read, stored_as)
        except QuantkitError as error:
            raise QuantkitError(f"{name} reads back differently: {error}", "check the disk") from error

    def read_linear(self, name: str) -> QuantizedWeight:
        """A finished linear from the artifact's bytes."""
        row = self._rows[name + ".weight"]
        assert row.grid is not None
        read = {info.name.rpartition(".")[2]: self._read(info) for info in row.outputs}
        stored_as = gptq_format.checkpoint_format(row.grid)
        return gptq_format.decode(**read, bits=row.grid.bits, checkpoint_format=stored_as)

    def sync(self, layer: int) -> None:
        """Return when a layer is on the disk; shards that are complete get their final names."""
        self._done |= {info.name for row in self._plan.rows if row.layer == layer for info in row.outputs}
        self._sync()

    def finish_shards(self) -> None:
        """Give every complete shard its final name."""
        for name in self._plan.shards:
            if name not in self._whole:
                self._writer(name).finish()
                self._writers.pop(name).close()
                self._whole.add(name)

    def _put(self, info: TensorInfo, tensor: torch.Tensor) -> None:
        if info.file in self._whole:  # an earlier run ended between this shard's rename and its own record
            return
        self._writer(info.file).write(info.name, tensor)

    def _read(self, info: TensorInfo) -> torch.Tensor:
        if info.file in self._whole:
            return read_range(self._folder / info.file, self._placed(info))
        return self._writer(info.file).read_back(info.name)

    def _placed(self, info: TensorInfo) -> TensorInfo:
        from quantkit.weights.header import read_header

        return read_header(self._folder / info.file)[info.name]

    def _writer(self, name: str) -> ShardWriter:
        if name not in self._writers:
            writer = ShardWriter.reopen(self._folder, name, self._plan.shards[name])
            if writer.resumed:
                writer.mark_written(self._done & set(writer.infos))
            self._writers[name] = writer
        return self._writers[name]

    def _sync(self) -> None:
        for name, writer in list(self._writers.items()):
            if writer.missing:
                writer.sync()
            else:
                writer.finish()
                self._writers.pop(name)
                self._whole.add(name)


def is_whole(checkpoint: Checkpoint, plan: Plan, output: Path, tokenizer: Mapping[str, bytes]) -> bool:
    """Whether a finished artifact still has all its files."""
    small = ["quantize_config.json", *tokenizer, *_side_files(checkpoint)]
    shards = all(is_finished(output, name, infos) for name, infos in plan.shards.items())
    return shards and all((output / name).is_file() for name in small)


def copy_side_files(checkpoint: Checkpoint, output: Path, tokenizer: Mapping[str, bytes]) -> None:
    """The tokenizer's files as given; generation configuration and licence files byte for byte."""
    for name, raw in tokenizer.items():
        write_file(output / name, raw)
    for name in _side_files(checkpoint):
        copy_file(checkpoint.folder / name, output / name)


def write_descriptions(output: Path, plan: Plan, quantization: Mapping[str, Any]) -> None:
    """The index (of several shards) and quantize_config.json."""
    if list(plan.shards) != [SINGLE_FILE]:
        index = index_json(info for infos in plan.shards.values() for info in infos)
        write_file(output / "model.safetensors.index.json", index)
    write_file(output / "quantize_config.json", _json(quantization))


def config_text(config: Mapping[str, Any], quantization: Mapping[str, Any]) -> bytes:
    """config.json, which is written as the very last file: what has it is whole."""
    return _json({**config, "quantization_config": quantization})


def _side_files(checkpoint: Checkpoint) -> list[str]:
    names = small_files(checkpoint.files)
    return [name for name in names if "/" not in name and name not in NOT_COPIED and not is_tokenizer_file(name)]


def _json(data: Mapping[str, Any]) -> bytes:
    return json.dumps(data, indent=2, ensure_ascii=False).encode() + b"\n"


def _files(row: Row) -> set[str]:
    return {info.file for info in row.outputs}


def _output(row: Row, name: str) -> TensorInfo:
    return next(info for info in row.outputs if info.name == name)
