"""GGUF files in llama.cpp itself: the logits are those of transformers, for every family that it can express."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from gguf_files import Planned, write_gguf
from gguf_variants import NAMES, make
from tiny import token_ids

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-peers-llama-cpp" / "bin" / "python"
SCRIPT = ROOT / "tests" / "peers" / "gguf_logits_child.py"
pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(not PYTHON.exists(), reason="llama.cpp is not installed: make peers"),
]

TOKENS = 40
# Windows of tests/tiny.py that llama.cpp overlooks: within them it computes the same.
WINDOW = 8
WITHIN_WINDOW = ("mistral", "qwen2-half-sliding", "starcoder2")
# As parts of the standard deviation of the logits. The files are in float32.
TOLERANCE = 1e-4  # measured: 1e-5
# llama.cpp reads GELU from a table of float16: its outputs are off by up to 5e-4 of themselves.
GELU_TOLERANCE = 1e-2  # measured: 3e-3
# Matrices of float16 let llama.cpp round activations to float16.
F16_TOLERANCE = 2e-2  # measured: 9e-3
GELU_FAMILIES = ("gemma", "gemma2", "gemma3", "starcoder2", "xglm")


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Every variant -> transformers' logits and llama.cpp's, and for one the float16 file's too."""
    folder = tmp_path_factory.mktemp("gguf")
    jobs, expected = [], {}
    for name in NAMES:
        planned = Planned(make(folder / name, name))
        ids = token_ids(1, WINDOW if name in WITHIN_WINDOW else TOKENS, seed=3)
        expected[name] = logits(planned, folder / name, ids)
        np.save(folder / f"{name}.ids.npy", ids[0].numpy())
        for file_type in ("F32", "F16") if name == "llama" else ("F32",):
            key = f"{name}.{file_type}"
            model = write_gguf(planned, folder / f"{key}.gguf", file_type)
            jobs.append(
                {"model": str(model), "ids": str(folder / f"{name}.ids.npy"), "out": str(folder / f"{key}.npy")}
            )
    (folder / "jobs.json").write_text(json.dumps(jobs))
    done = subprocess.run([PYTHON, SCRIPT, folder / "jobs.json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return expected, folder


def logits(planned, folder, ids):
    model_class = getattr(transformers, planned.family.model_class)
    config = model_class.config_class.from_dict(dict(planned.config))
    # The shape of the attention's sums is the one thing that differs between implementations.
    model = model_class.from_pretrained(folder, config=config, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        return model.eval()(ids).logits[0].numpy()


def difference(measured, name, file_type="F32"):
    expected, folder = measured
    found = np.load(folder / f"{name}.{file_type}.npy")
    assert found.shape == expected[name].shape
    return np.abs(found - expected[name]).max() / expected[name].std()


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_transformers(measured, name):
    gelu = name.partition("-")[0] in GELU_FAMILIES
    assert difference(measured, name) < (GELU_TOLERANCE if gelu else TOLERANCE)


def test_a_float16_file_differs_by_rounding_alone(measured):
    assert TOLERANCE < difference(measured, "llama", "F16") < F16_TOLERANCE
