"""Files of `quantkit gguf` beside ggml and in llama.cpp: the same bytes, the same ids, the logits that follow."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf_files import Planned
from gguf_runs import content, random_imatrix
from pipeline.artifacts import model_of
from vocab.texts import shipped

from quantkit.gguf_source import GgufSource
from quantkit.vocab.corpus import corpus
from quantkit.vocab.gguf_verify import ask
from quantkit.vocab.load import load_tokenizer
from quantkit.weights.gguf_types import GGML_TYPES
from quantkit.weights.imatrix import write_imatrix

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "examples" / "tiny-llama"
ENVIRONMENT = ROOT / ".venv-peers-llama-cpp"
PYTHON = ENVIRONMENT / "bin" / "python"
QUANTIZE, LOGITS = (ROOT / "tests" / "peers" / name for name in ("ggml_quantize.py", "gguf_logits_child.py"))
pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(not PYTHON.exists(), reason="llama.cpp is not installed: make peers"),
]

# Mixtures of the types that quantkit encodes itself, every one of them; and of ggml's some whose tables are soon made.
OWN = (
    "F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S",
    "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K", "IQ4_NL", "IQ4_XS",
)  # fmt: skip
NATIVE = ("TQ1_0", "TQ2_0", "MXFP4_MOE")
IMPORTANT = ("IQ2_XXS", "Q2_K_S")  # refused without an imatrix


@pytest.fixture(scope="module")
def with_ggml(tmp_path_factory) -> dict[str, str]:
    """An environment in which quantkit finds xllamacpp, and nothing else of the peer's."""
    packages = next(ENVIRONMENT.glob("lib/python*/site-packages"))
    folder = tmp_path_factory.mktemp("ggml")
    for found in packages.glob("xllamacpp*"):
        (folder / found.name).symlink_to(found)
    return os.environ | {"PYTHONPATH": str(folder)}


def quantkit(environment, out: Path, types, *more) -> dict[str, dict]:
    """The records of a run by type."""
    command = [sys.executable, "-m", "quantkit.cli", "gguf", MODEL, "--out", out, "--json", *more]
    for kind in types:
        command += ["--type", kind]
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return {record["type"]: record for record in json.loads(done.stdout)["outputs"]}


