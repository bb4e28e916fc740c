"""What a loaded tokenizer does, as data: the one thing from which GGUF metadata are made and held against."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

from tokenizers import normalizers

from quantkit.errors import BadInputError

Tokenizer = Any  # transformers' tokenizer
# GGUF's numbers of token types.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
FORMS = ("NFC", "NFD", "NFKC", "NFKD")  # normalizers by which ordinary text stays as it is
PROBE = "a"  # a text that no normalizer changes and no special token occurs in


@dataclass(frozen=True)
class Limit:
    """Something that llama.cpp's tokenizer cannot do as transformers' does.

    Attributes:
        sentence: what, for the user.
        touches: whether a text may get other ids for it.
    """

    sentence: str
    touches: Callable[[str], bool] = field(compare=False)


@dataclass(frozen=True)
class Added:
    """A token that is found in text before anything else is done with it."""

    text: str
    special: bool
    normalized: bool  # whether it is looked for after normalization
    strips: str  # which spaces it takes: left, right, both or none (""); or "word": it is found between words only


@dataclass(frozen=True)
class Kind:
    """What is particular to one of llama.cpp's kinds of tokenizer.

    Attributes:
        model: `tokenizer.ggml.model`.
        pre: `tokenizer.ggml.pre`.
        types: id -> token type, as far as the model decides; added tokens are none of its business.
        scores: id -> score, for the kinds that have scores.
        merges: pairs with a space between, for the kinds that have merges.
        flags: by name, after `tokenizer.ggml.`.
        charsmap: sentencepiece's compiled normalization.
        limits: what llama.cpp does otherwise.
    """

    model: str
    pre: str
    types: Mapping[int, int]
    scores: Mapping[int, float] = field(default_factory=dict)
    merges: Sequence[str] = ()
    flags: Mapping[str, bool] = field(default_factory=dict)
    charsmap: bytes = b""
    limits: tuple[Limit, ...] = ()


@dataclass(frozen=True)
class State:
    """A tokenizer as transformers has it after loading.

    Attributes:
        name: of the checkpoint, for messages.
        model, normalizer, pre_tokenizer: as in tokenizer.json.
        tokens: id -> text, in the model's own spelling; added ones as they stand in text.
        added: by id.
        before, after: the ids that are put around every text.
        special: bos, eos, unk, sep, pad, mask -> id, where there is one.
        chat_template: Jinja, or several by name.
        normalize: what the normalizer makes of a text.
    """

    name: str
    model: Mapping[str, Any]
    normalizer: Mapping[str, Any] | None
    pre_tokenizer: Mapping[str, Any] | None
    tokens: Mapping[int, str]
    added: Mapping[int, Added]
    before: tuple[int, ...]
    after: tuple[int, ...]
    special: Mapping[str, int]
    chat_template: str | Mapping[str, str] | None
    normalize: Callable[[str], str]

    @cached_property
    def _between(self) -> re.Pattern[str]:
        texts = sorted((one.text for one in self.added.values()), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, texts)) or r"(?!)")

    def fragments(self, text: str) -> list[str]:
        """The parts of a text between added tokens, in front of the first and behind the last."""
        return self._between.split(text)

    def refuse(self, found: str, hint: str | None = None) -> BadInputError:
        """The error that says why there is no vocabulary for llama.cpp."""
        return BadInputError(f"the tokenizer of {self.name} has no equal in llama.cpp: {found}", hint)


def state_of(tokenizer: Tokenizer, name: str) -> State:
    """Take a tokenizer apart.

    Args:
        tokenizer: as `quantkit.vocab.load` gives it.
        name: of the checkpoint, for messages.

    Raises:
        BadInputError: it is not made by the tokenizers library, or decorates texts in an unknown way.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise BadInputError(
            f"the tokenizer of {name} has no equal in llama.cpp: found {type(tokenizer).__name__}, "
            "which is not made of a tokenizer.json"
        )
    made = json.loads(backend.to_str())
    model = made["model"]
    vocab = model["vocab"]
    pairs = vocab.items() if isinstance(vocab, dict) else ((piece, number) for number, (piece, _) in enumerate(vocab))
    tokens = {number: text for text, number in pairs}
    added = {one["id"]: _added(one) for one in made["added_tokens"]}
    before, after = _frame(tokenizer, name)
    roles = ("bos", "eos", "unk", "sep", "pad", "mask")
    ids = {role: getattr(tokenizer, f"{role}_token_id", None) for role in roles}
    normalizer = backend.normalizer
    return State(
        name,
        model,
        made["normalizer"],
        made["pre_tokenizer"],
        tokens | {number: one.text for number, one in added.items()},
        added,
        before,
        after,
        {role: number for role, number in ids.items() if number is not None},
        tokenizer.chat_template,
        normalizer.normalize_str if normalizer is not None else str,
    )


def flattened(node: Mapping[str, Any] | None, inside: str) -> list[Mapping[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, sequences unrolled.

    Args:
        node: the JSON object.
        inside: `normalizers` or `pretokenizers`.
    """
    if node is None:
        return []
    if node["type"] == "Sequence":
        return [step for part in node[inside] for step in flattened(part, inside)]
    return [node]


def normalizer_limits(state: State, steps: Sequence[Mapping[str, Any]]) -> tuple[Limit, ...]:
    """Unicode normalization, which llama.cpp has none of.

    Raises:
        BadInputError: a step that changes ordinary text.
    """
    limits = []
    for step in steps:
        if step["type"] not in FORMS:
            raise state.refuse(f"its normalizer has the step {step['type']}")
        form = getattr(normalizers, step["type"])()
        sentence = f"llama.cpp does not normalize to {step['type']}, texts that are not in this form get other ids"
        limits.append(Limit(sentence, partial(_changes, form)))
    return tuple(limits)


def _changes(form: Any, text: str) -> bool:  # noqa: ANN401
    return bool(form.normalize_str(text) != text)


def _added(entry: Mapping[str, Any]) -> Added:
    sides = {(False, False): "", (True, False): "left", (False, True): "right", (True, True): "both"}
    strips = "word" if entry["single_word"] else sides[entry["lstrip"], entry["rstrip"]]
    return Added(entry["content"], entry["special"], entry["normalized"], strips)


def _frame(tokenizer: Tokenizer, name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    plain = tuple(tokenizer(PROBE, add_special_tokens=False)["input_ids"])
    framed = tuple(tokenizer(PROBE)["input_ids"])
    for start in range(len(framed) - len(plain) + 1):
        if plain and framed[start : start + len(plain)] == plain:
            return framed[:start], framed[start + len(plain) :]
    raise BadInputError(
        f"the tokenizer of {name} has no equal in llama.cpp: special tokens are not put around a text but change it"
    )
