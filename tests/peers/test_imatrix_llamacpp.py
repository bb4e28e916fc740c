"""Importance matrices beside llama.cpp's own activations: the sums that llama-imatrix would take, by the same names."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf_files import Planned, write_gguf
from gguf_variants import NAMES, make
from tiny import token_ids

from quantkit.calibration import build_tokens
from quantkit.pipeline.imatrix import collect
from quantkit.progress import Silent
from quantkit.recipe import Calibration
from quantkit.skeleton import Skeleton
from quantkit.vocab.load import load_tokenizer

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-peers-llama-cpp" / "bin" / "python"
SCRIPT = ROOT / "tests" / "peers" / "imatrix_child.py"
EMBEDDED = ROOT / "examples" / "tiny-llama"
pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(not PYTHON.exists(), reason="llama.cpp is not installed: make peers"),
]

FAMILIES = [name for name in NAMES if "-" not in name]  # one dense variant of each
# Windows of tests/tiny.py that llama.cpp overlooks: within them it computes the same.
WINDOW = 8
WITHIN_WINDOW = ("mistral", "starcoder2")
GELU_FAMILIES = ("gemma", "gemma2", "gemma3", "starcoder2", "xglm")  # llama.cpp reads GELU from a float16 table
# Of a sum, or of the mean of a weight's sums where that is larger.
TOLERANCE = 1e-5  # measured: 3e-6
GELU_TOLERANCE = 2e-3  # measured: 8e-4
BFLOAT16_TOLERANCE = 3e-2  # measured: 1.2e-2


def collected(planned, ids, dtype=torch.float32):
    skeleton = Skeleton(planned.family, planned.config, dtype)
    return collect(skeleton, planned.source, planned.rows, ids, Silent())


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Every family -> our entries and llama.cpp's sums; and the embedded model's in float32 and bfloat16."""
    folder = tmp_path_factory.mktemp("imatrix")
    jobs, entries = [], {}

    def job(name, planned, ids):
        np.save(folder / f"{name}.ids.npy", ids.numpy())
        model = write_gguf(planned, folder / f"{name}.gguf", "F32")
        jobs.append({"model": str(model), "ids": str(folder / f"{name}.ids.npy"), "out": str(folder / f"{name}.npz")})

    for name in FAMILIES:
        planned = Planned(make(folder / name, name))
        ids = token_ids(2, WINDOW if name in WITHIN_WINDOW else 40, seed=3)
        job(name, planned, ids)
        entries[name] = collected(planned, ids)
    planned = Planned(EMBEDDED)
    text = Calibration(samples=8, sequence_length=256)
    tokens = build_tokens(text, load_tokenizer(EMBEDDED, planned.config, None), 4096)
    job("embedded", planned, tokens.ids)
    for name, dtype in (("embedded", torch.float32), ("embedded-bfloat16", torch.bfloat16)):
        entries[name] = collected(planned, tokens.ids, dtype)
    (folder / "jobs.json").write_text(json.dumps(jobs))
    done = subprocess.run([PYTHON, SCRIPT, folder / "jobs.json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    theirs = {name: dict(np.load(folder / f"{name}.npz")) for name in entries if not name.endswith("bfloat16")}
    return entries, theirs


def largest_difference(ours, theirs):
    """Of any sum, once names and counts are equal."""
    assert set(ours) == {name for name in theirs if not name.endswith(".count")}
    found = 0.0
    for name, entry in ours.items():
        assert entry.counts.tolist() == [theirs[f"{name}.count"]]
        expected = theirs[name]
        found = max(found, (np.abs(entry.sums[0] - expected) / np.maximum(expected, expected.mean())).max())
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_sums_are_those_of_llama_cpp(measured, name):
    entries, theirs = measured
    assert largest_difference(entries[name], theirs[name]) < (GELU_TOLERANCE if name in GELU_FAMILIES else TOLERANCE)


def test_of_a_trained_model_and_calibration_text(measured):
    entries, theirs = measured
    assert largest_difference(entries["embedded"], theirs["embedded"]) < TOLERANCE


def test_in_bfloat16_they_are_nearly_the_same(measured):
    entries, theirs = measured
    assert TOLERANCE < largest_difference(entries["embedded-bfloat16"], theirs["embedded"]) < BFLOAT16_TOLERANCE
