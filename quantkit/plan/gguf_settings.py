"""A configuration as GGUF needs it: complete, by the names of the table, rotary settings sorted out."""

import copy
from collections.abc import Mapping
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from quantkit.errors import BadInputError
from quantkit.families.checks import check_model_type, refusal
from quantkit.families.family import Family
from quantkit.families.gguf_family import GgufFamily, Setting

Config = Mapping[str, Any]
# What transformers raises for configurations that make no sense.
REFUSALS = (
    ArithmeticError, AttributeError, LookupError, RuntimeError, StrictDataclassError, TypeError, ValueError,
)  # fmt: skip


def complete_config(family: Family, config: Config) -> dict[str, Any]:
    """config.json with transformers' defaults filled in and its rotary settings under `rope_parameters`.

    Args:
        family: whose transformers class completes it.
        config: config.json as an artifact of the checkpoint has it.

    Raises:
        BadInputError: transformers refuses it.
    """
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    # By the names of the classes: to import the model's own would take seconds, and a hundred megabytes.
    kinds = [kind for kind, name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items() if name == family.model_class]
    stated = str(config.get("model_type"))
    if stated not in kinds:
        check_model_type(config, kinds[0])
    try:
        complete = CONFIG_MAPPING[stated].from_dict(copy.deepcopy(dict(config)))
    except REFUSALS as error:
        library = f"transformers {transformers.__version__}"
        raise BadInputError(f"{library} refuses this config.json: {refusal(error, config)}") from error
    return dict(complete.to_dict())


def value_of(config: Config, setting: Setting) -> int | float | None:
    """What a complete configuration says, or the default that GGUF needs."""
    found = next((config[name] for name in setting.names if config.get(name) is not None), setting.default)
    if found is None:
        return None
    return int(found) if setting.kind == "uint32" else float(found)


def size_of(gguf: GgufFamily, config: Config, key: str) -> int:
    """A size of the table that every model has."""
    setting = next(setting for setting in gguf.settings if setting.key == key)
    found = value_of(config, setting)
    if found is None:
        raise BadInputError(f"config.json has none of {', '.join(setting.names)}")
    return int(found)


def head_dim(gguf: GgufFamily, config: Config) -> int:
    """Width of a head."""
    own = config.get("head_dim")
    return own or size_of(gguf, config, "embedding_length") // size_of(gguf, config, "attention.head_count")


def experts(config: Config) -> int:
    """Experts of a layer, 0 where there are none."""
    return int(config.get("num_local_experts") or config.get("num_experts") or 0)


def rope_of(config: Config, kind: str = "full_attention") -> Mapping[str, Any]:
    """Rotary settings of the layers of one kind."""
    settings = config.get("rope_parameters") or {}
    own = settings.get(kind)
    return own if isinstance(own, Mapping) else settings


def windowed_layers(gguf: GgufFamily, config: Config) -> tuple[bool, ...]:
    """Of each layer whether it sees a window only."""
    layers = size_of(gguf, config, "block_count")
    if not config.get("sliding_window") or config.get("use_sliding_window") is False:
        return (False,) * layers
    kinds = config.get("layer_types") or ["sliding_attention"] * layers
    return tuple(kind == "sliding_attention" for kind in kinds)


def query_scale(gguf: GgufFamily, config: Config) -> float:
    """What queries must be multiplied by, since llama.cpp knows no `query_pre_attn_scalar`."""
    width = head_dim(gguf, config)
    if size_of(gguf, config, "block_count") == gguf.layers_of_largest:
        width = size_of(gguf, config, "embedding_length") // size_of(gguf, config, "attention.head_count")
    return float((width / config["query_pre_attn_scalar"]) ** 0.5)


def embedding_scale(gguf: GgufFamily, config: Config) -> float:
    """What embeddings must be multiplied by, where llama.cpp's graph does not do it."""
    return float(size_of(gguf, config, "embedding_length") ** 0.5) if config.get("scale_embedding") else 1.0


SCALES = {"query": query_scale, "embedding": embedding_scale}
