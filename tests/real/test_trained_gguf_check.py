"""GGUF files of a trained model: `quantkit check` and llama.cpp read the same perplexity from them."""

import pytest
from gguf_losses import PYTHON, readings
from gguf_runs import converted

TYPES = ("F16", "Q8_0", "Q4_0", "Q4_K_M")
WEIGHTS = 1e-5  # relative; measured: 2e-7
ACTIVATIONS = 3e-3  # which llama.cpp rounds to 8 bits; measured: 6e-4
pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(not PYTHON.exists(), reason="llama.cpp is not installed: make peers"),
]


@pytest.fixture(scope="module")
def found(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wikilm")
    made = converted(data / "models" / "wikilm", folder, *TYPES)
    files = [made.folder / next(iter(record["files"])) for record in made.records]
    text = folder / "some.txt"
    text.write_text((data / "text" / "tinyshakespeare.txt").read_text("utf-8")[:6000], encoding="utf-8")
    read = readings(files, data / "models" / "wikilm", text, folder, like_llama_cpp=True)
    return dict(zip(TYPES, read, strict=True))


@pytest.mark.parametrize("name", TYPES)
def test_the_perplexity_is_llama_cpps(found, name):
    one = found[name]
    assert one["ours"] == pytest.approx(one["spelled_out"], rel=WEIGHTS)
    for theirs in ("theirs", "float32"):
        assert one["ours"] == pytest.approx(one[theirs], rel=ACTIVATIONS)
        assert abs(one["ours"] / one[theirs] - 1) < one["error"]
    if name != "F16":
        assert one["baseline"] != pytest.approx(one["spelled_out"], rel=10 * WEIGHTS)
