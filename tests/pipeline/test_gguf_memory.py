"""What a conversion to GGUF holds in memory: a few slabs, however deep the model is."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from artifacts import SMALL
from tiny import make_model

from quantkit.pipeline.gptq import run
from quantkit.pipeline.job import prepare
from quantkit.recipe import make_recipe

PROBE = Path(__file__).parent / "gguf_probe.py"
SHALLOW, DEEP = 3, 15  # decoder layers
SIZES = {"hidden_size": 768, "intermediate_size": 2048, "num_attention_heads": 12, "num_key_value_heads": 4}
ABOVE = 110 * 2**20  # compiled encoders and slabs
IMPORTED = 140 * 2**20  # Python, numpy, numba


def probe(out: Path, *models: Path) -> dict:
    done = subprocess.run([sys.executable, PROBE, out, *models], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[int, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        depth: make_model(folder / f"deep-{depth}", dtype=torch.bfloat16, num_hidden_layers=depth, **SIZES)
        for depth in (SHALLOW, DEEP)
    }


@pytest.fixture(scope="module")
def found(models, tmp_path_factory) -> dict:
    return probe(tmp_path_factory.mktemp("made") / "out", models[SHALLOW], models[DEEP])


def test_the_peak_does_not_grow_with_the_number_of_layers(found, models):
    sizes = {depth: (model / "model.safetensors").stat().st_size for depth, model in models.items()}
    shallow, deep = found["found"]
    assert deep["peak"] - shallow["peak"] < (sizes[DEEP] - sizes[SHALLOW]) / 8


def test_the_plan_predicts_the_peak(found):
    first = found["found"][0]
    assert first["predicted"] == pytest.approx(first["peak"], rel=0.25)


def test_torch_is_not_part_of_it(found):
    assert not found["torch"]
    assert found["found"][1]["peak"] < IMPORTED + ABOVE


def test_of_a_quantized_checkpoint_one_tensor_is_dequantized(models, tmp_path):
    recipe = make_recipe(SMALL | {"method": "rtn"})
    run(prepare(str(models[SHALLOW]), recipe, output=tmp_path / "quantized", device="cpu"))
    (first,) = probe(tmp_path / "out", tmp_path / "quantized")["found"]
    assert first["predicted"] == pytest.approx(first["peak"], rel=0.25)
