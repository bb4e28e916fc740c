"""The perplexity that `quantkit check` reads from GGUF files is llama.cpp's own, and `--measure` runs them there."""

import dataclasses
import shutil
from pathlib import Path

import pytest
from gguf_files import Planned, write_gguf
from gguf_losses import PYTHON, readings
from gguf_runs import converted
from gguf_variants import make

from quantkit.pipeline.measure import measure

TINY_LLAMA = Path(__file__).parents[2] / "examples" / "tiny-llama"
TYPES = ("F16", "BF16", "Q8_0", "Q4_0", "Q2_K", "Q4_K_M", "Q6_K", "IQ4_XS")
pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(not PYTHON.exists(), reason="llama.cpp is not installed: make peers"),
]
# Relative, between two perplexities of the same weights in float32.
WEIGHTS = 1e-5
# llama.cpp rounds what it multiplies matrices of these types by to 8 bits, and to 16 for those of 16.
ACTIVATIONS = {"F16": 1e-3, "BF16": 5e-3}
EIGHT_BITS = 3e-2
GELU = 2e-4  # which llama.cpp reads from a table of float16; measured: 1e-4


@pytest.fixture(scope="module", autouse=True)
def _here(one_thread):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("quantkit.pipeline.machine.measure_rate", lambda *_: 1e11)
        yield


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "some.txt"
    path.write_text((TINY_LLAMA / "sample.txt").read_text("utf-8")[:4000], encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def found(text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("types")
    made = converted(TINY_LLAMA, folder, *TYPES)
    files = [made.folder / next(iter(record["files"])) for record in made.records]
    return dict(zip(TYPES, readings(files, TINY_LLAMA, text, folder, like_llama_cpp=True), strict=True))


@pytest.mark.parametrize("name", TYPES)
def test_the_weights_are_those_that_llama_cpp_computes_with(found, name):
    one = found[name]
    assert one["ours"] == pytest.approx(one["spelled_out"], rel=WEIGHTS)
    if name not in ("F16", "BF16"):  # and not those of the baseline
        assert one["baseline"] != pytest.approx(one["spelled_out"], rel=10 * WEIGHTS)


@pytest.mark.parametrize("name", TYPES)
def test_the_perplexity_is_llama_cpps_own(found, name):
    one = found[name]
    for theirs in ("theirs", "float32"):
        assert one["ours"] == pytest.approx(one[theirs], rel=ACTIVATIONS.get(name, EIGHT_BITS))
        assert abs(one["ours"] / one[theirs] - 1) < one["error"]


def test_a_tied_models_own_head_is_computed_with(tmp_path, text):
    planned = Planned(make(tmp_path / "model", "olmo2-tied"))
    (output,) = [row for row in planned.rows if row.name == "output.weight"]  # in the file it is a tensor of its own
    larger = dataclasses.replace(output, assembly=dataclasses.replace(output.assembly, scale=20.0))
    planned.rows = tuple(larger if row is output else row for row in planned.rows)
    path = write_gguf(planned, tmp_path / "headed.gguf", "F32")
    (one,) = readings([path], tmp_path / "model", text, tmp_path, context=64)
    assert one["ours"] == pytest.approx(one["float32"], rel=WEIGHTS)
    assert one["baseline"] != pytest.approx(one["float32"], rel=0.1)


@pytest.mark.parametrize("name", ["xglm", "gemma", "gemma2"])
def test_other_families(tmp_path, text, name):
    path = write_gguf(Planned(make(tmp_path / "model", name)), tmp_path / "model.gguf", "Q8_0")
    (one,) = readings([path], tmp_path / "model", text, tmp_path, context=64)
    assert one["ours"] == pytest.approx(one["spelled_out"], rel=GELU)
    assert one["baseline"] != pytest.approx(one["spelled_out"], rel=GELU)


def test_measured_memory_and_speed(tmp_path):
    made = converted(TINY_LLAMA, tmp_path, "F16", split_max_size="3MB")
    parts = [made.folder / name for name in made.records[0]["files"]]
    before = set(tmp_path.iterdir())
    found = measure(parts[0], str(PYTHON), "cpu", prompt_tokens=20, new_tokens=4)
    assert not isinstance(found, str), found
    assert found["runtime"].startswith("xllamacpp 20")
    assert (found["device"], found["prompt_tokens"], found["new_tokens"], found["context"]) == ("cpu", 20, 4, 24)
    weights = sum(part.stat().st_size for part in parts)
    assert found["peak_bytes"] - found["before_bytes"] > weights > 8_000_000
    for key in ("load_seconds", "prompt_tokens_per_second", "generation_tokens_per_second"):
        assert found[key] > 0
    assert set(tmp_path.iterdir()) == before  # nothing is left behind


def test_a_file_that_llama_cpp_does_not_run_is_one_sentence(tmp_path):
    planned = Planned(make(tmp_path / "model", "llama"))
    bare = write_gguf(planned, tmp_path / "bare.gguf", "F16")
    assert measure(bare, str(PYTHON)) == "it has no vocabulary, without which llama.cpp writes nothing"
    made = converted(TINY_LLAMA, tmp_path / "made", "F16")
    path = Path(shutil.copy(made.folder / next(iter(made.records[0]["files"])), tmp_path / "odd.gguf"))
    path.write_bytes(path.read_bytes().replace(b"llama.block_count", b"llama.block_cuont"))
    said = measure(path, str(PYTHON))
    assert isinstance(said, str)
    assert "\n" not in said
    assert "Failed to init server" in said
