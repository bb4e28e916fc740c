"""Memory promises, each measured in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import make_model

ROOT = Path(__file__).parents[1]
PROBE = Path(__file__).parent / "memory_probe.py"
CHECK_PROBE = Path(__file__).parent / "check_probe.py"
GIGABYTE = 10**9
SHALLOW, DEEP = 4, 24  # decoder layers


def measure(model: Path, out: Path, samples: int, length: int) -> dict[str, int]:
    return said_by(PROBE, model, out, str(samples), str(length))


def said_by(*command: object) -> dict[str, int]:
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[int, Path]:
    """Models of one width and two depths."""
    folder = tmp_path_factory.mktemp("models")
    sizes = {"hidden_size": 768, "intermediate_size": 2048, "num_attention_heads": 12, "num_key_value_heads": 4}
    return {
        depth: make_model(folder / f"deep-{depth}", dtype=torch.bfloat16, num_hidden_layers=depth, **sizes)
        for depth in (SHALLOW, DEEP)
    }


@pytest.fixture(scope="module")
def by_depth(models, tmp_path_factory) -> dict[int, dict[str, int]]:
    """Peaks of quantizing them."""
    folder = tmp_path_factory.mktemp("made")
    return {depth: measure(model, folder / f"out-{depth}", 8, 256) for depth, model in models.items()}


@pytest.fixture(scope="module")
def checked(models, tmp_path_factory) -> dict[int, dict[str, int]]:
    """Peaks of checking three artifacts of each."""
    folder = tmp_path_factory.mktemp("checked")
    return {depth: said_by(CHECK_PROBE, model, folder / str(depth)) for depth, model in models.items()}


@pytest.fixture(scope="module")
def tolerance(models) -> float:
    """A quarter of what the further layers weigh: what 4 bits of them would take, were they kept."""
    sizes = {depth: (model / "model.safetensors").stat().st_size for depth, model in models.items()}
    return (sizes[DEEP] - sizes[SHALLOW]) / 4


def test_the_peak_of_a_check_does_not_grow_with_the_number_of_layers(checked, tolerance):
    assert checked[DEEP]["peak"] - checked[SHALLOW]["peak"] < tolerance


@pytest.mark.parametrize("depth", [SHALLOW, DEEP])
def test_the_plan_of_a_check_predicts_the_peak(checked, depth):
    assert checked[depth]["predicted"] == pytest.approx(checked[depth]["peak"], rel=0.15)


def test_the_plan_of_a_check_knows_of_gguf_files(tmp_path):
    sizes = {"hidden_size": 768, "intermediate_size": 2048, "num_attention_heads": 12, "num_key_value_heads": 4}
    model = make_model(tmp_path / "model", dtype=torch.bfloat16, num_hidden_layers=4, vocab_size=16384, **sizes)
    found = said_by(CHECK_PROBE, model, tmp_path, "gguf")
    assert found["predicted"] == pytest.approx(found["peak"], rel=0.15)


def test_the_peak_does_not_grow_with_the_number_of_layers(by_depth, tolerance):
    assert by_depth[DEEP]["peak"] - by_depth[SHALLOW]["peak"] < tolerance


@pytest.mark.parametrize("depth", [SHALLOW, DEEP])
def test_the_plan_predicts_the_peak(by_depth, depth):
    assert by_depth[depth]["predicted"] == pytest.approx(by_depth[depth]["peak"], rel=0.15)


@pytest.mark.parametrize("architecture", ["Gemma2ForCausalLM", "XGLMForCausalLM"])
def test_the_plan_knows_of_attention_that_is_not_fused(tmp_path, architecture):
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 32, "max_position_embeddings": 1024}
    model = make_model(tmp_path / "model", architecture, torch.bfloat16, **sizes)
    found = measure(model, tmp_path / "out", 2, 1024)
    assert found["peak"] - found["base"] > 32 * 1024**2 * 4  # the scores, as computed and masked
    assert found["predicted"] == pytest.approx(found["peak"], rel=0.15)


def test_a_model_of_1_1_billion_parameters_takes_less_than_a_gigabyte(tmp_path):
    model = tmp_path / "model"
    make_model(tmp_path / "tokenizer")
    write = [sys.executable, ROOT / "benchmarks" / "random_llama.py", model, "1.1B"]
    subprocess.run([*write, "--tokenizer-from", tmp_path / "tokenizer"], check=True)
    found = measure(model, tmp_path / "out", 8, 512)
    assert found["peak"] - found["base"] <= GIGABYTE
    assert found["predicted"] == pytest.approx(found["peak"], rel=0.15)
    assert sum(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors")) < 0.85 * GIGABYTE
