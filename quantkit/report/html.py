"""A check as one HTML page that needs nothing but a browser."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quantkit.report import figures, sections
from quantkit.report.findings import LANGUAGES, failures, headline, task_value, unknown_text, verdict
from quantkit.report.memory_bars import Machine, memory_bars
from quantkit.units import format_bytes, format_gib, format_seconds
from quantkit.weights.files import write_file

TEMPLATE = "check.html"


def write_html(record: Mapping[str, Any], path: Path, machines: Sequence[Machine] = ()) -> None:
    """Write the page of a check.

    Args:
        record: of `quantkit check`, as check.json has it.
        path: the page.
        machines: common machines, beside which the memory is shown.

    Raises:
        DiskError: the file cannot be written.
    """
    write_file(path, render_html(record, machines).encode())


def render_html(record: Mapping[str, Any], machines: Sequence[Machine] = ()) -> str:
    """The page as text: no script, no address of another file, the same for the same record.

    Args:
        record: of `quantkit check`, as check.json has it.
        machines: common machines, beside which the memory is shown.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("quantkit.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    sets = sections.weight_sets(record)
    return environment.get_template(TEMPLATE).render(
        record=record,
        evaluation=record["evaluation"],
        sets=sets,
        headline=headline(record),
        unknown=unknown_text(record),
        verdicts=[_verdict(one) for one in sets[1:]],
        summary=[_summary(one) for one in sets],
        tasks=_tasks(sets),
        scatters=sections.scatters(record, sets),
        languages=sections.languages(record, sets),
        texts=_texts(record, sets),
        heat_maps=sections.heat_maps(sets),
        drift=sections.drift_lines(sets),
        memory=memory_bars(sets, machines),
        answers=sections.answers(record, sets),
        cost=_cost(record),
    )


def _verdict(one: Mapping[str, Any]) -> dict[str, Any]:
    entry = one["entry"]
    overall = entry["metrics"]["all"]
    return {
        "set": one,
        "verdict": verdict(entry),
        "failures": failures(entry),
        "gates": entry["gates"],
        "figures": [
            ("KL divergence", figures.small(overall["kl_mean"])),
            ("perplexity", figures.change(overall["perplexity_ratio"])),
            ("top-1", figures.share(overall["top1_agreement"])),
            ("on disk", format_bytes(entry["file_bytes"])),
        ],
    }


def _summary(one: Mapping[str, Any]) -> dict[str, Any]:
    entry = one["entry"]
    overall = entry["metrics"]["all"]
    cells = [
        entry["format"],
        figures.bits(entry["bits_per_weight"]),
        format_bytes(entry["file_bytes"]),
        format_gib(entry["memory"]["predicted_bytes"]),
        figures.perplexity(overall["perplexity"], overall["perplexity_error"]),
    ]
    if one["key"]:
        cells += [
            figures.change(overall["perplexity_ratio"], overall["perplexity_ratio_error"]),
            figures.small(overall["kl_mean"], overall["kl_error"]),
            figures.small(overall["kl_99"]),
            figures.share(overall["top1_agreement"], overall["top1_error"]),
        ]
    return {"set": one, "cells": cells}


def _tasks(sets: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row per task: the baseline's value and every artifact's."""
    by_set = [one["entry"].get("tasks") or {} for one in sets[1:]]
    rows = []
    for name in dict.fromkeys(name for tasks in by_set for name in tasks):
        known = next(tasks[name] for tasks in by_set if name in tasks)
        values = [task_value(tasks[name]) if name in tasks else "" for tasks in by_set]
        rows.append({"name": name, "metric": known["metric"], "baseline": f"{known['baseline']:.4f}", "values": values})
    return rows


def _texts(record: Mapping[str, Any], sets: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row per evaluation text: what it is, and what each weight set made of it."""
    rows = []
    for text in record["evaluation"]["texts"]:
        own = record["baseline"]["metrics"]["texts"].get(text["name"])
        found = [one["entry"]["metrics"]["texts"].get(text["name"]) for one in sets[1:]]
        rows.append(
            {
                "text": text,
                "language": LANGUAGES.get(text["language"], text["language"]),
                "perplexity": figures.perplexity(own["perplexity"], own["perplexity_error"]) if own else "",
                "cells": [
                    (
                        figures.change(one["perplexity_ratio"]),
                        figures.small(one["kl_mean"]),
                        figures.share(one["top1_agreement"]),
                    )
                    if one
                    else ("", "", "")
                    for one in found
                ],
            }
        )
    return rows


def _cost(record: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """What the check itself took: predicted beside measured."""
    predicted, measured = record["predicted"], record["measured"]
    return [
        ("memory", format_gib(predicted["host_bytes"]), format_gib(measured["host_bytes"])),
        ("time", format_seconds(predicted["seconds"]), format_seconds(measured["seconds"])),
    ]
