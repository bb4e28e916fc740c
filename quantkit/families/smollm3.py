"""SmolLM3: Llama's tensors, every fourth layer without rotary positions."""

from quantkit.families.family import Family
from quantkit.families.llama import ATTENTION, FUSED, GATED_MLP

SMOLLM3 = Family(
    name="smollm3",
    architectures=("SmolLM3ForCausalLM",),
    model_class="SmolLM3ForCausalLM",
    model_type="smollm3",
    stages=ATTENTION + GATED_MLP,
    fused=FUSED,
    first_transformers="4.53",
)
