"""Every seed system through `quantkit gptq`, its artifact through plain transformers 5: ids and logits are right."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from peers.seed_systems import QUESTION, Seed, rotary, xgen_7b, xglm_564m, xverse_13b, xwin_lm
from peers.test_logits import PEER_PYTHON, TOLERANCE, TOLERANCE_OF_BIASES
from pipeline.artifacts import dequantized, read_json, stored
from real.conftest import DATA
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from quantkit.cli import main
from quantkit.vocab import xgen
from quantkit.weights.source import open_folder

GPT2 = DATA / "tokenizers" / "gpt2"
pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(not PEER_PYTHON.exists(), reason="the peers are not installed: make peers"),
]
LONG_CONTEXT = 262144
# What XVERSE-13B-256K's own code does, as transformers 5 names it.
LONG_ROPE = rotary(500000.0, "dynamic", factor=2.0)
# Name -> what makes it, from the folder of checkpoints and the file that remote code would leave.
SYSTEMS: Mapping[str, Callable[[Path, Path], Seed]] = {
    "XGen-7B": xgen_7b,
    "XVERSE-13B-Chat": partial(xverse_13b, name="XVERSE-13B-Chat", context=8192, rope=rotary(10000.0)),
    "XVERSE-13B-256K": partial(xverse_13b, name="XVERSE-13B-256K", context=LONG_CONTEXT, rope=LONG_ROPE),
    "Xwin-LM-13B": lambda parent, _: xwin_lm(parent, "Xwin-LM-13B-V0.1", with_json=False),
    "Xwin-LM-70B": lambda parent, _: xwin_lm(
        parent,
        "Xwin-LM-70B-V0.1",
        with_json=True,
        hidden_size=256,
        intermediate_size=896,
        num_attention_heads=8,
        num_key_value_heads=1,
    ),
    "XGLM": lambda parent, _: xglm_564m(parent),
}
REAL = "XGen-7B with GPT-2's vocabulary"
NAMES = [
    *SYSTEMS,
    pytest.param(
        REAL,
        marks=[
            pytest.mark.real,
            pytest.mark.skipif(not GPT2.is_dir(), reason=f"no real vocabulary: {GPT2} is absent"),
        ],
    ),
]


@pytest.fixture(scope="module")
def mark(tmp_path_factory) -> Path:
    """What the code of a checkpoint would leave if anything ran it."""
    return tmp_path_factory.mktemp("mark") / "code-was-run"


@pytest.fixture(scope="module")
def seeds(tmp_path_factory, one_thread, mark) -> dict[str, Seed]:
    parent = tmp_path_factory.mktemp("seeds")
    made = {name: make(parent, mark) for name, make in SYSTEMS.items()}
    if GPT2.is_dir():
        vocabulary = tuple((GPT2 / name).read_bytes() for name in xgen.GPT2_FILES)
        made[REAL] = xgen_7b(parent, mark, vocabulary)
    return made


@pytest.fixture(scope="module")
def artifacts(seeds, tmp_path_factory) -> dict[str, Path]:
    """Each seed through the command line, with nobody there to answer a question."""
    folder = tmp_path_factory.mktemp("artifacts")
    (folder / "calibration.txt").write_text(tiny.TEXT * 8, "utf-8")
    return {
        name: _quantized(seed, folder / seed.folder.name, folder / "calibration.txt") for name, seed in seeds.items()
    }


def _quantized(seed: Seed, output: Path, calibration: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch, Path(os.devnull).open() as closed:
        closed.close()
        patch.setattr(sys, "stdin", closed)
        patch.setattr(os, "fsync", lambda _descriptor: None)
        patch.setattr("quantkit.pipeline.machine.measure_rate", lambda *_: 1e11)
        for name, value in seed.gpt2.items():
            patch.setattr(xgen, name, value)
        options = ["--bits", "4", "--group-size", "32", "--samples", "8", "--sequence-length", "64", "--device", "cpu"]
        with pytest.raises(SystemExit) as left:
            main(["gptq", str(seed.folder), "--out", str(output), *options, "--calibration", str(calibration)])
        assert left.value.code == 0
    return output


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    """[samples, sequence] int64; every vocabulary has them."""
    return tiny.token_ids(4, 64)


@pytest.fixture(scope="module")
def loaded(seeds, artifacts, ids, tmp_path_factory) -> Path:
    """The folder with what one process of the peers' environment says of all artifacts."""
    folder = tmp_path_factory.mktemp("loaded")
    asked = {name: {"folder": str(path), "texts": seeds[name].texts} for name, path in artifacts.items()}
    request = {"ids": ids.tolist(), "question": QUESTION, "artifacts": asked}
    (folder / "request.json").write_text(json.dumps(request), "utf-8")
    done = subprocess.run(
        [PEER_PYTHON, Path(__file__).with_name("as_a_user.py"), folder / "request.json", folder],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def _logits(settings: Mapping[str, object], artifact: Path, ids: torch.Tensor) -> np.ndarray:
    """Of a plain model in float16 with these settings and the artifact's dequantized weights."""
    own = {key: value for key, value in settings.items() if key not in ("architectures", "model_type")}
    config = AutoConfig.for_model(settings["model_type"], **own)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float16).eval()
    source = dequantized(artifact)
    weights = {name: source.read(name) for name in source.infos}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert (set(missing), unexpected) == ({"lm_head.weight"} if config.tie_word_embeddings else set(), [])
    model.tie_weights()
    with torch.no_grad():
        return model(ids, use_cache=False).logits.float().numpy()


