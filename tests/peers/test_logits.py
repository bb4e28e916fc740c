"""Artifacts as transformers + optimum + gptqmodel compute them: the independent reader of what is written."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from pipeline.artifacts import dequantized
from safetensors.torch import load_file, save_file
from tiny import VARIANTS, make_model, token_ids
from transformers import AutoConfig, AutoModelForCausalLM

from quantkit.pipeline.gptq import run
from quantkit.pipeline.job import prepare
from quantkit.recipe import Calibration, Recipe
from quantkit.weights.source import open_folder

ROOT = Path(__file__).parents[2]
PEER_PYTHON = ROOT / ".venv-peers" / "bin" / "python"
pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(not PEER_PYTHON.exists(), reason="the peers are not installed: make peers"),
]

# Both sides compute in float16. The kernel rounds a product before it adds the bias, transformers behind it,
# and then one float16 model is as far from the other as from float32: 2e-3. The controls lie above both.
TOLERANCE = 3e-4
TOLERANCE_OF_BIASES = 2.5e-3
RECIPES = {
    **{
        f"{bits}bit-{'sym' if symmetric else 'asym'}": {"bits": bits, "symmetric": symmetric}
        for bits in (2, 3, 4, 8)
        for symmetric in (True, False)
    },
    "group-32": {"group_size": 32},
    "per-row-rtn": {"method": "rtn", "group_size": -1, "scales": "minmax"},
    "permuted-groups": {"act_order": "full", "group_size": 64},
    "down-kept": {"skip": ("lm_head", "*.down_proj")},
    "first-qkv-kept": {"rules": ("model.layers.0.self_attn.q_proj=skip",)},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "model"
    return make_model(folder, "LlamaForCausalLM", dtype=torch.bfloat16, hidden_size=256, intermediate_size=512)


@pytest.fixture(scope="module")
def artifacts(base, tmp_path_factory) -> dict[str, Path]:
    """Every recipe's artifact, one of every architecture, and copies of the 4-bit one with a fault each."""
    folder = tmp_path_factory.mktemp("artifacts")
    made = {name: _quantized(base, folder / name, **fields) for name, fields in RECIPES.items()}
    for name, (architecture, config) in VARIANTS.items():
        source = make_model(folder / f"{name}-source", architecture, dtype=torch.bfloat16, **config)
        made[name] = _quantized(source, folder / name, group_size=32)
    made["control-zero"] = _faulty(made["4bit-sym"], folder / "control-zero", "self_attn.v_proj.qzeros", _one_more)
    made["control-scale"] = _faulty(
        made["4bit-sym"], folder / "control-scale", "self_attn.v_proj.scales", lambda scales: scales * 1.01
    )
    return made


@pytest.fixture(scope="module")
def peer_logits(artifacts, tmp_path_factory) -> dict[str, np.ndarray]:
    """All artifacts through one process of the peers' environment."""
    folder = tmp_path_factory.mktemp("logits")
    (folder / "ids.json").write_text(json.dumps(token_ids(4, 64).tolist()))
    pairs = [text for name, path in artifacts.items() for text in (str(path), str(folder / f"{name}.npy"))]
    script = Path(__file__).parent / "logits.py"
    done = subprocess.run(
        [PEER_PYTHON, script, folder / "ids.json", *pairs], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {name: np.load(folder / f"{name}.npy") for name in artifacts}


def _quantized(source: Path, output: Path, **fields) -> Path:
    recipe = Recipe(calibration=Calibration(samples=8, sequence_length=64), **fields)
    return run(prepare(str(source), recipe, output=output, device="cpu")).output


def _reference(artifact: Path) -> np.ndarray:
    """Logits of a plain model in float16 that holds the artifact's dequantized weights."""
    config = AutoConfig.from_pretrained(artifact, trust_remote_code=False)
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float16).eval()
    source = dequantized(artifact)
    state = {name: source.read(name) for name in source.infos}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert (set(missing), unexpected) == ({"lm_head.weight"} if config.tie_word_embeddings else set(), [])
    model.tie_weights()
    with torch.no_grad():
        return model(token_ids(4, 64), use_cache=False).logits.float().numpy()


def _difference(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def _faulty(artifact: Path, copy: Path, suffix: str, change) -> Path:
    shutil.copytree(artifact, copy)
    tensors = load_file(copy / "model.safetensors")
    name = next(name for name in tensors if name.endswith(suffix))
    tensors[name] = change(tensors[name])
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


def _one_more(qzeros: torch.Tensor) -> torch.Tensor:
    """Every 4-bit field plus one: stored 7 becomes 8, with no carry into its neighbour."""
    return qzeros + 0x11111111


@pytest.mark.parametrize("name", [*RECIPES, *VARIANTS])
def test_peers_compute_the_dequantized_model(name, artifacts, peer_logits):
    stored = open_folder(artifacts[name]).source.infos
    biased = any(tensor.endswith(".qweight") and tensor.replace("qweight", "bias") in stored for tensor in stored)
    tolerance = TOLERANCE_OF_BIASES if biased else TOLERANCE
    assert _difference(peer_logits[name], _reference(artifacts[name])) < tolerance


@pytest.mark.parametrize("name", ["control-zero", "control-scale"])
def test_a_fault_in_one_tensor_is_seen(name, artifacts, peer_logits):
    assert _difference(peer_logits[name], _reference(artifacts["4bit-sym"])) > 2 * TOLERANCE_OF_BIASES
