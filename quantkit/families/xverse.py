"""XVERSE: Llama under another name, read without its remote code and written as Llama."""

from quantkit.families.family import Family
from quantkit.families.llama import ATTENTION, BIASES, FUSED, GATED_MLP

XVERSE = Family(
    name="xverse",
    architectures=("XverseForCausalLM",),
    model_class="LlamaForCausalLM",
    model_type="llama",
    stages=ATTENTION + GATED_MLP,
    fused=FUSED,
    biases=BIASES,
    first_transformers="4.28",
    config_set={"architectures": ["LlamaForCausalLM"], "model_type": "llama"},
    rope_stated_to=16384,
    # XVERSE-13B-256K
    rope_by_context={262144: {"rope_theta": 500000, "rope_scaling": {"type": "dynamic", "factor": 2.0}}},
)
