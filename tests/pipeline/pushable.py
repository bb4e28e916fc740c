"""Checked artifacts to push, small and real, and the loopback Hub as a push sees it."""

import shutil
from pathlib import Path

import pytest
from artifacts import quantize
from gguf_runs import asked_here, converted

from quantkit.checkfile import CHECK_FILE
from quantkit.manifest import read_manifest, write_manifest
from quantkit.pipeline import check
from quantkit.pipeline.check_job import CheckOptions, prepare
from quantkit.quality.gates import Limits
from quantkit.weights import hashes

GENEROUS = Limits(ppl_increase=9.0, kl=9.0, top1=0.0, row_error=9.0, slope=9.0, bias=9.0)  # for random weights
TEXT = Path(__file__).parents[2] / "examples" / "tiny-llama" / "sample.txt"
REPO = "tester/model"


def checked(baseline, *artifacts, passes=True):
    """Measure artifacts over a few lines of text."""
    text = artifacts[0].parent / "some.txt"
    text.write_text(TEXT.read_text("utf-8")[:400], encoding="utf-8")
    limits = GENEROUS if passes else Limits(kl=1e-12)
    options = CheckOptions(text=(str(text),), context=64, dtype="float32", limits=limits)
    check.run(prepare([str(path) for path in artifacts], str(baseline), options))
    text.unlink()


@pytest.fixture(scope="session")
def gptq_made(sources, tmp_path_factory):
    """A checked GPTQ checkpoint in two shards. Not to be changed."""
    folder = tmp_path_factory.mktemp("made") / "model-GPTQ-Int8"
    quantize(sources("llama"), folder, bits=8, max_shard_size="400kB")
    checked(sources("llama"), folder)
    return folder


@pytest.fixture(scope="session")
def gguf_made(sources, tmp_path_factory):
    """Two checked GGUF models in a folder. Not to be changed."""
    folder = tmp_path_factory.mktemp("made") / "model-GGUF"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("quantkit.pipeline.gguf_told._ask", asked_here)
        converted(sources("llama"), folder, "Q8_0", "Q4_0")
    checked(sources("llama"), *sorted(folder.glob("*.gguf")))
    return folder


@pytest.fixture
def gptq(gptq_made, tmp_path):
    return Path(shutil.copytree(gptq_made, tmp_path / gptq_made.name))


@pytest.fixture
def gguf(gguf_made, tmp_path):
    return Path(shutil.copytree(gguf_made, tmp_path / gguf_made.name))


def make_gated(folder):
    """As if the base model were gated."""
    manifest = read_manifest(folder)
    base = manifest.base.model_copy(update={"gated": True})
    write_manifest(folder, manifest.model_copy(update={"base": base}))


def contents(folder):
    """Name -> bytes of all that a push takes."""
    paths = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    return {path.name: path.read_bytes() for path in paths}


def held(hub, repo=REPO, branch="main"):
    """Name -> bytes of what the Hub has, without its own .gitattributes."""
    return {name: data for name, data in hub.repo(repo).files(branch).items() if name != ".gitattributes"}


def commits(hub, repo=REPO, branch="main"):
    """How many commits there are behind the one with which a repository begins."""
    return len(hub.repo(repo).history(branch)) - 1


def uploads(hub):
    """Objects that were uploaded and kept, one entry for each time."""
    return [request.path for request in hub.requests if request.method == "PUT" and request.status == 200]


def hashed(monkeypatch):
    """The paths of files of which every byte is read for a sha256, from now on, as often as it happens."""
    read = []
    file_hash = hashes.file_hash
    monkeypatch.setattr(hashes, "file_hash", lambda path: read.append(path) or file_hash(path))
    return read


def without_check(folder):
    for path in folder.glob(f"*{CHECK_FILE}"):
        path.unlink()
