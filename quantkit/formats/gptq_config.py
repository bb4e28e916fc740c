"""The `quantization_config` of a GPTQ checkpoint: bits, groups and skipped linears, told to every loader.

Three readers match names in three ways, and one dict must be right for all of them:

    transformers (optimum)  quantizes a linear if its name ends with an entry of modules_in_block_to_quantize
    vLLM                    if an entry occurs in the name; re.match of `dynamic` against its own, fused names
    gptqmodel, SGLang       re.match of `dynamic` against the name

`damp_percent` is for information, but transformers refuses values outside (0, 1).
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quantkit.errors import UsageError
from quantkit.formats.gptq import checkpoint_format
from quantkit.tensors import Grid

Linears = Mapping[str, Grid | None]
Fused = Mapping[str, Sequence[str]]
FIRST_TRANSFORMERS = "4.49"  # the first that loads GPTQ checkpoints through gptqmodel

_NUMBER = "[0-9]+"
_GENERALITY = ((True, True), (False, True), (False, False))  # any layer, any number inside the layer
# model.layers.3.mlp.down_proj: container `layers`, layer `3`, inside `.mlp`, then the linear's last name
_LAYER = re.compile(r"(?:.*?\.)?(?P<container>[^.]+)\.(?P<layer>\d+)(?P<inside>(?:\.[^.]+)*)\.[^.]+$")


def quantization_config(
    grid: Grid,
    linears: Linears,
    fused: Fused,
    *,
    desc_act: bool = False,
    damp_percent: float | None = None,
    lm_head: bool = False,
    version: str,
    transformers: str | None = None,
) -> dict[str, Any]:
    """The dict for `config.json` (key `quantization_config`) and `quantize_config.json`.

    Args:
        grid: the default grid.
        linears: every linear of the decoder layers by full name, with its grid; None is left in 16 bits.
        fused: linears that runtimes join, such as `{"qkv_proj": ("q_proj", "k_proj", "v_proj")}`. A group is
            named in its fused spelling only where all its members are treated alike.
        desc_act: whether g_idx is permuted.
        damp_percent: the fraction used for the Hessian; None (no Hessian) leaves the key out.
        lm_head: whether `lm_head` is quantized too, with the default grid.
        version: of quantkit, for `meta`.
        transformers: the oldest version that loads the artifact, for `meta`, where people look and no loader.

    Raises:
        UsageError: linears mix symmetric and asymmetric grids, damp_percent is not inside (0, 1), a name has
            no layer number, or loaders would take a skipped linear for a quantized one by its name.
    """
    _check(grid, linears, damp_percent)
    stored_as = checkpoint_format(grid)
    config: dict[str, Any] = {
        "quant_method": "gptq",
        "bits": grid.bits,
        "group_size": grid.group_size,
        "desc_act": desc_act,
        "sym": grid.symmetric,
        "true_sequential": True,
        "damp_percent": damp_percent,
        "lm_head": lm_head,
        "checkpoint_format": stored_as,
        "format": stored_as,
        "pack_dtype": "int32",
        "meta": {"quantizer": [f"quantkit:{version}"]},
    }
    if transformers is not None:
        config["meta"]["transformers"] = f">={transformers}"
    if damp_percent is None:
        del config["damp_percent"]
    if None in linears.values():
        config["modules_in_block_to_quantize"] = _modules_to_quantize(linears, fused, lm_head)
    dynamic = _dynamic(grid, linears, fused)
    return {**config, "dynamic": dynamic} if dynamic else config


def _check(grid: Grid, linears: Linears, damp_percent: float | None) -> None:
    for name, other in linears.items():
        if other is not None and other.symmetric != grid.symmetric:
            raise UsageError(
                f"{name} mixes symmetric and asymmetric grids, which one GPTQ checkpoint cannot hold",
                "use one setting of symmetric for all linears",
            )
    if damp_percent is not None and not 0 < damp_percent < 1:
        raise UsageError(f"damp_percent is {damp_percent}, expected a value between 0 and 1")


def _modules_to_quantize(linears: Linears, fused: Fused, lm_head: bool) -> list[list[str]]:
    """Names to quantize, one list per fused group: short if all decoder layers are alike, else full.

    vLLM looks for `lm_head` here too, once the key is present.
    """
    quantized = [name for name, grid in linears.items() if grid is not None]
    skipped = [name for name, grid in linears.items() if grid is None]
    short = list(dict.fromkeys(_inside_layer(name) for name in quantized))
    for entries in (short, quantized):
        wrong = next((name for name in skipped if _is_listed(name, entries)), None)
        if wrong is None:
            return [*_by_fused_group(entries, fused), *([["lm_head"]] if lm_head else [])]
    raise UsageError(
        f"{wrong} is skipped, but its name contains that of a quantized linear, so loaders would expect it quantized",
        "treat both alike",
    )


def _is_listed(name: str, entries: Collection[str]) -> bool:
    """True if vLLM takes the linear as quantized; optimum's rule is narrower."""
    return any(entry in name for entry in entries)


