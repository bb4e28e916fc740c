"""Qwen2 and Qwen2.5: Llama's tensors with biases on q, k and v."""

from quantkit.families.family import Family
from quantkit.families.llama import ATTENTION, FUSED, GATED_MLP

QWEN2 = Family(
    name="qwen2",
    architectures=("Qwen2ForCausalLM",),
    model_class="Qwen2ForCausalLM",
    model_type="qwen2",
    stages=ATTENTION + GATED_MLP,
    fused=FUSED,
    biases={"": ATTENTION[0]},
    first_transformers="4.37",
)
