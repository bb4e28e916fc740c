"""What headers and config.json say against one another, before any model class is built."""

import fnmatch
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from quantkit.errors import BadInputError
from quantkit.families.checks import DEPTH, HEADS, HIDDEN, INNER, stated
from quantkit.families.family import Family
from quantkit.tensors import FLOATS, TensorInfo

# The last part of a linear's name -> its out_features and in_features.
LINEARS = {
    "q_proj": ("queries", "hidden"),
    "k_proj": ("keys", "hidden"),
    "v_proj": ("keys", "hidden"),
    "o_proj": ("hidden", "queries"),
    "out_proj": ("hidden", "queries"),
    "gate_proj": ("inner", "hidden"),
    "up_proj": ("inner", "hidden"),
    "down_proj": ("hidden", "inner"),
    "fc1": ("inner", "hidden"),
    "fc2": ("hidden", "inner"),
    "c_fc": ("inner", "hidden"),
    "c_proj": ("hidden", "inner"),
    "gate_up_proj": ("twice inner", "hidden"),
    "qkv_proj": ("queries, keys, values", "hidden"),
}
# Norms of a whole hidden state, by the last part of their names; those of heads have other sizes.
HIDDEN_NORMS = (
    "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm",
    "post_self_attn_layernorm", "post_mlp_layernorm", "self_attn_layer_norm", "final_layer_norm",
)  # fmt: skip


def check_layers(family: Family, config: Mapping[str, Any], infos: Mapping[str, TensorInfo]) -> None:
    """Refuse tensors that are not those of the decoder layers that config.json describes.

    Needs headers alone. What it lets pass is compared with transformers' own model later; what it refuses is
    refused in a fraction of the time that loading torch takes.

    Args:
        family: names of the layers and their linears.
        config: config.json, sane by itself.
        infos: every tensor of the checkpoint.

    Raises:
        BadInputError: a tensor that is missing, surplus, of another shape or not of a float dtype.
    """
    sizes = dict(_sizes(config))
    ends = [family.embedding + ".weight", family.head + ".weight"]
    if config.get("tie_word_embeddings") is not False:  # the head may be the embedding
        ends = [name for name in ends if name in infos]
    for name in ends:
        required(infos, name, (sizes.get("vocabulary"), sizes.get("hidden")))
    if family.final_norm is not None:
        required(infos, f"{family.final_norm}.weight", (sizes.get("hidden"),))
    layers = _by_layer(family, infos)
    depth = stated(config, DEPTH) or len(layers)
    named = Counter(suffix for names in layers.values() for suffix in names)
    # A name belongs where most layers have it; ties are for transformers' model to decide.
    common = [suffix for suffix, count in named.items() if 2 * count > min(depth, len(layers))]
    wanted = [f"{name}.weight" for name in family.linears]
    wanted += [
        f"{name}.bias" for key, names in family.biases.items() if not key or config.get(key) is True for name in names
    ]
    common += [name for name in wanted if name not in common]
    for layer in range(depth):
        for suffix in common:
            required(infos, f"{family.layers}.{layer}.{suffix}", _wanted(family, suffix, sizes))
    for info in infos.values():
        if _is_surplus(family, info.name, depth):
            where = f" of {depth}" if info.name.startswith(family.layers + ".") else ""
            raise BadInputError(
                f"tensor {info.name} has no place in a {family.name} model{where}: surplus in {info.file}"
            )


def required(infos: Mapping[str, TensorInfo], name: str, shape: tuple[int | None, ...] | None = None) -> TensorInfo:
    """A tensor that a checkpoint must hold, in a float dtype.

    Args:
        infos: every tensor of the checkpoint.
        name: of this one.
        shape: its sizes, with None for those that are left open; None: any shape.

    Raises:
        BadInputError: it is missing, of another shape or not of a float dtype.
    """
    sizes = [size or "any" for size in shape or ()]
    if name not in infos:
        packed = next((found for found in infos if found.endswith((".qweight", ".weight_packed"))), None)
        hint = f"it holds {packed}: start from the 16-bit checkpoint that it was made from" if packed else None
        raise BadInputError(f"tensor {name}{f' {sizes}' if sizes else ''} is missing from the checkpoint", hint)
    info = infos[name]
    if shape is not None and (
        len(info.shape) != len(shape)
        or any(size not in (None, found) for size, found in zip(shape, info.shape, strict=True))
    ):
        raise BadInputError(f"tensor {name} in {info.file} is {list(info.shape)}, config.json asks for {sizes}")
    if info.dtype not in FLOATS:
        raise BadInputError(f"tensor {name} in {info.file} is {info.dtype}, expected F32, F16 or BF16")
    return info


def _is_surplus(family: Family, name: str, depth: int) -> bool:
    """Whether a tensor is neither in a layer, nor beside the layers, nor the head."""
    if any(fnmatch.fnmatchcase(name, pattern) for pattern in family.dropped):
        return False
    if name.startswith(family.layers + "."):
        layer = _layer(family, name)
        return layer is None or layer >= depth
    return not name.startswith((family.layers.rpartition(".")[0] + ".", family.head + "."))


def _layer(family: Family, name: str) -> int | None:
    number = name.removeprefix(family.layers + ".").partition(".")[0]
    # Plain digits only: int() takes other alphabets' too, and refuses numbers of thousands of digits.
    return int(number) if number.isascii() and number.isdigit() and len(number) < 10 else None


def _by_layer(family: Family, infos: Mapping[str, TensorInfo]) -> dict[int, list[str]]:
    """Names inside each layer of the tensors that are read."""
    layers: dict[int, list[str]] = {}
    for name in infos:
        layer = _layer(family, name) if name.startswith(family.layers + ".") else None
        if layer is not None and not any(fnmatch.fnmatchcase(name, pattern) for pattern in family.dropped):
            layers.setdefault(layer, []).append(name.removeprefix(f"{family.layers}.{layer}."))
    return layers


def _sizes(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """The sizes that are stated, by the words of LINEARS."""
    hidden, inner, heads = (stated(config, names) for names in (HIDDEN, INNER, HEADS))
    head = config.get("head_dim") or (hidden // heads if hidden and heads else None)
    if vocabulary := config.get("vocab_size"):
        yield "vocabulary", vocabulary
    if hidden:
        yield "hidden", hidden
    if inner:
        yield "inner", inner
        yield "twice inner", 2 * inner
    if config.get("head_dim"):
        yield "head", config["head_dim"]
    if heads and head:
        keys = (config.get("num_key_value_heads") or heads) * head
        yield "queries", heads * head
        yield "keys", keys
        yield "queries, keys, values", heads * head + 2 * keys


def _wanted(family: Family, suffix: str, sizes: Mapping[str, int]) -> tuple[int | None, ...] | None:
    """The shape of a weight or bias of a linear or norm, None for a size that config.json leaves to its default."""
    module, _, leaf = suffix.rpartition(".")
    last = module.rpartition(".")[2]
    norm = family.head_norms.get(module) or ("hidden" if last in HIDDEN_NORMS else None)
    words = (norm,) if norm else LINEARS.get(last)
    if words is None or leaf not in ("weight", "bias"):
        return None
    return tuple(sizes.get(word) for word in (words if leaf == "weight" else words[:1]))
