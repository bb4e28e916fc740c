"""The parts of the HTML report, each from the record to what its template shows."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from quantkit.report import figures, plots
from quantkit.report.findings import LANGUAGES, jump_sentence, split_name, worst_linears
from quantkit.units import format_bytes

Entry = Mapping[str, Any]
COLOURS = 6
LINES_HEIGHT = 220.0  # pixels of the drift plot
OPEN_ANSWERS = 3  # prompts shown unfolded


def weight_sets(record: Entry) -> list[dict[str, Any]]:
    """The baseline and the artifacts with the letter and colour that stand for them on the whole page."""
    sets = []
    for number, entry in enumerate([record["baseline"], *record["artifacts"]]):
        key, colour = (_letter(number - 1), (number - 1) % COLOURS + 1) if number else ("", 0)
        sets.append({"key": key, "colour": colour, "name": entry["name"], "format": entry["format"], "entry": entry})
    return sets


def scatters(record: Entry, sets: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Divergence and perplexity against the size on disk."""
    baseline, artifacts = sets[0]["entry"], sets[1:]
    own = baseline["metrics"]["all"]["perplexity"]
    size = plots.amount_axis([one["entry"]["file_bytes"] for one in sets])
    divergence, perplexity = [], []
    for one in artifacts:
        overall, x = one["entry"]["metrics"]["all"], one["entry"]["file_bytes"]
        kl = figures.small(overall["kl_mean"], overall["kl_error"])
        change = figures.change(overall["perplexity_ratio"], overall["perplexity_ratio_error"])
        title = f"{one['name']}: {format_bytes(x)}, "
        divergence.append(
            plots.Point(one["key"], one["colour"], x, overall["kl_mean"], overall["kl_error"], f"{title}KL {kl}")
        )
        error = overall["perplexity_ratio_error"] * own  # of the paired difference, not of the text's difficulty
        said = f"{title}perplexity {figures.perplexity(overall['perplexity'])} ({change})"
        perplexity.append(plots.Point(one["key"], one["colour"], x, overall["perplexity"], error, said))
    of_kl = plots.value_axis([point.y for point in divergence])
    of_perplexity = plots.value_axis([own, *(point.y for point in perplexity)])
    return [
        _scatter("KL divergence, nats per token", divergence, size, of_kl, figures.small, baseline["file_bytes"]),
        _scatter("Perplexity", perplexity, size, of_perplexity, figures.perplexity, baseline["file_bytes"], own),
    ]


