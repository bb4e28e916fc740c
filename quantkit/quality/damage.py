"""Where the damage is: what quantization did to a linear's weights."""

from dataclasses import asdict, dataclass
from typing import Any

import torch

GROUP = 128  # columns over which a lasting offset is looked for
ROWS = 2048  # rows compared at a time


@dataclass(frozen=True)
class LinearDamage:
    """A linear's weights W' against the baseline's W.

    What rounding leaves behind is small, has no direction and no sign: `slope` then is 1 and `bias` below
    1. A row that stands in the place of another, a scale or a zero point that is off shows here, however
    little the model's predictions notice it.
    """

    name: str
    error: float  # |W - W'|**2 / |W|**2
    worst_row: int
    worst_row_error: float  # the same of the worst row
    slope: float  # <W, W'> / <W', W'>
    bias: float  # largest |mean(W - W')| / rms(W - W') of a row's groups of 128 columns; at most 1

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def linear_damage(name: str, baseline: torch.Tensor, other: torch.Tensor) -> LinearDamage | None:
    """Compare two versions of a weight, or return None where they are equal.

    Args:
        name: of the linear.
        baseline: [out_features, in_features], any float dtype.
        other: the same shape.
    """
    rows, _columns = baseline.shape
    difference, energy = torch.zeros(rows, dtype=torch.float64), torch.zeros(rows, dtype=torch.float64)
    product, own, bias = 0.0, 0.0, 0.0
    for start in range(0, rows, ROWS):
        w, q = baseline[start : start + ROWS].float(), other[start : start + ROWS].float()
        error = w - q
        difference[start : start + ROWS] = error.square().sum(1)
        energy[start : start + ROWS] = w.square().sum(1)
        product += float((w * q).sum())
        own += float(q.square().sum())
        bias = max(bias, _largest_bias(error))
    total = float(difference.sum())
    if total == 0:
        return None
    by_row = difference / energy.clamp_min(1e-30)
    by_row[(energy == 0) & (difference == 0)] = 0
    worst = int(by_row.argmax())
    slope = product / own if own else 0.0
    return LinearDamage(name, total / max(float(energy.sum()), 1e-30), worst, float(by_row[worst]), slope, bias)


def _largest_bias(error: torch.Tensor) -> float:
    whole = error.shape[1] // GROUP * GROUP
    if not whole:
        return 0.0
    groups = error[:, :whole].reshape(len(error), -1, GROUP)
    rms = groups.square().mean(-1).sqrt()
    ratio = groups.mean(-1).abs() / rms.clamp_min(1e-30)
    return float(ratio.max())
