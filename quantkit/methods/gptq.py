"""GPTQ: the columns of a stage's weights rounded one after the other, each error fed back."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch

from quantkit.methods import rtn
from quantkit.methods.hessian import DAMP_LADDER, PANEL, Factor, factorize
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
        The codes with what they cost. Where the Hessian cannot be factorised at any damping, or
        float32 overflows on the way, the weights are rounded to nearest and `method` says so.
    """
    diagonal = hessian.diagonal()
    steps = len(DAMP_LADDER) if bool(torch.isfinite(diagonal).all()) and float(diagonal.mean()) > 0 else 0
    row_energy = energy(weight, hessian)
    factor = factorize(hessian, settings.damp_percent, settings.act_order != "none")
    if factor is None:
        return _rounded_to_nearest(weight, grid, settings, steps)
    columns = weight.shape[1]
    natural_groups = torch.arange(columns, device=weight.device) // grid.columns_per_group(columns)
    working = weight.float()  # [rows, in] fp32, natural order
    if settings.act_order == "full":
        ordered = working.index_select(1, factor.order)
        scale, zero = choose_scales(ordered, factor.importance[factor.order], grid, settings.scales)
        del ordered
        group_index = torch.empty_like(natural_groups).index_copy_(0, factor.order, natural_groups)
    else:
        scale, zero = choose_scales(working, factor.importance, grid, settings.scales)
        group_index = natural_groups
    codes, row_loss = round_all_columns(working, factor, group_index, scale, zero, grid.max_code)
    if not torch.isfinite(row_loss).all():
        return _rounded_to_nearest(weight, grid, settings, factor.escalations)
    quantized = QuantizedWeight(codes, scale.half(), zero.to(torch.uint8), group_index.to(torch.int32), grid)
    return Outcome(quantized, row_loss, row_energy, "gptq", factor.damp_percent, factor.escalations)


def _rounded_to_nearest(weight: torch.Tensor, grid: Grid, settings: Settings, steps: int) -> Outcome:
    """The way out, after so many steps of DAMP_LADDER: loss and energy are those of the weights themselves."""
    rounded = rtn.quantize(weight, grid, settings.scales)
    working = weight.float()
    loss = torch.linalg.vector_norm(working - rounded.dequantize(), dim=1, dtype=torch.float64).square()
    row_energy = torch.linalg.vector_norm(working, dim=1, dtype=torch.float64).square()
    last = settings.damp_percent * (1.0, *DAMP_LADDER)[steps]
    return Outcome(rounded, loss, row_energy, "rtn", last, steps)


def round_all_columns(
    weight: torch.Tensor,
    factor: Factor,
    group_index: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor,
    max_code: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The column loop, a block of columns at a time, in the order of the factor.

    Before a block, one matrix product of the errors so far brings it the feedback of all earlier
    columns:

        errors = | finished columns | this block | columns to come, not yet written |

    Args:
        weight: [rows, in] fp32, natural order.
        factor: A, D and the order.
        group_index: [in] int64, the group of every column, natural order.
        scale: [groups, rows] fp32.
        zero: [groups, rows] fp32.
        max_code: the largest code.

    Returns:
        Codes [rows, in] uint8 in natural order, and the loss of each row [rows] float64.
    """
    rows, columns = weight.shape
    errors = torch.empty_like(weight)  # [rows, in] fp32, the solver's order
    codes = torch.empty(rows, columns, dtype=torch.uint8, device=weight.device)
    loss = torch.zeros(rows, dtype=torch.float64, device=weight.device)
    round_block = _round_block_cpu if weight.device.type == "cpu" else _round_block_torch
    for start in range(0, columns, COLUMN_BLOCK):
        stop = min(start + COLUMN_BLOCK, columns)
        block = factor.order[start:stop]
        feedback = errors[:, :start] @ factor.upper[:start, start:stop]  # zeros for the first block
        round_block(
            weight, feedback, block, factor.upper[start:stop, start:stop], factor.pivots[start:stop],
            group_index[block], scale, zero, max_code, errors[:, start:stop], codes, loss,
        )  # fmt: skip
    return codes, loss


def _round_block_cpu(*arguments: torch.Tensor | int) -> None:
    compiled: Any = round_columns
    compiled(*(value.numpy() if isinstance(value, torch.Tensor) else value for value in arguments))


def _round_block_torch(
    weight: torch.Tensor, feedback: torch.Tensor, columns: torch.Tensor, upper: torch.Tensor,
    pivots: torch.Tensor, group_of_column: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor,
    max_code: int, errors: torch.Tensor, codes: torch.Tensor, loss: torch.Tensor,
) -> None:  # fmt: skip
    """The same steps in torch, for devices that numba does not reach; see `lanes.round_columns`."""
    original = weight.index_select(1, columns)
    target = original + feedback
    chosen = torch.empty_like(target)
    for column, group in enumerate(group_of_column.tolist()):
        s, z, v = scale[group], zero[group], target[:, column]
        code = (torch.round(v * s.reciprocal()) + z).clamp_(0, max_code)
        value = (code - z) * s
        loss += (pivots[column] * (v - value).square()).double()
        error = original[:, column] - value
        errors[:, column] = error
        chosen[:, column] = code
        target[:, column + 1 :].addr_(error, upper[column, column + 1 :])
    codes.index_copy_(1, columns, chosen.to(torch.uint8))


def energy(weight: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    """W H w^T of every row, the squared norm of its output over the calibration set: [rows] float64.

    Computed from bfloat16 roundings of both: three digits of a figure that is only reported. Both are
    brought to a size near one first, so that no product overflows.
    """
    rows, columns = weight.shape
    total = torch.zeros(rows, dtype=torch.float64, device=weight.device)
    size, largest = _power_of_two(hessian.diagonal()), _power_of_two(weight)
    for first in range(0, rows, 4096):
        part = (weight[first : first + 4096] / largest).bfloat16()
        for start in range(0, columns, PANEL):  # a panel of H at a time: no second copy of it
            stop = min(start + PANEL, columns)
            panel = (hessian[start:, start:stop] / size).bfloat16()
            panel[stop - start :] *= 2  # by symmetry these stand for the blocks above the diagonal too
            product = (part[:, start:] @ panel).float() * part[:, start:stop]
            total[first : first + 4096] += product.sum(1)
    return total.clamp_min_(0) * size * largest**2


def _power_of_two(values: torch.Tensor) -> float:
    """The magnitude of the largest value: dividing by it loses no digit."""
    most = max(abs(float(value)) for value in values.aminmax())  # abs() would copy them all
    return math.ldexp(1.0, math.frexp(most)[1]) if 0 < most < math.inf else 1.0
