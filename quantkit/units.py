"""Bytes, seconds and bits per weight as text and back."""

import math
import re

from quantkit.errors import UsageError

GIB = 1024**3
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*((?:[kmgt]i?)?b?)\s*", re.IGNORECASE)
_FACTORS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY_FACTORS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def format_bytes(count: float) -> str:
    """Bytes in decimal units, as disks and the Hub count them: `8.66 GB`."""
    for factor, unit in ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if abs(count) >= factor:
            return f"{count / factor:.2f} {unit}"
    return f"{int(count)} B"


def format_count(count: float) -> str:
    """A number of parameters as people say it: `13.72 billion`."""
    for factor, word in ((10**9, "billion"), (10**6, "million")):
        if count >= factor:
            return f"{count / factor:.2f} {word}"
    return f"{count:.0f}"


def format_gib(count: float) -> str:
    """Bytes in binary gigabytes, as memory is counted: `8.06 GiB`."""
    return f"{count / GIB:.2f} GiB"


def parse_bytes(text: str) -> int:
    """A size such as `5GB`, `4.5 GiB` or `800M` in bytes.

    Raises:
        UsageError: the text is not a size.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise UsageError(f"not a size: {text!r}", "write a number and a unit, such as 5GB or 4.5GiB")
    number, unit = float(match[1]), match[2].lower().removesuffix("b")
    factors = _BINARY_FACTORS if unit.endswith("i") else _FACTORS
    size = number * factors[unit.removesuffix("i")]
    if size == math.inf:
        raise UsageError(f"not a size: {text[:40]!r}...", "write a number and a unit, such as 5GB or 4.5GiB")
    return int(size)


def format_seconds(seconds: float) -> str:
    """Seconds as a person says them: `42 s`, `7 min 30 s`, `3 h 05 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
