"""gptq.quantize against Algorithm 1 of the paper in float64, column by column."""

from dataclasses import replace

import numba
import pytest
import torch
from problems import not_positive_definite, problem
from reference import damped, gptq_reference, hessian_reference, loss_reference

from quantkit.methods import gptq, rtn
from quantkit.methods.gptq import Settings
from quantkit.methods.hessian import PANEL, factorize
from quantkit.tensors import Grid, QuantizedWeight

ORDERS = ("none", "static", "full")
# One row; less and more than a tile of 64 rows; columns below, at and across the blocks of 128.
SHAPES = ((1, 96), (63, 128), (65, 160), (70, 384))
TIE = 1e-4  # of a step: how far from the middle between two codes float32 may still err


def order_of(hessian, act_order):
    return None if act_order == "none" else torch.argsort(hessian.diagonal(), descending=True, stable=True)


def solve(weight, hessian, grid, act_order="static", damp=0.05):
    return gptq.quantize(weight, hessian.clone(), grid, Settings(act_order, damp))


def assert_errs_only_at_ties(weight, hessian, outcome, act_order):
    """Every code is the nearest after the errors of the codes before it, up to float32's view of a tie."""
    q = outcome.weight
    followed = gptq_reference(
        weight,
        hessian,
        q.scale,
        q.zero_point,
        q.group_index,
        q.grid.bits,
        outcome.damp_percent,
        order_of(hessian, act_order),
        follow=q.codes,
    )
    distance = (followed.positions.clamp(0, q.grid.max_code) - q.codes).abs()
    assert distance.max() <= 0.5 + TIE
    nearest = followed.positions.round().clamp(0, q.grid.max_code)
    assert (nearest - q.codes).abs().max() <= 1
    assert (nearest == q.codes).double().mean() >= 0.999


@pytest.mark.parametrize("act_order", ORDERS)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_codes_are_those_of_the_paper(bits, act_order):
    equal = count = 0
    for rows, columns in SHAPES:
        weight, hessian = problem(rows, columns, seed=columns)
        for symmetric, damp, group_size in ((True, 0.01, 32), (True, 0.05, 128), (False, 0.05, 32), (False, 0.01, -1)):
            outcome = solve(weight, hessian, Grid(bits, group_size, symmetric), act_order, damp)
            q = outcome.weight
            order = order_of(hessian, act_order)
            expected = gptq_reference(weight, hessian, q.scale, q.zero_point, q.group_index, bits, damp, order)
            assert (outcome.method, outcome.damp_percent, outcome.escalations) == ("gptq", damp, 0)
            if not torch.equal(q.codes, expected.codes):
                assert_errs_only_at_ties(weight, hessian, outcome, act_order)
            loss = loss_reference(weight - q.dequantize().double(), damped(hessian, damp))
            best = loss_reference(weight - expected.weight, damped(hessian, damp))
            assert float(loss.sum()) == pytest.approx(float(best.sum()), rel=1e-3)
            equal += int((q.codes == expected.codes).sum())
            count += q.codes.numel()
    assert equal / count >= 0.999


@pytest.mark.parametrize("act_order", ORDERS)
@pytest.mark.parametrize("columns", [96, 160])
def test_groups_follow_the_order_only_where_asked(act_order, columns):
    weight, hessian = problem(3, columns)
    q = solve(weight, hessian, Grid(4, 64), act_order).weight
    natural = torch.arange(columns, dtype=torch.int32) // 64
    if act_order == "full":
        assert torch.equal(q.group_index[order_of(hessian, act_order)], natural)
    else:
        assert torch.equal(q.group_index, natural)


def test_values_have_the_dtypes_and_shapes_of_the_waist():
    weight, hessian = problem(5, 96)
    q = solve(weight.bfloat16(), hessian, Grid(3, 32, False)).weight
    assert (q.codes.dtype, q.codes.shape, int(q.codes.max()) <= 7) == (torch.uint8, (5, 96), True)
    assert (q.scale.dtype, q.scale.shape) == (torch.float16, (3, 5))
    assert (q.zero_point.dtype, q.zero_point.shape) == (torch.uint8, (3, 5))
    assert (q.group_index.dtype, q.group_index.shape) == (torch.int32, (96,))


