"""Gemma 2: norms before and after attention and MLP, soft-capped scores and logits."""

from quantkit.families.family import End, Family
from quantkit.families.llama import ATTENTION, FUSED, GATED_MLP

# The norms behind attention and MLP are computed anew; those before them only feed them.
SANDWICHED = (
    End("self_attn", "self_attn.o_proj", ("input_layernorm",)),
    End("mlp", "mlp.down_proj", ("pre_feedforward_layernorm",)),
)

GEMMA2 = Family(
    name="gemma2",
    architectures=("Gemma2ForCausalLM",),
    model_class="Gemma2ForCausalLM",
    model_type="gemma2",
    stages=ATTENTION + GATED_MLP,
    fused=FUSED,
    ends=SANDWICHED,
    score_bytes={2: 10, 4: 8},  # the fused kernel knows no soft cap
    first_transformers="4.42",
)
