"""The rows of a GGUF file: their order and shapes, what is refused, what is only noted."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from gguf_files import Planned, make_experts
from gguf_variants import NAMES, make
from tiny import LLAMA3_ROPE, make_model
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from quantkit.errors import BadInputError
from quantkit.plan.gguf_limits import differences
from quantkit.plan.gguf_rows import gguf_rows
from quantkit.tensors import TensorInfo


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return Planned(make_model(tmp_path_factory.mktemp("llama"), num_hidden_layers=11))


def rows_of(planned, infos):
    return gguf_rows(planned.family, planned.gguf, planned.config, infos)


def test_rows_stand_in_the_order_of_llama_cpps_files(llama):
    names = [row.name for row in llama.rows]
    assert names[:4] == ["output.weight", "output_norm.weight", "token_embd.weight", "blk.0.attn_k.weight"]
    layers = [int(name.split(".")[1]) for name in names if name.startswith("blk.")]
    assert layers == sorted(layers)
    assert layers[-1] == 10
    assert names[3:12] == sorted(names[3:12])
    shapes = {row.name: row.shape for row in llama.rows}
    assert shapes["blk.10.attn_k.weight"] == (64, 128)
    assert shapes["blk.10.ffn_norm.weight"] == (128,)


@pytest.mark.parametrize("name", NAMES)
def test_every_value_of_the_checkpoint_is_used_once(name, tmp_path):
    planned = Planned(make(tmp_path / "model", name))
    used = dict.fromkeys(planned.source.infos, 0)
    for row in planned.rows:
        assert np.prod(row.shape) == row.assembly.rows * row.assembly.columns, row.name
        for part in row.assembly.parts:
            if hasattr(part, "source"):
                used[part.source] += part.rows * row.assembly.columns
    twice = {"model.embed_tokens.weight"} if name.startswith("xglm") or name == "olmo2-tied" else set()
    for source, values in used.items():
        assert values == planned.source.infos[source].elements * (2 if source in twice else 1), source


def test_fused_experts_are_the_published_ones(tmp_path):
    plans = [Planned(make_experts(tmp_path / str(fused), "MixtralForCausalLM", fused)) for fused in (False, True)]
    published, fused = ({row.name: plan.tensor(row) for row in plan.rows} for plan in plans)
    assert published["blk.1.ffn_up_exps.weight"].shape == (4, 256, 128)
    assert published.keys() == fused.keys()
    for name, values in published.items():
        assert np.array_equal(values, fused[name]), name
    assert not np.array_equal(published["blk.1.ffn_up_exps.weight"], published["blk.1.ffn_gate_exps.weight"])


def test_factors_of_llama3_are_those_of_transformers(tmp_path):
    rope = LLAMA3_ROPE | {"original_max_position_embeddings": 512}
    planned = Planned(make_model(tmp_path, rope_scaling=rope, head_dim=128, rope_theta=500000.0))
    row = next(row for row in planned.rows if row.name == "rope_freqs.weight")
    config = LlamaConfig(head_dim=128, rope_parameters=rope | {"rope_theta": 500000.0})
    frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 500000.0 ** -(torch.arange(0, 128, 2) / 128)
    expected = (plain / frequencies).numpy()
    assert ((expected > 1.01) & (expected < 7.99)).any(), "no frequency between the two limits"
    np.testing.assert_allclose(planned.tensor(row), expected, rtol=1e-5)


def test_a_head_stored_beside_a_tied_embedding_is_not_written_twice(tmp_path):
    planned = Planned(make_model(tmp_path, layout="bin", tie_word_embeddings=True))
    assert "lm_head.weight" in planned.source.infos
    assert "output.weight" not in [row.name for row in planned.rows]


def test_rotary_tables_of_old_checkpoints_are_dropped(llama):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    infos = {**llama.source.infos, name: TensorInfo(name, "F32", (16,), "a.safetensors")}
    assert rows_of(llama, infos) == llama.rows


def test_a_missing_tensor_is_refused(llama):
    infos = dict(llama.source.infos)
    del infos["model.layers.7.mlp.up_proj.weight"]
    with pytest.raises(BadInputError, match=r"tensor model\.layers\.7\.mlp\.up_proj\.weight is missing"):
        rows_of(llama, infos)


def test_a_quantized_checkpoint_is_refused_with_a_hint(llama):
    infos = {name.replace("up_proj.weight", "up_proj.qweight"): info for name, info in llama.source.infos.items()}
    with pytest.raises(BadInputError) as refusal:
        rows_of(llama, infos)
    assert "start from the 16-bit checkpoint" in refusal.value.hint


@pytest.mark.parametrize("name", ["model.layers.11.mlp.up_proj.weight", "model.layers.3.self_attn.q_norm.weight"])
def test_a_tensor_without_a_place_is_refused(llama, name):
    infos = {**llama.source.infos, name: TensorInfo(name, "F32", (128,), "b.safetensors")}
    said = re.escape(f"architecture llama has no place for tensor {name} in b.safetensors")
    with pytest.raises(BadInputError, match=said):
        rows_of(llama, infos)


def test_heads_that_the_configuration_does_not_have_are_refused(llama):
    name = "model.layers.0.self_attn.k_proj.weight"
    infos = {**llama.source.infos, name: replace(llama.source.infos[name], shape=(128, 128))}
    with pytest.raises(BadInputError, match=r"k_proj.*is \[128, 128\], config.json asks for 2 heads of 32 rows"):
        rows_of(llama, infos)


@pytest.mark.parametrize(
    ("shape", "said"),
    [((), "expected a vector"), ((128, 0), "expected a vector"), ((2, 3, 4), r"is \[2, 3, 4\], expected \[\*, 3, 4\]")],
)
def test_shapes_that_no_module_has_are_refused(llama, shape, said):
    name = "model.layers.2.mlp.up_proj.weight"
    infos = {**llama.source.infos, name: replace(llama.source.infos[name], shape=shape)}
    with pytest.raises(BadInputError, match=said):
        rows_of(llama, infos)


def test_matrices_of_one_tensor_have_the_same_columns(tmp_path):
    planned = Planned(make(tmp_path, "xglm"))
    name = "model.layers.0.self_attn.k_proj.weight"
    for shape in ((128, 64), (128,)):
        infos = {**planned.source.infos, name: replace(planned.source.infos[name], shape=shape)}
        with pytest.raises(BadInputError, match=r"k_proj\.weight.*, expected \[\*, 128\]"):
            rows_of(planned, infos)


def test_integers_are_refused(llama):
    name = "model.norm.weight"
    infos = {**llama.source.infos, name: replace(llama.source.infos[name], dtype="I32")}
    with pytest.raises(BadInputError, match=r"model\.norm\.weight in model\.safetensors is I32"):
        rows_of(llama, infos)


def test_fewer_experts_than_stated_are_refused(tmp_path):
    planned = Planned(make_experts(tmp_path / "model", "MixtralForCausalLM", True))
    for count, said in ((5, r"is \[4, 512, 128\], expected \[5, \*, \*\] for 5 experts"), (3, "expected .3,")):
        with pytest.raises(BadInputError, match=said):
            gguf_rows(planned.family, planned.gguf, planned.config | {"num_local_experts": count}, planned.source.infos)


YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64}
INEXPRESSIBLE = {
    "smollm3": ("SmolLM3ForCausalLM", {}, "no_rope_layers [1, 0]"),
    "cohere norms": ("CohereForCausalLM", {}, "use_qk_norm true with 2 layers"),
    "gemma silu": ("GemmaForCausalLM", {}, "the activation 'silu'"),
    "xglm relu": ("XGLMForCausalLM", {"activation_function": "relu"}, "the activation 'relu'"),
    "gemma2 head": ("Gemma2ForCausalLM", {"tie_word_embeddings": False}, "a head of its own"),
    "gemma2 caps": ("Gemma2ForCausalLM", {"final_logit_softcapping": None}, "final_logit_softcapping None"),
    "gemma3 caps": ("Gemma3ForCausalLM", {"attn_logit_softcapping": 5.0}, "attn_logit_softcapping 5.0"),
    "gemma3 both ways": ("Gemma3ForCausalLM", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    "qwen2 llama3": ("Qwen2ForCausalLM", {"rope_scaling": LLAMA3_ROPE}, "rotary scaling of type 'llama3'"),
    "qwen2 heads": ("Qwen2ForCausalLM", {"head_dim": 64}, "4 heads of 64 for 128"),
    "yarn": ("LlamaForCausalLM", {"rope_scaling": YARN | {"beta_fast": 16}}, "beta_fast 16"),
    "partial": ("OlmoForCausalLM", {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "0.5"),
}


@pytest.mark.parametrize("name", INEXPRESSIBLE)
def test_what_llama_cpp_cannot_express_is_refused_by_name(name, tmp_path):
    architecture, config, said = INEXPRESSIBLE[name]
    with pytest.raises(BadInputError, match=rf"found .*{re.escape(said)}.*; llama.cpp's architecture"):
        Planned(make_model(tmp_path, architecture, **config))


@pytest.mark.parametrize(
    ("architecture", "config", "said"),
    [
        ("Qwen2MoeForCausalLM", {"norm_topk_prob": True}, "norm_topk_prob true"),
        ("Qwen3MoeForCausalLM", {"norm_topk_prob": False}, "norm_topk_prob false"),
        ("Qwen3MoeForCausalLM", {"mlp_only_layers": [0]}, "decoder_sparse_step 1 and mlp_only_layers [0]"),
    ],
)
def test_mixtures_that_llama_cpp_cannot_express_are_refused(architecture, config, said, tmp_path):
    with pytest.raises(BadInputError, match=re.escape(said)):
        Planned(make_experts(tmp_path / "model", architecture, False, **config))


@pytest.mark.parametrize("name", ["xglm"])
def test_a_decoder_of_an_encoder_is_refused(name, tmp_path):
    planned = Planned(make(tmp_path, name))
    with pytest.raises(BadInputError, match="no cross-attention"):
        gguf_rows(planned.family, planned.gguf, planned.config | {"add_cross_attention": True}, planned.source.infos)


NOTES = {
    "llama": "",
    "mistral": "up to 8 tokens",
    "mistral-everything": "",
    "qwen2": "",
    "qwen2-half-sliding": "up to 8 tokens",
    "starcoder2": "up to 8 tokens",
    "gemma2": "",
    "gemma3": "",
    "cohere2": "",
    "xglm": "llama.cpp approximates gelu by gelu_pytorch_tanh",
    "phi3-longrope": "above 16 tokens",
}


@pytest.mark.parametrize("name", NOTES)
def test_differences_that_only_some_texts_show_are_noted(name, tmp_path):
    planned = Planned(make(tmp_path, name))
    notes = differences(planned.gguf, planned.config)
    assert len(notes) == bool(NOTES[name])
    assert NOTES[name] in "".join(notes)


def test_dynamic_scaling_is_noted(tmp_path):
    planned = Planned(make_model(tmp_path, rope_scaling={"rope_type": "dynamic", "factor": 2.0}))
    assert "texts of more than 512 tokens are not stretched" in "".join(differences(planned.gguf, planned.config))
