"""Which runtime loads which GPTQ artifact, as a table, so that a useless one is refused before the download.

transformers and gptqmodel were run on files of this format. vLLM, SGLang, exllamav2 and llama.cpp were read
in their source, not run (`tried` says which); where their source says nothing (mixed grids in exllamav2 and
llama.cpp, a quantized lm_head in llama.cpp) the table says no.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from quantkit.errors import UsageError
from quantkit.recipe import Recipe
from quantkit.tensors import Grid


@dataclass(frozen=True)
class Layout:
    """What a runtime must cope with in one artifact."""

    grids: frozenset[Grid]  # of all quantized linears
    desc_act: bool = False  # g_idx is permuted; act-order with static groups does not need that
    skipped: bool = False  # some linears of decoder layers stay in 16 bits
    splits_fused_groups: bool = False  # q, k, v or gate, up are not all treated alike
    lm_head: bool = False  # lm_head is quantized

    @property
    def mixed(self) -> bool:
        """Whether linears have different bits or group sizes."""
        return len(self.grids) > 1


def layout_of(recipe: Recipe, grids: Mapping[str, Grid | None]) -> Layout:
    """The artifact as runtimes see it; without grids, what the recipe alone says."""
    used = {grid for grid in grids.values() if grid is not None} or {recipe.grid}
    return Layout(
        grids=frozenset(used),
        desc_act=recipe.act_order == "full" and recipe.method == "gptq",
        skipped=None in grids.values(),
    )


@dataclass(frozen=True)
class Runtime:
    """What one reader of GPTQ files accepts."""

    name: str  # as a recipe or --target writes it
    label: str  # as a sentence writes it
    version: str  # the one that was tried or read; empty if the source has no number
    tried: bool  # False: its source was read, it was not run
    symmetric_bits: tuple[int, ...]
    asymmetric_bits: tuple[int, ...]
    allows_permuted_groups: bool  # desc_act with several groups
    group_sizes: tuple[int, ...] | None  # None: any that divides in_features
    mixed_bits: bool  # bits and group size per linear
    lm_head: bool  # a quantized lm_head
    fuses: bool  # joins q, k, v and gate, up, so these must be treated alike
    skips: str  # how it learns which linears are skipped


_ALL = (2, 3, 4, 8)
_MARLIN = (-1, 32, 64, 128)
_EITHER = "modules_in_block_to_quantize or dynamic"
_PRESENCE = "tensor presence"
# fmt: off
# name, label, version, tried, symmetric, asymmetric, permuted, group sizes, mixed, lm_head, fuses, skips
RUNTIMES = {
    row.name: row
    for row in (
        # Given a quantized lm_head, transformers loads a random one without a word.
        Runtime("transformers", "transformers", "5.23", True, _ALL, _ALL, True, None, False, False, False,
                "modules_in_block_to_quantize"),
        Runtime("gptqmodel", "GPTQModel", "7.7", True, _ALL, _ALL, True, None, True, True, False, "dynamic"),
        Runtime("vllm", "vLLM", "0.33", False, (4, 8), (), False, _MARLIN, True, True, True, _EITHER),
        Runtime("sglang", "SGLang", "0.5.23", False, (4, 8), (), True, _MARLIN, True, True, True, "dynamic"),
        Runtime("exllamav2", "ExLlamaV2", "", False, (4,), (4,), True, None, False, False, False, _PRESENCE),
        Runtime("llama.cpp", "llama.cpp's converter", "", False, (2, 4, 8), (2, 4, 8), True, None, False,
                False, False, _PRESENCE),
    )
}
# fmt: on


@dataclass(frozen=True)
class GgufRuntime:
    """What reads GGUF files."""

    name: str
    label: str
    known: str  # what was tried, a sentence


GGUF_RUNTIMES = {
    row.name: row
    for row in (
        GgufRuntime(
            "llama.cpp",
            "llama.cpp",
            "Such files were run with llama.cpp as in xllamacpp 2026.10.11549 and gave the logits of their weights.",
        ),
        GgufRuntime("ollama", "Ollama", "It reads such files from the Hub; it was not run."),
    )
}


class RuntimeRow(NamedTuple):
    """One line of the table that a plan prints."""

    runtime: Runtime
    loads: bool
    reason: str  # why not; empty if it loads


def refusals(runtime: Runtime, layout: Layout) -> list[str]:
    """One sentence for each reason why the runtime cannot load the artifact; empty if it can."""
    return [reason for reason, _ in _refusals(runtime, layout)]


def runtime_table(layout: Layout) -> list[RuntimeRow]:
    """Every known runtime, whether it loads the artifact, and why not."""
    table = []
    for runtime in RUNTIMES.values():
        reasons = refusals(runtime, layout)
        table.append(RuntimeRow(runtime, not reasons, "; ".join(reasons)))
    return table


def check_targets(targets: Iterable[str], layout: Layout) -> None:
    """Refuses an artifact that one of the targets cannot load.

    Raises:
        UsageError: a target is unknown or cannot load it; the message has the reasons, the hint what would.
    """
    found: list[tuple[str, str]] = []
    for target in targets:
        if target not in RUNTIMES:
            raise UsageError(f"unknown target {target!r}", f"known targets: {', '.join(RUNTIMES)}")
        found += _refusals(RUNTIMES[target], layout)
    if not found:
        return
    hints = list(dict.fromkeys(hint for _, hint in found))
    others = [runtime.name for runtime, loads, _ in runtime_table(layout) if loads]
    if others:
        hints.append(f"or keep it for {', '.join(others)}, which can load it")
    raise UsageError("; ".join(dict.fromkeys(reason for reason, _ in found)), "; ".join(hints))


def packing_refusals(in_features: int, out_features: int, group_size: int) -> list[str]:
    """Why a linear cannot be a GPTQ one and has to stay in 16 bits; empty if it can."""
    reasons = []
    if in_features % 32:
        reasons.append(f"in_features {in_features} is not divisible by 32")
    if out_features % 32:
        reasons.append(f"out_features {out_features} is not divisible by 32")
    if group_size != -1 and in_features % group_size:
        reasons.append(f"in_features {in_features} is not divisible by the group size {group_size}")
    return reasons


def shape_warnings(in_features: int, out_features: int) -> list[str]:
    """What a runtime may not run although the format holds it."""
    warnings = []
    if out_features % 64:
        warnings.append(f"vLLM's kernels want out_features divisible by 64, or pad; this is {out_features}")
    if in_features % 128:
        warnings.append(f"vLLM's kernels want in_features divisible by 128, or pad; this is {in_features}")
    return warnings


def _refusals(runtime: Runtime, layout: Layout) -> list[tuple[str, str]]:
    """(reason, what would load) for everything the runtime cannot do."""
    who = f"{runtime.label} {runtime.version}".strip()
    found = []
    for grid in sorted(layout.grids, key=lambda grid: (grid.bits, grid.group_size, grid.symmetric)):
        found += _grid_refusals(runtime, who, grid)
    if layout.mixed and not runtime.mixed_bits:
        found.append((f"{who} reads one grid for all linears; this mixes several", "use one grid"))
    grouped = any(grid.group_size != -1 for grid in layout.grids)
    if layout.desc_act and grouped and not runtime.allows_permuted_groups:
        reason = f"{who} does not load permuted groups (desc_act: true)"
        found.append((reason, "use act-order with static groups"))
    if layout.lm_head and not runtime.lm_head:
        found.append((f"{who} does not load a quantized lm_head", "leave lm_head in 16 bits"))
    if layout.splits_fused_groups and runtime.fuses:
        reason = f"{who} joins q, k, v and gate, up; this does not treat them alike"
        found.append((reason, "give the linears of a fused group the same grid, or skip them together"))
    return list(dict.fromkeys(found))


def _grid_refusals(runtime: Runtime, who: str, grid: Grid) -> list[tuple[str, str]]:
    found = []
    if grid.bits not in (runtime.symmetric_bits if grid.symmetric else runtime.asymmetric_bits):
        either = runtime.symmetric_bits == runtime.asymmetric_bits
        which = "" if either else "symmetric "
        kind = "" if either or grid.symmetric else "asymmetric "
        bits = runtime.symmetric_bits
        reason = f"{who} loads {which}{_listed(bits)} bits only; this is {kind}{grid.bits} bits"
        found.append((reason, f"use {which}{_listed(bits, 'or')} bits"))
    if runtime.group_sizes is not None and grid.group_size not in runtime.group_sizes:
        sizes = runtime.group_sizes
        reason = f"{who} loads group sizes {_listed(sizes)} only; this is {grid.group_size}"
        found.append((reason, f"use a group size of {_listed(sizes, 'or')}"))
    return found


def _listed(values: tuple[int, ...], word: str = "and") -> str:
    *most, last = (str(value) for value in values)
    return f"{', '.join(most)} {word} {last}" if most else last
