"""Scales and zero points of a grid, chosen before any column is rounded.

A group's scale minimises sum_k D_k (w_k - q_k)**2 over shrink factors of its range, is rounded to
float16 first and judged after that rounding, so that the codes packed are the codes computed. D is the
diagonal of H = A D A^T: what a column's rounding error costs after later columns have made up for
what they can. Weighting by diag(H) itself counts what will be made up for as well, and measured a
tenth more KL divergence.
"""

from typing import Literal

import numpy as np
import torch

from quantkit.methods.lanes import asymmetric_scales, symmetric_scales
from quantkit.tensors import Grid

ScaleChoice = Literal["search", "minmax"]

# Fractions of a group's range that the grid spans, by bits. Above 1 the grid reaches past the largest
# weight: the inner levels may then fit better. Many levels leave little to gain from clipping.
SHRINK = {
    2: np.linspace(1.20, 0.48, 13),
    3: np.linspace(1.15, 0.55, 13),
    4: np.linspace(1.12, 0.64, 13),
    8: np.linspace(1.006, 0.91, 13),
}
REFINEMENTS = 2  # least-squares steps after the search


def choose_scales(
    weight: torch.Tensor,
    importance: torch.Tensor | None,
    grid: Grid,
    choice: ScaleChoice = "search",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and zero points of every group.

    Args:
        weight: [rows, columns] fp32, columns in the order that the groups follow.
        importance: [columns] fp32, the weight of each column's error, or None for equal weights.
        grid: bits, group size and symmetry.
        choice: `search` for the least weighted error; `minmax` for the plain range: the largest
            magnitude over `2**(bits-1) - 1`, or the whole range over `2**bits - 1`.

    Returns:
        Scale and zero point, [groups, rows] fp32 each; scales are float16 values.
    """
    rows, columns = weight.shape
    host = np.ascontiguousarray(weight.detach().cpu().numpy())
    shape = (grid.groups(columns), rows)
    scale, zero = np.ones(shape, np.float32), np.full(shape, (grid.max_code + 1) // 2, np.float32)
    equal = torch.ones(columns)
    weights = equal if importance is None else importance.cpu() / importance.cpu().mean().clamp_min(1e-30)
    width = grid.columns_per_group(columns)
    if grid.symmetric:
        half = (grid.max_code + 1) // 2
        plain = np.asarray([half - 1], np.float32)  # the whole range on either side of zero
        searched = np.append(plain, half / SHRINK[grid.bits]).astype(np.float32)
        divisors, steps = (plain, 0) if choice == "minmax" else (searched, REFINEMENTS)
        symmetric_scales(host, weights.numpy(), divisors, steps, choice == "search", grid.max_code, width, scale)
    else:
        shrink = np.ones(1, np.float32)
        if choice == "search":
            shrink = np.append(shrink, SHRINK[grid.bits]).astype(np.float32)
        asymmetric_scales(host, weights.numpy(), shrink, grid.max_code, width, scale, zero)
    return torch.from_numpy(scale).to(weight.device), torch.from_numpy(zero).to(weight.device)
