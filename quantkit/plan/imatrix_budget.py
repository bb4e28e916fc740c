"""What the collection of an importance matrix will cost: a forward pass, one decoder layer in memory at a time."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quantkit.families.family import Family
from quantkit.plan.budget import BATCH_TOKENS, CODE_BYTES, Machine
from quantkit.plan.rows import layer_of
from quantkit.tensors import ITEM_BYTES, TensorInfo

SLAB_TOKENS = 64  # squared and summed up at a time
SUMS_BYTES = 8 + 4  # of a column: while it is summed up, and in the file


@dataclass(frozen=True)
class ImatrixBudget:
    """Predicted costs."""

    host_bytes: int
    device_bytes: int
    activation_bytes: int
    seconds: float


def imatrix_budget(
    family: Family,
    infos: Mapping[str, TensorInfo],
    sizes: Mapping[str, Any],
    machine: Machine,
    samples: int,
    length: int,
) -> ImatrixBudget:
    """Predict the costs of `pipeline.imatrix.collect`.

    Args:
        family: which tensors are of a layer, and which of them are linears.
        infos: every tensor of the source, from headers.
        sizes: hidden and intermediate size, attention heads; see `Skeleton.sizes`.
        machine: dtype, base memory and measured rates.
        samples: calibration sequences.
        length: tokens of each.
    """
    value = machine.compute_bytes
    hidden = int(sizes["hidden_size"])
    inner = int(sizes.get("intermediate_size") or 4 * hidden)
    batch = max(1, BATCH_TOKENS // length) * length
    activations = samples * length * hidden * value
    # One batch inside a layer: residual, norm, queries to values, gate, up and their product.
    working_set = batch * (10 * hidden + 4 * inner) * value + SLAB_TOKENS * inner * 4
    if family.score_bytes:  # every token of the batch with every token of its sample
        working_set += batch * length * int(sizes["num_attention_heads"]) * family.score_bytes[value]
    layers: dict[int, list[TensorInfo]] = {}
    outer: list[TensorInfo] = []
    for name, info in infos.items():
        layer = layer_of(family, name)
        if layer is not None:
            layers.setdefault(layer, []).append(info)
        elif not name.startswith(family.head + "."):
            outer.append(info)
    device = max(_filled_bytes(layer, value) for layer in layers.values()) + working_set
    embed = _filled_bytes(outer, value) + length * 10 * hidden * value  # a sample at a time
    weights = sum(
        infos[f"{family.layers}.{layer}.{name}.weight"].elements for layer in layers for name in family.linears
    )
    columns = len(layers) * len(family.stages) * max(hidden, inner)
    host = machine.base_bytes + CODE_BYTES + activations + columns * SUMS_BYTES
    stored = max((info.nbytes for info in infos.values()), default=0)
    return ImatrixBudget(
        host_bytes=host + (max(device, embed) if machine.on_host else stored),
        device_bytes=0 if machine.on_host else max(device, embed),
        activation_bytes=activations,
        seconds=2 * samples * length * weights / machine.product_rate,
    )


def _filled_bytes(infos: list[TensorInfo], value: int) -> int:
    """Tensors in the compute dtype, and the largest of them as it is stored, where that is another."""
    stored = max((info.nbytes for info in infos if ITEM_BYTES[info.dtype] != value), default=0)
    return sum(info.elements for info in infos) * value + stored
