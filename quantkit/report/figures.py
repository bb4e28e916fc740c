"""Measured numbers as text, with the digits that they deserve."""

import math

SCIENTIFIC_FROM = 1e5  # a perplexity that needs more digits than anyone reads
TIMES_FROM = 11.0  # a ratio that no longer reads well as a percentage
UNKNOWN_TEXT = 1000.0  # a baseline of this perplexity does not know the text


def perplexity(value: float, error: float = 0.0) -> str:
    """A perplexity, with one standard error if there is one: `6.10 ± 0.17`, `5.63e6 ± 0.15e6`.

    The error has two significant digits and the value as many decimals; without an error the value has four
    significant digits.
    """
    if value >= SCIENTIFIC_FROM:
        power = math.floor(math.log10(value))
        scaled = f"{value / 10**power:.2f}e{power}"
        return f"{scaled} ± {error / 10**power:.2f}e{power}" if error > 0 else scaled
    if error > 0:
        decimals = _decimals(error, 2)
        return f"{value:.{decimals}f} ± {error:.{decimals}f}"
    return f"{value:.{_decimals(value, 4)}f}"


def change(ratio: float, error: float = 0.0) -> str:
    """A ratio as a change: `+12.96%`, `+12.96 ± 0.76%`, `× 124` where a percentage would not be read."""
    if ratio >= TIMES_FROM:
        return f"× {ratio:.3g}"
    return f"{(ratio - 1) * 100:+.2f} ± {error * 100:.2f}%" if error > 0 else f"{ratio - 1:+.2%}"


def small(value: float, error: float = 0.0) -> str:
    """A divergence or a relative error with three significant digits: `0.152`, `0.00156`, `2.31e-5`, `0`.

    With a standard error: `0.1522 ± 0.0011`.
    """
    if value == 0:
        return "0"
    if abs(value) < 1e-3:
        mantissa, _, power = f"{value:.2e}".partition("e")
        return f"{mantissa}e{int(power)}" + (f" ± {error / 10 ** int(power):.2f}e{int(power)}" if error > 0 else "")
    if error >= 5e-7:  # six decimals would show no less
        decimals = _decimals(error, 2)
        return f"{value:.{decimals}f} ± {error:.{decimals}f}"
    return f"{value:.{_decimals(value, 3)}f}"


def share(value: float, error: float = 0.0) -> str:
    """A share of tokens: `97.4%`, `97.37 ± 0.06%`."""
    return f"{value * 100:.2f} ± {error * 100:.2f}%" if error > 0 else f"{value:.1%}"


def bits(value: float) -> str:
    """Bits per weight: `4.28`, `16`."""
    return f"{value:.2f}".removesuffix(".00")


def _decimals(value: float, significant: int) -> int:
    """Decimals that show so many significant digits of a positive value, six at most."""
    if value <= 0:
        return 0
    return min(6, max(0, significant - 1 - math.floor(math.log10(value))))
