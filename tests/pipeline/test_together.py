"""Several artifacts, and their check, in one pass over the source: the same bytes and figures as one by one."""

import json

import pytest
import torch
from processes import contents

from quantkit.pipeline.check import run as run_check
from quantkit.pipeline.check_job import CheckOptions
from quantkit.pipeline.check_job import prepare as prepare_check
from quantkit.pipeline.gptq import run, run_together
from quantkit.pipeline.job import prepare
from quantkit.pipeline.look import look
from quantkit.pipeline.same_pass import SamePassCheck
from quantkit.progress import Silent
from quantkit.recipe import make_recipe
from quantkit.weights.local import LocalSource

TEXT = {"text": ["english"], "samples": 3, "sequence_length": 24}
RECIPES = {
    "int4": {"bits": 4, "group_size": 32, "calibration": TEXT},
    "int8": {"bits": 8, "group_size": 64, "calibration": TEXT | {"samples": 2}},
    "rounded": {"method": "rtn", "bits": 4, "group_size": 32, "calibration": TEXT},
}
OPTIONS = CheckOptions(text=("spanish",), context=256)


def jobs_of(source, folder):
    checkpoint = look(str(source))
    return [prepare(checkpoint, make_recipe(RECIPES[name]), output=folder / name, device="cpu") for name in RECIPES]


@pytest.fixture(scope="module")
def alone(sources, tmp_path_factory):
    """Every artifact by a run of its own, and a check of all of them."""
    patch = pytest.MonkeyPatch()
    patch.setattr("quantkit.pipeline.machine.measure_rate", lambda *_: 1e11)
    folder, source = tmp_path_factory.mktemp("alone"), sources("llama", dtype=torch.bfloat16)
    for job in jobs_of(source, folder):
        run(job)
    checked = prepare_check([str(folder / name) for name in RECIPES], str(source), OPTIONS)
    record = run_check(checked)
    patch.undo()
    return folder, record


class Stopped(Silent):
    """Ends a run behind a layer."""

    def __init__(self, layer):
        self.last = layer

    def layer(self, index, seconds):
        if index == self.last:
            raise KeyboardInterrupt


def assert_equal(folder, alone):
    for name in RECIPES:
        found, expected = contents(folder / name), contents(alone / name)
        expected.pop("check.json", None), found.pop("check.json", None)
        assert found == expected


def test_artifacts_made_together_are_those_made_alone(sources, alone, tmp_path):
    run_together(jobs_of(sources("llama", dtype=torch.bfloat16), tmp_path))
    assert_equal(tmp_path, alone[0])


@pytest.mark.parametrize("layer", [0, 1])
def test_an_interrupted_pass_is_continued_by_all(sources, alone, tmp_path, layer):
    source = sources("llama", dtype=torch.bfloat16)
    with pytest.raises(KeyboardInterrupt):
        run_together(jobs_of(source, tmp_path), Stopped(layer))
    run(jobs_of(source, tmp_path)[1])  # one of them goes ahead on its own
    run_together(jobs_of(source, tmp_path))
    assert_equal(tmp_path, alone[0])


@pytest.mark.parametrize("interrupted", [None, 0])
def test_the_check_of_the_same_pass_finds_what_a_check_afterwards_finds(sources, alone, tmp_path, interrupted):
    source = sources("llama", dtype=torch.bfloat16)
    if interrupted is not None:
        jobs = jobs_of(source, tmp_path)
        with pytest.raises(KeyboardInterrupt):
            run_together(jobs, Stopped(interrupted), check=SamePassCheck(jobs, OPTIONS))
    jobs = jobs_of(source, tmp_path)
    results = run_together(jobs, check=SamePassCheck(jobs, OPTIONS))
    assert_equal(tmp_path, alone[0])
    expected = alone[1]
    for result, entry in zip(results, expected["artifacts"], strict=True):
        kept = json.loads((result.output / "check.json").read_text("utf-8"))
        assert kept == json.loads(json.dumps(result.check))
        assert kept["evaluation"] == json.loads(json.dumps(expected["evaluation"]))
        assert kept["artifacts"] == json.loads(json.dumps([entry]))
        assert kept["baseline"] == json.loads(json.dumps(expected["baseline"]))


def test_the_source_is_read_once_for_each_artifact_and_once_for_the_check(sources, tmp_path, monkeypatch):
    seen = []
    original = LocalSource.read
    monkeypatch.setattr(LocalSource, "read", lambda self, name: (seen.append(name), original(self, name))[1])
    jobs = jobs_of(sources("llama", dtype=torch.bfloat16), tmp_path)
    run_together(jobs, check=SamePassCheck(jobs, OPTIONS))
    source = str(jobs[0].checkpoint.folder)
    assert source
    linear = "model.layers.1.mlp.up_proj.weight"
    assert seen.count(linear) == len(RECIPES) + 1
    assert seen.count("model.embed_tokens.weight") == len(RECIPES)
