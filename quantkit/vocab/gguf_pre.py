"""The pre-tokenizer of a byte-level BPE: found in the table of llama.cpp's, or refused, never guessed."""

import difflib
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any

from tokenizers import models

from quantkit.errors import UsageError
from quantkit.vocab.gguf_pre_table import (
    BYTES,
    DIGIT,
    DIGITS,
    GPT2,
    NAMES,
    PUNCTUATION,
    SHORT,
    SHORT_SPELLINGS,
    TABLE,
    Pre,
)
from quantkit.vocab.gguf_state import State, flattened

HINT = "name a pre-tokenizer of llama.cpp with --pre; what it makes of text is then on your account"
SHOWN = 300  # characters of a regular expression


class Words:
    """What the vocabulary says beyond the splitting; worked out when first asked."""

    def __init__(self, state: State) -> None:
        self._state = state

    @cached_property
    def are_reached_by_merges(self) -> bool:
        """Whether merging makes every token of its own letters, so that `ignore_merges` changes nothing."""
        stated = self._state.model
        merges = [tuple(pair) for pair in stated["merges"]]
        alone = models.BPE(dict(stated["vocab"]), merges)
        return all([one.value for one in alone.tokenize(text)] == [text] for text in self._known())

    def have_none(self, forbidden: Callable[[str], bool]) -> bool:
        """Whether no token is of a kind."""
        return not any(map(forbidden, self._known()))

    def _known(self) -> Iterator[str]:
        return (text for number, text in self._state.tokens.items() if number not in self._state.added)


def find_pre(state: State) -> Pre:
    """The row of the table that splits text as a tokenizer does.

    Raises:
        BadInputError: there is none.
    """
    steps, words = steps_of(state), Words(state)
    wanted, has_bos = bool(state.model.get("ignore_merges")), "bos" in state.special
    rows = [
        row
        for row in TABLE
        if row.steps == steps
        and not (row.no_bos and has_bos)
        and (row.presumes_none is None or words.have_none(row.presumes_none))
    ]
    fitting = [row for row in rows if row.ignore_merges == wanted or words.are_reached_by_merges]
    if fitting:
        return min(fitting, key=lambda row: (len(row.limits), row.ignore_merges != wanted))
    found = " then ".join(steps) or "no splitting"
    shown = found if len(found) <= SHOWN else found[:SHOWN] + "…"
    kept = f", ignore_merges {str(wanted).lower()}" if rows else ""
    raise state.refuse(f"its pre-tokenizer is none of those that llama.cpp knows (found {shown}{kept})", HINT)


def named_pre(name: str) -> Pre:
    """A pre-tokenizer by the name that a user gives.

    Raises:
        UsageError: llama.cpp has no such.
    """
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, 1)
        raise UsageError(
            f"--pre {name}: llama.cpp has no such pre-tokenizer",
            f"did you mean {near[0]}?" if near else f"expected one of {', '.join(sorted(NAMES))}",
        )
    return next((row for row in TABLE if row.name == name), Pre(name, ()))


def steps_of(state: State) -> tuple[str, ...]:
    """What a pre-tokenizer does, in the table's spelling.

    Raises:
        BadInputError: a step that no pre-tokenizer of llama.cpp has.
    """
    steps = tuple(text for step in flattened(state.pre_tokenizer, "pretokenizers") for text in _step(step, state))
    if steps.count(BYTES) != 1:
        raise state.refuse("it does not spell text in bytes exactly once")
    return steps[:-1] if steps[-1] == BYTES else steps


def _step(step: Mapping[str, Any], state: State) -> Iterator[str]:
    kind, pattern = step["type"], step.get("pattern", {})
    if kind == "ByteLevel" and not step["add_prefix_space"]:
        yield from (GPT2, BYTES) if step.get("use_regex", True) else (BYTES,)
    elif kind == "Digits":
        yield DIGIT if step["individual_digits"] else DIGITS
    elif kind == "Punctuation" and step["behavior"] == "Contiguous":
        yield PUNCTUATION
    elif kind == "Split" and step["behavior"] == "Isolated" and "Regex" in pattern:
        yield _spelled(pattern["Regex"])
    else:
        told = {key: value for key, value in step.items() if key not in ("type", "trim_offsets")}
        raise state.refuse(f"its pre-tokenizer has the step {kind} with {told}", HINT)


def _spelled(regex: str) -> str:
    """One spelling of what has several."""
    for letter, escaped in (("\r", r"\r"), ("\n", r"\n"), ("\t", r"\t")):
        regex = regex.replace(letter, escaped)
    for other in SHORT_SPELLINGS:
        regex = regex.replace(other, SHORT)
    return regex
