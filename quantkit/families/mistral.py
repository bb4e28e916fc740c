"""Mistral: Llama's tensors with sliding-window attention."""

from quantkit.families.family import Family
from quantkit.families.llama import ATTENTION, FUSED, GATED_MLP

MISTRAL = Family(
    name="mistral",
    architectures=("MistralForCausalLM",),
    model_class="MistralForCausalLM",
    model_type="mistral",
    stages=ATTENTION + GATED_MLP,
    fused=FUSED,
    first_transformers="4.34",
)
