"""The Hessian of a stage: gathered from activations, damped, ordered and factorised in place.

GPTQ (Frantar et al. 2022) is written here in the form of LDLQ (QuIP, Chee et al. 2023, theorem 6):
with H = A D A^T, A unit *upper* triangular, column k is rounded after the feedback
sum_{j<k} (w_j - q_j) A_jk of the columns before it. A and D come from one Cholesky factorisation that
runs from the last column to the first; the inverse of H is never needed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

PANEL = 512  # columns of a panel: the only workspace beside H itself
DAMP_LADDER = (2.0, 5.0, 10.0, 20.0)  # times the damping asked for, tried one after the other


@contextmanager
def exact_bfloat16_products() -> Iterator[None]:
    """Let float32 products of values that bfloat16 holds exactly run on bfloat16 units.

    The inputs lose nothing, the sums stay float32. On a CPU with AMX this is three to four times
    the speed of a float32 product; elsewhere the setting changes nothing or is ignored.
    """
    cpu: Any = getattr(torch.backends.mkldnn, "matmul", None)  # since torch 2.9
    before_cpu = getattr(cpu, "fp32_precision", None)
    before_cuda = torch.backends.cuda.matmul.allow_tf32
    if before_cpu is not None:
        cpu.fp32_precision = "bf16"
    torch.backends.cuda.matmul.allow_tf32 = True  # ten bits of mantissa: bfloat16 passes unchanged
    try:
        yield
    finally:
        if before_cpu is not None:
            cpu.fp32_precision = before_cpu
        torch.backends.cuda.matmul.allow_tf32 = before_cuda


class HessianSum:
    """H = 2/n sum x x^T over the inputs x of one stage, in float32.

    Args:
        in_features: length of an input.
        device: where the matrix lives; it takes `4 * in_features**2` bytes.
    """

    def __init__(self, in_features: int, device: torch.device | str = "cpu") -> None:
        self.matrix = torch.zeros(in_features, in_features, device=device)  # upper block triangle
        self.count = 0

    def add(self, inputs: torch.Tensor) -> None:
        """Add activations [..., in_features] of any float dtype."""
        x = inputs.reshape(-1, inputs.shape[-1])
        self.count += x.shape[0]
        exact = x.dtype == torch.bfloat16
        x = x.to(self.matrix.device, torch.float32)
        if exact:
            with exact_bfloat16_products():
                self._add(x)
        else:
            self._add(x)

    def _add(self, x: torch.Tensor) -> None:
        for start in range(0, x.shape[1], PANEL):
            stop = start + PANEL
            self.matrix[start:stop, start:].addmm_(x[:, start:stop].T, x[:, start:])

    def finish(self) -> torch.Tensor:
        """The full symmetric matrix [in_features, in_features] fp32; the sum gives it away."""
        matrix, self.matrix = self.matrix, torch.empty(0)
        if self.count:
            matrix.mul_(2.0 / self.count)
        mirror_upper_(matrix)
        return matrix


def mirror_upper_(matrix: torch.Tensor) -> None:
    """Copy the upper triangle onto the lower one, a panel at a time."""
    size = matrix.shape[0]
    for start in range(0, size, PANEL):
        stop = min(start + PANEL, size)
        matrix[stop:, start:stop] = matrix[start:stop, stop:].T
        block = matrix[start:stop, start:stop]
        block.copy_(torch.triu(block) + torch.triu(block, 1).T)


def permute_(matrix: torch.Tensor, order: torch.Tensor) -> None:
    """Permute rows and columns of a symmetric matrix in place, a panel at a time."""
    for start in range(0, matrix.shape[0], PANEL):
        stop = start + PANEL
        matrix[start:stop] = matrix[start:stop].index_select(1, order)
    for start in range(0, matrix.shape[0], PANEL):
        stop = start + PANEL
        matrix[:, start:stop] = matrix[:, start:stop].index_select(0, order)


@dataclass(frozen=True)
class Factor:
    """H = A D A^T in the order in which the columns are quantized."""

    upper: torch.Tensor  # [in, in] fp32: A above the diagonal; the rest is not to be read
    pivots: torch.Tensor  # [in] fp32, D
    order: torch.Tensor  # [in] int64: position in the order -> column
    importance: torch.Tensor  # [in] fp32: D in natural order, the weight of a column's rounding error
    damp_percent: float  # what was needed, at least what was asked for
    escalations: int  # how often the damping had to be raised


def factorize(hessian: torch.Tensor, damp_percent: float, act_order: bool) -> Factor | None:
    """Damp, order and factorise a Hessian, overwriting it.

    Args:
        hessian: [in, in] fp32, symmetric, both triangles filled; overwritten.
        damp_percent: fraction of the mean diagonal that is added to the diagonal.
        act_order: quantize columns by decreasing diag(H) (Frantar's `actorder`).

    Returns:
        The factor, or None where the matrix has values that are not finite, is zero, or is not
        positive definite at any damping of DAMP_LADDER: the caller then rounds to nearest.
    """
    diagonal = hessian.diagonal().clone()
    mean = float(diagonal.mean())
    if not torch.isfinite(diagonal).all() or mean <= 0:
        return None
    if act_order:
        order = torch.argsort(diagonal, descending=True, stable=True)
        permute_(hessian, order)
    else:
        order = torch.arange(len(diagonal), device=hessian.device)
    ordered = diagonal[order]
    for escalation, times in enumerate((1.0, *DAMP_LADDER)):
        damp = damp_percent * times
        if escalation:  # the lower triangle still holds the matrix
            mirror_upper_(hessian.T)
        hessian.diagonal().copy_(ordered + damp * mean)
        pivots = unit_upper_factor_(hessian)
        if pivots is not None:
            importance = torch.empty_like(pivots).index_copy_(0, order, pivots)
            return Factor(hessian, pivots, order, importance, damp, escalation)
    return None


def unit_upper_factor_(matrix: torch.Tensor) -> torch.Tensor | None:
    """Factorise a symmetric matrix as A D A^T with A unit upper triangular, in its upper triangle.

    Blocked and right-looking from the last panel to the first: A panel's diagonal block is
    factorised by Cholesky with rows and columns reversed, the rows above it are solved against it,
    and the remaining leading matrix is updated. The lower triangle is neither read nor written.

    Args:
        matrix: [n, n] fp32; the strict upper triangle becomes A's.

    Returns:
        D [n], or None where the matrix is not positive definite.
    """
    size = matrix.shape[0]
    root = torch.empty(size, dtype=matrix.dtype, device=matrix.device)  # the diagonal of U, H = U U^T
    for start in reversed(range(0, size, PANEL)):
        stop = min(start + PANEL, size)
        block = torch.triu(matrix[start:stop, start:stop])
        block = block + torch.triu(block, 1).T
        flipped, info = torch.linalg.cholesky_ex(block.flip(0, 1))
        if int(info) != 0 or not torch.isfinite(flipped).all():
            return None
        corner = flipped.flip(0, 1)  # upper triangular, block = corner corner^T
        root[start:stop] = corner.diagonal()
        if start:
            above = torch.linalg.solve_triangular(corner.T, matrix[:start, start:stop], upper=False, left=False)
            for left in range(0, start, PANEL):
                right = min(left + PANEL, start)
                matrix[:left, left:right].addmm_(above[:left], above[left:right].T, alpha=-1)
                matrix[left:right, left:right] -= torch.triu(above[left:right] @ above[left:right].T)
            matrix[:start, start:stop] = above / root[start:stop]
        upper = torch.triu(corner / root[start:stop], 1)
        matrix[start:stop, start:stop] = torch.tril(matrix[start:stop, start:stop], -1) + upper
    return root.square()