def _inside_layer(name: str) -> str:
    """`mlp.down_proj` of `model.layers.3.mlp.down_proj`; the layer is the first number."""
    return re.split(r"\.\d+\.", name, maxsplit=1)[-1]


def _by_fused_group(entries: Iterable[str], fused: Fused) -> list[list[str]]:
    group_of = {member: group for group, members in fused.items() for member in members}
    lists: dict[str, list[str]] = {}
    for entry in entries:
        parent, _, leaf = entry.rpartition(".")
        lists.setdefault(f"{parent}.{group_of.get(leaf, leaf)}", []).append(entry)
    return list(lists.values())


def _dynamic(default: Grid, linears: Linears, fused: Fused) -> dict[str, dict[str, int]]:
    """`-:` patterns of skipped linears, `+:` patterns of those with another grid; no two match one linear."""
    leaves: dict[tuple[_Parent, Grid | None], dict[str, None]] = {}  # ordered sets of last names
    for name, parent in _parents(linears, fused).items():
        if linears[name] != default:
            leaves.setdefault((parent, linears[name]), {})[name.rpartition(".")[2]] = None
    layers: dict[tuple[str, str, str, Grid | None], list[str]] = {}
    for (parent, grid), found in leaves.items():
        joined = [group for group, members in fused.items() if all(member in found for member in members)]
        leaf = _any_of([re.escape(leaf) for leaf in (*found, *joined)])
        layers.setdefault((parent.before, parent.inside, leaf, grid), []).append(parent.layer)
    rules: dict[str, dict[str, int]] = {}
    for (before, inside, leaf, grid), numbers in layers.items():
        pattern = rf"{before}{_any_of(numbers)}{inside}\.{leaf}$"
        if grid is None:
            rules[f"-:{pattern}"] = {}
        else:
            rules[f"+:{pattern}"] = {"bits": grid.bits, "group_size": grid.group_size}
    return rules


@dataclass(frozen=True)
class _Parent:
    """Regular expressions that together match a module that holds linears."""

    before: str  # `.*\.layers\.`: runtimes put other names in front
    layer: str  # `3` or any number
    inside: str  # `\.mlp`


def _parents(linears: Linears, fused: Fused) -> dict[str, _Parent]:
    """For each linear the most general parent under which all linears of its last name are treated alike.

    Tried in this order: any layer and any expert, this layer and any expert, exactly this module. Members of
    a fused group count as one, so that they end up in one pattern together with the fused name.
    """
    group_of = {member: members for members in fused.values() for member in members}
    treatments: dict[tuple[_Parent, str], set[tuple[Grid | None, ...]]] = {}
    for name in linears:
        module, _, leaf = name.rpartition(".")
        treatment = tuple(linears.get(f"{module}.{member}") for member in group_of.get(leaf, (leaf,)))
        for generality in _GENERALITY:
            treatments.setdefault((_parent(name, *generality), leaf), set()).add(treatment)
    found = {}
    for name in linears:
        parents = (_parent(name, *generality) for generality in _GENERALITY)
        found[name] = next(one for one in parents if len(treatments[one, name.rpartition(".")[2]]) == 1)
    return found


def _parent(name: str, any_layer: bool, any_inside: bool) -> _Parent:
    match = _LAYER.match(name)
    if match is None:
        raise UsageError(f"{name} does not name a linear of a numbered decoder layer")
    inside = re.escape(match["inside"])
    return _Parent(
        before=rf"(.*\.)?{re.escape(match['container'])}\.",
        layer=_NUMBER if any_layer else match["layer"],
        inside=re.sub(r"(?<=\.)\d+(?=\\\.|$)", lambda _: _NUMBER, inside) if any_inside else inside,
    )


def _any_of(choices: Sequence[str]) -> str:
    return choices[0] if len(choices) == 1 else f"({'|'.join(choices)})"
