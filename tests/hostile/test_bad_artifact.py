"""GGUF files given to `quantkit check`: damaged ones are refused before torch is loaded."""

import gguf_bytes as by
import pytest
from gguf_files import Planned, write_gguf
from spoil import HTML, LFS
from test_bad_gguf import CASES

from quantkit.cli import _run
from quantkit.gguf_source import GgufSource
from quantkit.pipeline import check_job

LONGEST = 400


@pytest.fixture
def artifact(good, tmp_path, monkeypatch):
    """A good file, in the working directory."""
    monkeypatch.chdir(tmp_path)
    return write_gguf(Planned(good("LlamaForCausalLM", "safetensors")), tmp_path / "model.gguf", "F16")


@pytest.fixture
def check(good, work, monkeypatch, capsys):
    """Run the command as far as it may go; returns exit code, sentence, hint and whether it waited for torch."""
    late = []
    prepare = check_job.prepare
    monkeypatch.setattr(check_job, "prepare", lambda *args, **options: late.append(1) or prepare(*args, **options))
    monkeypatch.setattr(GgufSource, "read", lambda *_: work.append("a weight was read"))

    def run(*artifacts, baseline=None):
        base = baseline or str(good("LlamaForCausalLM", "safetensors"))
        code = _run(["check", *artifacts, "--baseline", base, "--text", "english", "--dtype", "float32"], debug=False)
        out, err = capsys.readouterr()
        assert (out, work) == ("", [])
        sentence, *hint = err.splitlines()
        assert sentence.startswith("quantkit: ")
        assert len(sentence) <= LONGEST
        assert [line.startswith("hint: ") for line in hint] in ([], [True])
        return code, sentence.removeprefix("quantkit: "), "".join(hint), bool(late)

    return run


@pytest.mark.parametrize("case", CASES)
def test_a_damaged_file_is_refused_before_torch_is_loaded(tmp_path, check, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    raw, said = CASES[case]
    (tmp_path / "model.gguf").write_bytes(raw)
    code, sentence, _, late = check("model.gguf")
    assert (code, late) == (3, False)
    assert said in sentence
    assert "model.gguf" in sentence


@pytest.mark.parametrize(
    ("raw", "says", "hint"),
    [(LFS, "a git-LFS pointer", "lfs pull"), (HTML, "a web page", "again"), (b"", "an empty file", "")],
)
def test_what_is_no_gguf_file_is_named(tmp_path, check, monkeypatch, raw, says, hint):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.gguf").write_bytes(raw)
    _, sentence, hinted, late = check("model.gguf")
    assert says in sentence
    assert hint in hinted
    assert not late


def test_a_file_that_is_not_there(tmp_path, check):
    code, sentence, _, late = check("folder/model.gguf")
    assert (code, late) == (4, False)
    assert "folder/model.gguf" in sentence


def test_a_part_that_is_missing(artifact, check):
    artifact.rename("model-00001-of-00003.gguf")
    code, sentence, _, late = check("model-00001-of-00003.gguf")
    assert (code, late) == (3, False)
    assert "found split.count 1, expected a name that ends in" in sentence


def test_a_gguf_file_is_no_baseline(artifact, check):
    code, sentence, hint, late = check("model.gguf", baseline="model.gguf")
    assert (code, late) == (3, False)
    assert sentence.startswith("the baseline model.gguf is a GGUF file, which has no config.json")
    assert "the checkpoint that the artifacts were made from" in hint


def test_several_files_of_a_folder(artifact, check, tmp_path):
    (tmp_path / "other.gguf").write_bytes(artifact.read_bytes())
    code, sentence, hint, late = check(".")
    assert (code, late) == (3, False)
    assert "holds 2 GGUF models: model.gguf, other.gguf" in sentence
    assert "name one file" in hint


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("general.architecture", by.scalar("uint32", 7), "its architecture is 7, the baseline's 'llama'"),
        ("general.architecture", by.scalar("string", "rwkv" * 5000), "its architecture is 'rwkv"),
        ("llama.block_count", by.scalar("string", "two"), "block_count is two, the baseline's 2"),
        ("llama.block_count", by.array("uint32", [2] * 9999), "block_count is"),
        ("llama.rope.freq_base", by.scalar("float32", float("nan")), "rope.freq_base is nan"),
    ],
)
def test_settings_that_are_no_settings(artifact, check, key, value, says):
    raw = bytearray(artifact.read_bytes())
    spoiled = replaced(raw, key, value)
    artifact.write_bytes(spoiled)
    code, sentence, _, late = check("model.gguf")
    assert (code, late) == (3, True)
    assert sentence.startswith("model.gguf is not an artifact of this baseline: ")
    assert says in sentence


def replaced(raw, name, value):
    """The file with another value under a key: its alignment stays by a text that is cut or filled up."""
    import io

    from quantkit.weights.gguf_header import parse_gguf

    header = parse_gguf(io.BytesIO(bytes(raw)), len(raw), "it")
    keys = [by.key(key, value if key == name else stored(one)) for key, one in header.metadata.items()]
    first = min(tensor.offset for tensor in header.tensors.values())
    tensors = [
        by.tensor(one.name, one.shape[::-1], 0 if one.type == "F32" else 1, one.offset - first)
        for one in header.tensors.values()
    ]
    return by.gguf(keys, tensors, bytes(raw[first:]))


def stored(value):
    return by.array(value.kind, list(value.value)) if value.is_array else by.scalar(value.kind, value.value)
