"""Trained models, quantized and compared with themselves on text that they were not calibrated with."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from quantkit.families.lookup import family_of
from quantkit.formats.gptq_source import DequantizedSource
from quantkit.lockstep import compare
from quantkit.pipeline.gptq import run
from quantkit.pipeline.job import Job, prepare
from quantkit.quality.metrics import Metrics
from quantkit.recipe import Calibration, Recipe
from quantkit.skeleton import Skeleton
from quantkit.vocab.load import load_tokenizer
from quantkit.weights.source import open_folder

CALIBRATION = Calibration(samples=8, sequence_length=128)
WINDOWS, LENGTH = 4, 256


@dataclass
class Made:
    job: Job
    output: Path
    log: list[dict]


@dataclass
class Study:
    """A model, its artifacts by name, and what each lost."""

    source: Path
    made: dict[str, Made]
    lost: dict[str, Metrics]


def study(source: Path, text: Path, folder: Path, recipes: dict[str, Recipe]) -> Study:
    made = {}
    for name, recipe in recipes.items():
        job = prepare(str(source), recipe, output=folder / name, device="cpu")
        run(job)
        lines = (folder / name / "layers.jsonl").read_text("utf-8").splitlines()
        made[name] = Made(job, folder / name, [json.loads(line) for line in lines])
    opened = open_folder(source)
    ids = load_tokenizer(source)(text.read_text("utf-8")[20_000:40_000])["input_ids"]
    windows = torch.tensor(ids[: WINDOWS * LENGTH]).view(WINDOWS, LENGTH)
    artifacts = [open_folder(one.output) for one in made.values()]
    sources = [DequantizedSource(one.source, one.config["quantization_config"]) for one in artifacts]
    found = compare(Skeleton(family_of(opened.config), opened.config), [opened.source, *sources], windows)
    return Study(source, made, dict(zip(["source", *made], found, strict=True)))


@pytest.fixture(scope="module")
def wikilm(data, tmp_path_factory):
    """17.6 million parameters, 6 layers; 4 bits by three methods."""
    return study(
        data / "models" / "wikilm",
        data / "text" / "wikitext2" / "wiki.test.rebuilt.raw",
        tmp_path_factory.mktemp("wikilm"),
        {
            "gptq": Recipe(calibration=CALIBRATION),
            "rtn": Recipe(method="rtn", scales="minmax"),
        },
    )


@pytest.fixture(scope="module")
def stories(data, tmp_path_factory):
    """260 thousand parameters, a tied head, an MLP whose width cannot be packed."""
    return study(
        data / "models" / "stories260K",
        data / "text" / "tinystories_heldout.txt",
        tmp_path_factory.mktemp("stories"),
        {
            "gptq8": Recipe(bits=8, group_size=32, calibration=CALIBRATION),
            "gptq4": Recipe(group_size=32, calibration=CALIBRATION),
            "rtn4": Recipe(method="rtn", scales="minmax", group_size=32),
        },
    )


def test_the_baseline_is_a_trained_model(wikilm, stories):
    assert wikilm.lost["source"].perplexity < 200
    assert stories.lost["source"].perplexity < 10
    for found in (wikilm, stories):
        assert found.lost["source"].kl_mean == pytest.approx(0, abs=1e-9)
        assert found.lost["source"].top1_agreement == 1


def test_four_bits_hardly_change_a_robust_model(wikilm):
    lost = wikilm.lost["gptq"]
    assert 0 < lost.kl_mean < 1.5e-3
    assert lost.top1_agreement > 0.95
    assert lost.perplexity == pytest.approx(wikilm.lost["source"].perplexity, rel=0.01)


def test_gptq_loses_less_than_rounding_to_nearest(wikilm, stories):
    assert wikilm.lost["gptq"].kl_mean < 0.6 * wikilm.lost["rtn"].kl_mean
    assert stories.lost["gptq4"].kl_mean < 0.8 * stories.lost["rtn4"].kl_mean


def test_a_sensitive_model_keeps_its_perplexity(stories):
    baseline = stories.lost["source"].perplexity
    assert stories.lost["gptq8"].kl_mean < 1e-3
    assert stories.lost["gptq8"].perplexity == pytest.approx(baseline, rel=0.005)
    assert stories.lost["gptq4"].kl_mean < 0.06
    assert stories.lost["gptq4"].perplexity < 1.05 * baseline


def test_the_size_is_predicted_to_half_a_percent(wikilm):
    for made in wikilm.made.values():
        written = sum(path.stat().st_size for path in made.output.glob("*.safetensors"))
        assert written == pytest.approx(made.job.plan.artifact_bytes, rel=0.005)


def test_every_linear_of_a_layer_is_quantized(wikilm):
    found = [row["name"] for row in wikilm.made["gptq"].log if "name" in row]
    assert len(found) == 6 * 7
    assert all(row["relative_error"] < 0.02 for row in wikilm.made["gptq"].log if "name" in row)


def test_a_width_that_cannot_be_packed_stays_in_16_bits(stories):
    made = stories.made["gptq4"]
    grids = made.job.plan.grids()
    assert grids["model.layers.0.mlp.down_proj"] is None
    assert grids["model.layers.4.self_attn.o_proj"] is not None
    config = json.loads((made.output / "config.json").read_text("utf-8"))["quantization_config"]
    listed = [name for group in config["modules_in_block_to_quantize"] for name in group]
    assert listed == ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
    artifact, source = open_folder(made.output).source, open_folder(stories.source).source
    for name in ("model.layers.0.mlp.down_proj.weight", "model.layers.3.mlp.gate_proj.weight"):
        assert torch.equal(artifact.read(name), source.read(name).half())


def test_files_of_the_tokenizer_are_the_sources(wikilm, stories):
    for found in (wikilm, stories):
        for made in found.made.values():
            for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json"):
                if (found.source / name).exists():
                    assert (made.output / name).read_bytes() == (found.source / name).read_bytes()
            assert load_tokenizer(made.output)("A bridge.")["input_ids"]
