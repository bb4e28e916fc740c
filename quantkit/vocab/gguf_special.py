"""Special tokens and chat templates as GGUF names them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from quantkit.vocab.gguf_quirks import ENDS, ENDS_MESSAGE, ENDS_TURN, FILLS_IN
from quantkit.vocab.gguf_state import State
from quantkit.weights.gguf_types import Value

KEYS = {"unk": "unknown", "sep": "seperator", "pad": "padding", "mask": "mask"}  # sic


def special_metadata(
    state: State, config: Mapping[str, Any], generation: Mapping[str, Any], size: int
) -> tuple[dict[str, Value], tuple[str, ...]]:
    """The keys of special tokens and of what is put around a text, and notes for the user.

    Args:
        state: of the tokenizer.
        config: config.json.
        generation: generation_config.json.
        size: number of tokens in the file.
    """
    notes: list[str] = []
    ends = list(_ids(generation, config, "eos_token_id", size))
    bos = state.special.get("bos", next(_ids(generation, config, "bos_token_id", size), None))
    eos = state.special.get("eos", ends[0] if ends else None)
    frames = frame_is_kept(state)
    if not frames:
        notes.append(f"llama.cpp puts nothing around a text, transformers {_told(state)}")
    elif state.before and state.before != (bos,):
        bos = state.before[0]
        notes.append(f"BOS is {state.tokens[bos]}, which transformers puts in front of a text")
    ids = {"bos": bos, "eos": eos} | _ends(state, eos, [token for token in ends if token != eos], notes)
    ids |= {name: state.special[role] for role, name in KEYS.items() if role in state.special}
    known = {one.text: number for number, one in state.added.items()}
    for name, texts in FILLS_IN.items():
        ids[name] = next((known[text] for text in texts if text in known), None)
    keys = {
        f"tokenizer.ggml.{name}_token_id": Value("uint32", number)
        for name, number in ids.items()
        if number is not None and number < size
    }
    keys["tokenizer.ggml.add_bos_token"] = Value("bool", frames and bool(state.before))
    keys["tokenizer.ggml.add_eos_token"] = Value("bool", frames and bool(state.after))
    return keys, tuple(notes)


def template_metadata(state: State) -> dict[str, Value]:
    """The chat templates, verbatim: `tokenizer.chat_template`, others by name."""
    template = state.chat_template
    if not template:
        return {}
    named = {"default": template} if isinstance(template, str) else dict(template)
    default = named.pop("default", None)
    keys = {f"tokenizer.chat_template.{name}": Value("string", text) for name, text in named.items()}
    if named:
        keys["tokenizer.chat_templates"] = Value("string", tuple(named))
    if default is not None:
        keys["tokenizer.chat_template"] = Value("string", default)
    return keys


def frame_is_kept(state: State) -> bool:
    """Whether llama.cpp can put around a text what transformers puts there: a token in front, EOS behind."""
    return len(state.before) <= 1 and (not state.after or state.after == (state.special.get("eos"),))


def _told(state: State) -> str:
    parts = (("in front of it", state.before), ("behind it", state.after))
    return " and ".join(f"{''.join(state.tokens[token] for token in ids)} {place}" for place, ids in parts if ids)


def _ends(state: State, eos: int | None, others: Sequence[int], notes: list[str]) -> dict[str, int | None]:
    """Where generation ends beside EOS: the end of a turn, of a message, or what else the configuration says."""
    ends = {state.tokens.get(token): token for token in (*others, *([] if eos is None else [eos]))}
    found = {
        name: next((ends[text] for text in texts if text in ends), None)
        for name, texts in (("eot", ENDS_TURN), ("eom", ENDS_MESSAGE))
    }
    unknown = [token for token in others if state.tokens.get(token) not in ENDS]
    for name in found:
        if unknown and found[name] is None:
            found[name] = unknown.pop(0)
    if unknown:
        told = ", ".join(state.tokens.get(token, str(token)) for token in unknown)
        notes.append(f"llama.cpp does not end generation at {told}")
    return found


def _ids(generation: Mapping[str, Any], config: Mapping[str, Any], key: str, size: int) -> Iterator[int]:
    """Ids of tokens that the configurations name, one or a list."""
    seen = set()
    for stated in (generation.get(key), config.get(key)):
        for token in stated if isinstance(stated, list) else [stated]:
            if isinstance(token, int) and not isinstance(token, bool) and 0 <= token < size and token not in seen:
                seen.add(token)
                yield token
