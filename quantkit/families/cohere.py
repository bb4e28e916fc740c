"""Command R: attention and MLP beside each other, both fed by one norm."""

from quantkit.families.family import End, Family
from quantkit.families.llama import ATTENTION, FUSED, GATED_MLP

# One norm feeds both, so neither alone makes it needless.
PARALLEL = (End("self_attn", "self_attn.o_proj"), End("mlp", "mlp.down_proj"))

COHERE = Family(
    name="cohere",
    architectures=("CohereForCausalLM",),
    model_class="CohereForCausalLM",
    model_type="cohere",
    stages=ATTENTION + GATED_MLP,
    fused=FUSED,
    ends=PARALLEL,
    first_transformers="4.39",
)
