"""Mixtures of experts that are converted to GGUF: no forward pass is needed for that, so nothing else reads them."""

from quantkit.families.family import Family
from quantkit.families.gguf_family import GgufFamily, Piece, Setting
from quantkit.families.gguf_pieces import (
    EXPERTS,
    FACTORS,
    HEAD_NORMS,
    HEADS_QKV,
    NORMS,
    OUTPUT,
    OUTPUT_BIAS,
    OUTSIDE,
    PLAIN_QKV,
    RMS,
)
from quantkit.families.llama import ATTENTION

# transformers 5 computes with fused experts; it stores them so if asked to, under the names of its own modules.
GATE_UP, DOWN = "mlp.experts.gate_up_proj", "mlp.experts.down_proj"
QWEN_EXPERTS = (
    Piece("ffn_gate_inp", ("mlp.gate",)),
    Piece("ffn_gate_exps", ("mlp.experts.{expert}.gate_proj",), fused=GATE_UP, half="first"),
    Piece("ffn_up_exps", ("mlp.experts.{expert}.up_proj",), fused=GATE_UP, half="second"),
    Piece("ffn_down_exps", ("mlp.experts.{expert}.down_proj",), fused=DOWN),
)
EXPERT_WIDTH = Setting("expert_feed_forward_length", "uint32", ("moe_intermediate_size",))

MIXTRAL = Family("mixtral", ("MixtralForCausalLM",), "MixtralForCausalLM", "mixtral", ATTENTION)
QWEN2_MOE = Family("qwen2_moe", ("Qwen2MoeForCausalLM",), "Qwen2MoeForCausalLM", "qwen2_moe", ATTENTION)
QWEN3_MOE = Family("qwen3_moe", ("Qwen3MoeForCausalLM",), "Qwen3MoeForCausalLM", "qwen3_moe", ATTENTION)
CONVERTED_ONLY = (MIXTRAL, QWEN2_MOE, QWEN3_MOE)

GGUF_EXPERTS: dict[str, GgufFamily] = {
    row.family: row
    for row in (
        GgufFamily(
            "mixtral",
            "llama",
            OUTSIDE,
            (
                *NORMS,
                *HEADS_QKV,
                OUTPUT_BIAS,
                Piece("ffn_gate_inp", ("block_sparse_moe.gate",), also="mlp.gate"),
                Piece("ffn_gate_exps", ("block_sparse_moe.experts.{expert}.w1",), fused=GATE_UP, half="first"),
                Piece("ffn_up_exps", ("block_sparse_moe.experts.{expert}.w3",), fused=GATE_UP, half="second"),
                Piece("ffn_down_exps", ("block_sparse_moe.experts.{expert}.w2",), fused=DOWN),
            ),
            (*RMS, *EXPERTS),
            rope=FACTORS,
        ),
        GgufFamily(
            "qwen2_moe",
            "qwen2moe",
            OUTSIDE,
            (
                *NORMS,
                *PLAIN_QKV,
                OUTPUT,
                *QWEN_EXPERTS,
                Piece("ffn_gate_inp_shexp", ("mlp.shared_expert_gate",), flat=True),
                Piece("ffn_gate_shexp", ("mlp.shared_expert.gate_proj",)),
                Piece("ffn_up_shexp", ("mlp.shared_expert.up_proj",)),
                Piece("ffn_down_shexp", ("mlp.shared_expert.down_proj",)),
            ),
            (
                *RMS,
                *EXPERTS,
                EXPERT_WIDTH,
                Setting("expert_shared_feed_forward_length", "uint32", ("shared_expert_intermediate_size",)),
            ),
            stored_head=True,
            limits=("heads fill", "experts in every layer", "expert weights as they come"),
        ),
        GgufFamily(
            "qwen3_moe",
            "qwen3moe",
            OUTSIDE,
            (*NORMS, *PLAIN_QKV, *HEAD_NORMS, OUTPUT, *QWEN_EXPERTS),
            (*RMS, *EXPERTS, EXPERT_WIDTH),
            limits=("experts in every layer", "expert weights sum to one"),
        ),
    )
}
