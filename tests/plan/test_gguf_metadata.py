"""The metadata of a GGUF file: the settings of every family, and what the file says of itself."""

import math

import gguf
import pytest
from gguf_files import Planned
from gguf_variants import LINEAR, LONG, NAMES, YARN, make
from tiny import make_model

from quantkit.basecard import front_matter
from quantkit.plan.gguf_card import card_values, naming
from quantkit.plan.gguf_metadata import hyperparameters, metadata


def told(folder, architecture, **config):
    planned = Planned(make_model(folder, architecture, **config))
    return {key: value.value for key, value in hyperparameters(planned.gguf, planned.config).items()}


def test_a_llama_has_the_keys_that_llama_cpps_converter_writes(tmp_path):
    """The literal is what conversion/llama.py wrote for the same checkpoint."""
    planned = Planned(make_model(tmp_path))
    named = naming("tiny/Tiny", {row.name: row.shape for row in planned.rows})
    found = {key: value.value for key, value in metadata(planned.gguf, planned.config, named, 1).items()}
    epsilon = found.pop("llama.attention.layer_norm_rms_epsilon")
    assert math.isclose(epsilon, 1e-5)
    assert found == {
        "general.architecture": "llama",
        "general.type": "model",
        "general.name": "Tiny",
        "general.organization": "Tiny",
        "general.size_label": "427K",
        "general.quantization_version": 2,
        "general.file_type": 1,
        "llama.block_count": 2,
        "llama.context_length": 512,
        "llama.embedding_length": 128,
        "llama.feed_forward_length": 256,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 32,
        "llama.attention.value_length": 32,
        "llama.vocab_size": 512,
        "llama.rope.dimension_count": 32,
        "llama.rope.freq_base": 10000.0,
    }


@pytest.mark.parametrize("name", NAMES)
def test_every_key_is_one_of_llama_cpps_and_has_its_type(name, tmp_path):
    known = {
        value
        for part in (gguf.Keys.LLM, gguf.Keys.Attention, gguf.Keys.Rope)
        for value in vars(part).values()
        if isinstance(value, str)
    }
    planned = Planned(make(tmp_path / "model", name))
    for key, value in hyperparameters(planned.gguf, planned.config).items():
        assert f"{{arch}}.{key}" in known
        python = {"uint32": int, "float32": float, "string": str, "bool": bool}[value.kind]
        assert {type(item) for item in (value.value if value.is_array else [value.value])} == {python}, key


ROPE = {
    "linear": (LINEAR, {"type": "linear", "factor": 4.0}),
    "yarn": (YARN, {"type": "yarn", "factor": 8.0, "original_context_length": 64}),
    "yarn with a factor of its own": (
        YARN | {"attention_factor": 1.5},
        {"type": "yarn", "factor": 8.0, "original_context_length": 64, "attn_factor": 1.5 / (1 + 0.1 * math.log(8))},
    ),
    "longrope": (
        LONG,
        {
            "type": "longrope",
            "original_context_length": 16,
            "attn_factor": math.sqrt(1 + math.log(8) / math.log(16)),
        },
    ),
    "dynamic": ({"rope_type": "dynamic", "factor": 2.0}, {}),
}


@pytest.mark.parametrize("name", ROPE)
def test_rotary_scaling(name, tmp_path):
    rope, expected = ROPE[name]
    found = told(tmp_path, "LlamaForCausalLM", rope_scaling=rope)
    prefix = "rope.scaling."
    found = {key.removeprefix(prefix): value for key, value in found.items() if key.startswith(prefix)}
    assert found == pytest.approx(expected)


def test_gemma3_rotates_windowed_layers_by_another_base(tmp_path):
    found = told(tmp_path, "Gemma3ForCausalLM")
    assert found["rope.freq_base"] == 1e6
    assert found["rope.freq_base_swa"] == 1e4
    assert found["attention.sliding_window"] == 8
    assert found["attention.sliding_window_pattern"] == (True, False)
    assert found["attention.key_length"] == 64


@pytest.mark.parametrize(
    ("architecture", "every"), [("Gemma2ForCausalLM", 2), ("Gemma3ForCausalLM", 6), ("Cohere2ForCausalLM", 4)]
)
def test_the_usual_pattern_of_windows_is_not_written(architecture, every, tmp_path):
    found = told(tmp_path, architecture, num_hidden_layers=2 * every, layer_types=None)
    assert found["attention.sliding_window"] == 8
    assert "attention.sliding_window_pattern" not in found


def test_without_windowed_layers_there_is_no_window(tmp_path):
    found = told(tmp_path, "Gemma3ForCausalLM", layer_types=["full_attention"] * 2)
    assert not [key for key in found if "sliding" in key]


def test_phi3_always_has_a_window_and_an_original_context(tmp_path):
    found = told(tmp_path, "Phi3ForCausalLM", partial_rotary_factor=0.75, hidden_size=256)
    assert found["attention.sliding_window"] == 0
    assert found["rope.scaling.original_context_length"] == 4096
    assert found["rope.dimension_count"] == 48


