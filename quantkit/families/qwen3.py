"""Qwen3: Llama's tensors with norms on each head's query and key."""

from quantkit.families.family import Family
from quantkit.families.llama import ATTENTION, FUSED, GATED_MLP

QWEN3 = Family(
    name="qwen3",
    architectures=("Qwen3ForCausalLM",),
    model_class="Qwen3ForCausalLM",
    model_type="qwen3",
    head_norms={"self_attn.q_norm": "head", "self_attn.k_norm": "head"},
    stages=ATTENTION + GATED_MLP,
    fused=FUSED,
    first_transformers="4.51",
)
