"""A config.json that says what no model is: named by key, before anything is built from it."""

import json
import math

import pytest
from spoil import Case, config, table
from transformers import AutoConfig
from transformers.activations import ACT2CLS
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from quantkit.errors import BadInputError
from quantkit.families.checks import ACTIVATIONS, LARGEST, MAY_BE_NULL, ROPE_NEEDS, check_config, refusal

BY_THE_FIRST_LOOK = True  # unless a case is `late`
PUBLISHED = "compare it with the config.json that the checkpoint was published with"
QWEN = "Qwen2ForCausalLM"


def of(key, value, expected, name=None):
    """A key with a value that is refused in the words of `expected`."""
    shown = repr(value) if len(repr(value)) <= 60 else repr(value)[:57] + "..."
    says = (f"config.json: found {key} {shown}, expected {expected}",)
    return Case(name or f"{key}-{shown}", config(**{key: value}), says, hint=PUBLISHED)


def size(key, value):
    return of(key, value, f"a whole number from 1 to {LARGEST[key]}")


@table(
    size("num_attention_heads", 0),
    size("num_attention_heads", -4),
    size("num_attention_heads", 4.0),
    size("num_attention_heads", "4"),
    size("num_attention_heads", True),
    size("num_attention_heads", None),
    size("num_key_value_heads", 0),
    size("num_key_value_heads", -2),
    size("hidden_size", 0),
    size("hidden_size", -128),
    size("hidden_size", 10**12),
    size("hidden_size", 10**30),
    size("hidden_size", [128]),
    size("hidden_size", "wide"),
    size("intermediate_size", 0),
    size("intermediate_size", 10**12),
    size("num_hidden_layers", 0),
    size("num_hidden_layers", -1),
    size("num_hidden_layers", 2.5),
    size("num_hidden_layers", 10**6),
    size("num_hidden_layers", 10**12),
    size("vocab_size", 0),
    size("vocab_size", -1),
    size("vocab_size", 10**12),
    size("head_dim", 0),
    size("head_dim", -32),
    size("max_position_embeddings", 0),
    size("max_position_embeddings", -5),
    size("max_position_embeddings", "long"),
    size("max_position_embeddings", 10**15),
    size("sliding_window", -1),
    size("num_labels", 10**9),
    of("num_key_value_heads", 8, "a divisor of the 4 attention heads"),
    of("num_key_value_heads", 3, "a divisor of the 4 attention heads"),
    of("rms_norm_eps", 0, "a number above 0"),
    of("rms_norm_eps", -1e-5, "a number above 0"),
    of("rms_norm_eps", math.nan, "a finite number"),
    of("rms_norm_eps", "small", "a number above 0"),
    of("rope_theta", 0, "a number above 0"),
    of("rope_theta", -1e4, "a number above 0"),
    of("rope_theta", math.inf, "a finite number"),
    of("rope_theta", True, "a number above 0"),
    of("rope_scaling", "linear", "an object or null"),
    of("rope_scaling", [], "an object or null"),
    of("pad_token_id", 10**6, "an id below vocab_size 512"),
    of("torch_dtype", "float99", "float32, float16 or bfloat16"),
    of("torch_dtype", 7, "float32, float16 or bfloat16"),
    of("dtype", ["bfloat16"], "float32, float16 or bfloat16"),
    of("quantized_by", math.nan, "a finite number", name="a-nan-anywhere"),
)
def test_a_size_or_number_that_no_model_has(case, refused):
    refused(case)


def rope(key, value, expected, **more):
    settings = {"rope_type": "linear", "factor": 2.0, key: value, **more}
    says = (f"config.json: found rope_scaling.{key} {value!r}, expected {expected}",)
    return Case(f"{key}-{value!r}", config(rope_scaling=settings), says, hint=PUBLISHED)


FACTOR = "a number above 0, at most 1048576"


@table(
    rope("factor", 0, FACTOR),
    rope("factor", -2, FACTOR),
    rope("factor", 1e30, FACTOR),
    rope("factor", "x", FACTOR),
    rope("factor", math.nan, FACTOR),
    rope("original_max_position_embeddings", 0, "a number above 0"),
    rope("long_factor", [1.0, math.inf], "a list of numbers above 0"),
    rope("short_factor", ["x"], "a list of numbers above 0"),
    Case(
        "one-level-deeper",
        config(rope_parameters={"full_attention": {"rope_type": "default", "rope_theta": -1.0}}, rope_theta=...),
        ("config.json: found rope_parameters.full_attention.rope_theta -1.0, expected a number above 0",),
    ),
    Case(
        "a-type-that-is-not-known",
        config(rope_scaling={"rope_type": "nonsense", "factor": 2.0}),
        ("found rope_scaling.rope_type 'nonsense', expected default, linear, dynamic, yarn, longrope, llama3",),
    ),
    Case(
        "a-type-of-two",
        config(rope_scaling={"type": ["yarn"]}),
        ("found rope_scaling.type ['yarn'], expected default",),
    ),
    Case(
        "without-its-factor",
        config(rope_scaling={"type": "dynamic"}),
        ("found rope_scaling {'type': 'dynamic'}, expected factor beside type 'dynamic'",),
    ),
)
def test_rotary_settings_that_make_no_sense(case, refused):
    refused(case)


