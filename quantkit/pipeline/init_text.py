"""What a release file could say of a checkpoint, as data and as a text with comments for its reader."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from quantkit.units import format_bytes, format_count

SCHEMA_VERSION = 1
WIDTH = 100  # of a comment that strangers wrote
_PLAIN = re.compile(r"[A-Za-z./][\w./-]*", re.ASCII)


@dataclass(frozen=True)
class Draft:
    """What a release file could say of a checkpoint."""

    base: str  # as the file names it
    revision: str | None  # a commit; None: a folder
    architecture: str
    parameters: int
    source_bytes: int
    gated: bool
    licence: str | None  # as the card of the base names it
    licence_files: tuple[str, ...]
    namespace: str | None
    sizes: Mapping[str, int]  # recipe -> predicted bytes of what it makes
    left_out: Mapping[str, str]  # recipe -> why it makes nothing

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        return {
            "schema_version": SCHEMA_VERSION,
            "base": self.base,
            "revision": self.revision,
            "architecture": self.architecture,
            "parameters": self.parameters,
            "source_bytes": self.source_bytes,
            "gated": self.gated,
            "licence": self.licence,
            "variants": [{"recipe": name, "bytes": size} for name, size in self.sizes.items()],
            "left_out": [{"recipe": name, "reason": reason} for name, reason in self.left_out.items()],
        }


def release_text(draft: Draft) -> str:
    """The file, from the same draft always the same."""
    return "".join(f"{line}\n" for line in _lines(draft))


def _lines(draft: Draft) -> Iterator[str]:
    sizes = f"{format_count(draft.parameters)} parameters, {format_bytes(draft.source_bytes)}"
    yield f"# What to make of {_comment(draft.base)}: {_comment(draft.architecture)}, {sizes}."
    yield f"# Licence of the base, which goes with what is made of it: {_licence(draft)}."
    if draft.gated:
        yield "# The base is gated: what is made of it is published privately, unless push.private says false."
    yield f"base: {scalar(draft.base)}"
    if draft.revision is not None:
        yield f"revision: {scalar(draft.revision)}"
    yield "stream: auto"
    yield "variants:  # with the sizes that the plan predicts"
    for recipe, size in draft.sizes.items():
        yield f"  - recipe: {recipe:<15}# {format_bytes(size)}"
    for recipe, reason in draft.left_out.items():
        yield f"# left out: {recipe}: {_comment(reason)}"
    yield "check:"
    yield "  text: [default]"
    if draft.namespace is None:
        yield "# To publish, name a user or an organisation of yours on the Hub:"
        yield "# push:"
        yield "#   namespace: NAME"
    else:
        yield "push:"
        yield f"  namespace: {scalar(draft.namespace)}"


def scalar(text: str) -> str:
    """A text as YAML reads it back as the same text: plain where that will do, else in quotes."""
    return text if _PLAIN.fullmatch(text) and yaml.safe_load(text) == text else json.dumps(text, ensure_ascii=False)


def _licence(draft: Draft) -> str:
    files = ", ".join(_comment(name) for name in draft.licence_files)
    stated = _comment(draft.licence) if draft.licence else "its card names none"
    return f"{stated} ({files})" if files else stated


def _comment(text: str) -> str:
    """What a stranger may have written, as part of a line that is a comment."""
    printable = "".join(letter if letter.isprintable() else " " for letter in text)
    line = " ".join(printable.split())
    return line if len(line) <= WIDTH else line[: WIDTH - 3] + "..."
