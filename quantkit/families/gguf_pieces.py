"""Tensors and settings that many families have in common, as GGUF calls them."""

from quantkit.families.gguf_family import Piece, Setting

EMBEDDING = Piece("token_embd", ("model.embed_tokens",))
HEAD = Piece("output", ("lm_head",))
# llama.cpp takes the embedding for the head of some architectures, whatever the file holds.
TIED = (EMBEDDING, Piece("output_norm", ("model.norm",)))
TIED_FROM_ONE = (EMBEDDING, Piece("output_norm", ("model.norm",), addend=1.0))
OUTSIDE = (*TIED, HEAD)
OUTSIDE_FROM_ONE = (*TIED_FROM_ONE, HEAD)

VALUE = Piece("attn_v", ("self_attn.v_proj",), bias="maybe")
OUTPUT = Piece("attn_output", ("self_attn.o_proj",))
OUTPUT_BIAS = Piece("attn_output", ("self_attn.o_proj",), bias="maybe")
# As stored: llama.cpp rotates the two halves of a head against one another, or the model itself rotates neighbours.
PLAIN_QKV = (
    Piece("attn_q", ("self_attn.q_proj",), bias="maybe"),
    Piece("attn_k", ("self_attn.k_proj",), bias="maybe"),
    VALUE,
)
# llama.cpp rotates neighbours, the model the two halves.
HEADS_QKV = (
    Piece("attn_q", ("self_attn.q_proj",), bias="maybe", heads="query"),
    Piece("attn_k", ("self_attn.k_proj",), bias="maybe", heads="key"),
    VALUE,
)
HEAD_NORMS = (Piece("attn_q_norm", ("self_attn.q_norm",)), Piece("attn_k_norm", ("self_attn.k_norm",)))

NORMS = (Piece("attn_norm", ("input_layernorm",)), Piece("ffn_norm", ("post_attention_layernorm",)))
NORMS_BEHIND = (
    Piece("post_attention_norm", ("post_attention_layernorm",)),
    Piece("post_ffw_norm", ("post_feedforward_layernorm",)),
)
NORMS_FROM_ONE = (
    Piece("attn_norm", ("input_layernorm",), addend=1.0),
    Piece("ffn_norm", ("post_attention_layernorm",), addend=1.0),
)
SANDWICH_FROM_ONE = (
    Piece("attn_norm", ("input_layernorm",), addend=1.0),
    Piece("post_attention_norm", ("post_attention_layernorm",), addend=1.0),
    Piece("ffn_norm", ("pre_feedforward_layernorm",), addend=1.0),
    Piece("post_ffw_norm", ("post_feedforward_layernorm",), addend=1.0),
)

DOWN = Piece("ffn_down", ("mlp.down_proj",))
MLP = (Piece("ffn_gate", ("mlp.gate_proj",)), Piece("ffn_up", ("mlp.up_proj",)), DOWN)
MLP_BIAS = (
    Piece("ffn_gate", ("mlp.gate_proj",), bias="maybe"),
    Piece("ffn_up", ("mlp.up_proj",), bias="maybe"),
    Piece("ffn_down", ("mlp.down_proj",), bias="maybe"),
)
FUSED_MLP = (Piece("ffn_up", ("mlp.gate_up_proj",)), DOWN)

# Kinds of rotary scaling of the architectures that read a tensor of factors, one per frequency.
FACTORS = ("default", "linear", "yarn", "dynamic", "llama3", "longrope")

SIZES = (
    Setting("block_count", "uint32", ("num_hidden_layers", "num_layers")),
    Setting("context_length", "uint32", ("max_position_embeddings",)),
    Setting("embedding_length", "uint32", ("hidden_size", "d_model")),
    Setting("feed_forward_length", "uint32", ("intermediate_size", "ffn_dim")),
    Setting("attention.head_count", "uint32", ("num_attention_heads", "attention_heads")),
    Setting("attention.head_count_kv", "uint32", ("num_key_value_heads", "num_attention_heads", "attention_heads")),
    Setting("vocab_size", "uint32", ("vocab_size",)),
)
RMS = (*SIZES, Setting("attention.layer_norm_rms_epsilon", "float32", ("rms_norm_eps",)))
LAYER_NORM = (
    *SIZES,
    # OLMo and XGLM have no setting for it.
    Setting("attention.layer_norm_epsilon", "float32", ("layer_norm_eps", "norm_epsilon"), 1e-5),
)
EXPERTS = (
    Setting("expert_count", "uint32", ("num_local_experts", "num_experts")),
    Setting("expert_used_count", "uint32", ("num_experts_per_tok",)),
)
LOGIT_SCALE = Setting("logit_scale", "float32", ("logit_scale",))
WINDOW = Setting("attention.sliding_window", "uint32", ("sliding_window",))
FINAL_CAP = Setting("final_logit_softcapping", "float32", ("final_logit_softcapping",))
