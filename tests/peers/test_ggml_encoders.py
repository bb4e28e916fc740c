"""Our encoders against ggml's own: the same bytes for ordinary weights, for trained ones, and at the edges."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from formats.ggml.ggml_weights import F32, KINDS, importances, weights
from safetensors import safe_open

from quantkit.formats.ggml.encode import encode, requires_importance
from quantkit.weights.gguf_types import GGML_TYPES

ROOT = Path(__file__).parents[2]
PEER = ROOT / ".venv-peers-llama-cpp"
PEER_PYTHON = PEER / "bin" / "python"
pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(not PEER_PYTHON.exists(), reason="the peers are not installed: make peers"),
]

OURS = [
    "F16",
    "BF16",
    "Q4_0",
    "Q4_1",
    "Q5_0",
    "Q5_1",
    "Q8_0",
    "Q2_K",
    "Q3_K",
    "Q4_K",
    "Q5_K",
    "Q6_K",
    "IQ4_NL",
    "IQ4_XS",
]
COLUMNS = 768
IMPORTANCES = importances(COLUMNS)
NATIVE = ("IQ2_XXS", "IQ3_S", "TQ1_0", "TQ2_0", "MXFP4")  # of the others, some compute tables for ten seconds
# Within what native.py lets through, and where the grid searches of ggml come nearest to their assertions.
NATIVE_KINDS = ("normal", "ties", "sparse", "constant", "zero", "subnormal", "small", "mixed")
NATIVELY = """
import sys, numpy as np
from quantkit.formats.ggml.encode import encode
with np.load(sys.argv[1]) as jobs:
    given = dict(jobs)
out = {}
for key in given:
    if key.startswith("values/"):
        _, name, rest = key.split("/")
        out[f"{name}/{rest}"] = encode(name, given[key], given.get(key.replace("values", "importance", 1)))
assert "xllamacpp" not in sys.modules
np.savez(sys.argv[2], **out)
"""


class Ggml:
    """`ggml_quantize_chunk` in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0
        script = Path(__file__).parent / "ggml_quantize.py"
        self.process = subprocess.Popen(
            [PEER_PYTHON, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def quantize(self, name: str, values: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
        """[rows, row bytes] uint8."""
        self.count += 1
        kind, paths = GGML_TYPES[name], [self.folder / f"{self.count}-{what}.npy" for what in ("x", "w", "out")]
        np.save(paths[0], values)
        if importance is not None:
            np.save(paths[1], importance)
        job = {"type": kind.number, "values": str(paths[0]), "importance": None, "out": str(paths[2]), "rounds": 1}
        job |= {"row_bytes": kind.row_bytes(values.shape[1])}
        job |= {"importance": str(paths[1])} if importance is not None else {}
        self.process.stdin.write(json.dumps(job) + "\n")
        assert self.process.stdout.readline(), "ggml ended its process"
        return np.load(paths[2])


@pytest.fixture(scope="module")
def ggml(tmp_path_factory):
    peer = Ggml(tmp_path_factory.mktemp("ggml"))
    yield peer
    peer.process.stdin.close()
    assert peer.process.wait() == 0


def different_blocks(name, ours, theirs) -> int:
    size = GGML_TYPES[name].block_bytes
    return int((ours.reshape(-1, size) != theirs.reshape(-1, size)).any(axis=1).sum())


@pytest.mark.parametrize("name", OURS)
def test_same_bytes(ggml, name):
    """Of every kind of weights, 35 rows: two full groups of lanes and a part of one."""
    values = {kind: weights(kind, 35, COLUMNS, seed=1) for kind in KINDS}
    rows = np.concatenate(list(values.values()))
    for what, importance in {"none": None, **IMPORTANCES}.items():
        ours, theirs = encode(name, rows, importance), ggml.quantize(name, rows, importance)
        for i, kind in enumerate(values):
            part = slice(i * 35, (i + 1) * 35)
            assert different_blocks(name, ours[part], theirs[part]) == 0, (kind, what)


@pytest.mark.parametrize("name", OURS)
def test_same_bytes_of_trained_weights(ggml, name):
    with safe_open(ROOT / "examples" / "tiny-llama" / "model.safetensors", "pt") as file:
        tensors = [file.get_tensor(key).float().numpy() for key in file.keys()]  # noqa: SIM118
    flat = np.concatenate([tensor.reshape(-1) for tensor in tensors if tensor.ndim == 2])[: 1024 * COLUMNS]
    values = flat[: flat.size // COLUMNS * COLUMNS].reshape(-1, COLUMNS)
    for importance in (None, IMPORTANCES["activations"]):
        ours, theirs = encode(name, values, importance), ggml.quantize(name, values, importance)
        assert different_blocks(name, ours, theirs) == 0


def test_native_types(ggml, tmp_path):
    """Found without an import, in a process that has quantkit and, beside it, nothing of the peer but its wheel."""
    (package,) = PEER.glob("lib/python3*/site-packages/xllamacpp")
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "xllamacpp").symlink_to(package)
    rows = np.concatenate([np.clip(weights(kind, 2, 256), -65504, 65504) for kind in NATIVE_KINDS])
    importance = {"few": IMPORTANCES["few"][:256], "zero": np.zeros(256, F32), "large": np.full(256, 1e15, F32)}
    jobs, expected = {}, {}
    for name in NATIVE:
        for what in ("none", *importance):
            if what == "none" and requires_importance(name):
                continue
            jobs[f"values/{name}/{what}"] = rows
            if what != "none":
                jobs[f"importance/{name}/{what}"] = importance[what]
            expected[f"{name}/{what}"] = ggml.quantize(name, rows, importance.get(what))
    np.savez(tmp_path / "jobs.npz", **jobs)
    command = [sys.executable, "-c", NATIVELY, tmp_path / "jobs.npz", tmp_path / "out.npz"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path / 'path'}"}
    subprocess.run(command, env=environment, check=True)
    with np.load(tmp_path / "out.npz") as out:
        assert set(out) == set(expected)
        for key in expected:
            assert np.array_equal(out[key], expected[key]), key