NAMING = {
    "xverse/XVERSE-13B-Chat": 13.7e9,
    "meta-llama/Llama-3.2-1B-Instruct": 1.2e9,
    "Salesforce/xgen-7b-8k-inst": 6.9e9,
    "mistralai/Mixtral-8x7B-Instruct-v0.1": 46e9,
    "Qwen/Qwen2.5-0.5B": 5e8,
    "Qwen/Qwen3-30B-A3B": 30e9,
    "examples/tiny-llama": 4e6,
    "facebook/xglm-564M": 5.6e8,
    "microsoft/Phi-3-mini-4k-instruct": 3.8e9,
    "google/gemma-2-9b-it": 9.2e9,
    "THUDM/GLM-4-9B-0414": 9.4e9,
    "allenai/OLMo-2-1124-7B": 7e9,
    "CohereForAI/c4ai-command-r7b-12-2024": 8e9,
    "Xwin-LM/Xwin-LM-70B-V0.1": 69e9,
    "someone/a-small-model": 1e8,
    "someone/words-v2": 1e9,
}


@pytest.mark.parametrize("reference", NAMING)
def test_names_come_apart_as_in_the_gguf_library(reference):
    parameters = int(NAMING[reference])
    _, _, basename, finetune, version, size = gguf.Metadata.get_model_id_components(reference, parameters)
    found = naming(reference, {"a": (parameters,)})
    assert (found.basename, found.finetune, found.version) == (basename, finetune, version)
    assert found.size_label == size or gguf.size_label(parameters, parameters, 0, 0)
    assert found.name == gguf.Metadata.id_to_title(reference.partition("/")[2])


def test_a_name_is_a_file_name():
    shapes = {"blk.0.ffn_up_exps.weight": (8, 1000, 1000), "token_embd.weight": (2000, 1000)}
    found = naming("xverse/XVERSE-13B-Chat", {"a": (13_700_000_000,)})
    assert found.file_name("Q4_K_M") == "XVERSE-13B-Chat-Q4_K_M.gguf"
    assert naming("tiny-llama", {"a": (4_194_304,)}).file_name("F16") == "tiny-llama-4.2M-F16.gguf"
    assert (
        naming("org/experts", shapes, experts=8).size_label == gguf.size_label(10**7, 2 * 10**6, 10**6, 8) == "8x3.0M"
    )
    assert naming("org/XVERSE-13B-256K", {"a": (13_700_000_000,)}).finetune == "256K"
    for parameters in (999, 4_194_304, 99_500_000, 999_999_999, 13_715_000_000, 2 * 10**12):
        assert naming("a", {"a": (parameters,)}).size_label == gguf.size_label(parameters, 0, 0, 0)


CARD = """---
license: other
license_name: xverse-agreement
license_link: https://example.org/MODEL_LICENSE.pdf
language:
- en
- no
base_model: xverse/XVERSE-13B
datasets: [org/texts, https://huggingface.co/datasets]
tags:
- chat
- 7
pipeline_tag: text-generation
model_name: 1.10
---
# XVERSE
"""


def test_the_card_says_licence_languages_and_parents():
    found = naming("xverse/XVERSE-13B-Chat", {"a": (13_700_000_000,)}, on_hub=True)
    values = card_values(found, front_matter(CARD), {"temperature": 0.5, "top_k": 30, "top_p": True})
    assert {key: value.value for key, value in values.items()} == {
        "sampling.temp": 0.5,
        "sampling.top_k": 30,
        "name": "XVERSE 13B Chat",
        "organization": "Xverse",
        "finetune": "Chat",
        "basename": "XVERSE",
        "size_label": "13B",
        "license": "other",
        "license.name": "xverse-agreement",
        "license.link": "https://example.org/MODEL_LICENSE.pdf",
        "source.repo_url": "https://huggingface.co/xverse/XVERSE-13B-Chat",
        "base_model.count": 1,
        "base_model.0.name": "XVERSE 13B",
        "base_model.0.organization": "Xverse",
        "base_model.0.repo_url": "https://huggingface.co/xverse/XVERSE-13B",
        "dataset.count": 2,
        "dataset.0.name": "Texts",
        "dataset.0.organization": "Org",
        "dataset.0.repo_url": "https://huggingface.co/datasets/org/texts",
        "dataset.1.repo_url": "https://huggingface.co/datasets",
        "tags": ("chat", "7", "text-generation"),
        "languages": ("en", "no"),
    }
    kinds = {value.kind for value in values.values()}
    assert kinds == {"string", "uint32", "int32", "float32"}


@pytest.mark.parametrize(
    "card", ["", "# no front matter", "---\n", "---\n- a\n- b\n---\n", "---\na: [\n---\n", "---\na: !!python/name:os\n"]
)
def test_a_card_that_cannot_be_read_says_nothing(card):
    assert front_matter(card) == {}


@pytest.mark.parametrize("value", [None, 3, {"a": "b"}, [["nested"]], [None, 1.5], True])
def test_odd_values_of_a_card_are_left_out(value):
    found = card_values(
        naming("a", {"a": (1000,)}), dict.fromkeys(("license", "language", "base_model", "tags"), value)
    )
    assert not [key for key in found if key.startswith(("languages", "license", "tags", "base_model"))]
