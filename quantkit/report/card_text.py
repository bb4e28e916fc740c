"""Text in a model card: what others wrote stays text, whatever it contains."""

import re
from typing import Any

import yaml

_MARKUP = re.compile(r"([\\`*_\[\]<>|&~#$])")
# Controls, and the marks that make letters run the other way or hide them.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")


class Markdown(str):
    """Text that is Markdown already; every other text is escaped where a template shows it."""

    __slots__ = ()


def plain(text: str) -> Markdown:
    """Text that Markdown shows as it is: no markup, no HTML, no new line, no new cell."""
    return Markdown(_MARKUP.sub(r"\\\1", " ".join(visible(text).split())))


def code(text: str) -> Markdown:
    """Text in the letters of code, on one line, also inside of a table."""
    text = " ".join(visible(text).split()).replace("|", "\\|")
    ticks = "`" * (_longest_ticks(text) + 1)
    room = " " if text.startswith("`") or text.endswith("`") else ""
    return Markdown(f"{ticks}{room}{text}{room}{ticks}") if text else Markdown("")


def fence(text: str, language: str = "") -> Markdown:
    """A block of code that nothing inside of it can end."""
    ticks = "`" * max(3, _longest_ticks(text) + 1)
    return Markdown(f"{ticks}{language}\n{visible(text).rstrip()}\n{ticks}")


def link(text: str, url: str) -> Markdown:
    """A link; an address that is none is shown as text."""
    if not re.fullmatch(r"(https?://)?[\w./:@%~+#?=&,-]+", url, re.ASCII):
        return plain(f"{text} ({url})")
    return Markdown(f"[{plain(text)}]({url})")


def table(head: list[str], rows: list[list[str]], numbers: str) -> Markdown:
    """A table whose cells are escaped unless they are Markdown.

    Args:
        head: of the columns.
        rows: texts.
        numbers: a letter for each column: `n` for numbers, which stand on the right, `t` for text.
    """
    rule = ["---:" if kind == "n" else "---" for kind in numbers]
    cells = [[_cell(cell, kind) for cell, kind in zip(row, numbers, strict=True)] for row in rows]
    lines: list[list[str]] = [[_cell(title, "t") for title in head], rule, *cells]
    return Markdown("\n".join("| " + " | ".join(line) + " |" for line in lines))


def as_yaml(value: Any) -> str:  # noqa: ANN401
    """YAML of plain values, each text quoted where it would be read as something else."""
    text: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100)
    return text


def visible(text: str) -> str:
    """Text without characters that nobody sees."""
    return _UNSEEN.sub("\ufffd", text.replace("\r\n", "\n"))


def _cell(text: str, kind: str) -> str:
    shown = text if isinstance(text, Markdown) else plain(text)
    return shown.replace(" ", "\u00a0") if kind == "n" else shown  # a number and its unit stay on one line


def _longest_ticks(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)
