"""Round to nearest: the data-free baseline."""

import torch

from quantkit.methods.scales import ScaleChoice, choose_scales
from quantkit.tensors import Grid, QuantizedWeight


def quantize(weight: torch.Tensor, grid: Grid, scales: ScaleChoice = "search") -> QuantizedWeight:
    """Round every weight to the nearest point of its group's grid.

    With `scales="minmax"`, a symmetric grid and group_size -1 this is the per-row scheme that
    XVERSE and ChatGLM apply on loading: scale = max|w_row| / (2**(bits-1) - 1).

    Args:
        weight: [out_features, in_features], any float dtype.
        grid: bits, group size and symmetry.
        scales: how a group's scale is chosen, see `choose_scales`.

    Returns:
        The quantized weight, groups in natural order.
    """
    weight = weight.float()
    columns = weight.shape[1]
    width = grid.columns_per_group(columns)
    scale, zero = choose_scales(weight, None, grid, scales)
    codes = torch.empty(weight.shape, dtype=torch.uint8, device=weight.device)
    for group in range(scale.shape[0]):
        part = slice(group * width, (group + 1) * width)
        code = torch.round(weight[:, part] / scale[group].unsqueeze(1)) + zero[group].unsqueeze(1)
        codes[:, part] = code.clamp_(0, grid.max_code).to(torch.uint8)
    index = torch.arange(columns, device=weight.device) // width
    return QuantizedWeight(codes, scale.half(), zero.to(torch.uint8), index.to(torch.int32), grid)
