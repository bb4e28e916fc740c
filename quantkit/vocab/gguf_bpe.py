"""Byte-level BPE for llama.cpp: tokens, merges, and the name of a pre-tokenizer."""

from quantkit.vocab.gguf_pre import find_pre, named_pre
from quantkit.vocab.gguf_state import NORMAL, Kind, State, flattened, normalizer_limits


def is_byte_level(state: State) -> bool:
    """Whether text is spelled in bytes before it is merged."""
    steps = flattened(state.pre_tokenizer, "pretokenizers")
    return state.model["type"] == "BPE" and any(step["type"] == "ByteLevel" for step in steps)


def bpe(state: State, pre: str | None) -> Kind:
    """What `tokenizer.ggml.model` gpt2 asks for.

    Args:
        state: of a byte-level BPE.
        pre: the pre-tokenizer's name in llama.cpp; None: found by its regular expressions.

    Raises:
        BadInputError: llama.cpp has no such pre-tokenizer, or does not merge in this way.
        UsageError: no pre-tokenizer has the given name.
    """
    found = named_pre(pre) if pre is not None else find_pre(state)
    for setting in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if state.model.get(setting):
            raise state.refuse(f"it has {setting} {state.model[setting]!r}")
    spaced = next((part for pair in state.model["merges"] for part in pair if " " in part), None)
    if spaced is not None:
        raise state.refuse(f"it merges {spaced!r}, and llama.cpp separates what it merges by a space")
    limits = normalizer_limits(state, flattened(state.normalizer, "normalizers"))
    return Kind(
        model="gpt2",
        pre=found.name,
        types=dict.fromkeys(state.tokens, NORMAL),
        merges=tuple(f"{left} {right}" for left, right in state.model["merges"]),
        limits=(*limits, *found.limits),
    )
