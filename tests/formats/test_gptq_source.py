"""A GPTQ checkpoint read as a 16-bit one, against the formula spelled out."""

import pytest
import torch

from quantkit.dtypes import DTYPE_NAMES
from quantkit.errors import BadInputError
from quantkit.formats.gptq import encode
from quantkit.formats.gptq_source import DequantizedSource
from quantkit.tensors import Grid, TensorInfo

P = "model.layers.0.mlp.down_proj"


class DictSource:
    """A TensorSource of tensors in memory."""

    def __init__(self, tensors):
        self.tensors = tensors
        self.infos = {
            name: TensorInfo(name, DTYPE_NAMES[tensor.dtype], tuple(tensor.shape), "a.safetensors", 8 * i)
            for i, (name, tensor) in enumerate(tensors.items())
        }

    def read(self, name):
        return self.tensors[name].clone()


def checkpoint(weight, stored_as):
    return {
        "model.embed_tokens.weight": torch.randn(7, 5).to(torch.bfloat16),
        **{f"{P}.{suffix}": tensor for suffix, tensor in encode(weight, stored_as).items()},
        f"{P}.bias": torch.ones(weight.codes.shape[0], dtype=torch.float16),
    }


def naive(weight):
    """W[n, k] = scales[g_idx[k], n] * (q[n, k] - z[g_idx[k], n]), one value at a time."""
    rows, columns = weight.codes.shape
    codes, zeros, groups = weight.codes.tolist(), weight.zero_point.tolist(), weight.group_index.tolist()
    scales = weight.scale.double().tolist()
    values = [[scales[groups[k]][n] * (codes[n][k] - zeros[groups[k]][n]) for k in range(columns)] for n in range(rows)]
    return torch.tensor(values, dtype=torch.float64).to(torch.float16)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("stored_as", "symmetric"), [("gptq", True), ("gptq", False), ("gptq_v2", False)])
@pytest.mark.parametrize("permuted", [False, True])
@pytest.mark.parametrize("group_size", [32, -1])
def test_weights_are_dequantized(make_weight, bits, stored_as, symmetric, permuted, group_size):
    weight = make_weight(64, 96, Grid(bits, group_size, symmetric), permuted)
    if stored_as == "gptq_v2":
        weight.zero_point[0, ::5] = 0
    tensors = checkpoint(weight, stored_as)
    source = DequantizedSource(DictSource(tensors), {"quant_method": "gptq", "checkpoint_format": stored_as})
    assert list(source.infos) == ["model.embed_tokens.weight", f"{P}.weight", f"{P}.bias"]
    info = source.infos[f"{P}.weight"]
    assert (info.name, info.dtype, info.shape, info.file) == (f"{P}.weight", "F16", (64, 96), "a.safetensors")
    read = source.read(f"{P}.weight")
    assert read.dtype == torch.float16
    assert torch.equal(read, naive(weight))
    assert torch.equal(source.read("model.embed_tokens.weight"), tensors["model.embed_tokens.weight"])
    assert torch.equal(source.read(f"{P}.bias"), tensors[f"{P}.bias"])


@pytest.mark.parametrize("config", [{}, {"format": "gptq"}, {"bits": 4, "checkpoint_format": "gptq"}])
def test_no_format_means_v1(make_weight, config):
    weight = make_weight(64, 96, Grid(4, 32))
    source = DequantizedSource(DictSource(checkpoint(weight, "gptq")), config)
    assert torch.equal(source.read(f"{P}.weight"), naive(weight))


def test_checkpoint_format_overrides_format(make_weight):
    weight = make_weight(64, 96, Grid(4, 32))
    config = {"checkpoint_format": "gptq_v2", "format": "gptq"}
    source = DequantizedSource(DictSource(checkpoint(weight, "gptq_v2")), config)
    assert torch.equal(source.read(f"{P}.weight"), naive(weight))


def test_bits_may_differ_between_linears(make_weight):
    tensors, weights = {}, {}
    for i, grid in enumerate((Grid(4, 32), Grid(8, -1), Grid(3, 48))):
        name = f"model.layers.{i}.mlp.up_proj"
        weights[name] = make_weight(32, 96, grid, seed=i)
        tensors |= {f"{name}.{suffix}": tensor for suffix, tensor in encode(weights[name], "gptq").items()}
    source = DequantizedSource(DictSource(tensors), {"bits": 4, "group_size": 32})
    assert len(source.infos) == 3
    for name, weight in weights.items():
        assert torch.equal(source.read(f"{name}.weight"), naive(weight))


@pytest.mark.parametrize("group_size", [64, -1, None])
@pytest.mark.parametrize("left", ["nothing", "zeros"])
def test_g_idx_missing_or_never_filled(make_weight, group_size, left):
    weight = make_weight(32, 160 if group_size == 64 else 192, Grid(4, 64))
    tensors = checkpoint(weight, "gptq")
    if left == "nothing":
        del tensors[f"{P}.g_idx"]
    else:
        tensors[f"{P}.g_idx"] = torch.zeros_like(tensors[f"{P}.g_idx"])
    config = {} if group_size is None else {"group_size": group_size}
    source = DequantizedSource(DictSource(tensors), config)
    assert torch.equal(source.read(f"{P}.weight"), naive(weight))
    with pytest.raises(BadInputError, match="order of its 3 groups is unknown"):
        DequantizedSource(DictSource(tensors), {**config, "desc_act": True}).read(f"{P}.weight")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quant_method": "awq"}, "quantized by 'awq'"),
        ({"checkpoint_format": "marlin"}, "format 'marlin'"),
        ({"is_marlin_format": True}, "expected GPTQ"),
        ({"pack_dtype": "int16"}, "packed into 'int16'"),
    ],
)
def test_configurations_that_are_refused(config, message):
    with pytest.raises(BadInputError, match=message):
        DequantizedSource(DictSource({}), config)


def without_scales(tensors):
    del tensors[f"{P}.scales"]


def stored_twice(tensors):
    tensors[f"{P}.weight"] = torch.zeros(2)


def wide_qzeros(tensors):
    tensors[f"{P}.qzeros"] = tensors[f"{P}.qzeros"].repeat(1, 4)


def float_qweight(tensors):
    tensors[f"{P}.qweight"] = tensors[f"{P}.qweight"].float()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without_scales, f"{P}.scales is missing"),
        (stored_twice, "stored twice"),
        (wide_qzeros, "does not fit 2, 3, 4 or 8 bits for 64 outputs"),
        (float_qweight, r"qweight is F32 \[12, 64\], expected an I32 matrix"),
    ],
)
def test_tensors_that_are_refused(make_weight, spoil, message):
    tensors = checkpoint(make_weight(64, 96, Grid(4, 32)), "gptq")
    spoil(tensors)
    with pytest.raises(BadInputError, match=message):
        DequantizedSource(DictSource(tensors), {})


def test_a_bad_linear_is_named_on_reading(make_weight):
    tensors = checkpoint(make_weight(64, 96, Grid(4, 32)), "gptq")
    tensors[f"{P}.g_idx"][3] = 9
    with pytest.raises(BadInputError, match=f"{P}: g_idx names groups 0 to 9, expected 0 to 2"):
        DequantizedSource(DictSource(tensors), {}).read(f"{P}.weight")
