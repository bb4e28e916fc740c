"""Quality gates: limits that an artifact must keep, sensible ones by bits, or the user's own."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from quantkit.errors import UsageError
from quantkit.units import format_bytes, parse_bytes


@dataclass(frozen=True)
class Limits:
    """What is asked of an artifact; None is not asked."""

    ppl_increase: float | None = None  # fraction of the baseline's perplexity
    kl: float | None = None  # mean, nats per token
    top1: float | None = None  # share of tokens, at least
    memory: int | None = None  # bytes, predicted for running it
    row_error: float | None = None  # of the worst row of any linear: |w - w'|**2 / |w|**2
    slope: float | None = None  # |slope - 1| of any linear
    bias: float | None = None  # of any linear


# Perplexity: what published GPTQ results with groups allow (Llama-2 from 7B to 70B: 1 to 2.5 % at 4 bits, 10 to
# 15 % at 3), with little room beyond; at 5 and 6 bits what llama.cpp's own table of Llama-3-8B does, with more room.
# What rounding does to weights is measured: see docs/check.md.
DEFAULTS = {
    2: Limits(ppl_increase=0.5, kl=1.0, top1=0.50, row_error=1.2, slope=0.25, bias=0.97),
    3: Limits(ppl_increase=0.15, kl=0.30, top1=0.75, row_error=0.9, slope=0.10, bias=0.90),
    4: Limits(ppl_increase=0.03, kl=0.10, top1=0.88, row_error=0.5, slope=0.03, bias=0.80),
    5: Limits(ppl_increase=0.025, kl=0.03, top1=0.92, row_error=0.3, slope=0.02, bias=0.80),
    6: Limits(ppl_increase=0.01, kl=0.015, top1=0.94, row_error=0.2, slope=0.015, bias=0.80),
    8: Limits(ppl_increase=0.005, kl=0.01, top1=0.96, row_error=0.1, slope=0.01, bias=0.80),
    16: Limits(ppl_increase=0.005, kl=0.005, top1=0.97, row_error=0.01, slope=0.005),
}


@dataclass(frozen=True)
class Gate:
    """A limit beside what was found."""

    name: str
    limit: str
    found: str
    passed: bool

    @property
    def sentence(self) -> str:
        """For people: `perplexity +7.1 %, allowed +5 %`."""
        return f"{self.name} {self.found}, allowed {self.limit}"


def limits_for(bits: float | None) -> Limits:
    """Default limits for an artifact of so many bits per code; None is a 16-bit one."""
    known = sorted(DEFAULTS)
    return DEFAULTS[next((step for step in known if (bits or 16) <= step), known[-1])]


def overridden(limits: Limits, *others: Limits) -> Limits:
    """The limits with those that the others set instead; the last wins."""
    for other in others:
        given = {field.name: getattr(other, field.name) for field in fields(other)}
        limits = replace(limits, **{name: value for name, value in given.items() if value is not None})
    return limits


def limits_from(gates: Mapping[str, Any] | None) -> Limits:
    """Limits from the `gates` of a recipe, as a recipe or a run.json has them.

    Raises:
        UsageError: a value that is no percentage, share or size.
    """
    names = ("max_ppl_increase", "max_kl", "min_top1", "max_memory")
    return parse_limits(*((gates or {}).get(name) for name in names))


def parse_limits(
    max_ppl_increase: str | None, max_kl: float | None, min_top1: float | None, max_memory: str | None
) -> Limits:
    """Limits from options.

    Raises:
        UsageError: a value that is no percentage, share or size.
    """
    if min_top1 is not None and not 0 <= min_top1 <= 1:
        raise UsageError(f"--min-top1 {min_top1} is not a share", "write a number from 0 to 1, such as 0.95")
    return Limits(
        ppl_increase=None if max_ppl_increase is None else _fraction(max_ppl_increase),
        kl=max_kl,
        top1=min_top1,
        memory=None if max_memory is None else parse_bytes(max_memory),
    )


def apply_gates(limits: Limits, found: Mapping[str, Any]) -> list[Gate]:
    """Compare an artifact's entry of check.json with its limits.

    Args:
        limits: what is asked.
        found: `metrics` (over all texts), `memory`, `linears`, `intact`.
    """
    overall, linears = found["metrics"]["all"], found["linears"]
    increase = overall["perplexity_ratio"] - 1
    gates: list[Gate | None] = [
        _most("perplexity", limits.ppl_increase, increase, lambda value: f"{value:+.2%}"),
        _most("mean KL divergence", limits.kl, overall["kl_mean"], lambda value: f"{value:.4f}"),
        _least("top-1 agreement", limits.top1, overall["top1_agreement"]),
        _most("memory", limits.memory, found["memory"]["predicted_bytes"], format_bytes),
    ]
    if linears:
        row = max(linears, key=lambda linear: linear["worst_row_error"])
        slope = max(linears, key=lambda linear: abs(linear["slope"] - 1))
        bias = max(linears, key=lambda linear: linear["bias"])
        gates += [
            _most(
                f"error of row {row['worst_row']} of {row['name']}", limits.row_error, row["worst_row_error"], _plain
            ),
            _most(f"scale of {slope['name']} off by", limits.slope, abs(slope["slope"] - 1), _plain),
            _most(f"lasting offset in {bias['name']}", limits.bias, bias["bias"], _plain),
        ]
    if found["intact"] is not None:
        changed = ", ".join(found["intact"]["changed"]) or "none"
        gates.append(Gate("files changed since they were written:", "none", changed, not found["intact"]["changed"]))
    return [gate for gate in gates if gate is not None]


def _most(name: str, limit: float | None, found: float, text: Any) -> Gate | None:  # noqa: ANN401
    return None if limit is None else Gate(name, text(limit), text(found), bool(found <= limit))


def _least(name: str, limit: float | None, found: float) -> Gate | None:
    return None if limit is None else Gate(name, f"{limit:.3f} or more", f"{found:.3f}", bool(found >= limit))


def _plain(value: float) -> str:
    return f"{value:.3f}"


def _fraction(text: str) -> float:
    number = text.strip().removesuffix("%")
    try:
        value = float(number) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not value >= 0:
        raise UsageError(f"--max-ppl-increase {text!r} is not a percentage", "write it as 2% or 0.02")
    return value
