"""What is wrong with a weight shows, however little a model would notice."""

import pytest
import torch

from quantkit.methods import rtn
from quantkit.quality.damage import linear_damage
from quantkit.tensors import Grid


@pytest.fixture(scope="module")
def pair():
    weight = torch.randn(256, 512, generator=torch.Generator().manual_seed(0))
    return weight, rtn.quantize(weight, Grid(4, 128)).dequantize()


def test_rounding_alone_has_no_direction(pair):
    weight, rounded = pair
    found = linear_damage("w", weight, rounded)
    exact = (weight - rounded).double().square()
    assert found.error == pytest.approx(float(exact.sum() / weight.double().square().sum()), rel=1e-5)
    by_row = exact.sum(1) / weight.double().square().sum(1)
    assert (found.worst_row, found.worst_row_error) == (
        int(by_row.argmax()),
        pytest.approx(float(by_row.max()), rel=1e-5),
    )
    assert found.error < 0.02
    assert found.slope == pytest.approx(1, abs=0.01)
    assert found.bias < 0.5


def test_equal_weights_are_not_mentioned(pair):
    assert linear_damage("w", pair[0], pair[0].clone()) is None


def test_swapped_rows_stand_out(pair):
    weight, rounded = pair
    swapped = rounded.clone()
    swapped[[10, 20]] = rounded[[20, 10]]
    found = linear_damage("w", weight, swapped)
    assert found.worst_row in (10, 20)
    assert found.worst_row_error > 1
    assert found.error < 0.05  # over all rows it would go unseen


def test_a_scale_off_by_five_percent_is_a_slope(pair):
    weight, rounded = pair
    assert linear_damage("w", weight, rounded * 1.05).slope == pytest.approx(1 / 1.05, abs=0.01)


def test_one_shifted_zero_point_is_a_bias(pair):
    weight, rounded = pair
    shifted = rounded.clone()
    shifted[7, 128:256] += 0.4
    assert linear_damage("w", weight, shifted).bias > 0.9


def test_rows_of_zeros_are_no_damage():
    weight = torch.randn(4, 256)
    weight[1] = 0
    other = weight.clone()
    other[0] *= 1.1
    assert linear_damage("w", weight, other).worst_row == 0
    other[1, 0] = 1e-3
    assert linear_damage("w", weight, other).worst_row == 1


def test_dtypes_may_differ(pair):
    weight, rounded = pair
    found = linear_damage("w", weight.bfloat16(), rounded.half())
    assert found.error == pytest.approx(linear_damage("w", weight.bfloat16().float(), rounded.half().float()).error)


def test_rows_beyond_one_part_count(monkeypatch, pair):
    whole = linear_damage("w", *pair)
    monkeypatch.setattr("quantkit.quality.damage.ROWS", 100)
    part = linear_damage("w", *pair)
    assert part.worst_row == whole.worst_row
    assert part.error == pytest.approx(whole.error)
    assert part.bias == whole.bias
