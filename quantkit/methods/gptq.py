"""GPTQ: the columns of a stage's weights rounded one after the other, each error fed back."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from quantkit.methods import rtn
from quantkit.methods.hessian import PANEL, exact_bfloat16_products, factorize
from quantkit.methods.lanes import round_columns
from quantkit.methods.scales import ScaleChoice, choose_scales
from quantkit.tensors import Grid, QuantizedWeight

ActOrder = Literal["none", "static", "full"]
COLUMN_BLOCK = 128  # columns between two matrix products (the paper's lazy batch)


@dataclass(frozen=True)
class Settings:
    """What the solver may choose.

    act_order `static` takes columns by decreasing diag(H) with groups fixed in natural order;
    `full` lets the groups follow that order too, which needs a permuted group_index in the file.
    """

    act_order: ActOrder = "static"
    damp_percent: float = 0.05
    scales: ScaleChoice = "search"


@dataclass(frozen=True)
class Outcome:
    """A quantized weight and what it cost."""

    weight: QuantizedWeight
    row_loss: torch.Tensor  # [rows] float64: (w - q) H (w - q)^T with the damped H
    row_energy: torch.Tensor  # [rows] float64: w H w^T, so that loss / energy is the output's relative error
    method: Literal["gptq", "rtn"]
    damp_percent: float
    escalations: int


def quantize(weight: torch.Tensor, hessian: torch.Tensor, grid: Grid, settings: Settings) -> Outcome:
    """Quantize the stacked weights of one stage.

    Args:
        weight: [rows, in_features], the linears of the stage one below the other; any float dtype.
        hessian: [in_features, in_features] fp32 of their common input; overwritten.
        grid: the grid of every row.
        settings: order, damping and choice of scales.

    Returns:
        The codes with what they cost. Where the Hessian cannot be factorised at any damping the
        weights are rounded to nearest and `method` says so.
    """
    row_energy = energy(weight, hessian)
    factor = factorize(hessian, settings.damp_percent, settings.act_order != "none")
    if factor is None:
        rounded = rtn.quantize(weight, grid, settings.scales)
        loss = (weight.float() - rounded.dequantize()).square().sum(1, dtype=torch.float64)
        row_energy = weight.float().square().sum(1, dtype=torch.float64)
        return Outcome(rounded, loss, row_energy, "rtn", settings.damp_percent, 0)
    columns = weight.shape[1]
    width = grid.columns_per_group(columns)
    natural_groups = torch.arange(columns, device=weight.device) // width
    if settings.act_order == "full":
        working = weight.index_select(1, factor.order).float()  # [rows, in] fp32, in the solver's order
        scale, zero = choose_scales(working, factor.importance[factor.order], grid, settings.scales)
        group_of_column = natural_groups
        group_index = torch.empty_like(natural_groups).index_copy_(0, factor.order, natural_groups)
    else:
        working = weight.float()
        scale, zero = choose_scales(working, factor.importance, grid, settings.scales)
        if settings.act_order == "static":
            working = working.index_select(1, factor.order)
        elif working is weight:
            working = working.clone()  # the loop overwrites it
        group_of_column = natural_groups[factor.order]
        group_index = natural_groups
    codes, row_loss = round_all_columns(
        working, factor.upper, factor.pivots, group_of_column, scale, zero, grid.max_code
    )
    if settings.act_order != "none":
        codes = codes.index_select(1, torch.argsort(factor.order))
    quantized = QuantizedWeight(codes, scale.half(), zero.to(torch.uint8), group_index.to(torch.int32), grid)
    return Outcome(quantized, row_loss, row_energy, "gptq", factor.damp_percent, factor.escalations)


def round_all_columns(
    working: torch.Tensor,
    upper: torch.Tensor,
    pivots: torch.Tensor,
    group_of_column: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor,
    max_code: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The column loop, a block of columns at a time.

    Column blocks are taken from the left. Before a block, one matrix product brings it the feedback
    of all earlier columns; their errors lie where their weights were, so nothing else is stored:

        working = | errors of finished columns | this block | weights to come |

    Args:
        working: [rows, in] fp32 in the solver's order; overwritten by weight - quantized.
        upper: [in, in] fp32, A above the diagonal.
        pivots: [in] fp32, D.
        group_of_column: [in] int64, in the solver's order.
        scale: [groups, rows] fp32.
        zero: [groups, rows] fp32.
        max_code: the largest code.

    Returns:
        Codes [rows, in] uint8 in the solver's order, and the loss of each row [rows] float64.
    """
    rows, columns = working.shape
    codes = torch.empty(rows, columns, dtype=torch.uint8, device=working.device)
    loss = torch.zeros(rows, dtype=torch.float64, device=working.device)
    round_block = _round_block_cpu if working.device.type == "cpu" else _round_block_torch
    for start in range(0, columns, COLUMN_BLOCK):
        stop = min(start + COLUMN_BLOCK, columns)
        block = working[:, start:stop]
        target = torch.addmm(block, working[:, :start], upper[:start, start:stop]) if start else block.clone()
        round_block(
            target, block, codes[:, start:stop], upper[start:stop, start:stop], pivots[start:stop],
            group_of_column[start:stop], scale, zero, max_code, loss,
        )  # fmt: skip
    return codes, loss


def _round_block_cpu(
    target: torch.Tensor, block: torch.Tensor, codes: torch.Tensor, feedback: torch.Tensor,
    pivots: torch.Tensor, group_of_column: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor,
    max_code: int, loss: torch.Tensor,
) -> None:  # fmt: skip
    round_columns(
        target.numpy(), block.numpy(), codes.numpy(), feedback.numpy(), pivots.numpy(),
        group_of_column.numpy().astype(np.int64), scale.numpy(), zero.numpy(), max_code, loss.numpy(),
    )  # fmt: skip


def _round_block_torch(
    target: torch.Tensor, block: torch.Tensor, codes: torch.Tensor, feedback: torch.Tensor,
    pivots: torch.Tensor, group_of_column: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor,
    max_code: int, loss: torch.Tensor,
) -> None:  # fmt: skip
    """The same steps in torch, for devices that numba does not reach."""
    for column in range(block.shape[1]):
        group = group_of_column[column]
        s, z, v = scale[group], zero[group], target[:, column]
        code = (torch.round(v * s.reciprocal()) + z).clamp_(0, max_code)
        value = (code - z) * s
        loss += (pivots[column] * (v - value).square()).double()
        codes[:, column] = code.to(torch.uint8)
        error = block[:, column] - value
        block[:, column] = error
        target[:, column + 1 :].addr_(error, feedback[column, column + 1 :])


def energy(weight: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    """W H w^T of every row, the squared norm of its output over the calibration set: [rows] float64.

    Computed from bfloat16 roundings of both: three digits of a figure that is only reported.
    """
    rows, columns = weight.shape
    total = torch.zeros(rows, dtype=torch.float64, device=weight.device)
    for start in range(0, columns, PANEL):  # a panel of H at a time: the product unit copies its input
        stop = start + PANEL
        for first in range(0, rows, 4096):
            part = weight[first : first + 4096].float()
            with exact_bfloat16_products():
                product = part @ hessian[:, start:stop]
            total[first : first + 4096] += (product * part[:, start:stop]).sum(1, dtype=torch.float64)
    return total
