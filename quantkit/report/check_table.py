"""A check as a table for the terminal, and as Markdown for a model card."""

import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from quantkit.report import figures
from quantkit.report.card_text import plain
from quantkit.report.findings import (
    answers_sentence,
    failures,
    headline,
    jump_sentence,
    measured_sentence,
    task_sentence,
    unknown_text,
    verdict,
    worst_linears,
)
from quantkit.units import GIB, format_bytes, format_gib, format_seconds

WIDTH = 100  # columns that every line fits
SHORTEST_NAME, LONGEST_NAME = 12, 24
LANGUAGES_TITLE = "KL by language"
HEAD = ("weights", "format", "bpw", "size", "memory\nGiB", "perplexity", "change", "KL\nmean", "KL\n99 %", "top-1")

ALIGNMENT = ("---", "---", *["---:"] * 8, "---")


def print_check(record: Mapping[str, Any]) -> None:
    """Print a record of `quantkit check` on stdout: figures, languages, and per artifact verdict and damage."""
    console = _console()
    width = min(console.width, WIDTH)

    def say(text: str, indent: str = "") -> None:
        lines = textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
        console.print("\n".join(lines), markup=False, soft_wrap=True)

    evaluation = record["evaluation"]
    texts = len(evaluation["texts"])
    say(
        f"{evaluation['tokens']} tokens of {texts} {'text' if texts == 1 else 'texts'}, {evaluation['windows']}, "
        f"{evaluation['dtype']}; memory with {record['baseline']['memory']['context']} tokens of context"
    )
    console.print(_figures(record))
    for note in (unknown_text(record), *evaluation["notes"]):
        if note:
            say(f"note: {note}")
    for table in _languages(record, width):
        console.print()
        console.print(table)
    for artifact in record["artifacts"]:
        console.print()
        say(f"{artifact['name']}: {verdict(artifact)}")
        for line in (*failures(artifact), *_extras(artifact, record["baseline"])):
            say(line, "  ")
    console.print()
    seconds = record["measured"]["seconds"]  # None: measured in the pass that quantizes
    say(f"{headline(record)}; checked in {'the same pass' if seconds is None else format_seconds(seconds)}.")


def markdown_table(record: Mapping[str, Any]) -> str:
    """The figures as a Markdown table for a card: the baseline and each artifact in a row."""
    rows = [(*(title.replace("\n", " ").removesuffix(" GiB") for title in HEAD), "limits"), ALIGNMENT]
    for entry in _entries(record):
        overall, is_artifact = entry["metrics"]["all"], "gates" in entry
        rows.append(
            (
                plain(entry["name"]),
                plain(entry["format"]),
                figures.bits(entry["bits_per_weight"]),
                format_bytes(entry["file_bytes"]),
                format_gib(entry["memory"]["predicted_bytes"]),
                figures.perplexity(overall["perplexity"], overall["perplexity_error"]),
                *(_comparison(overall) if is_artifact else [""] * 4),
                verdict(entry) if is_artifact else "",
            )
        )
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _console() -> Console:
    """A pipe or a log gets lines of 100 columns; a terminal keeps its own width."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=WIDTH)


def _entries(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [record["baseline"], *record["artifacts"]]


def _comparison(overall: Mapping[str, Any]) -> list[str]:
    """Change of perplexity, mean and 99th percentile of the divergence, agreement."""
    return [
        figures.change(overall["perplexity_ratio"]),
        figures.small(overall["kl_mean"]),
        figures.small(overall["kl_99"]),
        figures.share(overall["top1_agreement"]),
    ]


def _figures(record: Mapping[str, Any]) -> Table:
    rows = []
    for entry in _entries(record):
        overall = entry["metrics"]["all"]
        cells = [
            _compact_format(entry["format"]),
            figures.bits(entry["bits_per_weight"]),
            format_bytes(entry["file_bytes"]),
            f"{entry['memory']['predicted_bytes'] / GIB:.2f}",
            figures.perplexity(overall["perplexity"], overall["perplexity_error"]),
        ]
        rows.append([entry["name"], *cells, *(_comparison(overall) if "gates" in entry else [""] * 4)])
    return _table(HEAD, rows, left=2)


def _languages(record: Mapping[str, Any], width: int) -> list[Table]:
    """Mean divergence by language, in as many tables as the width asks for; none for a single language."""
    languages = [name for name, found in record["baseline"]["metrics"]["languages"].items() if found]
    if len(languages) < 2:
        return []
    rows = [[_language(artifact, name) for name in languages] for artifact in record["artifacts"]]
    widest = max(len(cell) for cell in (*languages, *(cell for row in rows for cell in row))) + 2
    names = [_middle(artifact["name"], LONGEST_NAME) for artifact in record["artifacts"]]
    room = width - max(len(LANGUAGES_TITLE), *map(len, names))
    parts = math.ceil(len(languages) / max(1, room // widest))
    size = math.ceil(len(languages) / parts)
    return [
        _table(
            (LANGUAGES_TITLE, *languages[start : start + size]),
            [[name, *row[start : start + size]] for name, row in zip(names, rows, strict=True)],
            left=1,
        )
        for start in range(0, len(languages), size)
    ]


def _language(artifact: Mapping[str, Any], name: str) -> str:
    found = artifact["metrics"]["languages"].get(name)
    return figures.small(found["kl_mean"]) if found else ""


def _extras(artifact: Mapping[str, Any], baseline: Mapping[str, Any]) -> list[str]:
    """Where the damage is, and whatever else was measured, a line each."""
    worst, answers, measured = worst_linears(artifact), artifact.get("answers"), artifact["memory"].get("measured")
    lines = [
        f"most changed: {', '.join(worst)}" if worst else "",
        jump_sentence(artifact["drift"]),
        f"answers: {answers_sentence(answers, baseline.get('answers'))}" if answers else "",
        f"measured: {measured_sentence(measured)}" if measured else "",
        *(f"{name}: {task_sentence(task)}" for name, task in (artifact.get("tasks") or {}).items()),
    ]
    return [line for line in lines if line]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> Table:
    """A table of at most 100 columns: the gaps shrink first, then the first column."""
    widths = [
        max(*map(len, title.split("\n")), *(len(row[column]) for row in rows)) for column, title in enumerate(head)
    ]
    gap = 2 if sum(widths) + 2 * (len(widths) - 1) <= WIDTH else 1
    room = WIDTH - sum(widths[1:]) - gap * (len(widths) - 1)
    table = Table(box=None, padding=(0, gap, 0, 0), pad_edge=False)
    for column, title in enumerate(head):
        side = "left" if column < left else "right"
        table.add_column(title, justify=side, no_wrap=column > 1, vertical="bottom")  # type: ignore[arg-type]
    for name, *cells in rows:
        table.add_row(*(_literal(cell) for cell in (_middle(name, max(SHORTEST_NAME, room)), *cells)))
    return table


def _literal(text: str) -> str:
    """Text in which rich finds no markup."""
    return re.sub(r"(\\*)\[", r"\1\1\\[", text)


def _middle(text: str, width: int) -> str:
    """A name cut in its middle: both its model and its format stay readable."""
    if len(text) <= width:
        return text
    tail = (width - 1) * 3 // 5
    return f"{text[: width - 1 - tail]}…{text[-tail:]}"


def _compact_format(text: str) -> str:
    return text.replace(" bits", "-bit").replace(", group ", " g").replace(", per row", " per row")
