"""The sanity of a config.json by itself: sizes, numbers and rotary settings, before anything is built from it."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from quantkit.errors import BadInputError

# Whole numbers from 1 up to these; far above any model, far below what would stall or fill the memory.
LARGEST = {
    "vocab_size": 2**24,
    "hidden_size": 2**20,
    "d_model": 2**20,
    "intermediate_size": 2**24,
    "ffn_dim": 2**24,
    "num_hidden_layers": 4096,
    "num_layers": 4096,
    "num_attention_heads": 2**16,
    "attention_heads": 2**16,
    "num_key_value_heads": 2**16,
    "head_dim": 2**16,
    "max_position_embeddings": 2**31,
    "sliding_window": 2**31,
    "num_labels": 2**16,
}
MAY_BE_NULL = ("num_key_value_heads", "head_dim", "sliding_window")
# Names of one size in different families; the first is what messages and most families use.
DEPTH = ("num_hidden_layers", "num_layers")
HIDDEN = ("hidden_size", "d_model")
INNER = ("intermediate_size", "ffn_dim")
HEADS = ("num_attention_heads", "attention_heads")
ABOVE_ZERO = (
    "rms_norm_eps", "layer_norm_eps", "norm_eps", "layer_norm_epsilon", "norm_epsilon", "rope_theta",
    "rope_local_base_freq", "partial_rotary_factor", "rotary_emb_base", "query_pre_attn_scalar",
)  # fmt: skip
ROPE_KEYS = ("rope_scaling", "rope_parameters")
ROPE_NUMBERS = (
    "factor", "rope_theta", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor", "beta_fast",
    "beta_slow", "attention_factor", "partial_rotary_factor",
)  # fmt: skip
LARGEST_ROPE_FACTOR = 2**20
# What transformers computes, with the settings that each takes; "su" and "mrope" are older names.
ROPE_NEEDS = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "longrope": ("short_factor", "long_factor"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "proportional": (),
    "su": ("short_factor", "long_factor"),
    "mrope": (),
}
ACTIVATION_KEYS = ("hidden_act", "hidden_activation", "activation_function")
ACTIVATIONS = (
    "gelu", "gelu_10", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python", "gelu_python_tanh",
    "gelu_pytorch_tanh", "hardswish", "laplace", "leaky_relu", "linear", "mish", "prelu", "quick_gelu", "relu",
    "relu2", "relu6", "sigmoid", "silu", "sqrtsoftplus", "swish", "tanh", "xielu",
)  # fmt: skip
SWITCHES = ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_cache", "use_bias")
DTYPE_KEYS = ("torch_dtype", "dtype")
DTYPE_CHOICES = ("auto", "float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
_HINT = "compare it with the config.json that the checkpoint was published with"


def check_config(config: Mapping[str, Any]) -> None:
    """Refuse sizes and settings that no model has.

    Only what is stated is looked at: a key that is left out has transformers' default.

    Args:
        config: config.json as data.

    Raises:
        BadInputError: the first key that is wrong, with what was found and what is expected.
    """
    _check_sizes(config)
    _check_heads(config)
    _check_numbers(config)
    for key in ROPE_KEYS:
        rope = config.get(key)
        if rope is not None and not isinstance(rope, dict):
            raise _bad(key, rope, "an object or null")
        _check_rope(key, rope or {})
    _check_choices(config)
    padding, vocabulary = config.get("pad_token_id"), config.get("vocab_size", LARGEST["vocab_size"])
    if type(padding) is int and padding >= vocabulary:
        raise _bad("pad_token_id", padding, f"an id below vocab_size {vocabulary}")
    for key in DTYPE_KEYS:
        dtype = config.get(key)
        if dtype is not None and dtype not in DTYPE_CHOICES:
            raise _bad(key, dtype, "float32, float16 or bfloat16")


def check_model_type(config: Mapping[str, Any], expected: str) -> None:
    """Refuse a model_type of another class than the one that `architectures` names: runtimes go by either.

    Raises:
        BadInputError: they contradict one another, or there is none.
    """
    found = config.get("model_type")
    if found != expected:
        architecture = str(config["architectures"][0])
        raise _bad("model_type", found, f"{expected!r}, as {architecture} has it")


def stated(config: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    """A size by the first of its names that a sane config.json has."""
    return next((config[name] for name in names if config.get(name)), None)


def refusal(error: Exception, config: Mapping[str, Any]) -> str:
    """What transformers or torch did not like about a configuration, on one short line."""
    missing = error.args[0] if isinstance(error, KeyError) and error.args else None
    key = next((path for path, value in _flat(config) if value == missing), None)
    if isinstance(missing, str) and key is not None:  # a table of choices did not have it
        return f"it does not know {key} {missing!r}"
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value with the path of its key, also inside of objects."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _check_sizes(config: Mapping[str, Any]) -> None:
    for key, most in LARGEST.items():
        if key not in config or (config[key] is None and key in MAY_BE_NULL):
            continue
        if not _is_whole(config[key]) or not 1 <= config[key] <= most:
            raise _bad(key, config[key], f"a whole number from 1 to {most}")


def _check_heads(config: Mapping[str, Any]) -> None:
    hidden, heads = stated(config, HIDDEN), stated(config, HEADS)
    key_value = config.get("num_key_value_heads")
    if heads is None:
        return
    if hidden is not None and config.get("head_dim") is None and hidden % heads:
        raise BadInputError(f"config.json: found hidden size {hidden} with {heads} heads, expected a multiple", _HINT)
    if key_value is not None and (key_value > heads or heads % key_value):
        raise _bad("num_key_value_heads", key_value, f"a divisor of the {heads} attention heads")


def _check_numbers(config: Mapping[str, Any]) -> None:
    for key, value in config.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise _bad(key, value, "a finite number")
        if key in ABOVE_ZERO and value is not None and not _is_above_zero(value):
            raise _bad(key, value, "a number above 0")


def _check_choices(config: Mapping[str, Any]) -> None:
    """Words and switches that transformers' own classes would refuse, or not know."""
    for key in ACTIVATION_KEYS:
        found = config.get(key)
        if found is not None and found not in ACTIVATIONS:
            raise _bad(key, found, "silu, gelu or another activation that transformers knows")
    for key in SWITCHES:
        if config.get(key) is not None and not isinstance(config[key], bool):
            raise _bad(key, config[key], "true or false")
    labels = config.get("id2label")
    if labels is not None and not (isinstance(labels, dict) and all(str(number).isdecimal() for number in labels)):
        raise _bad("id2label", labels, "labels by their numbers")


