"""GGUF models by the names of their files and folders."""

from pathlib import Path

import pytest

from quantkit.errors import BadInputError
from quantkit.weights.gguf_names import find_gguf, gguf_parts, gguf_stem

PARTS = [f"a-0000{n}-of-00003.gguf" for n in (1, 2, 3)]


def test_the_parts_of_a_model_belong_together():
    for part in PARTS:
        assert [path.name for path in gguf_parts(Path("folder", part))] == PARTS
        assert gguf_stem(Path(part)) == "a"
    assert gguf_parts(Path("x", "a.gguf")) == [Path("x", "a.gguf")]
    assert gguf_stem(Path("a.b-Q4_K_M.gguf")) == "a.b-Q4_K_M"
    assert gguf_parts(Path("a-00001-of-00000.gguf")) == [Path("a-00001-of-00000.gguf")]


def test_a_folder_of_one_model_is_that_model(tmp_path):
    assert find_gguf(tmp_path) is None
    for part in PARTS:
        (tmp_path / part).touch()
    (tmp_path / "README.md").touch()
    (tmp_path / "config.json").touch()
    assert find_gguf(tmp_path) == tmp_path / PARTS[0]
    (tmp_path / PARTS[0]).unlink()  # it is missed when the model is opened
    assert find_gguf(str(tmp_path)) == tmp_path / PARTS[0]


def test_other_weights_make_a_folder_a_checkpoint(tmp_path):
    (tmp_path / "a.gguf").touch()
    (tmp_path / "model.safetensors").touch()
    assert find_gguf(tmp_path) is None
    assert find_gguf(tmp_path / "a.gguf") == tmp_path / "a.gguf"


def test_several_models_of_a_folder_are_refused(tmp_path):
    for name in (*PARTS, "b.gguf", "c.gguf", "d.gguf"):
        (tmp_path / name).touch()
    with pytest.raises(BadInputError, match=r"holds 4 GGUF models: a-00001-of-00003\.gguf, b\.gguf, c\.gguf, \.\.\."):
        find_gguf(tmp_path)


@pytest.mark.parametrize("reference", ["org/name", "org/name@main", "", "~nobody-of-that-name/x", "a\0b", "x" * 5000])
def test_other_references_are_none(reference):
    assert find_gguf(reference) is None
