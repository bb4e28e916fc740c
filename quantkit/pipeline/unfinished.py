"""An artifact that is still being written, as a source: what it will compute, layer by layer."""

from collections.abc import Mapping

import torch

from quantkit.pipeline.output import ArtifactWriter
from quantkit.plan.rows import Plan
from quantkit.tensors import TensorInfo, TensorSource


class UnfinishedArtifact:
    """A `TensorSource` over what an `ArtifactWriter` has written so far, by the names of the source.

    Args:
        plan: which tensors are quantized, and which kept.
        writer: what holds them.
    """

    def __init__(self, plan: Plan, writer: ArtifactWriter) -> None:
        self._rows = {row.name: row for row in plan.rows if row.action != "drop"}
        self._writer = writer

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        """Every tensor as the source has it."""
        return {name: row.source for name, row in self._rows.items()}

    def read(self, name: str) -> torch.Tensor:
        """What was written: float16 where it is quantized, as `DequantizedSource` has it, else as it is stored."""
        if self._rows[name].action == "keep":
            return self._writer.read_kept(name)
        return self._writer.read_linear(name.removesuffix(".weight")).dequantize(torch.float16)

    def close(self) -> None:
        """Nothing to do."""


class Sixteen:
    """The source beside its artifact: layers from the one, what lies outside of them from the other.

    An artifact keeps embedding, norms and head in 16 bits; where the source has them so, they are the very same, and
    its shard is not needed a second time.

    Args:
        layers: of the decoder layers.
        beside: of everything else.
        prefix: of the names of what is in the decoder layers.
    """

    def __init__(self, layers: TensorSource, beside: TensorSource, prefix: str) -> None:
        self._layers, self._beside, self._prefix = layers, beside, prefix

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        """Every tensor as the source has it."""
        return self._beside.infos

    def read(self, name: str) -> torch.Tensor:
        """The tensor."""
        return (self._layers if name.startswith(self._prefix) else self._beside).read(name)

    def close(self) -> None:
        """Nothing to do."""
