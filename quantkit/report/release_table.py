"""The plan and the result of a release as tables for people."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from quantkit.report.table import wide_console
from quantkit.units import format_bytes, format_gib, format_seconds


def print_plan(plan: Mapping[str, Any]) -> None:
    """Print `ReleasePlan.as_dict` on stdout."""
    out = wide_console()
    base = plan["base"]
    commit = f" @ {base['commit'][:12]}" if base["commit"] else ""
    out.print(f"{base['repo'] or base['name']}{commit} into {plan['folder']}", markup=False)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("variant", "size", "bits per weight", "goes to"):
        table.add_column(name, justify="right" if name in ("size", "bits per weight") else "left")
    for one in plan["variants"]:
        branch = f" ({'its own branch' if one['branch'] == 'auto' else one['branch']})" if one["branch"] else ""
        home = f"{one['repo']}{branch}" if one["repo"] else "not published"
        table.add_row(escape(one["name"]), format_bytes(one["bytes"]), f"{one['bits_per_weight']:.2f}", escape(home))
    out.print(table)
    facts = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    facts.add_row("peak host memory", format_gib(plan["host_bytes"]))
    facts.add_row("disk", format_bytes(plan["disk_bytes"]))
    streamed = ", streamed: two shards at a time" if plan["streamed"] else ""
    facts.add_row("download", f"{format_bytes(plan['download_bytes'])}{streamed}" if plan["download_bytes"] else "none")
    facts.add_row("time", f"about {format_seconds(plan['seconds'])}, and that of the checks")
    out.print(facts)
    for note in plan["notes"]:
        out.print(f"note: {note}", markup=False)


def print_release(folder: Path, record: Mapping[str, Any]) -> None:
    """Print release.json on stdout."""
    out = wide_console()
    out.print(f"{folder}:", markup=False)
    out.print(_summary(record))


def markdown(record: Mapping[str, Any]) -> str:
    """The summary as a table of Markdown."""
    rows = [" | ".join(row) for row in ([*COLUMNS], ["---"] * len(COLUMNS), *map(_row, record["variants"]))]
    return "".join(f"| {row} |\n" for row in rows)


COLUMNS = ("variant", "size", "bits per weight", "perplexity", "KL divergence", "top-1", "became")


def _summary(record: Mapping[str, Any]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for number, name in enumerate(COLUMNS):
        table.add_column(name, justify="right" if 0 < number < len(COLUMNS) - 1 else "left")
    for one in record["variants"]:
        table.add_row(*map(escape, _row(one)))
    return table


def _row(one: Mapping[str, Any]) -> list[str]:
    became = f"published: {one['url']}" if one["url"] else one["status"]
    return [
        one["name"],
        format_bytes(one["bytes"]),
        f"{one['bits_per_weight']:.2f}",
        f"{one['perplexity']:.3f} ({one['perplexity_ratio'] - 1:+.2%})",
        f"{one['kl_mean']:.4f}",
        f"{one['top1_agreement']:.2%}",
        became,
    ]