def languages(record: Entry, sets: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean divergence by language, the most damaged first, each artifact on a scale of its own."""
    own = {name: found for name, found in record["baseline"]["metrics"]["languages"].items() if found}
    columns = []
    for one in sets[1:]:
        metrics = one["entry"]["metrics"]
        found = {name: metrics["languages"].get(name) or {} for name in own}
        most = max([metrics["all"]["kl_mean"], *(row.get("kl_mean", 0.0) for row in found.values())]) or 1.0
        columns.append({"found": found, "most": most, "mean": 100 * metrics["all"]["kl_mean"] / most})
    order = sorted(
        own, key=lambda name: -sum(column["found"][name].get("kl_mean", 0) / column["most"] for column in columns)
    )
    rows = []
    for name in order:
        cells = [_language_cell(column["found"][name], column) for column in columns]
        perplexity = figures.perplexity(own[name]["perplexity"])
        label = LANGUAGES.get(name, name)
        rows.append({"label": label, "tokens": own[name]["tokens"], "perplexity": perplexity, "cells": cells})
    return {"rows": rows, "means": [figures.small(one["entry"]["metrics"]["all"]["kl_mean"]) for one in sets[1:]]}


def heat_maps(sets: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each artifact what happened to every linear of every layer."""
    maps = []
    for one in sets[1:]:
        linears = one["entry"]["linears"]
        if not linears:
            continue
        by_output = all(linear.get("output_error") is not None for linear in linears)
        measure = "output_error" if by_output else "error"
        cells: dict[str, dict[int, list[Entry]]] = {}
        for linear in linears:
            layer, row = split_name(linear["name"])
            cells.setdefault(row, {}).setdefault(layer, []).append(linear)
        first = min(layer for row in cells.values() for layer in row)
        layers = range(
            first, max([len(one["entry"]["drift"]), *(layer + 1 for row in cells.values() for layer in row)])
        )
        means = {(row, layer): _mean(found, measure) for row, of in cells.items() for layer, found in of.items()}
        axis = plots.heat_axis(list(means.values()))
        rows = [
            (row, [_heat_cell(row, layer, of.get(layer, []), means.get((row, layer), 0.0), axis) for layer in layers])
            for row, of in cells.items()
        ]
        every = max(1, -(-len(layers) // 8))
        maps.append(
            {
                "set": one,
                "by_output": by_output,
                "rows": rows,
                "ticks": [str(layer) if (layer - first) % every == 0 else "" for layer in layers],
                "low": figures.small(axis.low),
                "high": figures.small(axis.high),
                "worst": worst_linears(one["entry"]),
                "jump": jump_sentence(one["entry"]["drift"]),
            }
        )
    return maps


def drift_lines(sets: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """How far the activations are from the baseline's after each layer; nothing if they never are."""
    drifting = [one for one in sets[1:] if any(one["entry"]["drift"])]
    if not drifting:
        return None
    layers = max(len(one["entry"]["drift"]) for one in drifting)
    x = plots.Axis(0.0, max(1, layers - 1), log=False)
    y = plots.value_axis([value for one in drifting for value in one["entry"]["drift"] if value > 0])
    lines: list[dict[str, Any]] = []
    for one in drifting:
        drift = one["entry"]["drift"]
        points: list[dict[str, Any]] = [
            {"x": x.at(layer), "y": 100 - y.at(value), "title": f"{one['name']}, layer {layer}: {figures.small(value)}"}
            for layer, value in enumerate(drift)
        ]
        path = plots.path([point["x"] for point in points], [point["y"] for point in points])
        lines.append({"key": one["key"], "colour": one["colour"], "points": points, "path": path, "end": points[-1]})
    shifts = plots.spread([line["end"]["y"] for line in lines], LINES_HEIGHT)
    steps = max(1, -(-layers // 10))
    ticks = [plots.Tick(x.at(layer), str(layer)) for layer in range(0, layers, steps)]
    ends = [{**line, "shift": shift} for line, shift in zip(lines, shifts, strict=True)]
    y_ticks = [plots.Tick(100 - tick.at, tick.text) for tick in y.ticks(figures.small)]
    return {"lines": ends, "x_ticks": ticks, "y_ticks": y_ticks, "height": LINES_HEIGHT, "dots": layers <= 40}


def answers(record: Entry, sets: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The prompts with every weight set's answer beside the baseline's, or nothing if none were asked."""
    prompts = record.get("prompts") or []
    given = [(one, one["entry"]["answers"]) for one in sets if one["entry"].get("answers")]
    if not prompts or len(given) < 2:
        return None
    found = [(one, {item["id"]: item for item in answered["items"]}) for one, answered in given]
    rows = []
    for prompt in prompts:
        columns = [
            {"set": one, "item": items[prompt["id"]], "is_baseline": not one["key"]}
            for one, items in found
            if prompt["id"] in items
        ]
        rows.append(
            {"prompt": prompt, "language": LANGUAGES.get(prompt["language"], prompt["language"]), "columns": columns}
        )
    shown = [row for row in rows if _lost(row)] or [row for row in rows if _differs(row)]
    for row in rows:
        row["open"] = any(row is one for one in shown[:OPEN_ANSWERS])
    totals = [{"set": one, "answers": answered} for one, answered in given]
    return {
        "rows": rows,
        "totals": totals,
        "any_correct": any((one["answers"].get("correct") or [0, 0])[1] for one in totals),
    }


def _lost(row: dict[str, Any]) -> bool:
    """Whether an artifact is wrong where the baseline was right, or the other way round."""
    return len({column["item"].get("correct") for column in row["columns"]} - {None}) > 1


def _differs(row: dict[str, Any]) -> bool:
    return any(column["item"].get("first_difference") is not None for column in row["columns"])


def _letter(number: int) -> str:
    """A, B, ... Z, AA, AB, ..."""
    alphabet = [chr(ord("A") + index) for index in range(26)]
    names = itertools.chain(alphabet, ("".join(pair) for pair in itertools.product(alphabet, repeat=2)))
    return next(itertools.islice(names, number, None))


def _scatter(
    title: str,
    points: list[plots.Point],
    x: plots.Axis,
    y: plots.Axis,
    text: Any,  # noqa: ANN401
    baseline_x: float,
    baseline_y: float | None = None,
) -> dict[str, Any]:
    unit = _byte_unit(x.high)
    return {
        "title": title,
        "log": y.log,
        "marks": plots.place(points, x, y),
        "frontier": plots.frontier(points, x, y),
        "x_ticks": x.ticks(lambda value: f"{value / unit[0]:.3g}", unit=unit[0]),
        "y_ticks": [plots.Tick(100 - tick.at, tick.text) for tick in y.ticks(text)],
        "unit": unit[1],
        "baseline_x": x.at(baseline_x),
        "baseline_y": None if baseline_y is None else 100 - y.at(baseline_y),
        "height": plots.HEIGHT,
    }


def _byte_unit(largest: float) -> tuple[float, str]:
    return next(
        ((factor, name) for factor, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")) if largest >= factor), (1e3, "kB")
    )


def _language_cell(found: Entry, column: Entry) -> dict[str, Any] | None:
    if not found:
        return None
    return {
        "text": figures.small(found["kl_mean"]),
        "width": round(100 * found["kl_mean"] / column["most"], 1),
        "mean": round(column["mean"], 1),
        "title": f"KL {figures.small(found['kl_mean'], found['kl_error'])}, 99 % {figures.small(found['kl_99'])}; "
        f"perplexity {figures.perplexity(found['perplexity'])} ({figures.change(found['perplexity_ratio'])}); "
        f"top-1 {figures.share(found['top1_agreement'])}",
    }


def _mean(linears: Sequence[Entry], measure: str) -> float:
    return sum(float(linear[measure]) for linear in linears) / len(linears)


def _heat_cell(row: str, layer: int, linears: Sequence[Entry], value: float, axis: plots.Axis) -> dict[str, Any]:
    if not linears:
        return {"step": None, "title": f"layer {layer} {row}: as in the baseline"}
    worst = max(linears, key=lambda linear: linear["worst_row_error"])
    experts = f" (mean of {len(linears)})" if len(linears) > 1 else ""
    output = "" if worst.get("output_error") is None else f", output {figures.small(_mean(linears, 'output_error'))}"
    title = (
        f"layer {layer} {row}{experts}: weights {figures.small(_mean(linears, 'error'))}{output}; "
        f"row {worst['worst_row']} {figures.small(worst['worst_row_error'])}"
    )
    return {"step": plots.heat_step(axis, value), "title": title}
