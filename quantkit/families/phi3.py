"""Phi-3 and Phi-4 mini: q, k, v and gate, up are stored fused."""

from quantkit.families.family import Family

PHI3 = Family(
    name="phi3",
    architectures=("Phi3ForCausalLM",),
    model_class="Phi3ForCausalLM",
    model_type="phi3",
    stages=(("self_attn.qkv_proj",), ("self_attn.o_proj",), ("mlp.gate_up_proj",), ("mlp.down_proj",)),
    first_transformers="4.41",
)
