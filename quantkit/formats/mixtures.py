"""Which ggml type every tensor of a GGUF file gets: llama.cpp's mixtures, its fallbacks, and a user's wishes."""

import re
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from quantkit.errors import BadInputError, UsageError
from quantkit.formats.mixture_conditions import Place, Rules
from quantkit.formats.mixture_tables import (
    ALIASES,
    COMMON,
    FALLBACKS,
    FTYPES,
    KEPT_NAMES,
    KEPT_PARTS,
    LAYERS_OF_70B,
    NEED_IMPORTANCE,
    PARTS,
    UNKNOWN_RULES,
    WHOLE_NAMES,
    Ftype,
    is_quantized,
)
from quantkit.weights.gguf_types import GGML_TYPES

_LAYER = re.compile(r"blk\.([0-9]{1,9})")
_SHOUTED = re.compile(r"\\[A-Z]")
_NOT_WEIGHTS = ("I8", "I16", "I32", "I64", "F64")
Override = tuple[str, str]  # a regular expression searched for in names, a key of GGML_TYPES


class Described(Protocol):
    """A tensor by name and shape."""

    @property
    def name(self) -> str:
        """The name in the GGUF file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes, rows first."""


@dataclass(frozen=True)
class _Model:
    """What the rules know of the whole file."""

    sharing: int  # query heads that share a key-value head
    experts: int
    layers: int
    values: int  # tensors of the kind attn_v
    tied: bool  # no output.weight: the embedding is the head
    large: bool  # the 70B model of its architecture
    importance: bool

    @classmethod
    def described(
        cls, architecture: str, kinds: Sequence[str], heads: int, kv_heads: int, layers: int, experts: int,
        importance: bool,
    ) -> "_Model":  # fmt: skip
        """What follows from the metadata and from the kinds of all tensors."""
        is_other = architecture == "llama" and (heads == kv_heads or experts == 8)
        return cls(
            sharing=heads // kv_heads if kv_heads else 0,
            experts=experts,
            layers=layers,
            values=kinds.count("attn_v"),
            tied="output" not in kinds,
            large=LAYERS_OF_70B.get(architecture) == layers and not is_other,
            importance=importance,
        )


def assign(
    tensors: Sequence[Described],
    ftype: str,
    *,
    heads: int,
    kv_heads: int,
    layers: int,
    experts: int = 0,
    architecture: str,
    has_importance: bool,
    overrides: Sequence[Override] = (),
) -> tuple[str, ...]:
    """The ggml type of every tensor, as llama.cpp's quantizer (src/llama-quant.cpp) chooses it.

    Args:
        tensors: all of the file, in any order.
        ftype: a key of FTYPES.
        heads: query heads of the first layer.
        kv_heads: key-value heads of the first layer.
        layers: the metadata's block_count.
        experts: the metadata's expert_count, 0 for a dense model.
        architecture: general.architecture.
        has_importance: whether there is an importance matrix, for whichever tensors.
        overrides: the first whose expression is found in a name decides, before the mixture.

    Returns:
        Keys of GGML_TYPES, in the order of `tensors`; what is not quantized is F32.

    Raises:
        UsageError: overrides for a file type that quantizes nothing.
        BadInputError: an architecture with rules of its own, or an expert tensor of no layer.
    """
    if architecture in UNKNOWN_RULES:
        raise BadInputError(f"the type mixtures of the architecture {architecture} are not known")
    mixture = FTYPES[ftype]
    if overrides and not is_quantized(mixture.default):
        raise UsageError(f"--tensor-type changes nothing in a file of type {ftype}", "choose a quantized --type")
    kinds = [kind_of(tensor.name) for tensor in tensors]
    model = _Model.described(architecture, kinds, heads, kv_heads, layers, experts, has_importance)
    patterns = [(re.compile(pattern), name) for pattern, name in overrides]
    seen: Counter[str] = Counter()  # tensors of a kind whose type the mixture chose, in file order
    types = ["F32"] * len(tensors)
    for number in sorted(range(len(tensors)), key=lambda number: file_order(tensors[number].name)):
        tensor, kind = tensors[number], kinds[number]
        if not _may_be_quantized(tensor):
            continue
        if not is_quantized(mixture.default):
            types[number] = mixture.default
            continue
        chosen = next((name for pattern, name in patterns if pattern.search(tensor.name)), None)
        if chosen is None:
            chosen = _from_mixture(tensor, kind, mixture, model, seen[kind])
            seen[kind] += 1
        types[number] = _fitting(chosen, tensor.shape[-1])
    return tuple(types)


def file_order(name: str) -> tuple[int, bytes]:
    """Sorts names as llama.cpp's files have them: what belongs to no layer, then layer by layer, each by name."""
    match = _LAYER.match(name)
    return (int(match[1]) if match else -1, name.encode())


def kind_of(name: str) -> str:
    """What the mixtures call a tensor: one of KINDS."""
    if name in WHOLE_NAMES:
        return WHOLE_NAMES[name]
    return next((kind for part, kind in PARTS if part in name), "other")


