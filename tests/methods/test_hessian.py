"""The Hessian's sum, order and factor against plain float64."""

import pytest
import torch
from problems import inputs, not_positive_definite, problem
from reference import damped, hessian_reference

from quantkit.methods.hessian import (
    PANEL,
    HessianSum,
    exact_bfloat16_products,
    factorize,
    mirror_upper_,
    permute_,
    unit_upper_factor_,
)

AROUND_PANEL = (1, 2, PANEL - 1, PANEL, PANEL + 1, 1100)


def relative(found, expected):
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("columns", [96, PANEL + 88])
def test_the_sum_over_batches_is_that_of_float64(dtype, columns):
    x = inputs(columns, 500).to(dtype)
    batches = (x[:1], x[1:200].reshape(1, 199, columns), x[200:].reshape(3, 100, columns))
    total = HessianSum(columns)
    for batch in batches:
        total.add(batch)
    assert total.count == 500
    found = total.finish()
    assert (found.dtype, found.shape) == (torch.float32, (columns, columns))
    assert torch.equal(found, found.T)
    assert relative(found, hessian_reference(x)) < 1e-6


def test_float32_inputs_keep_their_last_bits():
    x = 1 + torch.rand(400, 96, generator=torch.Generator().manual_seed(0)) * 2**-12  # all one in bfloat16
    total = HessianSum(96)
    total.add(x)
    assert relative(total.finish(), hessian_reference(x)) < 1e-6


def test_inputs_that_are_views_are_added_as_they_look():
    x = inputs(96, 300)
    total = HessianSum(96)
    total.add(x.T.contiguous().T[::2])
    assert relative(total.finish(), hessian_reference(x[::2])) < 1e-6


def test_no_inputs_are_a_zero_hessian():
    assert torch.equal(HessianSum(8).finish(), torch.zeros(8, 8))


def test_the_precision_of_products_is_put_back():
    def state():
        cpu = getattr(torch.backends.mkldnn, "matmul", None)
        return getattr(cpu, "fp32_precision", None), torch.backends.cuda.matmul.allow_tf32

    before = state()
    with pytest.raises(ArithmeticError), exact_bfloat16_products():
        raise ArithmeticError
    HessianSum(8).add(torch.ones(2, 8, dtype=torch.bfloat16))
    assert state() == before
    a, b = torch.rand(64, 64), torch.rand(64, 64)
    assert relative(a @ b, a.double() @ b.double()) < 1e-6


@pytest.mark.parametrize("size", AROUND_PANEL)
def test_the_upper_triangle_is_mirrored(size):
    matrix = torch.rand(size, size)
    expected = matrix.triu() + matrix.triu(1).T
    mirror_upper_(matrix)
    assert torch.equal(matrix, expected)


@pytest.mark.parametrize("size", AROUND_PANEL)
def test_rows_and_columns_are_permuted(size):
    matrix = problem(1, size)[1]
    order = torch.randperm(size, generator=torch.Generator().manual_seed(size))
    expected = matrix[order][:, order]
    permute_(matrix, order)
    assert torch.equal(matrix, expected)


@pytest.mark.parametrize("size", AROUND_PANEL)
def test_the_factor_makes_the_hessian_again(size):
    hessian = damped(problem(1, size)[1], 0.05).float()
    matrix = hessian.clone()
    pivots = unit_upper_factor_(matrix)
    assert pivots is not None
    assert (pivots > 0).all()
    unit = matrix.double().triu(1) + torch.eye(size)
    assert relative(unit @ torch.diag(pivots.double()) @ unit.T, hessian.double()) < 1e-6


@pytest.mark.parametrize("size", AROUND_PANEL)
def test_the_lower_triangle_is_neither_read_nor_written(size):
    hessian = damped(problem(1, size)[1], 0.05).float()
    below = torch.full_like(hessian, 7.0).tril(-1)
    one, two = hessian.clone(), hessian.triu() + below
    assert torch.equal(unit_upper_factor_(one), unit_upper_factor_(two))
    assert torch.equal(one.triu(1), two.triu(1))
    assert torch.equal(two.tril(-1), below)


@pytest.mark.parametrize("size", [2, PANEL, PANEL + 1, 1100])
def test_what_is_not_positive_definite_has_no_factor(size):
    assert unit_upper_factor_(not_positive_definite(problem(1, size)[1], 0.01)) is None
    assert unit_upper_factor_(torch.zeros(size, size)) is None


@pytest.mark.parametrize("act_order", [False, True])
def test_factorize_damps_and_orders(act_order):
    hessian = problem(1, 160)[1]
    factor = factorize(hessian.clone(), 0.02, act_order)
    assert factor is not None
    diagonal = hessian.diagonal()
    natural = torch.arange(160)
    expected = torch.argsort(diagonal, descending=True, stable=True) if act_order else natural
    assert torch.equal(factor.order, expected)
    unit = factor.upper.double().triu(1) + torch.eye(160)
    remade = unit @ torch.diag(factor.pivots.double()) @ unit.T
    assert relative(remade, damped(hessian, 0.02)[expected][:, expected]) < 1e-6
    assert (factor.damp_percent, factor.escalations) == (0.02, 0)


def test_columns_of_equal_weight_keep_their_order():
    factor = factorize(torch.eye(40), 0.05, act_order=True)
    assert factor is not None
    assert torch.equal(factor.order, torch.arange(40))
