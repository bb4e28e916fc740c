"""The plan and the result of a conversion to GGUF as tables for people."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from quantkit.report.table import download_note, machines_table, wide_console
from quantkit.units import format_bytes, format_gib, format_seconds


def print_plan(plan: Mapping[str, Any]) -> None:
    """Print `GgufJob.as_dict` on stdout."""
    out = wide_console()
    source, budget, vocabulary = plan["source"], plan["budget"], plan["vocabulary"]
    commit = f" @ {source['commit'][:12]}" if source["commit"] else ""
    out.print(f"{source['reference']}{commit}: {plan['architecture']}", markup=False)
    pre = f", pre-tokenizer {vocabulary['pre']}" if vocabulary["model"] == "gpt2" else ""
    out.print(f"GGUF architecture {plan['gguf_architecture']}, vocabulary {vocabulary['model']}{pre}", markup=False)
    out.print(_files(plan["outputs"]))
    facts = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    facts.add_row("output", escape(plan["folder"]))
    facts.add_row("peak host memory", format_gib(budget["host_bytes"]))
    facts.add_row("disk", format_bytes(budget["disk_bytes"]))
    facts.add_row("download", download_note(budget["download_bytes"], plan["streamed"]))
    facts.add_row("time", f"about {format_seconds(budget['seconds'])} on {plan['threads']} cores")
    out.print(facts)
    smallest = min(plan["outputs"], key=lambda output: output["bytes"])
    if len(plan["outputs"]) > 1:
        out.print(f"{smallest['type']}:", markup=False)
    out.print(machines_table(smallest["machines"], plan["context"]))
    _print_notes(out, plan["notes"])


def print_result(folder: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Print what a run made: files, types, predicted against measured."""
    out = wide_console()
    out.print(f"{folder}:", markup=False)
    out.print(_files(records))
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("", "predicted", "measured"):
        table.add_column(column, justify="left" if not column else "right")
    predicted, measured = records[-1]["predicted"], records[-1]["measured"]
    table.add_row("peak host memory", format_gib(predicted["host_bytes"]), format_gib(measured["host_bytes"]))
    table.add_row("disk", format_bytes(predicted["disk_bytes"]), format_bytes(measured["disk_bytes"]))
    table.add_row("time", format_seconds(predicted["seconds"]), format_seconds(measured["seconds"]))
    out.print(table)
    _print_notes(out, dict.fromkeys(note for record in records for note in record["notes"]))


def _files(outputs: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("file", "size", "bits per weight", "tensors"):
        table.add_column(column, justify="right" if column in ("size", "bits per weight") else "left")
    for output in outputs:
        first, *others = output["files"]
        name = f"{first} and {len(others)} more" if others else first
        counts = ", ".join(f"{count} {kind}" for kind, count in _by_count(output["tensors"]))
        table.add_row(escape(name), format_bytes(output["bytes"]), f"{output['bits_per_weight']:.2f}", counts)
    return table


def _by_count(tensors: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(tensors.items(), key=lambda item: -item[1])


def _print_notes(out: Console, notes: Sequence[str] | Mapping[str, None]) -> None:
    for note in notes:
        out.print(f"note: {note}", markup=False)
