"""GLM-4 of 2025 (0414): GLM with further norms behind attention and MLP."""

from quantkit.families.family import Family
from quantkit.families.glm import FUSED_MLP
from quantkit.families.llama import ATTENTION

GLM4 = Family(
    name="glm4",
    architectures=("Glm4ForCausalLM",),
    model_class="Glm4ForCausalLM",
    model_type="glm4",
    stages=ATTENTION + FUSED_MLP,
    fused={"qkv_proj": ("q_proj", "k_proj", "v_proj")},
    first_transformers="4.51.3",
)
