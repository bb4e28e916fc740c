"""The table of llama.cpp's families: every family is in it, and its names are those of the gguf library."""

import re

import gguf
import pytest

from quantkit.errors import BadInputError
from quantkit.families import FAMILIES
from quantkit.families.gguf import GGUF_FAMILIES
from quantkit.families.gguf_experts import CONVERTED_ONLY, GGUF_EXPERTS
from quantkit.families.gguf_lookup import gguf_family_of
from quantkit.families.lookup import family_of
from quantkit.plan.gguf_limits import LIMITS
from quantkit.plan.gguf_settings import SCALES

ROWS = GGUF_FAMILIES | GGUF_EXPERTS
ARCHITECTURES = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}


def test_every_family_has_a_row():
    assert GGUF_FAMILIES.keys() == {family.name for family in FAMILIES}
    assert GGUF_EXPERTS.keys() == {family.name for family in CONVERTED_ONLY}


def placed(row):
    """Every piece with the prefix of its sources and of its name, in layer 0."""
    return [("", "", piece) for piece in row.outside] + [("model.layers.0.", "blk.0.", piece) for piece in row.layer]


@pytest.mark.parametrize("name", ROWS)
def test_llama_cpp_has_the_tensors(name):
    row = ROWS[name]
    tensors = gguf.MODEL_TENSORS[ARCHITECTURES[row.architecture]]
    known = {gguf.TENSOR_NAMES[tensor].format(bid=0) for tensor in tensors}
    assert {blk + piece.name for _, blk, piece in placed(row)} <= known


@pytest.mark.parametrize("name", [name for name in ROWS if name != "xglm"])
def test_llama_cpp_takes_them_from_the_same_modules(name):
    row = ROWS[name]
    names = gguf.get_tensor_name_map(ARCHITECTURES[row.architecture], 1)
    for prefix, blk, piece in placed(row):
        sources = [piece.also or piece.sources[0]] + ([piece.fused] if piece.fused and not piece.half else [])
        for source in sources:
            # The library knows experts by their name without a number, and Mixtral's by Meta's names.
            module = (prefix + source).replace(".{expert}", "")
            module = re.sub(r"^model\.(.*)\.block_sparse_moe\.", r"\1.feed_forward.", module)
            assert names.get_name(module) == blk + piece.name, module


@pytest.mark.parametrize("name", ROWS)
def test_settings_scales_and_limits_exist(name):
    row = ROWS[name]
    known = {
        value.removeprefix("{arch}.")
        for part in (gguf.Keys.LLM, gguf.Keys.Attention, gguf.Keys.Rope)
        for value in vars(part).values()
        if isinstance(value, str)
    }
    assert {setting.key for setting in row.settings} <= known
    assert {piece.scale for piece in (*row.outside, *row.layer)} - {""} <= SCALES.keys()
    assert set(row.limits) <= LIMITS.keys()


def test_every_limit_and_scale_is_used():
    assert {limit for row in ROWS.values() for limit in row.limits} == LIMITS.keys()
    used = {piece.scale for row in ROWS.values() for piece in (*row.outside, *row.layer)}
    assert used - {""} == SCALES.keys()


def test_mixtures_are_found_for_conversion_only():
    config = {"architectures": ["MixtralForCausalLM"], "num_local_experts": 8}
    family, row = gguf_family_of(config)
    assert (family.name, row.architecture) == ("mixtral", "llama")
    with pytest.raises(BadInputError, match="mixture of experts"):
        family_of(config)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({}, "names no architecture"),
        ({"architectures": [3]}, "names no architecture"),
        ({"architectures": ["DbrxForCausalLM"], "num_local_experts": 16}, "mixture of experts"),
        ({"architectures": ["MixtralForCausalLM"], "quantization_config": {"quant_method": "awq"}}, "Mixtral"),
        ({"architectures": ["LlamaForCausalLM"], "quantization_config": {"quant_method": "awq"}}, "already quantized"),
    ],
)
def test_others_are_refused_by_name(config, said):
    with pytest.raises(BadInputError, match=re.escape(said)):
        gguf_family_of(config)
