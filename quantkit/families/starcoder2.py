"""StarCoder2: Llama's attention with biases, an MLP without a gate."""

from quantkit.families.family import End, Family
from quantkit.families.llama import ATTENTION

STARCODER2 = Family(
    name="starcoder2",
    architectures=("Starcoder2ForCausalLM",),
    model_class="Starcoder2ForCausalLM",
    model_type="starcoder2",
    stages=(*ATTENTION, ("mlp.c_fc",), ("mlp.c_proj",)),
    fused={"qkv_proj": ("q_proj", "k_proj", "v_proj")},
    ends=(
        End("self_attn", "self_attn.o_proj", ("input_layernorm",)),
        End("mlp", "mlp.c_proj", ("post_attention_layernorm",)),
    ),
    first_transformers="4.39",
)
