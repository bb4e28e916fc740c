"""Naive float64 oracles, written from the papers and from nothing in quantkit.

Weights are [rows, columns]; a grid is given by scale and zero point [groups, rows] and by the group of
each column, group_index [columns], always in natural order.
"""

from typing import NamedTuple

import torch


class Rounded(NamedTuple):
    codes: torch.Tensor  # [rows, columns] int64, natural order
    weight: torch.Tensor  # [rows, columns] float64, dequantized
    positions: torch.Tensor  # [rows, columns] float64: where on the grid each weight stood when it was rounded


def hessian_reference(*inputs: torch.Tensor) -> torch.Tensor:
    """H = 2/n sum x x^T over inputs [..., columns] of any dtype."""
    x = torch.cat([part.reshape(-1, part.shape[-1]).double() for part in inputs])
    return 2.0 / len(x) * (x.T @ x)


def rtn_reference(
    weight: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, group_index: torch.Tensor, bits: int
) -> Rounded:
    """The nearest point of the grid for every weight."""
    s, z = _per_column(scale, zero, group_index)
    positions = weight.double() / s + z
    codes = positions.round().clamp(0, 2**bits - 1)
    return Rounded(codes.long(), (codes - z) * s, positions)


def gptq_reference(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor,
    group_index: torch.Tensor,
    bits: int,
    damp: float,
    order: torch.Tensor | None = None,
    follow: torch.Tensor | None = None,
) -> Rounded:
    """GPTQ, Algorithm 1 of Frantar et al. 2022, with blocks of one column.

    With R the upper Cholesky factor of the inverse of H + damp * mean(diag(H)) I, column j is
    rounded, its error divided by R_jj, and the columns to come are moved by error * R_j.

    Args:
        weight: [rows, columns].
        hessian: [columns, columns], not yet damped.
        scale: [groups, rows].
        zero: [groups, rows].
        group_index: [columns].
        bits: of a code.
        damp: fraction of the mean diagonal.
        order: position -> column; None: natural.
        follow: codes to take instead of the nearest ones. `positions` then tells where each weight
            stood after the errors that these codes made: whoever computed them in float32 may differ
            from `positions.round()` near a tie only.
    """
    order = torch.arange(weight.shape[1]) if order is None else order
    h = damped(hessian, damp)[order][:, order]
    r = torch.linalg.cholesky(torch.linalg.inv(h), upper=True)
    # Below, a column of the matrix is a row in memory: [columns, rows].
    s, z = (part[:, order].T.contiguous() for part in _per_column(scale, zero, group_index))
    w = weight.double()[:, order].T.contiguous()
    forced = None if follow is None else follow.double()[:, order].T
    codes, quantized, positions = torch.empty_like(w), torch.empty_like(w), torch.empty_like(w)
    for j in range(len(w)):
        positions[j] = w[j] / s[j] + z[j]
        codes[j] = positions[j].round().clamp(0, 2**bits - 1) if forced is None else forced[j]
        quantized[j] = (codes[j] - z[j]) * s[j]
        error = (w[j] - quantized[j]) / r[j, j]
        w[j:] -= torch.outer(r[j, j:], error)
    natural = torch.argsort(order)
    return Rounded(codes.long().T[:, natural], quantized.T[:, natural], positions.T[:, natural])


def loss_reference(error: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    """E H E^T of every row: [rows] float64."""
    e, h = error.double(), hessian.double()
    return ((e @ h) * e).sum(1)


def damped(hessian: torch.Tensor, damp: float) -> torch.Tensor:
    """H + damp * mean(diag(H)) I in float64."""
    h = hessian.double()
    return h + damp * h.diagonal().mean() * torch.eye(len(h), dtype=torch.float64)


def _per_column(
    scale: torch.Tensor, zero: torch.Tensor, group_index: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    index = group_index.long()
    return scale.double()[index].T, zero.double()[index].T
