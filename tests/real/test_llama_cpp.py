"""`--like-llama-cpp` beside llama.cpp itself: one model as a folder and as a GGUF file, one text file."""

import json
import math
import subprocess
from pathlib import Path

import pytest
import torch

from quantkit.pipeline.check import run
from quantkit.pipeline.check_job import CheckOptions, prepare
from quantkit.vocab.load import load_tokenizer

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-peers-llama-cpp" / "bin" / "python"
SCRIPT = ROOT / "tests" / "peers" / "llama_cpp_perplexity.py"
pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(not PYTHON.exists(), reason="llama.cpp is not installed: make peers"),
]

CONTEXT, HALF = 512, 256
# Relative, between two perplexities. The controls, scored one token earlier or later, are at 1e-3.
ALL_IN_FLOAT32 = 1e-6  # measured: 2e-8
ITS_ATTENTION_IN_FLOAT16 = 3e-4  # measured: 6e-5


def llama_cpp(data: Path, text: Path, out: Path) -> dict:
    model = data / "fixtures" / "stories260K.gguf"  # the float32 weights of models/stories260K
    done = subprocess.run([PYTHON, SCRIPT, model, text, out], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())


def our_job(data: Path, text: Path):
    options = CheckOptions(text=(str(text),), like_llama_cpp=True, dtype="float32", device="cpu")
    return prepare([], str(data / "models" / "stories260K"), options)


@pytest.fixture(scope="module")
def text(data) -> Path:
    return data / "text" / "tinystories_heldout.txt"


@pytest.fixture(scope="module")
def theirs(data, text, tmp_path_factory) -> dict:
    return llama_cpp(data, text, tmp_path_factory.mktemp("llama_cpp") / "found.json")


@pytest.fixture(scope="module")
def job(data, text):
    return our_job(data, text)


@pytest.fixture(scope="module")
def ours(job) -> dict:
    return run(job)["baseline"]["metrics"]["all"]


def _perplexity(losses: list[list[float]], first: int, end: int | None = None) -> float:
    """Of the tokens first + 1 to end of every window: a loss belongs to the token behind its position."""
    part = torch.tensor(losses, dtype=torch.float64)[:, first:end]
    return math.exp(part.mean())


def test_the_ids_and_windows_are_the_same(job, theirs):
    whole = len(theirs["ids"]) // CONTEXT
    expected = torch.tensor(theirs["ids"][: whole * CONTEXT]).view(whole, CONTEXT)
    expected[:, 0] = theirs["ids"][0]
    assert theirs["ids"][0] == 1
    assert whole == 29
    assert torch.equal(job.windows.ids, expected)


def test_the_perplexity_is_llama_cpps_within_its_standard_error(ours, theirs):
    found = theirs["default"]
    assert ours["tokens"] == 29 * 255
    assert abs(ours["perplexity"] - found["perplexity"]) < found["error"] < 0.03 * found["perplexity"]


def test_nothing_but_the_precision_of_its_attention_is_different(ours, theirs):
    assert ours["perplexity"] == pytest.approx(theirs["default"]["perplexity"], rel=ITS_ATTENTION_IN_FLOAT16)
    exact = theirs["float32"]
    assert ours["perplexity"] == pytest.approx(exact["perplexity"], rel=ALL_IN_FLOAT32)
    assert ours["perplexity_error"] == pytest.approx(exact["error"], rel=ALL_IN_FLOAT32)


def test_other_tokens_of_the_same_windows_do_not_agree(ours, theirs):
    losses = theirs["float32"]["losses"]
    assert _perplexity(losses, HALF) == pytest.approx(theirs["float32"]["perplexity"], rel=1e-12)
    for first, end in ((HALF - 1, None), (HALF + 1, None), (HALF, -1)):
        assert ours["perplexity"] != pytest.approx(_perplexity(losses, first, end), rel=ITS_ATTENTION_IN_FLOAT16)
    first_half = _perplexity(losses, 0, HALF)
    assert abs(ours["perplexity"] - first_half) > 5 * theirs["default"]["error"]


def test_a_newline_at_the_end_of_a_file_completes_no_window(data, text, tmp_path):
    tokenizer, story = load_tokenizer(data / "models" / "stories260K"), text.read_text("utf-8")

    def tokens(content: str) -> int:
        return 1 + len(tokenizer(content, add_special_tokens=False)["input_ids"])

    end = next(end for end in range(1800, 4000) if tokens(story[:end] + "\n") == 2 * CONTEXT)
    file = tmp_path / "cut.txt"
    for ending, windows in (("\n", 1), ("\n\n", 2)):
        file.write_text(story[:end] + ending, "utf-8")
        assert len(llama_cpp(data, file, tmp_path / "cut.json")["default"]["losses"]) == windows
        assert len(our_job(data, file).windows.ids) == windows
