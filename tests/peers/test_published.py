"""What a release has published, fetched by the plain client and loaded by transformers and by llama.cpp."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from pipeline.artifacts import dequantized
from tiny import make_model, token_ids
from transformers import AutoConfig, AutoModelForCausalLM

from quantkit.cli import _run

ROOT = Path(__file__).parents[2]
PEERS, LLAMA_CPP = (ROOT / name / "bin" / "python" for name in (".venv-peers", ".venv-peers-llama-cpp"))
pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(not (PEERS.exists() and LLAMA_CPP.exists()), reason="the peers are not installed: make peers"),
]
TEXT = {"text": ["english"], "samples": 4, "sequence_length": 64}
GATES = {"max_ppl_increase": "900%", "max_kl": 9.0, "min_top1": 0.0}
IDS = token_ids(1, 48, seed=5)
GPTQ_TOLERANCE = 3e-4  # as in test_logits.py: both sides compute in float16
# Of the norm of the logits. Beside Q8_0 llama.cpp's activations have eight bits, too: measured 4e-2 and 1e-5.
GGUF_TOLERANCES = {"F32": 1e-4, "Q8_0": 8e-2}


@pytest.fixture
def published(loopback, hub_client, tmp_path, monkeypatch):
    """The base, and the repositories of a release of it, each fetched into a folder by the plain client."""
    monkeypatch.setattr("quantkit.pipeline.machine.measure_rate", lambda *_: 1e11)
    base = make_model(tmp_path / "base", dtype=torch.bfloat16, hidden_size=256, intermediate_size=512)
    loopback.add_repo("some/tiny", {path.name: path for path in base.iterdir()})
    recipes = {
        "int4": {"method": "gptq", "group_size": 32, "calibration": TEXT, "gates": GATES},
        "q8": {"method": "gguf", "type": "Q8_0", "gates": GATES},
        "f32": {"method": "gguf", "type": "F32", "gates": GATES},
    }
    for name, recipe in recipes.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    release = {
        "base": "some/tiny",
        "variants": [{"recipe": f"{name}.yaml"} for name in recipes],
        "check": {"text": ["spanish"], "context": 256},
        "push": {"namespace": "tester"},
    }
    (tmp_path / "release.yaml").write_text(yaml.safe_dump(release))
    assert (
        _run(["release", str(tmp_path / "release.yaml"), "--out", str(tmp_path / "out"), "--device", "cpu"], False) == 0
    )
    repos = {"gptq": "tester/tiny-GPTQ-Int4-g32", "gguf": "tester/tiny-GGUF"}
    fetched = {
        kind: Path(hub_client.snapshot_download(repo, local_dir=tmp_path / f"fetched-{kind}"))
        for kind, repo in repos.items()
    }
    return base, fetched


def test_the_published_artifacts_compute_what_they_should(published, tmp_path):
    base, fetched = published
    expected = _logits(base)
    artifact = fetched["gptq"]
    found = _in_transformers(artifact, tmp_path)
    assert _difference(found, _reference(artifact)) < GPTQ_TOLERANCE
    assert _difference(found, expected) < 0.5  # four bits of random weights
    for file_type, tolerance in GGUF_TOLERANCES.items():
        (model,) = fetched["gguf"].glob(f"*-{file_type}.gguf")
        assert _difference(_in_llama_cpp(model, tmp_path), expected) < tolerance, file_type


def _difference(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def _logits(folder: Path) -> np.ndarray:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False)
    with torch.no_grad():
        return model(IDS, use_cache=False).logits[0].numpy()


def _reference(artifact: Path) -> np.ndarray:
    """Logits of a plain model in float16 that holds the artifact's dequantized weights."""
    config = AutoConfig.from_pretrained(artifact, trust_remote_code=False)
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float16).eval()
    source = dequantized(artifact)
    model.load_state_dict({name: source.read(name) for name in source.infos})
    with torch.no_grad():
        return model(IDS, use_cache=False).logits[0].float().numpy()


def _in_transformers(artifact: Path, folder: Path) -> np.ndarray:
    """Logits by transformers with optimum and gptqmodel, which have never heard of quantkit."""
    (folder / "ids.json").write_text(json.dumps(IDS.tolist()))
    script = Path(__file__).parent / "logits.py"
    _call(PEERS, script, folder / "ids.json", artifact, folder / "gptq.npy")
    return np.load(folder / "gptq.npy")[0]


def _in_llama_cpp(model: Path, folder: Path) -> np.ndarray:
    np.save(folder / "ids.npy", IDS[0].numpy())
    job = {"model": str(model), "ids": str(folder / "ids.npy"), "out": str(folder / "gguf.npy")}
    (folder / "jobs.json").write_text(json.dumps([job]))
    _call(LLAMA_CPP, Path(__file__).parent / "gguf_logits_child.py", folder / "jobs.json")
    return np.load(folder / "gguf.npy")


def _call(*command: object) -> None:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
