"""Tiny models of every family that llama.cpp can express, in the settings that decide how."""

import copy
from collections.abc import Mapping
from pathlib import Path

import tiny
from gguf_files import make_experts

GELU = "gelu_pytorch_tanh"
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64}
LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0] * 16,
    "long_factor": [float(n + 1) for n in range(16)],
    "original_max_position_embeddings": 16,
    "factor": 8.0,
}
LINEAR = {"rope_type": "linear", "factor": 4.0}
# Settings of tests/tiny.py's variants that llama.cpp cannot express, replaced.
MENDED: Mapping[str, Mapping[str, object]] = {
    "gemma": {"hidden_act": GELU},
    "starcoder2": {"hidden_act": GELU},
    "smollm3": {"num_hidden_layers": 4, "no_rope_layers": [1, 1, 1, 0]},
    "cohere": {"use_qk_norm": False},
}
FURTHER: Mapping[str, tuple[str, Mapping[str, object]]] = {
    "llama-linear": ("LlamaForCausalLM", {"rope_scaling": LINEAR}),
    "llama-yarn": ("LlamaForCausalLM", {"rope_scaling": YARN}),
    "llama-yarn-attention": ("LlamaForCausalLM", {"rope_scaling": YARN | {"attention_factor": 1.3}}),
    "llama-yarn-mscale": ("LlamaForCausalLM", {"rope_scaling": YARN | {"mscale": 1.0, "mscale_all_dim": 0.7}}),
    "llama-longrope": ("LlamaForCausalLM", {"rope_scaling": LONG}),
    "llama-wide-heads": ("LlamaForCausalLM", {"head_dim": 64, "num_key_value_heads": 4}),
    "mistral-everything": ("MistralForCausalLM", {"sliding_window": None}),
    "qwen2-yarn": ("Qwen2ForCausalLM", {"rope_scaling": YARN}),
    "phi3-partial": ("Phi3ForCausalLM", {"partial_rotary_factor": 0.5, "tie_word_embeddings": True}),
    "gemma2-other-windows": (
        "Gemma2ForCausalLM",
        {"layer_types": ["full_attention", "sliding_attention"], "query_pre_attn_scalar": 37},
    ),
    "gemma3-linear": ("Gemma3ForCausalLM", {"rope_scaling": LINEAR, "query_pre_attn_scalar": 64}),
    "gemma3-everything": ("Gemma3ForCausalLM", {"layer_types": ["full_attention"] * 2, "tie_word_embeddings": False}),
    "glm-linear": ("GlmForCausalLM", {"rope_scaling": LINEAR}),
    "olmo-tied": ("OlmoForCausalLM", {"clip_qkv": None, "tie_word_embeddings": True}),
    "olmo2-tied": ("Olmo2ForCausalLM", {"tie_word_embeddings": True}),
    "granite-llama3": (
        "GraniteForCausalLM",
        {"rope_scaling": tiny.LLAMA3_ROPE, "attention_bias": True, "tie_word_embeddings": False, "head_dim": 16},
    ),
    "cohere-deep": ("CohereForCausalLM", {"num_hidden_layers": 64, "hidden_size": 64, "intermediate_size": 64}),
    "cohere2-nine-layers": ("Cohere2ForCausalLM", {"num_hidden_layers": 9, "layer_types": None}),
    "starcoder2-everything": ("Starcoder2ForCausalLM", {"hidden_act": GELU, "sliding_window": None}),
    "starcoder2-no-biases": (
        "Starcoder2ForCausalLM",
        {"hidden_act": GELU, "sliding_window": None, "use_bias": False, "tie_word_embeddings": False},
    ),
    "xglm-plain": ("XGLMForCausalLM", {"scale_embedding": False, "pad_token_id": 5}),
}
MIXTURES = {
    f"{architecture}-{'fused' if fused else 'published'}": (architecture, fused)
    for architecture in ("MixtralForCausalLM", "Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM")
    for fused in (False, True)
}
DENSE = {name: (kind, {**own, **MENDED.get(name, {})}) for name, (kind, own) in tiny.VARIANTS.items()} | FURTHER
NAMES = [*DENSE, *MIXTURES, "xverse"]


def make(folder: Path, name: str) -> Path:
    """The checkpoint of a variant, in float32."""
    if name in MIXTURES:
        return make_experts(folder, *MIXTURES[name])
    if name == "xverse":  # as published: its own architecture, no rotary settings
        tiny.make_model(folder, "LlamaForCausalLM", num_key_value_heads=4)
        config = {"architectures": ["XverseForCausalLM"], "model_type": "xverse"} | tiny.SHAPE
        tiny.write_json(folder / "config.json", config | {"num_key_value_heads": 4})
        return folder
    architecture, config = DENSE[name]
    return tiny.make_model(folder, architecture, **copy.deepcopy(dict(config)))