class Ggml:
    """Asks `ggml_quantize_chunk` for the blocks of tensors of the plan, each question once."""

    def __init__(self, planned, folder: Path, imatrix) -> None:
        self.planned, self.folder, self.imatrix = planned, folder, imatrix
        self.rows = {row.name: row for row in planned.rows}
        self.jobs: dict[tuple[str, str, bool], dict] = {}

    def ask(self, name: str, kind: str, important: bool) -> None:
        shares = self.imatrix.entries.get(name) if important else None
        if (name, kind, shares is not None) in self.jobs:
            return
        values, importance = self.folder / f"{name}.npy", self.folder / f"{name}.importance.npy"
        if not values.exists():
            np.save(values, np.atleast_2d(self.planned.tensor(self.rows[name])))
        if shares is not None and not importance.exists():
            np.save(importance, (shares.sums / shares.counts[:, None]).astype(np.float32)[0])
        self.jobs[name, kind, shares is not None] = {
            "type": GGML_TYPES[kind].number,
            "values": str(values),
            "importance": None if shares is None else str(importance),
            "row_bytes": GGML_TYPES[kind].row_bytes(self.rows[name].shape[-1]),
            "out": str(self.folder / f"{len(self.jobs)}.out.npy"),
            "rounds": 1,
        }

    def answer(self) -> dict[tuple[str, str, bool], bytes]:
        questions = "".join(json.dumps(job) + "\n" for job in self.jobs.values())
        done = subprocess.run([PYTHON, QUANTIZE], input=questions, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return {key: np.load(job["out"]).tobytes() for key, job in self.jobs.items()}


@pytest.fixture(scope="module")
def planned() -> Planned:
    return Planned(MODEL)


@pytest.fixture(scope="module")
def made(with_ggml, planned, tmp_path_factory) -> dict[bool, dict[str, dict]]:
    """The records, without an importance matrix and with one; `path` is the file."""
    folder = tmp_path_factory.mktemp("made")
    write_imatrix(folder / "imatrix.gguf", random_imatrix(planned))
    found = {
        False: quantkit(with_ggml, folder / "without", OWN + NATIVE),
        True: quantkit(with_ggml, folder / "with", OWN + NATIVE + IMPORTANT, "--imatrix", folder / "imatrix.gguf"),
    }
    for important, records in found.items():
        for record in records.values():
            (name,) = record["files"]
            record["path"] = folder / ("with" if important else "without") / name
    return found


@pytest.fixture(scope="module")
def witnessed(made, planned, tmp_path_factory) -> dict[tuple[str, str, bool], bytes]:
    """ggml's blocks of every tensor in every type that it has in one of the files."""
    ggml = Ggml(planned, tmp_path_factory.mktemp("blocks"), random_imatrix(planned))
    for important, records in made.items():
        for record in records.values():
            for name, (kind, _, _) in content(record["path"]).items():
                ggml.ask(name, kind, important)
    return ggml.answer()


@pytest.mark.parametrize("important", [False, True], ids=["plain", "imatrix"])
@pytest.mark.parametrize("kind", [*OWN, *NATIVE, *IMPORTANT])
def test_the_bytes_are_ggmls(made, witnessed, planned, kind, important):
    if kind in IMPORTANT and not important:
        assert kind not in made[important]
        return
    record = made[important][kind]
    found = content(record["path"])
    entries = random_imatrix(planned).entries
    assert list(found) == [row.name for row in planned.rows]
    for name, (stored, _, data) in found.items():
        assert data == witnessed[name, stored, important and name in entries], (name, stored)


def test_every_type_of_ours_was_witnessed(witnessed):
    found = {kind for _, kind, _ in witnessed}
    assert found >= {"Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "IQ4_XS"}
    assert found >= {"IQ2_XXS", "TQ1_0", "TQ2_0"}


def test_importance_makes_other_bytes(made):
    """Or the witness of one would do for the other."""
    for kind in ("Q4_0", "Q5_1", "Q2_K", "Q3_K_S", "Q4_K_S", "Q5_K_S", "Q6_K", "IQ4_XS"):
        plain, weighted = (content(made[important][kind]["path"]) for important in (False, True))
        assert plain["blk.2.attn_q.weight"] != weighted["blk.2.attn_q.weight"], kind


def test_the_record_says_what_took_part(made):
    version = (
        next(ENVIRONMENT.glob("lib/python*/site-packages/xllamacpp-*.dist-info")).name.split("-")[1].split(".dist")[0]
    )
    for records in made.values():
        assert records["TQ1_0"]["fingerprint"]["version.xllamacpp"] == version
        for record in records.values():
            assert "gives the same ids on" in record["vocabulary"]["verified"]


def test_ids_are_those_of_the_tokenizer(made):
    """Asked of a finished file, not of a vocabulary alone."""
    tokenizer = load_tokenizer(MODEL, json.loads((MODEL / "config.json").read_text()), None)
    texts = [*corpus(["<|endoftext|>"]), *shipped()[::3]]
    assert len(texts) > 500
    answer = ask(made[False]["Q4_K_M"]["path"], texts, texts[:50], "tiny-llama", PYTHON)
    assert answer["plain"] == tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert answer["framed"] == tokenizer(texts[:50], add_special_tokens=True)["input_ids"]


# Of the largest logit difference, in standard deviations of the logits. Quantized matrices let llama.cpp round its
# activations to eight bits. Measured: 2e-5, 3e-3, 0.10, 0.16; and of Q4_K_M from the weights before, 1.02.
TOLERANCES = {"F32": 1e-4, "F16": 1e-2, "Q8_0": 0.2, "Q4_K_M": 0.3}


@pytest.fixture(scope="module")
def computed(made, planned, tmp_path_factory) -> dict[str, np.ndarray]:
    """llama.cpp's logits by type."""
    folder = tmp_path_factory.mktemp("logits")
    np.save(folder / "ids.npy", IDS[0].numpy())
    jobs = [
        {"model": str(made[False][kind]["path"]), "ids": str(folder / "ids.npy"), "out": str(folder / f"{kind}.npy")}
        for kind in TOLERANCES
    ]
    (folder / "jobs.json").write_text(json.dumps(jobs))
    done = subprocess.run([PYTHON, LOGITS, folder / "jobs.json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return {kind: np.load(folder / f"{kind}.npy") for kind in TOLERANCES}


IDS = torch.randint(3, 2048, (1, 200), generator=torch.Generator().manual_seed(39))


@torch.no_grad()
def logits(planned, source) -> np.ndarray:
    return model_of(planned.config, source)(input_ids=IDS, use_cache=False).logits[0].numpy()


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / expected.std())


@pytest.mark.parametrize("kind", TOLERANCES)
def test_logits_are_those_of_the_dequantized_weights(made, computed, planned, kind):
    source = GgufSource(made[False][kind]["path"], planned.family, planned.gguf, planned.config, planned.source.infos)
    found = distance(computed[kind], logits(planned, source))
    print(kind, found, distance(computed[kind], logits(planned, planned.source)))
    assert found < TOLERANCES[kind]
