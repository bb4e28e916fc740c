"""A GGUF file read as the checkpoint it was made from: every value comes back, and other models' files do not pass."""

import re
from dataclasses import replace

import gguf
import numpy as np
import pytest
import torch
from gguf_files import Planned, make_experts, write_gguf
from gguf_variants import NAMES, make
from tiny import LLAMA3_ROPE, make_model

import quantkit.gguf_source as module
from quantkit.errors import BadInputError
from quantkit.formats.gguf_values import dequantize
from quantkit.gguf_source import GgufSource

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def source_of(path, planned, **config):
    return GgufSource(path, planned.family, planned.gguf, planned.config | config, planned.source.infos)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    planned = Planned(make_model(folder / "model", rope_scaling=LLAMA3_ROPE))
    return planned, write_gguf(planned, folder / "llama.gguf", "F32")


@pytest.mark.parametrize("name", NAMES)
def test_a_float32_file_gives_the_checkpoint_back(name, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SLAB_WEIGHTS", 5000)  # several slabs of most tensors, one head of the widest
    planned = Planned(make(tmp_path / "model", name))
    found = source_of(write_gguf(planned, tmp_path / "model.gguf", "F32"), planned)
    own_head = {HEAD} if name.startswith("xglm") or name == "olmo2-tied" else set()
    assert found.infos.keys() == planned.source.infos.keys() | own_head
    addends = {piece.sources[0]: piece.addend for piece in (*planned.gguf.outside, *planned.gguf.layer)}
    for key, info in planned.source.infos.items():
        expected, values = planned.source.read(key), found.read(key)
        assert (found.infos[key].shape, found.infos[key].dtype) == (info.shape, "F32")
        assert values.dtype == torch.float32
        own = re.sub(r"^model\.layers\.\d+\.", "", key).removesuffix(".weight")
        if addends.get(own):
            # What is computed with is one more, and that is the same float32.
            assert torch.equal(values + 1, expected + 1) or planned.gguf.architecture == "gemma3", key
            torch.testing.assert_close(values + 1, expected + 1, rtol=2e-7, atol=0)
        elif planned.gguf.architecture in ("gemma2", "gpt2"):  # scaled and back
            torch.testing.assert_close(values, expected, rtol=2e-7, atol=0)
        else:
            assert torch.equal(values, expected), key
    for key in own_head:
        assert torch.equal(found.read(key), planned.source.read(EMBEDDING))


def test_quantized_weights_are_what_llama_cpp_computes_with(tmp_path):
    planned = Planned(make_model(tmp_path / "model"))
    path = write_gguf(planned, tmp_path / "model.gguf", "Q8_0")
    found = source_of(path, planned)
    q = "model.layers.1.self_attn.q_proj.weight"
    rows = planned.source.read(q)
    permuted = rows.reshape(4, 2, 16, 128).swapaxes(1, 2).reshape(128, 128).numpy()
    blocks = gguf.quants.quantize(permuted, gguf.GGMLQuantizationType.Q8_0)
    expected = torch.from_numpy(dequantize("Q8_0", blocks)).reshape(4, 16, 2, 128).swapaxes(1, 2).reshape(128, 128)
    assert torch.equal(found.read(q), expected)
    assert 1e-4 < (found.read(q) - rows).abs().max() < 0.02 * rows.abs().max()
    assert torch.equal(found.read("model.norm.weight"), planned.source.read("model.norm.weight"))


def test_an_expert_is_read_without_the_others(tmp_path, monkeypatch):
    planned = Planned(make_experts(tmp_path / "model", "MixtralForCausalLM", False))
    found = source_of(write_gguf(planned, tmp_path / "model.gguf", "F32"), planned)
    read, real = [], module.read_tensor
    monkeypatch.setattr(module, "read_tensor", lambda *args: read.append(args[2:]) or real(*args))
    name = "model.layers.0.block_sparse_moe.experts.2.w1.weight"
    assert torch.equal(found.read(name), planned.source.read(name))
    assert read == [(512, 768)]


def test_a_tied_models_own_head_is_a_tensor_of_its_own(tmp_path):
    planned = Planned(make_model(tmp_path / "model", layout="bin", tie_word_embeddings=True))
    plain = source_of(write_gguf(planned, tmp_path / "plain.gguf", "F32"), planned)
    assert HEAD not in plain.infos
    row = next(row for row in planned.rows if row.name == "token_embd.weight")
    planned.rows = (*planned.rows, replace(row, name="output.weight"))
    found = source_of(write_gguf(planned, tmp_path / "headed.gguf", "F32"), planned)
    assert torch.equal(found.read(HEAD), planned.source.read(EMBEDDING))
    assert found.infos[HEAD].offset != found.infos[EMBEDDING].offset


def test_a_file_of_the_architecture_xverse_is_read_too(tmp_path):
    planned = Planned(make(tmp_path / "model", "xverse"))
    planned.gguf = replace(planned.gguf, architecture="xverse")
    path = write_gguf(planned, tmp_path / "model.gguf", "F32")
    planned.gguf = replace(planned.gguf, architecture="llama")
    name = "model.layers.0.self_attn.k_proj.weight"
    assert torch.equal(source_of(path, planned).read(name), planned.source.read(name))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"num_hidden_layers": 3}, "block_count is 2, the baseline's 3"),
        ({"rms_norm_eps": 1e-6}, "layer_norm_rms_epsilon is"),
        ({"num_key_value_heads": 4}, "attention.head_count_kv is 2, the baseline's 4"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "rope.freq_base is 10000.0"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, "rope_freqs.weight has no place"),
    ],
)
def test_another_models_file_is_refused(llama, changed, said):
    planned, path = llama
    with pytest.raises(BadInputError, match="llama.gguf is not an artifact.*" + re.escape(said)):
        source_of(path, planned, **changed)


