"""The section of the HTML report on memory: what running each weight set takes, beside what machines have."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from quantkit.report import plots
from quantkit.report.findings import fitting, measured_sentence
from quantkit.units import GIB, format_bytes, format_gib

Entry = Mapping[str, Any]


class Machine(Protocol):
    """A common machine: its name and what it has left for a model."""

    @property
    def name(self) -> str:
        """What people call it."""

    @property
    def usable_bytes(self) -> int:
        """Memory for weights, cache and runtime."""


def memory_bars(sets: Sequence[dict[str, Any]], machines: Sequence[Machine]) -> dict[str, Any]:
    """What running each weight set takes, beside what common machines have."""
    needs = [one["entry"]["memory"] for one in sets]
    largest = max(max(need["predicted_bytes"], (need.get("measured") or {}).get("peak_bytes") or 0) for need in needs)
    ordered = sorted(machines, key=lambda machine: machine.usable_bytes)
    above = [machine.usable_bytes for machine in ordered if machine.usable_bytes >= largest][:1]
    axis = plots.amount_axis([largest, *above])
    shown = [machine for machine in ordered if machine.usable_bytes <= axis.high]
    texts = [f"{machine.name}: {machine.usable_bytes / GIB:.1f} GiB" for machine in shown]
    places = [axis.at(machine.usable_bytes) for machine in shown]
    flags: list[dict[str, Any]] = [
        {"x": at, "text": text, "row": row, "left": left}
        for at, text, (row, left) in zip(places, texts, plots.flag_rows(places, texts), strict=True)
    ]
    rows = [
        {
            "set": one,
            "segments": _segments(need, axis),
            "total": format_gib(need["predicted_bytes"]),
            "ratio": f"{need['ratio']:.0%}",
            "measured": measured_sentence(need["measured"]) if need.get("measured") else "",
            "peak": _peak(need, axis),
            "fits": fitting(need["predicted_bytes"], ordered),
        }
        for one, need in zip(sets, needs, strict=True)
    ]
    return {
        "rows": rows,
        "flags": flags,
        "flag_rows": max((flag["row"] + 1 for flag in flags), default=0),
        "ticks": axis.ticks(lambda value: f"{value / GIB:.3g}", unit=GIB),
        "machines": [(machine.name, f"{machine.usable_bytes / GIB:.1f} GiB") for machine in ordered],
        "context": needs[0]["context"],
    }


def _segments(need: Entry, axis: plots.Axis) -> list[dict[str, Any]]:
    """Weights, cache and overhead one behind the other."""
    segments, start = [], 0
    for kind, label in (("weight", "weights"), ("kv", "KV cache"), ("overhead", "runtime")):
        size = need[f"{kind}_bytes"]
        title = (
            f"{label}: {format_gib(size) if size >= GIB / 100 else format_gib(size) + ' (' + format_bytes(size) + ')'}"
        )
        segments.append(
            {"kind": kind, "x": axis.at(start), "width": axis.at(start + size) - axis.at(start), "title": title}
        )
        start += size
    return segments


def _peak(need: Entry, axis: plots.Axis) -> dict[str, Any] | None:
    peak = (need.get("measured") or {}).get("peak_bytes")
    return None if peak is None else {"x": axis.at(peak), "title": f"measured at most {format_gib(peak)}"}
