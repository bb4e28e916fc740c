"""XGLM: every linear has a bias, the MLP stands in the layer itself, positions are sines."""

from quantkit.families.family import End, Family

XGLM = Family(
    name="xglm",
    architectures=("XGLMForCausalLM",),
    model_class="XGLMForCausalLM",
    model_type="xglm",
    final_norm="model.layer_norm",
    stages=(
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        ("self_attn.out_proj",),
        ("fc1",),
        ("fc2",),
    ),
    ends=(
        End("self_attn", "self_attn.out_proj", ("self_attn_layer_norm",)),
        End("fc2", "fc2", ("final_layer_norm", "fc1")),
    ),
    score_bytes={2: 4, 4: 8},
    dropped=("model.embed_positions.weights",),  # the table of sines, computed again by every runtime
    first_transformers="4.17",
)
