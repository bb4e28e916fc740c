"""Gemma: Llama's tensors with tied, scaled embeddings and norms that count from one."""

from quantkit.families.family import Family
from quantkit.families.llama import ATTENTION, FUSED, GATED_MLP

GEMMA = Family(
    name="gemma",
    architectures=("GemmaForCausalLM",),
    model_class="GemmaForCausalLM",
    model_type="gemma",
    stages=ATTENTION + GATED_MLP,
    fused=FUSED,
    first_transformers="4.38",
)
