"""Granite 3 and 4 dense: Llama's tensors with multipliers on embeddings, residuals and logits."""

from quantkit.families.family import Family
from quantkit.families.llama import ATTENTION, FUSED, GATED_MLP

GRANITE = Family(
    name="granite",
    architectures=("GraniteForCausalLM",),
    model_class="GraniteForCausalLM",
    model_type="granite",
    stages=ATTENTION + GATED_MLP,
    fused=FUSED,
    first_transformers="4.45",
)
