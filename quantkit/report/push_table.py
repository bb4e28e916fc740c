"""A push, planned and done, as text for people."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from quantkit.report.table import wide_console
from quantkit.units import format_bytes


def print_plan(plan: Mapping[str, Any]) -> None:
    """Print what a push would do, and the card, on stdout.

    Args:
        plan: what `quantkit.pipeline.push.description` gives, with `card`.
    """
    out = wide_console()
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("file", "size", ""):
        table.add_column(column, justify="right" if column == "size" else "left")
    for file in plan["files"]:
        table.add_row(file["name"], format_bytes(file["bytes"]), "to be sent" if file["differs"] else "is there")
    out.print(table)
    for name in plan["removed"]:
        out.print(f"{name} of an earlier push would be removed", markup=False)
    new = [file for file in plan["files"] if file["differs"]]
    total = format_bytes(sum(file["bytes"] for file in new))
    work = f"{_count(len(new), 'file')}, {total}, to be sent" if new or plan["removed"] else "nothing to be done"
    out.print(f"{_where(plan)}: {work}", markup=False)
    for note in plan["notes"]:
        out.print(note, markup=False)
    out.print(f"\nREADME.md:\n\n{plan['card']}", markup=False, highlight=False, soft_wrap=True)


def print_result(record: Mapping[str, Any]) -> None:
    """Print what a push did.

    Args:
        record: what `quantkit.pipeline.push.run` gives.
    """
    files = record["files"]
    size = format_bytes(sum(file["bytes"] for file in files))
    done = "holds" if record["changed"] else "held already"
    print(f"{_where(record)} {done} {_count(len(files), 'file')}, {size}, at commit {record['commit'][:12]}")
    if record["tag"]:
        print(f"tag {record['tag']}")
    if record["collection"]:
        print(f"collection {record['collection']}")
    print(record["url"])


def _where(record: Mapping[str, Any]) -> str:
    visible = {True: "private", False: "public", None: "as the namespace has chosen"}[record["private"]]
    is_new = "" if record["exists"] or "commit" in record else ", new"
    branch = "" if record["branch"] == "main" else f", branch {record['branch']}"
    return f"{record['repo']} ({visible}{is_new}){branch}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