def _difference(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("name", NAMES)
def test_ids_are_those_of_other_software(name, seeds, loaded):
    seed, found = seeds[name], read_json(loaded / f"{name}.json")
    assert tuple(found["special"]) == seed.special
    assert found["inputs"] == ["attention_mask", "input_ids"]
    assert len(seed.texts) > 1000
    for text, one in zip(seed.texts, found["ids"], strict=True):
        assert one == list(seed.ids(text)), text


@pytest.mark.parametrize("name", NAMES)
def test_a_chat_is_what_the_model_was_trained_to_see(name, seeds, loaded):
    seed, found = seeds[name], read_json(loaded / f"{name}.json")
    assert found.get("chat") == seed.chat
    if seed.chat is not None:
        assert found["chat_ids"] == list(seed.ids(seed.chat.removeprefix("<s>")))


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_the_dequantized_weights(name, seeds, artifacts, loaded, ids):
    tolerance = TOLERANCE_OF_BIASES if name == "XGLM" else TOLERANCE
    expected = _logits(seeds[name].computes, artifacts[name], ids)
    assert _difference(np.load(loaded / f"{name}.npy"), expected) < tolerance


@pytest.mark.parametrize("name", NAMES)
def test_the_weights_are_those_of_the_checkpoint(name, seeds, artifacts):
    before, after = open_folder(seeds[name].folder).source, dequantized(artifacts[name])
    assert set(after.infos) == set(before.infos) - seeds[name].unread
    quantized = {name.replace("qweight", "weight") for name in stored(artifacts[name]) if name.endswith("qweight")}
    assert len(quantized) == 2 * (6 if name == "XGLM" else 7)
    for tensor in after.infos:
        found, expected = after.read(tensor).float(), before.read(tensor).float()
        error = float((found - expected).norm() / expected.norm())
        assert error < (0.2 if tensor in quantized else 1e-3), tensor


@pytest.mark.parametrize("name", NAMES)
def test_no_code_is_run_or_carried(name, seeds, artifacts, loaded, mark):
    assert not mark.exists()
    for path in artifacts[name].iterdir():
        assert path.suffix != ".py"
        assert path.suffix == ".safetensors" or "auto_map" not in path.read_text("utf-8", "replace"), path
    config = read_json(artifacts[name] / "config.json")
    assert config["architectures"] == seeds[name].computes["architectures"]
    assert config["model_type"] == seeds[name].computes["model_type"]


def test_code_that_is_run_would_be_seen(seeds, tmp_path):
    """The control."""
    for name in ("XGen-7B", "XVERSE-13B-Chat"):
        code = next(seeds[name].folder.glob("*.py")).read_text()
        mine = tmp_path / name
        exec(code.replace(code.split("'")[1], str(mine)))
        assert mine.exists()


def test_a_context_of_256k_has_the_rotary_settings_of_xverses_code(artifacts, loaded, ids):
    artifact = artifacts["XVERSE-13B-256K"]
    config = read_json(artifact / "config.json")
    assert (config["rope_theta"], config["rope_scaling"]) == (500000, {"type": "dynamic", "factor": 2.0})
    assert config["max_position_embeddings"] == LONG_CONTEXT
    settings = AutoConfig.from_pretrained(artifact)
    rope = LlamaRotaryEmbedding(settings)
    # Past the context, dynamic NTK: base * (factor * length / context - (factor - 1)) ** (size / (size - 2))
    for length, growth in ((64, 1), (LONG_CONTEXT, 1), (2 * LONG_CONTEXT, 3), (4 * LONG_CONTEXT, 7)):
        rope(torch.zeros(1), torch.tensor([[length - 1]]))
        base = 500000 * growth ** (32 / 30)
        expected = base ** -(torch.arange(0, 32, 2, dtype=torch.float64) / 32)
        torch.testing.assert_close(rope.inv_freq.double(), expected, rtol=1e-5, atol=0)


def test_without_these_settings_its_logits_are_others(seeds, artifacts, loaded, ids):
    """The control: what a converter makes that believes config.json."""
    name = "XVERSE-13B-256K"
    believed = _logits({**seeds[name].computes, **rotary(10000.0)}, artifacts[name], ids)
    assert _difference(np.load(loaded / f"{name}.npy"), believed) > 2 * TOLERANCE_OF_BIASES
