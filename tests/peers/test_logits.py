"""Artifacts as transformers + optimum + gptqmodel compute them: the independent reader of what is written."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import make_model, token_ids
from transformers import AutoModelForCausalLM

from quantkit.formats.gptq_source import DequantizedSource
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

# Float16 activations give 5e-4 to 1e-3. The controls below must all lie above the tolerance.
TOLERANCE = 2e-3
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
    """Every recipe's artifact, and copies of the 4-bit one with a fault each."""
    folder = tmp_path_factory.mktemp("artifacts")
    made = {}
    for name, fields in RECIPES.items():
        recipe = Recipe(calibration=Calibration(samples=8, sequence_length=64), **fields)
        made[name] = run(prepare(str(base), recipe, output=folder / name, device="cpu")).output
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


def _reference(base: Path, artifact: Path) -> np.ndarray:
    """float32 logits of a plain model that holds the artifact's dequantized weights."""
    opened = open_folder(artifact)
    source = DequantizedSource(opened.source, dict(opened.config["quantization_config"]))
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, trust_remote_code=False).eval()
    state = {name: source.read(name).float() for name in source.infos}
    model.load_state_dict(state, strict=True)
    with torch.no_grad():
        return model(token_ids(4, 64)).logits.numpy()


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


@pytest.mark.parametrize("name", RECIPES)
def test_peers_compute_the_dequantized_model(name, base, artifacts, peer_logits):
    assert _difference(peer_logits[name], _reference(base, artifacts[name])) < TOLERANCE


@pytest.mark.parametrize("name", ["control-zero", "control-scale"])
def test_a_fault_in_one_tensor_is_seen(name, base, artifacts, peer_logits):
    assert _difference(peer_logits[name], _reference(base, artifacts["4bit-sym"])) > 1.5 * TOLERANCE
