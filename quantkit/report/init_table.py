"""What a new release file holds, as text for people."""

from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

from quantkit.report.table import wide_console
from quantkit.units import format_bytes, format_count


def print_draft(record: Mapping[str, Any]) -> None:
    """Print what `quantkit.pipeline.init.write_release` returns, and what to do next."""
    out = wide_console()
    commit = f" at {record['revision'][:12]}" if record["revision"] else ""
    size = f"{format_count(record['parameters'])} parameters, {format_bytes(record['source_bytes'])}"
    out.print(f"{record['file']}: {record['base']}{commit}, {size}", markup=False)
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("variant")
    table.add_column("predicted size", justify="right")
    for row in record["variants"]:
        table.add_row(escape(row["recipe"]), format_bytes(row["bytes"]))
    out.print(table)
    for row in record["left_out"]:
        out.print(f"left out: {row['recipe']}: {row['reason']}", markup=False)
    out.print(f"next: look at the file, then quantkit release {record['file']} --dry-run", markup=False)
