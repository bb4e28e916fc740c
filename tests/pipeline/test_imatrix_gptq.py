"""Importance matrices of GPTQ runs: of one pass, of a continued one, of one that was finished long ago."""

from pathlib import Path

import numpy as np
import pytest
import torch
from artifacts import Recorder, dequantized, job_of, model_of, read_json
from gguf_files import Planned
from imatrix_sums import collected, counted_passes, hooked, same

from quantkit.calibration import CalibrationTokens
from quantkit.cli import _run
from quantkit.devices import Device
from quantkit.errors import BadInputError, UsageError
from quantkit.pipeline import calibration_sets, gptq, gptq_imatrix
from quantkit.weights.imatrix import Entry, Imatrix, read_imatrix, write_imatrix

CPU = Device(torch.device("cpu"), torch.float32, "to be exact")
KEYS = ("quantkit.calibration_sha256", "quantkit.source", "quantkit.compute")


@pytest.fixture
def passes(monkeypatch) -> list[int]:
    return counted_passes(monkeypatch, gptq_imatrix)


@pytest.fixture
def tokens(monkeypatch) -> list[CalibrationTokens]:
    """What GPTQ runs read."""
    seen: list[CalibrationTokens] = []
    build = calibration_sets.build_tokens

    def building(*arguments):
        seen.append(build(*arguments))
        return seen[-1]

    monkeypatch.setattr(calibration_sets, "build_tokens", building)
    return seen


def of_artifact(folder: Path, ids: torch.Tensor) -> dict[str, np.ndarray]:
    return hooked(model_of(read_json(folder / "config.json"), dequantized(folder)), ids)


def gptq_run(source, folder, progress=None, **fields):
    job = job_of(source, folder / "out", **fields)
    return gptq.run(job, progress, imatrix=folder / "imatrix.gguf")


@pytest.mark.parametrize("variant", ["llama", "phi3", "xglm"])
def test_one_pass_gives_gptq_and_imatrix(sources, tmp_path, monkeypatch, tokens, passes, variant):
    monkeypatch.setattr("quantkit.pipeline.job.choose_device", lambda _: CPU)
    source = sources(variant)
    gptq_run(source, tmp_path)
    assert passes == []
    found = read_imatrix(tmp_path / "imatrix.gguf")
    assert (found.datasets, found.chunk_count, found.chunk_size) == (("default",), 8, 64)
    planned = Planned(source)
    assert set(found.entries) == {
        row.name for row in planned.rows if row.name.startswith("blk.") and len(row.shape) == 2
    }
    # The inputs of the quantized model: each stage has seen those before it quantized. Its float16 values are rounded.
    sums = of_artifact(tmp_path / "out", tokens[0].ids)
    same(found.entries, sums, planned.rows, 8 * 64, 5e-3)
    original = collected(planned, tokens[0].ids)
    assert max(np.abs(entry.sums / original[name].sums - 1).max() for name, entry in found.entries.items()) > 2e-2


def test_an_imatrix_changes_nothing_of_the_artifact(sources, tmp_path):
    (tmp_path / "with").mkdir()
    one = gptq_run(sources("llama"), tmp_path / "with").record
    other = gptq.run(job_of(sources("llama"), tmp_path / "without")).record
    assert one["fingerprint"] == other["fingerprint"]
    assert one["files"]["model.safetensors"] == other["files"]["model.safetensors"]


def near(one: Imatrix, other: Imatrix) -> bool:
    assert set(one.entries) == set(other.entries)
    return all(
        np.allclose(entry.sums, other.entries[name].sums, rtol=2e-2, atol=2e-2 * entry.sums.mean())
        for name, entry in one.entries.items()
    )


def test_a_run_that_was_continued_or_leaves_linears_out(sources, tmp_path, passes):
    source = sources("llama")
    for name in ("whole", "continued", "finished", "skipping"):
        (tmp_path / name).mkdir()
    gptq_run(source, tmp_path / "whole")
    whole = read_imatrix(tmp_path / "whole" / "imatrix.gguf")
    with pytest.raises(KeyboardInterrupt):
        gptq_run(source, tmp_path / "continued", Recorder(layer=0))
    assert not (tmp_path / "continued" / "imatrix.gguf").exists()
    gptq_run(source, tmp_path / "continued")
    assert len(passes) == 1
    gptq.run(job_of(source, tmp_path / "finished" / "out"))
    progress = Recorder()
    gptq_run(source, tmp_path / "finished", progress)
    assert len(passes) == 2
    assert any("one more pass" in line for line in progress.said)
    for name in ("continued", "finished"):
        found = read_imatrix(tmp_path / name / "imatrix.gguf")
        assert found.metadata == whole.metadata
        assert near(found, whole)
    gptq_run(source, tmp_path / "finished")
    assert len(passes) == 2  # it is there
    gptq_run(source, tmp_path / "skipping", skip=["*.o_proj", "lm_head"])
    assert len(passes) == 3
    skipping = read_imatrix(tmp_path / "skipping" / "imatrix.gguf")
    assert set(skipping.entries) == set(whole.entries)
    assert [skipping.metadata[key] == whole.metadata[key] for key in KEYS] == [True, False, True]


def test_the_option(sources, tmp_path):
    folder, file = tmp_path / "out", tmp_path / "imatrix.gguf"
    text = ["--samples", "4", "--sequence-length", "32", "--group-size", "32", "--device", "cpu"]
    assert _run(["gptq", str(sources("llama")), "--out", str(folder), "--imatrix", str(file), *text], False) == 0
    assert read_imatrix(file).chunk_count == 4


def test_refused_before_the_run(sources, tmp_path):
    with pytest.raises(UsageError, match="--imatrix needs calibration, which --method rtn does without"):
        gptq_run(sources("llama"), tmp_path, method="rtn")
    write_imatrix(tmp_path / "imatrix.gguf", Imatrix({"w": Entry(np.ones((1, 4)), np.ones(1))}))
    with pytest.raises(BadInputError, match="will not replace"):
        gptq_run(sources("llama"), tmp_path)
    (tmp_path / "imatrix.gguf").unlink()
    with pytest.raises(BadInputError, match=r"llama\.cpp"):
        gptq_run(sources("cohere", use_qk_norm=True), tmp_path)
    assert [path.name for path in tmp_path.glob("*/*.safetensors")] == []
