"""A plan and a finished run as tables for people."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from quantkit.units import format_bytes, format_gib, format_seconds

TRANSFORMERS_NEEDS = "transformers>={}, with optimum>=1.24 and gptqmodel>=1.4.3"
SHOWN_NAMES = 3  # notes and rounded linears shown before "and N more"


def print_plan(plan: dict[str, Any]) -> None:
    """Print `Job.as_dict` on stdout."""
    console = wide_console()
    recipe, budget = plan["recipe"], plan["budget"]
    source = plan["source"]["reference"]
    commit = plan["source"]["commit"]
    console.print(f"{source}{f' @ {commit[:12]}' if commit else ''}: {plan['architecture']}", markup=False)
    group = "one group per row" if recipe["group_size"] == -1 else f"group {recipe['group_size']}"
    symmetry = "symmetric" if recipe["symmetric"] else "asymmetric"
    method = recipe["method"].upper()
    console.print(f"{method} {recipe['bits']} bit, {group}, {symmetric_note(recipe, symmetry)}", markup=False)
    facts = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    shards = len(plan["shards"])
    facts.add_row(
        "artifact",
        f"{format_bytes(plan['artifact_bytes'])} in {shards} {'file' if shards == 1 else 'files'} "
        f"(from {format_bytes(plan['source_bytes'])}), {plan['bits_per_weight']:.2f} bits per weight",
    )
    facts.add_row("output", escape(plan["output"]))
    facts.add_row("device", plan["device"])
    facts.add_row("peak host memory", format_gib(budget["host_bytes"]))
    if budget["device_bytes"]:
        facts.add_row("peak GPU memory", format_gib(budget["device_bytes"]))
    facts.add_row("disk", format_bytes(budget["disk_bytes"]))
    facts.add_row("download", download_note(budget["download_bytes"], plan["streamed"]))
    facts.add_row("time", f"about {format_seconds(budget['seconds'])}")
    console.print(facts)
    console.print(_actions(plan["rows"]))
    console.print(machines_table(plan["machines"], plan["context"]))
    console.print(_runtimes(plan["runtimes"]))
    for note in plan["notes"]:
        console.print(f"note: {note}", markup=False)


def download_note(size: int, streamed: bool) -> str:
    """How much comes over the network, and how."""
    if not size:
        return "none"
    return f"{format_bytes(size)}{', streamed: two shards at a time' if streamed else ''}"


def symmetric_note(recipe: dict[str, Any], symmetry: str) -> str:
    """Symmetry and, for GPTQ, the order of columns."""
    return symmetry if recipe["method"] == "rtn" else f"{symmetry}, act-order {recipe['act_order']}"


def print_result(output: Path, record: dict[str, Any]) -> None:
    """Print what a run made: size, error, predicted against measured, runtimes."""
    console = wide_console()
    console.print(
        f"{output}: {format_bytes(record['artifact_bytes'])}, {record['bits_per_weight']:.2f} bits per weight, "
        f"mean relative error of a linear {record['mean_relative_error']:.2e}",
        markup=False,
    )
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("", "predicted", "measured"):
        table.add_column(column, justify="left" if not column else "right")
    predicted, measured = record["predicted"], record["measured"]
    table.add_row("peak host memory", format_gib(predicted["host_bytes"]), format_gib(measured["host_bytes"]))
    if predicted["device_bytes"]:
        table.add_row("peak GPU memory", format_gib(predicted["device_bytes"]), format_gib(measured["device_bytes"]))
    table.add_row("disk", format_bytes(predicted["disk_bytes"]), format_bytes(measured["disk_bytes"]))
    table.add_row("time", format_seconds(predicted["seconds"]), format_seconds(measured["seconds"]))
    console.print(table)
    for note in record["notes"]:
        console.print(f"note: {note}", markup=False)
    rounded = record["rounded_to_nearest"]
    raised = [name for name in record.get("damping_raised", {}) if name not in rounded]
    if rounded:
        console.print(f"warning: rounded to nearest, their Hessian could not be factorised: {_some(rounded)}")
    if raised:
        console.print(f"warning: damping raised, their Hessian is not positive definite: {_some(raised)}")
    loads = [name for name, answer in record["runtimes"].items() if answer == "loads"]
    needs = f" ({TRANSFORMERS_NEEDS.format(record['first_transformers'])})" * ("transformers" in loads)
    console.print(f"loads in: {', '.join(loads)}{needs}", markup=False)
    for name, answer in record["runtimes"].items():
        if answer != "loads":
            console.print(f"not in {name}: {answer}", markup=False)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(names[:SHOWN_NAMES]) + more


def wide_console() -> Console:
    """Wide enough that no line of a pipe or a log is broken; a terminal keeps its own width."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=160, soft_wrap=True)


def _actions(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("tensors", "what", "from", "to"):
        table.add_column(column, justify="left" if column == "what" else "right")
    kinds: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        what = f"quantized to {row['bits']} bits" if row["action"] == "quantize" else _LABELS[row["action"]]
        kinds.setdefault(what, []).append(row)
    for what, members in kinds.items():
        source, target = sum(row["source_bytes"] for row in members), sum(row["bytes"] for row in members)
        table.add_row(str(len(members)), what, format_bytes(source), format_bytes(target))
    return table


_LABELS = {"keep": "kept in 16 bits", "drop": "not needed"}


def machines_table(machines: list[dict[str, Any]], context: int) -> Table:
    """On which machines an artifact runs, a line each."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in (f"runs on, with {context} tokens of context", "needs", "has", ""):
        table.add_column(column, justify="right" if column in ("needs", "has") else "left")
    for row in machines:
        verdict = "yes" if row["fits"] else "no"
        table.add_row(row["machine"], format_gib(row["needed_bytes"]), format_gib(row["usable_bytes"]), verdict)
    return table


def _runtimes(runtimes: list[dict[str, Any]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("loads in")
    table.add_column("")
    for row in runtimes:
        table.add_row(row["runtime"], "yes" if row["loads"] else f"no: {row['reason']}")
    return table
