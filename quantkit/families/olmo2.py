"""OLMo 2: norms behind attention and MLP instead of before them, and on whole queries and keys."""

from quantkit.families.family import End, Family
from quantkit.families.llama import ATTENTION, FUSED, GATED_MLP

OLMO2 = Family(
    name="olmo2",
    architectures=("Olmo2ForCausalLM",),
    model_class="Olmo2ForCausalLM",
    model_type="olmo2",
    head_norms={"self_attn.q_norm": "queries", "self_attn.k_norm": "keys"},
    stages=ATTENTION + GATED_MLP,
    fused=FUSED,
    ends=(End("self_attn", "self_attn.o_proj"), End("mlp", "mlp.down_proj")),
    first_transformers="4.47",
)
