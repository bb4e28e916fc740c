"""Scales and zero points of a grid, chosen before any column is rounded.

A group's scale minimises sum_k H_kk (w_k - q_k)**2 over shrink factors of its range, is rounded to
float16 first and judged after that rounding, so that the codes packed are the codes computed.
"""

from typing import Literal

import numpy as np
import torch

from quantkit.methods.lanes import asymmetric_scales, symmetric_scales
from quantkit.tensors import Grid

ScaleChoice = Literal["search", "minmax"]

# Fractions of a group's largest magnitude that land on the end of the grid. Above 1 the grid reaches
# past the largest weight: with few bits the inner levels then fit better.
SYMMETRIC_SHRINK = np.linspace(1.15, 0.55, 25, dtype=np.float32)
ASYMMETRIC_SHRINK = np.linspace(1.05, 0.55, 21, dtype=np.float32)
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
        importance: [columns] fp32, the diagonal of the Hessian, or None for equal weights.
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
        plain = np.asarray([half / (half - 1)], np.float32)
        shrink, steps = (plain, 0) if choice == "minmax" else (SYMMETRIC_SHRINK, REFINEMENTS)
        symmetric_scales(host, weights.numpy(), shrink, steps, choice == "search", grid.max_code, width, scale)
    else:
        shrink = np.ones(1, np.float32) if choice == "minmax" else ASYMMETRIC_SHRINK
        asymmetric_scales(host, weights.numpy(), shrink, grid.max_code, width, scale, zero)
    return torch.from_numpy(scale).to(weight.device), torch.from_numpy(zero).to(weight.device)
