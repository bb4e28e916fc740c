"""Weights and Hessians of the kind that a decoder layer has."""

import torch
from reference import hessian_reference


def inputs(columns: int, count: int, seed: int = 0) -> torch.Tensor:
    """[count, columns] fp32: correlated channels of very different size with a common direction."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.eye(columns) + 0.3 * torch.randn(columns, columns, generator=generator) / columns**0.5
    size = (0.7 * torch.randn(columns, generator=generator)).exp()
    x = torch.randn(count, columns, generator=generator) @ mixing * size
    return x + torch.randn(count, 1, generator=generator) * torch.randn(columns, generator=generator)


def problem(rows: int, columns: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights [rows, columns] fp32 and the Hessian [columns, columns] fp32 of their inputs."""
    generator = torch.Generator().manual_seed(seed + 1000)
    weight = 0.05 * torch.randn(rows, columns, generator=generator)
    return weight, hessian_reference(inputs(columns, 2 * columns, seed)).float()


def not_positive_definite(hessian: torch.Tensor, depth: float) -> torch.Tensor:
    """The Hessian shifted until its least eigenvalue is -depth times its mean diagonal."""
    hessian = hessian.double()
    least, mean = torch.linalg.eigvalsh(hessian)[0], hessian.diagonal().mean()
    shift = (least + depth * mean) / (1 + depth)
    return (hessian - shift * torch.eye(len(hessian))).float()
