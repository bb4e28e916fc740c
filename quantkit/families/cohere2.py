"""Command R7B and Command A: Command R with sliding windows in three of four layers."""

from quantkit.families.cohere import PARALLEL
from quantkit.families.family import Family
from quantkit.families.llama import ATTENTION, FUSED, GATED_MLP

COHERE2 = Family(
    name="cohere2",
    architectures=("Cohere2ForCausalLM",),
    model_class="Cohere2ForCausalLM",
    model_type="cohere2",
    stages=ATTENTION + GATED_MLP,
    fused=FUSED,
    ends=PARALLEL,
    first_transformers="4.48",
)
