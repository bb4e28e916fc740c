"""What a check will cost: memory and time, from headers and the number of tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from quantkit.lockstep import BATCH_TOKENS, chunk_tokens
from quantkit.plan.budget import CODE_BYTES, Machine
from quantkit.skeleton import Skeleton
from quantkit.tensors import TensorInfo

# Matrices [tokens, vocabulary] fp32 that a comparison holds at once: the two logits, the baseline's probabilities and
# what soft caps take; on a device, where all tokens of a chunk are scored together, two more.
SCORE_COPIES, DEVICE_SCORE_COPIES = 5, 7


@dataclass(frozen=True)
class CheckBudget:
    """Predicted costs of a check."""

    host_bytes: int
    device_bytes: int
    seconds: float
    activation_bytes: int
    largest_layer_bytes: int
    head_bytes: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def check_budget(
    skeleton: Skeleton,
    sources: Sequence[Mapping[str, TensorInfo]],
    windows: int,
    context: int,
    machine: Machine,
    different_heads: int = 1,
    reading_bytes: int = 0,
) -> CheckBudget:
    """Predict the costs of one lockstep pass.

    Args:
        skeleton: of the common architecture.
        sources: the tensors of every weight set, the baseline first.
        windows: how many are read.
        context: tokens of each.
        machine: dtype, base memory and measured rates.
        different_heads: weight sets whose norm or head is their own, the baseline among them.
        reading_bytes: what reading a tensor takes beside it.
    """
    value = machine.compute_bytes
    sizes = skeleton.sizes()
    hidden = int(sizes["hidden_size"])
    inner = int(sizes["intermediate_size"] or 4 * hidden)
    shapes = skeleton.tensors()
    elements = {name: _product(shape) for name, shape in shapes.items()}
    layers = [sum(elements[name] for name in skeleton.layer_names(index)) for index in range(len(skeleton.layers))]
    largest = max(range(len(layers)), key=layers.__getitem__)
    names = skeleton.layer_names(largest)
    kept = sum(sources[0][name].nbytes for name in names)
    reading = _largest_read(sources, names) + reading_bytes
    # The baseline's layer as stored, the filled one, and one tensor of an artifact with what compares it.
    layer = kept + layers[largest] * value + reading
    tokens = windows * context
    activations = tokens * hidden * value * len(sources)
    batch = max(1, BATCH_TOKENS // context) * context
    working_set = batch * (10 * hidden + 4 * inner) * value
    if skeleton.family.score_bytes:  # every token of the batch with every token of its window
        working_set += batch * context * int(sizes["num_attention_heads"]) * skeleton.family.score_bytes[value]
    outer = sum(elements[name] for name in skeleton.outer_names()) * value
    head = sum(elements[name] for name in skeleton.head_names()) * 4
    heads = head * different_heads
    vocabulary = skeleton.vocabulary()
    copies = SCORE_COPIES if machine.on_host else DEVICE_SCORE_COPIES
    logits = chunk_tokens(vocabulary) * vocabulary * 4 * copies
    embedding = outer + _largest_read(sources, skeleton.outer_names()) + reading_bytes
    phases = (embedding + working_set, layer + working_set, heads + max(head + reading_bytes, logits))
    on_host = machine.base_bytes + CODE_BYTES + activations
    return CheckBudget(
        host_bytes=on_host + (max(phases) if machine.on_host else max(outer, kept + reading, head)),
        device_bytes=0 if machine.on_host else max(phases),
        seconds=2.0 * tokens * (sum(layers) + vocabulary * hidden) * len(sources) / machine.product_rate,
        activation_bytes=activations,
        largest_layer_bytes=layers[largest] * value,
        head_bytes=heads,
    )


def _largest_read(sources: Sequence[Mapping[str, TensorInfo]], names: Sequence[str]) -> int:
    return max(infos[name].nbytes for infos in sources for name in names)


def _product(shape: Sequence[int]) -> int:
    result = 1
    for size in shape:
        result *= size
    return result
