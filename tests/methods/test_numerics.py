"""Whatever weights and Hessians hold: finite, storable, in range, and what was done is recorded."""

import itertools
import math

import pytest
import torch
from problems import not_positive_definite, problem
from reference import hessian_reference

from quantkit.methods import gptq, rtn
from quantkit.methods.gptq import Settings
from quantkit.methods.hessian import DAMP_LADDER, HessianSum
from quantkit.methods.scales import choose_scales
from quantkit.tensors import Grid

ROWS, COLUMNS = 9, 160
GRIDS = [
    Grid(bits, size, symmetric)
    for bits, size, symmetric in itertools.product((2, 3, 4, 8), (-1, 32, 128), (True, False))
]
ORDERS = ("none", "static", "full")
LARGEST = 65504.0  # of float16
DAMP = 0.05


def plain():
    return problem(ROWS, COLUMNS)[0]


def changed(where, value):
    weight = plain()
    weight[where] = value
    return weight


EVERY = slice(None)
# What a weight may hold. Its dtype is that of the checkpoint.
WEIGHTS = {
    "ordinary": plain(),
    "zeros": torch.zeros(ROWS, COLUMNS),
    "negative zeros": -torch.zeros(ROWS, COLUMNS),
    "every other row zero": changed(slice(0, ROWS, 2), 0.0),
    "a group of zeros": changed((EVERY, slice(32, 64)), 0.0),
    "one value in zeros": torch.zeros(ROWS, COLUMNS).index_fill(1, torch.tensor([7]), 0.25),
    "constant": torch.full((ROWS, COLUMNS), 0.3),
    "constant and negative": torch.full((ROWS, COLUMNS), -0.3),
    "far from zero": plain() + 3,
    "one outlier": changed((2, 5), 1e4),
    "one negative outlier": changed((2, 5), -1e4),
    "float16's largest": plain().sign() * LARGEST,
    "float16's largest here and there": changed((EVERY, slice(0, COLUMNS, 7)), LARGEST),
    "float16's least": (plain().sign() * 2**-24).half(),
    "1e-37": plain() * 1e-36,
    "denormal in float32": plain() * 1e-42,
    "bfloat16's least": (plain().sign() * 2.0**-133).bfloat16(),
    "1e7": plain() * 1e8,
    "1e20": plain() * 1e21,
    "bfloat16's largest": (plain().sign() * 3e38).bfloat16(),
    "one value of 3e38": changed((0, 0), 3e38),
}
UNSTORABLE = ("1e7", "1e20", "bfloat16's largest", "one value of 3e38")  # beyond a float16 scale times the codes


def hessian(where=None, value=0.0):
    h = problem(1, COLUMNS)[1]
    if where is not None:
        h[where] = h[where[::-1]] = value
    return h


def one_sample(tokens):
    x = torch.randn(tokens, COLUMNS, generator=torch.Generator().manual_seed(3))
    return hessian_reference(x).float()


def with_dead_columns():
    h = hessian()
    h[::5] = h[:, ::5] = 0
    return h


def with_sizes_apart():
    size = torch.logspace(-9, 9, COLUMNS)
    return hessian() * torch.outer(size, size)


# name -> Hessian, method, steps of damping (None: any)
HESSIANS = {
    "ordinary": (hessian(), "gptq", 0),
    "zero": (torch.zeros(COLUMNS, COLUMNS), "rtn", 0),
    "of one token": (one_sample(1), "gptq", 0),
    "of three tokens": (one_sample(3), "gptq", 0),
    "of one and the same input": (torch.ones(COLUMNS, COLUMNS), "gptq", 0),
    "with dead columns": (with_dead_columns(), "gptq", 0),
    "with one live column": (3 * torch.diag(torch.eye(COLUMNS)[7]), "gptq", 0),
    "with one dominant column": (hessian((3, 3), 1e30), "gptq", 0),
    "with sizes far apart": (with_sizes_apart(), "gptq", None),
    "enormous": (hessian() * 1e30, "gptq", 0),
    "minute": (hessian() * 1e-30, "gptq", 0),
    "not positive definite": (not_positive_definite(hessian(), 0.2), "gptq", 2),
    "far from positive definite": (not_positive_definite(hessian(), 3.0), "rtn", len(DAMP_LADDER)),
    "with a negative diagonal value": (hessian((3, 3), -30.0), "rtn", len(DAMP_LADDER)),
    "negative": (-hessian(), "rtn", 0),
    "with a NaN": (hessian((3, 90), math.nan), "rtn", len(DAMP_LADDER)),
    "with a NaN on its diagonal": (hessian((3, 3), math.nan), "rtn", 0),
    "of NaN": (torch.full((COLUMNS, COLUMNS), math.nan), "rtn", 0),
    "with infinity": (hessian((3, 90), math.inf), "rtn", len(DAMP_LADDER)),
    "with negative infinity on its diagonal": (hessian((3, 3), -math.inf), "rtn", 0),
    "of the largest float32": (torch.full((COLUMNS, COLUMNS), 3e38), "rtn", len(DAMP_LADDER)),
}


def assert_storable(quantized):
    """What is packed: whole codes of the grid, float16 scales that can be divided by, no NaN anywhere."""
    grid = quantized.grid
    assert quantized.codes.dtype == quantized.zero_point.dtype == torch.uint8
    assert int(quantized.codes.max()) <= grid.max_code
    assert int(quantized.zero_point.max()) <= grid.max_code
    assert quantized.scale.dtype == torch.float16
    assert torch.isfinite(quantized.scale).all()
    assert (quantized.scale != 0).all()  # symmetric ones may be negative: the longer side of the grid is chosen
    assert grid.symmetric or (quantized.scale > 0).all()
    assert torch.isfinite(quantized.dequantize()).all()