def test_another_architecture_is_refused(llama, tmp_path):
    other = Planned(make_model(tmp_path, "Qwen3ForCausalLM"))
    with pytest.raises(BadInputError, match="its architecture is 'llama', the baseline's 'qwen3'"):
        source_of(llama[1], other)


def test_other_settings_of_the_file_are_refused(llama, tmp_path):
    _, path = llama
    plain = Planned(make_model(tmp_path / "plain"))
    scaled = Planned(make_model(tmp_path / "scaled", rope_scaling={"rope_type": "linear", "factor": 4.0}))
    path = write_gguf(scaled, tmp_path / "scaled.gguf", "F32")
    with pytest.raises(BadInputError, match=r"rope\.scaling\.factor is 4\.0, the baseline's 1\.0"):
        source_of(path, plain)


def rewritten(planned, path, change):
    rows = planned.rows
    try:
        planned.rows = tuple(change(rows))
        return write_gguf(planned, path, "F32")
    finally:
        planned.rows = rows


def test_a_missing_tensor_is_refused(llama, tmp_path):
    planned, _ = llama
    name = "blk.1.ffn_up.weight"
    path = rewritten(planned, tmp_path / "a.gguf", lambda rows: [row for row in rows if row.name != name])
    with pytest.raises(BadInputError, match=re.escape(f"tensor {name} [256, 128] is missing")):
        source_of(path, planned)


def test_a_surplus_tensor_is_refused(llama, tmp_path):
    planned, _ = llama
    path = rewritten(planned, tmp_path / "a.gguf", lambda rows: [*rows, replace(rows[-1], name="blk.1.more.weight")])
    with pytest.raises(BadInputError, match=r"tensor blk\.1\.more\.weight has no place in the architecture llama"):
        source_of(path, planned)


def test_a_tensor_of_another_shape_is_refused(llama, tmp_path):
    planned, _ = llama
    named = {row.name: row for row in planned.rows}
    named["blk.1.ffn_up.weight"] = replace(named["blk.1.ffn_down.weight"], name="blk.1.ffn_up.weight")
    path = rewritten(planned, tmp_path / "a.gguf", lambda _: named.values())
    with pytest.raises(BadInputError, match=re.escape("blk.1.ffn_up.weight is [128, 256], expected [256, 128]")):
        source_of(path, planned)


def test_factors_that_the_configuration_does_not_give_are_refused(llama, tmp_path):
    planned, path = llama
    (tensor,) = [tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name == "rope_freqs.weight"]
    raw = bytearray(path.read_bytes())
    at = int(tensor.data_offset) + 4 * (tensor.n_elements - 1)
    assert np.frombuffer(raw[at : at + 4], np.float32)[0] == 8.0
    raw[at : at + 4] = np.float32(7.9).tobytes()
    changed = tmp_path / "changed.gguf"
    changed.write_bytes(raw)
    with pytest.raises(BadInputError, match=r"rope_freqs\.weight is not what the baseline's config.json gives"):
        source_of(changed, planned)
