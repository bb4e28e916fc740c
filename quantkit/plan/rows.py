"""The plan: a row per tensor, made from headers alone; the run executes its rows and nothing else."""

import fnmatch
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from quantkit.errors import BadInputError, UsageError
from quantkit.families.family import Family
from quantkit.formats import gptq
from quantkit.formats.runtimes import packing_refusals
from quantkit.recipe import Recipe, matches
from quantkit.tensors import FLOATS, Grid, TensorInfo
from quantkit.units import parse_bytes
from quantkit.weights.shards import shard_names

_INDEX = re.compile(r"[0-9]{1,9}")
DTYPE_OF_OPTION = {"float16": "F16", "bfloat16": "BF16"}
DTYPE_OPTION = {name: option for option, name in DTYPE_OF_OPTION.items()}


@dataclass(frozen=True)
class Row:
    """What becomes of one tensor of the source."""

    name: str
    layer: int | None  # None: outside of the decoder layers
    action: Literal["quantize", "keep", "drop"]
    source: TensorInfo
    grid: Grid | None
    outputs: tuple[TensorInfo, ...]  # `file` is the shard


@dataclass(frozen=True)
class Stage:
    """Linears of one layer that share an input and are quantized together."""

    layer: int
    linears: tuple[str, ...]  # full module names
    grid: Grid | None  # None: the stage stays in 16 bits
    in_features: int
    out_features: tuple[int, ...]  # per linear


@dataclass(frozen=True)
class Plan:
    """Everything that the run will do."""

    rows: tuple[Row, ...]
    layers: tuple[tuple[Stage, ...], ...]
    shards: Mapping[str, tuple[TensorInfo, ...]]  # file name -> tensors
    kept_dtype: str  # of tensors that stay in 16 bits
    notes: tuple[str, ...]  # what the user should know before the run

    def row(self, name: str) -> Row:
        """The row of a tensor of the source."""
        return next(row for row in self.rows if row.name == name)

    @property
    def artifact_bytes(self) -> int:
        """Bytes of all tensors written."""
        return sum(info.nbytes for infos in self.shards.values() for info in infos)

    @property
    def source_bytes(self) -> int:
        """Bytes of all tensors read."""
        return sum(row.source.nbytes for row in self.rows if row.action != "drop")

    @property
    def bits_per_weight(self) -> float:
        """File bits of the quantized tensors over their weights, scales included."""
        rows = [row for row in self.rows if row.action == "quantize"]
        weights = sum(row.source.elements for row in rows)
        return sum(info.nbytes for row in rows for info in row.outputs) * 8 / weights if weights else 0.0

    def grids(self) -> dict[str, Grid | None]:
        """The grid of every linear in the decoder layers, by full name."""
        return {name: stage.grid for stages in self.layers for stage in stages for name in stage.linears}


def make_plan(
    family: Family, recipe: Recipe, infos: Mapping[str, TensorInfo], *, strict: bool = False, tied: bool = False
) -> Plan:
    """Rows, stages and shards for a recipe over the tensors of a checkpoint.

    Args:
        family: stages and names.
        recipe: what to make.
        infos: every tensor of the source, from headers.
        strict: refuse, rather than leave in 16 bits, a linear whose shape cannot be packed.
        tied: the head is the embedding; `.bin` files hold it a second time, the artifact does not.

    Raises:
        BadInputError: with `strict`, a linear that cannot be packed; or no layers at all.
        UsageError: rules that contradict within a fused group, name nothing, or name the head.
    """
    notes: list[str] = []
    kept = kept_dtype(family, recipe, infos)
    count = layer_count(family, infos)
    layers = tuple(
        tuple(_stage(family, recipe, infos, layer, names, strict, notes) for names in family.stages)
        for layer in range(count)
    )
    grids = {name: stage.grid for stages in layers for stage in stages for name in stage.linears}
    _check_patterns(family, recipe, grids)
    if not any(grids.values()):
        raise UsageError(
            "nothing is left to quantize: every linear stays in 16 bits",
            "; ".join(dict.fromkeys(notes)) or None,
        )
    dropped = (*family.dropped, *([family.head + ".weight"] if tied else []))
    rows = [_row(family, info, grids, kept, dropped) for info in _in_order(family, infos)]
    shards, placed = _place(rows, parse_bytes(recipe.max_shard_size))
    return Plan(tuple(placed), layers, shards, kept, tuple(dict.fromkeys(notes)))


def layer_count(family: Family, infos: Mapping[str, TensorInfo]) -> int:
    """Number of decoder layers that the tensors' names show."""
    indices = {layer for name in infos if (layer := layer_of(family, name)) is not None}
    if not indices:
        raise BadInputError(f"no tensor is named {family.layers}.0.*: this is not a {family.name} checkpoint")
    return max(indices) + 1


def layer_of(family: Family, name: str) -> int | None:
    """The decoder layer that a tensor belongs to."""
    prefix = family.layers + "."
    head = name[len(prefix) :].partition(".")[0] if name.startswith(prefix) else ""
    # Plain digits only: int() takes other alphabets' too, and refuses numbers of thousands of digits.
    return int(head) if _INDEX.fullmatch(head) else None


def kept_dtype(family: Family, recipe: Recipe, infos: Mapping[str, TensorInfo]) -> str:
    """The dtype of what stays in 16 bits: the source's own, float16 for a float32 source."""
    if recipe.dtype != "auto":
        return DTYPE_OF_OPTION[recipe.dtype]
    first = infos.get(f"{family.layers}.0.{family.linears[0]}.weight")
    return first.dtype if first is not None and first.dtype in ("F16", "BF16") else "F16"