@pytest.mark.parametrize("act_order", ORDERS)
def test_the_weights_are_not_changed(act_order):
    weight, hessian = problem(5, 96)
    before = weight.clone()
    solve(weight, hessian, Grid(4, 32), act_order)
    assert torch.equal(weight, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_weights_are_their_float32_selves(dtype):
    weight, hessian = problem(5, 96)
    half = solve(weight.to(dtype), hessian, Grid(4, 32)).weight
    assert torch.equal(half.codes, solve(weight.to(dtype).float(), hessian, Grid(4, 32)).weight.codes)


@pytest.mark.parametrize("act_order", ORDERS)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_row_loss_is_the_damped_loss_of_each_row(bits, act_order):
    weight, hessian = problem(70, 384)
    outcome = solve(weight, hessian, Grid(bits, 128), act_order)
    error = weight.double() - outcome.weight.dequantize().double()
    expected = loss_reference(error, damped(hessian, 0.05))
    torch.testing.assert_close(outcome.row_loss, expected, rtol=1e-3, atol=0)
    assert float(outcome.row_loss.sum()) == pytest.approx(float(expected.sum()), rel=1e-4)


def test_row_energy_is_that_of_the_output():
    weight, hessian = problem(70, 384)
    outcome = solve(weight, hessian, Grid(4, 128))
    torch.testing.assert_close(outcome.row_energy, loss_reference(weight, hessian), rtol=0.01, atol=0)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_loss_is_well_below_that_of_rounding_to_nearest(bits):
    weight, hessian = problem(32, 256)
    rounded = loss_reference(weight - rtn.quantize(weight, Grid(bits, 128)).dequantize(), hessian).sum()
    found = loss_reference(weight - solve(weight, hessian, Grid(bits, 128)).weight.dequantize(), hessian).sum()
    assert found < 0.8 * rounded


@pytest.mark.parametrize("act_order", ORDERS)
def test_rows_do_not_depend_on_their_neighbours_within_a_block(act_order):
    weight, hessian = problem(130, 128)
    together = solve(weight, hessian, Grid(4, 32), act_order)
    for rows in (slice(0, 1), slice(5, 69), slice(64, 128), slice(129, 130)):
        alone = solve(weight[rows], hessian, Grid(4, 32), act_order)
        assert torch.equal(alone.weight.codes, together.weight.codes[rows])
        assert torch.equal(alone.weight.scale, together.weight.scale[:, rows])
        assert torch.equal(alone.row_loss, together.row_loss[rows])


@pytest.mark.parametrize("act_order", ORDERS)
def test_rows_do_not_depend_on_their_neighbours_but_for_ties(act_order):
    """Across blocks a matrix product of other height may round a last bit differently."""
    weight, hessian = problem(130, 384)
    together = solve(weight, hessian, Grid(4, 32, False), act_order)
    for rows in (slice(0, 1), slice(5, 69), slice(64, 128)):
        alone = solve(weight[rows], hessian, Grid(4, 32, False), act_order)
        assert torch.equal(alone.weight.scale, together.weight.scale[:, rows])
        assert torch.equal(alone.weight.zero_point, together.weight.zero_point[:, rows])
        assert_errs_only_at_ties(weight[rows], hessian, alone, act_order)
        assert (alone.weight.codes == together.weight.codes[rows]).double().mean() >= 0.995
        torch.testing.assert_close(alone.row_loss, together.row_loss[rows], rtol=0.02, atol=0)


@pytest.mark.parametrize("columns", [96, 384])
def test_threads_change_nothing_but_ties(columns):
    weight, hessian = problem(70, columns)
    outcomes = []
    before = numba.get_num_threads()
    try:
        for threads in (1, min(2, numba.config.NUMBA_NUM_THREADS)):
            torch.set_num_threads(threads)
            numba.set_num_threads(threads)
            outcomes.append(solve(weight, hessian, Grid(4, 32)))
    finally:
        numba.set_num_threads(before)
    one, two = outcomes
    assert torch.equal(one.weight.scale, two.weight.scale)
    assert_errs_only_at_ties(weight, hessian, two, "static")
    assert (one.weight.codes == two.weight.codes).double().mean() >= 0.995
    torch.testing.assert_close(one.row_loss, two.row_loss, rtol=0.02, atol=0)


def test_the_same_input_gives_the_same_output():
    weight, hessian = problem(70, 384)
    one, two = (solve(weight, hessian, Grid(4, 32)) for _ in range(2))
    assert torch.equal(one.weight.codes, two.weight.codes)
    assert torch.equal(one.row_loss, two.row_loss)


# What Hessians can be, and must not break anything.


def rank_one(columns):
    return hessian_reference(torch.randn(1, columns, generator=torch.Generator().manual_seed(0))).float()


def dead_columns(columns):
    hessian = problem(1, columns)[1]
    hessian[::5] = hessian[:, ::5] = 0
    return hessian


def duplicated_columns(columns):
    hessian = problem(1, columns)[1]
    source = torch.arange(columns) // 2 * 2
    return hessian[source][:, source].clone()


def one_live_column(columns):
    hessian = torch.zeros(columns, columns)
    hessian[7, 7] = 3.0
    return hessian


def enormous(columns):
    return problem(1, columns)[1] * 1e20


def minute(columns):
    return problem(1, columns)[1] * 1e-20


@pytest.mark.parametrize("act_order", ORDERS)
@pytest.mark.parametrize("make", [rank_one, dead_columns, duplicated_columns, one_live_column, enormous, minute])
def test_degenerate_hessians_are_solved_with_the_damping_asked_for(make, act_order):
    weight, hessian = problem(9, 160)[0], make(160)
    outcome = solve(weight, hessian, Grid(4, 32), act_order)
    assert (outcome.method, outcome.damp_percent, outcome.escalations) == ("gptq", 0.05, 0)
    assert_errs_only_at_ties(weight, hessian, outcome, act_order)
    assert_finite_and_near(outcome, weight)


def assert_finite_and_near(outcome, weight):
    restored = outcome.weight.dequantize()
    assert torch.isfinite(restored).all()
    assert torch.isfinite(outcome.row_loss).all()
    assert torch.isfinite(outcome.row_energy).all()
    assert (restored - weight).norm() < 0.4 * weight.norm()


@pytest.mark.parametrize("act_order", ORDERS)
@pytest.mark.parametrize(("depth", "times"), [(0.07, 2.0), (0.2, 5.0), (0.4, 10.0), (0.9, 20.0)])
def test_damping_is_raised_until_the_hessian_can_be_factorised(act_order, depth, times):
    weight, hessian = problem(9, 160)[0], not_positive_definite(problem(9, 160)[1], depth)
    raised = solve(weight, hessian, Grid(4, 32), act_order)
    asked = solve(weight, hessian, Grid(4, 32), act_order, damp=0.05 * times)
    assert (raised.method, raised.damp_percent) == ("gptq", 0.05 * times)
    assert raised.escalations > asked.escalations == 0
    assert torch.equal(raised.weight.codes, asked.weight.codes)
    assert torch.equal(raised.row_loss, asked.row_loss)


@pytest.mark.parametrize("act_order", [False, True])
def test_raised_damping_starts_from_the_hessian_as_it_was_across_panels(act_order):
    # Channels alike: only nearly all of them together are not positive definite, so that the last
    # columns are factorised, and the first ones updated, before it shows.
    x = torch.randn(2000, PANEL + 88, generator=torch.Generator().manual_seed(0))
    hessian = not_positive_definite(hessian_reference(x), 0.06)
    raised, asked = factorize(hessian.clone(), 0.05, act_order), factorize(hessian.clone(), 0.1, act_order)
    assert asked is not None
    assert raised is not None
    assert (raised.escalations, raised.damp_percent) == (1, 0.1)
    assert torch.equal(raised.upper.triu(1), asked.upper.triu(1))
    assert torch.equal(raised.pivots, asked.pivots)


def zero(columns):
    return torch.zeros(columns, columns)


def nan_on_the_diagonal(columns):
    hessian = problem(1, columns)[1]
    hessian[3, 3] = torch.nan
    return hessian


def nan_beside_the_diagonal(columns):
    hessian = problem(1, columns)[1]
    hessian[3, 90] = hessian[90, 3] = torch.nan
    return hessian


def infinite(columns):
    hessian = problem(1, columns)[1]
    hessian[:, 5] = hessian[5] = torch.inf
    return hessian


def all_nan(columns):
    return torch.full((columns, columns), torch.nan)


def negative(columns):
    return -problem(1, columns)[1]


def far_from_positive_definite(columns):
    return not_positive_definite(problem(1, columns)[1], 3.0)


@pytest.mark.parametrize("act_order", ORDERS)
@pytest.mark.parametrize(
    "make",
    [
        zero,
        nan_on_the_diagonal,
        nan_beside_the_diagonal,
        infinite,
        all_nan,
        negative,
        far_from_positive_definite,
    ],
)
def test_a_hopeless_hessian_means_rounding_to_nearest_and_says_so(make, act_order):
    weight, hessian = problem(9, 160)[0], make(160)
    grid = Grid(4, 32)
    outcome = solve(weight, hessian, grid, act_order)
    expected = rtn.quantize(weight, grid)
    assert outcome.method == "rtn"
    assert torch.equal(outcome.weight.codes, expected.codes)
    assert torch.equal(outcome.weight.scale, expected.scale)
    assert torch.equal(outcome.weight.group_index, expected.group_index)
    error = (weight - expected.dequantize()).double()
    torch.testing.assert_close(outcome.row_loss, error.square().sum(1))
    torch.testing.assert_close(outcome.row_energy, weight.double().square().sum(1))
    assert_finite_and_near(outcome, weight)


def test_nan_in_a_far_panel_is_found():
    hessian = problem(1, PANEL + 40)[1]
    hessian[2, -1] = hessian[-1, 2] = torch.nan
    assert factorize(hessian, 0.05, act_order=False) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("act_order", ORDERS)
def test_a_gpu_errs_only_at_ties(act_order):
    weight, hessian = problem(65, 384)
    outcome = gptq.quantize(weight.cuda(), hessian.cuda(), Grid(4, 128), Settings(act_order, 0.05))
    q = outcome.weight
    on_cpu = QuantizedWeight(q.codes.cpu(), q.scale.cpu(), q.zero_point.cpu(), q.group_index.cpu(), q.grid)
    assert_errs_only_at_ties(weight, hessian, replace(outcome, weight=on_cpu), act_order)
