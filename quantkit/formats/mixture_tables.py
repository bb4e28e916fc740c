"""llama.cpp's file types as a table: which ggml type each kind of tensor gets, and where a layer gets a better one.

A file type such as Q4_K_M is a mixture: a default type, and rules for the tensors that suffer most. The rules are
those of llama.cpp's quantizer (src/llama-quant.cpp at commit 0c1e57098); tests hold them against its own answers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from quantkit.formats.mixture_conditions import (
    Rules,
    always,
    blind,
    blind_first_eighth,
    eight,
    first_eighth,
    first_four,
    first_sixteenth,
    first_two,
    middle,
    seeing_first_eighth,
    shared,
    shared_or_experts,
    some,
    some_of_eight,
    stacked,
)
from quantkit.weights.gguf_types import GGML_TYPES


@dataclass(frozen=True)
class Ftype:
    """A file type: what most tensors get, and which get something else."""

    name: str
    number: int  # general.file_type
    default: str  # a key of GGML_TYPES
    rules: Mapping[str, Rules] = field(default_factory=dict)  # kind of tensor -> rules; without one the default
    head: str = "Q6_K"  # of output.weight, or of the embedding where there is no output.weight
    common: bool = True  # whether COMMON and the rule of the 70B models hold

    @property
    def types(self) -> frozenset[str]:
        """Every ggml type that a mixture of this name may hold beside F32, odd shapes and overrides aside."""
        if not is_quantized(self.default):
            return frozenset({self.default})
        chosen = {name for rules in self.rules.values() for _, name in rules}
        return frozenset({self.default, self.head} | chosen)


# Types that are noise without an importance matrix; and Q2_K in a Q2_K_S.
NEED_IMPORTANCE = frozenset({"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS"})

# Before the rules of the file type: beside eight experts, attention costs next to nothing.
COMMON: Mapping[str, Rules] = {"attn_v": ((eight, "Q8_0"),), "attn_k": ((eight, "Q8_0"),)}

# Architecture -> layers of its 70B model, whose attention values Q3_K and Q4_K become Q5_K.
LAYERS_OF_70B = {"llama": 80, "qwen2": 80, "olmo": 80, "deci": 80, "jais2": 68}

# Architectures for which llama.cpp has further rules that are not in this table.
UNKNOWN_RULES = frozenset({"falcon", "glm5-next", "bailingmoe3"})

# Types of 256 weights in a block -> what takes their place where rows are not made of whole blocks.
FALLBACKS = {
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"),
    **dict.fromkeys(("Q2_K", "Q3_K", "TQ1_0", "TQ2_0"), "Q4_0"),
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}

# Matrices that are never quantized: their whole name, or a part of it.
KEPT_NAMES = frozenset({"position_embd.weight", "token_types.weight"})
KEPT_PARTS = (
    "_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel", "per_layer_model_proj",
    "ssm_conv1d", "shortconv.conv.weight", "indexer.k_proj.weight", "indexer.q_proj.weight", "attn_rel_b.weight",
    "time_mix_first.weight", "time_mix_lerp_fused.weight",
    "time_mix_w0.weight", "time_mix_w1.weight", "time_mix_w2.weight",
    "time_mix_v0.weight", "time_mix_v1.weight", "time_mix_v2.weight",
    "time_mix_a0.weight", "time_mix_a1.weight", "time_mix_a2.weight",
    "time_mix_g1.weight", "time_mix_g2.weight", "time_mix_decay_w1.weight", "time_mix_decay_w2.weight",
    ".position_embd", "sam.pos_embd", "sam.neck.", "sam.net_", ".rel_pos", ".patch_embd", ".patch_merger",
    "a.rvq.codebook", "mm.a.code_embd",
)  # fmt: skip

# A name holds this -> its kind; the first that fits. `output` and `token_embd` are whole names.
WHOLE_NAMES = {
    "output.weight": "output",
    "token_embd.weight": "token_embd",
    "per_layer_token_embd.weight": "token_embd",
}
PARTS = (
    ("attn_qkv.weight", "attn_v"),
    ("attn_kv_b.weight", "attn_v"),
    ("attn_v.weight", "attn_v"),
    ("attn_k.weight", "attn_k"),
    ("attn_q.weight", "attn_q"),
    ("attn_output.weight", "attn_output"),
    ("ffn_up", "ffn_up"),
    ("ffn_gate", "ffn_gate"),
    ("ffn_down", "ffn_down"),
)
KINDS = tuple(dict.fromkeys([*WHOLE_NAMES.values(), *(kind for _, kind in PARTS), "other"]))


def is_quantized(name: str) -> bool:
    """Whether a ggml type stores blocks rather than numbers."""
    return GGML_TYPES[name].block > 1


def _low(token_embd: str, attn_v: str, attn_output: str | None) -> dict[str, Rules]:
    """The mixtures below three bits differ in these alone."""
    return {
        "token_embd": ((always, token_embd),),
        "attn_v": ((shared_or_experts, "Q4_K"), (always, attn_v)),
        "attn_k": ((eight, "Q4_K"),),
        "attn_output": ((eight, "Q5_K"), *(((always, attn_output),) if attn_output else ())),
        "ffn_down": ((first_eighth, attn_v),),
    }


_IQ4: Mapping[str, Rules] = {
    "attn_v": ((shared, "Q5_K"),),
    "attn_output": ((eight, "Q5_K"),),
    "ffn_down": ((blind_first_eighth, "Q5_K"),),
}

FTYPES: dict[str, Ftype] = {
    ftype.name: ftype
    for ftype in (
        Ftype("F32", 0, "F32"),
        Ftype("F16", 1, "F16"),
        Ftype("BF16", 32, "BF16"),
        Ftype("Q8_0", 7, "Q8_0", head="Q8_0"),
        Ftype("Q4_0", 2, "Q4_0", {"ffn_down": ((seeing_first_eighth, "Q4_1"),)}),
        Ftype("Q4_1", 3, "Q4_1"),
        Ftype("Q5_0", 8, "Q5_0", {"ffn_down": ((seeing_first_eighth, "Q5_1"),)}),
        Ftype("Q5_1", 9, "Q5_1"),
        Ftype("Q6_K", 18, "Q6_K"),
        Ftype("Q5_K_M", 17, "Q5_K", {"attn_v": ((some, "Q6_K"),), "ffn_down": ((some, "Q6_K"),)}),
        Ftype("Q5_K_S", 16, "Q5_K"),
        Ftype("Q4_K_M", 15, "Q4_K", {
            "attn_v": ((some, "Q6_K"),),
            "attn_output": ((eight, "Q5_K"),),
            "ffn_down": ((some, "Q6_K"),),
        }),
        Ftype("Q4_K_S", 14, "Q4_K", {
            "attn_v": ((first_four, "Q5_K"),),
            "attn_output": ((eight, "Q5_K"),),
            "ffn_down": ((first_eighth, "Q5_K"),),
        }),
        Ftype("Q3_K_L", 13, "Q3_K", {
            "attn_v": ((always, "Q5_K"),),
            "attn_output": ((eight, "Q3_K"), (always, "Q5_K")),
            "ffn_down": ((always, "Q5_K"),),
        }),
        Ftype("Q3_K_M", 12, "Q3_K", {
            "attn_v": ((first_two, "Q5_K"), (always, "Q4_K")),
            "attn_output": ((eight, "Q5_K"), (always, "Q4_K")),
            "ffn_down": ((first_sixteenth, "Q5_K"), (always, "Q4_K")),
        }),
        Ftype("Q3_K_S", 11, "Q3_K", {"attn_output": ((eight, "Q5_K"),)}),
        Ftype("Q2_K", 10, "Q2_K", {
            "attn_v": ((shared, "Q4_K"), (always, "Q3_K")),
            "attn_output": ((eight, "Q5_K"), (always, "Q3_K")),
            "ffn_down": ((always, "Q3_K"),),
        }),
        Ftype("Q2_K_S", 21, "Q2_K", {"attn_v": ((shared, "Q4_K"),), "ffn_down": ((first_eighth, "Q4_K"),)}),
        Ftype("IQ4_NL", 25, "IQ4_NL", _IQ4),
        Ftype("IQ4_XS", 30, "IQ4_XS", _IQ4),
        Ftype("IQ3_M", 27, "IQ3_S", {
            "attn_v": ((always, "Q4_K"),),
            "attn_output": ((eight, "Q5_K"), (always, "Q4_K")),
            "ffn_down": ((first_eighth, "Q4_K"), (some_of_eight, "Q4_K")),
        }),
        Ftype("IQ3_S", 26, "IQ3_S", {"attn_v": ((shared, "Q4_K"),), "attn_output": ((eight, "Q5_K"),)}),
        Ftype("IQ3_XS", 22, "IQ3_S", {
            "attn_v": ((shared, "Q4_K"),),
            "attn_q": ((always, "IQ3_XXS"),),
            "attn_k": ((always, "IQ3_XXS"),),
            "attn_output": ((eight, "Q5_K"),),
            "ffn_gate": ((middle, "IQ3_XXS"),),
            "ffn_up": ((middle, "IQ3_XXS"),),
        }),
        Ftype("IQ3_XXS", 23, "IQ3_XXS", {
            "token_embd": ((always, "IQ3_S"),),
            "attn_v": ((shared, "Q4_K"), (blind, "IQ3_S")),
            "attn_q": ((always, "IQ2_S"),),
            "attn_k": ((always, "IQ2_S"),),
            "attn_output": ((eight, "Q5_K"), (always, "IQ3_S")),
            "ffn_down": ((blind_first_eighth, "Q4_K"), (blind, "Q3_K")),
        }, head="Q5_K"),
        Ftype("IQ2_M", 29, "IQ2_S", _low("IQ3_S", "IQ3_S", "IQ3_S"), head="Q5_K", common=False),
        Ftype("IQ2_S", 28, "IQ2_XS", _low("IQ3_S", "IQ3_S", "IQ3_S"), head="Q5_K", common=False),
        Ftype("IQ2_XS", 20, "IQ2_XS", _low("Q2_K", "Q2_K", None), head="Q5_K", common=False),
        Ftype("IQ2_XXS", 19, "IQ2_XXS", _low("Q2_K", "Q2_K", None), head="Q5_K", common=False),
        Ftype("IQ1_M", 31, "IQ1_M", _low("Q2_K", "Q2_K", "IQ2_XXS"), head="Q5_K", common=False),
        Ftype("IQ1_S", 24, "IQ1_S", _low("Q2_K", "Q2_K", "IQ2_XXS"), head="Q5_K", common=False),
        Ftype("TQ2_0", 37, "TQ2_0", {"token_embd": ((always, "Q4_K"),)}),
        Ftype("TQ1_0", 36, "TQ1_0", {"token_embd": ((always, "Q4_K"),)}),
        Ftype("MXFP4_MOE", 38, "MXFP4", dict.fromkeys(KINDS, ((stacked, "MXFP4"), (always, "Q8_0"))), "Q8_0", False),
    )
}  # fmt: skip

# What users type -> what they mean.
ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
