"""BPE with byte fallback for llama.cpp, sentencepiece's kind: a score for each piece, from tokenizer.json alone."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from quantkit.vocab.gguf_state import (
    BYTE,
    NORMAL,
    UNKNOWN,
    Kind,
    Limit,
    State,
    flattened,
    normalizer_limits,
)
from quantkit.vocab.spm import SPACE

BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")
NEVER_MERGED = -1e9  # lower than any rank


def spm(state: State) -> Kind:
    """What `tokenizer.ggml.model` llama asks for.

    llama.cpp merges, of all neighbours that make a token together, those with the highest score. With minus the
    rank of a token's first merge as its score that is the order in which tokenizers merges.

    Raises:
        BadInputError: llama.cpp does not tokenize in this way.
    """
    _check(state)
    limits, add_space_prefix = _spaces(state)
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(state.model["merges"]):
        ranks.setdefault(left + right, rank)
    scores = {
        number: -float(ranks[text]) if text in ranks else (0.0 if len(text) == 1 else NEVER_MERGED)
        for number, text in state.tokens.items()
    }
    types = {
        number: BYTE if BYTE_TOKEN.fullmatch(text) else NORMAL
        for number, text in state.tokens.items()
        if number not in state.added or text in ranks or BYTE_TOKEN.fullmatch(text)
    }
    if "unk" in state.special:
        types[state.special["unk"]] = UNKNOWN
    written_out = {text for number, text in state.tokens.items() if number in state.added and types.get(number) == BYTE}
    if written_out:
        found = re.compile("|".join(map(re.escape, written_out)))
        limits += (Limit("llama.cpp takes <0x0A> and its like for text", lambda text: found.search(text) is not None),)
    if any(not one.special and SPACE in one.text for number, one in state.added.items() if number in types):
        limits += (Limit(f"llama.cpp takes {SPACE} in a text for a space", lambda text: SPACE in text),)
    return Kind("llama", "default", types, scores=scores, limits=limits, flags={"add_space_prefix": add_space_prefix})


def _check(state: State) -> None:
    model, texts = state.model, set(state.tokens.values())
    missing = [f"<0x{byte:02X}>" for byte in range(256) if f"<0x{byte:02X}>" not in texts]
    if missing or not model.get("byte_fallback"):
        raise state.refuse(
            f"its BPE has no token for {len(missing) or 'every'} of the 256 bytes, which llama.cpp falls back on"
        )
    for setting in ("continuing_subword_prefix", "end_of_word_suffix", "dropout", "ignore_merges"):
        if model.get(setting):
            raise state.refuse(f"it has {setting} {model[setting]!r}")


def _spaces(state: State) -> tuple[tuple[Limit, ...], bool]:
    """What llama.cpp does otherwise with spaces and letters, and whether it puts a space in front."""
    normalizers = flattened(state.normalizer, "normalizers")
    pre_tokenizers = flattened(state.pre_tokenizer, "pretokenizers")
    own = [step for step in normalizers if not (_is_replace(step) or _is_prepend(step))]
    limits = list(normalizer_limits(state, own))
    replaced = any(map(_is_replace, normalizers))
    prepended = any(map(_is_prepend, normalizers))
    late = [one.text for one in state.added.values() if one.normalized]
    if late and normalizers:
        limits.append(Limit(f"llama.cpp finds {_listed(late)} before normalization", _contains(late)))
    scheme = "prepend" if prepended else "never"
    for step in pre_tokenizers:
        if step["type"] == "Metaspace" and step["replacement"] == SPACE and not replaced:
            replaced, scheme = True, step["prepend_scheme"]
            if step.get("split", True):
                _check_words(state)
        elif not (step["type"] == "Split" and step["pattern"] == {"String": " "} and replaced):
            raise state.refuse(f"its pre-tokenizer has the step {step['type']}")
    if not replaced:
        raise state.refuse(f"it does not write spaces as {SPACE}")
    limits += _prefix_limits(state, scheme)
    return tuple(limits), scheme != "never"


def _prefix_limits(state: State, scheme: str) -> list[Limit]:
    """llama.cpp puts a space in front of a text and behind every special token, even if there is one already."""
    if scheme in ("never", "prepend"):
        return []
    limits = [
        Limit(
            "llama.cpp puts another space in front of a space at the beginning",
            lambda text: any(part.startswith((" ", SPACE)) for part in state.fragments(text)),
        )
    ]
    if scheme == "first":
        limits.append(
            Limit(
                "llama.cpp puts a space behind special tokens",
                lambda text: len(parts := state.fragments(text)) > 1 and any(parts[1:]),
            )
        )
    return limits


def _check_words(state: State) -> None:
    inner = next(
        (text for number, text in state.tokens.items() if number not in state.added and SPACE in text[1:]), None
    )
    if inner is not None:
        raise state.refuse(f"its token {inner!r} spans words, which llama.cpp would merge where it does not")


def _is_replace(step: Mapping[str, Any]) -> bool:
    return bool(step["type"] == "Replace" and step["pattern"] == {"String": " "} and step["content"] == SPACE)


def _is_prepend(step: Mapping[str, Any]) -> bool:
    return bool(step["type"] == "Prepend" and step["prepend"] == SPACE)


def _contains(texts: Sequence[str]) -> Any:  # noqa: ANN401
    return lambda text: any(one in text for one in texts)


def _listed(texts: Sequence[str]) -> str:
    return texts[0] + (f" and {len(texts) - 1} more" if len(texts) > 1 else "")
