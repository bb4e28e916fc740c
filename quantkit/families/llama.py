"""Llama and everything stored in its shape."""

from quantkit.families.family import Family

ATTENTION = (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("self_attn.o_proj",))
GATED_MLP = (("mlp.gate_proj", "mlp.up_proj"), ("mlp.down_proj",))
# By the keys of config.json that give these linears biases.
BIASES = {"attention_bias": ATTENTION[0] + ATTENTION[1], "mlp_bias": GATED_MLP[0] + GATED_MLP[1]}
FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}

LLAMA = Family(
    name="llama",
    architectures=("LlamaForCausalLM", "LLaMAForCausalLM"),  # the second: early 2023 conversions
    model_class="LlamaForCausalLM",
    model_type="llama",
    stages=ATTENTION + GATED_MLP,
    fused=FUSED,
    biases=BIASES,
    first_transformers="4.28",
    config_set={"architectures": ["LlamaForCausalLM"], "model_type": "llama"},
)
