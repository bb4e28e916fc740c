"""From config.json to a family, or to a sentence that names what is in the way."""

import re
from pathlib import Path

import pytest
from tiny import OWN, SHAPE, own_config

from quantkit.errors import BadInputError
from quantkit.families import FAMILIES
from quantkit.families.lookup import artifact_config, family_of, first_transformers
from quantkit.formats.gptq_config import FIRST_TRANSFORMERS
from quantkit.versions import newest


@pytest.mark.parametrize("architecture", OWN)
def test_known_architectures_have_a_family(architecture):
    assert architecture in family_of({"architectures": [architecture]}).architectures


# What the config.json of published checkpoints says, and the family that reads them.
PUBLISHED = [
    ("Yi-34B-Chat", {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, "llama"),
    ("vicuna-7b-v1.1", {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, "llama"),
    ("early 2023 conversions", {"architectures": ["LLaMAForCausalLM"], "model_type": "llama"}, "llama"),
    ("Qwen2.5-72B-Instruct", {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}, "qwen2"),
    ("Phi-4-mini-instruct", {"architectures": ["Phi3ForCausalLM"], "model_type": "phi3"}, "phi3"),
    ("gemma-3-1b-it", {"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text"}, "gemma3"),
    ("glm-4-9b-chat-hf", {"architectures": ["GlmForCausalLM"], "model_type": "glm"}, "glm"),
    ("GLM-4-32B-0414", {"architectures": ["Glm4ForCausalLM"], "model_type": "glm4"}, "glm4"),
    ("xglm-7.5B", {"architectures": ["XGLMForCausalLM"], "model_type": "xglm"}, "xglm"),
    (
        "XVERSE-13B",
        {
            "architectures": ["XverseForCausalLM"],
            "auto_map": {"AutoModelForCausalLM": "modeling_xverse.XverseForCausalLM"},
        },
        "xverse",
    ),
]


@pytest.mark.parametrize(("name", "config", "family"), PUBLISHED, ids=[name for name, _, _ in PUBLISHED])
def test_published_checkpoints_have_their_family(name, config, family):
    assert family_of(config).name == family


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


@pytest.mark.parametrize("part", ["text_config", "ffn_config"])
def test_a_mixture_of_experts_may_say_so_in_a_part_of_its_configuration(part):
    with pytest.raises(BadInputError, match=r"DbrxForCausalLM is a mixture of experts .moe_num_experts: 16."):
        family_of({"architectures": ["DbrxForCausalLM"], part: {"moe_num_experts": 16}})


@pytest.mark.parametrize(
    ("name", "key", "inputs"),
    [
        ("Gemma3ForConditionalGeneration", "vision_config", "images"),
        ("Qwen2_5_VLForConditionalGeneration", "vision_config", "images"),
        ("Qwen2AudioForConditionalGeneration", "audio_config", "sound"),
    ],
)
def test_a_model_that_reads_more_than_text_is_refused_as_one(name, key, inputs):
    sentence = f"{name} also reads {inputs} .{key}.; only text models are supported yet"
    with pytest.raises(BadInputError, match=sentence) as caught:
        family_of({"architectures": [name], key: {"hidden_size": 1152}, "text_config": {"hidden_size": 2560}})
    assert "language model" in caught.value.hint


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


@pytest.mark.parametrize(
    ("architecture", "oldest"),
    [("LlamaForCausalLM", "4.28"), ("Glm4ForCausalLM", "4.51.3"), ("XGLMForCausalLM", "4.17")],
)
def test_an_old_configuration_needs_the_class_alone(architecture, oldest):
    config = own_config(architecture)
    assert first_transformers(family_of({"architectures": [architecture]}), config) == oldest


@pytest.mark.parametrize(
    ("rope", "oldest"),
    [
        ({}, "4.51"),
        ({"rope_theta": 1e6}, "4.51"),
        ({"rope_parameters": None}, "4.51"),
        ({"rope_theta": 1e6, "rope_parameters": {"rope_theta": 1e6}}, "4.51"),
        ({"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}, "5.0"),  # 4.x would take 10000
    ],
)
def test_settings_that_older_versions_overlook_raise_the_number(rope, oldest):
    assert first_transformers(family_of({"architectures": ["Qwen3ForCausalLM"]}), SHAPE | rope) == oldest


def test_the_page_of_families_has_their_names_and_versions():
    page = (Path(__file__).parents[2] / "docs" / "families.md").read_text("utf-8")
    rows = re.findall(r"^\| (\w+) \| (`.+?`) \| ([\d.]+) \|", page, re.MULTILINE)
    assert rows == [
        (
            family.name,
            ", ".join(f"`{name}`" for name in family.architectures),
            newest(FIRST_TRANSFORMERS, family.first_transformers),
        )
        for family in FAMILIES
    ]
