"""Llama and everything stored in its shape."""

from quantkit.families.family import Family

ATTENTION = (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("self_attn.o_proj",))
GATED_MLP = (("mlp.gate_proj", "mlp.up_proj"), ("mlp.down_proj",))
FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}

LLAMA = Family(
    name="llama",
    architectures=("LlamaForCausalLM", "LLaMAForCausalLM"),  # the second: early 2023 conversions
    model_class="LlamaForCausalLM",
    stages=ATTENTION + GATED_MLP,
    fused=FUSED,
    first_transformers="4.28",
    config_set={"architectures": ["LlamaForCausalLM"], "model_type": "llama"},
)
