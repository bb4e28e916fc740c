"""Memory promises, each measured in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import make_model

ROOT = Path(__file__).parents[1]
PROBE = Path(__file__).parent / "memory_probe.py"
CHECK_PROBE = Path(__file__).parent / "check_probe.py"
GIGABYTE = 10**9
SHALLOW, DEEP = 4, 24  # decoder layers
FOUR_BITS = 0.25  # of a 16-bit layer: what it would take, were it kept as it is written
SIZES = {"hidden_size": 768, "intermediate_size": 2048, "num_attention_heads": 12, "num_key_value_heads": 4}


def measure(*models: Path, out: Path, samples: int, length: int) -> list[dict[str, int]]:
    return said_by(PROBE, out, samples, length, *models)


def said_by(*command: object) -> Any:
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def kept_of_further_layers(models: dict[int, Path], found: dict[int, dict[str, int]]) -> float:
    """By how much the peak grows with a further layer, as a part of what the layer weighs."""
    sizes = {depth: (model / "model.safetensors").stat().st_size for depth, model in models.items()}
    return max(0.0, (found[DEEP]["peak"] - found[SHALLOW]["peak"]) / (sizes[DEEP] - sizes[SHALLOW]))


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[int, Path]:
    """Models of one width and two depths."""
    folder = tmp_path_factory.mktemp("models")
    return {
        depth: make_model(folder / f"deep-{depth}", dtype=torch.bfloat16, num_hidden_layers=depth, **SIZES)
        for depth in (SHALLOW, DEEP)
    }


@pytest.fixture(scope="module")
def by_depth(models, tmp_path_factory) -> dict[int, dict[str, int]]:
    """Peaks of quantizing them."""
    folder = tmp_path_factory.mktemp("made")
    found = {depth: measure(model, out=folder / str(depth), samples=8, length=256) for depth, model in models.items()}
    return {depth: one for depth, (one,) in found.items()}


@pytest.fixture(scope="module")
def checked(models, tmp_path_factory) -> dict[int, dict[str, int]]:
    """Peaks of checking three artifacts of each."""
    folder = tmp_path_factory.mktemp("checked")
    return {depth: said_by(CHECK_PROBE, model, folder / str(depth)) for depth, model in models.items()}


def test_the_peak_of_a_check_does_not_grow_with_the_number_of_layers(models, checked):
    assert kept_of_further_layers(models, checked) < FOUR_BITS


@pytest.mark.parametrize("depth", [SHALLOW, DEEP])
def test_the_plan_of_a_check_predicts_the_peak(checked, depth):
    assert checked[depth]["predicted"] == pytest.approx(checked[depth]["peak"], rel=0.15)


def test_the_plan_of_a_check_knows_of_gguf_files(tmp_path):
    model = make_model(tmp_path / "model", dtype=torch.bfloat16, num_hidden_layers=4, vocab_size=16384, **SIZES)
    found = said_by(CHECK_PROBE, model, tmp_path, "gguf")
    assert found["predicted"] == pytest.approx(found["peak"], rel=0.15)


def test_the_peak_does_not_grow_with_the_number_of_layers(models, by_depth):
    assert kept_of_further_layers(models, by_depth) < FOUR_BITS


@pytest.mark.parametrize("depth", [SHALLOW, DEEP])
def test_the_plan_predicts_the_peak(by_depth, depth):
    assert by_depth[depth]["predicted"] == pytest.approx(by_depth[depth]["peak"], rel=0.15)


def test_the_plan_knows_of_attention_that_is_not_fused(tmp_path):
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 32, "max_position_embeddings": 1024}
    names = ("Gemma2ForCausalLM", "XGLMForCausalLM")
    models = [make_model(tmp_path / name, name, torch.bfloat16, **sizes) for name in names]
    for found in measure(*models, out=tmp_path / "out", samples=2, length=1024):
        assert found["peak"] - found["base"] > 32 * 1024**2 * 4  # the scores, as computed and masked
        assert found["predicted"] == pytest.approx(found["peak"], rel=0.15)


def test_the_width_of_1_1_billion_parameters_takes_less_than_a_gigabyte(tmp_path):
    """Three layers of 22, with the whole embedding and head: more of them take no more, as the tests above have it."""
    model, layers = tmp_path / "model", 3
    make_model(tmp_path / "tokenizer")
    write = [sys.executable, ROOT / "benchmarks" / "random_llama.py", model, "1.1B", "--layers", str(layers)]
    subprocess.run([*write, "--tokenizer-from", tmp_path / "tokenizer"], check=True)
    (found,) = measure(model, out=tmp_path / "out", samples=8, length=512)
    assert found["peak"] - found["base"] <= GIGABYTE
    assert found["predicted"] == pytest.approx(found["peak"], rel=0.15)
    outer = (model / f"model-{layers + 1:05d}-of-{layers + 1:05d}.safetensors").stat().st_size
    made = sum(path.stat().st_size for path in (tmp_path / "out").rglob("*.safetensors"))
    assert outer + (made - outer) / layers * 22 < 0.85 * GIGABYTE