def _check_rope(path: str, rope: Mapping[str, Any]) -> None:
    """Rotary settings, also those that stand one level deeper, by kind of layer."""
    key, kind = next(((key, rope[key]) for key in ("rope_type", "type") if rope.get(key) is not None), ("", "default"))
    if not isinstance(kind, str) or kind not in ROPE_NEEDS:
        raise _bad(f"{path}.{key}", kind, ", ".join(list(ROPE_NEEDS)[:6]))
    if lacking := [need for need in ROPE_NEEDS[kind] if rope.get(need) is None]:
        raise _bad(path, rope, f"{lacking[0]} beside {key} {kind!r}")
    for key, value in rope.items():
        where = f"{path}.{key}"
        if isinstance(value, dict):
            _check_rope(where, value)
        elif key == "factor" and value is not None and not (_is_above_zero(value) and value <= LARGEST_ROPE_FACTOR):
            raise _bad(where, value, f"a number above 0, at most {LARGEST_ROPE_FACTOR}")
        elif key in ROPE_NUMBERS and value is not None and not _is_above_zero(value):
            raise _bad(where, value, "a number above 0")
        elif isinstance(value, list) and not all(_is_above_zero(part) for part in value):
            raise _bad(where, value, "a list of numbers above 0")


def _is_whole(value: object) -> bool:
    return type(value) is int  # JSON true is a bool, which isinstance() counts as an int


def _is_above_zero(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _bad(key: str, found: object, expected: str) -> BadInputError:
    text = repr(found)
    shown = text if len(text) <= 60 else text[:57] + "..."
    return BadInputError(f"config.json: found {key} {shown}, expected {expected}", _HINT)
