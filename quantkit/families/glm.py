"""GLM-4 of 2024: gate and up are stored fused, biases on q, k and v."""

from quantkit.families.family import Family
from quantkit.families.llama import ATTENTION

FUSED_MLP = (("mlp.gate_up_proj",), ("mlp.down_proj",))

GLM = Family(
    name="glm",
    architectures=("GlmForCausalLM",),
    model_class="GlmForCausalLM",
    model_type="glm",
    stages=ATTENTION + FUSED_MLP,
    fused={"qkv_proj": ("q_proj", "k_proj", "v_proj")},
    first_transformers="4.46",
)
