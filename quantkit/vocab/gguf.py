"""A checkpoint's tokenizer as the `tokenizer.*` metadata of a GGUF file: with the same ids, or refused."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quantkit.errors import UsageError
from quantkit.vocab.gguf_bpe import bpe, is_byte_level
from quantkit.vocab.gguf_quirks import general_name, taken_for_special
from quantkit.vocab.gguf_special import frame_is_kept, special_metadata, template_metadata
from quantkit.vocab.gguf_spm import NEVER_MERGED, spm
from quantkit.vocab.gguf_state import CONTROL, NORMAL, UNUSED, USER_DEFINED, Kind, Limit, State, state_of
from quantkit.vocab.gguf_unigram import unigram
from quantkit.vocab.spm import SPACE
from quantkit.weights.gguf_types import Value

Tokenizer = Any  # transformers' tokenizer


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF file says about its tokenizer.

    Attributes:
        name: what `general.name` must be for it.
        metadata: the `tokenizer.*` keys, in the order in which they are written.
        kind: `tokenizer.ggml.model`: llama, gpt2 or t5.
        pre: `tokenizer.ggml.pre`.
        limits: what llama.cpp does otherwise than transformers, and on which texts.
        frames: whether llama.cpp puts around a text what transformers puts there.
        chosen: whether the user named the pre-tokenizer.
        notes: what a user should know, a sentence each.
    """

    name: str
    metadata: Mapping[str, Value]
    kind: str
    pre: str
    limits: tuple[Limit, ...] = ()
    frames: bool = True
    chosen: bool = False
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Number of tokens."""
        return len(self.metadata["tokenizer.ggml.tokens"].value)  # type: ignore[arg-type]


def gguf_vocabulary(
    tokenizer: Tokenizer,
    name: str,
    embedding_rows: int,
    config: Mapping[str, Any],
    generation: Mapping[str, Any] | None = None,
    pre: str | None = None,
) -> Vocabulary:
    """The metadata with which llama.cpp gives the ids of a tokenizer.

    Args:
        tokenizer: as `quantkit.vocab.load` gives it.
        name: what `general.name` is to be; also for messages.
        embedding_rows: tokens that the model has; those that the tokenizer lacks are called [PADi].
        config: config.json.
        generation: generation_config.json.
        pre: name of llama.cpp's pre-tokenizer for a byte-level BPE; None: found by its regular expressions.

    Raises:
        BadInputError: llama.cpp has no tokenizer that gives these ids.
        UsageError: `pre` is none of llama.cpp's, or given for a tokenizer that has none.
    """
    state = state_of(tokenizer, name)
    kind = _kind(state, pre)
    texts, types, dropped = _tokens(state, kind, embedding_rows)
    keys: dict[str, Value] = {
        "tokenizer.ggml.model": Value("string", kind.model),
        "tokenizer.ggml.pre": Value("string", kind.pre),
        "tokenizer.ggml.tokens": Value("string", texts),
    }
    if kind.scores:
        scores = tuple(kind.scores.get(number, NEVER_MERGED) for number in range(embedding_rows))
        keys["tokenizer.ggml.scores"] = Value("float32", scores)
    keys["tokenizer.ggml.token_type"] = Value("int32", types)
    if kind.merges:
        keys["tokenizer.ggml.merges"] = Value("string", kind.merges)
    keys |= {f"tokenizer.ggml.{flag}": Value("bool", holds) for flag, holds in kind.flags.items()}
    if kind.charsmap:
        keys["tokenizer.ggml.precompiled_charsmap"] = Value("uint8", tuple(kind.charsmap))
    special, notes = special_metadata(state, config, generation or {}, embedding_rows)
    spelled, stripped = general_name(state, name)
    limits = (*kind.limits, *stripped, *taken_for_special(state))
    return Vocabulary(
        spelled,
        keys | special | template_metadata(state),
        kind.model,
        kind.pre,
        limits,
        frame_is_kept(state),
        pre is not None,
        (*dropped, *notes, *(limit.sentence for limit in limits)),
    )


def _kind(state: State, pre: str | None) -> Kind:
    model = state.model["type"]
    if is_byte_level(state):
        return bpe(state, pre)
    if pre is not None:
        raise UsageError(f"--pre {pre}: the tokenizer of {state.name} is no byte-level BPE and has no pre-tokenizer")
    if model == "BPE":
        return spm(state)
    if model == "Unigram":
        return unigram(state)
    raise state.refuse(f"found a tokenizer of the kind {model}, expected BPE or Unigram")


def _tokens(state: State, kind: Kind, rows: int) -> tuple[tuple[str, ...], tuple[int, ...], tuple[str, ...]]:
    """Text and type of every row of the embedding, and a note where tokens are left out."""
    beyond = [number for number in state.tokens if number >= rows]
    needed = {*state.before, *state.after}
    if any(number not in state.added or number in needed for number in beyond):
        raise state.refuse(f"it has {max(state.tokens) + 1} tokens, the model {rows} rows of embeddings")
    texts, types = [], []
    for number in range(rows):
        text = state.tokens.get(number)
        if text is None:
            texts.append(f"[PAD{number}]")
            types.append(UNUSED)
        elif number in state.added:
            text, token_type = _added_token(state, kind, number)
            texts.append(text)
            types.append(token_type)
        else:
            texts.append(text)
            types.append(kind.types[number])
    if twice := len(texts) - len(set(texts)):
        raise state.refuse(f"{twice} of its tokens have the same text")
    if any(not text or "\0" in text for text in texts):
        raise state.refuse("one of its tokens is empty or has a zero byte")
    left_out = ", ".join(state.tokens[number] for number in beyond)
    notes = (f"left out, as the model has no embedding for it: {left_out}",) if beyond else ()
    return tuple(texts), tuple(types), notes


def _added_token(state: State, kind: Kind, number: int) -> tuple[str, int]:
    """Text and type of a token that is found in text as it stands."""
    one, own = state.added[number], kind.types.get(number)
    if own not in (None, NORMAL):  # unknown, or a byte: it must be written as such
        return one.text, int(own)
    if one.special:
        return one.text, CONTROL
    # A run of spaces, found by merging too: a token of the user's llama.cpp would print as it is spelled.
    is_run = kind.model != "gpt2" and SPACE in one.text and own == NORMAL
    return one.text, NORMAL if is_run else USER_DEFINED
