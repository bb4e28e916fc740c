"""What a run will cost: peak memory of host and device, disk, download and time."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from quantkit.families.family import Family
from quantkit.methods.hessian import PANEL
from quantkit.plan.rows import Plan, Row, Stage
from quantkit.recipe import Recipe
from quantkit.tensors import ITEM_BYTES

BATCH_TOKENS = 2048
CODE_BYTES = 50 * 2**20  # compiled kernels, thread pools, what the allocator keeps
SMALL_FILES = 20 * 2**20  # tokenizer, configuration and reports on disk


@dataclass(frozen=True)
class Machine:
    """What the estimate knows of the machine."""

    compute_bytes: int  # bytes of a value of the compute dtype
    on_host: bool  # compute device is the CPU
    available_bytes: int  # host memory that this process may use, its own included
    base_bytes: int  # resident memory of the process before the run
    product_rate: float  # FLOP/s of matrix products in the compute dtype
    exact_rate: float  # FLOP/s of float32 products


@dataclass(frozen=True)
class Budget:
    """Predicted costs; the run records the measured ones beside them."""

    host_bytes: int
    device_bytes: int
    disk_bytes: int
    download_bytes: int
    seconds: float
    activation_bytes: int
    remembered: tuple[str, ...]  # modules whose results memory allows to keep, see pipeline.memo
    largest_layer_bytes: int
    largest_hessian_bytes: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def estimate(
    plan: Plan,
    family: Family,
    recipe: Recipe,
    sizes: Mapping[str, Any],
    machine: Machine,
    samples: int,
    length: int,
    download: int,
    held: int | None = None,
) -> Budget:
    """Predict the costs of a plan.

    Args:
        plan: rows and stages.
        family: which modules can be remembered.
        recipe: method and calibration.
        sizes: hidden and intermediate size, attention heads; see `Skeleton.sizes`.
        machine: dtype, base memory and measured rates.
        samples: calibration sequences.
        length: tokens of each.
        download: bytes that must be fetched.
        held: the most of them that are on the disk at a time; None: all.
    """
    value = machine.compute_bytes
    hidden = int(sizes["hidden_size"])
    inner = int(sizes.get("intermediate_size") or 4 * hidden)
    with_data = recipe.method == "gptq"
    batch = max(1, BATCH_TOKENS // length) * length
    activations = samples * length * hidden * value if with_data else 0
    # One batch inside a layer: residual, norm, queries to values, gate, up and their product.
    working_set = batch * (10 * hidden + 4 * inner) * value if with_data else 0
    scores = 0  # every token of the batch with every token of its sample
    if with_data and family.score_bytes:
        scores = batch * length * int(sizes["num_attention_heads"]) * family.score_bytes[value]
    layer = max(_layer_bytes(plan, stages, value) for stages in plan.layers) if with_data else 0
    stages = [stage for stages in plan.layers for stage in stages if stage.grid is not None]
    solve = max((_solve_bytes(stage, with_data) for stage in stages), default=0)
    collect = max((_collect_bytes(stage, batch) for stage in stages), default=0) if with_data else 0
    outer = [row for row in plan.rows if row.layer is None and row.action == "keep"]
    embed = sum(_filled_bytes(row, value) for row in outer) if with_data else 0
    copy = max((row.source.nbytes + row.outputs[0].nbytes for row in outer), default=0)
    device = layer + max(solve, collect + working_set + scores)
    host = machine.base_bytes + CODE_BYTES + activations
    remembered: list[str] = []
    for module, size in _memo_bytes(plan, family, samples * length * value) if with_data else ():
        if host + size + device + embed + copy < machine.available_bytes:
            remembered.append(module)
            host += size
            activations += size
    host += max(device, embed + working_set, copy) if machine.on_host else max(embed, copy, layer)
    return Budget(
        host_bytes=host,
        device_bytes=0 if machine.on_host else device,
        disk_bytes=plan.artifact_bytes + (download if held is None else held) + SMALL_FILES,
        download_bytes=download,
        seconds=_seconds(plan, machine, samples * length if with_data else 0),
        activation_bytes=activations,
        remembered=tuple(remembered),
        largest_layer_bytes=layer,
        largest_hessian_bytes=max((4 * stage.in_features**2 for stage in stages), default=0) if with_data else 0,
    )


def _memo_bytes(plan: Plan, family: Family, column_bytes: int) -> list[tuple[str, int]]:
    """Bytes that remembering each module of a layer takes, the most useful first."""
    inputs = {name.partition(".0.")[2]: stage.in_features for stage in plan.layers[0] for name in stage.linears}
    return [(end.module, inputs[end.linear] * column_bytes) for end in family.ends]


def _layer_bytes(plan: Plan, stages: tuple[Stage, ...], value: int) -> int:
    index = stages[0].layer
    return sum(row.source.elements * value for row in plan.rows if row.layer == index and row.action != "drop")


def _filled_bytes(row: Row, value: int) -> int:
    """An outer tensor while it is filled: as stored, and in the compute dtype if that differs."""
    stored, computed = row.source.nbytes, row.source.elements * value
    return computed if ITEM_BYTES[row.source.dtype] == value else stored + computed


def _solve_bytes(stage: Stage, with_data: bool) -> int:
    weights = sum(stage.out_features) * stage.in_features
    hessian = 4 * stage.in_features * (stage.in_features + 3 * PANEL) if with_data else 0
    # float32 in natural order and in the solver's order, codes twice, and the packed result
    return hessian + weights * (4 + 4 + 1 + 1)


def _collect_bytes(stage: Stage, batch: int) -> int:
    # H, a batch in float32, and the bfloat16 copies that the product unit makes of it
    return 4 * stage.in_features**2 + batch * stage.in_features * (4 + 2 + 2)


def _seconds(plan: Plan, machine: Machine, tokens: int) -> float:
    """Floating-point work over measured rates: an estimate for planning, not a promise."""
    total = 0.0
    for stages in plan.layers:
        done = 0.0  # weights of the stages that an earlier pass has gone through
        for stage in stages:
            weights = float(sum(stage.out_features) * stage.in_features)
            if stage.grid is not None:
                columns = float(stage.in_features)
                rows = float(sum(stage.out_features))
                total += tokens * (2 * done + columns**2) / machine.product_rate
                if tokens:
                    total += (2 * columns**3 / 3 + rows * columns**2) / machine.exact_rate
                total += weights * 600 / machine.exact_rate  # choice of scales
            done += weights
        total += 2 * tokens * done / machine.product_rate
    return total + plan.artifact_bytes / 500e6