@table(
    Case("heads", config(num_attention_heads=3), ("found hidden size 128 with 3 heads, expected a multiple",)),
    Case("hidden", config(hidden_size=130), ("found hidden size 130 with 4 heads, expected a multiple",)),
    Case("other-width", config(hidden_size=64), ("model.embed_tokens.weight", "is [512, 128]", "asks for [512, 64]")),
    Case("other-depth", config(num_hidden_layers=3), ("tensor model.layers.2.", "is missing from the checkpoint")),
    Case("less-depth", config(num_hidden_layers=1), ("tensor model.layers.1.", "no place in a llama model of 1")),
    Case("other-mlp", config(intermediate_size=288), ("mlp.", "config.json asks for [128, 288]")),
    Case("other-vocabulary", config(vocab_size=600), ("model.embed_tokens.weight", "config.json asks for [600, 128]")),
    Case("other-kv-heads", config(num_key_value_heads=4), ("k_proj.weight", "is [64, 128]", "asks for [128, 128]")),
    Case("biases", config(attention_bias=True), ("q_proj.bias [128] is missing from the checkpoint",)),
    Case("odd-head", config(head_dim=33), ("k_proj.weight", "config.json asks for [66, 128]")),
)
def test_shapes_that_contradict_the_config(case, refused):
    refused(case)


@table(
    Case("none", config(architectures=...), ("config.json names no architecture",), hint='"architectures": ["Llama'),
    Case("an-empty-list", config(architectures=[]), ("config.json names no architecture",)),
    Case("a-text", config(architectures="LlamaForCausalLM"), ("config.json names no architecture",)),
    Case("a-number", config(architectures=[3]), ("config.json names no architecture",)),
    Case("unknown", config(architectures=["MambaForCausalLM"]), ("MambaForCausalLM is not one",), hint="known: "),
    Case("nearly", config(architectures=["LlamaForCausalML"]), ("LlamaForCausalML", "nearest is LlamaForCausalLM")),
    Case(
        "of-another-model",
        config(model_type="gpt2"),
        ("config.json: found model_type 'gpt2', expected 'qwen2', as Qwen2ForCausalLM has it",),
        architecture=QWEN,
    ),
    Case(
        "no-model-type",
        config(model_type=...),
        ("found model_type None, expected 'qwen2'",),
        architecture=QWEN,
    ),
    Case(
        "quantized",
        config(quantization_config={"quant_method": "awq"}),
        ("this checkpoint is already quantized (awq)",),
        hint="start from the 16-bit checkpoint",
    ),
    Case("quantized-somehow", config(quantization_config={}), ("already quantized (an unknown method)",)),
    Case("an-activation", config(hidden_act="swoosh"), ("found hidden_act 'swoosh', expected silu, gelu or another",)),
    Case("an-activation-of-two", config(hidden_act=["silu"]), ("found hidden_act ['silu'], expected silu",)),
    Case("a-truth-value", config(tie_word_embeddings="yes"), ("tie_word_embeddings 'yes', expected true or false",)),
    Case("a-label", config(id2label={"a": "b"}), ("found id2label {'a': 'b'}, expected labels by their numbers",)),
)
def test_another_model_than_it_says(case, refused):
    refused(case)


@pytest.mark.parametrize("key", MAY_BE_NULL)
def test_what_may_be_null_may_be(key):
    check_config({key: None})


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3", "phi3", "gemma2", "gemma3_text", "xglm"])
def test_what_transformers_writes_for_a_family_is_accepted(model_type):
    check_config(json.loads(AutoConfig.for_model(model_type).to_json_string(use_diff=False)))


def test_a_long_value_is_cut():
    with pytest.raises(BadInputError) as caught:
        check_config({"hidden_size": 10**4000})
    assert len(str(caught.value)) < 200


def test_a_refusal_of_a_library_is_one_short_line():
    assert refusal(ValueError("first\n   second " + "x" * 500), {}) == ("first second " + "x" * 500)[:197] + "..."
    assert refusal(KeyError("silly"), {"a": {"b": "silly"}}) == "it does not know a.b 'silly'"
    assert refusal(KeyError("silly"), {"a": "other"}) == "'silly'"
    assert refusal(ValueError(), {}) == "ValueError"


def test_the_tables_of_choices_are_those_of_transformers():
    """A word that is missing here would be refused although transformers knows it."""
    assert set(ACTIVATIONS) == set(ACT2CLS)
    assert set(ROPE_NEEDS) == {"default", "su", "mrope", *ROPE_INIT_FUNCTIONS}
