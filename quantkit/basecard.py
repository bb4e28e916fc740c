"""The model card of a base checkpoint: its front matter, and the part of it that an artifact carries along."""

import fnmatch
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from quantkit.weights.regular import read_small

CARD = "README.md"
TEXTS = ("license", "license_name", "license_link", "pipeline_tag", "library_name")
LISTS = ("language", "tags")  # a text alone becomes a list of one
GATE = "extra_gated_"  # what the Hub asks of people before it shows them a gated repository
LICENCES = ("*license*", "*licence*", "copying*", "*notice*", "*use_policy*")  # file names, in lower case
# What strangers wrote is bounded: an alias of YAML makes a few bytes into any number of values.
MOST_VALUES, DEEPEST, LONGEST_TEXT, LONGEST_WORD = 1000, 4, 20_000, 200


def front_matter(card: str) -> dict[str, Any]:
    """The YAML at the beginning of a model card, every scalar as text; empty where there is none that can be read."""
    match = re.match(r"\ufeff?---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", card, re.DOTALL)
    if match is None:
        return {}
    try:
        # As text: `no` is a language, and 1.10 a version.
        content = yaml.load(match[1].replace("\t", "  "), Loader=yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def read_front_matter(folder: Path) -> dict[str, Any]:
    """The front matter of the card in a checkpoint's folder; empty where there is no card.

    Raises:
        BadInputError: the card is no regular file, or larger than 25 MB.
        DiskError: it cannot be read.
    """
    card = folder / CARD
    return front_matter(read_small(card).decode("utf-8", "replace")) if card.is_file() else {}


def licence_files(names: Iterable[str]) -> list[str]:
    """The files of a checkpoint that say what may be done with it."""
    return sorted(name for name in names if any(fnmatch.fnmatchcase(name.lower(), pattern) for pattern in LICENCES))


def carried(front: Mapping[str, Any]) -> dict[str, Any]:
    """What an artifact's card takes over: licence, languages, task, tags, and what the Hub asks of people.

    Args:
        front: from `front_matter`. What is not of the form that the Hub describes is left out.
    """
    found: dict[str, Any] = {}
    for key in TEXTS:
        words = _words(front.get(key))
        if words:
            found[key] = words[0] if len(words) == 1 else words
    for key in LISTS:
        if words := _words(front.get(key)):
            found[key] = words
    for key, value in front.items():
        if str(key).startswith(GATE) and (kept := _Bounded().copy(value)) is not None:
            found[_encodable(str(key))] = kept
    return found


def _words(value: object) -> list[str]:
    """A text, or the texts of a list: what is longer than a word may be is none."""
    texts = value[:MOST_VALUES] if isinstance(value, list) else [value]
    words = (_encodable(text) for text in texts if isinstance(text, str))
    return [word for word in dict.fromkeys(words) if 0 < len(word) <= LONGEST_WORD]


class _Bounded:
    """Copies texts, lists and mappings up to a number of values."""

    def __init__(self) -> None:
        self._left = MOST_VALUES

    def copy(self, value: object, depth: int = 0) -> Any:  # noqa: ANN401
        """The copy, or None where it would be too large."""
        self._left -= 1
        if self._left < 0 or depth > DEEPEST:
            return None
        if isinstance(value, str):
            return _encodable(value) if len(value) <= LONGEST_TEXT else None
        if isinstance(value, list) and len(value) <= MOST_VALUES:
            items = [self.copy(item, depth + 1) for item in value]
            return None if None in items else items
        if isinstance(value, dict) and len(value) <= MOST_VALUES:
            pairs = {_encodable(str(key)): self.copy(item, depth + 1) for key, item in value.items()}
            return None if None in pairs.values() else pairs
        return None


def _encodable(text: str) -> str:
    """Without halves of surrogate pairs, which an escape in YAML can make."""
    return text.encode("utf-8", "replace").decode()
