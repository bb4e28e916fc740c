"""Rotary embeddings as GGUF tells them: keys of the metadata, and tensors of factors."""

import math
from collections.abc import Mapping
from typing import Any

from quantkit.families.gguf_family import GgufFamily
from quantkit.formats.gguf_transforms import Numbers
from quantkit.plan.gguf_settings import Config, head_dim, rope_of, size_of
from quantkit.weights.gguf_types import Value

Rope = Mapping[str, Any]


def rope_settings(gguf: GgufFamily, config: Config) -> dict[str, Value]:
    """Keys behind `<architecture>.rope.`; none where the architecture does not rotate.

    Args:
        gguf: the family's row.
        config: complete, and expressible.
    """
    if not gguf.rope:
        return {}
    rope, windowed = rope_of(config), rope_of(config, "sliding_attention")
    told = {
        "dimension_count": Value("uint32", _rotated(gguf, config)),
        "freq_base": Value("float32", float(rope["rope_theta"])),
    }
    if windowed is not rope:
        told["freq_base_swa"] = Value("float32", float(windowed["rope_theta"]))
    kind = rope.get("rope_type") or "default"
    if kind in ("linear", "yarn", "longrope"):
        told["scaling.type"] = Value("string", kind)
    if kind in ("linear", "yarn"):
        told["scaling.factor"] = Value("float32", _factor(rope, config))
    if kind in ("yarn", "longrope"):
        told["scaling.original_context_length"] = Value("uint32", _original(rope, gguf, config))
    attention = _attention_factor(kind, rope, gguf, config)
    if abs(attention - 1) > 1e-6:
        told["scaling.attn_factor"] = Value("float32", attention)
    return told


def rope_tensors(gguf: GgufFamily, config: Config) -> dict[str, Numbers]:
    """Tensors of factors that frequencies are divided by, for what no key can tell."""
    rope = rope_of(config)
    kind = rope.get("rope_type") if gguf.rope else None
    if kind == "llama3":
        return {"rope_freqs.weight": Numbers(_llama3(rope, _rotated(gguf, config)))}
    if kind == "longrope":
        return {
            f"rope_factors_{name}.weight": Numbers(tuple(map(float, rope[f"{name}_factor"])))
            for name in ("long", "short")
        }
    return {}


def _rotated(gguf: GgufFamily, config: Config) -> int:
    """Values of each head that are rotated."""
    return int(head_dim(gguf, config) * (rope_of(config).get("partial_rotary_factor") or 1.0))


def _factor(rope: Rope, config: Config) -> float:
    if rope.get("factor") is not None:
        return float(rope["factor"])
    return float(config["max_position_embeddings"] / rope["original_max_position_embeddings"])


def _original(rope: Rope, gguf: GgufFamily, config: Config) -> int:
    """The context before it was stretched."""
    stated = rope.get("original_max_position_embeddings") or config.get("original_max_position_embeddings")
    return int(stated or size_of(gguf, config, "context_length"))


def _attention_factor(kind: str, rope: Rope, gguf: GgufFamily, config: Config) -> float:
    """What sines and cosines are multiplied by, beyond what llama.cpp multiplies them by of itself."""
    stated = rope.get("attention_factor")
    if kind == "yarn":
        factor = _factor(rope, config)
        theirs = _magnitude(factor, 1.0)
        if stated is None and rope.get("mscale") and rope.get("mscale_all_dim"):
            stated = _magnitude(factor, rope["mscale"]) / _magnitude(factor, rope["mscale_all_dim"])
        return 1.0 if stated is None else float(stated) / theirs
    if kind == "longrope":
        factor = _factor(rope, config)
        if stated is None and factor > 1:
            stated = math.sqrt(1 + math.log(factor) / math.log(_original(rope, gguf, config)))
        return 1.0 if stated is None else float(stated)
    return 1.0


def _magnitude(factor: float, scale: float) -> float:
    return 0.1 * scale * math.log(factor) + 1 if factor > 1 else 1.0


def _llama3(rope: Rope, rotated: int) -> tuple[float, ...]:
    """Long wavelengths are stretched by the factor, short ones not, those between in between."""
    factor, low, high = (float(rope[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    context = rope["original_max_position_embeddings"]
    factors = []
    for index in range(0, rotated, 2):
        wavelength = 2 * math.pi * rope["rope_theta"] ** (index / rotated)
        if wavelength < context / high:
            factors.append(1.0)
        elif wavelength > context / low:
            factors.append(factor)
        else:
            smooth = (context / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return tuple(factors)