def ftype_named(text: str) -> str:
    """The file type that a user means, in any case.

    Raises:
        UsageError: there is none.
    """
    name = ALIASES.get(text.upper(), text.upper())
    if name not in FTYPES:
        raise UsageError(f"unknown file type {text[:40]!r}", "known are " + ", ".join([*FTYPES, *ALIASES]))
    return name


def parse_override(text: str) -> Override:
    """REGEX=TYPE as llama-quantize reads it: the expression in lower case, split at the first `=`.

    Raises:
        UsageError: no such type, or not an expression that means the same in lower case.
    """
    pattern, separator, name = text.partition("=")
    if not (pattern and separator and name):
        raise UsageError(f"not REGEX=TYPE: {text[:100]!r}", "write, for example, --tensor-type attn_v=Q8_0")
    if name.upper() not in GGML_TYPES or name.upper() in _NOT_WEIGHTS:
        known = ", ".join(known for known in GGML_TYPES if known not in _NOT_WEIGHTS)
        raise UsageError(f"unknown tensor type {name[:40]!r} in {text[:100]!r}", f"known are {known}")
    if _SHOUTED.search(pattern):
        raise UsageError(
            f"{pattern[:100]!r} means something else in lower case, in which llama-quantize reads it",
            "names are in lower case: write [^0-9] for \\D, and so on",
        )
    try:
        re.compile(pattern.lower())
    except (re.error, OverflowError, RecursionError) as error:
        raise UsageError(f"not a regular expression: {pattern[:100]!r}: {error}") from error
    return pattern.lower(), name.upper()


def refuse_without_importance(
    tensors: Sequence[Described], types: Sequence[str], ftype: str, known: Container[str]
) -> None:
    """Refuse what llama-quantize refuses: a type below three bits for a tensor of which nothing is known.

    Args:
        tensors: all of the file.
        types: what `assign` gave them.
        ftype: a key of FTYPES.
        known: names that the importance matrix holds; empty without one.

    Raises:
        UsageError: such a tensor.
    """
    lacking = without_importance(tensors, types, ftype, known)
    if lacking:
        first = dict(zip((tensor.name for tensor in tensors), types, strict=True))[lacking[0]]
        raise UsageError(
            f"{ftype} needs an importance matrix, and none is there for {lacking[0]}, which would be {first}"
            + (f", and for {len(lacking) - 1} more" if len(lacking) > 1 else ""),
            "give --imatrix auto, an imatrix file that holds these tensors, or another --type",
        )


def without_importance(
    tensors: Sequence[Described], types: Sequence[str], ftype: str, known: Container[str]
) -> tuple[str, ...]:
    """Names of the tensors for which `refuse_without_importance` would refuse."""
    return tuple(
        tensor.name
        for tensor, name in zip(tensors, types, strict=True)
        if (name in NEED_IMPORTANCE or (name == "Q2_K" and ftype == "Q2_K_S"))
        and kind_of(tensor.name) not in ("output", "token_embd")
        and tensor.name not in known
    )


def _may_be_quantized(tensor: Described) -> bool:
    """Whether it is a matrix, or one per expert, of weights that bear it."""
    name, shape = tensor.name, list(tensor.shape)
    while shape and shape[0] == 1:  # ggml does not count leading sizes of one
        del shape[0]
    matrix = len(shape) >= 2 and name.endswith("weight")
    return matrix and name not in KEPT_NAMES and not any(part in name for part in KEPT_PARTS)


def _from_mixture(tensor: Described, kind: str, mixture: Ftype, model: _Model, index: int) -> str:
    if kind == "output" or (kind == "token_embd" and model.tied):
        whole_blocks = tensor.shape[-1] % GGML_TYPES[mixture.default].block == 0
        return mixture.head if whole_blocks else "Q8_0"
    place = Place(
        index=_layer_in(tensor.name, model.layers) if _counts_layers(kind, mixture, model) else index,
        count=model.values if kind == "attn_v" else model.layers,
        sharing=model.sharing,
        experts=model.experts,
        stacked=len(tensor.shape) > 2 and tensor.shape[-3] > 1,
        importance=model.importance,
    )
    common: Mapping[str, Rules] = COMMON if mixture.common else {}
    rules = (*common.get(kind, ()), *mixture.rules.get(kind, ()))
    chosen = next((name for condition, name in rules if condition(place)), mixture.default)
    if kind == "attn_v" and mixture.common and model.large and chosen in ("Q3_K", "Q4_K"):
        return "Q5_K"
    return chosen


def _counts_layers(kind: str, mixture: Ftype, model: _Model) -> bool:
    """Whether a kind's index is its layer: experts that are tensors of their own would be counted apart."""
    return kind.startswith("ffn_") and mixture.common and model.experts > 1


def _layer_in(name: str, layers: int) -> int:
    match = _LAYER.match(name)
    if match is None or int(match[1]) >= layers:
        raise BadInputError(f"{name} belongs to none of the {layers} layers that the metadata declare")
    return int(match[1])


def _fitting(name: str, columns: int) -> str:
    """The type itself, or what takes its place where rows are not made of whole blocks."""
    if columns % GGML_TYPES[name].block == 0:
        return name
    other = FALLBACKS.get(name, name)
    return other if columns % GGML_TYPES[other].block == 0 else "F16"
