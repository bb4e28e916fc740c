"""Unigram for llama.cpp: sentencepiece's other kind, of which the likeliest sequence of pieces is taken."""

import base64
import unicodedata

from quantkit.vocab.gguf_state import NORMAL, UNKNOWN, Kind, Limit, State, flattened, normalizer_limits
from quantkit.vocab.spm import SPACE

RUNS = {"Regex": " {2,}"}


def unigram(state: State) -> Kind:
    """What `tokenizer.ggml.model` t5 asks for.

    Raises:
        BadInputError: llama.cpp does not tokenize in this way.
    """
    model = state.model
    if model.get("byte_fallback"):
        raise state.refuse("it is a unigram that falls back on bytes, which llama.cpp's unigram does not")
    if "unk" not in state.special or model.get("unk_id") != state.special["unk"]:
        raise state.refuse("it is a unigram without an unknown token")
    scheme = _scheme(state)
    others, charsmap, merges_spaces, strips = [], b"", False, False
    for step in flattened(state.normalizer, "normalizers"):
        if step["type"] == "Precompiled":
            charsmap = base64.b64decode(step["precompiled_charsmap"] or "")
        elif step["type"] == "Replace" and step["pattern"] == RUNS and step["content"] in (" ", SPACE):
            merges_spaces = True
        elif step["type"] == "Strip" and step["strip_right"] and not step["strip_left"]:
            strips = True
        else:
            others.append(step)
    limits = list(normalizer_limits(state, others))
    limits += _space_limits(state, scheme, merges_spaces, strips)
    if charsmap:
        limits.append(Limit("llama.cpp composes letters with marks where transformers may not", composes))
    pieces = model["vocab"]
    return Kind(
        "t5",
        "default",
        types={number: UNKNOWN if number == model["unk_id"] else NORMAL for number in range(len(pieces))},
        scores={number: float(score) for number, (_, score) in enumerate(pieces)},
        flags={"add_space_prefix": scheme != "never", "remove_extra_whitespaces": merges_spaces},
        charsmap=charsmap,
        limits=tuple(limits),
    )


def composes(text: str) -> bool:
    """Whether normalization makes one character of several."""
    return "".join(unicodedata.normalize("NFKC", one) for one in text) != unicodedata.normalize("NFKC", text)


def _scheme(state: State) -> str:
    steps = flattened(state.pre_tokenizer, "pretokenizers")
    steps = [step for step in steps if step["type"] != "WhitespaceSplit" or len(steps) == 1]
    if [step["type"] for step in steps] != ["Metaspace"] or steps[0]["replacement"] != SPACE:
        raise state.refuse(f"it does not write spaces as {SPACE}")
    inner = next((piece for piece, _ in state.model["vocab"] if SPACE in piece[1:]), None)
    if steps[0].get("split", True) and inner is not None:
        raise state.refuse(f"its token {inner!r} spans words, which llama.cpp would take where it does not")
    return str(steps[0]["prepend_scheme"])


def _space_limits(state: State, scheme: str, merges_spaces: bool, strips: bool) -> list[Limit]:
    limits = []

    def parts(text: str) -> list[str]:
        return [state.normalize(part).replace(SPACE, " ") for part in state.fragments(text) if part]

    if merges_spaces and not strips:
        limits.append(
            Limit(
                "llama.cpp drops spaces at the end",
                lambda text: any(part.endswith(" ") for part in parts(text)),
            )
        )
    if scheme != "always" or not merges_spaces:
        limits.append(
            Limit(
                "llama.cpp puts a space in front of every text and behind special tokens",
                lambda text: len(found := parts(text)) > 1 or any(part.startswith(" ") for part in found),
            )
        )
    return limits
