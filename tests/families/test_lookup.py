"""From config.json to a family, or to a sentence that names what is in the way."""

import pytest
from tiny import OWN, SHAPE

from quantkit.errors import BadInputError
from quantkit.families import FAMILIES
from quantkit.families.lookup import artifact_config, family_of


@pytest.mark.parametrize("architecture", OWN)
def test_known_architectures_have_a_family(architecture):
    assert architecture in family_of({"architectures": [architecture]}).architectures


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"architectures": None},
        {"architectures": []},
        {"architectures": [None]},
        {"architectures": [["LlamaForCausalLM"]]},
        {"architectures": "LlamaForCausalLM"},
        {"architectures": {"LlamaForCausalLM": 1}},
        {"model_type": "llama", "auto_map": {"AutoModelForCausalLM": "modeling.Llama"}},
    ],
)
def test_a_config_without_architectures_is_refused(config):
    with pytest.raises(BadInputError, match=r"config\.json names no architecture") as caught:
        family_of(config)
    assert '"architectures": ["LlamaForCausalLM"]' in caught.value.hint


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "T5ForConditionalGeneration", "Lla", "", "🦙", "x" * 1000])
def test_an_unknown_architecture_is_named_with_those_that_are_known(name):
    with pytest.raises(BadInputError) as caught:
        family_of({"architectures": [name]})
    assert f"architecture {name} is not one quantkit knows" in str(caught.value)
    for family in FAMILIES:
        assert family.model_class in caught.value.hint


@pytest.mark.parametrize(
    ("name", "near"), [("LlamaForCausaLM", "LlamaForCausalLM"), ("Qwen2ForCausallm", "Qwen2ForCausalLM")]
)
def test_a_slip_of_the_pen_is_told_the_nearest(name, near):
    with pytest.raises(BadInputError, match=f"{name} is not one quantkit knows; the nearest is {near}"):
        family_of({"architectures": [name]})


@pytest.mark.parametrize(
    ("name", "key", "experts"),
    [
        ("MixtralForCausalLM", "num_local_experts", 8),
        ("Qwen3MoeForCausalLM", "num_experts", 128),
        ("DeepseekV3ForCausalLM", "n_routed_experts", 256),
    ],
)
def test_a_mixture_of_experts_is_called_one(name, key, experts):
    with pytest.raises(BadInputError, match=f"{name} is a mixture of experts .{key}: {experts}.; not supported yet"):
        family_of({"architectures": [name], key: experts})


def test_no_experts_are_no_mixture():
    with pytest.raises(BadInputError, match="GPT2LMHeadModel is not one quantkit knows"):
        family_of({"architectures": ["GPT2LMHeadModel"], "num_experts": 0})


@pytest.mark.parametrize("method", ["gptq", "awq", "fp8"])
def test_a_quantized_checkpoint_is_refused_by_its_method(method):
    with pytest.raises(BadInputError, match=rf"already quantized \({method}\)") as caught:
        family_of({"architectures": ["LlamaForCausalLM"], "quantization_config": {"quant_method": method}})
    assert "16-bit checkpoint" in caught.value.hint


def test_a_quantized_checkpoint_may_not_say_how():
    with pytest.raises(BadInputError, match=r"already quantized \(an unknown method\)"):
        family_of({"architectures": ["LlamaForCausalLM"], "quantization_config": {"bits": 4}})


@pytest.mark.parametrize("value", ["gptq", ["gptq"], 4])
def test_a_quantization_config_of_any_form_is_refused(value):
    with pytest.raises(BadInputError, match="already quantized"):
        family_of({"architectures": ["LlamaForCausalLM"], "quantization_config": value})


def test_null_is_no_quantization_config():
    assert family_of({"architectures": ["LlamaForCausalLM"], "quantization_config": None}).name == "llama"


def test_the_artifact_keeps_the_config_but_for_remote_code():
    config = {"architectures": ["Qwen2ForCausalLM"], "auto_map": {"AutoConfig": "a.B"}, "model_type": "qwen2", **SHAPE}
    before = dict(config)
    found = artifact_config(family_of(config), config)
    assert found == {key: value for key, value in config.items() if key != "auto_map"}
    assert config == before


def test_the_artifact_of_an_alias_names_the_class_that_loads_it():
    config = {"architectures": ["LLaMAForCausalLM"], "model_type": "llama", **SHAPE}
    assert artifact_config(family_of(config), config)["architectures"] == ["LlamaForCausalLM"]
