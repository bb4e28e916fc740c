"""What the tests of importance matrices share: sums taken in another way, and passes counted."""

from collections.abc import Mapping
from types import ModuleType

import numpy as np
import pytest
import torch

from quantkit.pipeline.imatrix import collect
from quantkit.progress import Silent
from quantkit.skeleton import Skeleton
from quantkit.weights.imatrix import Entry


def collected(planned, ids, progress=None):
    skeleton = Skeleton(planned.family, planned.config)
    return collect(skeleton, planned.source, planned.rows, ids, progress or Silent())


def hooked(model: torch.nn.Module, ids: torch.Tensor) -> dict[str, np.ndarray]:
    """Sums at the input of every linear of a plain model, by the linear's name."""
    sums: dict[str, np.ndarray] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(
                lambda _module, inputs, name=name: sums.update(
                    {name: inputs[0].double().square().flatten(0, -2).sum(0).numpy()}
                )
            )
    with torch.no_grad():
        model(ids)
    return sums


def same(entries: Mapping[str, Entry], sums: dict[str, np.ndarray], rows, tokens: int, rel: float) -> None:
    """Every entry is that of the linears that its weight is made of."""
    sources = {row.name: [source.removesuffix(".weight") for source in row.assembly.sources] for row in rows}
    for name, entry in entries.items():
        assert entry.sums.shape == (1, entry.sums.size)
        assert entry.counts.tolist() == [tokens]
        for linear in sources[name]:
            np.testing.assert_allclose(entry.sums[0], sums[linear], rtol=rel, atol=rel * sums[linear].mean())


def counted_passes(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> list[int]:
    """Collects the number of tokens of every forward pass that the module asks for."""
    counted: list[int] = []

    def counting(skeleton, source, rows, ids, progress):
        counted.append(ids.numel())
        return collect(skeleton, source, rows, ids, progress)

    monkeypatch.setattr(module, "collect", counting)
    return counted
