"""Devices: chosen by name with a reason, refused by name; memory measured."""

import pytest
import torch

from quantkit.devices import choose_device, measure_rate, release_memory, reset_peak
from quantkit.errors import UsageError
from quantkit.memory import peak_resident_bytes, resident_bytes


@pytest.fixture
def bare(monkeypatch):
    """A machine without GPU, AMX or AVX-512 for bfloat16."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False, raising=False)
    return monkeypatch


def with_gpu(monkeypatch, capability, count=1):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)


@pytest.mark.parametrize("wish", ["auto", "cpu"])
def test_without_a_gpu_the_cpu_computes_in_float32(bare, wish):
    chosen = choose_device(wish)
    assert (chosen.device.type, chosen.dtype) == ("cpu", torch.float32)
    assert chosen.label == "cpu, float32 (this CPU has no bfloat16 units)"


@pytest.mark.parametrize(
    ("probe", "reason"),
    [
        ("_is_amx_tile_supported", "AMX tiles multiply bfloat16"),
        ("_is_avx512_bf16_supported", "AVX-512 multiplies bfloat16"),
    ],
)
def test_a_cpu_that_multiplies_bfloat16_computes_in_it(bare, probe, reason):
    bare.setattr(torch.cpu, probe, lambda: True, raising=False)
    assert choose_device("cpu").label == f"cpu, bfloat16 ({reason})"


def test_a_torch_without_the_probes_computes_in_float32(bare):
    bare.delattr(torch.cpu, "_is_amx_tile_supported")
    bare.delattr(torch.cpu, "_is_avx512_bf16_supported")
    assert choose_device("cpu").dtype == torch.float32


@pytest.mark.parametrize(
    ("capability", "label"),
    [
        ((9, 0), "cuda, bfloat16 (compute capability 9.0 multiplies bfloat16)"),
        ((8, 0), "cuda, bfloat16 (compute capability 8.0 multiplies bfloat16)"),
        ((7, 5), "cuda, float32 (compute capability 7.5 has no bfloat16 units)"),
    ],
)
def test_a_gpu_is_preferred_and_computes_in_what_it_multiplies(bare, capability, label):
    with_gpu(bare, capability)
    assert choose_device("auto").label == label
    assert choose_device("cpu").device.type == "cpu"


def test_an_apple_gpu_computes_in_float32(bare):
    bare.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("auto").label == "mps, float32 (float32 is the safe choice on Apple GPUs)"


def test_a_gpu_that_is_not_there_is_refused(bare):
    with pytest.raises(UsageError) as caught:
        choose_device("cuda")
    assert str(caught.value) == "no cuda here: torch sees 0 CUDA devices"
    assert caught.value.hint == "use --device cpu"
    with pytest.raises(UsageError, match="no mps here"):
        choose_device("mps")


def test_a_number_past_the_gpus_is_refused(bare):
    with_gpu(bare, (9, 0), count=2)
    assert choose_device("cuda:1").device.index == 1
    with pytest.raises(UsageError, match="no cuda:2 here: torch sees 2 CUDA devices"):
        choose_device("cuda:2")


@pytest.mark.parametrize("wish", ["gpu", "", "cuda:x", "meta", "cpu:", "tpu"])
def test_what_is_no_device_is_refused_by_name(bare, wish):
    with pytest.raises(UsageError) as caught:
        choose_device(wish)
    assert str(caught.value) == f"no device {wish!r}"
    assert caught.value.hint == "use auto, cpu, cuda, cuda:N or mps"


def test_the_rate_of_products_is_a_number():
    assert measure_rate(torch.device("cpu"), torch.float32) > 1e6


def test_peak_memory_notices_what_was_held_and_given_back():
    reset_peak()
    before = peak_resident_bytes()
    block = torch.ones(32 * 2**20, dtype=torch.uint8)
    del block
    release_memory()
    assert peak_resident_bytes() >= before
    assert resident_bytes() > 0
    assert peak_resident_bytes() >= resident_bytes() - 8 * 2**20
