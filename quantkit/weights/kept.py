"""A source that keeps what it has read, for those who read everything many times."""

from collections.abc import Mapping

import torch

from quantkit.tensors import TensorInfo, TensorSource


class KeptSource:
    """Tensors, once read, stay on the device while the allowance lasts.

    Layers are read in a cycle, so what is kept are the first that fit: to replace the oldest would always
    drop the one that is needed next. They are kept in float32 if all of them fit so, else in their own dtype.

    Args:
        source: what is read.
        allowance: bytes.
        device: where the tensors will be needed.
    """

    def __init__(self, source: TensorSource, allowance: int, device: torch.device) -> None:
        self._source, self._left, self._device = source, allowance, device
        whole = sum(4 * info.elements for info in source.infos.values())
        self._dtype = torch.float32 if whole <= allowance else None
        self._kept: dict[str, torch.Tensor] = {}

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        """Those of the source."""
        return self._source.infos

    def read(self, name: str) -> torch.Tensor:
        """The tensor, perhaps wider than it is stored; it is not to be changed."""
        if name in self._kept:
            return self._kept[name]
        tensor = self._source.read(name).to(device=self._device, dtype=self._dtype)
        if tensor.nbytes <= self._left:
            self._left -= tensor.nbytes
            self._kept[name] = tensor
        return tensor
