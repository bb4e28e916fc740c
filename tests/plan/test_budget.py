"""What a run will cost: one layer, one Hessian and the activations, whatever the depth."""

from dataclasses import replace

import pytest
from shapes import TINY, XVERSE_13B_2, XWIN_70B

from quantkit.families.llama import LLAMA
from quantkit.plan.budget import Machine, estimate
from quantkit.plan.rows import make_plan
from quantkit.recipe import Recipe

CPU = Machine(
    compute_bytes=2,
    on_host=True,
    available_bytes=12 * 10**9,
    base_bytes=500 * 10**6,
    product_rate=1e12,
    exact_rate=1e11,
)
GPU = replace(CPU, on_host=False, product_rate=1e14, exact_rate=5e13)


def budget_of(shape, machine=CPU, samples=128, length=2048, download=0, family=LLAMA, **fields):
    recipe = Recipe(**fields)
    plan = make_plan(family, recipe, shape.infos())
    return plan, estimate(plan, family, recipe, shape.config, machine, samples, length, download)


def test_memory_does_not_grow_with_depth():
    _, shallow = budget_of(replace(XVERSE_13B_2, layers=4))
    _, deep = budget_of(replace(XVERSE_13B_2, layers=16))
    assert shallow.host_bytes == deep.host_bytes
    assert shallow.seconds < deep.seconds


def test_the_parts_are_a_layer_a_hessian_and_the_activations():
    _, budget = budget_of(XWIN_70B)
    assert budget.largest_hessian_bytes == 28672**2 * 4
    assert budget.activation_bytes == 128 * 2048 * 8192 * 2
    assert budget.largest_layer_bytes == pytest.approx(1.71e9, rel=0.01)
    parts = budget.largest_hessian_bytes + budget.activation_bytes + budget.largest_layer_bytes
    assert parts < budget.host_bytes < 2 * parts


def test_a_70b_model_needs_a_small_machine_for_its_making():
    _, budget = budget_of(XWIN_70B, samples=32)
    assert budget.host_bytes < 12.7e9


def test_fewer_samples_need_less_memory_and_time():
    _, many = budget_of(XVERSE_13B_2)
    _, few = budget_of(XVERSE_13B_2, samples=32)
    assert many.host_bytes - few.host_bytes == many.activation_bytes - few.activation_bytes
    assert few.seconds < many.seconds


@pytest.mark.parametrize(
    ("available", "remembered", "columns"),
    [(5 * 10**9, (), 0), (14 * 10**9, ("self_attn",), 5120), (100 * 10**9, ("self_attn", "mlp"), 5120 + 13824)],
)
def test_what_a_layer_computed_is_remembered_as_far_as_memory_allows(available, remembered, columns):
    _, budget = budget_of(XVERSE_13B_2, machine=replace(CPU, available_bytes=available))
    assert budget.remembered == remembered
    assert budget.activation_bytes == 128 * 2048 * (5120 + columns) * 2
    if remembered:
        assert budget.host_bytes < available


def test_rounding_to_nearest_needs_no_activations():
    _, gptq = budget_of(XVERSE_13B_2)
    _, rtn = budget_of(XVERSE_13B_2, method="rtn")
    assert (rtn.activation_bytes, rtn.largest_hessian_bytes) == (0, 0)
    assert rtn.host_bytes < gptq.host_bytes
    assert rtn.seconds < gptq.seconds


def test_the_disk_holds_artifact_download_and_small_files():
    plan, budget = budget_of(XVERSE_13B_2, download=27 * 10**9)
    assert budget.download_bytes == 27 * 10**9
    assert 0 < budget.disk_bytes - plan.artifact_bytes - 27 * 10**9 < 50 * 10**6


def test_a_gpu_takes_the_layer_and_the_host_the_activations():
    _, host = budget_of(XVERSE_13B_2)
    _, device = budget_of(XVERSE_13B_2, machine=GPU)
    assert host.device_bytes == 0
    assert device.device_bytes > device.largest_layer_bytes + device.largest_hessian_bytes
    assert device.host_bytes < host.host_bytes
    assert device.host_bytes >= CPU.base_bytes + device.activation_bytes


def test_every_cost_is_a_number_in_the_record():
    _, budget = budget_of(TINY, samples=8, length=64)
    record = budget.as_dict()
    assert set(record) == {
        "host_bytes", "device_bytes", "disk_bytes", "download_bytes", "seconds", "activation_bytes",
        "largest_layer_bytes", "largest_hessian_bytes", "remembered",
    }  # fmt: skip
    assert record.pop("remembered") == ("self_attn", "mlp")
    assert all(isinstance(value, int | float) and value >= 0 for value in record.values())


@pytest.mark.parametrize(("length", "batch"), [(2048, 1), (512, 4)])
def test_attention_that_is_not_fused_holds_its_scores(length, batch):
    def device_bytes(score, **fields):
        family = replace(LLAMA, score_bytes={2: score})  # enough to outweigh the solver
        return budget_of(XWIN_70B, GPU, length=length, family=family, **fields)[1].device_bytes

    assert device_bytes(2000) - device_bytes(1000) == batch * 64 * length * length * 1000
    assert device_bytes(2000, method="rtn") == device_bytes(1000, method="rtn")