def assert_recorded(outcome, method, steps):
    assert outcome.method == method
    if steps is not None:
        assert outcome.escalations == steps
        assert outcome.damp_percent == pytest.approx(DAMP * (1.0, *DAMP_LADDER)[steps])
    for figures in (outcome.row_loss, outcome.row_energy):
        assert torch.isfinite(figures).all()
        assert (figures >= 0).all()


@pytest.mark.parametrize("name", WEIGHTS)
def test_any_weight_is_rounded_to_something_storable(name):
    weight = WEIGHTS[name]
    for grid, choice in itertools.product(GRIDS, ("search", "minmax")):
        quantized = rtn.quantize(weight, grid, choice)
        assert_storable(quantized)
        if name not in UNSTORABLE:
            error = (quantized.dequantize().double() - weight.double()).norm()
            assert error <= 1.001 * weight.double().norm()  # never further away than zero is


@pytest.mark.parametrize("name", WEIGHTS)
def test_any_weight_is_solved_to_something_storable(name):
    weight = WEIGHTS[name]
    for number, (grid, order) in enumerate(itertools.product(GRIDS, ORDERS)):
        settings = Settings(order, DAMP, ("search", "minmax")[number % 2])
        outcome = gptq.quantize(weight.clone(), hessian(), grid, settings)
        assert_storable(outcome.weight)
        if name not in UNSTORABLE:
            assert_recorded(outcome, "gptq", 0)
        else:  # where float32 overflows on the way, this is said; it is no reason for a NaN
            assert_recorded(outcome, outcome.method, 0)


@pytest.mark.parametrize("name", HESSIANS)
def test_any_hessian_gives_something_storable_and_says_what_was_done(name):
    given, method, steps = HESSIANS[name]
    for grid, order in itertools.product((Grid(4, 32), Grid(2, -1, False), Grid(3, 128), Grid(8, 32, False)), ORDERS):
        outcome = gptq.quantize(plain(), given.clone(), grid, Settings(order, DAMP))
        assert_storable(outcome.weight)
        assert_recorded(outcome, method, steps)
        if method == "rtn":
            expected = rtn.quantize(plain(), grid)
            assert torch.equal(outcome.weight.codes, expected.codes)
            assert torch.equal(outcome.weight.scale, expected.scale)


@pytest.mark.parametrize("name", [name for name, (_, method, _) in HESSIANS.items() if method == "gptq"])
def test_where_gptq_ran_it_is_no_worse_than_rounding(name):
    """By its own measure, the damped loss, for every grid."""
    given = HESSIANS[name][0]
    for grid in (Grid(2, 32), Grid(3, 32), Grid(4, 32), Grid(4, -1, False), Grid(8, 128)):
        outcome = gptq.quantize(plain(), given.clone(), grid, Settings("static", DAMP))
        h = given.double()
        h = h + outcome.damp_percent * h.diagonal().mean() * torch.eye(COLUMNS, dtype=torch.float64)
        found, rounded = (
            weight.dequantize().double() - plain().double() for weight in (outcome.weight, rtn.quantize(plain(), grid))
        )
        assert ((found @ h) * found).sum() <= 1.02 * ((rounded @ h) * rounded).sum()


@pytest.mark.parametrize("weight", ["zeros", "denormal in float32", "one outlier", "bfloat16's largest", "1e20"])
@pytest.mark.parametrize("given", ["enormous", "minute", "of one token", "not positive definite", "of NaN"])
def test_the_worst_of_both(weight, given):
    for grid, order in itertools.product((Grid(4, 32), Grid(3, -1, False)), ORDERS):
        outcome = gptq.quantize(WEIGHTS[weight].clone(), HESSIANS[given][0].clone(), grid, Settings(order, DAMP))
        assert_storable(outcome.weight)
        assert_recorded(outcome, outcome.method, None)


def test_a_weight_of_zeros_stays_zero():
    for grid, order in itertools.product(GRIDS, ORDERS):
        outcome = gptq.quantize(torch.zeros(ROWS, COLUMNS), hessian(), grid, Settings(order, DAMP))
        assert (outcome.weight.dequantize() == 0).all()
        assert (outcome.row_loss == 0).all()


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_no_importance_of_columns_breaks_a_scale(grid):
    for value in (0.0, 1e-38, 1e30, math.inf, math.nan):
        importance = torch.ones(COLUMNS)
        importance[3] = value
        scale, zero = choose_scales(plain(), importance, grid)
        assert torch.isfinite(scale).all()
        assert (scale != 0).all()
        assert torch.equal(zero, zero.round().clamp(0, grid.max_code))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e25])
def test_activations_that_overflow_end_in_rounding_to_nearest(value):
    """Their products are infinite or NaN in float32; nothing of it reaches the weights."""
    x = torch.randn(50, COLUMNS, generator=torch.Generator().manual_seed(0))
    x[7, 11] = value
    total = HessianSum(COLUMNS)
    total.add(x.bfloat16())
    outcome = gptq.quantize(plain(), total.finish(), Grid(4, 32), Settings())
    assert outcome.method == "rtn"
    assert torch.equal(outcome.weight.codes, rtn.quantize(plain(), Grid(4, 32)).codes)


def test_the_energy_of_an_output_does_not_overflow():
    weight, given = plain(), hessian()
    expected = gptq.energy(weight, given.clone())
    for size, scale in ((1e30, 1.0), (1e-30, 1.0), (1e10, 1e15), (1e-10, 1e-25)):
        found = gptq.energy(weight * scale, given * size)
        torch.testing.assert_close(found, expected * size * scale**2, rtol=0.02, atol=0)