def _stage(
    family: Family,
    recipe: Recipe,
    infos: Mapping[str, TensorInfo],
    layer: int,
    names: tuple[str, ...],
    strict: bool,
    notes: list[str],
) -> Stage:
    full = tuple(f"{family.layers}.{layer}.{name}" for name in names)
    missing = [name for name in full if name + ".weight" not in infos]
    if missing:
        raise BadInputError(f"tensor {missing[0]}.weight is missing from the checkpoint")
    shapes = [infos[name + ".weight"].shape for name in full]
    in_features, out_features = shapes[0][1], tuple(shape[0] for shape in shapes)
    wishes = {name: recipe.grid_for(name) for name in full}
    grid = _common_grid(recipe, wishes, notes)
    reasons: list[str] = []
    if grid is not None:
        for size in out_features:
            reasons += packing_refusals(in_features, size, grid.group_size)
    if reasons:
        reason = reasons[0]
        if strict:
            raise BadInputError(f"{full[0]}: {reason}", "leave out --strict to keep such linears in 16 bits")
        notes.append(f"{names[0]} and its like stay in 16 bits: {reason}")
        grid = None
    return Stage(layer, full, grid, in_features, out_features)


def _common_grid(recipe: Recipe, wishes: dict[str, Grid | None], notes: list[str]) -> Grid | None:
    """Runtimes fuse the linears of a stage, so one setting holds for all of them."""
    different = {wish for wish in wishes.values() if wish != recipe.grid}
    if len(different) > 1:
        raise UsageError(
            "rules give linears of one fused group different settings: " + ", ".join(wishes),
            "runtimes merge q, k, v and gate, up into one matrix: give them one setting",
        )
    grid = different.pop() if different else recipe.grid
    if grid != recipe.grid and any(wish == recipe.grid for wish in wishes.values()):
        parts = [name.rpartition(".")[2] for name in wishes]
        notes.append(f"what is set for one of {', '.join(parts)} holds for all of them: runtimes fuse them")
    return grid


def _check_patterns(family: Family, recipe: Recipe, linears: Iterable[str]) -> None:
    """Every pattern names a linear, and none asks for a quantized head."""
    linears = list(linears)
    for pattern in recipe.patterns():
        if any(matches(name, pattern) for name in linears):
            continue
        if not matches(family.head, pattern):
            raise UsageError(
                f"the pattern {pattern[:100]!r} names no linear of this checkpoint",
                f"names look like {family.layers}.0.{family.linears[0]}",
            )
        if pattern in recipe.rule_patterns():
            raise _head_refusal(family)
    if not any(matches(family.head, pattern) for pattern in recipe.skip):
        raise _head_refusal(family)


def _head_refusal(family: Family) -> UsageError:
    return UsageError(
        f"{family.head} cannot be quantized: transformers would load a random head without an error",
        f"leave {family.head} in --skip",
    )


def _in_order(family: Family, infos: Mapping[str, TensorInfo]) -> list[TensorInfo]:
    """Embedding first, then layer by layer, then norm and head: the order of the run."""

    def key(info: TensorInfo) -> tuple[int, int, str]:
        layer = layer_of(family, info.name)
        if layer is not None:
            return (1, layer, info.name)
        return (0 if info.name.startswith(family.embedding) else 2, 0, info.name)

    return sorted(infos.values(), key=key)


def _row(family: Family, info: TensorInfo, grids: Mapping[str, Grid | None], kept: str, dropped: Sequence[str]) -> Row:
    layer = layer_of(family, info.name)
    module, _, leaf = info.name.rpartition(".")
    if any(fnmatch.fnmatchcase(info.name, pattern) for pattern in dropped):
        return Row(info.name, layer, "drop", info, None, ())
    grid = grids.get(module)
    if grid is not None and leaf == "weight":
        out_features, in_features = info.shape
        described = gptq.tensors(module, in_features, out_features, grid, False)
        outputs = tuple(TensorInfo(name, dtype, tuple(shape), "") for name, dtype, shape in described)
        return Row(info.name, layer, "quantize", info, grid, outputs)
    dtype = kept if info.dtype in FLOATS else info.dtype
    if grid is not None and leaf == "bias":
        dtype = "F16"  # as the layout has it
    return Row(info.name, layer, "keep", info, None, (replace(info, dtype=dtype, file="", offset=0),))


def _place(rows: list[Row], limit: int) -> tuple[dict[str, tuple[TensorInfo, ...]], list[Row]]:
    """Fill shards in the order of the run; the tensors of one linear stay together."""
    sizes: dict[str, int] = {}  # module -> bytes, its weight and its bias
    for row in rows:
        module = row.name.rpartition(".")[0]
        sizes[module] = sizes.get(module, 0) + sum(info.nbytes for info in row.outputs)
    shard_of: dict[str, int] = {}
    shard, filled = 0, 0
    for module, size in sizes.items():
        if filled and size and filled + size > limit:
            shard, filled = shard + 1, 0
        filled += size
        shard_of[module] = shard
    names = shard_names(shard + 1)
    placed = [
        replace(
            row, outputs=tuple(replace(info, file=names[shard_of[row.name.rpartition(".")[0]]]) for info in row.outputs)
        )
        for row in rows
    ]
    shards = {name: tuple(_of_shard(placed, name)) for name in names}
    return shards, placed


def _of_shard(rows: list[Row], name: str) -> Iterator[TensorInfo]:
    for row in rows:
        yield from (info for info in row.outputs if info.file == name)
