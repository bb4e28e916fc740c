"""What llama.cpp decides by the looks of names, of tokens and of models, whatever the file says."""

import re

from quantkit.vocab.gguf_state import Limit, State

# By these texts it knows what ends a turn, a message, or otherwise generation.
ENDS_TURN = (
    "<|eot_id|>",
    "<|im_end|>",
    "<end_of_turn>",
    "<|end|>",
    "<end_of_utterance>",
    "<EOT>",
    "[EOT]",
)
ENDS_MESSAGE = ("<|eom_id|>",)
ENDS = frozenset(
    (
        *("</s>", "<eos>", "[EOS]", "<|endoftext|>", "<|end_of_text|>", "<｜end▁of▁sentence｜>", "_<EOT>", "[e~["),
        *("<|return|>", "<|call|>", "<|calls|>", "<|flush|>", "<turn|>", "<|tool_response>"),
        *ENDS_TURN,
        *ENDS_MESSAGE,
    )
)
FILLS_IN = {  # the middle of a text: key -> texts
    "fim_pre": ("<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>"),
    "fim_suf": ("<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>"),
    "fim_mid": ("<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>"),
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}
ALWAYS_SPECIAL = ENDS.union(
    *FILLS_IN.values(),
    ("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>", "<|prefix|>", "<|suffix|>", "<|middle|>"),
    ("<PAD>", "[PAD]", "<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"),
)
# In a model of such a name special tokens take the spaces behind them, but for these tokens.
PHI3 = re.compile("phi-?3", re.IGNORECASE)
PHI3_KEEPS = frozenset(("<unk>", "<s>", "<|endoftext|>"))
SHOWN = 3  # tokens named in a note


def taken_for_special(state: State) -> tuple[Limit, ...]:
    """Tokens that llama.cpp finds in text because of their looks, and transformers does not."""
    added = {one.text for one in state.added.values()}
    texts = sorted(ALWAYS_SPECIAL.intersection(state.tokens.values()) - added)
    if not texts:
        return ()
    sentence = f"llama.cpp takes {', '.join(texts)} in a text for a special token"
    return (Limit(sentence, lambda text: any(one in text for one in texts)),)


def general_name(state: State, name: str) -> tuple[str, tuple[Limit, ...]]:
    """The model's name, spelled so that llama.cpp strips where transformers does, and the limit that is left.

    llama.cpp strips the spaces behind special tokens where the name has phi-3 or phi3 in it, and nowhere else.

    Args:
        state: of the tokenizer.
        name: as one would write it.
    """
    strip = [one.text for one in state.added.values() if one.strips]
    if PHI3.search(name) and _strips_like_phi3(state):
        return name, ()
    spelled = PHI3.sub("Phi 3", name)
    if not strip:
        return spelled, ()
    sentence = f"llama.cpp takes no spaces away around {', '.join(strip[:SHOWN])}{', …' * (len(strip) > SHOWN)}"
    return spelled, (Limit(sentence, lambda text: any(one in text for one in strip)),)


def _strips_like_phi3(state: State) -> bool:
    texts = {one.text for one in state.added.values()}
    strip = {one.text for one in state.added.values() if one.strips == "right"}
    return {"</s>", *PHI3_KEEPS} <= texts and strip == texts - PHI3_KEEPS
