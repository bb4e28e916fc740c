"""Gemma 3, the text models: Gemma 2 with norms on each head's query and key instead of soft caps."""

from quantkit.families.family import Family
from quantkit.families.gemma2 import SANDWICHED
from quantkit.families.llama import ATTENTION, FUSED, GATED_MLP

GEMMA3 = Family(
    name="gemma3",
    architectures=("Gemma3ForCausalLM",),
    model_class="Gemma3ForCausalLM",
    model_type="gemma3_text",
    head_norms={"self_attn.q_norm": "head", "self_attn.k_norm": "head"},
    stages=ATTENTION + GATED_MLP,
    fused=FUSED,
    ends=SANDWICHED,
    first_transformers="4.50",
)
