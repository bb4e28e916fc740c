"""OLMo: Llama's tensors with norms that have no weights."""

from quantkit.families.family import Family
from quantkit.families.llama import ATTENTION, FUSED, GATED_MLP

OLMO = Family(
    name="olmo",
    architectures=("OlmoForCausalLM",),
    model_class="OlmoForCausalLM",
    model_type="olmo",
    final_norm=None,
    stages=ATTENTION + GATED_MLP,
    fused=FUSED,
    first_transformers="4.40",
)
