"""An importance matrix from a streamed forward pass: at the input of every linear the sums of squares, by column."""

import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch

from quantkit.devices import release_memory
from quantkit.errors import BadInputError, UsageError
from quantkit.families.family import Family
from quantkit.families.gguf_experts import CONVERTED_ONLY
from quantkit.pipeline.layerwise import batches, read_finite
from quantkit.plan.gguf_rows import GgufRow
from quantkit.plan.imatrix_budget import SLAB_TOKENS
from quantkit.plan.rows import layer_of
from quantkit.progress import Progress
from quantkit.skeleton import LayerCall, Skeleton
from quantkit.tensors import TensorSource
from quantkit.weights.imatrix import Entry


def weight_inputs(family: Family, rows: Iterable[GgufRow]) -> dict[str, str]:
    """The weights of a GGUF file that an imatrix has entries of, as llama-imatrix has by default.

    Args:
        family: its stages share inputs.
        rows: of the GGUF file.

    Returns:
        Name of the weight -> full name of the first linear of the stage whose input it is multiplied with.
    """
    first_of = {name: stage[0] for stage in family.stages for name in stage}
    found: dict[str, str] = {}
    for row in rows:
        for source in row.assembly.sources:
            prefix = f"{family.layers}.{layer_of(family, source)}."
            first = first_of.get(source.removeprefix(prefix).removesuffix(".weight"))
            if first is None or not source.endswith(".weight"):
                break
            if found.setdefault(row.name, prefix + first) != prefix + first:
                raise ValueError(f"{row.name} is made of linears with different inputs")
    return found


def check_forward(family: Family) -> None:
    """Refuse models that can be converted, but not computed.

    Raises:
        UsageError: a mixture of experts.
    """
    if family in CONVERTED_ONLY:
        raise UsageError(
            f"--imatrix auto needs a forward pass, which quantkit does not compute for {family.name}",
            "give a file that llama-imatrix made: --imatrix FILE",
        )


@torch.no_grad()
def collect(
    skeleton: Skeleton, source: TensorSource, rows: Sequence[GgufRow], token_ids: torch.Tensor, progress: Progress
) -> dict[str, Entry]:
    """Run calibration tokens through a model, one decoder layer in memory, and sum up the squares of its inputs.

    Args:
        skeleton: the empty model.
        source: its weights.
        rows: of the GGUF file that the imatrix is for.
        token_ids: [samples, sequence] int64, unpadded.
        progress: told of each layer.

    Returns:
        Entries by the names of weights in GGUF files; weights that share an input share their arrays.

    Raises:
        UsageError: a mixture of experts.
        BadInputError: a weight or an activation that is not finite.
    """
    check_forward(skeleton.family)
    inputs = weight_inputs(skeleton.family, rows)
    front = skeleton.front_names()
    _fill(skeleton, source, front)
    hidden, calls = skeleton.embed(token_ids)
    skeleton.empty(front)
    release_memory()
    entries: dict[str, Entry] = {}
    count = len(skeleton.layers)
    progress.start(count, 0)
    try:
        for index in range(count):
            started = time.perf_counter()
            names = skeleton.layer_names(index)
            _fill(skeleton, source, names)
            entries |= _through_layer(skeleton, index, hidden, calls[index])
            skeleton.empty(names)
            release_memory()
            progress.layer(index, time.perf_counter() - started)
    finally:
        progress.stop()
    return {name: entries[linear] for name, linear in inputs.items()}


def reads(skeleton: Skeleton) -> list[str]:
    """Every tensor that `collect` reads, in order."""
    layers = (skeleton.layer_names(index) for index in range(len(skeleton.layers)))
    return [*skeleton.front_names(), *(name for names in layers for name in names)]


class SquareSums:
    """Sums of x^2 over the inputs x of one stage.

    Args:
        in_features: length of an input.
    """

    def __init__(self, in_features: int) -> None:
        self.sums = torch.zeros(in_features, dtype=torch.float64)
        self.count = 0

    def add(self, inputs: torch.Tensor) -> None:
        """Add activations [..., in_features] of any float dtype and device."""
        x = inputs.reshape(-1, inputs.shape[-1])
        self.count += len(x)
        # Slabs stay in a cache, and few float32 values are added before float64 takes over.
        slab = torch.empty(min(SLAB_TOKENS, len(x)), x.shape[1], dtype=torch.float32, device=x.device)
        partial = []
        for part in torch.split(x, SLAB_TOKENS):
            squares = slab[: len(part)].copy_(part)
            partial.append(squares.mul_(squares).sum(0))
        self.sums += torch.stack(partial).cpu().double().sum(0)

    def finish(self, name: str) -> Entry:
        """What an imatrix has of them.

        Raises:
            BadInputError: they are not finite.
        """
        sums = self.sums.float()
        if wrong := int((~torch.isfinite(sums)).sum()):
            raise BadInputError(f"the input of {name} is NaN or infinite in {wrong} of {len(sums)} columns")
        return Entry(sums.numpy()[None], np.array([self.count], np.float32))


def _fill(skeleton: Skeleton, source: TensorSource, names: Iterable[str]) -> None:
    for name in names:  # one by one: beside the filled ones only one is there as it is stored
        skeleton.fill({name: read_finite(source, name)})


def _through_layer(skeleton: Skeleton, index: int, hidden: torch.Tensor, call: LayerCall) -> dict[str, Entry]:
    """Carry hidden states through a filled layer, in place, and sum up its inputs on the way, by first linears."""
    gathered: dict[str, SquareSums] = {}
    with ExitStack() as stack:
        for stage in skeleton.family.stages:
            name = f"{skeleton.family.layers}.{index}.{stage[0]}"
            linear: Any = skeleton.model.get_submodule(name)
            sums = gathered[name] = SquareSums(linear.in_features)

            def note(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], sums: SquareSums = sums) -> None:
                sums.add(inputs[0])

            stack.callback(linear.register_forward_pre_hook(note).remove)
        for _, part in batches(hidden):
            part.copy_(skeleton.run_layer(index, part.to(skeleton.device), call))
    return {name: sums.finish(name) for name, sums in gathered.items()}
