"""`quantkit check` on a trained model at 4 bits: its figures, its gates, and what they catch."""

import math
import shutil
import sys
from pathlib import Path

import pytest
import torch
import transformers

from quantkit.formats.gptq_source import DequantizedSource
from quantkit.pipeline import check
from quantkit.pipeline.check_job import CheckOptions, prepare
from quantkit.pipeline.gptq import run as run_gptq
from quantkit.pipeline.job import prepare as prepare_gptq
from quantkit.recipe import Calibration, Recipe
from quantkit.weights.source import open_folder

sys.path.insert(0, str(Path(__file__).parents[1] / "pipeline"))
from corruption import foreign, larger_scales, permuted_heads, shifted_zero_points, spoil, swapped_rows

LINEAR = "model.layers.2.self_attn.k_proj"


@pytest.fixture(scope="module")
def wikilm(data):
    return data / "models" / "wikilm"


@pytest.fixture(scope="module")
def text(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "wiki.txt"
    whole = (data / "text" / "wikitext2" / "wiki.test.rebuilt.raw").read_text("utf-8")
    path.write_text(whole[20_000:40_000], encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def four_bits(wikilm, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "wikilm-Int4"
    recipe = Recipe(calibration=Calibration(samples=8, sequence_length=256))
    run_gptq(prepare_gptq(str(wikilm), recipe, output=out, device="cpu"))
    return out


def job_for(folder, wikilm, text):
    return prepare([str(folder)], str(wikilm), CheckOptions(text=(str(text),), dtype="float32", context=256))


def test_perplexity_and_divergence_are_those_of_whole_models(wikilm, four_bits, text, tmp_path):
    some = tmp_path / "some.txt"  # every token is compared; it is the gates that need many
    some.write_text(text.read_text("utf-8")[:5000], encoding="utf-8")
    job = job_for(four_bits, wikilm, some)
    record = check.run(job, write=False)
    opened = open_folder(four_bits)
    dequantized = DequantizedSource(opened.source, opened.config["quantization_config"])
    model = transformers.AutoModelForCausalLM.from_pretrained(wikilm, dtype=torch.float32)
    rows, columns = job.windows.scored.nonzero(as_tuple=True)
    target = job.windows.ids[rows, columns].unsqueeze(1)
    scores = []
    for source in (open_folder(wikilm).source, dequantized):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(source.read(name))
            logits = torch.cat([model(row[None]).logits for row in job.windows.ids])
        scores.append(torch.log_softmax(logits[rows, columns - 1].double(), -1))
    p, q = scores
    found = record["artifacts"][0]["metrics"]["all"]
    assert record["baseline"]["metrics"]["all"]["perplexity"] == pytest.approx(
        math.exp(-p.gather(1, target).mean()), rel=1e-4
    )
    assert found["perplexity"] == pytest.approx(math.exp(-q.gather(1, target).mean()), rel=1e-4)
    assert found["kl_mean"] == pytest.approx(float((p.exp() * (p - q)).sum(1).mean()), rel=1e-4)


def test_a_healthy_four_bit_artifact_passes_the_default_gates(wikilm, four_bits, text):
    record = check.run(job_for(four_bits, wikilm, text), write=False)
    assert [gate["sentence"] for gate in record["artifacts"][0]["gates"] if not gate["passed"]] == []
    assert len(record["artifacts"][0]["gates"]) >= 6


@pytest.mark.parametrize(
    "change",
    [
        shifted_zero_points(LINEAR, 4),
        swapped_rows(LINEAR, 5, 77),
        larger_scales(LINEAR),
        permuted_heads(LINEAR, 8),
    ],
    ids=["shifted zero points", "swapped rows", "scales x 1.05", "permuted k"],
)
def test_a_corrupted_one_does_not(wikilm, four_bits, text, tmp_path, change):
    artifact = Path(shutil.copytree(four_bits, tmp_path / "artifact"))
    spoil(artifact, change)
    foreign(artifact)
    record = check.run(job_for(artifact, wikilm, text), write=False)
    assert not record["passed"]
