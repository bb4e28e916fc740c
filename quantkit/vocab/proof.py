"""Whether two tokenizers are one and the same: ids with and without special tokens, and text back from ids."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tokenizers

from quantkit.vocab.corpus import corpus

Tokenizer = Any  # transformers' tokenizer
MOST_SPECIAL = 32  # tokens tried inside of text; some vocabularies reserve a thousand
SHOWN_CHARACTERS, SHOWN_IDS = 60, 12


@dataclass(frozen=True)
class Reading:
    """What a tokenizer makes of one text."""

    text: str
    ids: tuple[int, ...]
    with_special: tuple[int, ...]
    decoded: str


@dataclass(frozen=True)
class Portrait:
    """A tokenizer as far as it can be told from another."""

    readings: tuple[Reading, ...]
    special_tokens: Mapping[str, str]  # bos_token, eos_token, ...
    chat_template: Any


def portrait(tokenizer: Tokenizer) -> Portrait:
    """Everything that is compared, of a few hundred short texts; a quarter of a second."""
    added = sorted(tokenizer.added_tokens_decoder.items())
    texts = corpus([str(token) for _, token in added][:MOST_SPECIAL])
    plain = tokenizer(texts, add_special_tokens=False)["input_ids"]
    framed = tokenizer(texts)["input_ids"]
    readings = [
        Reading(text, tuple(ids), tuple(special), tokenizer.decode(ids))
        for text, ids, special in zip(texts, plain, framed, strict=True)
    ]
    named = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return Portrait(tuple(readings), named, tokenizer.chat_template)


def difference(expected: Portrait, found: Portrait) -> str | None:
    """The first thing in which two tokenizers differ, as a clause; None where they are the same."""
    if expected.special_tokens != found.special_tokens:
        return f"its special tokens are {dict(found.special_tokens)}, expected {dict(expected.special_tokens)}"
    for one, other in zip(expected.readings, found.readings, strict=True):
        if (clause := _reading_difference(one, other)) is not None:
            return clause
    return None if expected.chat_template == found.chat_template else "it has another chat template"


def json_difference(expected: Portrait, tokenizer_json: bytes) -> str | None:
    """The first text of which the tokenizers library alone, from tokenizer.json, makes other ids; or None.

    Every other reader of the file (Rust servers, converters) does what that library does. Texts with a token
    that only tokenizer_config.json adds are passed over.
    """
    alone = tokenizers.Tokenizer.from_str(tokenizer_json.decode("utf-8"))
    known = alone.get_vocab_size()
    for reading in expected.readings:
        if max(reading.ids, default=0) >= known:
            continue
        ids = tuple(alone.encode(reading.text, add_special_tokens=False).ids)
        if ids != reading.ids:
            return f"of {shown(reading.text)} tokenizer.json makes {listed(ids)}, transformers {listed(reading.ids)}"
    return None


def _reading_difference(expected: Reading, found: Reading) -> str | None:
    if expected.text != found.text:
        return f"its added tokens are others ({shown(found.text)}, expected {shown(expected.text)})"
    for one, other in ((expected.ids, found.ids), (expected.with_special, found.with_special)):
        if one != other:
            return f"of {shown(expected.text)} it makes {listed(other)}, expected {listed(one)}"
    if expected.decoded != found.decoded:
        return f"of {shown(expected.text)} it decodes {shown(found.decoded)}, expected {shown(expected.decoded)}"
    return None


def shown(text: str) -> str:
    """A text in a message."""
    return repr(text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "…")


def listed(ids: Sequence[int]) -> str:
    """Ids in a message."""
    return str(list(ids[:SHOWN_IDS])) + (f" and {len(ids) - SHOWN_IDS} more" if len(ids) > SHOWN_IDS else "")
