"""The plan and the result of a download as text for people."""

from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

from quantkit.report.table import wide_console
from quantkit.units import format_bytes


def print_download(record: Mapping[str, Any]) -> None:
    """Print `DownloadJob.as_dict`, or what `quantkit.pipeline.download.run` returns, on stdout."""
    out = wide_console()
    is_plan = "missing_bytes" in record
    files, size = record["files"], format_bytes(record["bytes"])
    if is_plan:
        table = Table(box=None, padding=(0, 2, 0, 0))
        for column in ("file", "size", "missing"):
            table.add_column(column, justify="left" if column == "file" else "right")
        for row in files:
            table.add_row(escape(row["name"]), format_bytes(row["bytes"]), format_bytes(row["missing"]))
        out.print(table)
    facts = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    facts.add_row("repository", escape(record["repo"]))
    facts.add_row("commit", record["commit"])
    facts.add_row("folder", escape(record["folder"]))
    facts.add_row("files", f"{len(files)}, {size}")
    if is_plan:
        facts.add_row("missing", format_bytes(record["missing_bytes"]))
        facts.add_row("free disk", format_bytes(record["free_bytes"]))
    else:
        fetched = [row["bytes"] for row in files if row["name"] in record["fetched"]]
        said = (
            f"{len(fetched)}, {format_bytes(sum(fetched))}; every one verified" if fetched else "nothing, all was here"
        )
        facts.add_row("fetched", said)
    out.print(facts)
