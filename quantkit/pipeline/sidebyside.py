"""An answer beside the baseline's as the record has it: texts split where they part, numbers checked."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from quantkit.generate import first_difference
from quantkit.quality.prompts import Prompt, check_answer

Tokenizer = Any  # transformers' tokenizer
BROKEN = "\ufffd"  # what decoders write for a part of a character


@dataclass(frozen=True)
class Said:
    """A weight set's answer, and where and how the baseline would have gone on otherwise."""

    ids: Sequence[int]
    place: int | None = None  # the first differing token
    baseline: Sequence[int] = ()  # the baseline's tokens from there on, as far as they are known


def entry(
    tokenizer: Tokenizer, prompts: Sequence[Prompt], said: Sequence[Said | None], ends: frozenset[int], mode: str
) -> dict[str, Any]:
    """One weight set's part of the record, as JSON has it.

    Args:
        tokenizer: decodes the answers.
        prompts: what was asked.
        said: the answers; None for one that is not known.
        ends: ids that end an answer.
        mode: `generated` where the baseline wrote its own answers, else `teacher-forced`.
    """
    items = [_item(tokenizer, prompt, one, ends) for prompt, one in zip(prompts, said, strict=True)]
    judged = [item["correct"] for item, prompt in zip(items, prompts, strict=True) if prompt.answer is not None]
    identical = sum(one is not None and one.place is None for one in said)
    return {
        "items": items,
        "identical_share": identical / len(said),
        "correct": None if None in judged else [sum(judged), len(judged)],
        "mode": mode,
    }


def _item(tokenizer: Tokenizer, prompt: Prompt, said: Said | None, ends: frozenset[int]) -> dict[str, Any]:
    keys = ("text", "tokens", "finished", "correct", "first_difference", "agreed_text", "rest", "baseline_choice")
    if said is None:
        return {"id": prompt.id, **dict.fromkeys(keys)}
    finished = said.ids[-1] in ends
    text = _decode(tokenizer, said.ids)
    text = text if finished else text.rstrip(BROKEN)
    agreed, choice = text, None
    if said.place is not None:
        # The tokens that agree may end within a character: it then belongs to what differs.
        agreed = text[: first_difference(text, _decode(tokenizer, said.ids[: said.place]))]
        choice = _choice(tokenizer, said, agreed)
    values = (
        text, len(said.ids), finished, check_answer(prompt, text), said.place, agreed, text[len(agreed) :], choice,
    )  # fmt: skip
    return {"id": prompt.id, **dict(zip(keys, values, strict=True))}


def _choice(tokenizer: Tokenizer, said: Said, agreed: str) -> str:
    """What the baseline says where it leaves the answer: a token, or as many as make up a character."""
    for count in range(1, len(said.baseline) + 1):
        text = _decode(tokenizer, [*said.ids[: said.place], *said.baseline[:count]])
        new = text[len(agreed) :]
        if new and not new.endswith(BROKEN):
            return new
    token = said.baseline[0]
    return _decode(tokenizer, [token]) or str(tokenizer.convert_ids_to_tokens(token))


def _decode(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))
