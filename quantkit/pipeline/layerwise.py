"""One decoder layer quantized: its Hessians gathered stage by stage, its weights replaced as they are done."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from quantkit.devices import release_memory
from quantkit.errors import BadInputError, OutOfMemoryError
from quantkit.methods import gptq, rtn
from quantkit.methods.hessian import HessianSum
from quantkit.pipeline.memo import Memo
from quantkit.plan.budget import BATCH_TOKENS
from quantkit.plan.rows import Stage
from quantkit.recording import InputReached, stop_at
from quantkit.skeleton import LayerCall, Skeleton
from quantkit.tensors import QuantizedWeight, TensorSource

LARGE_STAGE = 2**21  # weights of a stage from which freed memory goes back before and after the solver


@dataclass(frozen=True)
class QuantizedLinear:
    """A finished linear and its line in layers.jsonl."""

    name: str
    weight: QuantizedWeight
    record: dict[str, Any]
    mean_square: torch.Tensor | None = None  # [in_features] fp32, of its inputs; None where none were looked at


def read_layer(source: TensorSource, names: list[str]) -> dict[str, torch.Tensor]:
    """A layer's tensors as stored.

    Raises:
        BadInputError: a value that is not finite.
    """
    return {name: read_finite(source, name) for name in names}


def read_finite(source: TensorSource, name: str) -> torch.Tensor:
    """A tensor as stored.

    Raises:
        BadInputError: a value that is not finite.
    """
    tensor = source.read(name)
    seen = tensor.float() if tensor.dtype == torch.float64 else tensor  # what is computed with
    # A sum is one pass without a mask; only where it is not finite are the values looked at.
    if tensor.is_floating_point() and not torch.isfinite(seen.sum(dtype=torch.float64)):
        wrong = int((~torch.isfinite(seen)).sum())
        if wrong:
            raise BadInputError(f"tensor {name} has {wrong} values that are NaN or infinite")
    return tensor


def quantize_with_data(
    skeleton: Skeleton,
    stages: tuple[Stage, ...],
    tensors: dict[str, torch.Tensor],
    hidden: torch.Tensor,
    call: LayerCall,
    settings: gptq.Settings,
    memo: Memo,
) -> Iterator[QuantizedLinear]:
    """GPTQ in true-sequential order: each stage sees the stages before it already quantized.

    The layer's parameters must be filled; on return the quantized linears hold their dequantized
    weights. `tensors` gives each stage's weights in the precision of the source and loses them as
    they are used.
    """
    memo.forget()
    for stage in stages:
        if stage.grid is None:
            continue
        started = time.perf_counter()
        hessian = collect_hessian(skeleton, stage, hidden, call, memo)
        mean_square = hessian.diagonal() / 2  # before the solver damps it
        large = stage.in_features * sum(stage.out_features) >= LARGE_STAGE
        if large:  # what the forward freed would otherwise lie beneath what the solver takes
            release_memory()
        rows = [tensors.pop(name + ".weight") for name in stage.linears]
        weight = torch.cat(rows).to(skeleton.device) if len(rows) > 1 else rows[0].to(skeleton.device)
        del rows
        try:
            outcome = gptq.quantize(weight, hessian, stage.grid, settings)
        except torch.cuda.OutOfMemoryError as error:
            raise OutOfMemoryError(
                f"the GPU ran out of memory in {stage.linears[0]}",
                "finished layers are kept; use --device cpu",
            ) from error
        del weight, hessian
        if large:
            release_memory()
        seconds = time.perf_counter() - started
        yield from _fill_and_split(skeleton, stage, outcome, mean_square, seconds)


def collect_hessian(
    skeleton: Skeleton, stage: Stage, hidden: torch.Tensor, call: LayerCall, memo: Memo
) -> torch.Tensor:
    """H of a stage over all samples, running the layer only as far as the stage's input.

    Args:
        skeleton: the layer's parameters filled.
        stage: its first linear is where the forward stops.
        hidden: [samples, sequence, hidden] before the layer.
        call: the layer's arguments.
        memo: filled at the last linear of the attention and of the MLP, used behind it.

    Returns:
        [in_features, in_features] fp32.
    """
    gathered = HessianSum(stage.in_features, skeleton.device)
    name = stage.linears[0]

    def receive(inputs: torch.Tensor) -> None:
        gathered.add(inputs)
        memo.keep(name, inputs, len(hidden))

    with memo.used(skeleton, stage.layer, len(hidden)) as begin, stop_at(skeleton.model.get_submodule(name), receive):
        for first, part in batches(hidden):
            begin(first)
            try:
                skeleton.run_layer(stage.layer, part.to(skeleton.device), call)
            except InputReached:
                continue
    return gathered.finish()


def advance(skeleton: Skeleton, layer: int, hidden: torch.Tensor, call: LayerCall, memo: Memo) -> None:
    """Replace the hidden states before a layer by those after it, a batch at a time."""
    with memo.used(skeleton, layer, len(hidden)) as begin:
        for first, part in batches(hidden):
            begin(first)
            part.copy_(skeleton.run_layer(layer, part.to(skeleton.device), call))


def batches(hidden: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    """Views of a few samples each, about BATCH_TOKENS tokens, with the number of their first sample."""
    size = max(1, BATCH_TOKENS // hidden.shape[1])
    for first in range(0, len(hidden), size):
        yield first, hidden[first : first + size]


def quantize_without_data(
    stages: tuple[Stage, ...], tensors: dict[str, torch.Tensor], scales: str, device: torch.device
) -> Iterator[QuantizedLinear]:
    """Round to nearest: no activations, a linear at a time."""
    for stage in stages:
        for name in stage.linears:
            if stage.grid is None:
                continue
            started = time.perf_counter()
            weight = tensors.pop(name + ".weight").to(device).float()
            quantized = rtn.quantize(weight, stage.grid, scales)  # type: ignore[arg-type]
            loss = float(torch.linalg.vector_norm(weight - quantized.dequantize(), dtype=torch.float64)) ** 2
            norm = float(torch.linalg.vector_norm(weight, dtype=torch.float64)) ** 2
            seconds = time.perf_counter() - started
            yield QuantizedLinear(name, quantized, _record(name, stage, "rtn", loss, norm, seconds))


def _fill_and_split(
    skeleton: Skeleton, stage: Stage, outcome: gptq.Outcome, mean_square: torch.Tensor, seconds: float
) -> Iterator[QuantizedLinear]:
    first = 0
    for name, size in zip(stage.linears, stage.out_features, strict=True):
        rows = slice(first, first + size)
        whole = outcome.weight
        part = replace(
            whole,
            codes=whole.codes[rows],
            scale=whole.scale[:, rows].contiguous(),
            zero_point=whole.zero_point[:, rows].contiguous(),
        )
        skeleton.fill({name + ".weight": part.dequantize(skeleton.dtype)})
        loss, norm = float(outcome.row_loss[rows].sum()), float(outcome.row_energy[rows].sum())
        share = seconds * size / sum(stage.out_features)
        record = _record(name, stage, outcome.method, loss, norm, share)
        record |= {"damp_percent": outcome.damp_percent, "damping_raised": outcome.escalations}
        yield QuantizedLinear(name, part, record, mean_square)
        first += size


def _record(name: str, stage: Stage, method: str, loss: float, norm: float, seconds: float) -> dict[str, Any]:
    assert stage.grid is not None
    return {
        "name": name,
        "bits": stage.grid.bits,
        "group_size": stage.grid.group_size,
        "method": method,
        "loss": loss,
        "relative_error": loss / norm if norm > 0 else 0.0,
        "seconds": round(seconds, 3),
    }
