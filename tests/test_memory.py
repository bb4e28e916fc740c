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
GIGABYTE = 10**9


def measure(model: Path, out: Path, samples: int, length: int) -> dict[str, int]:
    command = [sys.executable, PROBE, model, out, str(samples), str(length)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def by_depth(tmp_path_factory) -> dict[int, dict[str, int]]:
    """Peaks of models of one width, 4 and 16 layers deep."""
    folder = tmp_path_factory.mktemp("depth")
    found = {}
    for depth in (4, 16):
        model = make_model(
            folder / f"model-{depth}",
            dtype=torch.bfloat16,
            num_hidden_layers=depth,
            hidden_size=768,
            intermediate_size=2048,
            num_attention_heads=12,
            num_key_value_heads=4,
        )
        found[depth] = measure(model, folder / f"out-{depth}", 8, 256)
    return found


def test_the_peak_does_not_grow_with_the_number_of_layers(by_depth):
    shallow, deep = by_depth[4]["peak"], by_depth[16]["peak"]
    assert abs(deep - shallow) / shallow < 0.05


@pytest.mark.parametrize("depth", [4, 16])
def test_the_plan_predicts_the_peak(by_depth, depth):
    assert by_depth[depth]["predicted"] == pytest.approx(by_depth[depth]["peak"], rel=0.15)


def test_a_model_of_1_1_billion_parameters_takes_less_than_a_gigabyte(tmp_path):
    model = tmp_path / "model"
    make_model(tmp_path / "tokenizer")
    write = [sys.executable, ROOT / "benchmarks" / "random_llama.py", model, "1.1B"]
    subprocess.run([*write, "--tokenizer-from", tmp_path / "tokenizer"], check=True)
    found = measure(model, tmp_path / "out", 8, 512)
    assert found["peak"] - found["base"] <= GIGABYTE
    assert found["predicted"] == pytest.approx(found["peak"], rel=0.15)
    assert sum(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors")) < 0.85 * GIGABYTE
