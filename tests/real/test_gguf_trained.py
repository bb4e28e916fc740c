"""Trained models as GGUF files: llama.cpp finds transformers' perplexity; another converter wrote the same tensors."""

import json
import math
import subprocess
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf_runs import asked_here, assert_is_the_plan, content, converted, files_of
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-peers-llama-cpp" / "bin" / "python"
SCRIPT = ROOT / "tests" / "peers" / "llama_cpp_perplexity.py"
peers = [
    pytest.mark.peers,
    pytest.mark.skipif(not PYTHON.exists(), reason="llama.cpp is not installed: make peers"),
]
CONTEXT, HALF = 512, 256
TEXTS = {"stories260K": ("tinystories_heldout.txt", 8_000), "wikilm": ("tinyshakespeare.txt", 5_000)}
IN_FLOAT32 = 1e-6
IN_FLOAT16 = 3e-4  # matrices of float16 let llama.cpp round activations to float16
FOREIGN = {"general.name", "general.file_type", "general.alignment"}
# It scores what no merge makes with 0, and states another context than config.json does.
OTHERWISE = {"tokenizer.ggml.scores", "llama.context_length"}


@pytest.fixture(autouse=True)
def _here(monkeypatch):
    monkeypatch.setattr("quantkit.pipeline.gguf_told._ask", asked_here)


def llama_cpp(model: Path, text: Path, out: Path) -> dict:
    done = subprocess.run([PYTHON, SCRIPT, model, text, out], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())


@torch.no_grad()
def transformers_perplexity(folder: Path, ids: list[int]) -> float:
    """Of the second half of every window, in float32, with the same ids."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    windows = torch.tensor(ids[: len(ids) // CONTEXT * CONTEXT]).view(-1, CONTEXT)
    if ids[0] == model.config.bos_token_id:
        windows[:, 0] = ids[0]
    logits = model(windows).logits[:, :-1].double()
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten(), reduction="none")
    return math.exp(losses.view(len(windows), -1)[:, HALF:].mean())


@pytest.mark.parametrize("name", TEXTS)
def test_the_perplexity_is_that_of_transformers(name, data, tmp_path):
    folder = data / "models" / name
    f32, f16 = files_of(converted(folder, tmp_path / "out", "F32", "F16"))
    file, length = TEXTS[name]
    text = tmp_path / "text.txt"
    text.write_text((data / "text" / file).read_text("utf-8")[:length], encoding="utf-8")
    exact, half = (llama_cpp(path, text, tmp_path / "found.json") for path in (f32, f16))
    expected = transformers_perplexity(folder, exact["ids"])
    assert half["ids"] == exact["ids"]
    assert len(exact["float32"]["losses"]) > 2
    assert exact["float32"]["perplexity"] == pytest.approx(expected, rel=IN_FLOAT32)
    for way in ("default", "float32"):
        assert half[way]["perplexity"] == pytest.approx(expected, rel=IN_FLOAT16)


test_the_perplexity_is_that_of_transformers.pytestmark += peers


def test_the_file_of_another_converter_holds_the_same(data, tmp_path):
    """A published stories260K.gguf: names, order of rows, every value, tokens and settings."""
    (path,) = files_of(converted(data / "models" / "stories260K", tmp_path, "F32"))
    ours, theirs = content(path), content(data / "fixtures" / "stories260K.gguf")
    assert theirs.pop("output.weight") == theirs["token_embd.weight"]  # tied: we store it once
    assert ours.keys() == theirs.keys()
    for name, (kind, shape, values) in theirs.items():
        assert kind == "F32"
        assert (shape, values) == ours[name][1:], name
    own, other = (gguf.GGUFReader(one).fields for one in (path, data / "fixtures" / "stories260K.gguf"))
    shared = [key for key in other if key in own and not key.startswith("GGUF.") and key not in FOREIGN]
    assert len(shared) > 12
    assert {key for key in shared if own[key].contents() != other[key].contents()} == OTHERWISE


@pytest.mark.parametrize("name", TEXTS)
def test_every_tensor_is_what_the_plan_says(name, data, tmp_path):
    folder = data / "models" / name
    paths = files_of(converted(folder, tmp_path, "Q4_K_M", "Q6_K", "IQ4_XS", threads=2))
    kinds = [assert_is_the_plan(folder, [path]) for path in paths]
    assert {"Q4_K", "Q6_K", "F32"} <= kinds[0] or name == "stories260K"  # whose rows of 64 and 172 take other types
    assert np.prod([len(one) for one in kinds]) > 1
