"""One artifact on its way through the layers: activations that advance, linears that are quantized and written."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from quantkit.calibration import CalibrationTokens
from quantkit.devices import release_memory
from quantkit.errors import OutOfMemoryError, is_out_of_memory
from quantkit.methods import gptq
from quantkit.pipeline.costs import Meter
from quantkit.pipeline.gptq_imatrix import GptqImatrix
from quantkit.pipeline.job import Job
from quantkit.pipeline.layerwise import (
    QuantizedLinear,
    advance,
    quantize_with_data,
    quantize_without_data,
    read_layer,
)
from quantkit.pipeline.memo import Memo
from quantkit.pipeline.output import ArtifactWriter
from quantkit.plan.order import places_beside
from quantkit.progress import Progress
from quantkit.rundir import RunFolder
from quantkit.skeleton import LayerCall
from quantkit.tensors import TensorSource


class GptqPass:
    """What a pass over the layers makes of one job: `begin`, every `layer` in order, `end`.

    Layers that an earlier run has finished are replayed from the artifact's own bytes; of the source nothing is read
    for them. What a layer keeps in 16 bits is computed with as the artifact has it, so that a replay is exact.

    Args:
        job: what is made.
        tokens: the calibration set; None for a method without data.
        folder: which layers are finished.
        writer: the artifact's files.
        memo: memory for what a layer has computed, which several passes may share.
        meter: told to read what each layer cost.
        progress: told of linears.
        importance: told of linears.
    """

    def __init__(
        self,
        job: Job,
        tokens: CalibrationTokens | None,
        folder: RunFolder,
        writer: ArtifactWriter,
        memo: Memo,
        meter: Meter,
        progress: Progress,
        importance: GptqImatrix | None = None,
    ) -> None:
        self.job, self.folder, self.writer = job, folder, writer
        self._tokens, self._memo, self._meter = tokens, memo, meter
        self._progress, self._importance = progress, importance
        self._source: TensorSource = job.checkpoint.source
        self._embedding = f"{job.family.embedding}.weight"
        self._places = places_beside(job.plan, self._embedding)
        self._hidden, self._calls = torch.empty(0), [LayerCall((), {})] * len(job.plan.layers)

    @property
    def count(self) -> int:
        """Layers of the model."""
        return len(self.job.plan.layers)

    def reads(self) -> tuple[Mapping[int, tuple[str, ...]], Mapping[int, list[str]]]:
        """What will still be read of the source: tensors copied before each layer, and each layer's own."""
        places = {
            index: tuple(name for name in names if self.writer.lacks(name)) for index, names in self._places.items()
        }
        left = range(self.folder.finished_layers, self.count)
        return places, {index: self.job.skeleton.layer_names(index) for index in left}

    def begin(self) -> None:
        """Write the embedding and carry the calibration set through it."""
        self.writer.copy(self._source, self._places[0][:1])
        if self._tokens is None or self.folder.finished_layers == self.count:
            return
        skeleton = self.job.skeleton
        skeleton.fill({self._embedding: self.writer.read_kept(self._embedding)})
        self._hidden, self._calls = skeleton.embed(self._tokens.ids)
        skeleton.empty([self._embedding])
        release_memory()

    def layer(self, index: int) -> bool:
        """Quantize a layer, or replay it where an earlier run has finished it.

        Returns:
            Whether it was quantized.

        Raises:
            QuantkitError: input, disk or memory fail. Finished layers are kept.
        """
        self.writer.copy(self._source, self._places.get(index, ()))
        with _memory_for(index):
            if index < self.folder.finished_layers:
                if self._tokens is not None and self.folder.finished_layers < self.count:
                    self._replay(index)
                return False
            for linear in self._quantize(index):
                self.writer.write_linear(linear.name, linear.weight)
                self.folder.record_linear(linear.record)
                self._progress.linear(linear.record)
                if self._importance:
                    self._importance.note(linear)
            skeleton = self.job.skeleton
            if self._tokens is not None:
                if index + 1 < self.count:
                    advance(skeleton, index, self._hidden, self._calls[index], self._memo)
                skeleton.empty(skeleton.layer_names(index))
            self.writer.sync(index)
            self.folder.record_finished(index, self._meter.read(), self.writer.beside())
            release_memory()
        return True

    def end(self) -> None:
        """Copy what lies behind the layers."""
        self.writer.copy(self._source, self._places.get(self.count, ()))
        self._hidden = torch.empty(0)

    def _quantize(self, index: int) -> Iterator[QuantizedLinear]:
        job, skeleton = self.job, self.job.skeleton
        stages, recipe = job.plan.layers[index], job.recipe
        tensors = read_layer(self._source, skeleton.layer_names(index))
        for name in tensors:
            tensors[name] = self.writer.write_kept(name, tensors[name])
        if recipe.method == "rtn":
            yield from quantize_without_data(stages, tensors, recipe.scales, job.device.device)
            return
        skeleton.fill(tensors)
        settings = gptq.Settings(recipe.act_order, recipe.damp_percent, recipe.scales)
        call = self._calls[index]
        yield from quantize_with_data(skeleton, stages, tensors, self._hidden, call, settings, self._memo)

    def _replay(self, index: int) -> None:
        """Carry the activations through a finished layer, from the artifact's own bytes."""
        job, skeleton = self.job, self.job.skeleton
        names = skeleton.layer_names(index)
        quantized = {name + ".weight" for stage in job.plan.layers[index] if stage.grid for name in stage.linears}
        for name in names:
            if name in quantized:
                weight = self.writer.read_linear(name.removesuffix(".weight")).dequantize(skeleton.dtype)
            else:
                weight = self.writer.read_kept(name)
            skeleton.fill({name: weight})
        if index + 1 < self.count:
            advance(skeleton, index, self._hidden, self._calls[index], Memo(job.family, ()))
        skeleton.empty(names)
        release_memory()


@contextmanager
def _memory_for(layer: int) -> Iterator[None]:
    """Name the layer for which memory did not do."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            f"out of memory in layer {layer}: {str(error).partition(chr(10))[0] or 'no reason given'}",
            "finished layers are kept: free memory and give the same command again; or lower --samples and --restart",
        ) from error
