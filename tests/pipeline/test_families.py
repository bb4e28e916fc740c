"""What single families ask of the whole pipeline, beyond the cases of test_artifact.py."""

import json
import shutil

import pytest
import torch
from pipeline.artifacts import divergence, job_of, logits, quantize, read_json, stored
from tiny import VARIANTS, make_model, token_ids, write_json

from quantkit.plan.runtime import kv_cache_bytes

SINES = "model.embed_positions.weights"


@pytest.fixture
def xglm(tmp_path):
    """As published in 2022: the table of sines stands among the weights."""
    folder = make_model(tmp_path / "xglm", "XGLMForCausalLM", torch.float16, layout="bin")
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    torch.save(weights | {SINES: torch.zeros(514, 128)}, folder / "pytorch_model.bin")
    return folder


def test_the_sines_of_xglm_are_computed_and_not_read(xglm, tmp_path):
    assert job_of(xglm, tmp_path / "out").plan.row(SINES).action == "drop"
    made = quantize(xglm, tmp_path / "out", bits=8).output
    assert SINES not in stored(made)
    weights = torch.load(xglm / "pytorch_model.bin", weights_only=True)
    torch.save({name: weights[name] for name in weights if name != SINES}, xglm / "pytorch_model.bin")
    ids = token_ids(4, 48, seed=3)
    assert divergence(logits(xglm, ids), logits(made, ids)) < 5e-3


def test_every_linear_of_xglm_keeps_its_bias(xglm, tmp_path):
    made = stored(quantize(xglm, tmp_path / "out").output)
    before = torch.load(xglm / "pytorch_model.bin", weights_only=True)
    linears = [name.removesuffix(".qweight") for name in made if name.endswith(".qweight")]
    assert len(linears) == 2 * 6
    for name in linears:
        assert torch.equal(made[name + ".bias"], before[name + ".bias"])


def test_a_linear_that_stands_in_the_layer_itself_can_be_left_out(xglm, tmp_path):
    made = quantize(xglm, tmp_path / "out", skip=["lm_head", "*.fc2"]).output
    config = read_json(made / "config.json")["quantization_config"]
    assert config["modules_in_block_to_quantize"][-1] == ["fc1"]
    assert config["dynamic"] == {r"-:(.*\.)?layers\.[0-9]+\.fc2$": {}}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_plan_knows_the_key_value_cache_of_every_family(sources, tmp_path, name):
    source = sources(name)
    job = job_of(source, tmp_path / "out")
    layers = len(job.skeleton.layers)
    keys = next(shape for full, shape in job.skeleton.linear_shapes().items() if full.endswith(("k_proj", "qkv_proj")))
    rows = keys[0] if not any("qkv" in stage for stage in job.family.linears) else keys[0] // 4  # 4 + 2 + 2 heads
    assert kv_cache_bytes(job.skeleton.sizes(), 100) == 2 * layers * rows * 2 * 100
    assert json.dumps(job.as_dict(100))


def test_rotary_settings_that_only_transformers_5_reads_are_said_to_need_it(sources, tmp_path):
    source = shutil.copytree(sources("qwen3", torch.bfloat16), tmp_path / "source")
    config = read_json(source / "config.json")
    theta = config.pop("rope_theta")
    write_json(source / "config.json", config | {"rope_parameters": {"rope_type": "default", "rope_theta": theta}})
    made = quantize(source, tmp_path / "out")
    assert made.record["first_transformers"] == "5.0"
    for file in ("quantize_config.json", "config.json"):
        stated = read_json(made.output / file)
        assert stated.get("quantization_config", stated)["meta"]["transformers"] == ">=5.0"
