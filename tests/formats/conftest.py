"""What the tests of formats share: a quantized weight of random values."""

import pytest
import torch

from quantkit.tensors import Grid, QuantizedWeight


def random_weight(rows: int, columns: int, grid: Grid, permuted: bool = False, seed: int = 0) -> QuantizedWeight:
    generator = torch.Generator().manual_seed(seed)
    groups = grid.groups(columns)

    def integers(low: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, grid.max_code + 1, shape, dtype=torch.uint8, generator=generator)

    middle = torch.full((groups, rows), 2 ** (grid.bits - 1), dtype=torch.uint8)
    group_index = torch.arange(columns, dtype=torch.int32) // grid.columns_per_group(columns)
    if permuted:
        group_index = group_index[torch.randperm(columns, generator=generator)]
    return QuantizedWeight(
        codes=integers(0, rows, columns),
        scale=(torch.rand(groups, rows, generator=generator) * 0.02 + 0.001).to(torch.float16),
        zero_point=middle if grid.symmetric else integers(1, groups, rows),
        group_index=group_index,
        grid=grid,
    )


@pytest.fixture
def make_weight():
    return random_weight
