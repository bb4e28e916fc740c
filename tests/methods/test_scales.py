"""Scales and zero points: exactly storable, never worse than the plain range, near the best there is."""

import numba
import pytest
import torch

from quantkit.methods import rtn
from quantkit.methods.scales import choose_scales
from quantkit.tensors import Grid

GRIDS = [Grid(bits, 32, symmetric) for bits in (2, 3, 4, 8) for symmetric in (True, False)]


def weights(rows=70, columns=160, seed=0):
    """Normal, heavy-tailed and one-sided rows in turn."""
    w = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    w[1::3] = w[1::3] ** 3
    w[2::3] = w[2::3].abs() + 0.1
    return 0.05 * w


def importance(columns, seed=1):
    return torch.randn(columns, generator=torch.Generator().manual_seed(seed)).exp()


def errors(weight, h, scale, zero, grid):
    """[groups, rows] float64: weighted squared error of each group on its grid."""
    width = grid.columns_per_group(weight.shape[1])
    groups = []
    for group in range(scale.shape[0]):
        w = weight[:, group * width : (group + 1) * width].double()
        s, z = scale[group].double()[:, None], zero[group].double()[:, None]
        codes = ((w / s).round() + z).clamp(0, grid.max_code)
        part = h[group * width : (group + 1) * width].double()
        groups.append((part * (w - (codes - z) * s).square()).sum(1))
    return torch.stack(groups)


@pytest.mark.parametrize("choice", ["search", "minmax"])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("magnitude", [1e-4, 1.0, 1e3])
def test_a_scale_is_a_float16_number_and_a_zero_point_a_code(grid, choice, magnitude):
    scale, zero = choose_scales(weights() * magnitude, importance(160), grid, choice)
    assert scale.shape == zero.shape == (5, 70)
    assert torch.equal(scale.half().float(), scale)
    assert torch.equal(zero, zero.round().clamp(0, grid.max_code))
    if grid.symmetric:
        assert (zero == (grid.max_code + 1) // 2).all()


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_search_is_never_worse_than_the_plain_range(grid):
    w = weights()
    for h in (importance(160), torch.ones(160)):
        found = errors(w, h, *choose_scales(w, h, grid, "search"), grid)
        plain = errors(w, h, *choose_scales(w, h, grid, "minmax"), grid)
        assert found.sum() < plain.sum()
        assert (found <= plain * (1 + 1e-4)).all()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_no_shrink_of_a_fine_grid_is_much_better(bits, symmetric):
    grid = Grid(bits, 32, symmetric)
    w = 0.05 * torch.randn(40, 32, generator=torch.Generator().manual_seed(3))
    h = importance(32)
    found = errors(w, h, *choose_scales(w, h, grid), grid)
    best = torch.full((1, 40), torch.inf, dtype=torch.float64)
    low, high = w.amin(1).clamp(max=0), w.amax(1).clamp(min=0)
    middle = (grid.max_code + 1) // 2
    for shrink in torch.linspace(0.3, 1.2, 451):
        if symmetric:
            scale = (shrink * w.abs().amax(1) / middle).half()
            tries = [(sign * scale, torch.full_like(scale, middle)) for sign in (1, -1)]
        else:
            scale = (shrink * (high - low) / grid.max_code).half()
            tries = [(scale, (-shrink * low / scale).round().clamp(0, grid.max_code))]
        for s, z in tries:
            best = torch.minimum(best, errors(w, h, s[None], z[None], grid))
    assert found.sum() <= 1.02 * best.sum()


@pytest.mark.parametrize("choice", ["search", "minmax"])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_groups_of_zeros_stay_zero(grid, choice):
    w = weights()
    w[3] = 0
    w[:, 32:64] = 0
    scale, zero = choose_scales(w, None, grid, choice)
    assert torch.isfinite(scale).all()
    assert (scale != 0).all()
    restored = rtn.quantize(w, grid, choice).dequantize()
    assert (restored[3] == 0).all()
    assert (restored[:, 32:64] == 0).all()
    assert torch.isfinite(zero).all()


@pytest.mark.parametrize("choice", ["search", "minmax"])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("magnitude", [1e-30, 1e-7, 1e4, 6e4])
def test_tiny_and_huge_weights_stay_finite(grid, choice, magnitude):
    w = weights().clamp(-1, 1) * magnitude
    scale, _ = choose_scales(w, importance(160), grid, choice)
    assert torch.isfinite(scale.half()).all()
    assert (scale != 0).all()
    restored = rtn.quantize(w, grid, choice).dequantize()
    assert torch.isfinite(restored).all()
    assert (restored - w).norm() <= 1.001 * w.norm()


@pytest.mark.parametrize("choice", ["search", "minmax"])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_weights_whose_scale_exceeds_float16_stay_finite(grid, choice):
    restored = rtn.quantize(weights() * 1e9, grid, choice).dequantize()
    assert torch.isfinite(restored).all()


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_columns_that_never_see_an_input_do_no_harm(grid):
    h = importance(160)
    h[:40] = 0
    for given in (h, torch.zeros(160)):
        scale, zero = choose_scales(weights(), given, grid)
        assert torch.isfinite(scale).all()
        assert torch.isfinite(zero).all()


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_the_unit_of_importance_does_not_matter(grid):
    one = choose_scales(weights(), importance(160), grid)
    two = choose_scales(weights(), importance(160) * 2.0**20, grid)
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])


@pytest.mark.parametrize("grid", [Grid(4, 64), Grid(4, 64, False), Grid(3, -1), Grid(2, 128, False)], ids=str)
def test_rows_and_groups_are_chosen_each_by_itself(grid):
    w, h = weights(), importance(160)
    h /= h.mean()
    scale, zero = choose_scales(w, h, grid)
    for rows in (slice(0, 1), slice(60, 70)):
        alone = choose_scales(w[rows], h, grid)
        assert torch.equal(alone[0], scale[:, rows])
        assert torch.equal(alone[1], zero[:, rows])


@pytest.mark.parametrize("grid", [Grid(4, 32), Grid(4, 32, False)], ids=str)
def test_threads_change_nothing(grid):
    before = numba.get_num_threads()
    try:
        results = []
        for threads in (1, min(2, numba.config.NUMBA_NUM_THREADS)):
            numba.set_num_threads(threads)
            results.append(choose_scales(weights(), importance(160), grid))
    finally:
        numba.set_num_threads(before)
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
